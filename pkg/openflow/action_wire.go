package openflow

import (
	"encoding/binary"
	"slices"
)

type (
	outputAction struct {
		port   uint32
		maxLen uint16
	}
	outputRegAction struct {
		src    FieldRange
		maxLen uint16
	}
	setFieldAction struct{ field Field }
	loadAction     struct {
		dst   FieldRange
		value uint64
	}
	moveAction     struct{ src, dst FieldRange }
	resubmitAction struct {
		port  uint16
		table uint8
	}
	decTTLAction         struct{}
	groupAction          struct{ id uint32 }
	setQueueAction       struct{ id uint32 }
	noteAction           struct{ data string }
	checkPktLargerAction struct {
		bytes uint16
		dst   FieldRange
	}
	conjunctionAction struct {
		id        uint32
		clause, n uint8 // clause counts from 0 on the wire
	}
	ctClearAction struct{}
	ctAction      struct{ spec CTSpec }
	// rawAction is one that this package does not understand, with its header.
	rawAction struct{ data string }
)

// The comparable kinds are equal when their values are.
func (a outputAction) equal(b Action) bool         { return Action(a) == b }
func (a outputRegAction) equal(b Action) bool      { return Action(a) == b }
func (a setFieldAction) equal(b Action) bool       { return Action(a) == b }
func (a loadAction) equal(b Action) bool           { return Action(a) == b }
func (a moveAction) equal(b Action) bool           { return Action(a) == b }
func (a resubmitAction) equal(b Action) bool       { return Action(a) == b }
func (a decTTLAction) equal(b Action) bool         { return Action(a) == b }
func (a groupAction) equal(b Action) bool          { return Action(a) == b }
func (a setQueueAction) equal(b Action) bool       { return Action(a) == b }
func (a noteAction) equal(b Action) bool           { return Action(a) == b }
func (a checkPktLargerAction) equal(b Action) bool { return Action(a) == b }
func (a conjunctionAction) equal(b Action) bool    { return Action(a) == b }
func (a ctClearAction) equal(b Action) bool        { return Action(a) == b }
func (a rawAction) equal(b Action) bool            { return Action(a) == b }

func (a ctAction) equal(other Action) bool {
	b, ok := other.(ctAction)
	if !ok {
		return false
	}
	x, y := a.spec, b.spec
	return x.Commit == y.Commit && x.Force == y.Force && x.Zone == y.Zone && x.ZoneFrom == y.ZoneFrom &&
		x.ALG == y.ALG && equalTable(x.Table, y.Table) && equalNAT(x.NAT, y.NAT) &&
		slices.EqualFunc(x.Actions, y.Actions, func(p, q Action) bool { return p.equal(q) })
}

func equalNAT(a, b *NATSpec) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}

func (a outputAction) append(b []byte) []byte {
	b = append(b, 0, actOutput, 0, 16)
	b = binary.BigEndian.AppendUint32(b, a.port)
	b = binary.BigEndian.AppendUint16(b, a.maxLen)
	return append(b, 0, 0, 0, 0, 0, 0)
}

func (a outputRegAction) append(b []byte) []byte {
	start := len(b)
	b = appendNicira(b, nxOutputReg)
	b = binary.BigEndian.AppendUint16(b, a.src.offsetBits())
	b = binary.BigEndian.AppendUint32(b, a.src.header())
	b = binary.BigEndian.AppendUint16(b, a.maxLen)
	return finish(append(b, 0, 0, 0, 0, 0, 0), start)
}

func (a setFieldAction) append(b []byte) []byte {
	start := len(b)
	if a.field.Exact() {
		b = appendHeader(b, actSetField)
		return finish(appendOXM(b, a.field, false), start)
	}
	// OpenFlow 1.4 has no mask in set_field; Nicira's does.
	b = appendNicira(b, nxLoad2)
	return finish(appendOXM(b, a.field, true), start)
}

func (a loadAction) append(b []byte) []byte {
	start := len(b)
	b = appendNicira(b, nxLoad)
	b = binary.BigEndian.AppendUint16(b, a.dst.offsetBits())
	b = binary.BigEndian.AppendUint32(b, a.dst.header())
	return finish(binary.BigEndian.AppendUint64(b, a.value), start)
}

func (a moveAction) append(b []byte) []byte {
	start := len(b)
	b = appendNicira(b, nxMove)
	b = binary.BigEndian.AppendUint16(b, a.src.n)
	b = binary.BigEndian.AppendUint16(b, a.src.offset)
	b = binary.BigEndian.AppendUint16(b, a.dst.offset)
	b = binary.BigEndian.AppendUint32(b, a.src.header())
	return finish(binary.BigEndian.AppendUint32(b, a.dst.header()), start)
}

func (a resubmitAction) append(b []byte) []byte {
	start := len(b)
	b = appendNicira(b, nxResubmitTable)
	b = binary.BigEndian.AppendUint16(b, a.port)
	return finish(append(b, a.table, 0, 0, 0), start)
}

func (decTTLAction) append(b []byte) []byte {
	return append(b, 0, actDecTTL, 0, 8, 0, 0, 0, 0)
}

func (a groupAction) append(b []byte) []byte {
	return binary.BigEndian.AppendUint32(append(b, 0, actGroup, 0, 8), a.id)
}

func (a setQueueAction) append(b []byte) []byte {
	return binary.BigEndian.AppendUint32(append(b, 0, actSetQueue, 0, 8), a.id)
}

func (a noteAction) append(b []byte) []byte {
	start := len(b)
	return finish(append(appendNicira(b, nxNote), a.data...), start)
}

func (a checkPktLargerAction) append(b []byte) []byte {
	start := len(b)
	b = appendNicira(b, nxCheckPktLarger)
	b = binary.BigEndian.AppendUint16(b, a.bytes)
	b = binary.BigEndian.AppendUint16(b, a.dst.offset)
	b = binary.BigEndian.AppendUint32(b, a.dst.header())
	return finish(append(b, 0, 0, 0, 0, 0, 0), start)
}

func (a conjunctionAction) append(b []byte) []byte {
	start := len(b)
	b = append(appendNicira(b, nxConjunction), a.clause, a.n)
	return finish(binary.BigEndian.AppendUint32(b, a.id), start)
}

func (ctClearAction) append(b []byte) []byte {
	start := len(b)
	return finish(appendNicira(b, nxCTClear), start)
}

func (a rawAction) append(b []byte) []byte { return append(b, a.data...) }
