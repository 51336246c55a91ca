package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/k8s-ovs/k8s-ovs/pkg/service"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func pod(namespace, name, address string, ports ...NamedPort) Pod {
	return Pod{Key{namespace, name}, map[string]string{"app": name}, Member{addr(address), ports}}
}

// What there is in the tests: two namespaces with pods, two nodes, and who else sends.
var (
	namespaces = map[string]map[string]string{"shop": {"team": "a"}, "bank": {"team": "b"}}
	pods       = []Pod{
		pod("shop", "web", "172.11.0.2", NamedPort{"http", service.TCP, 8080}),
		pod("shop", "db", "172.11.0.3", NamedPort{"http", service.TCP, 80}, NamedPort{"dns", service.UDP, 53}),
		pod("bank", "web", "172.11.4.2", NamedPort{"http", service.TCP, 80}),
		pod("bank", "till", "172.11.4.3"),
	}
	nodes = []topology.Node{
		{Host: "n1", HostIP: addr("198.18.0.1"), Subnet: netip.MustParsePrefix("172.11.0.0/22")},
		{Host: "n2", HostIP: addr("198.18.0.2"), Subnet: netip.MustParsePrefix("172.11.4.0/22")},
		{Host: "no subnet yet", HostIP: addr("198.18.0.3")},
	}
	// who has an address, by the name it has in the tests.
	who = map[string]string{
		"web": "172.11.0.2", "db": "172.11.0.3", "bank-web": "172.11.4.2", "till": "172.11.4.3",
		"gateway": "172.11.0.1", "n1": "198.18.0.1", "nodeport": "172.11.3.255",
		"gateway2": "172.11.4.1", "n2": "198.18.0.2", "nodeport2": "172.11.7.255",
		"outside": "203.0.113.9", "neighbour": "203.0.113.200",
	}
)

// cluster is an index of all that, with the sets of the policies.
func cluster(t *testing.T, policies []Policy, clusterPolicies []ClusterPolicy) *Index {
	t.Helper()
	x := NewIndex()
	want := func(sets []Set) {
		for _, s := range sets {
			if err := x.Want(s); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, p := range policies {
		want(p.Sets())
	}
	for _, p := range clusterPolicies {
		want(p.Sets())
	}
	for name, have := range namespaces {
		x.SetNamespace(name, have)
	}
	for _, p := range pods {
		x.SetPod(p)
	}
	for _, n := range nodes {
		x.SetNode(n.Host, map[string]string{"host": n.Host}, []netip.Addr{n.HostIP})
	}
	return x
}

// compile is what the policies come to on the first node. Those with a tier are
// ClusterNetworkPolicies, in the order of their names.
func compile(t *testing.T, objects ...string) Compiled {
	t.Helper()
	var policies []Policy
	var clusterPolicies []ClusterPolicy
	for i, object := range objects {
		if strings.Contains(object, "tier: ") {
			p, err := ParseCluster(parseCluster(t, fmt.Sprint("c", i), object))
			if err != nil {
				t.Fatal(err)
			}
			clusterPolicies = append(clusterPolicies, p)
			continue
		}
		p, err := Parse(parse(t, object))
		if err != nil {
			t.Fatal(err)
		}
		policies = append(policies, p)
	}
	x := cluster(t, policies, clusterPolicies)
	return NewCompiler(input(func(s Set) ([]Member, bool) {
		if x.sets[s] == nil {
			t.Errorf("members of %v are asked for, which is none of the policies' sets", s)
		}
		return x.All(s), true
	})).Compile(policies, clusterPolicies)
}

// input is the first node, with sets that have these members.
func input(members func(Set) ([]Member, bool)) Input {
	return Input{
		Subjects: pods, Members: members, Network: netip.MustParsePrefix("172.11.0.0/16"), Nodes: nodes, Own: nodes[0],
		Selects: func(p ClusterPolicy, namespace string) bool { return p.Selects(namespaces[namespace]) },
	}
}

// nobody are the members of sets that are not there yet.
func nobody(Set) ([]Member, bool) { return nil, false }

// parse reads the specification of a policy in namespace shop.
func parse(t *testing.T, spec string) *networkingv1.NetworkPolicy {
	t.Helper()
	np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "p"}}
	if err := yaml.UnmarshalStrict([]byte(spec), &np.Spec); err != nil {
		t.Fatalf("%v in:\n%s", err, spec)
	}
	return np
}

// packet is one from its text, such as "web>db tcp 80".
func packet(t *testing.T, text string) Packet {
	t.Helper()
	var ends, protocol string
	var p Packet
	if _, err := fmt.Sscanf(text, "%s %s %d", &ends, &protocol, &p.DstPort); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	src, dst, _ := strings.Cut(ends, ">")
	p.Src, p.Dst = addr(who[src]), addr(who[dst])
	p.Protocol = map[string]uint8{"icmp": 1, "tcp": 6, "udp": 17, "sctp": 132, "gre": 47}[protocol]
	return p
}

// judge checks what becomes of packets.
func judge(t *testing.T, c Compiled, want Verdict, packets string) {
	t.Helper()
	for text := range strings.SplitSeq(packets, ", ") {
		if text == "" {
			continue
		}
		p := packet(t, text)
		if got := c.Verdict(p); got != want {
			t.Errorf("%s: %v, want %v", text, got, want)
		}
		if c.Network.IsValid() && slices.ContainsFunc(pods, func(pod Pod) bool { return pod.Address == p.Src }) {
			judgeReach(t, c, p)
		}
	}
}

// TestVerdict: what every list and field of a policy means, missing, empty and filled.
func TestVerdict(t *testing.T) {
	for _, tc := range []struct {
		name     string
		policies []string
		allowed  string
		ingress  string // denied so
		egress   string
	}{
		{name: "no policy", allowed: "outside>web tcp 80, web>outside gre 0, till>web udp 1"},
		{
			name:     "nothing but a selector: isolated for ingress, and only that",
			policies: []string{`{podSelector: {}}`},
			ingress:  "db>web tcp 80, till>db tcp 80, outside>web icmp 0",
			allowed:  "web>till tcp 80, web>outside tcp 80, web>bank-web udp 9",
		},
		{
			name:     "only its own namespace's pods are selected",
			policies: []string{`{podSelector: {matchLabels: {app: web}}}`},
			ingress:  "till>web tcp 80",
			allowed:  "till>bank-web tcp 80, web>db tcp 80",
		},
		{
			name:     "an empty list of rules allows nothing",
			policies: []string{`{podSelector: {}, ingress: [], egress: [], policyTypes: [Ingress, Egress]}`},
			ingress:  "till>web tcp 80",
			egress:   "web>till tcp 80, web>db tcp 80, db>outside udp 53",
		},
		{
			name:     "an empty rule allows all",
			policies: []string{`{podSelector: {}, ingress: [{}], egress: [{}]}`},
			allowed:  "till>web tcp 80, outside>web gre 0, web>outside icmp 0, db>web sctp 7",
		},
		{
			name:     "empty lists in a rule are as missing ones",
			policies: []string{`{podSelector: {}, ingress: [{from: [], ports: []}]}`},
			allowed:  "till>web tcp 80, outside>web gre 0",
		},
		{
			name:     "rules of egress without policyTypes isolate both ways",
			policies: []string{`{podSelector: {}, egress: [{}]}`},
			ingress:  "till>web tcp 80, web>db tcp 80",
			allowed:  "web>outside tcp 80",
		},
		{
			name:     "policyTypes Egress alone does not isolate ingress",
			policies: []string{`{podSelector: {}, policyTypes: [Egress]}`},
			egress:   "web>till tcp 80",
			allowed:  "till>web tcp 80, outside>db tcp 80",
		},
		{
			name:     "rules of a direction that policyTypes leaves out say nothing",
			policies: []string{`{podSelector: {}, policyTypes: [Ingress], egress: [{ports: [{port: 1}]}]}`},
			ingress:  "till>web tcp 80",
			allowed:  "web>till tcp 80",
		},
		{
			name:     "podSelector alone: pods of the policy's namespace",
			policies: []string{`{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}`},
			allowed:  "web>db tcp 80",
			ingress:  "bank-web>db tcp 80, outside>db tcp 80",
		},
		{
			name:     "an empty podSelector: all of the namespace",
			policies: []string{`{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}`},
			allowed:  "web>db tcp 80, db>web tcp 80",
			ingress:  "bank-web>db tcp 80, gateway2>db tcp 80",
		},
		{
			name:     "namespaceSelector alone: all pods of those namespaces",
			policies: []string{`{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: b}}}]}]}`},
			allowed:  "bank-web>db tcp 80, till>db tcp 80",
			ingress:  "web>db tcp 80, outside>db tcp 80",
		},
		{
			name:     "an empty namespaceSelector: all pods, and neither nodes nor the outside",
			policies: []string{`{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}`},
			allowed:  "bank-web>db tcp 80, web>db tcp 80, gateway>db tcp 80",
			ingress:  "outside>db tcp 80, gateway2>db tcp 80, nodeport>db tcp 80, nodeport2>db tcp 80, n2>db tcp 80",
		},
		{
			name:     "both in one peer: and",
			policies: []string{`{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: b}}, podSelector: {matchLabels: {app: web}}}]}]}`},
			allowed:  "bank-web>db tcp 80",
			ingress:  "till>db tcp 80, web>db tcp 80",
		},
		{
			name:     "both in two peers: or",
			policies: []string{`{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: b}}}, {podSelector: {matchLabels: {app: web}}}]}]}`},
			allowed:  "bank-web>db tcp 80, till>db tcp 80, web>db tcp 80",
			ingress:  "db>web tcp 80",
		},
		{
			name:     "expressions",
			policies: []string{`{podSelector: {matchExpressions: [{key: app, operator: In, values: [web, x]}]}, ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: team, operator: NotIn, values: [b]}]}}]}]}`},
			allowed:  "db>web tcp 80, till>db tcp 80",
			ingress:  "till>web tcp 80",
		},
		{
			name:     "ipBlock, with what it leaves out",
			policies: []string{`{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 203.0.113.0/24, except: [203.0.113.128/25]}}]}]}`},
			allowed:  "outside>web tcp 80",
			ingress:  "neighbour>web tcp 80, till>web tcp 80",
		},
		{
			name:     "an ipBlock has pods too",
			policies: []string{`{podSelector: {}, egress: [{to: [{ipBlock: {cidr: 172.11.4.2/32}}]}], policyTypes: [Egress]}`},
			allowed:  "web>bank-web tcp 80",
			egress:   "web>till tcp 80",
		},
		{
			name:     "what one peer leaves out another may have",
			policies: []string{`{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 203.0.113.0/24, except: [203.0.113.128/25]}}, {ipBlock: {cidr: 203.0.113.200/32}}]}]}`},
			allowed:  "outside>web tcp 80, neighbour>web tcp 80",
		},
		{
			name:     "everything but the pods: nodes are their own addresses'",
			policies: []string{`{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0, except: [172.11.0.0/16]}}]}]}`},
			allowed:  "outside>web tcp 80, gateway2>web tcp 80, n2>web tcp 80, nodeport2>web tcp 80",
			ingress:  "till>web tcp 80, db>web tcp 80",
		},
		{
			name:     "a block with a node has it by whatever address it comes",
			policies: []string{`{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 198.18.0.2/32}}]}]}`},
			allowed:  "gateway2>web tcp 80, nodeport2>web tcp 80",
			ingress:  "nodeport>web tcp 80, outside>web tcp 80, till>web tcp 80",
		},
		{
			name:     "a node that is left out is so by whatever address it comes",
			policies: []string{`{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0, except: [198.18.0.2/32]}}]}]}`},
			allowed:  "outside>web tcp 80, nodeport>web tcp 80, till>web tcp 80",
			ingress:  "gateway2>web tcp 80, nodeport2>web tcp 80, n2>web tcp 80",
		},
		{
			name:     "IPv6 is nobody's",
			policies: []string{`{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: "::/0"}}]}]}`},
			ingress:  "outside>web tcp 80, web>db tcp 80",
		},
		{
			name:     "a port without protocol is TCP's",
			policies: []string{`{podSelector: {}, ingress: [{ports: [{port: 80}]}]}`},
			allowed:  "outside>web tcp 80",
			ingress:  "outside>web tcp 81, outside>web udp 80, outside>web icmp 0",
		},
		{
			name:     "a protocol without port: all its ports",
			policies: []string{`{podSelector: {}, ingress: [{ports: [{protocol: UDP}]}]}`},
			allowed:  "outside>web udp 1, outside>web udp 65535",
			ingress:  "outside>web tcp 1, outside>web sctp 1",
		},
		{
			name:     "an empty port: all of TCP",
			policies: []string{`{podSelector: {}, ingress: [{ports: [{}]}]}`},
			allowed:  "outside>web tcp 1",
			ingress:  "outside>web udp 1",
		},
		{
			name:     "endPort, both ends included",
			policies: []string{`{podSelector: {}, ingress: [{ports: [{protocol: SCTP, port: 80, endPort: 82}]}]}`},
			allowed:  "outside>web sctp 80, outside>web sctp 81, outside>web sctp 82",
			ingress:  "outside>web sctp 79, outside>web sctp 83, outside>web tcp 81",
		},
		{
			name:     "ports and peers: and; several rules: or",
			policies: []string{`{podSelector: {}, ingress: [{from: [{podSelector: {}}], ports: [{port: 80}]}, {from: [{ipBlock: {cidr: 203.0.113.9/32}}], ports: [{port: 81}]}]}`},
			allowed:  "web>db tcp 80, outside>db tcp 81",
			ingress:  "web>db tcp 81, outside>db tcp 80",
		},
		{
			name:     "a named port of ingress is the subject's, whose number differs from pod to pod",
			policies: []string{`{podSelector: {}, ingress: [{ports: [{port: http}]}]}`},
			allowed:  "outside>web tcp 8080, outside>db tcp 80",
			ingress:  "outside>web tcp 80, outside>db tcp 8080, outside>db udp 80",
		},
		{
			name:     "a name has a protocol",
			policies: []string{`{podSelector: {}, ingress: [{ports: [{port: dns, protocol: UDP}, {port: http, protocol: UDP}]}]}`},
			allowed:  "outside>db udp 53",
			ingress:  "outside>db tcp 53, outside>db udp 80, outside>web udp 53",
		},
		{
			name:     "a named port of egress is the peer's",
			policies: []string{`{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {team: b}}}], ports: [{port: http}]}]}`},
			allowed:  "web>bank-web tcp 80",
			egress:   "web>bank-web tcp 8080, web>till tcp 80, web>db tcp 80",
		},
		{
			name:     "a named port of egress with no peers: of any pod that has it",
			policies: []string{`{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: http}]}]}`},
			allowed:  "db>web tcp 8080, web>bank-web tcp 80, web>db tcp 80",
			egress:   "db>web tcp 80, web>outside tcp 80, web>till tcp 80",
		},
		{
			name:     "and with all pods as peers",
			policies: []string{`{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}}], ports: [{port: http}]}]}`},
			allowed:  "db>web tcp 8080, web>bank-web tcp 80",
			egress:   "db>web tcp 80, web>till tcp 80, web>outside tcp 80",
		},
		{
			name:     "and with a block, of the pods in it",
			policies: []string{`{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 172.11.4.0/22}}], ports: [{port: http}, {port: 7}]}]}`},
			allowed:  "web>bank-web tcp 80, web>till tcp 7",
			egress:   "web>db tcp 80, web>till tcp 80, db>web tcp 8080",
		},
		{
			name:     "policies add up",
			policies: []string{`{podSelector: {}, ingress: [{ports: [{port: 80}]}]}`, `{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 81}]}]}`},
			allowed:  "outside>web tcp 80, outside>web tcp 81, outside>db tcp 80",
			ingress:  "outside>db tcp 81",
		},
		{
			name:     "sender and receiver must both be allowed",
			policies: []string{`{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{podSelector: {}}]}]}`, `{podSelector: {matchLabels: {app: db}}}`},
			ingress:  "web>db tcp 80",
			egress:   "web>till tcp 80",
		},
		{
			name:     "nobody is cut off from itself, nor from its node",
			policies: []string{`{podSelector: {}, policyTypes: [Ingress, Egress]}`},
			allowed:  "web>web tcp 80, gateway>web tcp 80, n1>web tcp 80, web>gateway tcp 10250, web>n1 icmp 0",
			ingress:  "gateway2>web tcp 80, nodeport>web tcp 80",
			egress:   "web>gateway2 tcp 80, web>n2 tcp 80, web>db tcp 80",
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

// TestParseRefuses: what the API server would not have let through is told, and closes.
func TestParseRefuses(t *testing.T) {
	for _, tc := range []struct{ name, spec, want string }{
		{"subject", `{podSelector: {matchExpressions: [{key: a, operator: In}]}}`, "podSelector: "},
		{"peer's selector", `{podSelector: {}, ingress: [{from: [{podSelector: {matchExpressions: [{key: a, operator: Like}]}}]}]}`, "ingress[0]: peers[0]: podSelector: "},
		{"namespaces' selector", `{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: "a b", operator: Exists}]}}]}]}`, "ingress[0]: peers[0]: namespaceSelector: "},
		{"peer without anything", `{podSelector: {}, ingress: [{from: [{}]}]}`, "this one has none"},
		{"peer with all", `{podSelector: {}, ingress: [{from: [{podSelector: {}, ipBlock: {cidr: 0.0.0.0/0}}]}]}`, "this one is both"},
		{"block", `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 010.0.0.0/8}}]}]}`, "ipBlock: cidr: "},
		{"except", `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0, except: [x]}}]}]}`, "ipBlock: except: "},
		{"protocol", `{podSelector: {}, ingress: [{ports: [{protocol: ICMP}]}]}`, `ports[0]: protocol "ICMP"`},
		{"port 0", `{podSelector: {}, ingress: [{ports: [{port: 0}]}]}`, "ports 0 to 0"},
		{"port too high", `{podSelector: {}, ingress: [{ports: [{port: 65536}]}]}`, "ports 65536 to 65536"},
		{"range upside down", `{podSelector: {}, ingress: [{ports: [{port: 9, endPort: 8}]}]}`, "ports 9 to 8"},
		{"range from a name", `{podSelector: {}, ingress: [{ports: [{port: http, endPort: 8}]}]}`, `not the name "http"`},
		{"range from nothing", `{podSelector: {}, ingress: [{ports: [{endPort: 8}]}]}`, "endPort needs a port"},
		{"name that is none", `{podSelector: {}, ingress: [{ports: [{port: ""}]}]}`, "name of the port is empty"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, err := Parse(parse(t, tc.spec))
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.HasPrefix(err.Error(), "NetworkPolicy shop/p: ") {
				t.Errorf("error %v, want one of NetworkPolicy shop/p with %q", err, tc.want)
			}
			c := NewCompiler(Input{Subjects: pods, Members: nobody, Own: nodes[0]}).Compile([]Policy{p}, nil)
			judge(t, c, DeniedIngress, "till>web tcp 80, outside>db tcp 8")
		})
	}
}

// TestCompile: what flows are made of. Rules of several policies that allow the same are
// one, and blocks are without what they leave out.
func TestCompile(t *testing.T) {
	got := compile(t,
		`{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: db}}}], ports: [{port: 80, endPort: 90}, {port: http}]}]}`,
		`{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: db}}}], ports: [{port: 80, endPort: 90}]}]}`,
		`{podSelector: {matchLabels: {app: nobody}}, ingress: [{}]}`,
		`{podSelector: {matchLabels: {app: db}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.128.0.0/9, 10.0.0.0/10]}}, {namespaceSelector: {}}]}]}`)
	web, db := addr("172.11.0.2"), addr("172.11.0.3")
	by := []Key{{"shop", "p"}}
	peers := Peers{Prefixes: []netip.Prefix{netip.MustParsePrefix("172.11.0.3/32")}}
	name := `["shop" "" "app=db" ""] on `
	want := Compiled{
		Ingress: Table{Isolated: []netip.Addr{web, db}, Allows: []Allow{
			{Name: name + "[{TCP 80 90}]", Subjects: []netip.Addr{web, db}, Peers: peers, Ports: []PortRange{{service.TCP, 80, 90}}, Policies: by},
			{Name: name + "[{TCP 8080 8080}]", Subjects: []netip.Addr{web}, Peers: peers, Ports: []PortRange{{service.TCP, 8080, 8080}}, Policies: by},
		}},
		Egress: Table{Isolated: []netip.Addr{db}, Allows: []Allow{
			{Name: `10.0.0.0/8 [10.128.0.0/9 10.0.0.0/10] ["" "" "" ""] on []`, Subjects: []netip.Addr{db}, Peers: Peers{Pods: true, Prefixes: []netip.Prefix{netip.MustParsePrefix("10.64.0.0/10")}}, AnyPort: true, Policies: by},
		}},
		Own:           []netip.Addr{addr("172.11.0.1"), addr("198.18.0.1")},
		Network:       netip.MustParsePrefix("172.11.0.0/16"),
		NodeAddresses: []netip.Addr{addr("172.11.0.1"), addr("172.11.3.255"), addr("172.11.4.1"), addr("172.11.7.255")},
	}
	compare := []cmp.Option{
		cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	}
	if diff := cmp.Diff(want, got, compare...); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestBlocks: an address that a block has already is no prefix of its own.
func TestBlocks(t *testing.T) {
	for block, want := range map[string][]string{
		`{cidr: 0.0.0.0/0}`:                           {"0.0.0.0/0"},
		`{cidr: 198.18.0.2/32}`:                       {"172.11.4.1/32", "172.11.7.255/32", "198.18.0.2/32"},
		`{cidr: 10.1.2.3/30, except: [10.1.2.0/32]}`:  {"10.1.2.1/32", "10.1.2.2/31"},
		`{cidr: 10.1.0.0/16, except: [10.0.0.0/8]}`:   nil,
		`{cidr: 10.1.0.0/16, except: [10.2.0.0/16]}`:  {"10.1.0.0/16"},
		`{cidr: 172.11.0.0/30, except: [0.0.0.0/0]}`:  nil,
		`{cidr: 172.11.0.0/30, except: ["fd00::/8"]}`: {"172.11.0.0/30"},
	} {
		c := compile(t, `{podSelector: {}, ingress: [{from: [{ipBlock: `+block+`}]}]}`)
		var got []string
		for _, a := range c.Ingress.Allows {
			for _, p := range a.Peers.Prefixes {
				got = append(got, p.String())
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", block, diff)
		}
	}
}

// TestLateSets: whose members are not known is not allowed.
func TestLateSets(t *testing.T) {
	p, err := Parse(parse(t, `{podSelector: {}, ingress: [{from: [{podSelector: {}}]}, {ports: [{port: 7}]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	c := NewCompiler(Input{Subjects: pods, Members: nobody}).Compile([]Policy{p}, nil)
	judge(t, c, Allowed, "web>db tcp 7")
	judge(t, c, DeniedIngress, "web>db tcp 80")
}

// TestSets: which sets a policy needs, each once; all pods need no list.
func TestSets(t *testing.T) {
	p, err := Parse(parse(t, `{podSelector: {},
ingress: [{from: [{podSelector: {matchLabels: {b: p, a: q}}}, {namespaceSelector: {}}], ports: [{port: http}]}],
egress: [{to: [{podSelector: {matchExpressions: [{key: b, operator: In, values: [p]}, {key: a, operator: In, values: [q]}]}}]}, {to: [{podSelector: {}, namespaceSelector: {}}], ports: [{port: http}]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	want := []Set{{PortName: "http"}, {Namespace: "shop", PortName: "http"}, {Namespace: "shop", Pods: "a in (q),b in (p)"}, {Namespace: "shop", Pods: "a=q,b=p"}}
	if diff := cmp.Diff(want, p.Sets()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	hashes := map[string]bool{}
	for _, s := range append(want, Set{}, Set{Namespaces: "shop"}, Set{Pods: "shop"}, Set{OfNodes: true}, Set{OfNodes: true, Nodes: "shop"}) {
		hashes[s.Hash()] = true
	}
	if len(hashes) != len(want)+5 {
		t.Errorf("%d hashes of %d sets", len(hashes), len(want)+5)
	}
}

// TestUnreadable: a selector that a person wrote into a record may be none. A subject is
// then every pod of the namespace, and a set an error.
func TestUnreadable(t *testing.T) {
	p := Policy{Key: Key{"shop", "p"}, Subject: "a in (", Ingress: Side{Isolates: true}}
	c := NewCompiler(Input{Subjects: pods}).Compile([]Policy{p}, nil)
	if diff := cmp.Diff([]string{"172.11.0.2", "172.11.0.3"}, texts(c.Ingress.Isolated)); diff != "" {
		t.Errorf("isolated (-want +got):\n%s", diff)
	}
	for _, s := range []Set{{Pods: "a in ("}, {Namespaces: "a==="}, {OfNodes: true, Nodes: "a b"}} {
		if err := NewIndex().Want(s); err == nil || !strings.Contains(err.Error(), s.Hash()) {
			t.Errorf("%v: error %v, want one that names set %s", s, err, s.Hash())
		}
	}
}

func texts(list []netip.Addr) []string {
	var out []string
	for _, a := range list {
		out = append(out, a.String())
	}
	return out
}

// TestOneByOne: what several policies come to is what each comes to alone, together.
func TestOneByOne(t *testing.T) {
	policies, in := manyPolicies(300, 1)
	whole := NewCompiler(in).Compile(policies, nil)
	alone := newTables()
	k := NewCompiler(in)
	for _, p := range policies {
		c := k.Compile([]Policy{p}, nil)
		for _, a := range c.Ingress.Isolated {
			alone.isolated[a] = true
		}
		for _, a := range c.Ingress.Allows {
			if same := alone.allows[a.Name]; same != nil {
				same.join(a)
				continue
			}
			alone.allows[a.Name] = &a
		}
	}
	if len(whole.Ingress.Allows) == len(policies) {
		t.Error("no two policies have a rule in common")
	}
	compare := []cmp.Option{
		cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	}
	if diff := cmp.Diff(whole.Ingress, alone.table(), compare...); diff != "" {
		t.Errorf("(-whole +one by one):\n%s", diff)
	}
}

// manyPolicies are policies of one rule each that name 100 sets of 4,000 peers and some
// ports, and a node with 250 pods.
func manyPolicies(count, ports int) ([]Policy, Input) {
	in := Input{Network: netip.MustParsePrefix("10.0.0.0/8")}
	for i := range 250 {
		p := Pod{Key: Key{"shop", fmt.Sprint("pod", i)}, Labels: map[string]string{"n": fmt.Sprint(i)}}
		p.Address = netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
		in.Subjects = append(in.Subjects, p)
	}
	members := map[Set][]Member{}
	set := func(i int) Set { return Set{Namespace: "shop", Pods: Selector(fmt.Sprint("set=", i%100))} }
	for i := range 4000 {
		members[set(i)] = append(members[set(i)], Member{Address: netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})})
	}
	in.Members = func(s Set) ([]Member, bool) { return members[s], true }
	var policies []Policy
	for i := range count {
		peers, port := set(i), uint16(1+i/100%ports)
		rule := Rule{Peers: []Peer{{Set: &peers}}, Ports: []Port{{Protocol: service.TCP, First: port, Last: port}}}
		policies = append(policies, Policy{Key{"shop", fmt.Sprint("p", i)}, Selector(fmt.Sprint("n=", i%250)), Side{Isolates: true, Rules: []Rule{rule}}, Side{}})
	}
	return policies, in
}

// BenchmarkCompile is 10,000 policies of a node with 250 pods: all at once, all one by one
// in a pass, and the pass after one of them has changed.
func BenchmarkCompile(b *testing.B) {
	policies, in := manyPolicies(10000, 100)
	rules := func(b *testing.B, got, want int) {
		if got != want {
			b.Fatalf("%d rules, want %d", got, want)
		}
	}
	b.Run("whole", func(b *testing.B) {
		for b.Loop() {
			rules(b, len(NewCompiler(in).Compile(policies, nil).Ingress.Allows), len(policies))
		}
	})
	b.Run("one by one", func(b *testing.B) {
		for b.Loop() {
			k, count := NewCompiler(in), 0
			for i := range policies {
				count += len(k.Compile(policies[i:i+1], nil).Ingress.Allows)
			}
			rules(b, count, len(policies))
		}
	})
	b.Run("one changed", func(b *testing.B) {
		for b.Loop() {
			rules(b, len(NewCompiler(in).Compile(policies[:1], nil).Ingress.Allows), 1)
		}
	})
}
