package openflow

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What the fields presuppose is added, whatever the order.
func TestNewMatchAddsPrerequisites(t *testing.T) {
	for _, tc := range []struct {
		got  Match
		want string
	}{
		{NewMatch(), ""},
		{NewMatch(IPv4Dst(pfx("10.0.0.0/8"))), "ip,nw_dst=10.0.0.0/8"},
		{NewMatch(IPv4Dst(pfx("10.1.2.3/8"))), "ip,nw_dst=10.0.0.0/8"},
		{NewMatch(IPv4Dst(pfx("0.0.0.0/0"))), ""},
		{NewMatch(TCPDst(80)), "tcp,tp_dst=80"},
		{NewMatch(TCPDst(80), IPv6()), "tcp6,tp_dst=80"},
		{NewMatch(IPv6(), TCPDst(80)), "tcp6,tp_dst=80"},
		{NewMatch(TCPDst(80), IPv6Dst(pfx("fd00::1/128"))), "tcp6,ipv6_dst=fd00::1,tp_dst=80"},
		{NewMatch(IPFrag(FragLater)), "ip,nw_frag=later"},
		{NewMatch(ARPTPA(pfx("10.0.0.1/32"))), "arp,arp_tpa=10.0.0.1"},
		{NewMatch(ICMPv6Type(135)), "icmp6,icmp_type=135"},
		{NewMatch(sampleOf(FieldNDTarget)), "icmp6,icmp_type=135,icmp_code=0,nd_target=fd00::a"},
		{NewMatch(sampleOf(FieldNDTarget), sampleOf(FieldNDTLL)), "icmp6,icmp_type=136,icmp_code=0,nd_target=fd00::a,nd_tll=0a:58:0a:00:00:01"},
		{NewMatch(ICMPv6Type(136), sampleOf(FieldNDTarget)), "icmp6,icmp_type=136,icmp_code=0,nd_target=fd00::a"},
		{NewMatch(CTNWProto(6)), "ct_state=-inv+trk,ct_nw_proto=6"},
		{NewMatch(CTNWProto(6), CTTPDst(80)), "ct_state=-inv+trk,ct_nw_proto=6,ct_tp_dst=80,ip"},
		{NewMatch(CTNWProto(6), CTTPDst(80), sampleOf(FieldCTIPv6Dst)), "ct_state=-inv+trk,ct_ipv6_dst=fd00::a,ct_nw_proto=6,ct_tp_dst=80,ipv6"},
		{NewMatch(CTNWDst(pfx("10.0.0.1/32")), CTState(CTNew, CTNew)), "ct_state=+new,ct_nw_dst=10.0.0.1,ip"},
		{NewMatch(CTNWSrcMasked(netip.MustParseAddr("172.11.9.1"), netip.MustParseAddr("255.255.3.255"))), "ct_state=-inv+trk,ct_nw_src=172.11.1.1/255.255.3.255,ip"},
		{NewMatch(CTNWDstMasked(netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("255.0.0.0"))), "ct_state=-inv+trk,ct_nw_dst=10.0.0.0/8,ip"},
		{NewMatch(CTNWProto(17), CTTPDstMasked(0x1f9, 0xfff8)), "ct_state=-inv+trk,ct_nw_proto=17,ct_tp_dst=0x1f8/0xfff8,ip"},
		{NewMatch(TCPSrcMasked(0, 0x8000), TCPDstMasked(0xffff, 0x8000)), "tcp,tp_src=0x0/0x8000,tp_dst=0x8000/0x8000"},
		{NewMatch(IP(), IP(), Reg(3, 1), Reg(3, 1)), "ip,reg3=0x1"},
		{NewMatch(RegMasked(3, 0xffff, 0xf0)), "reg3=0xf0/0xf0"},
		{NewMatch(RegMasked(3, 1, 0)), ""},
		{NewMatch(UDPDst(53)).With(InPort(3), IPv4Src(pfx("10.0.0.1/32"))), "udp,in_port=3,nw_src=10.0.0.1,tp_dst=53"},
		{NewMatch(InPort(PortLocal)), "in_port=LOCAL"},
	} {
		if got := tc.got.String(); got != tc.want {
			t.Errorf("match is %q, want %q", got, tc.want)
		}
	}
	if NewMatch(Reg(0, 1)).With(Reg(1, 2)) != NewMatch(Reg(1, 2), Reg(0, 1)) {
		t.Error("With makes another match than NewMatch")
	}
	if f, ok := NewMatch(TCPDst(80)).Field(FieldIPProto); !ok || f.Uint64() != 6 {
		t.Errorf("Field(IPProto) is %v, %v", f, ok)
	}
}

// Mistakes in a program panic with what is wrong.
func TestPanics(t *testing.T) {
	for name, tc := range map[string]struct {
		do   func()
		want string
	}{
		"two values":        {func() { NewMatch(Reg(0, 1), Reg(0, 2)) }, "cannot have both reg0=0x1 and reg0=0x2"},
		"two types":         {func() { NewMatch(IP(), ARP()) }, "dl_type=0x0800 and dl_type=0x0806"},
		"IPv4 in ARP":       {func() { NewMatch(ARP(), IPv4Dst(pfx("10.0.0.1/32"))) }, "nw_dst=10.0.0.1 needs dl_type=0x0800"},
		"two protocols":     {func() { NewMatch(TCPDst(1), UDPDst(1)) }, "nw_proto=6 and nw_proto=17"},
		"TCP in ICMP":       {func() { NewMatch(IPProto(1), TCPDst(1)) }, "nw_proto=1 and nw_proto=6"},
		"IPv6 address":      {func() { IPv4Dst(pfx("fd00::/8")) }, "nw_dst: fd00::/8 is not a prefix of 32-bit addresses"},
		"IPv4 address":      {func() { IPv6Dst(pfx("10.0.0.0/8")) }, "128-bit"},
		"no address":        {func() { TunnelDst(netip.Addr{}) }, "tun_dst: the address is not set"},
		"MAC":               {func() { EthDst(nil) }, "48-bit"},
		"masked MAC":        {func() { EthDstMasked(mac("00:00:00:00:00:01"), nil) }, "48-bit"},
		"masked address":    {func() { CTNWSrcMasked(netip.MustParseAddr("10.0.0.1"), netip.Addr{}) }, "ct_nw_src: 10.0.0.1/invalid IP is not a 32-bit address and its mask"},
		"register":          {func() { Reg(16, 0) }, "no register 16"},
		"range":             {func() { Range(FieldReg0, 30, 3) }, "reg0 has 32 bits"},
		"empty range":       {func() { Range(FieldReg0, 3, 0) }, "reg0 has 32 bits"},
		"no field":          {func() { Whole(0) }, "0 bits"},
		"move of lengths":   {func() { Move(Whole(FieldReg0), Whole(FieldEthSrc)) }, "different lengths"},
		"check_pkt_larger":  {func() { CheckPktLarger(1, Whole(FieldReg0)) }, "single bit"},
		"narrowed wrongly":  {func() { NewMatch(IP()).With(ARPOp(1)) }, "arp_op=1 needs dl_type=0x0806"},
		"reply's address":   {func() { NewMatch(ICMPv6Type(135), sampleOf(FieldNDTLL)) }, "nd_tll=0a:58:0a:00:00:01 needs icmp_type=136"},
		"untracked tuple":   {func() { NewMatch(CTState(CTInvalid|CTTracked, CTInvalid|CTTracked), CTNWProto(6)) }, "ct_nw_proto=6 needs a ct_state such as +trk-inv"},
		"port of nothing":   {func() { NewMatch(CTTPDst(80)) }, "ct_tp_dst=80 needs ct_nw_proto"},
		"conflicting frags": {func() { NewMatch(IPFrag(FragNo), IPFrag(FragAny)) }, "nw_frag=no and nw_frag=yes"},
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if p := fmt.Sprint(recover()); !strings.Contains(p, tc.want) {
					t.Errorf("panic is %q, want %q in it", p, tc.want)
				}
			}()
			tc.do()
			t.Error("no panic")
		})
	}
}

// Each field that a flow has counts in Equal; only identity counts in Key.
func TestFlowEqualAndKey(t *testing.T) {
	base := func() Flow {
		return Flow{Table: 1, Priority: 2, Cookie: 3, Match: NewMatch(IP()), Actions: []Action{Output(1), DecTTL()}, Goto: GotoTable(5),
			Meter: 6, IdleTimeout: 7, HardTimeout: 8, Importance: 9, Flags: SendFlowRemoved}
	}
	for name, tc := range map[string]struct {
		change         func(*Flow)
		equal, sameKey bool
	}{
		"nothing":         {func(*Flow) {}, true, true},
		"table":           {func(f *Flow) { f.Table++ }, false, false},
		"priority":        {func(f *Flow) { f.Priority++ }, false, false},
		"match":           {func(f *Flow) { f.Match = NewMatch(ARP()) }, false, false},
		"cookie":          {func(f *Flow) { f.Cookie++ }, false, true},
		"fewer actions":   {func(f *Flow) { f.Actions = f.Actions[:1] }, false, true},
		"order":           {func(f *Flow) { f.Actions = []Action{DecTTL(), Output(1)} }, false, true},
		"no goto":         {func(f *Flow) { f.Goto = nil }, false, true},
		"goto":            {func(f *Flow) { f.Goto = GotoTable(6) }, false, true},
		"meter":           {func(f *Flow) { f.Meter = 0 }, false, true},
		"idle timeout":    {func(f *Flow) { f.IdleTimeout = 0 }, false, true},
		"hard timeout":    {func(f *Flow) { f.HardTimeout = 0 }, false, true},
		"importance":      {func(f *Flow) { f.Importance = 0 }, false, true},
		"lasting flag":    {func(f *Flow) { f.Flags = 0 }, false, true},
		"momentary flag":  {func(f *Flow) { f.Flags |= CheckOverlap | ResetCounts }, true, true},
		"not understood":  {func(f *Flow) { f.others = "x" }, false, true},
		"equal pointers":  {func(f *Flow) { f.Goto = GotoTable(5) }, true, true},
		"unknown action":  {func(f *Flow) { f.Actions = []Action{rawAction{string(Output(1).append(nil))}, DecTTL()} }, false, true},
		"different ports": {func(f *Flow) { f.Actions = []Action{Output(2), DecTTL()} }, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			f := base()
			tc.change(&f)
			if f.Equal(base()) != tc.equal || base().Equal(f) != tc.equal {
				t.Errorf("Equal is %v, want %v: %s", !tc.equal, tc.equal, f)
			}
			if (f.Key() == base().Key()) != tc.sameKey {
				t.Errorf("Keys are the same: %v, want %v", !tc.sameKey, tc.sameKey)
			}
		})
	}
}

// All parts of ct and its nat count when actions are compared.
func TestCTEqual(t *testing.T) {
	base := func() CTSpec {
		return CTSpec{Commit: true, Force: true, Zone: 1, Table: GotoTable(2), ALG: 21, Actions: []Action{SetField(CTMark(1, ^uint32(0)))},
			NAT: &NATSpec{SNAT: true, AddrMin: addr("10.0.0.1"), PortMin: 5}}
	}
	for name, change := range map[string]func(*CTSpec){
		"commit": func(s *CTSpec) { s.Commit = false }, "force": func(s *CTSpec) { s.Force = false }, "zone": func(s *CTSpec) { s.Zone = 2 },
		"zone from": func(s *CTSpec) { s.ZoneFrom = Bits(FieldReg0, 0, 15) }, "table": func(s *CTSpec) { s.Table = nil },
		"alg": func(s *CTSpec) { s.ALG = 0 }, "actions": func(s *CTSpec) { s.Actions = nil }, "no nat": func(s *CTSpec) { s.NAT = nil },
		"nat": func(s *CTSpec) { s.NAT = &NATSpec{DNAT: true, AddrMin: addr("10.0.0.1"), PortMin: 5} },
	} {
		s := base()
		change(&s)
		if CT(s).equal(CT(base())) || CT(base()).equal(CT(s)) {
			t.Errorf("%s does not count: %s", name, CT(s))
		}
	}
	s := base()
	s.NAT.AddrMax, s.NAT.PortMax = s.NAT.AddrMin, s.NAT.PortMin
	a := CT(s)
	if !a.equal(CT(base())) {
		t.Errorf("a range of one is not that one: %s", a)
	}
	s.NAT.PortMin, *s.Table = 9, 9
	if !a.equal(CT(base())) {
		t.Error("the action changes with what it was made from")
	}
	if CT(base()).equal(CTClear()) || CTClear().equal(CT(base())) {
		t.Error("ct equals ct_clear")
	}
}

// A mask with holes is one reg_load2 and reads back as it was. (ovs-ofctl makes
// several loads of its text, so this is not among the samples.)
func TestMaskWithHoles(t *testing.T) {
	_, c := startBridge(t)
	want := []Flow{{Match: NewMatch(IP()), Actions: []Action{SetField(RegMasked(2, 0x50, 0xf1)), SetField(TunnelIDMasked(5, 0x8000000000000001)),
		SetField(EthDstMasked(mac("01:00:00:00:00:01"), mac("01:00:00:00:00:ff"))), CT(CTSpec{Commit: true, Actions: []Action{SetField(CTLabel(1, 1, 1, 3))}})}}}
	if err := c.Commit(testContext(t), addAll(want)); err != nil {
		t.Fatal(err)
	}
	if d := diffFlows(want, readFlows(t, c)); d != "" {
		t.Errorf("read back (-written +read):\n%s", d)
	}
}

// Other spellings of a field decode to the same match.
func TestDecodeMatchAliases(t *testing.T) {
	for name, tc := range map[string]struct {
		wire []byte
		want Match
	}{
		"NXM tun_id":           {[]byte{0, 1, 16 << 1, 8, 0, 0, 0, 0, 0, 0, 0, 5}, NewMatch(TunnelID(5))},
		"NXM nw_dst, reversed": {[]byte{0, 0, 8 << 1, 4, 10, 0, 0, 1, 0, 0, 3 << 1, 2, 8, 0}, NewMatch(IPv4Dst(pfx("10.0.0.1/32")))},
		"mask of all ones":     {[]byte{0, 1, 1, 8, 0, 0, 0, 7, 0xff, 0xff, 0xff, 0xff}, NewMatch(Reg(0, 7))},
		"mask of zeros":        {[]byte{0, 1, 1, 8, 0, 0, 0, 0, 0, 0, 0, 0}, NewMatch()},
		"OpenFlow 1.5 flags":   {[]byte{0x80, 0, 42 << 1, 2, 0, 2, 0x80, 0, 5 << 1, 2, 8, 0, 0x80, 0, 10 << 1, 1, 6}, NewMatch(TCPFlags(2, 0xfff))},
	} {
		got, err := decodeMatch(tc.wire)
		if err != nil || got != tc.want {
			t.Errorf("%s: %s, %v; want %s", name, got, err, tc.want)
		}
	}
}

// What is not understood is kept byte by byte, shown, and equal to nothing else.
func TestUnknownIsKept(t *testing.T) {
	recirc := []byte{0, 1, 36 << 1, 4, 0, 0, 0, 9}
	reg := []byte{0, 1, 0, 4, 0, 0, 0, 1}
	for name, wire := range map[string][]byte{
		"unknown field":           recirc,
		"experimenter":            {0xff, 0xff, 2, 8, 1, 2, 3, 4, 5, 6, 7, 8},
		"wrong width":             {0, 1, 0, 2, 0, 1},
		"bits the field has not":  {0x80, 0, 8 << 1, 1, 0xff},
		"value outside the mask":  {0, 1, 1, 8, 0, 0, 0, 7, 0, 0, 0, 1},
		"mask outside, as value":  {0x80, 0, 6<<1 | 1, 4, 0xff, 0xff, 0xff, 0xff},
		"unknown beside a known":  append(bytes.Clone(recirc), reg...),
		"two unknown, not sorted": append([]byte{0, 2, 0, 1, 1}, recirc...),
	} {
		m, err := decodeMatch(wire)
		if err != nil || m.Typed() || !strings.Contains(m.String(), "oxm(0x") {
			t.Errorf("%s: %q, typed %v, %v", name, m, m.Typed(), err)
			continue
		}
		again, rest, err := cutMatch(appendMatch(nil, m))
		if err != nil || again != m || len(rest) != 0 || len(m.oxm) != len(wire) {
			t.Errorf("%s: %s becomes %s, %v", name, m, again, err)
		}
		if m == NewMatch() || m == NewMatch(m.Fields()...) {
			t.Errorf("%s: equals a match without the unknown", name)
		}
	}
	both, err := decodeMatch(append(bytes.Clone(recirc), reg...))
	if err != nil || both.String() != "reg0=0x1,oxm(0x0001480400000009)" || both.With(InPort(1)).Typed() {
		t.Errorf("known and unknown: %s, %v", both, err)
	}

	learn2 := append([]byte{0xff, 0xff, 0, 32, 0, 0, 0x23, 0x20, 0, 45}, make([]byte, 22)...)
	actions, err := decodeActions(append(learn2, Output(1).append(nil)...))
	if err != nil || len(actions) != 2 || !actions[1].equal(Output(1)) || !strings.HasPrefix(actions[0].String(), "unknown(0xffff0020") {
		t.Errorf("unknown action: %v, %v", actions, err)
	}
	if again := appendActions(nil, actions[:1]); !bytes.Equal(again, learn2) {
		t.Errorf("unknown action becomes %x", again)
	}
	var f Flow
	write := []byte{0, 3, 0, 16, 0, 0, 0, 0, 0, 22, 0, 8, 0, 0, 0, 1}
	if err := decodeInstructions(write, &f); err != nil || f.Equal(Flow{}) || !strings.Contains(f.String(), "unknown_instruction(0x0003") {
		t.Errorf("unknown instruction: %v, %v", f, err)
	}
	if got := appendInstructions(nil, f); !bytes.Equal(got, write) {
		t.Errorf("unknown instruction becomes %x", got)
	}
}

// Broken messages are refused, never a panic, and say what they are.
func TestDecodeErrors(t *testing.T) {
	sample := sampleFlows()[12]
	flow := appendFlowMod(nil, 0, flowAdd, sample, 0)[headerSize:]
	drop := flowModFixed - headerSize + len(appendMatch(nil, sample.Match))
	for n := range flow {
		if _, _, _, err := decodeFlowMod(flow[:n]); (err == nil) != (n == drop) {
			// Cut just behind the match it is a flow that drops.
			t.Errorf("flow mod cut at %d of %d: %v", n, len(flow), err)
		}
	}
	twice := append(appendOXM(nil, Reg(0, 1), false), appendOXM(nil, Reg(0, 1), false)...)
	for name, err := range map[string]error{
		"field twice":      second(decodeMatch(twice)),
		"match type":       third(cutMatch([]byte{0, 0, 0, 4, 0, 0, 0, 0})),
		"action length":    second(decodeActions([]byte{0, 0, 0, 12, 0, 0, 0, 0, 0, 0, 0, 0})),
		"action of 0":      second(decodeActions(make([]byte, 8))),
		"bucket":           second(decodeBuckets(make([]byte, 16))),
		"band":             second(decodeBands([]byte{0, 1, 0, 4})),
		"stats":            second(decodeFlowStats(make([]byte, 48), nil)),
		"port":             second(decodePortDesc(make([]byte, 39), nil)),
		"error":            second(decodeError(nil)),
		"header":           second(decodeHeader(make([]byte, 8))),
		"group desc":       second(decodeGroupDesc([]byte{0, 9, 0, 0, 0, 0, 0, 0}, nil)),
		"meter statistics": second(decodeMeterStats([]byte{0, 0, 0, 1, 0, 39}, nil)),
		"meter config":     second(decodeMeterConfig([]byte{0, 9, 0, 0, 0, 0, 0, 0}, nil)),
		"instruction of 0": decodeInstructions(make([]byte, 8), &Flow{}),
	} {
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func second[T any](_ T, err error) error        { return err }
func third[T, U any](_ T, _ U, err error) error { return err }

func TestSwitchErrorNames(t *testing.T) {
	for _, tc := range []struct {
		err  SwitchError
		want string
	}{
		{SwitchError{2, 4}, "OFPBAC_BAD_OUT_PORT"},
		{SwitchError{17, 13}, "OFPBFC_MSG_FAILED"},
		{SwitchError{0xffff, 2}, "NXBRC_NXM_INVALID"},
		{SwitchError{99, 1}, "unknown error (type 99, code 1)"},
	} {
		if got := tc.err.Error(); !strings.Contains(got, tc.want) {
			t.Errorf("%v: %q, want %q in it", tc.err.Code, got, tc.want)
		}
	}
	inner := &SwitchError{2, 4}
	err := error(&ModError{Index: 3, Mod: AddFlow(Flow{}), Err: inner})
	var se *SwitchError
	if !errors.As(err, &se) || se != inner {
		t.Errorf("%v does not unwrap", err)
	}
}

// The names of parts in errors are commands that people know.
func TestModText(t *testing.T) {
	f := Flow{Table: 1, Match: NewMatch(IP())}
	g := GroupEntry{ID: 1, Type: GroupSelect, Buckets: []Bucket{{Weight: 2, WatchPort: 3, Actions: []Action{Output(1)}}, {}}}
	for _, tc := range []struct {
		mod  Mod
		want string
	}{
		{AddFlow(f), "add-flow cookie=0x0, table=1, priority=0,ip actions=drop"},
		{ModifyFlow(f), "mod-flows --strict cookie=0x0, table=1, priority=0,ip actions=drop"},
		{DeleteFlow(f), "del-flows --strict cookie=0x0, table=1, priority=0,ip actions=drop"},
		{DeleteFlows(FlowFilter{Table: GotoTable(3), Cookie: 1, CookieMask: 0xff, Match: f.Match}), "del-flows cookie=0x1/0xff,table=3,ip"},
		{AddGroup(g), "add-group group_id=1,type=select,bucket=weight:2,watch_port:3,actions=output:1,bucket=weight:0,actions=drop"},
		{SetGroup(GroupEntry{ID: 1}), "--may-create mod-group group_id=1,type=all"},
		{ModifyGroup(GroupEntry{ID: 1, Type: GroupFastFail}), "mod-group group_id=1,type=ff"},
		{DeleteGroup(1), "del-groups group_id=1"},
	} {
		if d := cmp.Diff(tc.want, tc.mod.String()); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
	}
}

// Typed reports whether this package understands every field of the match.
func (m Match) Typed() bool {
	_, raw := m.split()
	return raw == ""
}
