package openflow

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
)

// LearnSpec is a flow that the switch itself adds, or renews, for each packet
// that comes by (ovs-actions(7), "learn").
type LearnSpec struct {
	// Table, Priority, Cookie and the timeouts (in seconds, 0 for never) are
	// those of the learned flow.
	Table                    uint8
	Priority                 uint16
	Cookie                   uint64
	IdleTimeout, HardTimeout uint16
	// FinIdleTimeout and FinHardTimeout replace the timeouts once a TCP FIN or
	// RST has been seen, in seconds; 0 leaves them.
	FinIdleTimeout, FinHardTimeout uint16
	Flags                          LearnFlags
	// Parts are the learned flow's match and actions. Matches must stand in the
	// order of their prerequisites: dl_type before nw_proto before a port.
	Parts []LearnPart
}

// LearnFlags are NX_LEARN_F_* (Open vSwitch, nicira-ext.h).
type LearnFlags uint16

const (
	// LearnSendFlowRemoved gives learned flows [SendFlowRemoved].
	LearnSendFlowRemoved LearnFlags = 1 << 0
	// LearnDeleteLearned removes all flows with the table and cookie of the
	// learned ones when the last flow that learns them goes.
	LearnDeleteLearned LearnFlags = 1 << 1

	learnKnownFlags = LearnSendFlowRemoved | LearnDeleteLearned
)

// LearnPart is one match or one action of a learned flow.
type LearnPart struct {
	kind uint16
	// src is where the bits come from in the packet; no range for value.
	src FieldRange
	// value is a number of dst's length, in network order and right-aligned.
	value [maxFieldBytes]byte
	dst   FieldRange
}

// LearnMatch makes the learned flow match what the packet has in src. It panics
// when the ranges differ in length.
func LearnMatch(dst, src FieldRange) LearnPart { return learnFrom(learnMatch, dst, src) }

// LearnMatchValue makes the learned flow match a field. A mask must be one run
// of at most 64 bits: LearnMatchValue panics on any other.
func LearnMatchValue(f Field) LearnPart { return learnValue(learnMatch, f) }

// LearnLoad makes the learned flow put what the packet has in src into dst. It
// panics when the ranges differ in length.
func LearnLoad(dst, src FieldRange) LearnPart { return learnFrom(learnLoad, dst, src) }

// LearnLoadValue makes the learned flow set a field. A mask must be one run of
// at most 64 bits: LearnLoadValue panics on any other.
func LearnLoadValue(f Field) LearnPart { return learnValue(learnLoad, f) }

// LearnOutput makes the learned flow send to the port that the packet has in src.
func LearnOutput(src FieldRange) LearnPart { return LearnPart{kind: learnOutput, src: src} }

func learnFrom(kind uint16, dst, src FieldRange) LearnPart {
	if dst.n != src.n {
		panic(fmt.Sprintf("openflow: learn of %s from %s has ranges of different lengths", dst, src))
	}
	return LearnPart{kind: kind, dst: dst, src: src}
}

func learnValue(kind uint16, f Field) LearnPart {
	p := LearnPart{kind: kind}
	if f.Exact() && f.id != 0 {
		n := f.bytes()
		p.dst = Whole(f.id)
		copy(p.value[maxFieldBytes-n:], f.value[:n])
		return p
	}
	r, v, ok := contiguous(f)
	if !ok {
		panic(fmt.Sprintf("openflow: learn cannot have %s: its mask is not one run of at most 64 bits", f))
	}
	p.dst = r
	binary.BigEndian.PutUint64(p.value[maxFieldBytes-8:], v)
	return p
}

// Learn makes the switch learn a flow from the packet. What s points to is copied.
func Learn(s LearnSpec) Action {
	s.Parts = slices.Clone(s.Parts)
	return learnAction{spec: s}
}

type learnAction struct{ spec LearnSpec }

func (a learnAction) equal(other Action) bool {
	b, ok := other.(learnAction)
	if !ok || !slices.Equal(a.spec.Parts, b.spec.Parts) {
		return false
	}
	x, y := a.spec, b.spec
	return x.Table == y.Table && x.Priority == y.Priority && x.Cookie == y.Cookie && x.Flags == y.Flags &&
		x.IdleTimeout == y.IdleTimeout && x.HardTimeout == y.HardTimeout &&
		x.FinIdleTimeout == y.FinIdleTimeout && x.FinHardTimeout == y.FinHardTimeout
}

// Parts of the wire form (Open vSwitch, nicira-ext.h, struct nx_action_learn and
// the flow_mod_spec elements behind it).
const (
	learnHeadSize = 32

	learnBits      = 0x3ff // the number of bits
	learnMatch     = 0 << 11
	learnLoad      = 1 << 11
	learnOutput    = 2 << 11
	learnKind      = 3 << 11
	learnImmediate = 1 << 13
	learnKnown     = learnBits | learnKind | learnImmediate
)

func (a learnAction) append(b []byte) []byte {
	s, start := a.spec, len(b)
	b = appendNicira(b, nxLearn)
	for _, v := range []uint16{s.IdleTimeout, s.HardTimeout, s.Priority} {
		b = binary.BigEndian.AppendUint16(b, v)
	}
	b = binary.BigEndian.AppendUint64(b, s.Cookie)
	b = binary.BigEndian.AppendUint16(b, uint16(s.Flags))
	b = append(b, s.Table, 0)
	b = binary.BigEndian.AppendUint16(b, s.FinIdleTimeout)
	b = binary.BigEndian.AppendUint16(b, s.FinHardTimeout)
	for _, p := range s.Parts {
		b = p.append(b)
	}
	return finish(b, start)
}

func (p LearnPart) append(b []byte) []byte {
	if p.immediate() {
		b = binary.BigEndian.AppendUint16(b, p.kind|learnImmediate|p.dst.n)
		b = append(b, p.value[maxFieldBytes-immediateBytes(p.dst.n):]...)
	} else {
		b = binary.BigEndian.AppendUint16(b, p.kind|p.src.n)
		b = p.src.appendTo(b)
	}
	if p.kind == learnOutput {
		return b
	}
	return p.dst.appendTo(b)
}

func (p LearnPart) immediate() bool { return p.src.n == 0 }

// immediateBytes is the length of a number of n bits: whole 16-bit words.
func immediateBytes(n uint16) int { return (int(n) + 15) / 16 * 2 }

func (r FieldRange) appendTo(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, r.header())
	return binary.BigEndian.AppendUint16(b, r.offset)
}

// decodeLearn reads a learn action of at least 32 bytes; nil when it cannot.
func decodeLearn(b []byte) Action {
	s := LearnSpec{
		IdleTimeout: binary.BigEndian.Uint16(b[10:]), HardTimeout: binary.BigEndian.Uint16(b[12:]),
		Priority: binary.BigEndian.Uint16(b[14:]), Cookie: binary.BigEndian.Uint64(b[16:]),
		Flags: LearnFlags(binary.BigEndian.Uint16(b[24:])), Table: b[26],
		FinIdleTimeout: binary.BigEndian.Uint16(b[28:]), FinHardTimeout: binary.BigEndian.Uint16(b[30:]),
	}
	if s.Flags&^learnKnownFlags != 0 || b[27] != 0 {
		return nil
	}
	for rest := b[learnHeadSize:]; len(rest) > 0; {
		// A zero header is the padding, which decodeAction measures.
		if len(bytes.Trim(rest, "\x00")) == 0 {
			break
		}
		p, after, ok := cutLearnPart(rest)
		if !ok {
			return nil
		}
		s.Parts, rest = append(s.Parts, p), after
	}
	return learnAction{spec: s}
}

// cutLearnPart reads the first flow_mod_spec off b.
func cutLearnPart(b []byte) (p LearnPart, rest []byte, ok bool) {
	if len(b) < 2 {
		return p, nil, false
	}
	head := binary.BigEndian.Uint16(b)
	n, immediate := head&learnBits, head&learnImmediate != 0
	p.kind = head & learnKind
	b = b[2:]
	if head&^uint16(learnKnown) != 0 || p.kind == learnKind || p.kind == learnOutput && immediate {
		return p, nil, false
	}
	if immediate {
		size := immediateBytes(n)
		if size > maxFieldBytes || len(b) < size {
			return p, nil, false
		}
		copy(p.value[maxFieldBytes-size:], b[:size])
		if !fitsBits(p.value, int(n)) {
			return p, nil, false
		}
		b = b[size:]
	} else if p.src, b, ok = cutRange(b, n); !ok {
		return p, nil, false
	}
	if p.kind != learnOutput {
		if p.dst, b, ok = cutRange(b, n); !ok {
			return p, nil, false
		}
	}
	return p, b, true
}

// cutRange reads a field's header and an offset.
func cutRange(b []byte, n uint16) (r FieldRange, rest []byte, ok bool) {
	if len(b) < 6 {
		return r, nil, false
	}
	r, ok = rangeOf(b, binary.BigEndian.Uint16(b[4:]), n)
	return r, b[6:], ok
}

// fitsBits reports whether a number has no more than n bits.
func fitsBits(v [maxFieldBytes]byte, n int) bool {
	for bit := n; bit < maxFieldBytes*8; bit++ {
		if v[maxFieldBytes-1-bit/8]>>(bit%8)&1 != 0 {
			return false
		}
	}
	return true
}

func (a learnAction) String() string {
	s := a.spec
	parts := []string{fmt.Sprintf("table=%d", s.Table)}
	for _, t := range []struct {
		name        string
		value, none uint16
	}{
		{"idle_timeout", s.IdleTimeout, 0}, {"hard_timeout", s.HardTimeout, 0},
		{"fin_idle_timeout", s.FinIdleTimeout, 0}, {"fin_hard_timeout", s.FinHardTimeout, 0},
		{"priority", s.Priority, 32768},
	} {
		if t.value != t.none {
			parts = append(parts, fmt.Sprintf("%s=%d", t.name, t.value))
		}
	}
	if s.Flags&LearnSendFlowRemoved != 0 {
		parts = append(parts, "send_flow_rem")
	}
	if s.Flags&LearnDeleteLearned != 0 {
		parts = append(parts, "delete_learned")
	}
	if s.Cookie != 0 {
		parts = append(parts, fmt.Sprintf("cookie=%#x", s.Cookie))
	}
	for _, p := range s.Parts {
		parts = append(parts, p.String())
	}
	return "learn(" + strings.Join(parts, ",") + ")"
}

// String is the part as ovs-ofctl writes it, such as "load:NXM_NX_REG0[]->NXM_NX_REG1[]".
func (p LearnPart) String() string {
	src := p.src.String()
	if p.immediate() {
		src = hexText(p.value[:])
	}
	switch {
	case p.kind == learnOutput:
		return "output:" + src
	case p.kind == learnLoad:
		return "load:" + src + "->" + p.dst.String()
	case p.src == p.dst:
		return p.dst.String()
	case p.immediate() && p.dst == Whole(p.dst.id):
		f := newField(p.dst.id, p.value[maxFieldBytes-fieldInfos[p.dst.id].bytes:], nil)
		return setName(f.id) + "=" + f.setText()
	}
	return p.dst.String() + "=" + src
}
