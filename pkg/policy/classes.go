package policy

import (
	"cmp"
	"encoding/binary"
	"maps"
	"math/bits"
	"net/netip"
	"slices"
)

// class is pods of which policies say the same past the switch. One namespace has all of them where
// NetworkPolicies let them reach something there; else namespace is empty, and what they may reach
// follows from the administrator's policies alone.
type class struct {
	namespace string
	isolates  bool
	// about are the rules about them, by their index; pods are in order.
	about []int
	pods  []netip.Addr
	sized
}

// classesOf are the classes of pods, with whether NetworkPolicies isolate each, in the order of the first
// pod of each.
func classesOf(rules []outsideRule, isolated map[netip.Addr]bool) (out []*class) {
	about := map[netip.Addr][]int{}
	for i, r := range rules {
		for _, s := range r.subjects {
			if isolates, ok := isolated[s]; ok && (r.tier == adminTier || isolates == (r.tier == networkTier)) {
				about[s] = append(about[s], i)
			}
		}
	}
	known := map[bool]map[string]*class{true: {}, false: {}}
	for _, s := range slices.SortedFunc(maps.Keys(isolated), netip.Addr.Compare) {
		isolates, key := isolated[s], keyOf(nil, about[s])
		k, ok := known[isolates][string(key)]
		if !ok {
			k = &class{namespace: namespaceOf(rules, about[s]), isolates: isolates, about: about[s]}
			known[isolates][string(key)] = k
			out = append(out, k)
		}
		k.pods = append(k.pods, s)
	}
	return out
}

// namespaceOf is that of the NetworkPolicies among some of rules: all have the one of their subject.
func namespaceOf(rules []outsideRule, about []int) string {
	for _, i := range about {
		if r := rules[i]; r.tier == networkTier && len(r.Policies) > 0 {
			return r.Policies[0].Namespace
		}
	}
	return ""
}

// keyOf appends to key what numbers are known by in a map.
func keyOf(key []byte, numbers []int) []byte {
	for _, n := range numbers {
		key = binary.AppendUvarint(key, uint64(n))
	}
	return key
}

// steps is work that may still be done.
type steps int

// take takes n of them, and reports whether there were as many.
func (s *steps) take(n int) bool {
	if n > int(*s) {
		return false
	}
	*s -= steps(n)
	return true
}

// size finds out what all classes may reach, in so many steps. Each namespace has as many steps as every
// other, and what those leave that need less.
func (c Compiled) size(classes []*class, rules []outsideRule, left steps) {
	of, needs, need := map[string][]*class{}, map[string]int{}, map[*class]int{}
	for _, k := range classes {
		need[k] = workOf(rules, k.about) // where all rules are about one address
		for _, i := range k.about {
			need[k] += workOfEdges(rules[i : i+1])
		}
		of[k.namespace] = append(of[k.namespace], k)
		needs[k.namespace] += need[k]
	}
	names := slices.SortedFunc(maps.Keys(of), func(a, b string) int { return cmp.Or(cmp.Compare(needs[a], needs[b]), cmp.Compare(a, b)) })
	for i, name := range names {
		share := left / steps(len(names)-i)
		left -= share
		slices.SortStableFunc(of[name], func(a, b *class) int { return cmp.Compare(need[a], need[b]) })
		for _, k := range of[name] {
			most := min(share, mostSteps)
			rest := most
			k.sized = c.reach(append(rulesOf(rules, k.about), c.last(k.isolates)...), &rest)
			share -= most - rest
		}
		left += share
	}
}

func rulesOf(rules []outsideRule, about []int) []outsideRule {
	out := make([]outsideRule, 0, len(about)+2)
	for _, i := range about {
		out = append(out, rules[i])
	}
	return out
}

// workOfEdges is how many steps it takes to put the edges of rules in order.
func workOfEdges(rules []outsideRule) int {
	n := 4
	for _, r := range rules {
		n += 2 * (len(r.Peers.Prefixes) + 1)
	}
	return n * bits.Len(uint(n))
}

// workOf is how many steps [portsOf] takes.
func workOf(rules []outsideRule, active []int) int {
	ports := 0
	for _, i := range active {
		ports += len(rules[i].Ports) + 1
	}
	return 2 * ports * ports
}

// bound takes the ways past the switch of those classes for which there is no room on the node. The room
// is given out class by class to the namespace that has least with it, so that each has its share of what
// the node has, and what others do not need of theirs; in a namespace who needs least comes first. Of
// those that need the same, the one with the lowest address does, so that the same ones are closed as
// long as nothing changes.
func bound(classes []*class) {
	classes = slices.Clone(classes) // in the order of their addresses, which sorting keeps among equals
	slices.SortStableFunc(classes, func(a, b *class) int { return cmp.Compare(a.cost, b.cost) })
	used, with := map[string]int{}, map[*class]int{}
	for _, k := range classes {
		used[k.namespace] += k.cost
		with[k] = used[k.namespace]
	}
	slices.SortStableFunc(classes, func(a, b *class) int { return cmp.Compare(with[a], with[b]) })
	left := MostReachOfNode
	for _, k := range classes {
		if k.cost > left {
			k.sized = sized{}
		}
		left -= k.cost
	}
}
