package policies

import (
	"fmt"

	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// Lacks is what of policies a datapath does not know, of Open vSwitch of that version; see
// [topology.NodeStatus]. The userspace datapath tracks the ports of SCTP since 3.2; of a version
// that does not say its number nobody knows.
func Lacks(datapath, version string) []string {
	var major, minor int
	if _, err := fmt.Sscanf(version, "%d.%d", &major, &minor); err != nil {
		major = 0
	}
	if datapath != ovs.DatapathNetdev || major > 3 || major == 3 && minor >= 2 {
		return nil
	}
	return []string{topology.LacksSCTPPorts}
}
