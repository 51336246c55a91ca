package openflow

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// decodeActions reads a list of actions. It fails only when the list cannot be
// cut into actions; one that it does not understand it keeps as bytes.
func decodeActions(b []byte) ([]Action, error) {
	var actions []Action
	for len(b) > 0 {
		one, rest, err := cutAction(b)
		if err != nil {
			return nil, err
		}
		actions = append(actions, decodeAction(one))
		b = rest
	}
	return actions, nil
}

// cutAction cuts the first action off b by its length.
func cutAction(b []byte) (one, rest []byte, err error) {
	if len(b) < 8 {
		return nil, nil, fmt.Errorf("action: %w", errShort)
	}
	n := int(binary.BigEndian.Uint16(b[2:]))
	if n < 8 || n%8 != 0 || n > len(b) {
		return nil, nil, fmt.Errorf("action of type %d has length %d, with %d bytes left", binary.BigEndian.Uint16(b), n, len(b))
	}
	return b[:n], b[n:], nil
}

// decodeAction reads one whole action. The typed form must say all that the
// bytes say: written again it must be as long, so what a later version of the
// switch adds is not lost.
func decodeAction(b []byte) Action {
	var a Action
	switch binary.BigEndian.Uint16(b) {
	case actOutput:
		if len(b) == 16 {
			a = outputAction{port: binary.BigEndian.Uint32(b[4:]), maxLen: binary.BigEndian.Uint16(b[8:])}
		}
	case actGroup:
		a = groupAction{id: binary.BigEndian.Uint32(b[4:])}
	case actSetQueue:
		a = setQueueAction{id: binary.BigEndian.Uint32(b[4:])}
	case actDecTTL:
		a = decTTLAction{}
	case actSetField:
		if f, ok := decodeFieldValue(b[4:], false); ok {
			a = setFieldAction{field: f}
		}
	case actExperimenter:
		if len(b) >= 16 && binary.BigEndian.Uint32(b[4:]) == vendorNicira {
			a = decodeNicira(binary.BigEndian.Uint16(b[8:]), b)
		}
	}
	if _, isCT := a.(ctAction); isCT {
		return a // its parts have been looked at one by one
	}
	if a == nil || len(a.append(nil)) != len(b) {
		return rawAction{data: string(b)}
	}
	return a
}

// decodeFieldValue reads an OXM with its value, as set_field and reg_load2 have
// it, with padding behind it.
func decodeFieldValue(b []byte, masked bool) (Field, bool) {
	t, _, err := nextOXM(b)
	if err != nil || t.masked && !masked {
		return Field{}, false
	}
	f, ok := t.field()
	// An exact reg_load2 is set_field by another name, but reads back as it was.
	return f, ok && !f.empty() && f.Exact() != masked
}

// decodeNicira reads an action of at least 16 bytes; nil when it cannot.
func decodeNicira(subtype uint16, b []byte) Action {
	switch subtype {
	case nxResubmit:
		return resubmitAction{port: binary.BigEndian.Uint16(b[10:]), table: 0xff}
	case nxResubmitTable:
		return resubmitAction{port: binary.BigEndian.Uint16(b[10:]), table: b[12]}
	case nxNote:
		return noteAction{data: string(b[10:])}
	case nxConjunction:
		return conjunctionAction{clause: b[10], n: b[11], id: binary.BigEndian.Uint32(b[12:])}
	case nxCTClear:
		return ctClearAction{}
	case nxLoad2:
		if f, ok := decodeFieldValue(b[10:], true); ok {
			return setFieldAction{field: f}
		}
	case nxCT:
		if len(b) >= ctHeadSize {
			return decodeCT(b)
		}
	case nxLearn:
		if len(b) >= learnHeadSize {
			return decodeLearn(b)
		}
	}
	if len(b) < 24 {
		return nil
	}
	return decodeNiciraRange(subtype, b)
}

// decodeNiciraRange reads the actions of 24 bytes that are about ranges.
func decodeNiciraRange(subtype uint16, b []byte) Action {
	switch subtype {
	case nxMove:
		n := binary.BigEndian.Uint16(b[10:])
		src, ok := rangeOf(b[16:], binary.BigEndian.Uint16(b[12:]), n)
		dst, ok2 := rangeOf(b[20:], binary.BigEndian.Uint16(b[14:]), n)
		if ok && ok2 {
			return moveAction{src: src, dst: dst}
		}
	case nxLoad:
		v := binary.BigEndian.Uint64(b[16:])
		if r, ok := rangeOfPacked(b[12:], binary.BigEndian.Uint16(b[10:])); ok && (r.n >= 64 || v>>r.n == 0) {
			return loadAction{dst: r, value: v}
		}
	case nxOutputReg:
		if r, ok := rangeOfPacked(b[12:], binary.BigEndian.Uint16(b[10:])); ok {
			return outputRegAction{src: r, maxLen: binary.BigEndian.Uint16(b[16:])}
		}
	case nxCheckPktLarger:
		if r, ok := rangeOf(b[14:], binary.BigEndian.Uint16(b[12:]), 1); ok {
			return checkPktLargerAction{bytes: binary.BigEndian.Uint16(b[10:]), dst: r}
		}
	}
	return nil
}

func rangeOfPacked(header []byte, ofsBits uint16) (FieldRange, bool) {
	return rangeOf(header, ofsBits>>6, ofsBits&0x3f+1)
}

// rangeOf finds the field of a 4-byte header and checks that it has the bits.
func rangeOf(header []byte, offset, n uint16) (FieldRange, bool) {
	o := oxm{class: binary.BigEndian.Uint16(header), field: header[2] >> 1}
	id, ok := fieldByOXM[o]
	if !ok || header[2]&1 != 0 || int(header[3]) != fieldInfos[id].bytes ||
		n == 0 || int(offset)+int(n) > fieldInfos[id].bits {
		return FieldRange{}, false
	}
	return FieldRange{id: id, offset: offset, n: n}, true
}

// decodeCT reads a ct action of at least 24 bytes; nil when it cannot.
func decodeCT(b []byte) Action {
	flags := binary.BigEndian.Uint16(b[10:])
	if flags&^(ctCommit|ctForce) != 0 {
		return nil
	}
	s := CTSpec{Commit: flags&ctCommit != 0, Force: flags&ctForce != 0, ALG: binary.BigEndian.Uint16(b[22:])}
	if binary.BigEndian.Uint32(b[12:]) != 0 {
		r, ok := rangeOfPacked(b[12:], binary.BigEndian.Uint16(b[16:]))
		if !ok {
			return nil
		}
		s.ZoneFrom = r
	} else {
		s.Zone = binary.BigEndian.Uint16(b[16:])
	}
	if b[18] != ctNoTable {
		s.Table = GotoTable(b[18])
	}
	rest := b[ctHeadSize:]
	if one, after, err := cutAction(rest); err == nil {
		if n, ok := decodeNAT(one); ok {
			s.NAT, rest = &n, after
		}
	}
	for len(rest) > 0 {
		one, after, err := cutAction(rest)
		if err != nil {
			return nil
		}
		// No ct inside ct: the switch refuses it, and it would nest without end.
		var a Action = rawAction{data: string(one)}
		if !isNicira(one, nxCT) {
			a = decodeAction(one)
		}
		s.Actions, rest = append(s.Actions, a), after
	}
	return ctAction{spec: s}
}

func isNicira(b []byte, subtype uint16) bool {
	return len(b) >= 16 && binary.BigEndian.Uint16(b) == actExperimenter &&
		binary.BigEndian.Uint32(b[4:]) == vendorNicira && binary.BigEndian.Uint16(b[8:]) == subtype
}

// decodeNAT reads a nat action, which only stands inside ct.
func decodeNAT(b []byte) (NATSpec, bool) {
	if !isNicira(b, nxNAT) {
		return NATSpec{}, false
	}
	flags, parts := binary.BigEndian.Uint16(b[12:]), binary.BigEndian.Uint16(b[14:])
	const v4, v6 = natIPv4Min | natIPv4Max, natIPv6Min | natIPv6Max
	if flags&^natKnownFlags != 0 || parts&^natKnownParts != 0 || parts&v4 != 0 && parts&v6 != 0 {
		return NATSpec{}, false
	}
	n := NATSpec{
		SNAT: flags&natSNAT != 0, DNAT: flags&natDNAT != 0, Persistent: flags&natPersistent != 0,
		Hash: flags&natHash != 0, Random: flags&natRandom != 0,
	}
	r := b[16:]
	take := func(part uint16, size int) (v []byte) {
		if parts&part == 0 || len(r) < size {
			return nil
		}
		v, r = r[:size], r[size:]
		return v
	}
	for _, p := range []struct {
		to   *netip.Addr
		part uint16
		size int
	}{{&n.AddrMin, natIPv4Min, 4}, {&n.AddrMax, natIPv4Max, 4}, {&n.AddrMin, natIPv6Min, 16}, {&n.AddrMax, natIPv6Max, 16}} {
		if a, ok := netip.AddrFromSlice(take(p.part, p.size)); ok {
			*p.to = a
		}
	}
	if v := take(natPortMin, 2); v != nil {
		n.PortMin = binary.BigEndian.Uint16(v)
	}
	if v := take(natPortMax, 2); v != nil {
		n.PortMax = binary.BigEndian.Uint16(v)
	}
	// What was left out by being cut short or zero is seen in the length or here.
	again := n.append(nil)
	return n.canonical(), len(again) == len(b) && binary.BigEndian.Uint16(again[14:]) == parts
}
