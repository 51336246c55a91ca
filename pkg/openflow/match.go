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
		t, ok := findUint(others, FieldEthType)
		switch {
		case !ok:
			// tcp_dst beside ipv6_src means IPv6.
			need = append(need, EthType(impliedEthType(info.ethTypes, others)))
		case !slices.Contains(info.ethTypes, uint16(t)):
			panic(fmt.Sprintf("openflow: %s needs dl_type 0x%04x, and the match has 0x%04x", f, info.ethTypes[0], t))
		}
	}
	if info.ipProto != 0 {
		need = append(need, IPProto(info.ipProto))
	}
	return need
}

func impliedEthType(choice []uint16, others []Field) uint16 {
	for _, g := range others {
		if t := fieldInfos[g.id].ethTypes; len(t) == 1 && slices.Contains(choice, t[0]) {
			return t[0]
		}
	}
	return choice[0]
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
