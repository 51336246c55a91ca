// Package policy says what NetworkPolicies mean: which pods they isolate, and what those
// may be reached by and reach. It is pure, and no flow is made here.
//
// A policy goes through it in two steps. [Parse] reads the object of the API server into a
// [Policy], whose peers are named by the sets of pods that they choose ([Set]); it is the
// same on every node. [Compile] puts the members of those sets, and the pods of one node,
// in their places: a [Compiled] knows addresses and numbers of ports only.
package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/k8s-ovs/k8s-ovs/pkg/service"
)

// Key names a policy or a pod.
type Key struct{ Namespace, Name string }

// Compare orders by namespace, then by name.
func (k Key) Compare(l Key) int {
	return cmp.Or(cmp.Compare(k.Namespace, l.Namespace), cmp.Compare(k.Name, l.Name))
}

func (k Key) String() string { return k.Namespace + "/" + k.Name }

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

// Rule allows some peers on some ports.
type Rule struct {
	// AnyPeer says that all are allowed: pods, nodes, the outside. Else those of Peers
	// are, so none where there are none.
	AnyPeer bool
	Peers   []Peer
	// AnyPort says that all protocols and ports are allowed. Else those of Ports are.
	AnyPort bool
	Ports   []Port
}

// Peer is a set of pods, or a block of addresses.
type Peer struct {
	// Set is nil for a block.
	Set *Set
	// Block are addresses, Except those of them that are left out.
	Block  netip.Prefix
	Except []netip.Prefix
}

// String names the peer, and no other by the same name.
func (p Peer) String() string {
	if p.Set != nil {
		return fmt.Sprintf("%q", []string{p.Set.Namespace, string(p.Set.Namespaces), string(p.Set.Pods), p.Set.PortName})
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
		sets = append(sets, r.sets()...)
	}
	for _, r := range p.Egress.Rules {
		sets = append(sets, r.sets()...)
		sets = append(sets, r.portSets()...)
	}
	slices.SortFunc(sets, Set.Compare)
	return slices.Compact(sets)
}

// sets are those that the rule names as peers.
func (r Rule) sets() []Set {
	var sets []Set
	for _, p := range r.Peers {
		if p.Set != nil && !p.Set.AllPods() {
			sets = append(sets, *p.Set)
		}
	}
	return sets
}

// portSets are those that tell, for the named ports of a rule of egress, which number has
// that name at pods that the rule names by no set: by a block, or not at all.
func (r Rule) portSets() []Set {
	if !r.AnyPeer && !slices.ContainsFunc(r.Peers, func(p Peer) bool { return p.Set == nil || p.Set.AllPods() }) {
		return nil
	}
	var sets []Set
	for _, p := range r.Ports {
		if p.Name != "" {
			sets = append(sets, Set{PortName: p.Name})
		}
	}
	return sets
}
