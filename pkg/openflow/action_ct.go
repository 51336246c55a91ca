package openflow

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

// CTSpec is a pass through connection tracking (ovs-actions(7), "ct").
type CTSpec struct {
	// Commit makes the connection known.
	Commit bool
	// Force replaces a connection of the opposite direction. Needs Commit.
	Force bool
	// Zone of the connection; ZoneFrom takes it from 16 bits of a field instead.
	Zone     uint16
	ZoneFrom FieldRange
	// Table continues the packet in that table with its state; nil forks nothing.
	Table *uint8
	// NAT translates addresses; nil does not. An empty one applies what the
	// connection was committed with.
	NAT *NATSpec
	// Actions set ct_mark and ct_label. They need Commit.
	Actions []Action
	// ALG is the well-known port of the helper, such as 21 for FTP; 0 for none.
	ALG uint16
}

// NATSpec is an address translation of [CTSpec].
type NATSpec struct {
	// SNAT or DNAT, at most one.
	SNAT, DNAT bool
	// Persistent, Hash and Random choose how an address or port is picked.
	Persistent, Hash, Random bool
	// AddrMin to AddrMax is the range of addresses; AddrMax may be unset.
	AddrMin, AddrMax netip.Addr
	// PortMin to PortMax is the range of ports; 0 for any.
	PortMin, PortMax uint16
}

// CT sends the packet through connection tracking. What s points to is copied.
func CT(s CTSpec) Action {
	if s.Table != nil {
		s.Table = GotoTable(*s.Table)
	}
	if s.NAT != nil {
		n := s.NAT.canonical()
		s.NAT = &n
	}
	s.Actions = slices.Clone(s.Actions)
	return ctAction{spec: s}
}

// canonical has one form for a single address or port.
func (n NATSpec) canonical() NATSpec {
	n.AddrMin, n.AddrMax = n.AddrMin.Unmap(), n.AddrMax.Unmap()
	if n.AddrMax == n.AddrMin {
		n.AddrMax = netip.Addr{}
	}
	if n.PortMax == n.PortMin {
		n.PortMax = 0
	}
	return n
}

// Flags and parts of the wire forms (Open vSwitch, lib/ofp-actions.c, struct
// nx_action_conntrack and struct nx_action_nat).
const (
	ctCommit   = 1 << 0
	ctForce    = 1 << 1
	ctNoTable  = 0xff
	ctHeadSize = 24

	natSNAT       = 1 << 0
	natDNAT       = 1 << 1
	natPersistent = 1 << 2
	natHash       = 1 << 3
	natRandom     = 1 << 4
	natKnownFlags = natSNAT | natDNAT | natPersistent | natHash | natRandom

	natIPv4Min    = 1 << 0
	natIPv4Max    = 1 << 1
	natIPv6Min    = 1 << 2
	natIPv6Max    = 1 << 3
	natPortMin    = 1 << 4
	natPortMax    = 1 << 5
	natKnownParts = 1<<6 - 1
)

func (a ctAction) append(b []byte) []byte {
	s, start := a.spec, len(b)
	var flags uint16
	if s.Commit {
		flags |= ctCommit
	}
	if s.Force {
		flags |= ctForce
	}
	b = appendNicira(b, nxCT)
	b = binary.BigEndian.AppendUint16(b, flags)
	if s.ZoneFrom.n != 0 {
		b = binary.BigEndian.AppendUint32(b, s.ZoneFrom.header())
		b = binary.BigEndian.AppendUint16(b, s.ZoneFrom.offsetBits())
	} else {
		b = binary.BigEndian.AppendUint32(b, 0)
		b = binary.BigEndian.AppendUint16(b, s.Zone)
	}
	table := byte(ctNoTable)
	if s.Table != nil {
		table = *s.Table
	}
	b = append(b, table, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, s.ALG)
	if s.NAT != nil {
		b = s.NAT.append(b)
	}
	return finish(appendActions(b, s.Actions), start)
}

func (n NATSpec) append(b []byte) []byte {
	start := len(b)
	var flags, parts uint16
	for i, on := range []bool{n.SNAT, n.DNAT, n.Persistent, n.Hash, n.Random} {
		if on {
			flags |= 1 << i
		}
	}
	b = appendNicira(b, nxNAT)
	b = append(b, 0, 0)
	b = binary.BigEndian.AppendUint16(b, flags)
	at := len(b)
	b = append(b, 0, 0)
	for i, a := range []netip.Addr{n.AddrMin, n.AddrMax} {
		if !a.IsValid() {
			continue
		}
		part := uint16(natIPv4Min)
		if a.Is6() {
			part = natIPv6Min
		}
		parts |= part << i
		b = append(b, a.AsSlice()...)
	}
	for i, p := range []uint16{n.PortMin, n.PortMax} {
		if p != 0 {
			parts |= natPortMin << i
			b = binary.BigEndian.AppendUint16(b, p)
		}
	}
	binary.BigEndian.PutUint16(b[at:], parts)
	return finish(b, start)
}
