package openflow

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// Match says which packets a flow is for. It is a value: == compares, and the
// zero Match matches every packet. It holds the fields in their canonical form
// on the wire, so that however a switch or a program spelled them, two matches
// of the same packets by the same fields are equal.
type Match struct {
	oxm string
}

// NewMatch is the match of all the given fields. What they presuppose is added:
// nw_src brings Ethernet type IPv4, tcp_dst also IP protocol 6 (of IPv6 when
// the fields say so). A field whose mask is empty matches everything and is
// left out. NewMatch panics when one field is given two values, or fields that
// no packet can have together: no data, only a mistake in a program, does that.
func NewMatch(fields ...Field) Match {
	all := make([]Field, 0, len(fields)+2)
	for _, f := range fields {
		all = addField(all, f)
	}
	for _, f := range all { // all may grow; what is added presupposes nothing new
		for _, p := range prerequisites(f, all) {
			all = addField(all, p)
		}
	}
	return matchOf(all, "")
}

// With is the match narrowed by more fields. It panics as [NewMatch] does.
func (m Match) With(fields ...Field) Match {
	have, raw := m.split()
	n, _ := NewMatch(append(have, fields...)...).split()
	return matchOf(n, raw)
}

// Equal is ==; it is there for go-cmp.
func (m Match) Equal(n Match) bool { return m == n }

// Fields are the fields of the match in the order of the wire, without those
// that this package does not understand.
func (m Match) Fields() []Field {
	f, _ := m.split()
	return f
}

// Field finds a field of the match.
func (m Match) Field(id FieldID) (Field, bool) {
	for _, f := range m.Fields() {
		if f.id == id {
			return f, true
		}
	}
	return Field{}, false
}

func addField(all []Field, f Field) []Field {
	if f.id == 0 || f.empty() {
		return all
	}
	for _, g := range all {
		if g.id != f.id {
			continue
		}
		if g != f {
			panic(fmt.Sprintf("openflow: a match cannot have both %s and %s", g, f))
		}
		return all
	}
	return append(all, f)
}

// prerequisites are the fields that f needs beside it, given the others.
func prerequisites(f Field, others []Field) []Field {
	info := &fieldInfos[f.id]
	var need []Field
	if info.ethTypes != nil {
		// tcp_dst beside ipv6_src means IPv6.
		t := oneOf(f, FieldEthType, others, func(i *fieldInfo) []uint16 { return i.ethTypes })
		need = append(need, EthType(t))
	}
	if info.ipProto != 0 {
		need = append(need, IPProto(info.ipProto))
	}
	if info.ndTypes != nil {
		// nd_target beside nd_tll means an advertisement.
		t := oneOf(f, FieldICMPv6Type, others, func(i *fieldInfo) []uint8 { return i.ndTypes })
		need = append(need, ICMPv6Type(t), ICMPv6Code(0))
	}
	if info.tracked {
		need = append(need, ofConnection(f, others))
	}
	if _, ok := findUint(others, FieldCTNWProto); info.ctProto && !ok {
		panic(fmt.Sprintf("openflow: %s needs ct_nw_proto", f))
	}
	return need
}

// oneOf is the value of the field id that f needs: what the others have, or what is implied
// by those that leave no choice, or else the first of f's.
func oneOf[T uint8 | uint16](f Field, id FieldID, others []Field, choice func(*fieldInfo) []T) T {
	mine := choice(&fieldInfos[f.id])
	if v, ok := findUint(others, id); ok {
		if !slices.Contains(mine, T(v)) {
			panic(fmt.Sprintf("openflow: %s needs %s, and the match has %s", f, uintField(id, uint64(mine[0])), uintField(id, v)))
		}
		return T(v)
	}
	for _, g := range others {
		if c := choice(&fieldInfos[g.id]); len(c) == 1 && slices.Contains(mine, c[0]) {
			return c[0]
		}
	}
	return mine[0]
}

// ofConnection is the ct_state that f needs: one that only packets of valid connections have
// (Open vSwitch, is_ct_valid in lib/flow.h).
func ofConnection(f Field, others []Field) Field {
	const proof = uint64(CTNew | CTEstablished | CTRelated | CTReply | CTSNAT | CTDNAT)
	for _, g := range others {
		if g.id != FieldCTState {
			continue
		}
		v, mask := g.Uint64(), beUint(g.mask[:g.bytes()])
		notInvalid := v&uint64(CTTracked) != 0 && mask&uint64(CTInvalid) != 0 && v&uint64(CTInvalid) == 0
		if v&proof == 0 && !notInvalid {
			panic(fmt.Sprintf("openflow: %s needs a ct_state such as +trk-inv, and the match has ct_state=%s", f, g.valueText()))
		}
		return g
	}
	return CTState(CTTracked, CTTracked|CTInvalid)
}

func findUint(fields []Field, id FieldID) (uint64, bool) {
	for _, f := range fields {
		if f.id == id {
			return f.Uint64(), true
		}
	}
	return 0, false
}

// matchOf writes fields in canonical order and appends raw.
func matchOf(fields []Field, raw string) Match {
	slices.SortFunc(fields, func(a, b Field) int { return int(a.id) - int(b.id) })
	b := make([]byte, 0, 64)
	for _, f := range fields {
		b = appendOXM(b, f, !f.Exact())
	}
	return Match{oxm: string(append(b, raw...))}
}

// appendOXM writes a field with its header (OpenFlow 1.4, section 7.2.3.2).
func appendOXM(b []byte, f Field, masked bool) []byte {
	info := &fieldInfos[f.id]
	b = appendOXMHeader(b, info.wire, info.bytes, masked)
	b = append(b, f.value[:info.bytes]...)
	if masked {
		b = append(b, f.mask[:info.bytes]...)
	}
	return b
}

func appendOXMHeader(b []byte, o oxm, n int, masked bool) []byte {
	field := o.field << 1
	if masked {
		field |= 1
		n *= 2
	}
	if o.class == classExperimenter {
		n += 4
	}
	b = binary.BigEndian.AppendUint16(b, o.class)
	b = append(b, field, byte(n))
	if o.class == classExperimenter {
		b = binary.BigEndian.AppendUint32(b, o.experimenter)
	}
	return b
}
