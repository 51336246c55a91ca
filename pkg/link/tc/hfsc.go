package tc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/pkg/link/internal/dump"
)

// ErrNoHFSC: the kernel has no hfsc (module sch_hfsc), or no fq_codel.
var ErrNoHFSC = errors.New("the kernel has no queueing discipline hfsc or fq_codel (modules sch_hfsc, sch_fq_codel)")

// MaxHFSCRate is the highest rate of a class, bits per second: the kernel takes
// bytes as a number of 32 bits (struct tc_service_curve of linux/pkt_sched.h).
const MaxHFSCRate uint64 = 8 * math.MaxUint32

// RootQdisc is the queueing discipline at a device's root.
type RootQdisc struct {
	// Link is the device's index.
	Link int
	// Kind is the kernel's name for it: "hfsc", "mq", ...
	Kind string
	// Major is the first half of its handle. It is 0 where the kernel chose the
	// discipline.
	Major uint16
	// Default is the minor number of the class for what belongs to no other; only
	// of hfsc.
	Default uint16
}

// HFSCClass is a class of an hfsc tree.
type HFSCClass struct {
	// Minor is the second half of its handle, Parent that of its parent's: 0 for
	// the root.
	Minor, Parent uint16
	// Share is its link-sharing curve, bits per second: siblings that are busy share
	// what their parent has in the ratio of theirs.
	Share uint64
	// Limit is its upper limit, bits per second; 0 for none.
	Limit uint64
}

// RootQdisc is that of one device; only its Link is known where it has none.
// [link.ErrNoLink] where there is no device.
func (n Control) RootQdisc(name string) (RootQdisc, error) {
	l, err := n.ns.Existing(name)
	if err != nil {
		return RootQdisc{}, err
	}
	root := RootQdisc{Link: l.Index}
	replies, err := n.ask(unix.RTM_GETQDISC, unix.NLM_F_ECHO, l.Index)
	if err == nil && len(replies) > 0 {
		err = root.parse(replies[0])
	}
	if err != nil {
		return RootQdisc{}, fmt.Errorf("qdisc of %s: %w", name, classify(err))
	}
	return root, nil
}

func (q *RootQdisc) parse(reply []byte) error {
	msg := nl.DeserializeTcMsg(reply)
	attrs, err := nl.ParseRouteAttrAsMap(reply[msg.Len():])
	if err != nil {
		return err
	}
	q.Kind, q.Major = nl.BytesToString(attrs[nl.TCA_KIND].Value), uint16(msg.Handle>>16)
	// struct tc_hfsc_qopt of linux/pkt_sched.h
	if options := attrs[nl.TCA_OPTIONS].Value; q.Kind == "hfsc" && len(options) >= 2 {
		q.Default = binary.NativeEndian.Uint16(options)
	}
	return nil
}

// RootQdiscs are those of all devices that have one. It reads every qdisc of the
// node: where one device will do there is [Control.RootQdisc].
func (n Control) RootQdiscs() ([]RootQdisc, error) {
	list, err := dump.Whole(func() ([]netlink.Qdisc, error) { return n.ns.Netlink().QdiscList(nil) })
	if err != nil {
		return nil, fmt.Errorf("listing queueing disciplines: %w", err)
	}
	var out []RootQdisc
	for _, q := range list {
		a := q.Attrs()
		if a.Parent != netlink.HANDLE_ROOT {
			continue
		}
		root := RootQdisc{Link: a.LinkIndex, Kind: q.Type(), Major: uint16(a.Handle >> 16)}
		if h, ok := q.(*netlink.Hfsc); ok {
			root.Default = h.Defcls
		}
		out = append(out, root)
	}
	return out, nil
}

// AddHFSC puts hfsc at the root of a device, in the place of what the kernel chose,
// with classes, parents first; the last is for what belongs to no other. It returns
// [ErrNoHFSC] where the kernel does not have it. After any error there is no hfsc.
//
// hfsc without a class for the rest drops everything, and the kernel takes one
// thing at a time: what leaves by the device between these requests is lost. So
// there is nothing else between them.
func (n Control) AddHFSC(name string, major uint16, classes ...HFSCClass) error {
	l, err := n.ns.Existing(name)
	if err != nil {
		return err
	}
	q := netlink.NewHfsc(netlink.QdiscAttrs{LinkIndex: l.Index, Handle: handle(major, 0), Parent: netlink.HANDLE_ROOT})
	q.Defcls = classes[len(classes)-1].Minor
	var requests []*nl.NetlinkRequest
	for _, c := range classes {
		requests = append(requests, hfscClass(l.Index, major, c))
	}
	err = n.ns.Do(func() error {
		if err := n.ns.Netlink().QdiscAdd(q); err != nil {
			return classifyHFSC(err)
		}
		for _, req := range requests {
			if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
				return errors.Join(fmt.Errorf("its classes: %w", err), n.ns.Netlink().QdiscDel(q))
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("putting hfsc on %s: %w", name, err)
	}
	return nil
}

// DeleteHFSC takes the root's hfsc away; the kernel puts back what it would have
// chosen. A device or hfsc that is gone is no error.
func (n Control) DeleteHFSC(name string, major uint16) error {
	l, ok, err := n.ns.Link(name)
	if err != nil || !ok {
		return err
	}
	q := netlink.NewHfsc(netlink.QdiscAttrs{LinkIndex: l.Index, Handle: handle(major, 0), Parent: netlink.HANDLE_ROOT})
	if err := n.ns.Netlink().QdiscDel(q); err != nil && !gone(err) {
		return fmt.Errorf("taking hfsc from %s: %w", name, err)
	}
	return nil
}

// HFSCClasses are the classes of the device's hfsc, without the one that stands
// for the discipline itself.
func (n Control) HFSCClasses(name string) ([]HFSCClass, error) {
	l, err := n.ns.Existing(name)
	if err != nil {
		return nil, err
	}
	list, err := dump.Whole(func() (out []HFSCClass, err error) {
		err = n.ns.Do(func() error {
			out, err = dumpHFSC(l.Index)
			return err
		})
		return out, err
	})
	if err != nil {
		return nil, fmt.Errorf("listing the classes of %s: %w", name, err)
	}
	return list, nil
}

// dumpHFSC reads the classes itself, as the library keeps rates in bits in 32
// bits: 4.3 Gbit/s and more would not be what they are.
func dumpHFSC(index int) ([]HFSCClass, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETTCLASS, unix.NLM_F_DUMP)
	req.AddData(&nl.TcMsg{Family: nl.FAMILY_ALL, Ifindex: int32(index)})
	messages, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWTCLASS)
	if err != nil {
		return nil, err
	}
	var out []HFSCClass
	for _, m := range messages {
		tc := nl.DeserializeTcMsg(m)
		attrs, err := nl.ParseRouteAttrAsMap(m[tc.Len():])
		if err != nil {
			return nil, err
		}
		c := HFSCClass{Minor: uint16(tc.Handle), Parent: uint16(tc.Parent)}
		if nl.BytesToString(attrs[nl.TCA_KIND].Value) != "hfsc" || c.Minor == 0 {
			continue // a connection in a queue, or the discipline itself
		}
		curves, err := nl.ParseRouteAttrAsMap(attrs[nl.TCA_OPTIONS].Value)
		if err != nil {
			return nil, err
		}
		c.Share, c.Limit = rateOf(curves[nl.TCA_HFSC_FSC].Value), rateOf(curves[nl.TCA_HFSC_USC].Value)
		out = append(out, c)
	}
	return out, nil
}

// SetHFSCClass makes the class, or changes its curves, and nothing that waits in it
// is lost. What it can never change is the parent.
func (n Control) SetHFSCClass(name string, major uint16, c HFSCClass) error {
	l, err := n.ns.Existing(name)
	if err != nil {
		return err
	}
	req := hfscClass(l.Index, major, c)
	err = n.ns.Do(func() error {
		_, err := req.Execute(unix.NETLINK_ROUTE, 0)
		return err
	})
	if err != nil {
		return fmt.Errorf("class %x:%x of %s: %w", major, c.Minor, name, err)
	}
	return nil
}

// hfscClass is the request to make the class, or to change it.
func hfscClass(index int, major uint16, c HFSCClass) *nl.NetlinkRequest {
	options := nl.NewRtAttr(nl.TCA_OPTIONS, nil)
	options.AddRtAttr(nl.TCA_HFSC_FSC, curve(c.Share))
	if c.Limit > 0 {
		options.AddRtAttr(nl.TCA_HFSC_USC, curve(c.Limit))
	}
	req := nl.NewNetlinkRequest(unix.RTM_NEWTCLASS, unix.NLM_F_CREATE|unix.NLM_F_ACK)
	req.AddData(&nl.TcMsg{Family: nl.FAMILY_ALL, Ifindex: int32(index), Handle: handle(major, c.Minor), Parent: handle(major, c.Parent)})
	req.AddData(nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated("hfsc")))
	req.AddData(options)
	return req
}

// QueueFairly gives a class without children fq_codel as its queue: its
// connections take turns, and what comes from afar and is not held back by its
// socket cannot fill it.
func (n Control) QueueFairly(name string, major, minor uint16) error {
	l, err := n.ns.Existing(name)
	if err != nil {
		return err
	}
	q := netlink.NewFqCodel(netlink.QdiscAttrs{LinkIndex: l.Index, Parent: handle(major, minor)})
	if err := n.ns.Netlink().QdiscReplace(q); err != nil {
		return fmt.Errorf("queue of class %x:%x of %s: %w", major, minor, name, classifyHFSC(err))
	}
	return nil
}

// DeleteHFSCClass removes the class, and what waits in it. One that is gone is no
// error; one with children is.
func (n Control) DeleteHFSCClass(name string, major, minor uint16) error {
	l, ok, err := n.ns.Link(name)
	if err != nil || !ok {
		return err
	}
	c := netlink.NewHfscClass(netlink.ClassAttrs{LinkIndex: l.Index, Handle: handle(major, minor)})
	if err := n.ns.Netlink().ClassDel(c); err != nil && !gone(err) {
		return fmt.Errorf("removing class %x:%x of %s: %w", major, minor, name, err)
	}
	return nil
}

func handle(major, minor uint16) uint32 { return uint32(major)<<16 | uint32(minor) }

// curve is one straight line, as struct tc_service_curve of linux/pkt_sched.h:
// a rate, how long it holds, and the rate after that, in bytes per second.
func curve(bits uint64) []byte {
	b := make([]byte, 12)
	binary.NativeEndian.PutUint32(b[8:], uint32(min((bits+7)/8, math.MaxUint32)))
	return b
}

// rateOf is the last rate of a curve, bits per second; 0 without one.
func rateOf(curve []byte) uint64 {
	if len(curve) < 12 {
		return 0
	}
	return 8 * uint64(binary.NativeEndian.Uint32(curve[8:]))
}

// classifyHFSC: the kernel says ENOENT for a discipline that it does not have.
func classifyHFSC(err error) error {
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%w: %w", ErrNoHFSC, err)
	}
	return err
}

// gone: there is no such device, discipline or class.
func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL)
}
