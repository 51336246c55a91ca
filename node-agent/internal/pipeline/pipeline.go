// Package pipeline says which OpenFlow flows make a node's bridge what it
// should be. PIPELINE.md beside this file describes the tables.
//
// It is pure: a model goes in, flows come out.
package pipeline

import (
	"net/netip"

	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// Version is the generation that stands in every cookie. It grows with every
// change of the flows; the golden test fails where it does not.
const Version = 1

// The tables.
const (
	TableSource  uint8 = 0
	TableARP     uint8 = 10
	TableRoute   uint8 = 20
	TableDeliver uint8 = 40
	TableHost    uint8 = 50
	// TableNudge is reached by no packet.
	TableNudge uint8 = 250
)

// Model is what the flows follow from.
type Model struct {
	// Network is the cluster network.
	Network netip.Prefix
	// Subnet is this node's part of it, Gateway the address of tun0.
	Subnet  netip.Prefix
	Gateway netip.Addr
	// TunnelPort and GatewayPort are the port numbers of vxlan0 and tun0.
	TunnelPort, GatewayPort uint32
	// VXLANPort is the UDP port of the tunnels.
	VXLANPort uint16
	Peers     []Peer
	Pods      []Pod
}

// Peer is another node.
type Peer struct {
	VTEP   netip.Addr
	Subnet netip.Prefix
}

// Pod is a local pod.
type Pod struct {
	Address netip.Addr
	Port    uint32
	// NetID is the tenant's; it says nothing while Known is false.
	NetID netid.ID
	Known bool
}

// Flows are all flows of the node.
func (m Model) Flows() []of.Flow {
	flows := m.Fixed()
	for _, p := range m.Peers {
		flows = append(flows, m.Peer(p)...)
	}
	for _, p := range m.Pods {
		flows = append(flows, m.Pod(p)...)
	}
	return flows
}

// Fixed are the flows that every node has.
func (m Model) Fixed() []of.Flow {
	tun0 := m.GatewayPort
	anyIP := of.IP()
	flows := []of.Flow{
		// Source: the tunnel and the host.
		drop(TableSource, 90, UnknownPeer, 0, of.InPort(m.TunnelPort)),
		flow(TableSource, 100, to(TableARP), nil, of.ARP(), of.InPort(tun0), of.ARPOp(arpRequest)),
		flow(TableSource, 90, to(TableRoute), sender(netid.Global), anyIP, of.InPort(tun0), of.IPv4Src(host(m.Gateway))),
		drop(TableSource, 80, HostForged, 0, anyIP, of.InPort(tun0), of.IPv4Src(m.Network)),
		flow(TableSource, 70, to(TableRoute), sender(netid.Global), anyIP, of.InPort(tun0)),
		drop(TableSource, 10, IPv6, 0, of.IPv6()),
		drop(TableSource, 0, Forged, 0),

		m.answerARP(m.Network),
		m.answerARP(host(topology.NextHop)),
		drop(TableARP, 0, ARP, 0),

		flow(TableRoute, 200, to(TableDeliver), nil, anyIP, of.IPv4Dst(m.Subnet)),
		drop(TableRoute, 150, NoNode, 0, anyIP, of.IPv4Dst(m.Network)),
		drop(TableRoute, 140, Multicast, 0, anyIP, of.IPv4Dst(netip.MustParsePrefix("224.0.0.0/4"))),
		drop(TableRoute, 140, Multicast, 0, anyIP, of.IPv4Dst(netip.MustParsePrefix("255.255.255.255/32"))),
		drop(TableRoute, 130, HostReturn, 0, anyIP, of.InPort(tun0)),
		flow(TableRoute, 100, to(TableHost), nil, anyIP),

		flow(TableDeliver, 200, to(TableHost), nil, anyIP, of.IPv4Dst(host(m.Gateway))),
		drop(TableDeliver, 0, NoPod, 0),

		drop(TableHost, 100, VXLANToHost, 0, anyIP, of.UDPDst(m.VXLANPort)),
		flow(TableHost, 0, nil, []of.Action{of.SetField(of.EthDst(topology.MAC(m.Gateway))), of.Output(tun0)}),
	}
	return flows
}

// answerARP answers every request for an address in p from that address, so
// it needs no knowledge of who has it and tells nothing about it.
func (m Model) answerARP(p netip.Prefix) of.Flow {
	scratch := of.Whole(of.FieldReg1)
	actions := []of.Action{
		of.Move(of.Whole(of.FieldEthSrc), of.Whole(of.FieldEthDst)),
		of.SetField(of.EthSrc([]byte{0x0a, 0x58, 0, 0, 0, 0})),
		of.Move(of.Whole(of.FieldARPTPA), of.Range(of.FieldEthSrc, 0, 32)),
		of.SetField(of.ARPOp(arpReply)),
		of.Move(of.Whole(of.FieldARPSHA), of.Whole(of.FieldARPTHA)),
		of.Move(of.Whole(of.FieldEthSrc), of.Whole(of.FieldARPSHA)),
		of.Move(of.Whole(of.FieldARPTPA), scratch),
		of.Move(of.Whole(of.FieldARPSPA), of.Whole(of.FieldARPTPA)),
		of.Move(scratch, of.Whole(of.FieldARPSPA)),
		of.Output(of.PortInPort),
	}
	return flow(TableARP, 100, nil, actions, of.ARP(), of.ARPOp(arpRequest), of.ARPTPA(p))
}

// Peer are the flows for one other node.
func (m Model) Peer(p Peer) []of.Flow {
	cookie := Cookie{Kind: KindPeer, Object: object(p.Subnet.Addr())}
	in := flow(TableSource, 100, to(TableDeliver),
		[]of.Action{of.Move(of.Range(of.FieldTunnelID, 0, 32), of.Whole(of.FieldReg0))},
		of.IP(), of.InPort(m.TunnelPort), of.TunnelSrc(p.VTEP), of.IPv4Src(p.Subnet))
	out := flow(TableRoute, 200, nil,
		[]of.Action{
			of.Move(of.Whole(of.FieldReg0), of.Range(of.FieldTunnelID, 0, 32)),
			of.SetField(of.TunnelDst(p.VTEP)),
			of.Output(m.TunnelPort),
		},
		of.IP(), of.IPv4Dst(p.Subnet))
	in.Cookie, out.Cookie = cookie.Encode(), cookie.Encode()
	return []of.Flow{in, out}
}

// Pod are the flows for one local pod.
func (m Model) Pod(p Pod) []of.Flow {
	cookie := Cookie{Kind: KindPod, Object: object(p.Address)}
	if !p.Known {
		return []of.Flow{drop(TableSource, 50, NoTenant, cookie.Object, of.InPort(p.Port))}
	}
	mac, addr := topology.MAC(p.Address), host(p.Address)
	deliver := []of.Action{of.SetField(of.EthDst(mac)), of.Output(p.Port)}
	flows := []of.Flow{
		flow(TableSource, 100, to(TableRoute), sender(p.NetID), of.IP(), of.Untagged(), of.InPort(p.Port), of.EthSrc(mac), of.IPv4Src(addr)),
		flow(TableSource, 100, to(TableARP), nil, of.ARP(), of.Untagged(), of.InPort(p.Port), of.EthSrc(mac), of.ARPOp(arpRequest), of.ARPSPA(addr), of.ARPSHA(mac)),
	}
	if p.NetID.IsGlobal() {
		flows = append(flows, flow(TableDeliver, 100, nil, deliver, of.IP(), of.IPv4Dst(addr)))
	} else {
		flows = append(flows,
			flow(TableDeliver, 100, nil, deliver, of.IP(), of.IPv4Dst(addr), of.Reg(0, uint32(p.NetID))),
			flow(TableDeliver, 100, nil, deliver, of.IP(), of.IPv4Dst(addr), of.Reg(0, uint32(netid.Global))))
	}
	for i := range flows {
		flows[i].Cookie = cookie.Encode()
	}
	if !p.NetID.IsGlobal() {
		flows = append(flows, drop(TableDeliver, 50, OtherTenant, cookie.Object, of.IP(), of.IPv4Dst(addr)))
	}
	return flows
}

// Nudge is a flow for which nothing changes: no packet comes to its table.
func Nudge() of.Flow {
	return flow(TableNudge, 1, nil, nil)
}

// ARP operations (RFC 826).
const (
	arpRequest uint16 = 1
	arpReply   uint16 = 2
)

// flow is a fixed flow; the caller replaces the cookie where it is another kind.
func flow(table uint8, priority uint16, next *uint8, actions []of.Action, match ...of.Field) of.Flow {
	return of.Flow{
		Table: table, Priority: priority, Cookie: Cookie{Kind: KindFixed}.Encode(),
		Match: of.NewMatch(match...), Actions: actions, Goto: next,
	}
}

// drop is a flow that ends a packet's way and counts it under reason.
func drop(table uint8, priority uint16, reason Reason, obj uint32, match ...of.Field) of.Flow {
	f := flow(table, priority, nil, nil, match...)
	kind := KindFixed
	if obj != 0 {
		kind = KindPod
	}
	f.Cookie = Cookie{Kind: kind, Reason: reason, Object: obj}.Encode()
	return f
}

// sender sets the netID that the packet carries from here on.
func sender(id netid.ID) []of.Action {
	return []of.Action{of.SetField(of.Reg(0, uint32(id)))}
}

func to(table uint8) *uint8 { return of.GotoTable(table) }

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
