package pipeline

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/toobig"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
)

// MeterTooLarge is the number of the meter of packets that are too large for their path
// and of no namespace with pods here: above all numbers of ports, which are those of the
// pods' meters.
const MeterTooLarge uint32 = 1 << 16

// tooLargePerSecond is how many of them the agent is given of one namespace, or of the node, and
// as many at once: to tell a sender takes one.
const tooLargePerSecond = 100

// ethernetHeader is its length, bytes, which check_pkt_larger counts.
const ethernetHeader = 14

// output are the flows by which packets leave: the only ones that send anything.
func (m Model) output() []of.Flow {
	toPeer := []of.Action{
		of.Move(regSender.whole(), of.Range(of.FieldTunnelID, 0, 32)),
		of.Move(regTunnelDst.whole(), of.Whole(of.FieldTunnelDst)),
		of.OutputRange(regOutPort.whole()),
	}
	flows := []of.Flow{flow(TableSize, 0, to(TableOutput), nil)}
	for _, n := range m.TunnelPorts {
		flows = append(flows, flow(TableOutput, 50, nil, toPeer, regOutPort.is(n)))
	}
	return append(flows, flow(TableOutput, 0, nil, []of.Action{of.OutputRange(regOutPort.whole())}))
}

// size are the flows that find out whether a packet is larger than its path carries, and
// by which the agent gets those that are. There are none where all paths carry all.
func (m Model) size() []of.Flow {
	if !m.Measures() {
		return nil
	}
	large := tellTooLarge(100)
	large.Meter = MeterTooLarge
	flows := []of.Flow{large}
	for _, mtu := range m.pathMTUs() {
		check := of.CheckPktLarger(mtu+ethernetHeader, regTooLarge.lowest())
		flows = append(flows, flow(TableSize, 100, to(TableOutput), []of.Action{check}, regPathMTU.is(uint32(mtu))))
	}
	return flows
}

// pathMTUs are what paths carry, of those that carry less than the pods' devices.
func (m Model) pathMTUs() []uint16 {
	mtus := map[uint16]bool{}
	for _, p := range m.Peers {
		if p.PathMTU > 0 {
			mtus[p.PathMTU] = true
		}
	}
	return slices.Sorted(maps.Keys(mtus))
}

// tellTooLarge gives the agent a packet that is too large, of the senders that match.
func tellTooLarge(priority uint16, match ...of.Field) of.Flow {
	return flow(TableOutput, priority, nil, []of.Action{of.Output(of.PortController)}, append(match, regTooLarge.isOne())...)
}

// Measures reports whether a path carries less than the pods' devices, so that packets are
// measured.
func (m Model) Measures() bool {
	return slices.ContainsFunc(m.Peers, func(p Peer) bool { return p.PathMTU > 0 })
}

// Meters are those of the node's own flows. The pods' are not the pipeline's to know,
// those of namespaces are [Model.TenantMeters].
func (m Model) Meters() []of.Meter {
	meters := m.deniedMeters()
	if m.Measures() {
		meters = append(meters, packetMeter(MeterTooLarge, Allowance{tooLargePerSecond, tooLargePerSecond}))
	}
	return meters
}

// ReadTooLarge reads a packet that its path does not carry, as the agent was given it,
// and the port where it came from; false where it is something else.
func ReadTooLarge(in of.PacketIn) (p toobig.Packet, port uint32, ok bool) {
	mtu, ok := in.Match.Field(regPathMTU.field())
	from, hasPort := in.Match.Field(of.FieldInPort)
	if in.Table != TableOutput || !ok || !hasPort {
		return p, 0, false
	}
	p = toobig.Packet{Frame: in.Data, MTU: uint16(mtu.Uint64())}
	if sent, judged := in.Match.Field(of.FieldMetadata); judged && sent.Uint64() != 0 {
		n := sent.Uint64()
		p.SentTo = netip.AddrPortFrom(fromNumber(uint32(n>>16)), uint16(n))
		return p, uint32(from.Uint64()), true
	}
	state, _ := in.Match.Field(of.FieldCTState)
	if s := uint32(state.Uint64()); s&of.CTDNAT != 0 && s&of.CTReply == 0 {
		vip, _ := in.Match.Field(of.FieldCTNWDst)
		vport, _ := in.Match.Field(of.FieldCTTPDst)
		if a, ok := netip.AddrFromSlice(vip.Value()); ok {
			p.SentTo = netip.AddrPortFrom(a, uint16(vport.Uint64()))
		}
	}
	return p, uint32(from.Uint64()), true
}
