package policy

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/k8s-ovs/k8s-ovs/pkg/service"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// This file is the way between what policies mean and what stands in etcd of them. A policy
// that goes there and comes back is the same.

// Record is the policy's own record.
func (p Policy) Record() topology.PolicyRecord {
	return topology.PolicyRecord{Selector: string(p.Subject), Ingress: p.Ingress.record(), Egress: p.Egress.record()}
}

// Isolation is what the record of the policy's namespace says of it.
func (p Policy) Isolation() topology.IsolatingPolicy {
	return topology.IsolatingPolicy{Name: p.Name, Selector: string(p.Subject), Ingress: p.Ingress.Isolates, Egress: p.Egress.Isolates}
}

// FromRecord is the policy whose record this is.
func FromRecord(key Key, r topology.PolicyRecord) Policy {
	return Policy{Key: key, Subject: Selector(r.Selector), Ingress: fromRules(r.Ingress), Egress: fromRules(r.Egress)}
}

// Record is the policy's own record.
func (p ClusterPolicy) Record() topology.ClusterPolicyRecord {
	tier := topology.TierAdmin
	if p.Baseline {
		tier = topology.TierBaseline
	}
	return topology.ClusterPolicyRecord{
		Tier: tier, Priority: p.Priority, Subject: p.Subject.Record(),
		Ingress: clusterRecord(p.Ingress), Egress: clusterRecord(p.Egress),
	}
}

// Selecting is what the record of a namespace says of the policy, where
// [ClusterPolicy.Selects] has the namespace.
func (p ClusterPolicy) Selecting() topology.SelectingPolicy {
	return topology.SelectingPolicy{Name: p.Name, Selector: string(p.Subject.Pods)}
}

// ClusterFromRecord is the policy whose record this is.
func ClusterFromRecord(name string, r topology.ClusterPolicyRecord) ClusterPolicy {
	return ClusterPolicy{
		Name: name, Baseline: r.Tier == topology.TierBaseline, Priority: r.Priority, Subject: SetFromRecord(r.Subject),
		Ingress: fromClusterRules(r.Ingress), Egress: fromClusterRules(r.Egress),
	}
}

func clusterRecord(rules []ClusterRule) []topology.ClusterPolicyRule {
	var out []topology.ClusterPolicyRule
	for _, r := range rules {
		out = append(out, topology.ClusterPolicyRule{Action: r.Action.String(), PolicyRule: r.Rule.record()})
	}
	return out
}

// actions are those of ClusterNetworkPolicies, by the names that they have in records.
var actions = map[string]Action{topology.ActionAccept: Accept, topology.ActionDeny: Deny, topology.ActionPass: Pass}

func fromClusterRules(rules []topology.ClusterPolicyRule) []ClusterRule {
	var out []ClusterRule
	for _, r := range rules {
		out = append(out, ClusterRule{actions[r.Action], fromRule(r.PolicyRule)})
	}
	return out
}

func (s Side) record() []topology.PolicyRule {
	if !s.Isolates {
		return nil
	}
	rules := []topology.PolicyRule{}
	for _, r := range s.Rules {
		rules = append(rules, r.record())
	}
	return rules
}

func fromRules(rules []topology.PolicyRule) Side {
	s := Side{Isolates: rules != nil}
	for _, r := range rules {
		s.Rules = append(s.Rules, fromRule(r))
	}
	return s
}

func (r Rule) record() topology.PolicyRule {
	var out topology.PolicyRule
	if !r.AnyPeer {
		out.Peers = []topology.PolicyPeer{}
	}
	for _, p := range r.Peers {
		out.Peers = append(out.Peers, p.record())
	}
	if !r.AnyPort {
		out.Ports = []topology.PolicyPort{}
	}
	for _, p := range r.Ports {
		out.Ports = append(out.Ports, p.record())
	}
	return out
}

func fromRule(r topology.PolicyRule) Rule {
	out := Rule{AnyPeer: r.Peers == nil, AnyPort: r.Ports == nil}
	for _, p := range r.Peers {
		out.Peers = append(out.Peers, fromPeer(p))
	}
	for _, p := range r.Ports {
		out.Ports = append(out.Ports, fromPort(p))
	}
	return out
}

func (p Peer) record() topology.PolicyPeer {
	if p.Set == nil {
		return topology.PolicyPeer{Block: p.Block, Except: p.Except}
	}
	set := p.Set.Record()
	return topology.PolicyPeer{Set: &set}
}

func fromPeer(p topology.PolicyPeer) Peer {
	if p.Set == nil {
		return Peer{Block: p.Block, Except: p.Except}
	}
	set := SetFromRecord(*p.Set)
	return Peer{Set: &set}
}

func (p Port) record() topology.PolicyPort {
	out := topology.PolicyPort{Protocol: p.Protocol.String(), Name: p.Name, Port: p.First}
	if p.First != 0 && p.Last != p.First {
		out.End = p.Last
	}
	return out
}

// protocols are those of policies, by the names that they have in records.
var protocols = map[string]service.Protocol{"TCP": service.TCP, "UDP": service.UDP, "SCTP": service.SCTP}

func fromPort(p topology.PolicyPort) Port {
	out := Port{Protocol: protocols[p.Protocol], Name: p.Name, First: p.Port, Last: max(p.Port, p.End)}
	if p.Name == "" && p.Port == 0 {
		out.Last = maxPort
	}
	return out
}

// Record names the set in records.
func (s Set) Record() topology.PodSet {
	return topology.PodSet{
		Namespace: s.Namespace, Namespaces: string(s.Namespaces), Pods: string(s.Pods), PortName: s.PortName,
		OfNodes: s.OfNodes, Nodes: string(s.Nodes),
	}
}

// SetFromRecord is the set that a record names so.
func SetFromRecord(s topology.PodSet) Set {
	return Set{
		Namespace: s.Namespace, Namespaces: Selector(s.Namespaces), Pods: Selector(s.Pods), PortName: s.PortName,
		OfNodes: s.OfNodes, Nodes: Selector(s.Nodes),
	}
}

// Chunks are members as their set's records have them, by the keys of these.
func Chunks(members []Member) map[netip.Addr]topology.SetChunk {
	chunks := map[netip.Addr]topology.SetChunk{}
	for _, m := range members {
		base, octet := topology.ChunkOf(m.Address), m.Address.As4()[3]
		c := chunks[base]
		c.Addresses.Add(octet)
		for _, p := range m.Ports {
			c.Ports = addPort(c.Ports, p, octet)
		}
		chunks[base] = c
	}
	return chunks
}

// addPort takes in that a member has a port; ports stay sorted.
func addPort(ports []topology.ChunkPort, p NamedPort, octet byte) []topology.ChunkPort {
	fresh := topology.ChunkPort{Name: p.Name, Protocol: p.Protocol.String(), Port: p.Port}
	at, found := slices.BinarySearchFunc(ports, fresh, compareChunkPorts)
	if !found {
		ports = slices.Insert(ports, at, fresh)
	}
	ports[at].Addresses.Add(octet)
	return ports
}

func compareChunkPorts(a, b topology.ChunkPort) int {
	return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
}

// MembersOf are the members of a set by its records, in the order of their addresses.
func MembersOf(chunks map[netip.Addr]topology.SetChunk) []Member {
	var members []Member
	for base, c := range chunks {
		b := base.As4()
		for octet := range c.Addresses.All() {
			b[3] = octet
			m := Member{Address: netip.AddrFrom4(b)}
			for _, p := range c.Ports {
				if p.Addresses.Has(octet) {
					m.Ports = append(m.Ports, NamedPort{Name: p.Name, Protocol: protocols[p.Protocol], Port: p.Port})
				}
			}
			members = append(members, m)
		}
	}
	slices.SortFunc(members, func(a, b Member) int { return a.Address.Compare(b.Address) })
	return members
}
