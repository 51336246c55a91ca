package underlay

import (
	"fmt"
	"slices"

	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
)

// Auto leaves the choice of the datapath to [ChooseDatapath].
const Auto = "auto"

// KernelFamily is the generic netlink family by which Open vSwitch makes bridges
// in the kernel (OVS_DATAPATH_FAMILY of linux/openvswitch.h): where the kernel has
// it not, it has no such bridges, though Open vSwitch lists "system" all the same.
const KernelFamily = "ovs_datapath"

// ChooseDatapath says which datapath to use: the one wanted, or with [Auto] the
// kernel's where it can be had. types is what ovs-vswitchd supports
// (datapath_types), kernel whether the kernel has [KernelFamily]. inUse is the
// datapath by which pods are attached now, empty where none are: with [Auto] it stays. To
// change it all ports are closed and opened anew, and an ovs-vswitchd that was started
// before the kernel's module was there cannot open them.
func ChooseDatapath(want string, types []string, kernel bool, inUse string) (string, error) {
	system := kernel && slices.Contains(types, ovs.DatapathSystem)
	netdev := slices.Contains(types, ovs.DatapathNetdev)
	switch want {
	case Auto, "":
		switch {
		case inUse == ovs.DatapathNetdev && netdev:
			return inUse, nil
		case system:
			return ovs.DatapathSystem, nil
		case netdev:
			return ovs.DatapathNetdev, nil
		}
		return "", fmt.Errorf("no usable datapath: ovs-vswitchd supports %v, kernel module openvswitch present: %t; load it (modprobe openvswitch) and restart Open vSwitch", types, kernel)
	case ovs.DatapathSystem:
		if !kernel {
			return "", fmt.Errorf("datapath system: the kernel has no openvswitch module; load it (modprobe openvswitch) or use --datapath netdev")
		}
		if !system {
			return "", fmt.Errorf("datapath system: ovs-vswitchd supports only %v; use --datapath netdev", types)
		}
		return want, nil
	case ovs.DatapathNetdev:
		if !netdev {
			return "", fmt.Errorf("datapath netdev: ovs-vswitchd supports only %v; use --datapath system", types)
		}
		return want, nil
	}
	return "", fmt.Errorf("datapath %q is none of auto, system, netdev", want)
}
