package policy

// What policies may come to on a node. Whoever may write policies decides how much work they are for
// all nodes with pods that they are about: some hundred kilobytes of a block's exceptions are half a
// million prefixes. What comes to more is closed, so that others' policies and pods go on. The bounds
// hold on each node whatever the leader lets into the records.
const (
	// MostWritten bounds the peers that one NetworkPolicy names by its text, and as well its ports: see
	// [OfPolicy], which the leader and each node hold it to.
	MostWritten = 10_000
	// MostFlows bounds what it comes to with its subjects and members: the clauses of each of its rules.
	// Rules have flows in common, but each flow names all of its rules, so that what rules share is work
	// and memory for each of them: some 80 bytes and a microsecond. It is more than MostWritten rules for
	// 250 pods of a node and as many sets as [OfPolicy] allows, of 10,000 members each, come to.
	MostFlows = 1 << 23
	// MostReach bounds what one pod may reach past the switch, and MostReachOfNode what all pods of a node
	// may: ranges of addresses, and those of ports that some of them have. Pods of which policies say the
	// same count once.
	MostReach, MostReachOfNode = 1 << 14, 1 << 16
	// mostSteps bounds the work of finding out what one pod may reach, and mostStepsOfNode what all pods of
	// a node may, about half a second: nothing that policies say comes into force meanwhile.
	mostSteps, mostStepsOfNode = 1 << 26, 1 << 28
)

// rules is what a policy says of some subjects, apart from isolating them; false where it comes to more
// than one policy may, so that it allows nothing.
func (c *Compiler) rules(p Policy, subjects []Pod) (ingress, egress *tables, fits bool) {
	if e := p.Extent(); OfPolicy.Exceeded(len(e.Sets), e) != "" {
		return nil, nil, false
	}
	ingress, egress = newTables(), newTables()
	left := MostFlows
	bounded := func(t *tables) adder {
		return func(peers string, a Allow) {
			if left -= a.Flows(); left >= 0 {
				t.allow(peers, a)
			}
		}
	}
	for _, r := range p.Ingress.Rules {
		if c.ingress(bounded(ingress), p.Key, p.subject(), subjects, r); left < 0 {
			return nil, nil, false
		}
	}
	for _, r := range p.Egress.Rules {
		if c.egress(bounded(egress), p.Key, subjects, r); left < 0 {
			return nil, nil, false
		}
	}
	return ingress, egress, true
}

// prefixes is how many prefixes runs of addresses come to.
func prefixes(runs []run) (n int) {
	for _, r := range runs {
		r.each(addressBits, func(uint64, int) { n++ })
	}
	return n
}

// Flows is how many clauses an Allow comes to.
func (a Allow) Flows() int { return len(a.Subjects) + len(a.Peers.Prefixes) + matches(a.Ports) }

// matches are the fewest matches with a mask that have just those ports.
func matches(ports []PortRange) (n int) {
	for _, p := range ports {
		run{uint64(p.First), uint64(p.Last)}.each(portBits, func(uint64, int) { n++ })
	}
	return n
}

// costOfSpan and costOfPorts are what these cost of [MostReach], besides each range of ports: what ports
// some addresses have is a chain of its own in the node's firewall. nft takes a second for 64,000 ranges of
// addresses, and two for 4,000 chains.
const costOfSpan, costOfPorts = 1, 16

// closed is for a pod whose way past the switch is closed: it reaches its own node.
func (c Compiled) closed() Reach {
	enough := steps(mostSteps)
	return c.reach(c.last(true), &enough).Reach
}

// sized is a Reach with what it costs; without a Reach it would be more than one pod's may be.
type sized struct {
	Reach
	cost int
}
