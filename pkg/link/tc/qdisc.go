package tc

import (
	"encoding/binary"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/pkg/faultpoint"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
)

// tickNS is the kernel's unit of a tbf's bucket, 2^6 ns: PSCHED_SHIFT of
// include/net/pkt_sched.h.
const tickNS = 64

// TBF are the parameters of a token bucket filter, the shaper sch_tbf(8).
type TBF struct {
	// Rate, bytes per second, from 1.
	Rate uint64
	// Burst is the depth of the bucket, bytes. What is larger is cut if it can be
	// segmented, and else dropped.
	Burst uint32
	// Queue is how much may wait, bytes.
	Queue uint32
}

// Qdisc is the root queueing discipline of a device.
type Qdisc struct {
	// Kind such as "tbf", "htb", "noqueue".
	Kind string
	// Default is whether nobody has put it there.
	Default bool
	// Bytes and Packets went through it; Dropped are packets that found it full.
	Bytes, Packets, Dropped uint64
	// Delayed is how often it had to hold a packet back.
	Delayed uint64
	// Backlog is what waits in it, bytes.
	Backlog uint64

	rate          uint64
	queue, bucket uint32
}

// Shapes reports whether the qdisc is the one that [Control.SetTBF] makes of t.
func (q Qdisc) Shapes(t TBF) bool {
	if q.Kind != "tbf" || q.rate != t.Rate || q.queue != t.Queue {
		return false
	}
	// The kernel keeps the bucket as a time, in 64 ns, with what it rounds off.
	want := uint64(float64(t.Burst) * 1e9 / float64(t.Rate) / tickNS)
	off := int64(int32(q.bucket - uint32(want)))
	return max(off, -off) <= int64(want>>10)+1
}

// Gates reports whether the qdisc is the one that [Control.EnsureGate] makes.
func (q Qdisc) Gates() bool { return q.Kind == "htb" }

// Qdisc is the device's root qdisc. [link.ErrNoLink] where there is no device.
func (n Control) Qdisc(name string) (Qdisc, error) {
	l, err := n.ns.Existing(name)
	if err != nil {
		return Qdisc{}, err
	}
	return n.qdisc(l)
}

func (n Control) qdisc(l link.Link) (Qdisc, error) {
	// A listing would be one of all devices; the kernel has no other way to ask for
	// one than with an echo.
	replies, err := n.ask(unix.RTM_GETQDISC, unix.NLM_F_ECHO, l.Index)
	// A device that was never up has none yet, and there is no reply.
	q := Qdisc{Default: true}
	if err == nil && len(replies) > 0 {
		q, err = parseQdisc(replies[0])
	}
	if err != nil {
		return Qdisc{}, fmt.Errorf("qdisc of %s: %w", l.Name, classify(err))
	}
	return q, nil
}

// SetTBF makes the device's root qdisc a tbf. One that is there is changed in
// place: nothing that waits in it is lost, and its bucket is full anew. Any other is
// replaced, which loses what passes a device that is up in that instant.
// [link.ErrNoLink] where there is no device.
func (n Control) SetTBF(name string, t TBF) error {
	l, err := n.ns.Existing(name)
	if err != nil {
		return err
	}
	options := nl.NewRtAttr(nl.TCA_OPTIONS, nil)
	qopt := nl.TcTbfQopt{Limit: t.Queue}
	qopt.Rate.Rate = uint32(min(t.Rate, 1<<32-1))
	options.AddRtAttr(nl.TCA_TBF_PARMS, qopt.Serialize())
	if t.Rate >= 1<<32 {
		options.AddRtAttr(nl.TCA_TBF_RATE64, nl.Uint64Attr(t.Rate))
	}
	// Not the time in qopt.Buffer: the kernel takes at most 4.3 s of that for the
	// largest packet, which at 1 kbit/s is no packet at all.
	options.AddRtAttr(nl.TCA_TBF_BURST, nl.Uint32Attr(t.Burst))
	_, err = n.ask(unix.RTM_NEWQDISC, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, l.Index,
		nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated("tbf")), options)
	if err != nil {
		return fmt.Errorf("setting the tbf of %s to %d bytes/s: %w", name, t.Rate, classify(err))
	}
	faultpoint.Here("queue", "tbf")
	return nil
}

// EnsureGate makes the device's root qdisc an htb without classes, which passes
// everything on and can have filters ([Control.EnsureRedirect]), and reports whether it
// was not. Any other is replaced, with the loss that [Control.SetTBF] has.
// [link.ErrNoLink] where there is no device.
func (n Control) EnsureGate(name string) (changed bool, err error) {
	l, err := n.ns.Existing(name)
	if err != nil {
		return false, err
	}
	q, err := n.qdisc(l)
	if err != nil || q.Gates() {
		return false, err
	}
	err = n.ns.Netlink().QdiscReplace(netlink.NewHtb(netlink.QdiscAttrs{
		LinkIndex: l.Index, Parent: netlink.HANDLE_ROOT,
	}))
	if err != nil {
		return false, fmt.Errorf("adding an htb to %s: %w", name, classify(err))
	}
	faultpoint.Here("queue", "gate")
	return true, nil
}

func parseQdisc(reply []byte) (q Qdisc, err error) {
	msg := nl.DeserializeTcMsg(reply)
	attrs, err := nl.ParseRouteAttr(reply[msg.Len():])
	if err != nil {
		return Qdisc{}, err
	}
	q.Default = msg.Handle == 0
	for _, a := range attrs {
		switch a.Attr.Type {
		case nl.TCA_KIND:
			q.Kind = unix.ByteSliceToString(a.Value)
		case nl.TCA_OPTIONS:
			if q.Kind == "tbf" {
				err = q.parseTBF(a.Value)
			}
		case nl.TCA_STATS2:
			err = q.parseStats(a.Value)
		}
		if err != nil {
			return Qdisc{}, err
		}
	}
	return q, nil
}

func (q *Qdisc) parseTBF(options []byte) error {
	attrs, err := nl.ParseRouteAttr(options)
	for _, a := range attrs {
		switch {
		case a.Attr.Type == nl.TCA_TBF_PARMS && len(a.Value) >= nl.SizeofTcTbfQopt:
			qopt := nl.DeserializeTcTbfQopt(a.Value)
			q.rate, q.queue, q.bucket = max(q.rate, uint64(qopt.Rate.Rate)), qopt.Limit, qopt.Buffer
		case a.Attr.Type == nl.TCA_TBF_RATE64 && len(a.Value) >= 8:
			q.rate = binary.NativeEndian.Uint64(a.Value)
		}
	}
	return err
}

// parseStats reads struct gnet_stats_basic and gnet_stats_queue of
// linux/gen_stats.h. Packets are 32 bits there unless the kernel adds them in 64.
func (q *Qdisc) parseStats(stats []byte) error {
	attrs, err := nl.ParseRouteAttr(stats)
	word := func(b []byte, i int) uint64 { return uint64(binary.NativeEndian.Uint32(b[4*i:])) }
	for _, a := range attrs {
		switch {
		case a.Attr.Type == nl.TCA_STATS_BASIC && len(a.Value) >= 12:
			q.Bytes, q.Packets = binary.NativeEndian.Uint64(a.Value), max(q.Packets, word(a.Value, 2))
		case a.Attr.Type == tcaStatsPkt64 && len(a.Value) >= 8:
			q.Packets = binary.NativeEndian.Uint64(a.Value)
		case a.Attr.Type == nl.TCA_STATS_QUEUE && len(a.Value) >= 20:
			q.Backlog, q.Dropped, q.Delayed = word(a.Value, 1), word(a.Value, 2), word(a.Value, 4)
		}
	}
	return err
}

// tcaStatsPkt64 is TCA_STATS_PKT64 of linux/gen_stats.h.
const tcaStatsPkt64 = 8
