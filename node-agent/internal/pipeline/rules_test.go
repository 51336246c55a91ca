package pipeline

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
	"github.com/k8s-ovs/k8s-ovs/pkg/policy"
	"github.com/k8s-ovs/k8s-ovs/pkg/service"
)

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, addr(s))
	}
	return out
}

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, prefix(s))
	}
	return out
}

// compiled has the addresses of a node and its peers, and what the tables say.
func compiled(egress, ingress policy.Table) policy.Compiled {
	return policy.Compiled{
		Egress: egress, Ingress: ingress,
		Own: addrs("172.11.0.1", "198.18.0.1"), Network: prefix("172.11.0.0/16"),
		NodeAddresses: addrs("172.11.0.1", "172.11.3.255", "172.11.4.1", "172.11.7.255"),
	}
}

// samplePolicies have a rule of every kind.
func samplePolicies() map[policy.Key]policy.Compiled {
	tcp := func(first, last uint16) []policy.PortRange {
		return []policy.PortRange{{Protocol: service.TCP, First: first, Last: last}}
	}
	clients := policy.Peers{Prefixes: prefixes("172.11.0.3/32", "172.11.4.9/32")}
	decisions := []policy.Decision{
		{Level: 0, Action: policy.Accept, Allow: policy.Allow{Name: "clients on 80 to 90", Subjects: addrs("172.11.0.3"), Peers: clients, Ports: tcp(80, 90)}},
		{Level: 1, Action: policy.Deny, Allow: policy.Allow{Name: "all pods", Subjects: addrs("172.11.0.2", "172.11.0.3"), Peers: policy.Peers{Pods: true}, AnyPort: true}},
		{Level: 2, Action: policy.Pass, Allow: policy.Allow{Name: "everything", Subjects: addrs("172.11.0.3"), Peers: policy.Peers{Any: true}, AnyPort: true}},
		{Level: 3, Action: policy.Deny, Allow: policy.Allow{Name: "everything", Subjects: addrs("172.11.0.2"), Peers: policy.Peers{Any: true}, AnyPort: true}},
	}
	return map[policy.Key]policy.Compiled{
		{Namespace: "shop", Name: "web"}: compiled(policy.Table{}, policy.Table{Isolated: addrs("172.11.0.2"), Allows: []policy.Allow{
			{Name: "clients on 80 to 90", Subjects: addrs("172.11.0.2"), Peers: clients, Ports: tcp(80, 90)},
			{Name: "all pods on UDP", Subjects: addrs("172.11.0.2"), Peers: policy.Peers{Pods: true}, Ports: []policy.PortRange{{Protocol: service.UDP, First: 0, Last: 65535}}},
		}}),
		{Namespace: "shop", Name: "db"}: compiled(
			policy.Table{Isolated: addrs("172.11.0.3"), Allows: []policy.Allow{
				{Name: "everything", Subjects: addrs("172.11.0.3", "fd00::3"), Peers: policy.Peers{Any: true}, AnyPort: true},
				{Name: "anywhere on 53", Subjects: addrs("172.11.0.3"), Peers: policy.Peers{Any: true}, Ports: []policy.PortRange{{Protocol: service.UDP, First: 53, Last: 53}}},
				{Name: "outside and pods", Subjects: addrs("172.11.0.3"), Peers: policy.Peers{Pods: true, Prefixes: prefixes("0.0.0.0/0", "10.0.0.0/8", "fd00::/8")}, AnyPort: true},
			}},
			policy.Table{Isolated: addrs("172.11.0.3"), Allows: []policy.Allow{
				{Name: "clients on 80 to 90", Subjects: addrs("172.11.0.3"), Peers: clients, Ports: tcp(80, 90)},
			}}),
		{}: compiled(policy.Table{Admin: decisions, Baseline: decisions}, policy.Table{Admin: decisions, Baseline: decisions}),
	}
}

// flowsOf are those of owners.
func flowsOf(owners []RuleOwner) (flows []of.Flow) {
	for _, o := range owners {
		flows = append(flows, o.Flows...)
	}
	return flows
}

// TestGoldenRules holds what policies allow as flows.
func TestGoldenRules(t *testing.T) {
	var b strings.Builder
	for _, o := range NewRules().Set(samplePolicies()) {
		for _, f := range o.Flows {
			b.WriteString(f.String() + "\n")
		}
	}
	goldenFlows(t, "testdata/rules.golden", b.String())
}

// TestMatchesOf: a range of ports is matched exactly, by few matches.
func TestMatchesOf(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	for range 60 {
		r := policy.PortRange{Protocol: service.TCP, First: uint16(rnd.Uint32()), Last: uint16(rnd.Uint32())}
		if rnd.IntN(10) == 0 {
			r = policy.PortRange{Protocol: service.TCP, First: [2]uint16{0, 1}[rnd.IntN(2)], Last: [2]uint16{65534, 65535}[rnd.IntN(2)]}
		}
		if r.First > r.Last {
			r.First, r.Last = r.Last, r.First
		}
		matches := matchesOf(r)
		var have [1 << 16]int
		for _, m := range matches {
			for p := range 1 << 16 {
				if uint16(p)&m.mask == m.port {
					have[p]++
				}
			}
		}
		for p := range 1 << 16 {
			want := 0
			if r.First <= uint16(p) && uint16(p) <= r.Last {
				want = 1
			}
			if have[p] != want {
				t.Fatalf("%v: port %d is matched %d times by %v", r, p, have[p], matches)
			}
		}
		if len(matches) > 30 {
			t.Errorf("%v: %d matches", r, len(matches))
		}
	}
}

// TestRulesCount: flows are the sum of rules, pods, peers and ports, and a change of one peer
// is a change of its flows only.
func TestRulesCount(t *testing.T) {
	const rules, pods, peers, ports = 10000, 250, 4000, 100
	number := func(base string, i int) netip.Addr { return fromNumber(object(addr(base)) + uint32(i)) }
	policies := map[policy.Key]policy.Compiled{}
	one := policy.Key{Namespace: "n", Name: "0"}
	var without policy.Compiled
	for i := range rules {
		a := policy.Allow{Name: fmt.Sprint(i), Subjects: []netip.Addr{number("172.11.0.2", i%pods)}, Ports: []policy.PortRange{{Protocol: service.TCP, First: uint16(1000 + i%ports), Last: uint16(1000 + i%ports)}}}
		for k := range 40 {
			a.Peers.Prefixes = append(a.Peers.Prefixes, host(number("172.11.16.2", (i*40+k*97)%peers)))
		}
		key := policy.Key{Namespace: "n", Name: fmt.Sprint(i)}
		policies[key] = compiled(policy.Table{}, policy.Table{Allows: []policy.Allow{a}})
		if key == one {
			a.Peers.Prefixes = a.Peers.Prefixes[1:]
			without = compiled(policy.Table{}, policy.Table{Allows: []policy.Allow{a}})
		}
	}
	r := NewRules()
	flows := flowsOf(r.Set(policies))
	if want := rules + pods + peers + ports; len(flows) != want {
		t.Errorf("%d flows, want %d", len(flows), want)
	}
	if changed := r.Set(map[policy.Key]policy.Compiled{one: without}); len(changed) != 1 || changed[0].Kind != KindAllowed {
		t.Errorf("without one peer: %v", changed)
	}
	if changed := r.Set(map[policy.Key]policy.Compiled{one: policies[one]}); len(changed) != 1 {
		t.Errorf("with it again: %v", changed)
	}
}

// picture is what the owners have who were told of.
type picture map[string]string

func (p picture) take(owners []RuleOwner) {
	for _, o := range owners {
		key := fmt.Sprint(o.Kind, " ", o.Name)
		if delete(p, key); len(o.Flows) > 0 {
			p[key] = strings.Join(texts(o.Flows), "\n")
		}
	}
}

// TestRulesVerdict: however policies come, change and go, the rules' flows allow what the
// policies allow, also where clauses are full and rules have other priorities.
func TestRulesVerdict(t *testing.T) {
	for _, most := range []int{maxConjunctions, 3} {
		rnd := rand.New(rand.NewPCG(20261129, uint64(most)))
		r, told := NewRules(), picture{}
		r.most = most
		policies := map[policy.Key]policy.Compiled{}
		seen := map[policy.Verdict]int{}
		lowered := false
		for range 60 {
			change := map[policy.Key]policy.Compiled{}
			for range 1 + rnd.IntN(4) {
				key := policy.Key{Namespace: "n", Name: fmt.Sprint(rnd.IntN(12))}
				change[key] = policy.Compiled{}
				if rnd.IntN(4) > 0 {
					change[key] = randomCompiled(rnd)
				}
			}
			add := rnd.IntN(2) == 0
			if !add && rnd.IntN(3) == 0 {
				change[policy.Key{}] = randomCluster(rnd)
			}
			both := merged(slices.Concat(slices.Collect(maps.Values(policies)), slices.Collect(maps.Values(change)))...)
			maps.Copy(policies, change)
			if add {
				told.take(r.Add(change))
				checkRules(t, rnd, r, both, seen)
			}
			told.take(r.Set(change))
			checkRules(t, rnd, r, merged(slices.Collect(maps.Values(policies))...), seen)
			all := picture{}
			all.take(r.All())
			if diff := cmp.Diff(all, told); diff != "" {
				t.Fatalf("the changes told are others than all (-all +told):\n%s", diff)
			}
			for _, f := range flowsOf(r.All()) {
				lowered = lowered || f.Table == TableEgress && f.Priority < priorityAll-1
				if len(f.Actions) > most {
					t.Fatalf("more than %d rules at once: %s", most, f)
				}
			}
			if most == maxConjunctions {
				anew := picture{}
				anew.take(NewRules().Set(policies))
				if diff := cmp.Diff(anew, told); diff != "" {
					t.Fatalf("an agent that restarts makes others (-anew +told):\n%s", diff)
				}
			}
		}
		for _, v := range []policy.Verdict{policy.Allowed, policy.DeniedEgress, policy.DeniedIngress} {
			if seen[v] < 200 {
				t.Errorf("only %d packets are %v: the test shows little", seen[v], v)
			}
		}
		if lowered != (most == 3) {
			t.Errorf("at most %d rules of a clause, and rules of lower priorities: %t", most, lowered)
		}
		gone := map[policy.Key]policy.Compiled{}
		for key := range policies {
			gone[key] = policy.Compiled{}
		}
		if told.take(r.Set(gone)); len(told)+len(r.All())+len(r.rules)+len(r.numbers)+len(r.clauses)+len(r.policies) > 0 {
			t.Errorf("without policies there are %v", told)
		}
	}
}

// BenchmarkManyRules is a policy with as many rules as one may have, for 250 pods.
func BenchmarkManyRules(b *testing.B) {
	var t policy.Table
	for i := range policy.OfPolicy.Ports {
		a := policy.Allow{Name: fmt.Sprint(i), AnyPort: true, Peers: policy.Peers{Prefixes: []netip.Prefix{host(fromNumber(object(addr("203.0.0.0")) + uint32(i)))}}}
		for k := range 250 {
			a.Subjects = append(a.Subjects, fromNumber(object(addr("172.11.0.2"))+uint32(k)))
		}
		t.Allows = append(t.Allows, a)
	}
	all := map[policy.Key]policy.Compiled{{}: compiled(policy.Table{}, t)}
	for b.Loop() {
		NewRules().Set(all)
	}
}

// BenchmarkRulesPod is what a pod costs that comes where some ClusterNetworkPolicies are about all
// pods of a node, and name many peers.
func BenchmarkRulesPod(b *testing.B) {
	const rules, pods, peers = 20, 250, 4000
	number := func(base string, i int) netip.Addr { return fromNumber(object(addr(base)) + uint32(i)) }
	of := func(pods int) policy.Compiled {
		var t policy.Table
		for i := range rules {
			d := policy.Decision{Level: i, Action: policy.Deny, Allow: policy.Allow{Name: fmt.Sprint(i), AnyPort: true}}
			for k := range pods {
				d.Subjects = append(d.Subjects, number("172.11.0.2", k))
			}
			for k := range peers {
				d.Peers.Prefixes = append(d.Peers.Prefixes, host(number("172.11.16.2", k)))
			}
			t.Admin = append(t.Admin, d)
		}
		return compiled(policy.Table{}, t)
	}
	with, without := map[policy.Key]policy.Compiled{{}: of(pods)}, map[policy.Key]policy.Compiled{{}: of(pods - 1)}
	r := NewRules()
	r.Set(without)
	for b.Loop() {
		if n := len(r.Set(with)); n != rules {
			b.Fatalf("%d owners change", n)
		}
		r.Set(without)
	}
}

// The ends of random connections: pods of this node, others, nodes, the outside.
var (
	ruleSubjects = addrs("172.11.0.2", "172.11.0.3", "172.11.0.4", "172.11.0.5")
	ruleEnds     = append(addrs("172.11.4.9", "172.11.5.9", "172.11.0.1", "198.18.0.1", "172.11.3.255", "172.11.4.1", "172.11.7.255", "203.0.113.9", "10.1.2.3"), ruleSubjects...)
)

// merged is what several come to together.
func merged(list ...policy.Compiled) policy.Compiled {
	all := compiled(policy.Table{}, policy.Table{})
	for _, c := range list {
		for _, side := range []struct{ to, from *policy.Table }{{&all.Egress, &c.Egress}, {&all.Ingress, &c.Ingress}} {
			side.to.Isolated = append(side.to.Isolated, side.from.Isolated...)
			side.to.Allows = append(side.to.Allows, side.from.Allows...)
			side.to.Admin, side.to.Baseline = append(side.to.Admin, side.from.Admin...), append(side.to.Baseline, side.from.Baseline...)
		}
	}
	for _, side := range []*policy.Table{&all.Egress, &all.Ingress} {
		slices.SortFunc(side.Isolated, netip.Addr.Compare)
		side.Isolated = slices.Compact(side.Isolated)
	}
	return all
}

// randomCompiled is what a policy of some rules may come to. Peers and ports of one name are
// the same.
func randomCompiled(rnd *rand.Rand) policy.Compiled {
	table := func() (t policy.Table) {
		for _, s := range ruleSubjects {
			if rnd.IntN(3) == 0 {
				t.Isolated = append(t.Isolated, s)
			}
		}
		for i := range 6 {
			if len(t.Isolated) == 0 || rnd.IntN(3) > 0 {
				continue
			}
			peers := rnd.IntN(5)
			a := policy.Allow{Name: fmt.Sprintf("%d on %d", peers, i), Subjects: t.Isolated[:1+rnd.IntN(len(t.Isolated))]}
			a.Peers = []policy.Peers{{Any: true}, {Pods: true}, {Prefixes: prefixes("172.11.0.3/32", "172.11.4.1/32", "172.11.4.9/32")},
				{Prefixes: prefixes("172.11.0.0/22", "203.0.113.0/24")}, {Pods: true, Prefixes: prefixes("10.0.0.0/8", "198.18.0.1/32")}}[peers]
			a.Ports = [][]policy.PortRange{nil, {{Protocol: service.TCP, First: 80, Last: 80}}, {{Protocol: service.TCP, First: 79, Last: 8080}, {Protocol: service.UDP, First: 0, Last: 65535}},
				{{Protocol: service.UDP, First: 53, Last: 53}}, {{Protocol: service.SCTP, First: 1, Last: 90}}, {{Protocol: service.TCP, First: 8080, Last: 65535}}}[i]
			a.AnyPort = a.Ports == nil
			t.Allows = append(t.Allows, a)
		}
		return t
	}
	return compiled(table(), table())
}

// randomCluster is what ClusterNetworkPolicies may come to.
func randomCluster(rnd *rand.Rand) policy.Compiled {
	tier := func() (list []policy.Decision) {
		for level := range rnd.IntN(6) {
			action := []policy.Action{policy.Accept, policy.Deny, policy.Pass}[rnd.IntN(3)]
			names := map[string]bool{}
			for range 1 + rnd.IntN(3) {
				peers, port := rnd.IntN(4), uint16(rnd.IntN(3)*50)
				a := policy.Allow{Name: fmt.Sprintf("%d on %d", peers, port), Subjects: ruleSubjects[:1+rnd.IntN(len(ruleSubjects))], AnyPort: port == 0}
				a.Peers = []policy.Peers{{Any: true}, {Pods: true}, {Prefixes: prefixes("172.11.0.3/32", "172.11.4.0/22")}, {Prefixes: prefixes("0.0.0.0/0")}}[peers]
				if !a.AnyPort {
					a.Ports = []policy.PortRange{{Protocol: service.TCP, First: port, Last: 8080}}
				}
				if names[a.Name] {
					continue
				}
				names[a.Name] = true
				list = append(list, policy.Decision{Level: level, Action: action, Allow: a})
			}
		}
		return list
	}
	return compiled(policy.Table{Admin: tier(), Baseline: tier()}, policy.Table{Admin: tier(), Baseline: tier()})
}

// randomPacket is one between two ends.
func randomPacket(rnd *rand.Rand) policy.Packet {
	return policy.Packet{
		Src: ruleEnds[rnd.IntN(len(ruleEnds))], Dst: ruleEnds[rnd.IntN(len(ruleEnds))],
		Protocol: []uint8{1, 6, 17, 132}[rnd.IntN(4)], DstPort: []uint16{0, 53, 80, 8080, 40000}[rnd.IntN(5)],
	}
}

// checkRules compares what flows allow with what policies do, for some packets.
func checkRules(t *testing.T, rnd *rand.Rand, r *Rules, c policy.Compiled, seen map[policy.Verdict]int) {
	t.Helper()
	flows := flowsOf(r.All())
	keys := map[string]bool{}
	for _, f := range flows {
		keys[f.Key()] = true
	}
	if len(keys) != len(flows) {
		t.Fatalf("%d flows have %d keys", len(flows), len(keys))
	}
	for range 60 {
		p := randomPacket(rnd)
		want, got := c.Verdict(p), walk(flows, c, p)
		if seen[want]++; got != want {
			t.Fatalf("%+v is %v by the flows, want %v:\n%s", p, got, want, strings.Join(texts(flows), "\n"))
		}
	}
}

// walk is what becomes of a packet by the rules' flows, and by those of isolated pods.
func walk(flows []of.Flow, c policy.Compiled, p policy.Packet) policy.Verdict {
	for table := TableEgressAdmin; table != TableJudged; {
		side, subject, peer, denied := c.Egress, p.Src, p.Dst, policy.DeniedEgress
		if table >= TableIngressAdmin {
			side, subject, peer, denied = c.Ingress, p.Dst, p.Src, policy.DeniedIngress
		}
		isolated := (table == TableEgress || table == TableIngress) && slices.Contains(side.Isolated, subject)
		f, ok := decides(flows, table, p, c.NodeAddresses)
		switch {
		case isolated && (subject == peer || slices.Contains(c.Own, peer)):
			table += 2
		case ok && *f.Goto >= TableDeniedEgress, isolated && !ok:
			return denied
		case ok:
			table = *f.Goto
		default:
			table++
		}
	}
	return policy.Allowed
}

// decides is the flow that a switch finds: at the first priority that has a flow without
// conjunctions, or a flow for every kind of clause of a rule.
func decides(flows []of.Flow, table uint8, p policy.Packet, nodes []netip.Addr) (found of.Flow, ok bool) {
	var matching []of.Flow
	var priorities []uint16
	for _, f := range flows {
		if f.Table == table && matches(f.Match, p, nodes) {
			matching, priorities = append(matching, f), append(priorities, f.Priority)
		}
	}
	slices.Sort(priorities)
	for _, priority := range slices.Backward(slices.Compact(priorities)) {
		clauses := map[string]map[string]bool{} // by rule and how many kinds it has
		for _, f := range matching {
			if f.Priority != priority {
				continue
			}
			if len(f.Actions) == 0 {
				return f, true
			}
			for _, a := range f.Actions {
				var number, n, kinds string
				_, _ = fmt.Sscanf(strings.NewReplacer("(", " ", ",", " ", "/", " ", ")", " ").Replace(a.String()), "conjunction %s %s %s", &number, &n, &kinds)
				if clauses[number+" "+kinds] == nil {
					clauses[number+" "+kinds] = map[string]bool{}
				}
				clauses[number+" "+kinds][n] = true
			}
		}
		for rule, have := range clauses {
			number, kinds, _ := strings.Cut(rule, " ")
			i := slices.IndexFunc(flows, func(f of.Flow) bool {
				id, tied := f.Match.Field(of.FieldConjID)
				return tied && f.Table == table && f.Priority == priority && fmt.Sprint(id.Uint64()) == number
			})
			if fmt.Sprint(len(have)) == kinds && i >= 0 {
				return flows[i], true
			}
		}
	}
	return found, false
}

// matches reports whether a match of the connection's original direction is for a packet.
func matches(m of.Match, p policy.Packet, nodes []netip.Addr) bool {
	node := uint32(0)
	if slices.Contains(nodes, p.Src) || slices.Contains(nodes, p.Dst) {
		node = policyNode
	}
	is := map[of.FieldID]uint32{
		of.FieldEthType: uint32(of.EtherTypeIPv4), of.FieldCTState: of.CTTracked | of.CTNew, of.FieldCTNWSrc: object(p.Src), of.FieldCTNWDst: object(p.Dst),
		of.FieldCTNWProto: uint32(p.Protocol), of.FieldCTTPDst: uint32(p.DstPort), regPolicy.field(): node,
	}
	for _, f := range bitsOf(m) {
		if v, known := is[f.id]; !known || v&f.mask != f.value {
			return false
		}
	}
	return true
}

// bits is a field of a match.
type bits struct {
	id          of.FieldID
	value, mask uint32
}

// decoded are the matches that bitsOf was asked for: thousands of packets are compared with each.
var decoded = map[of.Match][]bits{}

func bitsOf(m of.Match) []bits {
	fields, ok := decoded[m]
	if !ok {
		for _, f := range m.Fields() {
			b := bits{id: f.ID(), value: uint32(f.Uint64())}
			for _, octet := range f.Mask() {
				b.mask = b.mask<<8 | uint32(octet)
			}
			fields = append(fields, b)
		}
		decoded[m] = fields
	}
	return fields
}
