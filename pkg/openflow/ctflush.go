package openflow

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// CTFilter chooses tracked connections. What is not set matches any; the zero
// filter chooses every connection of the datapath, in all zones and of all bridges.
type CTFilter struct {
	// Zone is nil for every zone.
	Zone *uint16
	// Protocol is the IP protocol, 0 for any. It cannot be that of ICMP: Open
	// vSwitch would choose by identifier, type and code as well.
	Protocol uint8
	// Orig is the connection's first packet before translation, Reply the answer
	// to it as it comes in: a connection to a service has the service's address
	// in Orig.Dst and the backend's in Reply.Src.
	Orig, Reply CTTuple
}

// CTTuple is one direction of a connection. What is not set matches any. Ports
// need [CTFilter.Protocol].
type CTTuple struct {
	Src, Dst         netip.Addr
	SrcPort, DstPort uint16
}

// FlushConnections makes the switch forget the connections that the filter
// chooses; there being none is not an error. It returns when that has happened.
// A switch older than Open vSwitch 3.1 refuses it with an error that is
// [errors.ErrUnsupported]. The switch does not say when it overlooks one that
// ends at the same moment as others are flushed: calling again is harmless.
func (c *Conn) FlushConnections(ctx context.Context, filter CTFilter) error {
	err := filter.check()
	if err == nil {
		err = c.confirm(ctx, func(b []byte, xid uint32) []byte { return appendCTFlush(b, xid, filter) })
	}
	if err != nil {
		return fmt.Errorf("flush connections (%s): %w", filter, err)
	}
	return nil
}

func (f CTFilter) check() error {
	ports := f.Orig.SrcPort|f.Orig.DstPort|f.Reply.SrcPort|f.Reply.DstPort != 0
	switch {
	case f.Protocol == ProtoICMP || f.Protocol == ProtoICMPv6:
		return errors.New("connections of ICMP cannot be chosen by protocol; choose them by address or zone")
	case ports && f.Protocol == 0:
		return errors.New("a port says nothing without a protocol; give both")
	case f.Zone == nil && f.Orig.whole() && f.Reply == CTTuple{}:
		// Open vSwitch looks such a one up directly, in zone 0 (ct_dpif_flush_tuple).
		return errors.New("the whole original direction names one connection; give its zone too")
	}
	return nil
}

func (t CTTuple) whole() bool {
	return t.Src.IsValid() && t.Dst.IsValid() && t.SrcPort != 0 && t.DstPort != 0
}

// String is the filter in the words of ovs-ofctl ct-flush.
func (f CTFilter) String() string {
	var parts []string
	if f.Zone != nil {
		parts = append(parts, fmt.Sprintf("zone=%d", *f.Zone))
	}
	if f.Protocol != 0 {
		parts = append(parts, fmt.Sprintf("ct_nw_proto=%d", f.Protocol))
	}
	for _, d := range []struct {
		name  string
		tuple CTTuple
	}{{"orig", f.Orig}, {"reply", f.Reply}} {
		if d.tuple != (CTTuple{}) {
			parts = append(parts, d.name+"("+d.tuple.String()+")")
		}
	}
	if parts == nil {
		return "all"
	}
	return strings.Join(parts, " ")
}

// String is the tuple as ovs-ofctl ct-flush takes it.
func (t CTTuple) String() string {
	var parts []string
	for _, a := range []struct {
		name string
		addr netip.Addr
	}{{"src", t.Src}, {"dst", t.Dst}} {
		family := "nw"
		if a.addr.Is6() && !a.addr.Is4In6() {
			family = "ipv6"
		}
		if a.addr.IsValid() {
			parts = append(parts, fmt.Sprintf("ct_%s_%s=%s", family, a.name, a.addr.Unmap()))
		}
	}
	for _, p := range []struct {
		name string
		port uint16
	}{{"src", t.SrcPort}, {"dst", t.DstPort}} {
		if p.port != 0 {
			parts = append(parts, fmt.Sprintf("ct_tp_%s=%d", p.name, p.port))
		}
	}
	return strings.Join(parts, ",")
}

// Parts of NXT_CT_FLUSH (Open vSwitch 3.1, nicira-ext.h, struct nx_ct_flush and
// the properties behind it).
const (
	nxtCTFlush = 32

	ctFlushOrig  = 0
	ctFlushReply = 1
	ctFlushZone  = 2

	ctTupleSrc     = 0 // the destination is the next number
	ctTupleSrcPort = 2
)

func appendCTFlush(b []byte, xid uint32, f CTFilter) []byte {
	start := len(b)
	b = appendMessageHeader(b, msgExperimenter, xid)
	b = binary.BigEndian.AppendUint32(b, vendorNicira)
	b = binary.BigEndian.AppendUint32(b, nxtCTFlush)
	b = append(b, f.Protocol, 0, 0, 0, 0, 0, 0, 0)
	b = appendCTTuple(b, ctFlushOrig, f.Orig)
	b = appendCTTuple(b, ctFlushReply, f.Reply)
	if f.Zone != nil {
		b = appendProperty(b, ctFlushZone, binary.BigEndian.AppendUint16(nil, *f.Zone))
	}
	return finishMessage(b, start)
}

func appendCTTuple(b []byte, typ uint16, t CTTuple) []byte {
	if t == (CTTuple{}) {
		return b
	}
	nested := make([]byte, 4, 128) // aligned as the header alone is not
	for i, a := range []netip.Addr{t.Src, t.Dst} {
		if a.IsValid() {
			v6 := a.As16() // IPv4 is mapped
			nested = appendProperty(nested, ctTupleSrc+uint16(i), v6[:])
		}
	}
	for i, p := range []uint16{t.SrcPort, t.DstPort} {
		if p != 0 {
			nested = appendProperty(nested, ctTupleSrcPort+uint16(i), binary.BigEndian.AppendUint16(nil, p))
		}
	}
	return appendProperty(b, typ, nested)
}

// appendProperty writes a property: type, length without padding, value, padding
// to 8 bytes (Open vSwitch, lib/ofp-prop.c).
func appendProperty(b []byte, typ uint16, value []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, typ)
	b = binary.BigEndian.AppendUint16(b, uint16(4+len(value)))
	return pad8(append(b, value...), 4+len(value))
}
