// Package tc reads and changes traffic control: the queueing disciplines of devices, their
// classes, and filters that send packets elsewhere.
//
// It decides nothing: devices, rates and classes come from the caller. It never executes a
// program.
package tc

import (
	"errors"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/pkg/link"
)

// Control is the traffic control of a network namespace, for as long as that is open. Its
// methods may be called from several goroutines.
type Control struct{ ns *link.NS }

// In returns the traffic control of ns.
func In(ns *link.NS) Control { return Control{ns} }

// ask asks the kernel about the root qdisc of a device, by a socket of its own:
// netlink.Handle offers neither the attributes nor the request. Without a handle the
// kernel changes one of the same kind in place, and puts a new one over any other.
func (n Control) ask(request, flags, index int, attrs ...nl.NetlinkRequestData) (replies [][]byte, err error) {
	err = n.ns.Do(func() error {
		req := nl.NewNetlinkRequest(request, flags|unix.NLM_F_ACK)
		req.AddData(&nl.TcMsg{Family: nl.FAMILY_ALL, Ifindex: int32(index), Parent: netlink.HANDLE_ROOT})
		for _, a := range attrs {
			req.AddData(a)
		}
		replies, err = req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWQDISC)
		return err
	})
	return replies, err
}

// classify is [link.ErrNoLink] for a device that went meanwhile.
func classify(err error) error {
	if errors.Is(err, unix.ENODEV) {
		return link.ErrNoLink
	}
	return err
}
