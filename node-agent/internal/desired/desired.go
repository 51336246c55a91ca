// Package desired computes what a node should be from the records and from
// what is attached to it.
//
// It is pure.
package desired

import (
	"bytes"
	"cmp"
	"fmt"
	"hash/fnv"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
)

// Attached is a pod on this node, as far as flows need it.
type Attached struct {
	// Port is who it is: the number of its port of the bridge.
	Port      uint32
	Namespace string
	// NamespaceUID is that of the Kubernetes Namespace that it came in; empty where that is
	// not known.
	NamespaceUID string
	MAC          net.HardwareAddr
	// Addresses are one or two, of different families.
	Addresses []netip.Addr
	// Meter is the rate above which what the pod sends is dropped: the last resort
	// behind the shaping of its own device.
	Meter Meter
	// Queue is its class on the uplink; 0 for none.
	Queue uint32
	// Policy is what policies say of it.
	Policy pipeline.PodPolicy
}

// Equal reports whether flows of both would be the same.
func (a Attached) Equal(b Attached) bool {
	return a.Port == b.Port && a.Namespace == b.Namespace && a.NamespaceUID == b.NamespaceUID && bytes.Equal(a.MAC, b.MAC) && slices.Equal(a.Addresses, b.Addresses) &&
		a.Meter == b.Meter && a.Queue == b.Queue && a.Policy == b.Policy
}

// Shares reports whether both have an address.
func (a Attached) Shares(b Attached) bool {
	return slices.ContainsFunc(a.Addresses, func(x netip.Addr) bool { return slices.Contains(b.Addresses, x) })
}

// Meter is a rate with its burst, in kbit per second and kbit; the zero value
// is none.
type Meter struct{ Rate, Burst uint32 }

// Slots are the numbers of the namespaces that have pods on this node, or services.
type Slots map[string]uint32

// Assign returns the namespace's slot, a new one where it has none. It follows
// from the name, so that an agent that restarts finds its flows unchanged; two
// names that would have the same get the next free ones.
func (s Slots) Assign(namespace string) uint32 {
	if slot, ok := s[namespace]; ok {
		return slot
	}
	h := fnv.New32a()
	h.Write([]byte(namespace))
	slot := h.Sum32()
	for slices.Contains(slices.Collect(maps.Values(s)), slot) {
		slot++
	}
	s[namespace] = slot
	return slot
}

// Ports are the numbers of the bridge's own ports, those of the tunnels by name.
type Ports struct {
	Tunnels map[string]uint32
	Gateway uint32
}

// Equal reports whether all have the same numbers.
func (p Ports) Equal(q Ports) bool { return p.Gateway == q.Gateway && maps.Equal(p.Tunnels, q.Tunnels) }

// Problem is something in the records that this node leaves out, and why.
type Problem struct {
	Record string
	Why    string
}

// Node computes the model of the node with address self, whose tunnel packets are taken at
// the UDP ports udp. It fails as long as the records do not give it a valid subnet. Peers
// that are not valid, or whose tunnel port the bridge has not got, are left out, and those
// that are not valid are named in the problems: an unknown peer is dropped, not guessed.
func Node(s topology.Snapshot, self netip.Addr, ports Ports, udp []tunnel.Port, slots Slots, attached []Attached) (pipeline.Model, []Problem, error) {
	me, ok := s.Nodes[self]
	if !ok {
		return pipeline.Model{}, nil, fmt.Errorf("there is no subnet record for this node (%s)", self)
	}
	if err := me.Validate(s.Config); err != nil {
		return pipeline.Model{}, nil, err
	}
	if !me.Ready() {
		return pipeline.Model{}, nil, fmt.Errorf("node %s (%s) has no subnet yet: a controller assigns it", me.Host, self)
	}
	m := pipeline.Model{
		Nets:        nets(s.Config, me),
		TunnelPorts: slices.Sorted(maps.Values(ports.Tunnels)), GatewayPort: ports.Gateway, Host: self, UDPPorts: udp,
	}
	var problems []Problem
	m.Peers, problems = peers(s, me, ports)
	for _, a := range attached {
		slots.Assign(a.Namespace)
		m.Pods = append(m.Pods, Pod(slots, a))
	}
	for _, namespace := range slices.Sorted(maps.Keys(slots)) {
		m.Tenants = append(m.Tenants, Tenant(s, slots, namespace))
	}
	return m, problems, nil
}

// nets are what a node that is valid has of each family.
func nets(c topology.Config, me topology.Node) (all []pipeline.Net) {
	gateways, clusters, services := me.Gateways(), c.PodNetworks(), c.AllServiceNetworks()
	for i, subnet := range me.PodSubnets() {
		n := pipeline.Net{Cluster: clusters[i], Subnet: subnet, Gateway: gateways[i]}
		if i < len(services) {
			n.Services = services[i]
		}
		all = append(all, n)
	}
	return all
}

// Pod is the model of one attachment.
func Pod(slots Slots, a Attached) pipeline.Pod {
	p := pipeline.Pod{Port: a.Port, MAC: a.MAC, Addresses: a.Addresses, Slot: slots.Assign(a.Namespace), Queue: a.Queue, Policy: a.Policy}
	if a.Meter.Rate > 0 {
		p.Meter = a.Port
	}
	return p
}

// Tenant is the model of one namespace.
func Tenant(s topology.Snapshot, slots Slots, namespace string) pipeline.Tenant {
	tenancy, known := s.Tenancy(namespace)
	return pipeline.Tenant{Slot: slots.Assign(namespace), NetID: tenancy.NetID, Other: tenancy.Other, Both: tenancy.Both, Known: known}
}

// peers are those of the node me, in order of their addresses. Two that claim the same
// addresses are both left out, and so is one that claims those of me.
func peers(s topology.Snapshot, me topology.Node, ports Ports) ([]pipeline.Peer, []Problem) {
	var problems []Problem
	leaveOut := func(ip netip.Addr, why string) {
		problems = append(problems, Problem{Record: "subnets/" + ip.String(), Why: why})
	}
	candidates := make([]pipeline.Peer, 0, len(s.Nodes))
	for ip, n := range s.Nodes {
		if err := n.Validate(s.Config); err != nil {
			leaveOut(ip, err.Error())
		} else if n.Ready() {
			candidates = append(candidates, nodePeer(n, ports))
		}
	}
	slices.SortFunc(candidates, func(a, b pipeline.Peer) int { return a.VTEP.Compare(b.VTEP) })
	claimed := contested(candidates)
	var peers []pipeline.Peer
	for i, c := range candidates {
		prefix, twice := claimed[i]
		switch {
		case c.VTEP == me.HostIP:
		case twice:
			leaveOut(c.VTEP, fmt.Sprintf("Subnet %s is in the record of another node as well", prefix))
		case c.Port != 0:
			peers = append(peers, c)
		}
	}
	slices.SortFunc(problems, func(a, b Problem) int { return cmp.Compare(a.Record, b.Record) })
	return peers, problems
}

// End is the other end of a tunnel.
type End struct {
	VTEP netip.Addr
	// Tunnel is the name of the tunnel that leads there.
	Tunnel string
}

// Ends are those that the node with address self needs a way to: of its peers, and of those
// that become peers once they have a subnet.
func Ends(s topology.Snapshot, self netip.Addr) []End {
	var ends []End
	for ip, n := range s.Nodes {
		if ip != self && n.Validate(s.Config) == nil {
			ends = append(ends, End{ip, tunnelTo(n)})
		}
	}
	return ends
}

// nodePeer is a node as a peer: it may bring the netIDs of all its pods.
func nodePeer(n topology.Node, ports Ports) pipeline.Peer {
	return pipeline.Peer{
		Port: ports.Tunnels[tunnelTo(n)], VTEP: n.HostIP, Prefixes: []netip.Prefix{n.Subnet}, NetIDs: pipeline.NetIDs{All: true},
	}
}

// contested are those of peers, by index, of which a prefix overlaps another's, and such a prefix.
func contested(peers []pipeline.Peer) map[int]netip.Prefix {
	type claim struct {
		prefix netip.Prefix
		peer   int
	}
	claims := make([]claim, 0, len(peers))
	for i, p := range peers {
		for _, prefix := range p.Prefixes {
			claims = append(claims, claim{prefix, i})
		}
	}
	slices.SortFunc(claims, func(a, b claim) int { return a.prefix.Compare(b.prefix) })
	found := map[int]netip.Prefix{}
	// Prefixes are apart or one has the other. In their order each comes behind the widest
	// that has it.
	var widest claim
	for _, c := range claims {
		switch {
		case !widest.prefix.IsValid() || !widest.prefix.Overlaps(c.prefix):
			widest = c
		case widest.peer != c.peer:
			found[widest.peer], found[c.peer] = widest.prefix, c.prefix
		}
	}
	return found
}
