package policy

import "slices"

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
