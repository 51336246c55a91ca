package openflow

import (
	"fmt"
	"strings"
	"testing"
)

// All parts of learn count when actions are compared.
func TestLearnEqual(t *testing.T) {
	for name, change := range map[string]func(*LearnSpec){
		"table": func(s *LearnSpec) { s.Table++ }, "priority": func(s *LearnSpec) { s.Priority++ }, "cookie": func(s *LearnSpec) { s.Cookie++ },
		"idle timeout": func(s *LearnSpec) { s.IdleTimeout++ }, "hard timeout": func(s *LearnSpec) { s.HardTimeout++ },
		"idle timeout after FIN": func(s *LearnSpec) { s.FinIdleTimeout++ }, "hard timeout after FIN": func(s *LearnSpec) { s.FinHardTimeout++ },
		"flags": func(s *LearnSpec) { s.Flags = 0 }, "fewer parts": func(s *LearnSpec) { s.Parts = s.Parts[1:] },
		"order": func(s *LearnSpec) { s.Parts[0], s.Parts[1] = s.Parts[1], s.Parts[0] },
		"value": func(s *LearnSpec) { s.Parts[4] = LearnMatchValue(TCPDst(81)) },
		"kind":  func(s *LearnSpec) { s.Parts[4] = LearnLoadValue(TCPDst(80)) },
	} {
		s := affinity()
		change(&s)
		if Learn(s).equal(Learn(affinity())) || Learn(affinity()).equal(Learn(s)) {
			t.Errorf("%s does not count: %s", name, Learn(s))
		}
	}
	s := affinity()
	a := Learn(s)
	s.Parts[0] = LearnMatchValue(ARP())
	if !a.equal(Learn(affinity())) {
		t.Error("the action changes with what it was made from")
	}
	if a.equal(CTClear()) || CTClear().equal(a) {
		t.Error("learn equals ct_clear")
	}
}

func TestLearnPanics(t *testing.T) {
	for name, do := range map[string]func(){
		"lengths":   func() { LearnMatch(Whole(FieldReg0), Whole(FieldEthSrc)) },
		"holes":     func() { LearnLoadValue(RegMasked(0, 1, 5)) },
		"no bits":   func() { LearnMatchValue(RegMasked(0, 0, 0)) },
		"too wide":  func() { LearnMatchValue(CTLabel(0, 1, 1, ^uint64(0))) },
		"no field":  func() { LearnLoadValue(Field{}) },
		"different": func() { LearnLoad(Bits(FieldReg0, 0, 3), Bits(FieldReg0, 0, 4)) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if p := fmt.Sprint(recover()); !strings.HasPrefix(p, "openflow: learn") {
					t.Errorf("panic is %q", p)
				}
			}()
			do()
			t.Error("no panic")
		})
	}
}

// What of learn is not understood is kept as bytes.
func TestLearnNotUnderstood(t *testing.T) {
	wire := Learn(LearnSpec{Parts: []LearnPart{LearnMatchValue(RegMasked(0, 1, 0xf)), LearnOutput(Whole(FieldReg2))}}).append(nil)
	if _, ok := decodeAction(wire).(learnAction); !ok {
		t.Fatalf("%x is not learn", wire)
	}
	for name, change := range map[string]func(b []byte){
		"flag":             func(b []byte) { b[25] |= 4 },
		"padding":          func(b []byte) { b[27] = 1 },
		"reserved kind":    func(b []byte) { b[32] |= 0x18 },
		"reserved bit":     func(b []byte) { b[32] |= 0x80 },
		"value too large":  func(b []byte) { b[35] = 0x10 },
		"field":            func(b []byte) { b[36] = 0x77 },
		"more bits":        func(b []byte) { b[41] = 30 },
		"output of value":  func(b []byte) { b[42] |= 0x20 },
		"after the end":    func(b []byte) { b[len(b)-1] = 1 },
		"nothing but bits": func(b []byte) { b[33] = 0 },
	} {
		b := append([]byte(nil), wire...)
		change(b)
		if a, ok := decodeAction(b).(rawAction); !ok || a.data != string(b) {
			t.Errorf("%s: %x is understood: %s", name, b, decodeAction(b))
		}
	}
}

// A packet that meets learn leaves the flow that was asked for, with the client
// and what was chosen for it.
func TestLearnedFlow(t *testing.T) {
	o, c := startBridge(t)
	want := Flow{
		Table: 10, Priority: 7, Cookie: 0xabc, HardTimeout: 10800,
		Match:   NewMatch(UDPDst(80), IPv4Src(pfx("10.0.0.1/32")), IPv4Dst(pfx("10.96.0.10/32"))),
		Actions: []Action{Load(Whole(FieldReg4), 0x0a000009), Load(Bits(FieldReg5, 0, 15), 8080), Output(1)},
	}
	learn := LearnSpec{Table: want.Table, Priority: want.Priority, Cookie: want.Cookie, HardTimeout: want.HardTimeout, Parts: []LearnPart{
		LearnMatchValue(IP()), LearnMatchValue(IPProto(ProtoUDP)), LearnMatch(Whole(FieldIPv4Src), Whole(FieldIPv4Src)),
		LearnMatch(Whole(FieldIPv4Dst), Whole(FieldIPv4Dst)), LearnMatchValue(UDPDst(80)),
		LearnLoad(Whole(FieldReg4), Whole(FieldReg4)), LearnLoadValue(RegMasked(5, 8080, 0xffff)), LearnOutput(Whole(FieldInPort)),
	}}
	teacher := Flow{Match: NewMatch(UDPDst(80)), Actions: []Action{SetField(Reg(4, 0x0a000009)), Learn(learn)}}
	if err := c.Commit(testContext(t), []Mod{AddFlow(teacher)}); err != nil {
		t.Fatal(err)
	}
	receive(o, 1, udpPacket("10.0.0.1", "10.96.0.10", 1001, 80))
	waitFor(t, func() bool { return len(readFlows(t, c)) == 2 })
	if d := diffFlows(sorted([]Flow{teacher, want}), readFlows(t, c)); d != "" {
		t.Errorf("flows (-want +got):\n%s", d)
	}
}
