package openflow

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/test/ovstest"
)

func mac(s string) net.HardwareAddr {
	m, err := net.ParseMAC(s)
	if err != nil {
		panic(err)
	}
	return m
}

var (
	pfx  = netip.MustParsePrefix
	addr = netip.MustParseAddr
)

// samples are values of fields that do not take just any.
var samples = map[FieldID]uint64{
	FieldInPort: 3, FieldEthType: 0x88cc, FieldVLANVID: vlanPresent | 42, FieldVLANPCP: 5, FieldIPFrag: 1, FieldIPProto: 47, FieldARPOp: 2,
	FieldICMPv6Type: 128, FieldCTState: uint64(CTTracked | CTEstablished | CTReply),
}

// sampleOf is a field with all its bits.
func sampleOf(id FieldID) Field {
	info := &fieldInfos[id]
	switch v, ok := samples[id]; {
	case id == FieldCTState:
		return CTState(uint32(v), 0xff) // the bits that there are
	case ok:
		return uintField(id, v)
	case info.form == formMAC:
		return macField(id, mac("0a:58:0a:00:00:01"))
	case info.form == formIPv6:
		return addrField(id, addr("fd00::a"))
	case info.form == formIPv4:
		return addrField(id, addr("10.1.2.3"))
	case info.bytes == maxFieldBytes:
		return newField(id, []byte("a label is this!"), nil)
	}
	return uintField(id, 0x1122334455667788)
}

// partOf is a field under a mask of some of its bits.
func partOf(id FieldID) Field {
	f := sampleOf(id)
	mask := f.Mask()
	mask[len(mask)-1] &= 0xfe
	if fieldInfos[id].form == formCTState || id == FieldIPFrag || id == FieldVLANVID {
		mask = f.Value()
	}
	return newField(id, f.Value(), mask)
}

// beside is what a field needs in a match that [NewMatch] does not know.
func beside(id FieldID) []Field {
	switch {
	case id == FieldVLANPCP:
		return []Field{VLAN(42)}
	case fieldInfos[id].ctProto:
		return []Field{CTNWProto(ProtoUDP)}
	}
	return nil
}

// everyField calls f with the number of each field that a flow can match. Flows with dp_hash
// are the switch's own.
func everyField(f func(FieldID)) {
	for id := FieldID(1); id < fieldEnd; id++ {
		if id != FieldDPHash {
			f(id)
		}
	}
}

// matchSamples uses every field, and every constructor.
func matchSamples() []Match {
	var ms []Match
	add := func(f ...Field) { ms = append(ms, NewMatch(f...)) }
	add()
	add(InPort(3))
	add(InPort(PortLocal))
	add(EthSrc(mac("0a:58:0a:00:00:01")), EthDst(mac("0a:58:0a:00:00:02")))
	add(EthDstMasked(mac("01:00:00:00:00:00"), mac("01:00:00:00:00:00")), EthSrcMasked(mac("0a:58:00:00:00:00"), mac("ff:ff:00:00:00:00")))
	add(EthType(0x88cc))
	add(IP())
	add(ARP())
	add(IPv6())
	add(VLAN(42))
	add(Untagged())
	add(ARPOp(1), ARPSPA(pfx("10.0.0.1/32")), ARPTPA(pfx("10.0.0.0/8")), ARPSHA(mac("0a:58:0a:00:00:01")), ARPTHA(mac("00:00:00:00:00:00")))
	add(IPv4Src(pfx("10.1.2.3/32")), IPv4Dst(pfx("10.0.0.0/8")))
	add(IPv4Src(pfx("10.1.2.255/22")))
	add(IPv4Dst(pfx("0.0.0.0/0")), IP())
	add(IPv6Src(pfx("fd00::1/128")), IPv6Dst(pfx("fd00::/64")))
	add(IPProto(47))
	add(IPProto(ProtoTCP))
	add(IPv6(), IPProto(ProtoUDP))
	add(IP(), IPTTL(1))
	add(IPDSCP(46), IPECN(2))
	for k := range fragBits {
		add(IPFrag(Frag(k)))
	}
	add(IPFrag(FragLater), IPv6())
	add(ICMPType(8), ICMPCode(0))
	add(ICMPv6Type(135), ICMPv6Code(0))
	add(TCPSrc(1024), TCPDst(80))
	add(TCPDst(443), IPv6Dst(pfx("fd00::2/128")))
	add(TCPFlags(0x02, 0x12))
	add(TCPFlags(0x10, 0xfff))
	add(UDPSrc(53), UDPDst(4789), IPv4Dst(pfx("198.18.0.1/32")))
	add(SCTPSrc(1), SCTPDst(2))
	add(TunnelID(0xabcdef), TunnelSrc(addr("198.18.0.1")), TunnelDst(addr("198.18.0.2")))
	add(TunnelID(0), InPort(1))
	add(TunnelIDMasked(0x10, 0xf0))
	add(Reg(0, 10), Reg(15, 0), RegMasked(3, 0x10, 0xff))
	add(RegMasked(1, 0, 1<<31))
	add(Metadata(0x1234, ^uint64(0)))
	add(Metadata(0x1200, 0xff00))
	add(PktMark(7, ^uint32(0)))
	add(PktMark(4, 4))
	add(CTState(CTTracked|CTEstablished, CTTracked|CTEstablished|CTNew), IP())
	add(CTState(CTInvalid|CTTracked, CTInvalid|CTTracked|CTReply|CTRelated|CTSNAT|CTDNAT), IP())
	add(CTZone(5), CTMark(1, ^uint32(0)))
	add(CTMark(0x10, 0x30))
	add(CTLabel(1, 2, ^uint64(0), ^uint64(0)))
	add(CTLabel(0, 2, 0, 0xf))
	add(CTState(CTTracked|CTEstablished, CTTracked|CTEstablished), IP(),
		CTNWProto(6), CTNWSrc(pfx("10.0.0.0/8")), CTNWDst(pfx("10.0.0.1/32")), CTTPSrc(99), CTTPDst(80))
	add(ConjID(77))
	everyField(func(id FieldID) {
		add(append(beside(id), sampleOf(id))...)
		if !fieldInfos[id].noMask {
			add(append(beside(id), partOf(id))...)
		}
	})
	return ms
}

// actionSample is a list of actions and the match that they presuppose.
type actionSample struct {
	m Match
	a []Action
}

// actionSamples uses every action constructor.
func actionSamples() []actionSample {
	ip, arp := NewMatch(IP()), NewMatch(ARP())
	tcp := NewMatch(IP(), IPProto(ProtoTCP))
	bit := Bits(FieldReg0, 3, 3)
	return []actionSample{
		{Match{}, nil},
		{Match{}, []Action{Output(3), Output(PortInPort), Output(PortLocal), Output(PortNormal), Output(PortController), Output(PortFlood), Output(PortAll)}},
		{Match{}, []Action{OutputRange(Bits(FieldReg2, 0, 15)), OutputRange(Whole(FieldReg2))}},
		{ip, []Action{DecTTL(), Output(1)}},
		{ip, []Action{SetField(EthSrc(mac("0a:58:0a:00:00:01"))), SetField(EthDst(mac("0a:58:0a:00:00:02"))), SetField(IPv4Src(pfx("10.0.0.1/32"))), SetField(IPv4Dst(pfx("10.0.0.2/32"))), SetField(IPTTL(64)), SetField(IPDSCP(10)), SetField(IPECN(1))}},
		{tcp, []Action{SetField(TCPSrc(1)), SetField(TCPDst(2))}},
		{NewMatch(UDPDst(1)), []Action{SetField(UDPSrc(1)), SetField(UDPDst(2))}},
		{NewMatch(SCTPDst(1)), []Action{SetField(SCTPSrc(1)), SetField(SCTPDst(2))}},
		{NewMatch(ICMPType(8)), []Action{SetField(ICMPType(0)), SetField(ICMPCode(0))}},
		{arp, []Action{SetField(ARPOp(2)), SetField(ARPSPA(pfx("10.0.0.1/32"))), SetField(ARPTPA(pfx("10.0.0.2/32"))), SetField(ARPSHA(mac("0a:58:0a:00:00:01"))), SetField(ARPTHA(mac("0a:58:0a:00:00:02")))}},
		{NewMatch(IPv6()), []Action{SetField(IPv6Src(pfx("fd00::1/128"))), SetField(IPv6Dst(pfx("fd00::2/128")))}},
		{Match{}, []Action{SetField(TunnelID(0)), SetField(TunnelID(0xabcdef)), SetField(TunnelDst(addr("198.18.0.2"))), SetField(TunnelSrc(addr("198.18.0.1")))}},
		{Match{}, []Action{SetField(Reg(0, 0)), SetField(Reg(1, 10)), SetField(Reg(15, 0xffffffff)), SetField(RegMasked(2, 0x50, 0xf0)), SetField(PktMark(1, 1)), SetField(PktMark(9, ^uint32(0)))}},
		{Match{}, []Action{SetField(Metadata(5, ^uint64(0))), Move(Whole(FieldInPort), Whole(FieldReg0)), SetField(InPort(0)), Load(Whole(FieldInPort), 3)}},
		{arp, []Action{
			Move(Whole(FieldEthSrc), Whole(FieldEthDst)), Move(Whole(FieldARPSHA), Whole(FieldARPTHA)),
			Move(Whole(FieldARPTPA), Range(FieldEthSrc, 0, 32)), Load(Range(FieldEthSrc, 32, 16), 0x0a58),
			Move(Whole(FieldEthSrc), Whole(FieldARPSHA)), Move(Whole(FieldARPTPA), Whole(FieldReg5)),
			Move(Whole(FieldARPSPA), Whole(FieldARPTPA)), Move(Whole(FieldReg5), Whole(FieldARPSPA)),
			Load(Whole(FieldARPOp), 2), Output(PortInPort),
		}},
		{ip, []Action{Move(Range(FieldTunnelID, 0, 32), Whole(FieldReg0)), Move(Whole(FieldReg0), Range(FieldTunnelID, 0, 32)), Move(Whole(FieldIPv4Dst), Range(FieldEthDst, 0, 32)), Move(Whole(FieldTunnelSrc), Whole(FieldTunnelDst)), Move(Bits(FieldReg0, 0, 0), bit)}},
		{Match{}, []Action{Load(Whole(FieldReg3), 7), Load(Range(FieldReg3, 4, 8), 0xff), Load(Whole(FieldTunnelID), 1<<63), Load(bit, 0)}},
		{Match{}, []Action{Resubmit(5), ResubmitPort(3, 6), ResubmitPort(3, 0xff), ResubmitPort(PortLocal, 7)}},
		{Match{}, []Action{Group(1)}},
		{Match{}, []Action{SetQueue(0), SetQueue(0x10007), Output(1)}},
		{Match{}, []Action{Note([]byte("hello")), Note(nil), Note([]byte("a longer note, over one"))}},
		{Match{}, []Action{CheckPktLarger(1514, bit)}},
		{NewMatch(InPort(1)), []Action{Conjunction(5, 1, 2), Conjunction(6, 2, 3)}},
		{ip, []Action{CTClear(), CT(CTSpec{}), CT(CTSpec{Commit: true, Zone: 7}), CT(CTSpec{Table: GotoTable(9), Zone: 3})}},
		{ip, []Action{CT(CTSpec{Commit: true, Force: true, Table: GotoTable(9), ZoneFrom: Bits(FieldReg4, 0, 15)})}},
		{ip, []Action{CT(CTSpec{Table: GotoTable(9), NAT: &NATSpec{}})}},
		{ip, []Action{CT(CTSpec{Commit: true, NAT: &NATSpec{SNAT: true}}), CT(CTSpec{Commit: true, NAT: &NATSpec{DNAT: true, AddrMin: addr("10.0.0.1")}})}},
		{tcp, []Action{
			CT(CTSpec{Commit: true, NAT: &NATSpec{DNAT: true, AddrMin: addr("10.0.0.1"), PortMin: 8080}}),
			CT(CTSpec{Commit: true, Zone: 2, NAT: &NATSpec{SNAT: true, AddrMin: addr("10.0.0.1"), AddrMax: addr("10.0.0.9"), PortMin: 1000, PortMax: 2000, Random: true, Persistent: true}}),
			CT(CTSpec{Commit: true, NAT: &NATSpec{SNAT: true, AddrMin: addr("10.0.0.1"), Hash: true},
				Actions: []Action{SetField(CTMark(5, ^uint32(0))), SetField(CTMark(0x10, 0xf0)), SetField(CTLabel(1, 2, ^uint64(0), ^uint64(0))), Move(Whole(FieldReg0), Whole(FieldCTMark)), Load(Range(FieldCTLabel, 0, 32), 9)}}),
			CT(CTSpec{Commit: true, ALG: 21}),
		}},
		{NewMatch(TCPDst(80)), []Action{Learn(LearnSpec{Table: 7}), Learn(affinity()), Resubmit(8)}},
		{NewMatch(IPv6()), []Action{Learn(LearnSpec{
			Table: 9, Priority: 32768, HardTimeout: 5, FinIdleTimeout: 6, FinHardTimeout: 7, Flags: LearnDeleteLearned,
			Parts: []LearnPart{
				LearnMatchValue(IPv6()), LearnMatchValue(uintField(FieldIPv6Label, 0x123)), LearnMatchValue(IPv6Dst(pfx("fd00::1/128"))), LearnMatch(Whole(FieldIPv6Src), Whole(FieldIPv6Dst)),
				LearnMatchValue(IPDSCP(10)), LearnMatchValue(InPort(3)), LearnMatchValue(TunnelID(5)), LearnMatchValue(EthSrc(mac("0a:58:0a:00:00:01"))),
				LearnMatchValue(CTLabel(1, 2, ^uint64(0), ^uint64(0))), LearnMatchValue(RegMasked(4, 0, 0xff)), LearnMatchValue(PktMark(9, ^uint32(0))),
				LearnLoadValue(Reg(5, 0)), LearnLoadValue(EthDst(mac("0a:58:0a:00:00:02"))), LearnLoadValue(IPv6Dst(pfx("fd00::2/128"))),
				LearnOutput(Whole(FieldInPort)),
			},
		})}},
		{NewMatch(IPv6(), IPProto(ProtoTCP)), []Action{CT(CTSpec{Commit: true, NAT: &NATSpec{DNAT: true, AddrMin: addr("fd00::1"), AddrMax: addr("fd00::9"), PortMin: 80}})}},
	}
}

// affinity learns which backend, in reg4 and reg5, a client has.
func affinity() LearnSpec {
	return LearnSpec{
		Table: 10, Priority: 100, Cookie: 0xabc, IdleTimeout: 60, HardTimeout: 10800, Flags: LearnSendFlowRemoved | LearnDeleteLearned,
		Parts: []LearnPart{
			LearnMatchValue(IP()), LearnMatchValue(IPProto(ProtoTCP)), LearnMatch(Whole(FieldIPv4Src), Whole(FieldIPv4Src)),
			LearnMatchValue(IPv4Dst(pfx("10.96.0.10/32"))), LearnMatchValue(TCPDst(80)), LearnMatch(Bits(FieldReg0, 0, 23), Bits(FieldReg0, 8, 31)),
			LearnMatchValue(RegMasked(1, 0x50, 0xff0)),
			LearnLoad(Whole(FieldReg4), Whole(FieldReg4)), LearnLoad(Bits(FieldReg5, 0, 15), Bits(FieldReg6, 16, 31)),
			LearnLoadValue(RegMasked(7, 1<<19, 1<<19)), LearnOutput(Bits(FieldReg2, 0, 15)),
		},
	}
}

// sampleFlows are flows with every field, action and option, none of the
// values being one that ovs-ofctl leaves out.
func sampleFlows() []Flow {
	var flows []Flow
	add := func(f Flow) {
		f.Cookie, f.Table, f.Priority = 0xc000000000000000|uint64(len(flows)), 3, uint16(1000+len(flows))
		flows = append(flows, f)
	}
	for _, m := range matchSamples() {
		add(Flow{Match: m, Actions: []Action{Output(1)}})
	}
	for _, s := range actionSamples() {
		add(Flow{Match: s.m, Actions: s.a})
	}
	everyField(func(id FieldID) {
		if !slices.Contains(readOnly, id) {
			add(Flow{Match: NewMatch(append(beside(id), sampleOf(id))...), Actions: []Action{SetField(sampleOf(id))}})
		}
	})
	add(Flow{Goto: GotoTable(4)})
	add(Flow{Actions: []Action{SetField(Reg(0, 1))}, Goto: GotoTable(254)})
	add(Flow{Meter: 1, Actions: []Action{Output(1)}, Goto: GotoTable(5)})
	add(Flow{Meter: 1})
	add(Flow{IdleTimeout: 3600, HardTimeout: 7200, Importance: 9, Flags: SendFlowRemoved})
	add(Flow{Flags: NoPacketCounts | NoByteCounts})
	return flows
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func dial(t testing.TB, mgmt string, opts ...Option) *Conn {
	t.Helper()
	c, err := Dial(testContext(t), mgmt, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// startBridge starts Open vSwitch with a bridge br0 that has ports 1 to 4,
// group 1 and meter 1.
func startBridge(t testing.TB) (*ovstest.OVS, *Conn) {
	t.Helper()
	o := ovstest.Start(t)
	mgmt := o.AddBridge("br0", "dummy")
	for n := 1; n <= 4; n++ {
		o.AddDummyPort("br0", fmt.Sprintf("p%d", n), n)
	}
	c := dial(t, mgmt)
	ctx := testContext(t)
	if err := c.Commit(ctx, []Mod{AddGroup(GroupEntry{ID: 1, Type: GroupIndirect, Buckets: []Bucket{{Actions: []Action{Output(1)}}}})}); err != nil {
		t.Fatal(err)
	}
	if err := c.AddMeter(ctx, Meter{ID: 1, Flags: MeterKbps, Bands: []Band{{Rate: 1000}}}); err != nil {
		t.Fatal(err)
	}
	return o, c
}

func addAll(flows []Flow) []Mod {
	mods := make([]Mod, len(flows))
	for i, f := range flows {
		mods[i] = AddFlow(f)
	}
	return mods
}

// readFlows reads the flows in the order of their keys.
func readFlows(t testing.TB, c *Conn) []Flow {
	t.Helper()
	stats, err := c.Flows(testContext(t), FlowFilter{})
	if err != nil {
		t.Fatal(err)
	}
	flows := make([]Flow, len(stats))
	for i, s := range stats {
		flows[i] = s.Flow
	}
	return sorted(flows)
}

func sorted(flows []Flow) []Flow {
	flows = slices.Clone(flows)
	slices.SortFunc(flows, func(a, b Flow) int { return strings.Compare(a.Key(), b.Key()) })
	return flows
}

// diffFlows compares by Equal and shows text.
func diffFlows(want, got []Flow) string {
	text := cmp.Transformer("text", func(f Flow) string { return f.String() })
	if slices.EqualFunc(want, got, Flow.Equal) {
		return ""
	}
	if d := cmp.Diff(want, got, text); d != "" {
		return d
	}
	return "flows have the same text and are not Equal"
}

// What is written natively reads back Equal, and ovs-ofctl sees in the switch
// the text that String gives.
func TestFlowsAgainstOpenVSwitch(t *testing.T) {
	o, c := startBridge(t)
	flows := sampleFlows()
	if err := c.Commit(testContext(t), addAll(flows)); err != nil {
		t.Fatal(err)
	}
	if d := diffFlows(sorted(flows), readFlows(t, c)); d != "" {
		t.Errorf("read back (-written +read):\n%s", d)
	}
	if d := cmp.Diff(ownText(flows), dumpText(o, "br0")); d != "" {
		t.Errorf("text (-ours +ovs-ofctl):\n%s", d)
	}
}

// What String gives, add-flows takes, and it is the same flow.
func TestTextAgainstOpenVSwitch(t *testing.T) {
	o, c := startBridge(t)
	flows := sampleFlows()
	file := filepath.Join(t.TempDir(), "flows")
	var text strings.Builder
	for _, f := range flows {
		text.WriteString(f.String() + "\n")
	}
	if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	o.OFCtl("add-flows", "br0", file)
	if d := diffFlows(sorted(flows), readFlows(t, c)); d != "" {
		t.Errorf("read back (-written +read):\n%s", d)
	}
}

// readOnly are the fields that no action can set. What an action may do to a connection's
// mark and label, only ct may.
var readOnly = []FieldID{
	FieldConjID, FieldEthType, FieldIPFrag, FieldIPProto, FieldTCPFlags, FieldCTState, FieldCTZone, FieldCTMark, FieldCTLabel,
	FieldCTNWSrc, FieldCTIPv6Src, FieldCTNWDst, FieldCTIPv6Dst, FieldCTNWProto, FieldCTTPSrc, FieldCTTPDst,
}

// The switch takes a mask where the table of fields says so, and an action to set a field
// where it can be set.
func TestEveryFieldAgainstOpenVSwitch(t *testing.T) {
	_, c := startBridge(t)
	takes := func(f Flow) bool {
		err := c.Commit(testContext(t), []Mod{AddFlow(f)})
		var refused *SwitchError
		if err != nil && !errors.As(err, &refused) {
			t.Fatal(err)
		}
		return err == nil
	}
	everyField(func(id FieldID) {
		whole, part := NewMatch(append(beside(id), sampleOf(id))...), NewMatch(append(beside(id), partOf(id))...)
		if !takes(Flow{Match: whole}) {
			t.Errorf("%s is refused", whole)
		}
		if took, want := takes(Flow{Match: part}), !fieldInfos[id].noMask; took != want {
			t.Errorf("%s is taken: %v, want %v", part, took, want)
		}
		need := NewMatch(append(prerequisites(sampleOf(id), beside(id)), beside(id)...)...)
		if id == FieldVLANVID {
			need = whole
		}
		set := SetField(sampleOf(id))
		if took, want := takes(Flow{Match: need, Actions: []Action{set}}), !slices.Contains(readOnly, id); took != want {
			t.Errorf("%s in a flow of %q is taken: %v, want %v", set, need, took, want)
		}
	})
}

func ownText(flows []Flow) []string {
	lines := make([]string, len(flows))
	for i, f := range flows {
		lines[i] = f.String()
	}
	slices.Sort(lines)
	return lines
}

func dumpText(o *ovstest.OVS, bridge string) []string {
	var lines []string
	for line := range strings.Lines(o.OFCtl("dump-flows", "--no-names", "--no-stats", bridge)) {
		if strings.Contains(line, "actions=") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	slices.Sort(lines)
	return lines
}
