package policy

import (
	"cmp"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/k8s-ovs/k8s-ovs/pkg/service"
)

// ClusterPolicy is a ClusterNetworkPolicy as it was understood.
type ClusterPolicy struct {
	Name string
	// Baseline says that it is asked after NetworkPolicies, and only of pods that those do
	// not isolate. Else it is of the Admin tier, which is asked before them.
	Baseline bool
	// Priority is the policy's place in its tier: the lowest is asked first, and of equal
	// ones the first by name.
	Priority int32
	// Subject are the pods that it is about.
	Subject Set
	// Ingress and Egress are asked in their order: the first rule that is about a packet
	// decides.
	Ingress, Egress []ClusterRule
}

// ClusterRule says what becomes of the packets that a rule is about.
type ClusterRule struct {
	Action Action
	Rule
}

// Action is what becomes of a packet.
type Action uint8

// The actions. They are decisions of one tier and direction.
const (
	// Pass leaves it to the next tier.
	Pass Action = iota
	// Accept lets it go on, whatever the tiers behind say.
	Accept
	// Deny drops it.
	Deny
)

func (a Action) String() string {
	switch a {
	case Accept:
		return "Accept"
	case Deny:
		return "Deny"
	}
	return "Pass"
}

// Sets are the sets whose members decide what p is about, each once, in order.
func (p ClusterPolicy) Sets() []Set {
	var sets []Set
	for _, r := range p.Ingress {
		sets = append(sets, r.ingressSets(p.Subject)...)
	}
	for _, r := range p.Egress {
		sets = append(sets, r.egressSets()...)
	}
	return sorted(sets, Set.Compare)
}

// PortsOf are the names of ports that p looks up at the members of its sets: see [Policy.PortsOf].
func (p ClusterPolicy) PortsOf() map[Set][]string {
	out := map[Set][]string{}
	for _, r := range p.Ingress {
		r.lookUpIngress(out, p.Subject)
	}
	for _, r := range p.Egress {
		r.lookUpEgress(out)
	}
	return distinct(out)
}

// Selects says whether the policy's subject has pods of a namespace with these labels, as
// far as the namespace decides. A selector that cannot be read chooses all.
func (p ClusterPolicy) Selects(namespace map[string]string) bool {
	return p.Subject.Namespaces.Matcher()(namespace)
}

// closed are the rules that are left when some part of them, or of their policy, was not
// understood: who might be accepted is not, and who might not be is denied.
func closed(rules []ClusterRule) []ClusterRule {
	var out []ClusterRule
	for _, r := range rules {
		if r.Action != Accept {
			r.Action = Deny
			out = append(out, r)
		}
	}
	return out
}

// ClosedCluster is a policy of which nothing was understood but its name.
func ClosedCluster(name string) ClusterPolicy {
	return ClusterPolicy{Name: name, Ingress: denyAll(), Egress: denyAll()}
}

// Closed is what is left of a policy whose rules cannot be in force: it accepts nothing, and
// denies all in a direction in which some rule does not accept.
func (p ClusterPolicy) Closed() ClusterPolicy {
	for _, rules := range []*[]ClusterRule{&p.Ingress, &p.Egress} {
		if *rules = closed(*rules); len(*rules) > 0 {
			*rules = denyAll()
		}
	}
	return p
}

func denyAll() []ClusterRule { return []ClusterRule{{Deny, Rule{AnyPeer: true, AnyPort: true}}} }

// cluster puts what ClusterNetworkPolicies come to into the tables.
func (c *Compiler) cluster(to *Compiled, policies []ClusterPolicy) {
	policies = slices.Clone(policies)
	slices.SortFunc(policies, func(p, q ClusterPolicy) int {
		return cmp.Or(cmp.Compare(p.Priority, q.Priority), cmp.Compare(p.Name, q.Name))
	})
	var admin, baseline struct{ ingress, egress tier }
	for _, p := range policies {
		t := &admin
		if p.Baseline {
			t = &baseline
		}
		by := Key{Name: p.Name}
		for _, p := range c.about(p) {
			for _, r := range p.Ingress {
				for _, r := range c.closing(r, r.ingressSets(p.Subject)) {
					c.ingress(c.adder(&t.ingress, r.Action), by, p.Subject, p.subjects, r.Rule)
				}
			}
			for _, r := range p.Egress {
				for _, r := range c.closing(r, r.egressSets()) {
					c.egress(c.adder(&t.egress, r.Action), by, p.subjects, r.Rule)
				}
			}
		}
	}
	to.Ingress.Admin, to.Ingress.Baseline = admin.ingress.inOrder(), baseline.ingress.inOrder()
	to.Egress.Admin, to.Egress.Baseline = admin.egress.inOrder(), baseline.egress.inOrder()
}

// meant is a policy as it counts for some pods of this node.
type meant struct {
	ClusterPolicy
	subjects []Pod
}

// about are the subjects of a policy on this node, and apart from them those that may be: for
// these it closes. A selector that cannot be read, as in a record made by hand, chooses all of
// them, and closes.
func (c *Compiler) about(p ClusterPolicy) (all []meant) {
	match, err := p.Subject.Pods.parsed()
	sure, doubtful := meant{ClusterPolicy: p}, meant{ClusterPolicy: p}
	doubtful.Ingress, doubtful.Egress = closed(p.Ingress), closed(p.Egress)
	for _, pod := range c.in.Subjects {
		switch {
		case c.in.Doubt != nil && c.in.Doubt(p, pod), err != nil && c.in.Selects(p, pod.Namespace):
			doubtful.subjects = append(doubtful.subjects, pod)
		case err == nil && c.in.Selects(p, pod.Namespace) && match.Matches(labels.Set(pod.Labels)):
			sure.subjects = append(sure.subjects, pod)
		}
	}
	return slices.DeleteFunc([]meant{sure, doubtful}, func(m meant) bool { return len(m.subjects) == 0 })
}

// closing is a rule, and behind it what closes because of what the node lacks: members of its sets,
// or ports of SCTP.
func (c *Compiler) closing(r ClusterRule, sets []Set) []ClusterRule {
	rules := c.withLate(r, sets)
	if !c.in.NoSCTPPorts || r.Action != Pass {
		return rules
	}
	sctp := slices.DeleteFunc(slices.Clone(r.Ports), func(p Port) bool { return p.Protocol != service.SCTP })
	if len(sctp) > 0 {
		rules = append(rules, ClusterRule{Deny, Rule{AnyPeer: r.AnyPeer, Peers: r.Peers, Ports: sctp}})
	}
	return rules
}

// adder takes what the next rule comes to, as far as the node's datapath can tell.
func (c *Compiler) adder(t *tier, a Action) adder {
	add := t.adder(a)
	if !c.in.NoSCTPPorts || a != Deny {
		return add
	}
	return func(peers string, allow Allow) {
		allow.Ports = slices.Clone(allow.Ports)
		for i, p := range allow.Ports {
			if all := (PortRange{service.SCTP, 0, maxPort}); p.Protocol == service.SCTP && p != all {
				allow.Ports[i] = all
				// Of egress each number that a name stands for has peers of its own, which the ports
				// no longer tell apart.
				peers += fmt.Sprint(" at ", p.First, "-", p.Last)
			}
		}
		allow.Ports = sorted(allow.Ports, comparePorts)
		add(peers, allow)
	}
}

// withLate is a rule, and behind it what closes while some of its sets are not whole: a Deny
// of all whom those may still come to have. Accept needs none. A Pass does: behind it the
// tier may accept.
func (c *Compiler) withLate(r ClusterRule, sets []Set) []ClusterRule {
	late := func(s Set) bool { _, whole := c.in.Members(s); return !whole }
	if r.Action == Accept || !slices.ContainsFunc(sets, late) {
		return []ClusterRule{r}
	}
	wide := ClusterRule{Deny, Rule{AnyPeer: r.AnyPeer, Peers: slices.Clone(r.Peers), AnyPort: r.AnyPort, Ports: r.Ports}}
	for _, s := range r.peerSets() {
		switch {
		case !late(s):
		case s.OfNodes:
			wide.AnyPeer = true
		default:
			wide.Peers = append(wide.Peers, Peer{Set: &Set{}})
		}
	}
	// Which number a name stands for is known from the same sets.
	if slices.ContainsFunc(r.Ports, func(p Port) bool { return p.Name != "" }) {
		wide.AnyPort, wide.Ports = true, nil
	}
	if wide.AnyPeer {
		wide.Peers = nil
	}
	return []ClusterRule{r, wide}
}

// tier gathers the decisions of one tier and direction, which come in the order in which
// they are asked.
type tier struct {
	decisions []*Decision
	// level is that of the newest, action its action, and names are the decisions of that
	// level by their names; nil before the first.
	level  int
	action Action
	names  map[string]*Decision
}

// adder takes what the next rule comes to. Levels follow from rules and subjects, not from
// peers: they do not change when pods come and go elsewhere.
func (t *tier) adder(a Action) adder {
	switch {
	case t.names == nil:
		t.names = map[string]*Decision{}
	case a != t.action:
		t.level++
		t.names = map[string]*Decision{}
	}
	t.action = a
	return func(peers string, allow Allow) {
		if allow.empty() {
			return
		}
		allow.Name = allow.name(peers)
		if same := t.names[allow.Name]; same != nil {
			same.join(allow)
			return
		}
		d := &Decision{t.level, a, allow}
		t.names[allow.Name] = d
		t.decisions = append(t.decisions, d)
	}
}

// inOrder are the decisions by level and name.
func (t *tier) inOrder() []Decision {
	var out []Decision
	for _, d := range t.decisions {
		out = append(out, Decision{d.Level, d.Action, d.Allow.inOrder()})
	}
	slices.SortFunc(out, func(a, b Decision) int { return cmp.Or(cmp.Compare(a.Level, b.Level), cmp.Compare(a.Name, b.Name)) })
	return out
}
