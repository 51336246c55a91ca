package link

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/pkg/faultpoint"
)

// VethSpec is a pair of veth devices, one end in a sandbox.
type VethSpec struct {
	// PeerName is the name of the end in the sandbox, such as "eth0".
	PeerName string
	// MAC of the end in the sandbox.
	MAC net.HardwareAddr
	// MTU of both ends, bytes.
	MTU int
	// Prepare, where given, is called before anything can pass: the end in the
	// sandbox is down.
	Prepare func() error
}

// CreateVeth makes a veth pair: hostName in n, up, and its peer straight in the
// sandbox, in one request: at no time is there a device to be renamed or moved.
// [ErrLinkExists] and [ErrSandboxLinkExists] say that a name is taken.
//
// The end in n belongs to the switch alone: the kernel's own IP stack is kept off
// it as far as settings of a device can (see [NS.Quiet]). It is up from the first
// moment: ovs-vswitchd, which may be waiting for it, reads the flags of a device that
// it opens and writes them back (do_update_flags, lib/netdev.c), and would set down
// again what was set up in between.
func (n *NS) CreateVeth(hostName string, sandbox *NS, spec VethSpec) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = hostName
	attrs.MTU = spec.MTU
	attrs.Flags = net.FlagUp
	// One queue is what a veth uses. Where it is not said the kernel makes one for each
	// processor, takes them back, and waits twice for all processors, and who changes devices
	// waits with it.
	attrs.NumTxQueues, attrs.NumRxQueues = 1, 1
	veth := &netlink.Veth{
		LinkAttrs:        attrs,
		PeerName:         spec.PeerName,
		PeerHardwareAddr: spec.MAC,
		PeerNamespace:    netlink.NsFd(int(sandbox.file.Fd())),
		PeerMTU:          uint32(spec.MTU),
	}
	n.making.Lock()
	defer n.making.Unlock()
	if err := n.nl.LinkAdd(veth); err != nil {
		return n.vethError(hostName, sandbox, spec.PeerName, err)
	}
	faultpoint.Here("device", "pair")
	err := n.Quiet(hostName)
	if err == nil && spec.Prepare != nil {
		if err = spec.Prepare(); err != nil {
			err = fmt.Errorf("preparing %s: %w", hostName, err)
		}
	}
	if err != nil {
		return errors.Join(err, n.DeleteLink(hostName))
	}
	return nil
}

// vethError says which of the two names is taken: the kernel does not.
func (n *NS) vethError(hostName string, sandbox *NS, peer string, err error) error {
	if errors.Is(err, unix.EEXIST) {
		if _, ok, _ := n.Link(hostName); ok {
			return fmt.Errorf("veth %s: %w", hostName, ErrLinkExists)
		}
		if _, ok, _ := sandbox.Link(peer); ok {
			return fmt.Errorf("%s in sandbox %s: %w; another network plugin, or an ADD that was not followed by DEL, made it", peer, sandbox.path, ErrSandboxLinkExists)
		}
	}
	return fmt.Errorf("creating veth %s with %s in sandbox %s: %w", hostName, peer, sandbox.path, err)
}

// Quiet keeps the kernel's own IP stack from taking part in what arrives on a
// device that is a port of the switch. It is idempotent. With the userspace datapath the kernel sees
// every frame that the switch reads (AF_PACKET copies it), so a sandbox could
// otherwise be routed by the node past all flows, or be answered ARP by it:
//
//   - disable_ipv6: no link-local address, no neighbour discovery, no multicast reports
//   - arp_ignore 8: no ARP reply for any local address
//   - forwarding 0 and rp_filter 1: nothing routed, and nothing from an address
//     whose way back is another device, which is every address
//
// See ip-sysctl.rst of the kernel. What a device's settings cannot exclude, and what comes
// while somebody has changed them, the node's firewall drops (hostnet).
func (n *NS) Quiet(name string) error {
	_, err := n.EnsureQuiet(name)
	return err
}

// EnsureQuiet is [NS.Quiet] for several devices; it writes only what differs, and
// returns the devices where something did. One that is gone is no error.
func (n *NS) EnsureQuiet(names ...string) (changed []string, err error) {
	err = n.Do(func() error {
		for _, name := range names {
			did, err := ensureQuiet(name)
			if did {
				changed = append(changed, name)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	return changed, err
}

func ensureQuiet(name string) (changed bool, err error) {
	settings := []struct{ key, value string }{
		{"net/ipv6/conf/" + name + "/disable_ipv6", "1"},
		{"net/ipv4/conf/" + name + "/arp_ignore", "8"},
		{"net/ipv4/conf/" + name + "/forwarding", "0"},
		{"net/ipv4/conf/" + name + "/rp_filter", "1"},
	}
	for _, s := range settings {
		have, err := readSysctl(s.key)
		if errors.Is(err, ErrNoSysctl) {
			continue // IPv6 may be compiled out or disabled at boot, or the device went
		}
		if err == nil && have != s.value {
			changed = true
			if err = writeSysctl(s.key, s.value); errors.Is(err, ErrNoSysctl) {
				continue // a pod may delete its device at any time
			}
		}
		if err != nil {
			return changed, err
		}
	}
	return changed, nil
}

// Loud gives a device the namespace's default settings back: the opposite of
// [NS.Quiet].
func (n *NS) Loud(name string) error {
	return n.Do(func() error {
		for _, key := range []string{"net/ipv6/conf/%s/disable_ipv6", "net/ipv4/conf/%s/arp_ignore", "net/ipv4/conf/%s/forwarding", "net/ipv4/conf/%s/rp_filter"} {
			value, err := readSysctl(fmt.Sprintf(key, "default"))
			if err == nil {
				err = writeSysctl(fmt.Sprintf(key, name), value)
			}
			if err != nil && !errors.Is(err, ErrNoSysctl) {
				return err
			}
		}
		return nil
	})
}

func notFound(err error) bool {
	var missing netlink.LinkNotFoundError
	return errors.As(err, &missing) || errors.Is(err, unix.ENODEV)
}
