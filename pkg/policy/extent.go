package policy

import (
	"fmt"
	"slices"
)

// Extent is how much a policy comes to, whoever is a member of its sets: what the leader keeps for
// it, and what nodes make flows of.
type Extent struct {
	// Sets are those whose members have to be kept.
	Sets []Set
	// Peers are the sets and prefixes that its rules name, each as often as one does. A block
	// counts as the prefixes that are left of it without those excepted, or as these where they are more.
	Peers int
	// Ports are its rules, or for a rule with ports what these come to as numbers and masks.
	Ports int
	// Names are names of ports, each for all peers that they are looked up at.
	Names int
}

// Bounds are how much policies may come to.
type Bounds struct{ Sets, Peers, Ports, Names int }

// A set is kept for as long as a policy names it: each pod in it is in the leader's memory, and each /24
// of its pods a record. Peers and ports are flows on every node that has a pod of the policy. What 10,000
// rules for 250 pods in one namespace come to, with 4,000 peers in 400 sets and 100 ports, is below
// half of what a namespace may have. docs/policy.md, "How much policies may come to", has these.
var (
	// OfPolicy are of one NetworkPolicy. The leader closes what comes to more, and so does each node,
	// whatever the leader let into the records: both count alike, by the text alone, so that none closes
	// what the other has in force.
	OfPolicy = Bounds{Sets: 500, Peers: MostWritten, Ports: MostWritten, Names: 1000}
	// OfNamespace are of all NetworkPolicies in force of a namespace.
	OfNamespace = Bounds{Sets: 1000, Peers: 30_000, Ports: 30_000, Names: 2000}
	// OfCluster are of one ClusterNetworkPolicy. Those are administrators'.
	OfCluster = Bounds{Sets: 1000, Peers: 30_000, Ports: 30_000, Names: 2000}
)

// Exceeded says what is too much of so many sets and what else policies come to; empty for nothing. It
// does not say by how much: that may change with each policy, and people are told anew of what reads
// otherwise.
func (b Bounds) Exceeded(sets int, e Extent) string {
	for _, one := range []struct {
		is, most int
		of       string
	}{
		{sets, b.Sets, "sets of pods or nodes"}, {e.Peers, b.Peers, "peers and prefixes"},
		{e.Ports, b.Ports, "rules and ports"}, {e.Names, b.Names, "names of ports at peers"},
	} {
		if one.is > one.most {
			return fmt.Sprintf("more than %d %s", one.most, one.of)
		}
	}
	return ""
}

// Extent is how much p comes to.
func (p Policy) Extent() Extent {
	return extent(p.Sets(), slices.Concat(p.Ingress.Rules, p.Egress.Rules))
}

// Extent is how much p comes to.
func (p ClusterPolicy) Extent() Extent {
	var rules []Rule
	for _, r := range slices.Concat(p.Ingress, p.Egress) {
		rules = append(rules, r.Rule)
	}
	return extent(p.Sets(), rules)
}

func extent(sets []Set, rules []Rule) Extent {
	e := Extent{Sets: sets}
	for _, r := range rules {
		for _, p := range r.Peers {
			e.Peers += p.extent()
		}
		ports, names := 0, 0
		for _, p := range r.Ports {
			if p.Name != "" {
				names++
			} else {
				ports += matches([]PortRange{{First: p.First, Last: p.Last}})
			}
		}
		e.Ports += max(1, ports)
		e.Names += names * max(1, len(r.Peers))
	}
	return e
}

func (p Peer) extent() int {
	if p.Set != nil {
		return 1
	}
	if !p.Block.IsValid() || !p.Block.Addr().Is4() {
		return 1 + len(p.Except)
	}
	return max(1+len(p.Except), prefixes(runOf(p.Block).without(union(p.Except))))
}
