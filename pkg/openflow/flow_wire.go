package openflow

import (
	"encoding/binary"
	"fmt"
	"time"
)

// flowCommand is OFPFC_* (OpenFlow 1.4, section 7.3.4.1).
type flowCommand uint8

const (
	flowAdd          flowCommand = 0
	flowModifyStrict flowCommand = 2
	flowDelete       flowCommand = 3
	flowDeleteStrict flowCommand = 4
)

// Instruction types (OpenFlow 1.4, section 7.2.4).
const (
	instrGoto         = 1
	instrApplyActions = 4
	instrMeter        = 6
)

// noBuffer is OFP_NO_BUFFER; allTables is OFPTT_ALL.
const (
	noBuffer  = 0xffffffff
	allTables = 0xff
)

// flowModFixed is the length of ofp_flow_mod before its match, header included;
// flowStatsFixed that of ofp_flow_stats.
const (
	flowModFixed   = 48
	flowStatsFixed = 48
)

// appendFlowMod writes an OFPT_FLOW_MOD (OpenFlow 1.4, section 7.3.4.1).
func appendFlowMod(b []byte, xid uint32, cmd flowCommand, f Flow, cookieMask uint64) []byte {
	start := len(b)
	b = appendMessageHeader(b, msgFlowMod, xid)
	b = binary.BigEndian.AppendUint64(b, f.Cookie)
	b = binary.BigEndian.AppendUint64(b, cookieMask)
	b = append(b, f.Table, byte(cmd))
	b = binary.BigEndian.AppendUint16(b, f.IdleTimeout)
	b = binary.BigEndian.AppendUint16(b, f.HardTimeout)
	b = binary.BigEndian.AppendUint16(b, f.Priority)
	b = binary.BigEndian.AppendUint32(b, noBuffer)
	b = binary.BigEndian.AppendUint32(b, PortAny)
	b = binary.BigEndian.AppendUint32(b, GroupAny)
	b = binary.BigEndian.AppendUint16(b, uint16(f.Flags))
	b = binary.BigEndian.AppendUint16(b, f.Importance)
	b = appendMatch(b, f.Match)
	if cmd == flowAdd || cmd == flowModifyStrict {
		b = appendInstructions(b, f)
	}
	return finishMessage(b, start)
}

func appendInstructions(b []byte, f Flow) []byte {
	if f.Meter != 0 {
		b = append(b, 0, instrMeter, 0, 8)
		b = binary.BigEndian.AppendUint32(b, f.Meter)
	}
	if len(f.Actions) > 0 {
		start := len(b)
		b = append(b, 0, instrApplyActions, 0, 0, 0, 0, 0, 0)
		b = finish(appendActions(b, f.Actions), start)
	}
	b = append(b, f.others...)
	if f.Goto != nil {
		b = append(b, 0, instrGoto, 0, 8, *f.Goto, 0, 0, 0)
	}
	return b
}

// decodeInstructions fills in what a flow does.
func decodeInstructions(b []byte, f *Flow) error {
	for len(b) > 0 {
		one, rest, err := cutRecord(b, "instruction", 2, 8)
		if err != nil {
			return err
		}
		switch typ := binary.BigEndian.Uint16(one); {
		case typ == instrGoto && len(one) == 8 && f.Goto == nil:
			f.Goto = GotoTable(one[4])
		case typ == instrMeter && len(one) == 8 && f.Meter == 0 && binary.BigEndian.Uint32(one[4:]) != 0:
			f.Meter = binary.BigEndian.Uint32(one[4:])
		case typ == instrApplyActions && f.Actions == nil && len(one) > 8:
			if f.Actions, err = decodeActions(one[8:]); err != nil {
				return err
			}
		case typ == instrApplyActions && len(one) == 8: // does nothing
		default:
			f.others += string(one)
		}
		b = rest
	}
	return nil
}

// FlowStats is a flow as the switch has it.
type FlowStats struct {
	Flow
	// Packets and Bytes that it was for, as far as the switch has counted: on
	// the kernel datapath some seconds behind.
	Packets, Bytes uint64
	// Duration since it was added.
	Duration time.Duration
}

// decodeFlowStats reads the body of a multipart reply of type OFPMP_FLOW
// (OpenFlow 1.4, section 7.3.5.2).
func decodeFlowStats(b []byte, to []FlowStats) ([]FlowStats, error) {
	for len(b) > 0 {
		one, rest, err := cutRecord(b, "flow in a dump", 0, flowStatsFixed)
		if err != nil {
			return nil, err
		}
		s := FlowStats{
			Flow: Flow{
				Table: one[2], Priority: binary.BigEndian.Uint16(one[12:]),
				IdleTimeout: binary.BigEndian.Uint16(one[14:]), HardTimeout: binary.BigEndian.Uint16(one[16:]),
				Flags: FlowFlags(binary.BigEndian.Uint16(one[18:])), Importance: binary.BigEndian.Uint16(one[20:]),
				Cookie: binary.BigEndian.Uint64(one[24:]),
			},
			Packets: binary.BigEndian.Uint64(one[32:]), Bytes: binary.BigEndian.Uint64(one[40:]),
			Duration: time.Duration(binary.BigEndian.Uint32(one[4:]))*time.Second + time.Duration(binary.BigEndian.Uint32(one[8:])),
		}
		m, instructions, err := cutMatch(one[flowStatsFixed:])
		if err == nil {
			s.Match = m
			err = decodeInstructions(instructions, &s.Flow)
		}
		if err != nil {
			return nil, fmt.Errorf("flow in a dump: %w", err)
		}
		to, b = append(to, s), rest
	}
	return to, nil
}

// FlowFilter chooses flows. The zero value chooses all.
type FlowFilter struct {
	// Table that they are in, nil for any; [GotoTable] makes a pointer.
	Table *uint8
	// Cookie is compared in the bits of CookieMask; a mask of 0 compares none.
	Cookie, CookieMask uint64
	// Match chooses flows whose match is the same or narrower.
	Match Match
}

func (f FlowFilter) table() uint8 {
	if f.Table == nil {
		return allTables
	}
	return *f.Table
}

// String is the filter as ovs-ofctl del-flows takes it.
func (f FlowFilter) String() string {
	s := fmt.Sprintf("cookie=%#x/%#x", f.Cookie, f.CookieMask)
	if f.Table != nil {
		s += fmt.Sprintf(",table=%d", *f.Table)
	}
	if m := f.Match.String(); m != "" {
		s += "," + m
	}
	return s
}

// appendFlowRequest writes the body of a request of type OFPMP_FLOW or
// OFPMP_AGGREGATE.
func appendFlowRequest(b []byte, f FlowFilter) []byte {
	b = append(b, f.table(), 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, PortAny)
	b = binary.BigEndian.AppendUint32(b, GroupAny)
	b = append(b, 0, 0, 0, 0)
	b = binary.BigEndian.AppendUint64(b, f.Cookie)
	b = binary.BigEndian.AppendUint64(b, f.CookieMask)
	return appendMatch(b, f.Match)
}
