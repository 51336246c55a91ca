package tc

import (
	"fmt"
	"math"

	"github.com/vishvananda/netlink"

	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/link/internal/dump"
)

// orders reports whether q only orders packets, and holds none back for longer than the device does. Of other kinds that do (pfifo,
// bfifo, codel, sfq) the limit is not read, and may be none at all, so that they drop every packet.
func orders(q netlink.Qdisc) bool {
	switch q := q.(type) {
	case *netlink.Fq:
		return q.PacketLimit > 0 && q.FlowPacketLimit > 0 && q.FlowMaxRate == math.MaxUint32 // without a rate (sch_fq.c)
	case *netlink.FqCodel:
		return q.Limit > 0
	}
	switch q.Type() {
	case "noqueue", "pfifo_fast", "mq":
		return true
	}
	return false
}

// EnsureGates puts what [Control.EnsureGate] makes in the place of any other root qdisc that somebody put on one of these
// devices, and returns which. Those with the kernel's own are left. It reads every qdisc of the node.
func (n Control) EnsureGates(devices ...link.Link) (mended []string, err error) {
	return n.eachForeign(devices, func(q netlink.Qdisc) bool {
		htb, ok := q.(*netlink.Htb)
		return ok && htb.Defcls == 0
	}, func(name string) error {
		_, err := n.EnsureGate(name)
		return err
	})
}

// FreeRoots takes root qdiscs away that somebody put on one of these devices and that hold packets back, drop or delay them, and returns
// which devices had one. It reads every qdisc of the node.
func (n Control) FreeRoots(devices ...link.Link) (freed []string, err error) {
	return n.eachForeign(devices, orders, func(string) error { return nil })
}

// eachForeign deletes root qdiscs of the devices that are none of the kernel's own choice nor fine, and does then.
func (n Control) eachForeign(devices []link.Link, fine func(netlink.Qdisc) bool, then func(name string) error) (names []string, err error) {
	of := make(map[int]string, len(devices))
	for _, d := range devices {
		of[d.Index] = d.Name
	}
	list, err := dump.Whole(func() ([]netlink.Qdisc, error) { return n.ns.Netlink().QdiscList(nil) })
	if err != nil {
		return nil, fmt.Errorf("listing queueing disciplines: %w", err)
	}
	for _, q := range list {
		a := q.Attrs()
		name := of[a.LinkIndex]
		if name == "" || a.Parent != netlink.HANDLE_ROOT || a.Handle == 0 || fine(q) {
			continue
		}
		if err := n.ns.Netlink().QdiscDel(q); err != nil && !gone(err) {
			return names, fmt.Errorf("taking %s from %s: %w", q.Type(), name, err)
		}
		if err := then(name); err != nil {
			return names, err
		}
		names = append(names, name)
	}
	return names, nil
}
