package pipeline

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"strconv"

	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
	"github.com/k8s-ovs/k8s-ovs/pkg/policy"
)

// Priorities of rules: each level of a table has some for itself. The first is that of rules
// which ask for nothing but their subjects: those are plain flows. All others are conjunctive
// matches at the next, and what does not fit there is at those below, to the last.
//
// NetworkPolicy is one level, from priorityAll to one above priorityIsolated. Those of
// ClusterNetworkPolicy have perLevel each; nobody has more than there is room for.
const (
	priorityAll = 40010

	priorityTop = 60000
	perLevel    = 16
	maxLevel    = priorityTop/perLevel - 1
)

// maxConjunctions is how many rules a clause may belong to: the flow of one with more does not
// fit into a message.
const maxConjunctions = 4000

// RuleOwner is an owner in the area of [Policies], with its flow: a rule, or a clause that
// rules have in common.
type RuleOwner struct {
	Kind Kind
	// Name is its own among those of its kind.
	Name string
	// Flows is none where the owner is gone.
	Flows []of.Flow
}

// Rules are what the policies of a node allow, as flows. A rule is a conjunctive match of
// subjects, peers and ports; each of these clauses is there once for all rules that have it, so
// the flows are the sum of subjects, peers and ports and not their product, and a change costs
// what it changes. [NewRules] makes one. It is not for several goroutines at once.
type Rules struct {
	// most is maxConjunctions but in tests.
	most     int
	policies map[policy.Key][]*part
	rules    map[ruleName]*rule
	numbers  map[uint32]*rule
	clauses  map[clauseKey]*clause
	// changedRules and changedClauses have other flows than the caller knows.
	changedRules   map[uint32]bool
	changedClauses map[clauseKey]bool
}

// ruleName is what a rule is known by: what it is about, whoever its subjects are, and what
// becomes of that.
type ruleName struct {
	place
	name string
}

// place is a table, a level there, and what becomes of what a rule there is about.
type place struct {
	table  uint8
	level  int
	action policy.Action
}

// rule is what one or more policies say alike.
type rule struct {
	ruleName
	// number ties its clauses together. It follows from the name, so that an agent that
	// restarts finds its flows unchanged.
	number   uint32
	priority uint16
	// parts are what each of the policies says.
	parts []*part
}

// part is what one policy says of a rule.
type part struct {
	*rule
	policy.Allow
	network netip.Prefix
}

// clauseKey is what a clause's flow matches, and where.
type clauseKey struct {
	place
	priority uint16
	// plain is that the clause is a rule by itself.
	plain bool
	// kind is KindSubject, KindAllowed or KindPort.
	kind Kind
	// prefix has a subject, or peers. Where pods is true those are all pods, and prefix is the
	// cluster network, in which nodes have addresses too.
	prefix netip.Prefix
	pods   bool
	ports  portMatch
}

// portMatch is the ports of a protocol that are like port under mask.
type portMatch struct {
	protocol   uint8
	port, mask uint16
}

// clause is the rules that it belongs to, in the order of their numbers.
type clause []membership

// membership is a clause's in a rule: it is the nth kind of clause of so many. users are the
// parts of the rule that have the clause.
type membership struct {
	number uint32
	n, of  uint8
	users  int32
}

// NewRules has none.
func NewRules() *Rules {
	return &Rules{
		most: maxConjunctions, policies: map[policy.Key][]*part{}, rules: map[ruleName]*rule{}, numbers: map[uint32]*rule{},
		clauses: map[clauseKey]*clause{}, changedRules: map[uint32]bool{}, changedClauses: map[clauseKey]bool{},
	}
}

// Set makes the policies named what they come to, each by itself: nothing for one that is gone.
// All ClusterNetworkPolicies together have one name. It returns the owners whose flows are others
// now. Policies that name a set whose members
// changed are to be given together, as what they say alike is one rule.
func (r *Rules) Set(policies map[policy.Key]policy.Compiled) []RuleOwner {
	r.Take(policies)
	return r.changed()
}

// Take is Set for a caller who asks for All later: of what changes it is told that something does.
func (r *Rules) Take(policies map[policy.Key]policy.Compiled) (changed bool) {
	for _, key := range inOrder(policies) {
		old := map[ruleName][]*part{}
		for _, p := range r.policies[key] {
			old[p.ruleName] = append(old[p.ruleName], p)
		}
		// What comes first, so that what stays has not changed.
		if r.policies[key] = r.enter(policies[key], old); len(r.policies[key]) == 0 {
			delete(r.policies, key)
		}
		for _, parts := range old {
			for _, p := range parts {
				r.leave(p)
			}
		}
	}
	return len(r.changedRules)+len(r.changedClauses) > 0
}

// Add is Set by which the policies go on to allow what they did: until Set takes that away
// something else may change, and what both allow is allowed meanwhile. It is not for
// ClusterNetworkPolicies: their levels are an order, and two of them together say neither's.
func (r *Rules) Add(policies map[policy.Key]policy.Compiled) []RuleOwner {
	for _, key := range inOrder(policies) {
		r.policies[key] = append(r.policies[key], r.enter(policies[key], nil)...)
	}
	return r.changed()
}

// All are all owners, of which none has changed then.
func (r *Rules) All() []RuleOwner {
	owners := make([]RuleOwner, 0, len(r.numbers)+len(r.clauses))
	for _, rule := range r.numbers {
		owners = append(owners, r.ruleOwner(rule.number))
	}
	for key := range r.clauses {
		owners = append(owners, r.clauseOwner(key))
	}
	clear(r.changedRules)
	clear(r.changedClauses)
	return sortedOwners(slices.DeleteFunc(owners, func(o RuleOwner) bool { return o.Flows == nil }))
}

// changed are the owners whose flows are others than when it was last asked.
func (r *Rules) changed() []RuleOwner {
	owners := make([]RuleOwner, 0, len(r.changedRules)+len(r.changedClauses))
	for number := range r.changedRules {
		owners = append(owners, r.ruleOwner(number))
	}
	for key := range r.changedClauses {
		owners = append(owners, r.clauseOwner(key))
	}
	clear(r.changedRules)
	clear(r.changedClauses)
	return sortedOwners(owners)
}

func sortedOwners(owners []RuleOwner) []RuleOwner {
	slices.SortFunc(owners, func(a, b RuleOwner) int { return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name)) })
	return owners
}

// inOrder are the names of policies in an order, which numbers follow from where two rules
// would have the same.
func inOrder(policies map[policy.Key]policy.Compiled) []policy.Key {
	return slices.SortedFunc(maps.Keys(policies), policy.Key.Compare)
}

// enter takes in what a policy comes to. Of the parts that it had it takes those of rules that it
// still has, of which only what differs is work: a pod that comes is one clause of each rule.
func (r *Rules) enter(c policy.Compiled, had map[ruleName][]*part) (parts []*part) {
	says := map[*part]policy.Allow{}
	take := func(at place, allow policy.Allow) {
		name := ruleName{at, allow.Name}
		p := &part{rule: r.rule(name), network: c.Network}
		if same := had[name]; len(same) > 0 && same[0].network == c.Network {
			p, had[name] = same[0], same[1:]
		} else {
			p.AnyPort, p.Peers.Any = allow.AnyPort, allow.Peers.Any
			p.parts = append(p.parts, p)
		}
		parts = append(parts, p)
		says[p] = allow
	}
	for _, side := range []struct {
		policy.Table
		admin, namespaced, baseline uint8
	}{{c.Egress, TableEgressAdmin, TableEgress, TableEgressBaseline}, {c.Ingress, TableIngressAdmin, TableIngress, TableIngressBaseline}} {
		for _, d := range side.Admin {
			take(place{side.admin, min(d.Level, maxLevel), d.Action}, d.Allow)
		}
		for _, a := range side.Allows {
			take(place{side.namespaced, 0, policy.Accept}, a)
		}
		for _, d := range side.Baseline {
			take(place{side.baseline, min(d.Level, maxLevel), d.Action}, d.Allow)
		}
	}
	// By number, so that what comes to a clause comes behind what it has, and moves none of that.
	slices.SortStableFunc(parts, func(p, q *part) int { return cmp.Compare(p.number, q.number) })
	for _, p := range parts {
		r.become(p, says[p])
	}
	return parts
}

// become makes a part what is said of its rule now.
func (r *Rules) become(p *part, allow policy.Allow) {
	comes, goes := part{p.rule, without(allow, p.Allow), p.network}, part{p.rule, without(p.Allow, allow), p.network}
	fits := r.join(&comes)
	r.quit(&goes)
	for p.Allow = allow; !fits; {
		fits = r.lower(p.rule)
	}
}

// without is what a has and b has not. They are of one rule.
func without(a, b policy.Allow) policy.Allow {
	a.Subjects = minus(a.Subjects, b.Subjects, netip.Addr.Compare)
	a.Peers.Prefixes = minus(a.Peers.Prefixes, b.Peers.Prefixes, func(x, y netip.Prefix) int {
		return cmp.Or(x.Addr().Compare(y.Addr()), cmp.Compare(x.Bits(), y.Bits()))
	})
	a.Peers.Pods = a.Peers.Pods && !b.Peers.Pods
	a.Ports = minus(a.Ports, b.Ports, func(x, y policy.PortRange) int {
		return cmp.Or(cmp.Compare(x.Protocol, y.Protocol), cmp.Compare(x.First, y.First), cmp.Compare(x.Last, y.Last))
	})
	return a
}

// minus are the elements of a that are not in b; both are sorted, as policy.Compiled has them.
func minus[T comparable](a, b []T, compare func(x, y T) int) (out []T) {
	if slices.Equal(a, b) {
		return nil
	}
	for _, x := range a {
		for len(b) > 0 && compare(b[0], x) < 0 {
			b = b[1:]
		}
		if len(b) == 0 || compare(b[0], x) != 0 {
			out = append(out, x)
		}
	}
	return out
}

// leave takes out again what a policy came to.
func (r *Rules) leave(p *part) {
	r.quit(p)
	p.parts = slices.DeleteFunc(p.parts, func(q *part) bool { return q == p })
	if len(p.parts) == 0 {
		delete(r.rules, p.ruleName)
		delete(r.numbers, p.number)
		r.changedRules[p.number] = true
	}
}

// rule is the one of that name, a new one where there is none.
func (r *Rules) rule(name ruleName) *rule {
	if known := r.rules[name]; known != nil {
		return known
	}
	n := &rule{ruleName: name, number: name.hash(), priority: name.first() - 1}
	for n.number == 0 || r.numbers[n.number] != nil { // 0 is no conjunction's
		n.number++
	}
	r.rules[name], r.numbers[n.number] = n, n
	r.changedRules[n.number] = true
	return n
}

// hash spreads names over all numbers (FNV-1a).
func (n ruleName) hash() uint32 {
	h := fnv.New32a()
	fmt.Fprintf(h, "%v %s", n.place, n.name)
	return h.Sum32()
}

// first and last are the priorities of the place's level.
func (p place) first() uint16 {
	if p.namespaced() {
		return priorityAll
	}
	return uint16(priorityTop - perLevel*p.level)
}

func (p place) last() uint16 {
	if p.namespaced() {
		return priorityIsolated + 1
	}
	return p.first() - perLevel + 1
}

// namespaced reports whether the place is NetworkPolicy's.
func (p place) namespaced() bool { return p.table == TableEgress || p.table == TableIngress }

// lower moves a rule to the next priority below, and reports whether it fits there.
func (r *Rules) lower(moved *rule) (fits bool) {
	for _, p := range moved.parts {
		r.quit(p)
	}
	moved.priority--
	r.changedRules[moved.number] = true
	fits = true
	for _, p := range moved.parts {
		fits = r.join(p) && fits
	}
	return fits
}

// join makes the clauses of a part belong to its rule, and reports whether none of them
// belongs to too many.
func (r *Rules) join(p *part) (fits bool) {
	fits = true
	p.each(func(key clauseKey, n, kinds uint8) {
		c := r.clauses[key]
		if c == nil {
			c = &clause{}
			r.clauses[key] = c
		}
		i, member := c.find(p.number)
		if !member {
			*c = slices.Insert(*c, i, membership{number: p.number, n: n, of: kinds})
			r.changedClauses[key] = true
		}
		(*c)[i].users++
		fits = fits && (key.plain || len(*c) <= r.most || p.priority == p.last())
	})
	return fits
}

// quit undoes join.
func (r *Rules) quit(p *part) {
	p.each(func(key clauseKey, _, _ uint8) {
		c := r.clauses[key]
		i, _ := c.find(p.number)
		if (*c)[i].users--; (*c)[i].users > 0 {
			return
		}
		*c = slices.Delete(*c, i, i+1)
		r.changedClauses[key] = true
		if len(*c) == 0 {
			delete(r.clauses, key)
		}
	})
}

func (c *clause) find(number uint32) (int, bool) {
	return slices.BinarySearchFunc(*c, number, func(m membership, n uint32) int { return cmp.Compare(m.number, n) })
}

// each calls visit for each clause of the part: the nth of so many kinds that the rule has.
// The overlay is IPv4; IPv6 is nobody's.
func (p *part) each(visit func(key clauseKey, n, kinds uint8)) {
	kinds := uint8(1)
	if !p.Peers.Any {
		kinds++
	}
	if !p.AnyPort {
		kinds++
	}
	key := clauseKey{place: p.place, priority: p.priority, kind: KindSubject}
	if kinds == 1 {
		key.priority, key.plain = p.first(), true
	}
	for _, a := range p.Subjects {
		if key.prefix = host(a); a.Is4() {
			visit(key, 1, kinds)
		}
	}
	if !p.Peers.Any {
		key.kind = KindAllowed
		for _, key.prefix = range p.Peers.Prefixes {
			if key.prefix.Addr().Is4() {
				visit(key, 2, kinds)
			}
		}
		if p.Peers.Pods {
			key.prefix, key.pods = p.network, true
			visit(key, 2, kinds)
		}
	}
	key = clauseKey{place: p.place, priority: p.priority, kind: KindPort}
	for _, ports := range p.Ports {
		for _, key.ports = range matchesOf(ports) {
			visit(key, kinds, kinds)
		}
	}
}

// matchesOf are the fewest matches that have just those ports: at most 30.
func matchesOf(r policy.PortRange) (matches []portMatch) {
	for first, last := uint32(r.First), uint32(r.Last); first <= last; {
		size := uint32(1)
		for first&size == 0 && first+2*size-1 <= last && size < 1<<16 {
			size *= 2
		}
		matches = append(matches, portMatch{uint8(r.Protocol), uint16(first), ^uint16(size - 1)})
		first += size
	}
	return matches
}

// ruleOwner is the rule of that number: it has a flow of its own unless it is plain flows, or
// gone.
func (r *Rules) ruleOwner(number uint32) RuleOwner {
	owner := RuleOwner{Kind: KindRule, Name: strconv.FormatUint(uint64(number), 10)}
	if rule := r.numbers[number]; rule != nil && !rule.plain() {
		owner.Flows = []of.Flow{rule.decide(Cookie{Kind: KindRule, Object: number}, rule.priority, of.IP(), of.ConjID(number))}
	}
	return owner
}

// plain reports whether the rule asks for its subjects only.
func (r *rule) plain() bool { return r.parts[0].Peers.Any && r.parts[0].AnyPort }

// decided is where a packet goes on, by what a rule of a table does with it.
var decided = map[uint8]map[policy.Action]uint8{
	TableEgressAdmin:     {policy.Accept: TableIngressAdmin, policy.Pass: TableEgress, policy.Deny: TableDeniedEgress},
	TableEgress:          {policy.Accept: TableIngressAdmin},
	TableEgressBaseline:  {policy.Accept: TableIngressAdmin, policy.Pass: TableIngressAdmin, policy.Deny: TableDeniedEgress},
	TableIngressAdmin:    {policy.Accept: TableJudged, policy.Pass: TableIngress, policy.Deny: TableDeniedIngress},
	TableIngress:         {policy.Accept: TableJudged},
	TableIngressBaseline: {policy.Accept: TableJudged, policy.Pass: TableJudged, policy.Deny: TableDeniedIngress},
}

// decide is the flow by which what a rule is about goes on, or is denied.
func (p place) decide(c Cookie, priority uint16, match ...of.Field) of.Flow {
	f := flow(p.table, priority, to(decided[p.table][p.action]), nil, match...)
	f.Cookie = c.Encode()
	return f
}

// InOrder reports whether a flow of the area of [Policies] is one of ClusterNetworkPolicies: what each of
// them does depends on those before it.
func InOrder(f of.Flow) bool { return !place{table: f.Table}.namespaced() }

// egress reports whether the place's rules are about what their subjects send.
func (p place) egress() bool { return p.table < TableIngressAdmin }

// clauseOwner is the clause with its flow, which it has while some rule has it.
func (r *Rules) clauseOwner(key clauseKey) RuleOwner {
	f := flow(key.table, key.priority, nil, nil, key.match()...)
	owner := RuleOwner{Kind: key.kind, Name: fmt.Sprintf("%d/%d %s %s", key.table, key.priority, key.action, f.Match)}
	about := Cookie{Kind: key.kind, Object: ruleName{key.place, owner.Name}.hash()}
	switch c := r.clauses[key]; {
	case c == nil:
		return owner
	case key.plain:
		f = key.decide(about, key.priority, key.match()...)
	default:
		for _, m := range *c {
			f.Actions = append(f.Actions, of.Conjunction(m.number, m.n, m.of))
		}
		f.Cookie = about.Encode()
	}
	owner.Flows = []of.Flow{f}
	return owner
}

// match is what the clause's flow matches: of the connection's original direction, in which a
// pod that sends is the source.
func (k clauseKey) match() []of.Field {
	fields := []of.Field{of.IP(), valid}
	switch {
	case k.kind == KindPort && k.ports.mask == 0:
		return append(fields, of.CTNWProto(k.ports.protocol))
	case k.kind == KindPort:
		return append(fields, of.CTNWProto(k.ports.protocol), of.CTTPDstMasked(k.ports.port, k.ports.mask))
	case (k.kind == KindSubject) == k.egress():
		fields = append(fields, of.CTNWSrc(k.prefix))
	default:
		fields = append(fields, of.CTNWDst(k.prefix))
	}
	if k.pods {
		fields = append(fields, regPolicy.has(0, policyNode))
	}
	return fields
}
