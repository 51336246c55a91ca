package attach

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// Netlink is the Kernel of this machine.
type Netlink struct {
	// Host is the node's namespace.
	Host *link.NS
}

// CreateVeth makes the pair with its end in the sandbox.
func (k Netlink) CreateVeth(w Wire) error {
	return k.in(w, func(sandbox *link.NS) error {
		err := k.Host.CreateVeth(w.HostIf, sandbox, link.VethSpec{PeerName: w.IfName, MAC: topology.MAC(w.Address), MTU: w.MTU})
		if errors.Is(err, link.ErrLinkExists) {
			// The name follows from the attachment, which is not attached: this is the
			// rest of an attempt that was cut off.
			if err := k.Host.DeleteVeth(w.HostIf); err != nil {
				return err
			}
			err = k.Host.CreateVeth(w.HostIf, sandbox, link.VethSpec{PeerName: w.IfName, MAC: topology.MAC(w.Address), MTU: w.MTU})
		}
		return err
	})
}

// Configure sets up the pod's end.
func (k Netlink) Configure(w Wire) error {
	return k.in(w, func(sandbox *link.NS) error {
		_, err := sandbox.ConfigureSandbox(w.sandbox())
		return err
	})
}

// Delete removes the pair; one that is gone is no error.
func (k Netlink) Delete(hostIf string) error { return k.Host.DeleteVeth(hostIf) }

// Forget ends what the node's NAT remembers of connections from the address.
func (k Netlink) Forget(address netip.Addr) error { return k.Host.ForgetConnections(address) }

// Exists reports whether the host's end is there.
func (k Netlink) Exists(hostIf string) (bool, error) { return k.Host.LinkExists(hostIf) }

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
	}
	err = k.in(w, func(sandbox *link.NS) error {
		inside, err := sandbox.CheckSandbox(w.sandbox())
		diff = append(diff, inside...)
		return err
	})
	return diff, err
}

func (w Wire) sandbox() link.SandboxSpec {
	return link.SandboxSpec{
		Name: w.IfName, MAC: topology.MAC(w.Address), MTU: w.MTU, Address: w.Address,
		Gateway: w.Gateway, GatewayMAC: topology.MAC(w.Gateway), OffloadsOff: w.NoOffload,
	}
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
