package pipeline

import (
	"encoding/binary"
	"net/netip"

	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// PodPolicy is what policies say of a pod. Of one with the zero value they say nothing:
// nothing of it is tracked or judged.
type PodPolicy struct {
	// Ingress and Egress say that what comes to it, and what it sends, needs a rule.
	Ingress, Egress bool
	// Cluster says that a ClusterNetworkPolicy is about it.
	Cluster bool
	// Midstream lets TCP segments pass unjudged that belong to no known connection and go
	// from a low port to a high one, and makes no connection known by such a datagram: for 120 s
	// after the pod became selected, or the switch lost its connections. It counts for a
	// selected pod only.
	Midstream bool
}

// Selected reports whether the pod's packets are judged.
func (p PodPolicy) Selected() bool { return p.Ingress || p.Egress || p.Cluster }

// Priorities in the tables of NetworkPolicy. Between the last two are the rules: see [Rules].
const (
	priorityExempt   = 50000 // a pod and itself, and its node: no NetworkPolicy cuts those
	priorityIsolated = 39000
)

// States of connections in [ZonePolicy]. A connection that is new and not marked is not
// known yet.
var (
	valid   = of.CTState(of.CTTracked, of.CTTracked|of.CTInvalid)
	invalid = of.CTState(of.CTTracked|of.CTInvalid, of.CTTracked|of.CTInvalid)
	unknown = []of.Field{newTracked, of.CTMark(0, known|markAllowed)}
	// allowed and denied are of every packet: see [markAllowed].
	allowed, denied = of.CTMark(0, markAllowed), of.CTMark(0, markDenied)
)

// fixedPolicy are the flows of policies that every node has. Nothing comes to those of the
// tables before Route while no pod is selected.
func (m Model) fixedPolicy() []of.Flow {
	net4, ip := m.ipv4(), of.IP()
	flows := []of.Flow{
		drop(TableJudge, 100, PolicyState, ip, invalid),
		// It does not tell its port. Nobody can use it without the first, which is judged.
		flow(TableJudge, 60, to(TableJudged), nil, ip, valid, of.IPFrag(of.FragLater)),
		flow(TableJudge, 50, to(TableEgressAdmin), nil, ip, valid),

		flow(TableEgressAdmin, 0, to(TableEgress), nil),
		flow(TableEgress, 0, to(TableEgressBaseline), nil),
		flow(TableEgressBaseline, 0, to(TableIngressAdmin), nil),
		flow(TableIngressAdmin, 0, to(TableIngress), nil),
		flow(TableIngress, 0, to(TableIngressBaseline), nil),
		flow(TableIngressBaseline, 0, to(TableJudged), nil),

		// What policies deny ends here: these stay when rules and pods go, so the counts do.
		drop(TableDeniedEgress, 50, PolicyEgress, denied),
		drop(TableDeniedIngress, 50, PolicyIngress, denied),

		flow(TableJudged, 110, to(m.received()), []of.Action{regPolicy.mark(policyCommits)}, append([]of.Field{ip, regPolicy.has(policyReceives, 0)}, unknown...)...),
		flow(TableJudged, 50, to(m.received()), nil, regPolicy.has(policyReceives, 0), allowed),
		flow(TableJudged, 40, to(TableRoute), nil, allowed),

		flow(TableRoute, 205, nil, []of.Action{regPolicy.mark(policyJudged), judge()}, ip, regPolicy.has(policySelected, policyJudged)),
		flow(TableReceive, 0, to(m.received()), nil),
		flow(TableCommit, 0, to(tableLeave), nil),
	}
	if m.ServiceProxy == OVS {
		flows = append(flows, flow(TableRoute, 206, nil, []of.Action{
			of.Move(of.Whole(of.FieldCTNWDst), sentToAddress), of.Move(of.Whole(of.FieldCTTPDst), sentToPort),
			regPolicy.mark(policyJudged), judge(),
		}, ip, translated, regPolicy.has(policySelected, policyJudged)))
	}
	for _, a := range []netip.Addr{net4.Gateway, topology.ForwarderOf(net4.Subnet)} {
		mask := net4.everySubnet()
		for _, end := range []of.Field{of.CTNWSrcMasked(a, mask), of.CTNWDstMasked(a, mask)} {
			flows = append(flows, flow(TableJudge, 55, to(TableEgressAdmin), []of.Action{regPolicy.mark(policyNode)}, ip, valid, end))
		}
	}
	return flows
}

// podPolicy are the flows of a pod with address a that policies select. Behind its zone, an
// answer has the addresses of its request, so the same flows judge both.
func (m Model) podPolicy(p Pod, a netip.Addr) []of.Flow {
	if !p.Policy.Selected() {
		return nil
	}
	ip, src, dst := of.IP(), of.CTNWSrc(host(a)), of.CTNWDst(host(a))
	sends := flow(TableJudged, 105, nil, []of.Action{commit(TableRoute)}, append([]of.Field{ip, src}, unknown...)...)
	gets := flow(TableCommit, 100, nil, []of.Action{commit(tableLeave)}, ip, regPolicy.has(policyCommits, 0), regOutPort.is(p.Port))
	sends.Meter, gets.Meter = p.Connections, p.Connections
	flows := []of.Flow{
		flow(TableReceive, 100, nil, []of.Action{regPolicy.mark(policyJudged | policyReceives), judge()}, ip, of.IPv4Dst(host(a)), regPolicy.has(0, policyJudged)),
		sends, gets,
	}
	if m.ServiceProxy == KubeProxy {
		// It was judged with the endpoint's address, before the node translated it back.
		flows = append(flows, flow(TableReceive, 120, to(m.received()), nil, ip, of.InPort(m.GatewayPort), of.IPv4Src(m.ipv4().Services), of.IPv4Dst(host(a))))
	}
	exempt := []netip.Prefix{host(a), host(m.ipv4().Gateway), host(m.Host)}
	if p.Policy.Egress {
		flows = append(flows, flow(TableEgress, priorityIsolated, to(TableDeniedEgress), nil, ip, valid, src))
		for _, peer := range exempt {
			flows = append(flows, flow(TableEgress, priorityExempt, to(TableIngressAdmin), nil, ip, valid, src, of.CTNWDst(peer)))
		}
	}
	if p.Policy.Ingress {
		flows = append(flows, flow(TableIngress, priorityIsolated, to(TableDeniedIngress), nil, ip, valid, dst))
		for _, peer := range exempt {
			flows = append(flows, flow(TableIngress, priorityExempt, to(TableJudged), nil, ip, valid, dst, of.CTNWSrc(peer)))
		}
	}
	if p.Policy.Midstream {
		segment := []of.Field{newTracked, of.TCPFlags(0, tcpSYN), of.TCPSrcMasked(0, highPort), of.TCPDstMasked(highPort, highPort)}
		flows = append(flows,
			flow(TableJudge, 80, to(TableRoute), nil, append([]of.Field{src, regPolicy.has(0, policyReceives)}, segment...)...),
			flow(TableJudge, 80, to(m.received()), nil, append([]of.Field{dst, regPolicy.has(policyReceives, 0)}, segment...)...))
		// A datagram does not say whether something was before it. A server's is judged as what it
		// looks like, a request, but its connection is known by its client's next.
		datagram := append([]of.Field{of.UDPSrcMasked(0, highPort), of.UDPDstMasked(highPort, highPort)}, unknown...)
		flows = append(flows,
			flow(TableJudged, 115, to(TableRoute), nil, append([]of.Field{src, regPolicy.has(0, policyReceives)}, datagram...)...),
			flow(TableJudged, 115, to(m.received()), nil, append([]of.Field{dst, regPolicy.has(policyReceives, 0)}, datagram...)...))
	}
	for i := range flows {
		flows[i].Cookie = Cookie{Kind: KindPod, Object: p.Port}.Encode()
	}
	return flows
}

// SYN (RFC 9293), and the bit that ports have from which clients usually speak (Linux takes
// 32768 to 60999), and servers have not.
const (
	tcpSYN   = 0x02
	highPort = 0x8000
)

// judge sends a packet to be judged, with what is known of its connection.
func judge() of.Action {
	return of.CT(of.CTSpec{Zone: ZonePolicy, Table: to(TableJudge)})
}

// commit makes a connection known that was judged.
func commit(next uint8) of.Action {
	return of.CT(of.CTSpec{Commit: true, Zone: ZonePolicy, Table: to(next), Actions: []of.Action{of.SetField(of.CTMark(known, known))}})
}

// everySubnet masks what an address of the node's subnet has in common with those in the same
// place of other nodes' subnets, which all have one size.
func (n Net) everySubnet() netip.Addr {
	place := ^uint32(0) >> n.Subnet.Bits()
	return fromNumber(^(^uint32(0) >> n.Cluster.Bits()) | place)
}

func fromNumber(n uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], n)
	return netip.AddrFrom4(b)
}
