package attach

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/shaping"
	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
	"github.com/k8s-ovs/k8s-ovs/pkg/limits"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/link/conntrack"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// Netlink is the Kernel of this machine.
type Netlink struct {
	// Host is the node's namespace.
	Host *link.NS
	// Shaper holds pods to their limits.
	Shaper *shaping.Shaper
}

// CreateVeth makes the pair with its end in the sandbox.
func (k Netlink) CreateVeth(w Wire) error {
	spec := link.VethSpec{
		PeerName: w.IfName, MAC: w.MAC, MTU: w.MTU,
		Prepare: func() error { return shaping.PrepareHost(k.Host, w.HostIf) },
	}
	return k.in(w, func(sandbox *link.NS) error {
		err := k.Host.CreateVeth(w.HostIf, sandbox, spec)
		if errors.Is(err, link.ErrLinkExists) {
			// The name follows from the attachment, which is not attached: this is the
			// rest of an attempt that was cut off.
			if err := k.Host.DeleteVeth(w.HostIf); err != nil {
				return err
			}
			err = k.Host.CreateVeth(w.HostIf, sandbox, spec)
		}
		return err
	})
}

// Configure sets up the pod's end.
func (k Netlink) Configure(w Wire) (apart bool, err error) {
	err = k.in(w, func(sandbox *link.NS) error {
		if err := shaping.PrepareSandbox(sandbox, w.IfName); err != nil {
			return err
		}
		if _, err := sandbox.ConfigureSandbox(w.sandbox()); err != nil {
			return err
		}
		apart, err = sandbox.Apart(w.sandbox())
		return err
	})
	return apart, err
}

// Apart reports whether another device of the sandbox has the default route, so that
// the pod's own routes are for packets from its address only.
func (k Netlink) Apart(w Wire) (apart bool, err error) {
	err = k.in(w, func(sandbox *link.NS) error {
		apart, err = sandbox.Apart(w.sandbox())
		return err
	})
	return apart, err
}

// HostMAC is the hardware address of the host's end.
func (k Netlink) HostMAC(hostIf string) (net.HardwareAddr, error) {
	l, err := k.Host.Existing(hostIf)
	return l.MAC, err
}

// Leave takes out of a sandbox that stays what does not go with the device; a sandbox
// that is gone is no error.
func (k Netlink) Leave(w Wire) error {
	sandbox, err := link.Open(w.Netns)
	if errors.Is(err, link.ErrNoSandbox) {
		return nil
	}
	if err != nil {
		return err
	}
	defer sandbox.Close()
	if same, err := sandbox.Same(k.Host); same || err != nil {
		return err
	}
	for _, a := range w.Addresses {
		err := sandbox.LeaveSandbox(w.IfName, a)
		if errors.Is(err, link.ErrTooMany) {
			return nil // the pod made them, and keeps them: that holds nothing of the node's
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// SetMTU changes the MTU of a pair that is in use. A frame larger than what a limit
// lets pass at once would be dropped: it grows first, and shrinks last.
func (k Netlink) SetMTU(w Wire) error {
	host, ok, err := k.Host.Link(w.HostIf)
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("network device %s: %w", w.HostIf, link.ErrNoLink)
	}
	limited := w.Limits != (limits.Limits{})
	if limited && w.MTU > host.MTU {
		if err := k.Shape(w); err != nil {
			return err
		}
	}
	err = k.in(w, func(sandbox *link.NS) error {
		_, err := k.Host.SetPairMTU(w.HostIf, sandbox, w.sandbox())
		return err
	})
	if err != nil || !limited {
		return err
	}
	return k.Shape(w)
}

// Shape makes the limits what w says.
func (k Netlink) Shape(w Wire) error { return k.Shaper.Apply(w.shaping(), w.Limits) }

// Unshape removes what is left of limits when the pair is gone.
func (k Netlink) Unshape(hostIf string) error { return k.Shaper.Remove(hostIf) }

// Sweep is Unshape for all pairs that are not in keep.
func (k Netlink) Sweep(keep map[string]bool) (int, error) { return k.Shaper.Sweep(keep) }

// ShapeDifferences says how the limits differ from w.
func (k Netlink) ShapeDifferences(w Wire) ([]string, error) {
	return k.Shaper.Differences(w.shaping(), w.Limits)
}

// Counters of a pod with limits.
func (k Netlink) Counters(w Wire) (shaping.Counters, error) {
	return k.Shaper.Counters(w.shaping(), w.Limits)
}

// Delete removes the pair; one that is gone is no error.
func (k Netlink) Delete(hostIf string) error { return k.Host.DeleteVeth(hostIf) }

// DeleteAll removes pairs, and what of their limits does not go with them.
func (k Netlink) DeleteAll(hostIfs []string) []error {
	devices := make([]link.Device, 0, 2*len(hostIfs))
	for _, name := range hostIfs {
		devices = append(devices, link.Device{Name: name, Type: "veth"}, shaping.Device(name))
	}
	errs := make([]error, len(hostIfs))
	for i, err := range k.Host.DeleteDevices(devices...) {
		errs[i/2] = errors.Join(errs[i/2], err)
	}
	return errs
}

// Forget ends what the node's NAT remembers of connections from the addresses.
func (k Netlink) Forget(addresses ...netip.Addr) error {
	return conntrack.In(k.Host).Forget(addresses...)
}

// Exists reports whether the host's end is there.
func (k Netlink) Exists(hostIf string) (bool, error) { return k.Host.LinkExists(hostIf) }

// Stands reports whether there is a sandbox at the path, which is not the node itself.
func (k Netlink) Stands(netns string) (bool, error) {
	sandbox, err := link.Open(netns)
	if errors.Is(err, link.ErrNoSandbox) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer sandbox.Close()
	same, err := sandbox.Same(k.Host)
	return !same && err == nil, err
}

// Cut removes the pod's end of a pair whose other end somebody moved out of the node's namespace.
func (k Netlink) Cut(w Wire) (cut bool, err error) {
	err = k.in(w, func(sandbox *link.NS) error {
		cut, err = k.Host.DeleteStray(sandbox, w.IfName, w.MAC)
		return err
	})
	return cut, err
}

// Differences says how the sandbox, or the host's end, differs from w.
func (k Netlink) Differences(w Wire) ([]string, error) {
	var diff []string
	host, ok, err := k.Host.Link(w.HostIf)
	switch {
	case err != nil:
		return nil, err
	case !ok:
		diff = append(diff, fmt.Sprintf("the node has no device %s", w.HostIf))
	case !host.Up:
		diff = append(diff, fmt.Sprintf("%s is down", w.HostIf))
	case host.MTU != w.MTU:
		diff = append(diff, fmt.Sprintf("%s has MTU %d, not %d", w.HostIf, host.MTU, w.MTU))
	case host.Master != 0:
		master, ok, err := k.Host.LinkByIndex(host.Master)
		if err != nil {
			return nil, err
		}
		if ok && takesFrames(master) {
			diff = append(diff, fmt.Sprintf("%s is a port of %s, beside the switch", w.HostIf, master.Name))
		}
	}
	err = k.in(w, func(sandbox *link.NS) error {
		inside, err := sandbox.CheckSandbox(w.sandbox())
		diff = append(diff, inside...)
		return err
	})
	return diff, err
}

// sandbox is what the pod's end is to be. It gets its IPv4 address only.
func (w Wire) sandbox() link.SandboxSpec {
	gateway := topology.IPv4(w.Gateways)
	return link.SandboxSpec{
		Name: w.IfName, MAC: w.MAC, MTU: w.MTU, RouteMTU: w.RouteMTU, Address: topology.IPv4(w.Addresses),
		Gateway: gateway, GatewayMAC: topology.MAC(gateway), OffloadsOff: w.NoOffload,
	}
}

func (w Wire) shaping() shaping.Wire {
	return shaping.Wire{HostIf: w.HostIf, Sandbox: w.Netns, IfName: w.IfName, MTU: w.MTU}
}

// in opens the sandbox for fn. One that is gone is the caller's mistake.
func (k Netlink) in(w Wire, fn func(*link.NS) error) error {
	sandbox, err := link.Open(w.Netns)
	if errors.Is(err, link.ErrNoSandbox) {
		return cniapi.Errorf(cniapi.CodeInvalidEnv, "CNI_NETNS: %w", err)
	}
	if err != nil {
		return err
	}
	defer sandbox.Close()
	same, err := sandbox.Same(k.Host)
	if err != nil {
		return err
	}
	if same {
		return cniapi.Errorf(cniapi.CodeInvalidEnv, "CNI_NETNS %s is the node's own network namespace", w.Netns)
	}
	err = fn(sandbox)
	if errors.Is(err, link.ErrSandboxLinkExists) {
		return cniapi.Errorf(cniapi.CodeInvalidEnv, "CNI_IFNAME: %w", err)
	}
	return err
}
