// Package pipeline says which OpenFlow flows make a node's bridge what it
// should be. PIPELINE.md beside this file describes the tables.
//
// It is pure: a model goes in, flows come out.
package pipeline

import (
	"net"
	"net/netip"
	"slices"

	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
)

// Version is the generation that stands in every cookie. It grows with every
// change of the flows; the golden test fails where it does not.
const Version = 11

// Model is what the flows follow from.
type Model struct {
	// Nets are what the node has of each family: of IPv4, or of IPv4 and then of IPv6.
	Nets []Net
	// TunnelPorts are the port numbers of the tunnels, GatewayPort that of tun0.
	TunnelPorts []uint32
	GatewayPort uint32
	// Host is the node's own address, by which pods know it beside the gateway. IPv4.
	Host netip.Addr
	// UDPPorts are those that nodes take tunnel packets at.
	UDPPorts     []tunnel.Port
	ServiceProxy ServiceProxy
	// TellsDenied says that the agent is told of packets that policies deny.
	TellsDenied bool

	Peers   []Peer
	Tenants []Tenant
	Pods    []Pod
}

// Net is what a node has of one family of addresses.
type Net struct {
	// Cluster is the cluster network.
	Cluster netip.Prefix
	// Subnet is this node's part of it, Gateway the address of tun0.
	Subnet  netip.Prefix
	Gateway netip.Addr
	// Services has the addresses of services. It counts unless ServiceProxy is NoServices.
	Services netip.Prefix
}

// Of is what the node has of the family of a; nothing where it has none.
func (m Model) Of(a netip.Addr) Net {
	for _, n := range m.Nets {
		if n.Gateway.BitLen() == a.BitLen() {
			return n
		}
	}
	return Net{}
}

// ipv4 is what the node has of IPv4: the tables have flows of no other family.
func (m Model) ipv4() Net { return m.Of(netip.IPv4Unspecified()) }

// Peer is the other end of a tunnel: another node, or a machine that is none. One that is
// behind two tunnel ports is two.
type Peer struct {
	// Port is the number of the tunnel port that it is behind. What comes from VTEP by
	// another is no packet of this peer's.
	Port uint32
	// VTEP is its address in the underlay. IPv4.
	VTEP netip.Addr
	// Prefixes have the addresses that are behind it. Those of two peers do not overlap.
	Prefixes []netip.Prefix
	// NetIDs are those that it may bring.
	NetIDs NetIDs
	// PathMTU is what the path to it carries of a pod's packet, bytes, where that is
	// less than a pod's device; else 0.
	PathMTU uint16
}

// NetIDs are netIDs that a peer may bring. The zero value is none.
type NetIDs struct {
	// All is for nodes, which check their pods themselves: they bring whatever there is, the
	// global netID too.
	All bool
	// List counts where All is false. The global netID is one like any other.
	List []netid.ID
}

// Tenant is a namespace with pods on this node, or with services.
type Tenant struct {
	// Slot is its number on this node, which its pods' flows have, so that they
	// need not change with its netID.
	Slot uint32
	// NetID says nothing while Known is false.
	NetID netid.ID
	Known bool
	// Other is a netID that it takes beside NetID, where Both is true: it is changing from one
	// to the other.
	Other netid.ID
	Both  bool
	// Serves says that it has services.
	Serves bool
	// Meters are those of what its pods here may; none where it has no pods here.
	Meters TenantMeters
}

// Pod is a local pod: what is behind one port.
type Pod struct {
	// Port is who it is: no two have one.
	Port uint32
	MAC  net.HardwareAddr
	// Addresses are one or two, of different families.
	Addresses []netip.Addr
	// Slot is that of its tenant.
	Slot uint32
	// Meter is the number of the meter that what it sends goes through, Queue its
	// queue on the uplink; 0 for none.
	Meter, Queue uint32
	// Policy is what policies say of it.
	Policy PodPolicy
	// Connections is the number of the meter of its new connections, where it is selected; 0
	// for none.
	Connections uint32
}

// Flows are all flows of the node.
func (m Model) Flows() []of.Flow {
	flows := m.Fixed()
	for _, p := range m.Peers {
		flows = append(flows, m.Peer(p)...)
	}
	flows = append(flows, m.size()...)
	flows = append(flows, m.tellDenied()...)
	for _, t := range m.Tenants {
		flows = append(flows, m.Tenant(t)...)
	}
	for _, p := range m.Pods {
		flows = append(flows, m.Pod(p)...)
	}
	return flows
}

// Own are the flows of the node itself: those that every node has, those for packets that are
// too large for the path to a peer, and those that tell of what policies deny.
func (m Model) Own() []of.Flow { return slices.Concat(m.Fixed(), m.size(), m.tellDenied()) }

// Fixed are the flows that every node has.
func (m Model) Fixed() []of.Flow {
	tun0, net4 := m.GatewayPort, m.ipv4()
	anyIP := of.IP()
	var flows []of.Flow
	for _, n := range m.TunnelPorts {
		flows = append(flows, drop(TableSource, 90, UnknownPeer, of.InPort(n)))
	}
	flows = append(flows,
		flow(TableSource, 100, to(TableARP), nil, of.ARP(), of.InPort(tun0), of.ARPOp(arpRequest)),
		flow(TableSource, 90, to(TableRoute), sender(netid.Global), anyIP, of.InPort(tun0), of.IPv4Src(host(net4.Gateway))),
		flow(TableSource, 90, to(TableRoute), sender(netid.Global), anyIP, of.InPort(tun0), of.IPv4Src(host(topology.ForwarderOf(net4.Subnet)))),
		drop(TableSource, 80, HostForged, anyIP, of.InPort(tun0), of.IPv4Src(net4.Cluster)),
		flow(TableSource, 70, to(TableRoute), sender(netid.Global), anyIP, of.InPort(tun0)),
		drop(TableSource, 10, IPv6, of.IPv6()),
		drop(TableSource, 0, Forged),

		drop(TableTenant, 0, NoTenant),

		m.answerARP(net4.Cluster),
		m.answerARP(host(topology.NextHop)),
		drop(TableARP, 0, ARP),

		flow(TableRoute, 200, to(TableReceive), nil, anyIP, of.IPv4Dst(net4.Subnet)),
		drop(TableRoute, 150, NoNode, anyIP, of.IPv4Dst(net4.Cluster)),
		drop(TableRoute, 140, Multicast, anyIP, of.IPv4Dst(netip.MustParsePrefix("224.0.0.0/4"))),
		drop(TableRoute, 140, Multicast, anyIP, of.IPv4Dst(netip.MustParsePrefix("255.255.255.255/32"))),
		// The node would take it where route_localnet is set, as portmap does for tun0.
		drop(TableRoute, 140, Loopback, anyIP, of.IPv4Dst(netip.MustParsePrefix("127.0.0.0/8"))),
		drop(TableRoute, 130, HostReturn, anyIP, of.InPort(tun0)),
		flow(TableRoute, 100, to(TableHost), nil, anyIP),

		flow(TableDeliver, 200, to(TableHost), nil, anyIP, of.IPv4Dst(host(net4.Gateway))),
		flow(TableDeliver, 200, to(TableHost), nil, anyIP, of.IPv4Dst(host(topology.ForwarderOf(net4.Subnet)))),
		drop(TableDeliver, 0, NoPod),

		drop(TableAdmit, 0, OtherTenant))
	for _, p := range m.UDPPorts {
		flows = append(flows, drop(TableHost, 100, VXLANToHost, anyIP, of.UDPDst(uint16(p))))
	}
	flows = append(flows,
		// The node would believe it of any path that the pod names, also a peer's.
		drop(TableHost, 100, MTUToHost, anyIP, of.ICMPType(icmpUnreachable), of.ICMPCode(icmpFragmentation)),
		flow(TableHost, 0, to(tableLeave), []of.Action{of.SetField(of.EthDst(topology.MAC(net4.Gateway))), regOutPort.set(tun0)}))
	flows = append(flows, m.output()...)
	flows = append(flows, m.fixedServices()...)
	return append(flows, m.fixedPolicy()...)
}

// received is where packets for local addresses go on from Receive.
func (m Model) received() uint8 {
	if m.ServiceProxy == NoServices {
		return TableDeliver
	}
	return TableReply
}

// answerARP answers every request for an address in p from that address, so
// it needs no knowledge of who has it and tells nothing about it.
func (m Model) answerARP(p netip.Prefix) of.Flow {
	scratch := regScratch.whole()
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
		regOutPort.set(portIn),
	}
	return flow(TableARP, 100, to(tableLeave), actions, of.ARP(), of.ARPOp(arpRequest), of.ARPTPA(p))
}

// Peer are the flows for one peer.
func (m Model) Peer(p Peer) []of.Flow {
	// Where the senders' addresses are checked: behind the check of the netID, if there is one.
	table := TableSource
	if !p.NetIDs.All {
		table = TablePeer
	}
	var flows []of.Flow
	for _, prefix := range p.Prefixes {
		if !prefix.Addr().Is4() {
			continue // the tables have flows of IPv4 only: of IPv6 all is dropped by the fixed ones
		}
		about := Cookie{Kind: KindPeer, Object: object(prefix.Addr())}
		flows = append(flows, owned([]of.Flow{
			flow(table, 100, to(TableReceive), []of.Action{of.Move(of.Range(of.FieldTunnelID, 0, 32), regSender.whole())},
				append(p.sent(), of.IP(), of.IPv4Src(prefix))...),
			flow(TableRoute, 200, to(tableLeave), p.way(), of.IP(), of.IPv4Dst(prefix)),
		}, about)...)
	}
	if !p.NetIDs.All {
		flows = append(flows, p.listed()...)
	}
	return flows
}

// listed are the flows by which only the netIDs of the peer's list get to the check of
// senders' addresses, and nothing gets past that.
func (p Peer) listed() []of.Flow {
	about := Cookie{Kind: KindPeer, Object: object(p.VTEP)}
	denied := func(table uint8, priority uint16, r Reason) of.Flow {
		f, c := flow(table, priority, nil, nil, p.sent()...), about
		c.Reason = r
		f.Cookie = c.Encode()
		return f
	}
	var listed []of.Flow
	for _, id := range p.NetIDs.List {
		listed = append(listed, flow(TableSource, 110, to(TablePeer), nil, append(p.sent(), of.TunnelID(uint64(id)))...))
	}
	return append(owned(listed, about), denied(TableSource, 105, ForeignNetID), denied(TablePeer, 90, UnknownPeer))
}

// sent matches all that the peer sends.
func (p Peer) sent() []of.Field {
	return append(make([]of.Field, 0, 4), of.InPort(p.Port), of.TunnelSrc(p.VTEP)) // with room for what else a flow matches
}

// way decides that a packet goes to the peer.
func (p Peer) way() []of.Action {
	way := []of.Action{regOutPort.set(p.Port), regTunnelDst.set(object(p.VTEP))}
	if p.PathMTU > 0 {
		way = append(way, regPathMTU.set(uint32(p.PathMTU)))
	}
	return way
}

// Tenant are the flows for one namespace: all that changes when it joins, is
// isolated or becomes global. One whose netID is not known sends, receives and
// serves nothing.
func (m Model) Tenant(t Tenant) []of.Flow {
	flows := t.admit(flow(TableAdmit, 100, to(TableCommit), nil), regReceiverSlot.is(t.Slot), OtherTenant)
	if t.Known {
		flows = append(flows, t.own(flow(TableTenant, 100, to(TableRoute), sender(t.NetID), regSenderSlot.is(t.Slot))))
	}
	if t.Serves {
		flows = append(flows, t.admit(m.translate(), regServiceSlot.is(t.Slot), ServiceTenant, of.IP())...)
	}
	return append(flows, m.fairly(t)...)
}

// admit are accept for the senders that the tenant admits, and a drop for all
// others; slot is the register that says whose flows they are, match what else accept needs.
func (t Tenant) admit(accept of.Flow, slot of.Field, denied Reason, match ...of.Field) []of.Flow {
	from := func(sender ...of.Field) of.Flow {
		f := t.own(accept)
		f.Match = of.NewMatch(slices.Concat(sender, match, []of.Field{slot})...)
		return f
	}
	if t.Known && t.tenancy().OpenToAll() {
		return []of.Flow{from()}
	}
	if !t.Known {
		denied = NoTenant
	}
	refuse := drop(accept.Table, 50, denied, slot)
	refuse.Cookie = Cookie{Kind: KindTenant, Reason: denied, Object: t.Slot}.Encode()
	if !t.Known {
		return []of.Flow{refuse}
	}
	flows := []of.Flow{from(regSender.is(uint32(t.NetID))), from(regSender.is(uint32(netid.Global)))}
	if t.Both {
		flows = append(flows, from(regSender.is(uint32(t.Other))))
	}
	return append(flows, refuse)
}

// tenancy is what it sends with and takes.
func (t Tenant) tenancy() topology.Tenancy {
	return topology.Tenancy{NetID: t.NetID, Other: t.Other, Both: t.Both}
}

// own is f as the tenant's.
func (t Tenant) own(f of.Flow) of.Flow {
	f.Cookie = Cookie{Kind: KindTenant, Object: t.Slot}.Encode()
	return f
}

// Pod are the flows for one local pod. They say nothing of its netID.
func (m Model) Pod(p Pod) []of.Flow {
	var flows, policy []of.Flow
	for _, a := range p.Addresses {
		if a.Is4() { // as with ipv4: of IPv6 all is dropped by the fixed ones
			flows = append(flows, m.podIPv4(p, a)...)
			policy = append(policy, m.podPolicy(p, a)...)
		}
	}
	return append(owned(flows, Cookie{Kind: KindPod, Object: p.Port}), policy...)
}

// podIPv4 are the flows for one IPv4 address of a pod.
func (m Model) podIPv4(p Pod, a netip.Addr) []of.Flow {
	send := p.sends()
	if p.Queue > 0 {
		send = append(send, of.SetQueue(p.Queue))
	}
	flows := []of.Flow{
		flow(TableSource, 100, to(TableTenant), send, of.IP(), of.Untagged(), of.InPort(p.Port), of.EthSrc(p.MAC), of.IPv4Src(host(a))),
		flow(TableSource, 100, to(TableARP), nil, of.ARP(), of.Untagged(), of.InPort(p.Port), of.EthSrc(p.MAC), of.ARPOp(arpRequest), of.ARPSPA(host(a)), of.ARPSHA(p.MAC)),
		flow(TableDeliver, 100, to(TableAdmit), m.receive(p, p.Port, p.MAC), of.IP(), of.IPv4Dst(host(a))),
	}
	flows[0].Meter = p.Meter
	if m.ServiceProxy == KubeProxy {
		flows = append(flows, m.podBesideKubeProxy(p, a)...)
	}
	return flows
}

// sends makes a packet one that pod p sent.
func (p Pod) sends() []of.Action {
	actions := []of.Action{regSenderSlot.set(p.Slot)}
	if p.Policy.Selected() {
		actions = append(actions, regPolicy.mark(policySelected))
	}
	return actions
}

// receive makes a packet one that goes to pod p, by a port and with the MAC behind it.
func (m Model) receive(p Pod, port uint32, mac net.HardwareAddr) []of.Action {
	return []of.Action{regReceiverSlot.set(p.Slot), regOutPort.set(port), of.SetField(of.EthDst(mac))}
}

// owned gives flows one cookie.
func owned(flows []of.Flow, c Cookie) []of.Flow {
	for i := range flows {
		flows[i].Cookie = c.Encode()
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
	return []of.Action{regSender.set(uint32(id))}
}

func to(table uint8) *uint8 { return of.GotoTable(table) }

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
