package openflow

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// oxmTLV is one OXM as it stands on the wire, cut in its parts.
type oxmTLV struct {
	oxm
	masked  bool
	payload []byte // value, and mask when masked
	all     []byte // with its header
}

// errShort is what is wrong with most broken messages.
var errShort = errors.New("it ends too early")

// nextOXM cuts the first OXM off b.
func nextOXM(b []byte) (t oxmTLV, rest []byte, err error) {
	if len(b) < 4 {
		return t, nil, fmt.Errorf("match field: %w", errShort)
	}
	n := 4 + int(b[3])
	if len(b) < n {
		return t, nil, fmt.Errorf("match field of %d bytes in %d: %w", n, len(b), errShort)
	}
	t = oxmTLV{oxm: oxm{class: binary.BigEndian.Uint16(b), field: b[2] >> 1}, masked: b[2]&1 != 0, all: b[:n:n]}
	t.payload = t.all[4:]
	if t.class == classExperimenter {
		if len(t.payload) < 4 {
			return t, nil, fmt.Errorf("experimenter match field without its experimenter: %w", errShort)
		}
		t.experimenter = binary.BigEndian.Uint32(t.payload)
		t.payload = t.payload[4:]
	}
	return t, b[n:], nil
}

// field is the typed form; ok is false when there is none, because the field is
// unknown, has another width, or has bits that it should not have.
func (t oxmTLV) field() (f Field, ok bool) {
	id, ok := fieldByOXM[t.oxm]
	if !ok {
		return Field{}, false
	}
	n := fieldInfos[id].bytes
	if !t.masked {
		if len(t.payload) != n {
			return Field{}, false
		}
		f = newField(id, t.payload, nil)
		// Bits that the field does not have are not ours to drop.
		return f, slices.Equal(f.value[:n], t.payload)
	}
	if len(t.payload) != 2*n {
		return Field{}, false
	}
	value, mask := t.payload[:n], t.payload[n:]
	full := &fullMasks[id]
	for i := range n {
		if value[i]&^mask[i] != 0 || value[i]&^full[i] != 0 {
			return Field{}, false
		}
	}
	return newField(id, value, mask), true
}

// decodeMatch reads the fields of a match, without the ofp_match around them.
func decodeMatch(b []byte) (Match, error) {
	if canonical(b) {
		return Match{oxm: string(b)}, nil // nearly always: see FieldID
	}
	var fields []Field
	var raw [][]byte
	for len(b) > 0 {
		t, rest, err := nextOXM(b)
		if err != nil {
			return Match{}, err
		}
		b = rest
		f, ok := t.field()
		switch {
		case !ok:
			raw = append(raw, t.all)
		case f.empty(): // matches everything
		case slices.ContainsFunc(fields, func(g Field) bool { return g.id == f.id }):
			return Match{}, fmt.Errorf("match has the field %s twice", f.id)
		default:
			fields = append(fields, f)
		}
	}
	slices.SortFunc(raw, slices.Compare)
	return matchOf(fields, string(slices.Concat(raw...))), nil
}

// canonical reports whether b is just what matchOf would write of it, without
// taking it apart and putting it together again.
func canonical(b []byte) bool {
	var last FieldID
	for len(b) > 0 {
		t, rest, err := nextOXM(b)
		if err != nil {
			return false
		}
		f, ok := t.field()
		if !ok || f.id <= last || t.oxm != fieldInfos[f.id].wire || f.empty() || t.masked == f.Exact() {
			return false
		}
		// A mask may have bits that the field does not have.
		if n := f.bytes(); t.masked && !bytes.Equal(t.payload[n:], f.mask[:n]) {
			return false
		}
		last, b = f.id, rest
	}
	return true
}

// split is the match as typed fields in canonical order and the bytes of the rest.
func (m Match) split() (fields []Field, raw string) {
	b := []byte(m.oxm)
	for len(b) > 0 {
		t, rest, err := nextOXM(b)
		if err != nil {
			break // cannot be: only matchOf makes matches
		}
		f, ok := t.field()
		if !ok {
			return fields, string(b) // unknown ones are last
		}
		fields = append(fields, f)
		b = rest
	}
	return fields, ""
}

// appendMatch writes an ofp_match (OpenFlow 1.4, section 7.2.3.1): type 1
// (OXM), length without padding, fields, padding to 8 bytes.
func appendMatch(b []byte, m Match) []byte {
	b = binary.BigEndian.AppendUint16(b, 1)
	b = binary.BigEndian.AppendUint16(b, uint16(4+len(m.oxm)))
	b = append(b, m.oxm...)
	return pad8(b, 4+len(m.oxm))
}

// cutMatch reads an ofp_match off b.
func cutMatch(b []byte) (m Match, rest []byte, err error) {
	if len(b) < 4 {
		return m, nil, fmt.Errorf("match: %w", errShort)
	}
	typ, n := binary.BigEndian.Uint16(b), int(binary.BigEndian.Uint16(b[2:]))
	padded := (n + 7) &^ 7
	switch {
	case typ != 1:
		return m, nil, fmt.Errorf("match has type %d, not 1 (OXM)", typ)
	case n < 4 || padded > len(b):
		return m, nil, fmt.Errorf("match of %d bytes in %d: %w", n, len(b), errShort)
	}
	m, err = decodeMatch(b[4:n])
	return m, b[padded:], err
}

// pad8 appends zeros so that something n bytes long ends on a multiple of 8.
func pad8(b []byte, n int) []byte {
	var zeros [8]byte
	return append(b, zeros[:-n&7]...)
}
