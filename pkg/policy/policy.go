// Package policy says what NetworkPolicies and ClusterNetworkPolicies mean: which pods they
// are about, and what those may be reached by and reach. It is pure, and no flow is made here.
//
// A policy goes through it in two steps. [Parse] and [ParseCluster] read the object of the
// API server into a [Policy] or a [ClusterPolicy], whose peers are named by the sets of pods
// that they choose ([Set]); it is the same on every node. A [Compiler] puts the members of
// those sets, and the pods of one node, in their places: a [Compiled] knows addresses and
// numbers of ports only. An [Index] says who is a member.
package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/k8s-ovs/k8s-ovs/pkg/service"
)

// Key names a policy or a pod. That of a ClusterNetworkPolicy has no namespace.
type Key struct{ Namespace, Name string }

// Compare orders by namespace, then by name.
func (k Key) Compare(l Key) int {
	return cmp.Or(cmp.Compare(k.Namespace, l.Namespace), cmp.Compare(k.Name, l.Name))
}

func (k Key) String() string {
	if k.Namespace == "" {
		return k.Name
	}
	return k.Namespace + "/" + k.Name
}

// Policy is a NetworkPolicy as it was understood.
type Policy struct {
	Key
	// Subject chooses the pods of its namespace that it is about.
	Subject Selector
	// Ingress and Egress are what it says of packets to these pods, and from them.
	Ingress, Egress Side
}

// Side is what a policy says of one direction.
type Side struct {
	// Isolates says that its pods may do in this direction only what some rule allows.
	Isolates bool
	Rules    []Rule
}

// Rule is about some peers on some ports. One of a NetworkPolicy allows them.
type Rule struct {
	// AnyPeer says that it is about all: pods, nodes, the outside. Else it is about those
	// of Peers, so about none where there are none.
	AnyPeer bool
	Peers   []Peer
	// AnyPort says that it is about all protocols and ports. Else about those of Ports.
	AnyPort bool
	Ports   []Port
}

// Peer is a set of pods or of nodes, or a block of addresses.
type Peer struct {
	// Set is nil for a block of addresses.
	Set *Set
	// Block are addresses, Except those of them that are left out.
	Block  netip.Prefix
	Except []netip.Prefix
}

// String names the peer, and no other by the same name.
func (p Peer) String() string {
	if p.Set != nil {
		return p.Set.String()
	}
	return fmt.Sprint(p.Block, p.Except)
}

// Port is one of a rule.
type Port struct {
	Protocol service.Protocol
	// Name is that of a port of a container, to be looked up at the pod that is
	// reached; else empty.
	Name string
	// First to Last are the numbers, where there is no Name.
	First, Last uint16
}

// Sets are the sets whose members decide what p allows, each once, in order.
func (p Policy) Sets() []Set {
	var sets []Set
	for _, r := range p.Ingress.Rules {
		sets = append(sets, r.ingressSets(p.subject())...)
	}
	for _, r := range p.Egress.Rules {
		sets = append(sets, r.egressSets()...)
	}
	return sorted(sets, Set.Compare)
}

// PortsOf are the names of ports that p looks up at the members of its sets, by set. Others of a
// member's ports nobody asks that set for.
func (p Policy) PortsOf() map[Set][]string {
	out := map[Set][]string{}
	for _, r := range p.Ingress.Rules {
		r.lookUpIngress(out, p.subject())
	}
	for _, r := range p.Egress.Rules {
		r.lookUpEgress(out)
	}
	return distinct(out)
}

// lookUpIngress adds the names that a rule of ingress looks up.
func (r Rule) lookUpIngress(to map[Set][]string, subject Set) {
	for _, p := range r.Ports {
		if p.Name != "" {
			set := subject.with(p.Name)
			to[set] = append(to[set], p.Name)
		}
	}
}

// lookUpEgress adds the names that a rule of egress looks up: at each of its peers, and in sets of
// pods with such a port.
func (r Rule) lookUpEgress(to map[Set][]string) {
	var names []string
	for _, p := range r.Ports {
		if p.Name != "" {
			names = append(names, p.Name)
		}
	}
	if len(names) == 0 {
		return
	}
	for _, set := range r.egressSets() {
		if set.PortName != "" {
			to[set] = append(to[set], set.PortName)
		} else {
			to[set] = append(to[set], names...)
		}
	}
}

// distinct has each name once.
func distinct(names map[Set][]string) map[Set][]string {
	for set, list := range names {
		slices.Sort(list)
		names[set] = slices.Compact(list)
	}
	return names
}

// subject is the set of pods that the policy is about, on all nodes.
func (p Policy) subject() Set { return Set{Namespace: p.Namespace, Pods: p.Subject} }

// ingressSets are those that a rule of ingress needs: its peers, and for its named ports
// the subjects that have such a port.
func (r Rule) ingressSets(subject Set) []Set {
	sets := r.peerSets()
	for _, p := range r.Ports {
		if p.Name != "" {
			sets = append(sets, subject.with(p.Name))
		}
	}
	return sets
}

// egressSets are those that a rule of egress needs: its peers, and for its named ports the
// pods that have such a port, where it names its peers by no set: by a block, or not at all.
func (r Rule) egressSets() []Set {
	sets := r.peerSets()
	unlisted := func(p Peer) bool { return p.Set == nil || p.Set.AllPods() }
	if !r.AnyPeer && !slices.ContainsFunc(r.Peers, unlisted) {
		return sets
	}
	for _, p := range r.Ports {
		if p.Name != "" {
			sets = append(sets, Set{}.with(p.Name))
		}
	}
	return sets
}

// peerSets are the rule's peers whose members have to be listed.
func (r Rule) peerSets() []Set {
	var sets []Set
	for _, p := range r.Peers {
		if p.Set != nil && !p.Set.AllPods() {
			sets = append(sets, *p.Set)
		}
	}
	return sets
}
