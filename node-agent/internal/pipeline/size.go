package pipeline

import (
	"net/netip"
	"slices"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/toobig"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
)

// Registers of packets to a peer whose path carries less than the pods' devices.
const (
	regPathMTU  = 4  // what it carries
	regTooLarge = 10 // 1 for a packet that is larger
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

// measure finds out whether a packet is larger than mtu.
func measure(mtu uint16) []of.Action {
	return []of.Action{set(regPathMTU, uint32(mtu)), of.CheckPktLarger(mtu+ethernetHeader, of.Bits(of.FieldReg(regTooLarge), 0, 0))}
}

// size are the flows by which the agent gets packets that are too large for the path
// to their peer, and the others go out. There are none where all paths carry all.
func (m Model) size() []of.Flow {
	if !m.measures() {
		return nil
	}
	large := tellTooLarge(100)
	large.Meter = MeterTooLarge
	return []of.Flow{large, flow(TableSize, 0, nil, []of.Action{of.Output(m.TunnelPort)})}
}

// tellTooLarge gives the agent a packet that is too large, of the senders that match.
func tellTooLarge(priority uint16, match ...of.Field) of.Flow {
	return flow(TableSize, priority, nil, []of.Action{of.Output(of.PortController)}, append(match, of.RegMasked(regTooLarge, 1, 1))...)
}

// measures reports whether a path carries less than the pods' devices.
func (m Model) measures() bool {
	return slices.ContainsFunc(m.Peers, func(p Peer) bool { return p.PathMTU > 0 })
}

// Meters are those of the flows for peers. The pods' are not the pipeline's to know,
// those of namespaces are [Model.TenantMeters].
func (m Model) Meters() []of.Meter {
	if !m.measures() {
		return nil
	}
	return []of.Meter{packetMeter(MeterTooLarge, Allowance{tooLargePerSecond, tooLargePerSecond})}
}

// ReadTooLarge reads a packet that its path does not carry, as the agent was given it,
// and the port where it came from; false where it is something else.
func ReadTooLarge(in of.PacketIn) (p toobig.Packet, port uint32, ok bool) {
	mtu, ok := in.Match.Field(of.FieldReg(regPathMTU))
	from, hasPort := in.Match.Field(of.FieldInPort)
	if in.Table != TableSize || !ok || !hasPort {
		return p, 0, false
	}
	p = toobig.Packet{Frame: in.Data, MTU: uint16(mtu.Uint64())}
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
