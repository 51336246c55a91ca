package pipeline

import (
	"hash/fnv"
	"net/netip"
	"slices"
	"time"

	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
	"github.com/k8s-ovs/k8s-ovs/pkg/service"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// ServiceProxy says who translates the addresses of services for pods.
type ServiceProxy string

// The service proxies.
const (
	// NoServices: there are none; their addresses are like any outside.
	NoServices ServiceProxy = ""
	// OVS is the bridge itself.
	OVS ServiceProxy = "ovs"
	// KubeProxy is the node's, after the bridge has checked the tenant.
	KubeProxy ServiceProxy = "kube-proxy"
)

// Linger is how long the way back from an endpoint that no service has any more
// stays without packets: connections to it may still be open. TCP asks after a silent
// peer every two hours (RFC 9293, section 3.8.4).
const Linger = 150 * time.Minute

// MaxChoices is how many endpoints of one service port a node sends to at most:
// a group is one OpenFlow message, of 64 kB.
const MaxChoices = 512

// hairpin is whom a pod sees as its client when it reaches itself through a service.
var hairpin = netip.MustParseAddr("169.254.77.2")

// States of connection tracking.
var (
	untranslated = of.CTState(of.CTTracked|of.CTNew, of.CTTracked|of.CTNew|of.CTDNAT)
	translated   = of.CTState(of.CTTracked|of.CTDNAT, of.CTTracked|of.CTDNAT)
	newTracked   = of.CTState(of.CTTracked|of.CTNew, of.CTTracked|of.CTNew)
	tracked      = of.CTState(of.CTTracked, of.CTTracked)
	answers      = of.CTState(of.CTTracked|of.CTReply, of.CTTracked|of.CTReply) // and ICMP errors about requests
	errorsAsSent = of.CTState(of.CTTracked|of.CTRelated, of.CTTracked|of.CTRelated|of.CTDNAT)
)

// ServiceAddress is the cluster address of a service.
type ServiceAddress struct {
	VIP netip.Addr
	// Slot is that of the service's namespace, whose tenant may use it; a public
	// one is for all.
	Slot   uint32
	Public bool
}

// ServicePort is one port of a cluster address.
type ServicePort struct {
	// ID is its number on this node and its group's: 1 to [of.GroupMax].
	ID uint32
	service.Port
	Affinity time.Duration
	// OnlyUDP says that it is the only UDP port of its address.
	OnlyUDP bool
}

// fixedServices are the flows of services that every node has.
func (m Model) fixedServices() []of.Flow {
	if m.ServiceProxy == NoServices {
		return nil
	}
	ip := of.IP()
	flows := append(m.toServices(m.ipv4().Services),
		// To the node, which refuses it.
		flow(TableService, 0, to(TableHost), nil),
		drop(TableServiceTenant, 0, NoTenant),
		// A later fragment does not tell its port, so all of them are looked up.
		flow(TableReply, 200, nil, []of.Action{m.back()}, ip, of.IPFrag(of.FragAny)),
		flow(TableReply, 0, to(TableDeliver), nil))
	for _, icmp := range []uint8{icmpUnreachable, icmpTimeExceeded, icmpParameterProblem} {
		flows = append(flows, flow(TableReply, 190, nil, []of.Action{m.back()}, of.ICMPType(icmp)))
	}
	if m.ServiceProxy == KubeProxy {
		return append(flows,
			// Not by ct_state: out of tun0 the kernel's packets bring that of the node's own zone.
			flow(TableRoute, 220, nil, []of.Action{regProxied.set(0), m.ct(TableRoute, true, nil)}, ip, regProxied.is(proxiedRequest)),
			flow(TableReplied, 100, to(TableDeliver), []of.Action{regProxied.set(proxiedAnswer)}, ip, answers),
			flow(TableReplied, 0, to(TableDeliver), nil))
	}
	return append(flows,
		flow(TableRoute, 260, nil, []of.Action{of.SetField(of.InPort(0)), m.ctHairpin(TableReceive, false, &of.NATSpec{})}, ip, of.IPv4Dst(host(hairpin))),
		flow(TableNew, 0, to(TableBalance), nil),
		flow(TableBalance, 0, to(TableHost), nil),
		drop(TableEndpoint, 0, ServiceState),
		// What was learned since the first look wins over the choice: two first
		// connections of one client may come here at once.
		flow(TableChosen, 0, nil, []of.Action{of.Resubmit(TableAffinity), regChosen.set(1), of.Resubmit(TableEndpoint)}))
}

// toServices are the flows by which addresses are those of services.
func (m Model) toServices(addresses netip.Prefix) []of.Flow {
	ip, services := of.IP(), of.IPv4Dst(addresses)
	flows := []of.Flow{
		drop(TableRoute, 240, HostReturn, ip, of.InPort(m.GatewayPort), services),
		flow(TableRoute, 210, to(TableService), nil, ip, services),
	}
	if m.ServiceProxy == OVS {
		flows = append(flows,
			flow(TableRoute, 230, to(TableNew), nil, ip, untranslated, services),
			// The kernel leaves the ICMP errors of a connection's client as they are
			// unless they are committed too (ovs_ct_nat). Once: they must not go round.
			flow(TableRoute, 225, nil, []of.Action{regError.set(1), m.ct(TableRoute, true, &of.NATSpec{})}, ip, errorsAsSent, regError.is(0), services),
			drop(TableRoute, 220, ServiceState, ip, tracked, services))
	}
	return flows
}

// ICMP errors, which carry the packet that they are about (RFC 792).
const (
	icmpUnreachable      = 3
	icmpFragmentation    = 4 // its code "fragmentation needed"
	icmpTimeExceeded     = 11
	icmpParameterProblem = 12
)

// podBesideKubeProxy are the flows by which the node translates a local pod's
// connections: out of tun0 they come with the pod's address a and get its tenant again,
// and the answers go into tun0 to be translated back.
func (m Model) podBesideKubeProxy(p Pod, a netip.Addr) []of.Flow {
	addr := host(a)
	return []of.Flow{
		flow(TableSource, 95, to(TableTenant), append(p.sends(), regProxied.set(proxiedRequest)), of.IP(), of.InPort(m.GatewayPort), of.IPv4Src(addr)),
		flow(TableDeliver, 110, to(TableAdmit), m.receive(p, m.GatewayPort, topology.MAC(m.ipv4().Gateway)), of.IP(), regProxied.is(proxiedAnswer), of.IPv4Dst(addr)),
	}
}

// translate is the flow by which a request that may be made goes on from the
// tenant check; the match is the caller's.
func (m Model) translate() of.Flow {
	if m.ServiceProxy == KubeProxy {
		return flow(TableServiceTenant, 100, to(TableHost), nil)
	}
	return flow(TableServiceTenant, 100, nil, []of.Action{m.ct(TableRoute, false, &of.NATSpec{})})
}

// ServiceAddress are the flows for one address of a service.
func (m Model) ServiceAddress(a ServiceAddress) []of.Flow {
	vip := host(a.VIP)
	f := flow(TableService, 100, to(TableServiceTenant), []of.Action{regServiceSlot.set(a.Slot)})
	if a.Public {
		f = m.translate()
		f.Table = TableService
	}
	f.Match = of.NewMatch(of.IP(), of.IPv4Dst(vip))
	flows := []of.Flow{f}
	switch {
	case m.Of(a.VIP).Services.Contains(a.VIP):
	case m.Serves(a.VIP):
		flows = append(flows, m.toServices(vip)...)
	default:
		flows = []of.Flow{flow(TableRoute, 250, nil, nil, of.IP(), of.IPv4Dst(vip))}
	}
	return owned(flows, Cookie{Kind: KindService, Object: object(a.VIP)})
}

// Serves reports whether a service can have the address. Beside kube-proxy one
// outside of the service network is cut off: the node masquerades what it translates
// from there, and nobody could check the tenant. So is a pod's.
func (m Model) Serves(vip netip.Addr) bool {
	net := m.Of(vip)
	return net.Services.Contains(vip) || m.ServiceProxy == OVS && !net.Cluster.Contains(vip)
}

// ServicePort are the flows and the group for one port of a service that has
// endpoints. Without them there is none, and the node refuses.
func (m Model) ServicePort(p ServicePort) ([]of.Flow, of.GroupEntry) {
	choices := m.choices(p)
	group := of.GroupEntry{ID: p.ID, Type: of.GroupSelect}
	choose := []of.Action{of.Group(p.ID)}
	var flows []of.Flow
	if p.Affinity > 0 {
		choose = []of.Action{regServicePort.set(p.ID), of.Resubmit(TableAffinity), of.Resubmit(TableEndpoint)}
		flows = m.sticky(p, choices)
	}
	for _, e := range choices {
		actions := []of.Action{m.dnat(e)}
		if p.Affinity > 0 {
			// A bucket is an action set: of several resubmits the last would count.
			actions = []of.Action{regEndpoint.set(object(e.Address)), regEndpointPort.set(uint32(e.Port)), of.Resubmit(TableChosen)}
		}
		group.Buckets = append(group.Buckets, of.Bucket{Weight: 1, Actions: actions})
	}
	match := []of.Field{of.IP(), newTracked, of.CTNWProto(uint8(p.Protocol)), of.CTNWDst(host(p.VIP))}
	flows = append(flows, flow(TableBalance, 100, nil, choose, append(slices.Clip(match), of.CTTPDst(p.Port.Port))...))
	if p.OnlyUDP {
		flows = append(flows, flow(TableBalance, 90, nil, choose, append(slices.Clip(match), of.IPFrag(of.FragLater))...))
	}
	return owned(flows, Cookie{Kind: KindService, Object: p.ID}), group
}

// choices are the endpoints that this node sends to: all, or where they are too
// many a part that differs from node to node.
func (m Model) choices(p ServicePort) []service.Endpoint {
	n := len(p.Endpoints)
	if n <= MaxChoices {
		return p.Endpoints
	}
	first := int(hash(m.ipv4().Gateway) % uint32(n))
	return append(slices.Clone(p.Endpoints[first:]), p.Endpoints[:first]...)[:MaxChoices]
}

// sticky are the flows by which clients stay with their endpoint.
func (m Model) sticky(p ServicePort, choices []service.Endpoint) []of.Flow {
	id, none := regServicePort.is(p.ID), regChosen.is(0)
	flows := []of.Flow{
		flow(TableEndpoint, 60, nil, []of.Action{of.Group(p.ID)}, id, regEndpoint.is(0)),
		// The endpoint that was learned is gone; and what was learned no longer counts.
		flow(TableEndpoint, 50, nil, []of.Action{regChosen.set(1), of.Group(p.ID)}, id, none),
	}
	learn := of.Learn(of.LearnSpec{
		Table: TableAffinity, Priority: 100, Cookie: Cookie{Kind: KindLearned, Object: p.ID}.Encode(), IdleTimeout: seconds(p.Affinity),
		Parts: []of.LearnPart{
			of.LearnMatchValue(id), of.LearnMatchValue(none), of.LearnMatchValue(of.IP()),
			of.LearnMatch(of.Whole(of.FieldIPv4Src), of.Whole(of.FieldIPv4Src)),
			of.LearnLoad(regEndpoint.whole(), regEndpoint.whole()),
			of.LearnLoad(regEndpointPort.whole(), regEndpointPort.whole()),
		},
	})
	for _, e := range choices {
		flows = append(flows, flow(TableEndpoint, 100, nil, []of.Action{learn, m.dnat(e)},
			of.IP(), id, regEndpoint.is(object(e.Address)), regEndpointPort.is(uint32(e.Port))))
	}
	return flows
}

// Endpoint are the flows by which the answers of an endpoint find back. They are
// the same for all services that have it.
func (m Model) Endpoint(p service.Protocol, e service.Endpoint) []of.Flow {
	source := map[service.Protocol]func(uint16) of.Field{service.TCP: of.TCPSrc, service.UDP: of.UDPSrc, service.SCTP: of.SCTPSrc}[p]
	flows := []of.Flow{flow(TableReply, 100, nil, []of.Action{m.back()}, source(e.Port), of.IPv4Src(host(e.Address)))}
	if m.ServiceProxy == OVS && m.Of(e.Address).Subnet.Contains(e.Address) {
		// It may reach itself: the answer must come back here, not stay inside the pod.
		flows = append(flows, flow(TableDeliver, 150, nil, []of.Action{of.SetField(of.InPort(0)),
			m.ctHairpin(TableDeliver, true, &of.NATSpec{SNAT: true, AddrMin: hairpin})},
			of.IP(), of.IPv4Src(host(e.Address)), of.IPv4Dst(host(e.Address))))
	}
	return owned(flows, Cookie{Kind: KindEndpoint, Object: object(e.Address)})
}

// UDPEndpoint is the endpoint whose answers a flow of [Model.Endpoint] takes back;
// false where they are not UDP.
func UDPEndpoint(f of.Flow) (e service.Endpoint, ok bool) {
	port, udp := f.Match.Field(of.FieldUDPSrc)
	source, ok := f.Match.Field(of.FieldIPv4Src)
	if !udp || !ok {
		return e, false
	}
	e.Address, _ = netip.AddrFromSlice(source.Value())
	e.Port = uint16(port.Uint64())
	return e, true
}

// Lingering is an endpoint's flow for the time after the last service that has
// the endpoint: it goes when no packet came for [Linger].
func Lingering(f of.Flow) of.Flow {
	f.IdleTimeout = seconds(Linger)
	return f
}

// dnat commits a new connection to an endpoint.
func (m Model) dnat(e service.Endpoint) of.Action {
	return m.ct(TableRoute, true, &of.NATSpec{DNAT: true, AddrMin: e.Address, PortMin: e.Port})
}

// back translates answers as their connection says; beside kube-proxy the node does,
// once they are known as such.
func (m Model) back() of.Action {
	if m.ServiceProxy == KubeProxy {
		return m.ct(TableReplied, false, nil)
	}
	return m.ct(TableDeliver, false, &of.NATSpec{})
}

func (m Model) ct(next uint8, commit bool, nat *of.NATSpec) of.Action {
	return of.CT(of.CTSpec{Commit: commit, Zone: ZoneService, Table: to(next), NAT: nat})
}

func (m Model) ctHairpin(next uint8, commit bool, nat *of.NATSpec) of.Action {
	return of.CT(of.CTSpec{Commit: commit, Zone: ZoneHairpin, Table: to(next), NAT: nat})
}

// seconds is a timeout of a flow: 1 to 65535.
func seconds(d time.Duration) uint16 {
	return uint16(min(max(d.Round(time.Second)/time.Second, 1), 1<<16-1))
}

// PortNumber is the number that a service port has by itself; another may have
// the same.
func PortNumber(vip netip.Addr, p service.Protocol, port uint16) uint32 {
	return hash(vip, byte(p), byte(port>>8), byte(port))%of.GroupMax + 1
}

// hash spreads an address, and what else there is, over all numbers (FNV-1a).
func hash(a netip.Addr, more ...byte) uint32 {
	h := fnv.New32a()
	b := a.As4()
	h.Write(b[:])
	h.Write(more)
	return h.Sum32()
}
