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
	TableTenant  uint8 = 5
	TableARP     uint8 = 10
	TableRoute   uint8 = 20
	TableDeliver uint8 = 40
	TableAdmit   uint8 = 45
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
	Tenants   []Tenant
	Pods      []Pod
}

// Peer is another node.
type Peer struct {
	VTEP   netip.Addr
	Subnet netip.Prefix
}

// Tenant is a namespace with pods on this node.
type Tenant struct {
	// Slot is its number on this node, which its pods' flows have, so that they
	// need not change with its netID.
	Slot uint32
	// NetID says nothing while Known is false.
	NetID netid.ID
	Known bool
}

// Pod is a local pod.
type Pod struct {
	Address netip.Addr
	Port    uint32
	// Slot is that of its tenant.
	Slot uint32
}

// Flows are all flows of the node.
func (m Model) Flows() []of.Flow {
	flows := m.Fixed()
	for _, p := range m.Peers {
		flows = append(flows, m.Peer(p)...)
	}
	for _, t := range m.Tenants {
		flows = append(flows, m.Tenant(t)...)
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
		drop(TableSource, 90, UnknownPeer, of.InPort(m.TunnelPort)),
		flow(TableSource, 100, to(TableARP), nil, of.ARP(), of.InPort(tun0), of.ARPOp(arpRequest)),
		flow(TableSource, 90, to(TableRoute), sender(netid.Global), anyIP, of.InPort(tun0), of.IPv4Src(host(m.Gateway))),
		drop(TableSource, 80, HostForged, anyIP, of.InPort(tun0), of.IPv4Src(m.Network)),
		flow(TableSource, 70, to(TableRoute), sender(netid.Global), anyIP, of.InPort(tun0)),
		drop(TableSource, 10, IPv6, of.IPv6()),
		drop(TableSource, 0, Forged),

		drop(TableTenant, 0, NoTenant),

		m.answerARP(m.Network),
		m.answerARP(host(topology.NextHop)),
		drop(TableARP, 0, ARP),

		flow(TableRoute, 200, to(TableDeliver), nil, anyIP, of.IPv4Dst(m.Subnet)),
		drop(TableRoute, 150, NoNode, anyIP, of.IPv4Dst(m.Network)),
		drop(TableRoute, 140, Multicast, anyIP, of.IPv4Dst(netip.MustParsePrefix("224.0.0.0/4"))),
		drop(TableRoute, 140, Multicast, anyIP, of.IPv4Dst(netip.MustParsePrefix("255.255.255.255/32"))),
		drop(TableRoute, 130, HostReturn, anyIP, of.InPort(tun0)),
		flow(TableRoute, 100, to(TableHost), nil, anyIP),

		flow(TableDeliver, 200, to(TableHost), nil, anyIP, of.IPv4Dst(host(m.Gateway))),
		drop(TableDeliver, 0, NoPod),

		drop(TableAdmit, 0, OtherTenant),

		drop(TableHost, 100, VXLANToHost, anyIP, of.UDPDst(m.VXLANPort)),
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

// Tenant are the flows for one namespace with pods here: all that changes when
// it joins, is isolated or becomes global. One whose netID is not known sends and
// receives nothing.
func (m Model) Tenant(t Tenant) []of.Flow {
	slot := of.Reg(1, t.Slot)
	denied := drop(TableAdmit, 50, OtherTenant, slot)
	if !t.Known {
		denied.Cookie = Cookie{Kind: KindTenant, Reason: NoTenant, Object: t.Slot}.Encode()
		return []of.Flow{denied}
	}
	out := []of.Action{of.OutputRange(of.Whole(of.FieldReg2))}
	flows := []of.Flow{flow(TableTenant, 100, to(TableRoute), sender(t.NetID), slot)}
	if t.NetID.IsGlobal() {
		flows = append(flows, flow(TableAdmit, 100, nil, out, slot))
	} else {
		flows = append(flows,
			flow(TableAdmit, 100, nil, out, slot, of.Reg(0, uint32(t.NetID))),
			flow(TableAdmit, 100, nil, out, slot, of.Reg(0, uint32(netid.Global))))
	}
	for i := range flows {
		flows[i].Cookie = Cookie{Kind: KindTenant, Object: t.Slot}.Encode()
	}
	if !t.NetID.IsGlobal() {
		denied.Cookie = Cookie{Kind: KindTenant, Reason: OtherTenant, Object: t.Slot}.Encode()
		flows = append(flows, denied)
	}
	return flows
}

// Pod are the flows for one local pod. They say nothing of its netID.
func (m Model) Pod(p Pod) []of.Flow {
	mac, addr := topology.MAC(p.Address), host(p.Address)
	slot := of.SetField(of.Reg(1, p.Slot))
	flows := []of.Flow{
		flow(TableSource, 100, to(TableTenant), []of.Action{slot}, of.IP(), of.Untagged(), of.InPort(p.Port), of.EthSrc(mac), of.IPv4Src(addr)),
		flow(TableSource, 100, to(TableARP), nil, of.ARP(), of.Untagged(), of.InPort(p.Port), of.EthSrc(mac), of.ARPOp(arpRequest), of.ARPSPA(addr), of.ARPSHA(mac)),
		flow(TableDeliver, 100, to(TableAdmit), []of.Action{slot, of.SetField(of.Reg(2, p.Port)), of.SetField(of.EthDst(mac))}, of.IP(), of.IPv4Dst(addr)),
	}
	for i := range flows {
		flows[i].Cookie = Cookie{Kind: KindPod, Object: object(p.Address)}.Encode()
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

// drop is a fixed flow that ends a packet's way and counts it under reason.
func drop(table uint8, priority uint16, reason Reason, match ...of.Field) of.Flow {
	f := flow(table, priority, nil, nil, match...)
	f.Cookie = Cookie{Kind: KindFixed, Reason: reason}.Encode()
	return f
}

// sender sets the netID that the packet carries from here on.
func sender(id netid.ID) []of.Action {
	return []of.Action{of.SetField(of.Reg(0, uint32(id)))}
}

func to(table uint8) *uint8 { return of.GotoTable(table) }

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
