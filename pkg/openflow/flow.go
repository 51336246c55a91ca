package openflow

import (
	"encoding/binary"
)

// Flow is a flow, whole: what a line of ovs-ofctl add-flow says. The zero
// values of its fields are those of an add-flow line except for Priority, which
// is 32768 there and 0 here.
type Flow struct {
	Table    uint8
	Priority uint16
	// Cookie is the owner's mark; it does not take part in matching packets.
	Cookie uint64
	Match  Match
	// Actions are applied at once, in order. None, and no Goto, means drop.
	Actions []Action
	// Goto is the table to go on in, nil for none; see [GotoTable].
	Goto *uint8
	// Meter limits the rate before the actions; 0 for none.
	Meter uint32
	// IdleTimeout and HardTimeout are in seconds; 0 for never.
	IdleTimeout, HardTimeout uint16
	// Importance is for eviction; 0 is the least.
	Importance uint16
	Flags      FlowFlags

	// others are instructions that this package does not understand, encoded.
	others string
}

// FlowFlags are OFPFF_* (OpenFlow 1.4, section 7.3.4.1).
type FlowFlags uint16

const (
	// SendFlowRemoved asks for a message when the flow goes.
	SendFlowRemoved FlowFlags = 1 << 0
	// CheckOverlap refuses the flow when one of the same priority overlaps it.
	CheckOverlap FlowFlags = 1 << 1
	// ResetCounts zeroes the counters of a flow that is added again or modified.
	ResetCounts FlowFlags = 1 << 2
	// NoPacketCounts and NoByteCounts say that counters are not needed.
	NoPacketCounts FlowFlags = 1 << 3
	NoByteCounts   FlowFlags = 1 << 4

	// keptFlags are those that a flow keeps; the others are about the moment
	// of adding it, and the switch does not report them.
	keptFlags = SendFlowRemoved | NoPacketCounts | NoByteCounts
)

// GotoTable is t as Flow.Goto wants it.
func GotoTable(t uint8) *uint8 { return &t }

// Key is the flow's identity: of flows with the same key a table holds one.
// It is made of table, priority and match; it is not for reading, only for
// comparing and as a map's key.
func (f Flow) Key() string {
	b := make([]byte, 0, 3+len(f.Match.oxm))
	b = append(b, f.Table)
	b = binary.BigEndian.AppendUint16(b, f.Priority)
	return string(append(b, f.Match.oxm...))
}

// Equal compares everything that a switch keeps of a flow: identity, cookie,
// instructions, timeouts, importance and lasting flags.
func (f Flow) Equal(g Flow) bool {
	return f.Table == g.Table && f.Priority == g.Priority && f.Cookie == g.Cookie && f.Match == g.Match &&
		f.Meter == g.Meter && f.IdleTimeout == g.IdleTimeout && f.HardTimeout == g.HardTimeout &&
		f.Importance == g.Importance && f.Flags&keptFlags == g.Flags&keptFlags && f.others == g.others &&
		equalTable(f.Goto, g.Goto) && actionsEqual(f.Actions, g.Actions)
}

func equalTable(a, b *uint8) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}
