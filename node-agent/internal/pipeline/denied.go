package pipeline

import (
	"net/netip"

	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
)

// The agent is told of packets that policies deny in as many shares, by the lowest bits of the
// address of the pod that a policy is about: each has a meter, so a pod that floods leaves what
// is told of most others as it is.
const (
	deniedShares = 64
	// deniedPerSecond is how many the agent is told of in each share, deniedAtOnce after a pause.
	deniedPerSecond, deniedAtOnce = 20, 40
)

// The numbers of their meters are above those of pods' connections, and below the 200,000 that the
// kernel's datapath has.
const firstDeniedMeter = firstPodMeter + 1<<16

// OfDenied reports whether a meter is one of packets that policies deny: it counts all of them.
func OfDenied(meter uint32) bool { return meter >= firstDeniedMeter }

// tellDenied are the flows by which the agent is told of packets that policies deny, and which
// count them in place of those that drop them. The packets themselves end here all the same.
func (m Model) tellDenied() (flows []of.Flow) {
	if !m.TellsDenied {
		return nil
	}
	for i := range uint32(deniedShares) {
		share, bits := fromNumber(i), fromNumber(deniedShares-1)
		for _, f := range []of.Flow{
			drop(TableDeniedEgress, 100, PolicyEgress, of.IP(), valid, of.CTNWSrcMasked(share, bits), denied),
			drop(TableDeniedIngress, 100, PolicyIngress, of.IP(), valid, of.CTNWDstMasked(share, bits), denied),
		} {
			f.Meter, f.Actions = firstDeniedMeter+i, []of.Action{of.OutputHead(of.PortController)}
			flows = append(flows, f)
		}
	}
	return flows
}

// deniedMeters are those of these flows.
func (m Model) deniedMeters() (meters []of.Meter) {
	if !m.TellsDenied {
		return nil
	}
	for i := range uint32(deniedShares) {
		meters = append(meters, packetMeter(firstDeniedMeter+i, Allowance{deniedPerSecond, deniedAtOnce}))
	}
	return meters
}

// Denied is a packet that policies deny, or the connection that it belongs to.
type Denied struct {
	// Egress says that its sender may not send it; else its receiver may not get it.
	Egress bool
	// Source began the connection, to Destination, with the addresses that it has after
	// translation.
	Source, Destination netip.Addr
	// Protocol is that of IP, Port the destination's, where the protocol has ports.
	Protocol uint8
	Port     uint16
	// SentTo is the service that the source addressed; not valid where it addressed none.
	SentTo netip.AddrPort
}

// Pod is the pod whose policies deny it, Peer the other end.
func (d Denied) Pod() (pod, peer netip.Addr) {
	if d.Egress {
		return d.Source, d.Destination
	}
	return d.Destination, d.Source
}

// ReadDenied reads a packet that policies deny, as the agent was told of it; false where it is
// something else.
func ReadDenied(in of.PacketIn) (d Denied, ok bool) {
	if in.Table != TableDeniedEgress && in.Table != TableDeniedIngress {
		return d, false
	}
	number := func(id of.FieldID) uint64 {
		f, _ := in.Match.Field(id)
		return f.Uint64()
	}
	d = Denied{
		Egress: in.Table == TableDeniedEgress, Source: fromNumber(uint32(number(of.FieldCTNWSrc))), Destination: fromNumber(uint32(number(of.FieldCTNWDst))),
		Protocol: uint8(number(of.FieldCTNWProto)), Port: uint16(number(of.FieldCTTPDst)),
	}
	if sent := number(of.FieldMetadata); sent != 0 {
		d.SentTo = netip.AddrPortFrom(fromNumber(uint32(sent>>16)), uint16(sent))
	}
	return d, true
}
