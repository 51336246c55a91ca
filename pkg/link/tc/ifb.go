package tc

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/pkg/faultpoint"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/link/internal/dump"
)

// ifbQueue is how many packets an ifb takes before it stops its qdisc, as many as
// other devices have. The kernel's 32 are less than a shaper's burst, which then goes
// in pieces.
const ifbQueue = 1000

// EnsureIFB makes an intermediate functional block device, which sends what was
// redirected to it on from where it came, after its own qdisc. It is down, and the
// kernel's own IP stack is kept off it ([link.NS.Quiet]). An ifb of that name stays as it is;
// [link.ErrLinkExists] where a device of another kind has the name.
func (n Control) EnsureIFB(name string) error {
	l, ok, err := n.ns.Link(name)
	switch {
	case err != nil:
		return err
	case ok && l.Type != "ifb":
		return fmt.Errorf("%s is of type %s, not an ifb: %w", name, l.Type, link.ErrLinkExists)
	case ok && l.Up:
		return nil
	case !ok:
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		attrs.TxQLen = ifbQueue
		if err := n.ns.Netlink().LinkAdd(&netlink.Ifb{LinkAttrs: attrs}); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("creating ifb %s: %w", name, err)
		}
		faultpoint.Here("device", "ifb")
	}
	return n.ns.Quiet(name)
}

// DeleteIFB removes an ifb with what waits in it. One that is not there is no
// error; a device of another kind is left alone, with one.
func (n Control) DeleteIFB(name string) error {
	return n.ns.DeleteDevices(link.Device{Name: name, Type: "ifb"})[0]
}

// EnsureRedirect makes all that leaves by the device, which has a gate
// ([Control.EnsureGate]), pass through the ifb, and reports whether it did not.
// [link.ErrNoLink] where either is missing.
func (n Control) EnsureRedirect(name, ifb string) (changed bool, err error) {
	from, err := n.ns.Existing(name)
	if err != nil {
		return false, err
	}
	to, err := n.ns.Existing(ifb)
	if err != nil {
		return false, err
	}
	filters, err := n.redirects(from)
	if err != nil {
		return false, err
	}
	if len(filters) == 1 && filters[0].RedirIndex == to.Index {
		return false, nil
	}
	// What is there leads to a device that is gone, so that nothing passes.
	if err := n.deleteFilters(from, filters); err != nil {
		return false, err
	}
	err = n.ns.Netlink().FilterAdd(&netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: from.Index, Parent: rootQdisc, Priority: 1, Protocol: unix.ETH_P_ALL},
		RedirIndex:  to.Index,
	})
	if err != nil {
		return false, fmt.Errorf("redirecting %s to %s: %w", name, ifb, classify(err))
	}
	faultpoint.Here("queue", "what leads to the ifb")
	return true, nil
}

// DeleteRedirect undoes [Control.EnsureRedirect] and reports whether there was
// something to undo. [link.ErrNoLink] where there is no device.
func (n Control) DeleteRedirect(name string) (changed bool, err error) {
	l, err := n.ns.Existing(name)
	if err != nil {
		return false, err
	}
	filters, err := n.redirects(l)
	if err != nil {
		return false, err
	}
	return len(filters) > 0, n.deleteFilters(l, filters)
}

// Redirects reports whether what leaves by the device passes through the ifb.
// [link.ErrNoLink] where there is no device; no ifb is no redirection.
func (n Control) Redirects(name, ifb string) (bool, error) {
	from, err := n.ns.Existing(name)
	if err != nil {
		return false, err
	}
	to, ok, err := n.ns.Link(ifb)
	if err != nil || !ok {
		return false, err
	}
	filters, err := n.redirects(from)
	return len(filters) == 1 && filters[0].RedirIndex == to.Index, err
}

// rootQdisc as the parent of filters is a device's root qdisc, whatever its handle.
const rootQdisc = 0

// redirects are the filters in the device's gate; none where it has no gate.
func (n Control) redirects(l link.Link) ([]*netlink.U32, error) {
	filters, err := dump.Whole(func() ([]netlink.Filter, error) {
		return n.ns.Netlink().FilterList(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: l.Index}}, rootQdisc)
	})
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing the filters of %s: %w", l.Name, classify(err))
	}
	var out []*netlink.U32
	for _, f := range filters {
		if u, ok := f.(*netlink.U32); ok {
			out = append(out, u)
		}
	}
	return out, nil
}

func (n Control) deleteFilters(l link.Link, filters []*netlink.U32) error {
	for _, f := range filters {
		if err := n.ns.Netlink().FilterDel(f); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("removing a filter of %s: %w", l.Name, classify(err))
		}
	}
	return nil
}

// Kick makes the device's qdisc look at its queue now. A tbf that was made faster
// else waits until the time that it computed before, which at 1 kbit/s is in 12 s.
// The kernel has no request for that; sending something is what does it. The frame
// says nothing and is for nobody: from the device to itself, of the EtherType for
// local experiments (IEEE 802).
func (n Control) Kick(name string) error {
	l, err := n.ns.Existing(name)
	if err != nil {
		return err
	}
	const experimental = 0x88b5
	to := &unix.SockaddrLinklayer{Ifindex: l.Index, Protocol: networkOrder(experimental), Halen: 6}
	copy(to.Addr[:], l.MAC)
	err = n.ns.Do(func() error {
		// With protocol 0 it receives nothing.
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, make([]byte, minPayload), unix.MSG_DONTWAIT, to)
	})
	if errors.Is(err, unix.ENOBUFS) {
		return nil // its queue is full, so it looked
	}
	if err != nil {
		return fmt.Errorf("sending by %s: %w", name, err)
	}
	return nil
}

// minPayload is that of an Ethernet frame, bytes.
const minPayload = 46
