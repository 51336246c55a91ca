package policy

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	npav1beta1 "sigs.k8s.io/network-policy-api/apis/v1beta1"
	"sigs.k8s.io/yaml"

	"github.com/k8s-ovs/k8s-ovs/pkg/service"
)

// parseCluster reads the specification of a ClusterNetworkPolicy.
func parseCluster(t *testing.T, name, spec string) *npav1beta1.ClusterNetworkPolicy {
	t.Helper()
	cnp := &npav1beta1.ClusterNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if err := yaml.UnmarshalStrict([]byte(spec), &cnp.Spec); err != nil {
		t.Fatalf("%v in:\n%s", err, spec)
	}
	return cnp
}

// TestClusterVerdict: tiers, their order, and what each field means.
func TestClusterVerdict(t *testing.T) {
	const isolated = `{podSelector: {}, policyTypes: [Ingress, Egress]}`
	for _, tc := range []struct {
		name     string
		policies []string
		allowed  string
		ingress  string // denied so
		egress   string
	}{
		{
			name:     "Admin Deny: pods, of all protocols; the outside is no pod, nor is a node",
			policies: []string{`{tier: Admin, priority: 0, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}`},
			ingress:  "web>db tcp 80, till>web icmp 0, db>till gre 0",
			allowed:  "outside>web tcp 80, gateway2>web tcp 80, n2>web tcp 80, nodeport>web tcp 80",
		},
		{
			name:     "nobody is spared: neither itself nor, of networks and nodes, its own node",
			policies: []string{`{tier: Admin, priority: 0, subject: {namespaces: {}}, egress: [{action: Deny, to: [{networks: [0.0.0.0/0]}]}]}`},
			egress:   "web>web tcp 80, web>gateway tcp 80, web>n1 tcp 80, web>outside udp 53",
			allowed:  "outside>web tcp 80",
		},
		{
			name:     "Admin Accept is before NetworkPolicy, Baseline's is behind and too late",
			policies: []string{isolated, `{tier: Admin, priority: 0, subject: {namespaces: {}}, ingress: [{action: Accept, from: [{namespaces: {matchLabels: {team: b}}}]}]}`, `{tier: Baseline, priority: 0, subject: {namespaces: {}}, ingress: [{action: Accept, from: [{namespaces: {}}]}]}`},
			allowed:  "till>web tcp 80",
			ingress:  "outside>web tcp 80",
			egress:   "db>web tcp 80",
		},
		{
			name:     "Baseline Deny is for those that NetworkPolicy leaves alone",
			policies: []string{`{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{namespaceSelector: {}}]}]}`, `{tier: Baseline, priority: 0, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}`},
			allowed:  "till>web tcp 80",
			ingress:  "till>db tcp 80, outside>web tcp 80",
		},
		{
			name:     "Pass skips the rest of its tier",
			policies: []string{`{tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Pass, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: till}}}}]}, {action: Deny, from: [{namespaces: {}}]}]}`, `{podSelector: {matchLabels: {app: db}}}`},
			allowed:  "till>web tcp 80",
			ingress:  "till>db tcp 80, db>web tcp 80",
		},
		{
			name:     "Pass of Baseline lets through",
			policies: []string{`{tier: Baseline, priority: 1, subject: {namespaces: {}}, ingress: [{action: Pass, from: [{namespaces: {matchLabels: {team: b}}}]}, {action: Deny, from: [{namespaces: {}}]}]}`},
			allowed:  "till>web tcp 80",
			ingress:  "db>web tcp 80",
		},
		{
			name: "the lowest priority is asked first, however they are listed",
			policies: []string{
				`{tier: Admin, priority: 1000, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}`,
				`{tier: Admin, priority: 0, subject: {namespaces: {}}, ingress: [{action: Accept, from: [{namespaces: {matchLabels: {team: b}}}]}]}`,
			},
			allowed: "till>web tcp 80",
			ingress: "db>web tcp 80",
		},
		{
			name: "of one priority the first by name",
			policies: []string{
				`{tier: Admin, priority: 5, subject: {namespaces: {}}, ingress: [{action: Accept, from: [{namespaces: {matchLabels: {team: b}}}]}]}`,
				`{tier: Admin, priority: 5, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}`,
			},
			allowed: "till>web tcp 80",
			ingress: "db>web tcp 80",
		},
		{
			name:     "rules are asked in their order",
			policies: []string{`{tier: Admin, priority: 0, subject: {namespaces: {}}, egress: [{action: Accept, to: [{networks: [203.0.113.9/32]}]}, {action: Deny, to: [{networks: [203.0.113.0/24]}]}, {action: Accept, to: [{networks: [203.0.113.200/32]}]}]}`},
			allowed:  "web>outside tcp 80",
			egress:   "web>neighbour tcp 80",
		},
		{
			name:     "the subject: pods, by their namespace and their own labels",
			policies: []string{`{tier: Admin, priority: 0, subject: {pods: {namespaceSelector: {matchLabels: {team: b}}, podSelector: {matchLabels: {app: web}}}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}`},
			ingress:  "till>bank-web tcp 80",
			allowed:  "bank-web>till tcp 80, db>web tcp 80",
		},
		{
			name:     "several peers and networks: or",
			policies: []string{`{tier: Admin, priority: 0, subject: {namespaces: {}}, egress: [{action: Deny, to: [{namespaces: {matchLabels: {team: b}}}, {networks: [203.0.113.9/32, 203.0.113.200/32]}]}]}`},
			egress:   "web>till tcp 80, web>outside tcp 80, web>neighbour udp 80",
			allowed:  "web>db tcp 80",
		},
		{
			name:     "networks have pods too, and a node by whatever address",
			policies: []string{`{tier: Admin, priority: 0, subject: {namespaces: {}}, egress: [{action: Deny, to: [{networks: [172.11.4.2/32, 198.18.0.2/32, "fd00::/8"]}]}]}`},
			egress:   "web>bank-web tcp 80, web>n2 tcp 80, web>gateway2 tcp 80",
			allowed:  "web>till tcp 80, web>n1 tcp 80",
		},
		{
			name:     "nodes, by whatever address, own or not",
			policies: []string{`{tier: Admin, priority: 0, subject: {namespaces: {}}, egress: [{action: Accept, to: [{nodes: {matchLabels: {host: n1}}}]}, {action: Deny, to: [{nodes: {}}]}]}`},
			egress:   "web>n2 tcp 80, web>gateway2 tcp 80, web>nodeport2 tcp 80",
			allowed:  "web>n1 tcp 80, web>gateway tcp 80, web>outside tcp 80, web>till tcp 80",
		},
		{
			name:     "protocols: a number, a range, of their protocol",
			policies: []string{`{tier: Admin, priority: 0, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 80}}}, {udp: {destinationPort: {range: {start: 53, end: 55}}}}, {sctp: {destinationPort: {number: 7}}}]}]}`},
			ingress:  "web>db tcp 80, web>db udp 53, web>db udp 55, web>db sctp 7",
			allowed:  "web>db tcp 81, web>db udp 80, web>db udp 56, web>db sctp 80, web>db icmp 0",
		},
		{
			name:     "a named port of ingress is the subject's, in whatever protocol it has it",
			policies: []string{`{tier: Admin, priority: 0, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}], protocols: [{destinationNamedPort: http}, {destinationNamedPort: dns}]}]}`},
			ingress:  "db>web tcp 8080, web>db tcp 80, web>db udp 53",
			allowed:  "db>web tcp 80, web>db udp 80, web>till tcp 80",
		},
		{
			name:     "a named port of egress is the peer's",
			policies: []string{`{tier: Admin, priority: 0, subject: {namespaces: {}}, egress: [{action: Deny, to: [{namespaces: {matchLabels: {team: a}}}], protocols: [{destinationNamedPort: http}]}]}`},
			egress:   "db>web tcp 8080, till>db tcp 80",
			allowed:  "db>web tcp 80, db>bank-web tcp 80",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := compile(t, tc.policies...)
			judge(t, c, Allowed, tc.allowed)
			judge(t, c, DeniedIngress, tc.ingress)
			judge(t, c, DeniedEgress, tc.egress)
		})
	}
}

// TestParseClusterRefuses: what was not understood is told, and closes: an Accept lets nobody
// through to a pod that is isolated, and others deny.
func TestParseClusterRefuses(t *testing.T) {
	const peer, subject = `{namespaces: {}}`, `{namespaces: {}}`
	rule := func(action, peers, protocols string) string {
		return `{tier: Admin, priority: 0, subject: ` + subject + `, egress: [{action: ` + action + `, to: [` + peers + `], protocols: [` + protocols + `]}]}`
	}
	for _, tc := range []struct{ name, spec, want string }{
		{"domain names", rule("ACTION", `{domainNames: [example.com]}`, ""), "egress[0]: to[0]: k8s-ovs does not support domainNames yet"},
		{"a kind of peer that is not known", rule("ACTION", `{}`, ""), "to[0]: this peer is of a kind that k8s-ovs does not know"},
		{"beside one that is", rule("ACTION", peer+`, {}`, ""), "to[1]: this peer"},
		{"two kinds of peer", rule("ACTION", `{namespaces: {}, networks: [0.0.0.0/0]}`, ""), "this one is of several"},
		{"no peers", rule("ACTION", ``, ""), "to is empty"},
		{"namespaces", rule("ACTION", `{namespaces: {matchExpressions: [{key: a, operator: Like}]}}`, ""), "to[0]: namespaces: "},
		{"pods' namespaces", rule("ACTION", `{pods: {podSelector: {}, namespaceSelector: {matchExpressions: [{key: a, operator: In}]}}}`, ""), "to[0]: pods: namespaceSelector: "},
		{"pods", rule("ACTION", `{pods: {namespaceSelector: {}, podSelector: {matchExpressions: [{key: a, operator: In}]}}}`, ""), "to[0]: pods: podSelector: "},
		{"nodes", rule("ACTION", `{nodes: {matchExpressions: [{key: a, operator: In}]}}`, ""), "to[0]: nodes: "},
		{"networks", rule("ACTION", `{networks: [0.0.0.0/0, 010.0.0.0/8]}`, ""), "to[0]: networks: "},
		{"a kind of protocol that is not known", rule("ACTION", peer, `{}`), "protocols[0]: this is of a kind"},
		{"a protocol by something that is not known", rule("ACTION", peer, `{tcp: {}}`), "protocols[0]: TCP: destinationPort needs one of number and range"},
		{"a port by something that is not known", rule("ACTION", peer, `{udp: {destinationPort: {}}}`), "protocols[0]: UDP: destinationPort needs"},
		{"number and range", rule("ACTION", peer, `{sctp: {destinationPort: {number: 1, range: {start: 1, end: 2}}}}`), "SCTP: destinationPort needs one"},
		{"range upside down", rule("ACTION", peer, `{tcp: {destinationPort: {range: {start: 9, end: 8}}}}`), "ports 9 to 8"},
		{"tier", strings.Replace(rule("ACTION", peer, ""), "Admin", "Middle", 1), `tier "Middle"`},
		{"subject of a kind that is not known", strings.Replace(rule("ACTION", peer, ""), "subject: "+subject, "subject: {}", 1), "subject: it needs one of namespaces and pods"},
		{"subject's selector", strings.Replace(rule("ACTION", peer, ""), "subject: "+subject, "subject: {namespaces: {matchExpressions: [{key: a, operator: Like}]}}", 1), "subject: namespaces: "},
	} {
		for action, want := range map[string]Verdict{"Accept": Allowed, "Deny": DeniedEgress, "Pass": DeniedEgress} {
			t.Run(tc.name+", "+action, func(t *testing.T) {
				p, err := ParseCluster(parseCluster(t, "c", strings.Replace(tc.spec, "ACTION", action, 1)))
				if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.HasPrefix(err.Error(), "ClusterNetworkPolicy c: ") {
					t.Errorf("error %v, want one of ClusterNetworkPolicy c with %q", err, tc.want)
				}
				k := NewCompiler(input(nobody))
				judge(t, k.Compile(nil, []ClusterPolicy{p}), want, "web>till tcp 80, till>db udp 8")
				isolated, err := Parse(parse(t, `{podSelector: {}, policyTypes: [Egress]}`))
				if err != nil {
					t.Fatal(err)
				}
				judge(t, k.Compile([]Policy{isolated}, []ClusterPolicy{p}), DeniedEgress, "web>till tcp 80")
			})
		}
	}
	p, err := ParseCluster(parseCluster(t, "c", rule("Log", peer, "")))
	if err == nil || !strings.Contains(err.Error(), `action "Log"`) {
		t.Errorf("error %v, want one with the action", err)
	}
	judge(t, NewCompiler(input(nobody)).Compile(nil, []ClusterPolicy{p}), DeniedEgress, "web>till tcp 80")
}

// TestLateClusterSets: while a set is not whole, nobody more is accepted, and what some of
// its members are denied, or are not to be decided for, all whom it may have are denied.
func TestLateClusterSets(t *testing.T) {
	const pods, nodes, networks = `{namespaces: {matchLabels: {team: b}}}`, `{nodes: {}}`, `{networks: [203.0.113.0/24]}`
	for _, tc := range []struct{ name, rules, allowed, egress string }{
		{"Accept", `{action: Accept, to: [` + pods + `]}, {action: Deny, to: [{namespaces: {}}]}`, "web>bank-web tcp 80", "web>till tcp 80, web>db tcp 80"},
		{"Deny", `{action: Deny, to: [` + pods + `]}`, "web>outside tcp 80, web>n2 tcp 80", "web>bank-web tcp 80, web>till tcp 80, web>db tcp 80"},
		{"Deny of ports", `{action: Deny, to: [` + pods + `], protocols: [{tcp: {destinationPort: {number: 80}}}]}`, "web>till tcp 81", "web>bank-web tcp 80, web>till tcp 80"},
		{"Deny of named ports", `{action: Deny, to: [` + pods + `], protocols: [{destinationNamedPort: http}]}`, "web>outside tcp 80", "web>bank-web tcp 81, web>till udp 7"},
		{"Pass", `{action: Pass, to: [` + pods + `]}, {action: Accept, to: [{namespaces: {}}]}`, "web>bank-web tcp 80", "web>till tcp 80, web>db tcp 80"},
		{"Deny of nodes", `{action: Deny, to: [` + nodes + `]}`, "", "web>n2 tcp 80, web>outside tcp 80"},
		{"Deny of what needs no set", `{action: Deny, to: [` + networks + `, {namespaces: {}}]}`, "web>n2 tcp 80", "web>outside tcp 80, web>till tcp 80"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, err := ParseCluster(parseCluster(t, "c", `{tier: Admin, priority: 0, subject: {namespaces: {}}, egress: [`+tc.rules+`]}`))
			if err != nil {
				t.Fatal(err)
			}
			some := func(Set) ([]Member, bool) { return []Member{{Address: addr(who["bank-web"])}}, false }
			c := NewCompiler(input(some)).Compile(nil, []ClusterPolicy{p})
			judge(t, c, Allowed, tc.allowed)
			judge(t, c, DeniedEgress, tc.egress)
		})
	}
	p, err := ParseCluster(parseCluster(t, "c", `{tier: Admin, priority: 0, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}], protocols: [{destinationNamedPort: http}]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	judge(t, NewCompiler(input(nobody)).Compile(nil, []ClusterPolicy{p}), DeniedIngress, "till>web tcp 9")
}

// TestUnreadableSubject: in a record that a person wrote. Its rules accept nothing, and deny.
func TestUnreadableSubject(t *testing.T) {
	all := Rule{AnyPeer: true, AnyPort: true}
	p := ClusterPolicy{Name: "c", Subject: Set{Pods: "a in ("}, Ingress: []ClusterRule{{Accept, all}}, Egress: []ClusterRule{{Pass, all}}}
	c := NewCompiler(input(nobody)).Compile(nil, []ClusterPolicy{p})
	if len(c.Ingress.Admin) != 0 {
		t.Errorf("accepts %+v", c.Ingress.Admin)
	}
	judge(t, c, DeniedEgress, "web>till tcp 80")
}

// TestDoubt: who may be a subject is denied what any subject might be, and accepted nothing; who
// surely is one is judged as ever.
func TestDoubt(t *testing.T) {
	p, err := ParseCluster(parseCluster(t, "c", `{tier: Admin, priority: 0, subject: {namespaces: {matchLabels: {team: a}}}, ingress: [
{action: Pass, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: till}}}}]},
{action: Accept, from: [{namespaces: {matchLabels: {team: b}}}]}, {action: Deny, from: [{namespaces: {}}]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	in := input(func(s Set) ([]Member, bool) {
		if s.Pods != "" {
			return []Member{{Address: addr(who["till"])}}, true
		}
		return []Member{{Address: addr(who["till"])}, {Address: addr(who["bank-web"])}}, true
	})
	in.Doubt = func(_ ClusterPolicy, pod Pod) bool { return pod.Name == "db" }
	c := NewCompiler(in).Compile(nil, []ClusterPolicy{p})
	judge(t, c, Allowed, "till>web tcp 80, bank-web>web tcp 80, outside>db tcp 80, web>till tcp 80")
	judge(t, c, DeniedIngress, "db>web tcp 80, till>db tcp 80, bank-web>db tcp 80, web>db tcp 80")
}

// TestNoSCTPPorts: where a datapath does not know them, what is denied by some is all of SCTP, and
// what passes by some comes to no Accept.
func TestNoSCTPPorts(t *testing.T) {
	const ports = `protocols: [{sctp: {destinationPort: {number: 7}}}, {tcp: {destinationPort: {number: 80}}}]`
	for name, rules := range map[string]string{
		"Deny": `{action: Deny, to: [{namespaces: {matchLabels: {team: b}}}], ` + ports + `}`,
		"Pass": `{action: Pass, to: [{namespaces: {matchLabels: {team: b}}}], ` + ports + `}, {action: Accept, to: [{namespaces: {}}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			p, err := ParseCluster(parseCluster(t, "c", `{tier: Admin, priority: 0, subject: {namespaces: {}}, egress: [`+rules+`]}`))
			if err != nil {
				t.Fatal(err)
			}
			in := input(func(Set) ([]Member, bool) { return []Member{{Address: addr(who["till"])}}, true })
			in.NoSCTPPorts = true
			// Such a datapath matches no number of SCTP: as if there were none.
			c := NewCompiler(in).Compile(nil, []ClusterPolicy{p})
			for i, d := range c.Egress.Admin {
				c.Egress.Admin[i].Ports = slices.DeleteFunc(d.Ports, func(r PortRange) bool { return r.Protocol == service.SCTP && r.Last-r.First < maxPort })
			}
			judge(t, c, DeniedEgress, "web>till sctp 7, web>till sctp 8")
			judge(t, c, Allowed, "web>till tcp 81, web>db sctp 7")
		})
	}
}

// TestNoSCTPPortsByName: each pod is denied all of SCTP that has such a port, whatever number that has.
func TestNoSCTPPortsByName(t *testing.T) {
	p, err := ParseCluster(parseCluster(t, "c", `{tier: Admin, priority: 0, subject: {namespaces: {}}, egress: [{action: Deny, to: [{namespaces: {}}], protocols: [{destinationNamedPort: assoc}]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	in := input(func(Set) ([]Member, bool) {
		named := func(pod string, number uint16) Member {
			return Member{Address: addr(who[pod]), Ports: []NamedPort{{Protocol: service.SCTP, Name: "assoc", Port: number}}}
		}
		return []Member{named("till", 7), named("db", 8), named("bank-web", 9)}, true
	})
	in.NoSCTPPorts = true
	c := NewCompiler(in).Compile(nil, []ClusterPolicy{p})
	judge(t, c, DeniedEgress, "web>till sctp 7, web>db sctp 7, web>bank-web sctp 7")
	judge(t, c, Allowed, "till>web sctp 7, web>till tcp 7")
}

// TestLevels: neighbours with one action share a level, across policies; rules that select
// no pod here have none; and no level depends on who is a member.
func TestLevels(t *testing.T) {
	const rule = `{action: %, from: [{namespaces: {matchLabels: {team: z}}}]}`
	object := func(priority, subject string, actions ...string) string {
		var rules []string
		for _, a := range actions {
			rules = append(rules, strings.Replace(rule, "%", a, 1))
		}
		return `{tier: Admin, priority: ` + priority + `, subject: {namespaces: {matchLabels: {team: ` + subject + `}}}, ingress: [` + strings.Join(rules, ", ") + `]}`
	}
	objects := []string{object("1", "a", "Accept", "Accept", "Deny"), object("2", "b", "Deny"), object("3", "nobody", "Accept"), object("4", "a", "Deny", "Pass", "Deny")}
	if c := compile(t, objects...); len(c.Ingress.Admin) != 0 {
		t.Errorf("without peers: %+v", c.Ingress.Admin)
	}
	namespaces["far"] = map[string]string{"team": "z"}
	defer delete(namespaces, "far")
	old := pods
	pods = append(pods[:len(pods):len(pods)], pod("far", "away", "172.11.4.9"))
	defer func() { pods = old }()

	name := `["" "team=z" "" ""] on []`
	subjects := func(names ...string) []netip.Addr {
		var out []netip.Addr
		for _, n := range names {
			out = append(out, addr(who[n]))
		}
		return out
	}
	shop, both := subjects("web", "db"), subjects("web", "db", "bank-web", "till")
	peers := Peers{Prefixes: []netip.Prefix{netip.MustParsePrefix("172.11.4.9/32")}}
	decision := func(level int, a Action, subjects []netip.Addr, by ...string) Decision {
		d := Decision{level, a, Allow{Name: name, Subjects: subjects, Peers: peers, AnyPort: true}}
		for _, n := range by {
			d.Policies = append(d.Policies, Key{Name: n})
		}
		return d
	}
	want := []Decision{
		decision(0, Accept, shop, "c0"),
		decision(1, Deny, both, "c0", "c1", "c3"),
		decision(2, Pass, shop, "c3"),
		decision(3, Deny, shop, "c3"),
	}
	compare := []cmp.Option{
		cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	}
	c := compile(t, objects...)
	if diff := cmp.Diff(want, c.Ingress.Admin, compare...); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	objects[3] = strings.Replace(objects[3], "Pass, from: [{namespaces: {matchLabels: {team: z}", "Pass, from: [{namespaces: {matchLabels: {team: q}", 1)
	if diff := cmp.Diff(slices.Delete(want, 2, 3), compile(t, objects...).Ingress.Admin, compare...); diff != "" {
		t.Errorf("with a rule that has no peers (-want +got):\n%s", diff)
	}
	if c.Ingress.Baseline != nil || c.Egress.Admin != nil {
		t.Errorf("other tables: %+v, %+v", c.Ingress.Baseline, c.Egress.Admin)
	}
}

// TestClusterSets: which sets a ClusterNetworkPolicy needs, each once.
func TestClusterSets(t *testing.T) {
	p, err := ParseCluster(parseCluster(t, "c", `{tier: Baseline, priority: 1000, subject: {pods: {namespaceSelector: {matchLabels: {team: a}}, podSelector: {matchLabels: {app: web}}}},
ingress: [{action: Accept, from: [{namespaces: {}}, {namespaces: {matchLabels: {team: b}}}], protocols: [{destinationNamedPort: http}]}],
egress: [{action: Deny, to: [{nodes: {}}, {namespaces: {matchLabels: {team: b}}}]}, {action: Pass, to: [{namespaces: {}}], protocols: [{destinationNamedPort: dns}, {tcp: {destinationPort: {number: 1}}}]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	want := []Set{{PortName: "dns"}, {Namespaces: "team=a", Pods: "app=web", PortName: "http"}, {Namespaces: "team=b"}, {OfNodes: true}}
	if diff := cmp.Diff(want, p.Sets()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	wantPorts := []Port{{Protocol: service.TCP, Name: "dns"}, {Protocol: service.UDP, Name: "dns"}, {Protocol: service.SCTP, Name: "dns"}, {Protocol: service.TCP, First: 1, Last: 1}}
	if diff := cmp.Diff(wantPorts, p.Egress[1].Ports); diff != "" {
		t.Errorf("ports (-want +got):\n%s", diff)
	}
	if !p.Baseline || p.Priority != 1000 || !p.Selects(namespaces["shop"]) || p.Selects(namespaces["bank"]) {
		t.Errorf("%+v, which has the pods of shop %v and those of bank %v", p, p.Selects(namespaces["shop"]), p.Selects(namespaces["bank"]))
	}
}

// TestClosed: what is left of a policy whose rules cannot be in force accepts nobody, and denies
// all where something might have been denied.
func TestClosed(t *testing.T) {
	all := []ClusterRule{{Deny, Rule{AnyPeer: true, AnyPort: true}}}
	web := Rule{Peers: []Peer{{Set: &Set{Pods: "app=web"}}}, AnyPort: true}
	p := ClusterPolicy{
		Name: "p", Baseline: true, Priority: 3, Subject: Set{Namespaces: "team=a"},
		Ingress: []ClusterRule{{Accept, web}}, Egress: []ClusterRule{{Accept, web}, {Pass, web}, {Deny, web}},
	}
	want := ClusterPolicy{Name: "p", Baseline: true, Priority: 3, Subject: Set{Namespaces: "team=a"}, Egress: all}
	if diff := cmp.Diff(want, p.Closed()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if len(p.Egress) != 3 || p.Egress[1].Action != Pass {
		t.Errorf("the policy itself was changed: %+v", p)
	}
	if diff := cmp.Diff(ClusterPolicy{Name: "q", Ingress: all, Egress: all}, ClosedCluster("q")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestDeniedBy: who denies a packet is the first whose rule is about it, and NetworkPolicy, which
// has no names here, where it isolates.
func TestDeniedBy(t *testing.T) {
	web, db, far := netip.MustParseAddr("172.11.0.2"), netip.MustParseAddr("172.11.0.3"), netip.MustParseAddr("172.11.4.2")
	decision := func(level int, action Action, by string, peer netip.Addr) Decision {
		return Decision{level, action, Allow{Name: by, Subjects: []netip.Addr{web}, Peers: Peers{Prefixes: []netip.Prefix{host(peer)}}, AnyPort: true, Policies: []Key{{Name: by}}}}
	}
	c := Compiled{Ingress: Table{
		Admin:    []Decision{decision(0, Accept, "accepts", db), decision(1, Pass, "passes", far), decision(2, Deny, "denies", far), decision(3, Deny, "denies more", web)},
		Baseline: []Decision{decision(0, Deny, "base", far)},
	}, Egress: Table{Admin: []Decision{decision(0, Deny, "out", db)}}}
	for _, tc := range []struct {
		src, dst         netip.Addr
		egress, isolated bool
		want             []Key
	}{
		{db, web, false, false, nil},
		{far, web, false, false, []Key{{Name: "base"}}},
		{far, web, false, true, nil},
		{web, web, false, true, []Key{{Name: "denies more"}}},
		{web, db, true, false, []Key{{Name: "out"}}},
		{db, far, true, false, nil},
	} {
		if got := c.DeniedBy(Packet{Src: tc.src, Dst: tc.dst, Protocol: 6, DstPort: 80}, tc.egress, tc.isolated); !slices.Equal(got, tc.want) {
			t.Errorf("%s to %s, egress %t, isolated %t: %v, want %v", tc.src, tc.dst, tc.egress, tc.isolated, got, tc.want)
		}
	}
}
