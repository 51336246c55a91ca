package openflow

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Random flows that Open vSwitch accepts: fields that go together, any masks.

func rndMAC(r *rand.Rand) net.HardwareAddr {
	b := binary.BigEndian.AppendUint64(nil, r.Uint64())
	return b[:6]
}

func rndPrefix4(r *rand.Rand) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, r.Uint32()))), r.IntN(33))
}

func rndPrefix6(r *rand.Rand) netip.Prefix {
	b := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, r.Uint64()), r.Uint64())
	b[0] = 0xfd // ::ffff:0:0/96 and the like have texts of their own
	return netip.PrefixFrom(netip.AddrFrom16([16]byte(b)), r.IntN(129))
}

// rndMask is often all ones, sometimes none, and otherwise anything.
func rndMask(r *rand.Rand) uint64 {
	switch r.IntN(4) {
	case 0, 1:
		return ^uint64(0)
	case 2:
		return r.Uint64() & r.Uint64()
	}
	return r.Uint64()
}

// rndBits128 are bits of an IPv6 address that is no other kind of address.
func rndBits128(r *rand.Rand, id FieldID) Field {
	f := prefixField(id, rndPrefix6(r))
	if r.IntN(2) == 0 {
		mask := slices.Concat([]byte{0xff}, rndMAC(r), rndMAC(r), rndMAC(r)[:3])
		f = newField(id, f.Value(), mask)
	}
	return f
}

// rndConnection are the state of a connection, or fields of its original direction.
func rndConnection(r *rand.Rand, f []Field, src, dst Field) []Field {
	if r.IntN(3) != 0 {
		return maybe(r, f, CTState(r.Uint32()&0xcf|CTTracked, r.Uint32()&0xcf|CTTracked))
	}
	f = maybe(r, append(f, CTNWProto(uint8(1+r.IntN(255)))), src, dst, rndBits(r, FieldCTTPSrc), rndBits(r, FieldCTTPDst))
	if r.IntN(2) == 0 {
		f = append(f, CTState(CTTracked|CTReply, CTTracked|CTReply|CTNew))
	}
	return f
}

// rndND are fields of neighbour discovery.
func rndND(r *rand.Rand) []Field {
	link := []Field{EthSrcMasked(rndMAC(r), rndMAC(r)), EthDst(rndMAC(r))}[r.IntN(2)]
	kind := []FieldID{FieldNDSLL, FieldNDTLL}[r.IntN(2)]
	return maybe(r, []Field{newField(kind, link.Value(), link.Mask())}, rndBits128(r, FieldNDTarget),
		uintField(FieldNDReserved, r.Uint64()), uintField(FieldNDOptionsType, r.Uint64()))
}

func rndBits(r *rand.Rand, id FieldID) Field { return uintFieldMasked(id, r.Uint64(), rndMask(r)) }

func maybe(r *rand.Rand, to []Field, f ...Field) []Field {
	for _, x := range f {
		if r.IntN(2) == 0 {
			to = append(to, x)
		}
	}
	return to
}

func rndMatch(r *rand.Rand) Match {
	var f []Field
	f = maybe(r, f, InPort(uint32(1+r.IntN(4))), rndBits(r, FieldReg(r.IntN(8))), rndBits(r, FieldReg(8+r.IntN(8))),
		rndBits(r, FieldTunnelID), rndBits(r, FieldMetadata), rndBits(r, FieldPktMark), rndBits(r, FieldCTMark), CTZone(uint16(r.Uint32())),
		EthDst(rndMAC(r)), EthSrcMasked(rndMAC(r), rndMAC(r)), CTLabel(r.Uint64(), r.Uint64(), rndMask(r), rndMask(r)),
		rndBits(r, FieldTunnelSrc), rndBits(r, FieldTunnelDst), rndBits128(r, FieldTunnelIPv6Src), rndBits128(r, FieldTunnelIPv6Dst), ConjID(r.Uint32()))
	switch r.IntN(5) {
	case 0:
		f = append(f, ARP())
		f = maybe(r, f, ARPOp(uint16(r.IntN(256))), ARPSPA(rndPrefix4(r)), rndBits(r, FieldARPTPA), ARPSHA(rndMAC(r)), ARPTHA(rndMAC(r)))
	case 1, 2:
		f = append(f, IP())
		f = maybe(r, f, IPv4Src(rndPrefix4(r)), rndBits(r, FieldIPv4Dst))
		f = rndConnection(r, f, prefixField(FieldCTNWSrc, rndPrefix4(r)), rndBits(r, FieldCTNWDst))
		f = rndTransport(r, f, ICMPType(uint8(r.Uint32())), ICMPCode(uint8(r.Uint32())))
	case 3:
		f = append(f, IPv6())
		f = maybe(r, f, rndBits128(r, FieldIPv6Src), rndBits128(r, FieldIPv6Dst), rndBits(r, FieldIPv6Label))
		f = rndConnection(r, f, rndBits128(r, FieldCTIPv6Src), rndBits128(r, FieldCTIPv6Dst))
		if r.IntN(4) == 0 {
			return NewMatch(append(f, rndND(r)...)...)
		}
		f = rndTransport(r, f, ICMPv6Type(uint8(r.IntN(128))), ICMPv6Code(uint8(r.Uint32())))
	}
	return NewMatch(f...)
}

func rndTransport(r *rand.Rand, f []Field, icmp ...Field) []Field {
	f = maybe(r, f, IPTTL(uint8(r.Uint32())), IPDSCP(uint8(r.IntN(64))), IPECN(uint8(r.IntN(4))))
	// Not with a layer 4 header's fields, which a later fragment does not have.
	frag := IPFrag(Frag(r.IntN(len(fragBits))))
	switch r.IntN(5) {
	case 0:
		return append(f, maybe(r, []Field{IPProto(ProtoTCP)}, rndBits(r, FieldTCPSrc), rndBits(r, FieldTCPDst), rndBits(r, FieldTCPFlags))...)
	case 1:
		return append(f, maybe(r, []Field{IPProto(ProtoUDP)}, rndBits(r, FieldUDPSrc), rndBits(r, FieldUDPDst))...)
	case 2:
		return append(f, maybe(r, []Field{IPProto(ProtoSCTP)}, rndBits(r, FieldSCTPSrc), rndBits(r, FieldSCTPDst))...)
	case 3:
		return append(f, maybe(r, nil, icmp...)...)
	}
	return append(f, IPProto(uint8(140+r.IntN(100))), frag)
}

// rndRange is some bits of a field that can be written.
func rndRange(r *rand.Rand, n int) FieldRange {
	ids := []FieldID{FieldEthSrc, FieldEthDst, FieldTunnelID, FieldTunnelDst, FieldPktMark, FieldMetadata, FieldReg(r.IntN(16)), FieldReg(r.IntN(16))}
	for {
		id := ids[r.IntN(len(ids))]
		if id.Bits() >= n {
			return Range(id, r.IntN(id.Bits()-n+1), n)
		}
	}
}

func rndAction(r *rand.Rand) Action {
	n := 1 + r.IntN(64)
	table := uint8(r.IntN(254))
	switch r.IntN(16) {
	case 0:
		return Output(uint32(1 + r.IntN(4)))
	case 1:
		return Move(rndRange(r, n), rndRange(r, n))
	case 2:
		return Load(rndRange(r, n), r.Uint64())
	case 3:
		return SetField(Reg(r.IntN(16), r.Uint32()))
	case 4:
		low, width := r.IntN(32), 1+r.IntN(32)
		return SetField(RegMasked(r.IntN(16), r.Uint32(), uint32((1<<width-1)<<low|1<<low)))
	case 5:
		return SetField(EthDst(rndMAC(r)))
	case 6:
		return SetField(TunnelID(r.Uint64()))
	case 7:
		return Resubmit(table)
	case 8:
		return ResubmitPort(uint32(1+r.IntN(4)), table)
	case 9:
		return Group(1)
	case 10:
		return Note(rndMAC(r)[:r.IntN(6)])
	case 11:
		return CheckPktLarger(uint16(r.Uint32()), rndRange(r, 1))
	case 12:
		return CTClear()
	case 13:
		return rndLearn(r)
	case 14:
		return SetQueue(r.Uint32())
	}
	return OutputRange(Range(FieldReg(r.IntN(16)), r.IntN(16), 16))
}

func rndLearn(r *rand.Rand) Action {
	s := LearnSpec{
		Table: uint8(r.IntN(254)), Priority: uint16(r.Uint32()), Cookie: r.Uint64() * r.Uint64N(2), Flags: LearnFlags(r.IntN(4)),
		IdleTimeout: uint16(r.IntN(2)), HardTimeout: uint16(r.IntN(3)), FinIdleTimeout: uint16(r.IntN(2)), FinHardTimeout: uint16(r.IntN(2)),
	}
	for range r.IntN(8) {
		n, low, width := 1+r.IntN(64), r.IntN(32), 1+r.IntN(32)
		some := RegMasked(r.IntN(16), r.Uint32(), uint32((1<<width-1)<<low|1<<low))
		s.Parts = append(s.Parts, []LearnPart{
			LearnMatch(rndRange(r, n), rndRange(r, n)), LearnLoad(rndRange(r, n), rndRange(r, n)), LearnMatchValue(some), LearnLoadValue(some),
			LearnMatchValue(EthDst(rndMAC(r))), LearnLoadValue(EthSrc(rndMAC(r))), LearnOutput(rndRange(r, 1+r.IntN(32))),
		}[r.IntN(7)])
	}
	return Learn(s)
}

// rndCT needs a flow for IP packets.
func rndCT(r *rand.Rand) Action {
	s := CTSpec{Zone: uint16(r.Uint32()), Commit: r.IntN(2) == 0}
	if r.IntN(2) == 0 {
		s.Table = GotoTable(uint8(r.IntN(254)))
	}
	if r.IntN(4) == 0 {
		s.Zone, s.ZoneFrom = 0, Range(FieldReg(r.IntN(16)), r.IntN(17), 16)
	}
	if !s.Commit {
		return CT(s)
	}
	s.Force = r.IntN(2) == 0
	if r.IntN(2) == 0 {
		a := netip.AddrFrom4([4]byte{10, byte(r.Uint32()), byte(r.Uint32()), byte(1 + r.IntN(200))})
		s.NAT = &NATSpec{SNAT: true, AddrMin: a, Random: r.IntN(2) == 0, Persistent: r.IntN(2) == 0}
		if r.IntN(2) == 0 {
			s.NAT.AddrMax = a.Next()
		}
		if r.IntN(2) == 0 {
			s.NAT.PortMin = uint16(1 + r.IntN(1000))
			s.NAT.PortMax = s.NAT.PortMin + uint16(r.IntN(3))
		}
	}
	if r.IntN(2) == 0 {
		s.Actions = []Action{SetField(CTMark(r.Uint32(), ^uint32(0))), Load(Range(FieldCTLabel, r.IntN(64), 20), r.Uint64())}
	}
	return CT(s)
}

func rndFlow(r *rand.Rand) Flow {
	f := Flow{
		Table: uint8(1 + r.IntN(200)), Priority: uint16(r.IntN(30000)), Cookie: 1 + r.Uint64()>>r.IntN(63), Match: rndMatch(r),
		IdleTimeout: 1000 * uint16(r.IntN(2)), HardTimeout: 1000 * uint16(r.IntN(2)), Importance: uint16(r.IntN(2) * r.IntN(100)),
		Flags: FlowFlags(r.Uint32()) & keptFlags,
	}
	for range r.IntN(6) {
		f.Actions = append(f.Actions, rndAction(r))
	}
	if t, ok := f.Match.Field(FieldEthType); ok && t.Uint64() == uint64(EtherTypeIPv4) && r.IntN(2) == 0 {
		f.Actions = append(f.Actions, rndCT(r))
	}
	if r.IntN(3) == 0 {
		f.Goto = GotoTable(f.Table + 1 + uint8(r.IntN(50)))
	}
	return f
}

// appendFlowStats writes an ofp_flow_stats as a switch does.
func appendFlowStats(b []byte, f Flow) []byte {
	start := len(b)
	b = append(b, 0, 0, f.Table, 0)
	b = append(b, make([]byte, 8)...)
	for _, v := range []uint16{f.Priority, f.IdleTimeout, f.HardTimeout, uint16(f.Flags), f.Importance, 0} {
		b = binary.BigEndian.AppendUint16(b, v)
	}
	b = binary.BigEndian.AppendUint64(b, f.Cookie)
	b = append(b, make([]byte, 16)...)
	b = appendInstructions(appendMatch(b, f.Match), f)
	binary.BigEndian.PutUint16(b[start:], uint16(len(b)-start))
	return b
}

// What is encoded decodes to the same, in both messages that have flows, and
// encodes to the same bytes again.
func TestRandomFlowsRoundTrip(t *testing.T) {
	for seed := range uint64(5000) {
		f := rndFlow(rand.New(rand.NewPCG(seed, 1)))
		wire := appendFlowMod(nil, 7, flowAdd, f, 3)
		h, err := decodeHeader(wire)
		if err != nil || h != (header{version, msgFlowMod, len(wire), 7}) || len(wire)%8 != 0 {
			t.Fatalf("seed %d: header %+v, %v", seed, h, err)
		}
		got, cmd, mask, err := decodeFlowMod(wire[headerSize:])
		if err != nil || cmd != flowAdd || mask != 3 || !got.Equal(f) || got.Key() != f.Key() {
			t.Fatalf("seed %d: %v: flow mod\n%v, want\n%v", seed, err, got, f)
		}
		if again := appendFlowMod(nil, 7, flowAdd, got, 3); !bytes.Equal(wire, again) {
			t.Fatalf("seed %d: %s: bytes\n%x, want\n%x", seed, f, again, wire)
		}
		stats, err := decodeFlowStats(appendFlowStats(appendFlowStats(nil, f), f), nil)
		if err != nil || len(stats) != 2 || !stats[0].Equal(f) || !stats[1].Equal(f) {
			t.Fatalf("seed %d: %v: stats\n%v, want twice\n%v", seed, err, stats, f)
		}
		if other := NewMatch(shuffled(f.Match.Fields(), seed)...); other != f.Match {
			t.Fatalf("seed %d: the order of fields changes %s to %s", seed, f.Match, other)
		}
	}
}

func shuffled(f []Field, seed uint64) []Field {
	rand.New(rand.NewPCG(seed, 2)).Shuffle(len(f), func(i, j int) { f[i], f[j] = f[j], f[i] })
	return f
}

// The same flows read back Equal from Open vSwitch, and with the same text.
func TestRandomFlowsAgainstOpenVSwitch(t *testing.T) {
	o, c := startBridge(t)
	byKey := map[string]Flow{}
	for seed := range uint64(1500) {
		f := rndFlow(rand.New(rand.NewPCG(seed, 1)))
		byKey[f.Key()] = f
	}
	var flows []Flow
	for _, f := range byKey {
		flows = append(flows, f)
	}
	flows = sorted(flows)
	for part := range slices.Chunk(flows, 100) {
		if err := c.Commit(testContext(t), addAll(part)); err != nil {
			t.Fatal(err)
		}
	}
	if d := diffFlows(flows, readFlows(t, c)); d != "" {
		t.Errorf("read back (-written +read):\n%.3000s", d)
	}
	if d := cmp.Diff(ownText(flows), dumpText(o, "br0")); d != "" {
		t.Errorf("text (-ours +ovs-ofctl):\n%.3000s", d)
	}
	if got := fmt.Sprint(len(readFlows(t, c))); got != fmt.Sprint(len(flows)) {
		t.Errorf("%s flows, want %d", got, len(flows))
	}
}
