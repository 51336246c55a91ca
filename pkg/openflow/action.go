package openflow

import (
	"encoding/binary"
	"slices"
)

// Action is something that the switch does to a packet. The constructors of
// this package make them; an action read from a switch that this package does
// not understand keeps its bytes and equals only another one with the same.
type Action interface {
	// String is the action as ovs-ofctl writes it.
	String() string
	// append writes the action's wire form.
	append(b []byte) []byte
	// equal compares with any other action.
	equal(Action) bool
}

// Reserved ports (OpenFlow 1.4, section 7.2.1).
const (
	PortInPort     uint32 = 0xfffffff8 // where it came from; not reached by naming its number
	PortTable      uint32 = 0xfffffff9 // packet-out only
	PortNormal     uint32 = 0xfffffffa // as a learning switch
	PortFlood      uint32 = 0xfffffffb
	PortAll        uint32 = 0xfffffffc
	PortController uint32 = 0xfffffffd
	PortLocal      uint32 = 0xfffffffe // the bridge's own interface
	PortAny        uint32 = 0xffffffff // wildcard in requests

	// maxPhysicalPort is the last port number an Open vSwitch bridge gives
	// (OFPP_MAX of OpenFlow 1.0, ofp-port.h).
	maxPhysicalPort uint32 = 0xff00
)

// Output sends the packet to a port; [PortController] is who holds the connection,
// see [WithPacketIns].
func Output(port uint32) Action {
	a := outputAction{port: port}
	if port == PortController {
		a.maxLen = 0xffff // OFPCML_NO_BUFFER: the whole packet
	}
	return a
}

// OutputHead is Output of the packet's first bytes only, as few as a switch sends to
// [PortController]: who gets it is told of its fields ([PacketIn.Match]).
func OutputHead(port uint32) Action { return outputAction{port: port, maxLen: ethernetHeader} }

// ethernetHeader is its length, bytes.
const ethernetHeader = 14

// OutputRange sends the packet to the port whose number is in a register or
// another field.
func OutputRange(src FieldRange) Action { return outputRegAction{src: src, maxLen: 0xffff} }

// SetField sets a field, or the bits of it that have a mask.
func SetField(f Field) Action {
	// Open vSwitch 3.1 refuses any port in set_field (OFPBAC_BAD_SET_ARGUMENT) and
	// takes it by load.
	if f.Exact() && f.id != FieldInPort {
		return setFieldAction{field: f}
	}
	if r, v, ok := contiguous(f); ok {
		// What the switch itself makes of it below OpenFlow 1.5 (encode_SET_FIELD
		// in ofp-actions.c), so that it reads back the same.
		return loadAction{dst: r, value: v}
	}
	return setFieldAction{field: f}
}

// contiguous finds the one run of at most 64 bits that a mask has.
func contiguous(f Field) (r FieldRange, value uint64, ok bool) {
	n := f.bytes()
	first, last := -1, -1
	for bit := range f.id.Bits() {
		if f.mask[n-1-bit/8]>>(bit%8)&1 == 0 {
			continue
		}
		if first < 0 {
			first = bit
		} else if last != bit-1 {
			return r, 0, false
		}
		last = bit
		value |= uint64(f.value[n-1-bit/8]>>(bit%8)&1) << (bit - first)
	}
	if first < 0 || last-first >= 64 {
		return r, 0, false
	}
	return Range(f.id, first, last-first+1), value, true
}

// Load puts the low bits of a number into a range of at most 64 bits. Bits of
// value that the range has no room for are dropped.
func Load(dst FieldRange, value uint64) Action {
	if dst.n < 64 {
		value &= 1<<dst.n - 1
	}
	return loadAction{dst: dst, value: value}
}

// Move copies bits from one range to another of the same length. It panics
// when the lengths differ.
func Move(src, dst FieldRange) Action {
	if src.n != dst.n {
		panic("openflow: move:" + src.String() + "->" + dst.String() + " has ranges of different lengths")
	}
	return moveAction{src: src, dst: dst}
}

// Resubmit looks the packet up in a table and then comes back.
func Resubmit(table uint8) Action {
	return resubmitAction{port: uint16(PortInPort & 0xffff), table: table}
}

// ResubmitPort looks the packet up in a table as if it had come in by port,
// which must be a bridge port or a reserved one.
func ResubmitPort(port uint32, table uint8) Action {
	return resubmitAction{port: uint16(port), table: table}
}

// DecTTL decrements the time to live; a packet with none left goes no further.
func DecTTL() Action { return decTTLAction{} }

// Group sends the packet through a group.
func Group(id uint32) Action { return groupAction{id: id} }

// SetQueue gives the packet to a queue of the port that it leaves by. It stays so for
// the rest of its way, also around a tunnel; without such a queue nothing happens.
func SetQueue(id uint32) Action { return setQueueAction{id: id} }

// Note does nothing and carries bytes for people and programs that read flows.
// On the wire it is padded with zeros to 6 + 8 n bytes, as it then reads back.
func Note(data []byte) Action {
	d := slices.Clone(data)
	for len(d)%8 != 6 {
		d = append(d, 0)
	}
	return noteAction{data: string(d)}
}

// CheckPktLarger sets a single-bit range to 1 when the packet is larger than n
// bytes (Ethernet header included), else to 0. It panics when dst is not one bit.
func CheckPktLarger(n uint16, dst FieldRange) Action {
	if dst.n != 1 {
		panic("openflow: check_pkt_larger needs a single bit, not " + dst.String())
	}
	return checkPktLargerAction{bytes: n, dst: dst}
}

// Conjunction makes the flow dimension clause (1 to n) of a conjunctive match
// with n dimensions (ovs-actions(7)).
func Conjunction(id uint32, clause, n uint8) Action {
	return conjunctionAction{id: id, clause: clause - 1, n: n}
}

// CTClear forgets the packet's connection tracking state.
func CTClear() Action { return ctClearAction{} }

// actionsEqual compares lists in order.
func actionsEqual(a, b []Action) bool {
	return slices.EqualFunc(a, b, func(x, y Action) bool { return x.equal(y) })
}

func appendActions(b []byte, actions []Action) []byte {
	for _, a := range actions {
		b = a.append(b)
	}
	return b
}

// Action types (OpenFlow 1.4, section 7.2.5) and Nicira subtypes (Open vSwitch,
// lib/ofp-actions.c).
const (
	actOutput       = 0
	actSetQueue     = 21
	actGroup        = 22
	actDecTTL       = 24
	actSetField     = 25
	actExperimenter = 0xffff

	vendorNicira = 0x00002320

	nxResubmit       = 1
	nxMove           = 6
	nxLoad           = 7
	nxNote           = 8
	nxResubmitTable  = 14
	nxOutputReg      = 15
	nxLearn          = 16
	nxLoad2          = 33
	nxConjunction    = 34
	nxCT             = 35
	nxNAT            = 36
	nxCTClear        = 43
	nxCheckPktLarger = 49
)

// appendHeader starts an action whose length [finish] fills in.
func appendHeader(b []byte, typ uint16) []byte {
	return append(b, byte(typ>>8), byte(typ), 0, 0)
}

func appendNicira(b []byte, subtype uint16) []byte {
	b = appendHeader(b, actExperimenter)
	b = binary.BigEndian.AppendUint32(b, vendorNicira)
	return binary.BigEndian.AppendUint16(b, subtype)
}

// finish pads what begins at start to 8 bytes and fills in its length, which
// follows a 16-bit type.
func finish(b []byte, start int) []byte {
	b = pad8(b, len(b)-start)
	binary.BigEndian.PutUint16(b[start+2:], uint16(len(b)-start))
	return b
}

// header is the 4-byte header of the field in Nicira actions.

func (r FieldRange) header() uint32 {
	info := &fieldInfos[r.id]
	o := info.wire
	if o.class == classExperimenter {
		for _, alt := range info.also {
			o = alt
			break
		}
	}
	return uint32(o.class)<<16 | uint32(o.field)<<9 | uint32(info.bytes)
}

// offsetBits is offset and length as Nicira actions pack them: ofs<<6 | (n-1).
func (r FieldRange) offsetBits() uint16 { return r.offset<<6 | (r.n - 1) }
