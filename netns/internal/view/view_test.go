package view

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/k8s-ovs/k8s-ovs/netns/internal/plan"
	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	"github.com/k8s-ovs/k8s-ovs/pkg/policy"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares got with testdata/name.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

// all compares v in all three formats.
func all[T any](t *testing.T, name string, v T, table func(io.Writer, T) error) {
	t.Helper()
	var text bytes.Buffer
	if err := table(&text, v); err != nil {
		t.Fatal(err)
	}
	golden(t, name+".txt", text.Bytes())
	asJSON, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, name+".json", append(asJSON, '\n'))
	asYAML, err := yaml.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, name+".yaml", asYAML)
}

func space(name string, id netid.ID) topology.Namespace {
	n := int64(id)
	return topology.Namespace{NetName: name, NetID: &n, Effective: &id}
}

func addr(last int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", last)) }

func node(name string, last int, subnet string) topology.Node {
	n := topology.Node{Host: name, HostIP: addr(last)}
	if subnet != "" {
		n.Subnet = netip.MustParsePrefix(subnet)
	} else {
		n.Assign = true
	}
	return n
}

func status(name string, last int, rev int64) topology.NodeStatus {
	return topology.NodeStatus{Host: name, HostIP: addr(last), Revision: rev, Version: "v1.0.0", Datapath: "system", MTU: 1450, VXLANPort: 4789, Pods: 12}
}

// cluster has a namespace and a node in every state.
func cluster() (topology.Snapshot, Statuses) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.FixedZone("elsewhere", 3600))
	refused := space("web", 300924)
	refused.Status = &topology.Status{Outcome: topology.Refused, Message: "refused: there is no namespace wbe", By: "alice@desk", Time: at}
	asking := space("shop", 300924)
	asking.Action, asking.Namespace, asking.By = topology.Join, "db", "bob@desk"
	byHand := space("typo", 6693608)
	*byHand.NetID = 7
	unseen := int64(12800140)
	s := topology.Snapshot{
		Revision: 130,
		Config:   topology.DefaultConfig(),
		Namespaces: map[string]topology.Namespace{
			"web": refused, "shop": asking, "typo": byHand, "db": space("db", 3831805),
			"kube-system": space("kube-system", 0), "monitoring": space("monitoring", 0),
			"new": {NetName: "new"}, "restored": {NetName: "restored", NetID: &unseen},
		},
		Nodes: map[netip.Addr]topology.Node{},
		Invalid: map[string]string{
			"netnamespaces/broken": "namespace record broken is not valid JSON of its form:\nunexpected end of JSON input",
			"subnets/192.0.2.99":   "node record 192.0.2.99: HostIP is 192.0.2.98; it must be the address in the key",
		},
	}
	for i := range 6 {
		name := fmt.Sprintf("team-%d", i)
		s.Namespaces[name] = space(name, 777)
	}
	full := node("n10", 10, "")
	full.Status = &topology.Status{Message: "no node subnet is left in 172.11.0.0/16", Time: at}
	for _, n := range []topology.Node{
		node("n1", 1, "172.11.0.0/22"), node("n2", 2, "172.11.4.0/22"), node("n3", 3, "172.11.8.0/22"),
		node("n4", 4, "172.11.12.0/22"), node("n5", 5, ""), full,
	} {
		s.Nodes[n.HostIP] = n
	}
	stuck := status("n2", 2, 120)
	stuck.Message = "ovs-vswitchd does not answer"
	user := status("n4", 4, 131)
	user.Datapath, user.MTU, user.Pods = "netdev", 8950, 0
	return s, Statuses{addr(1): status("n1", 1, 130), addr(2): stuck, addr(4): user, addr(50): status("n50", 50, 90)}
}

// limited has pods of web, one of them on two nodes: it is being replaced.
func limited() Limits {
	used := func(rate, burst uint64) *topology.LimitUsed {
		return &topology.LimitUsed{Rate: rate, Burst: burst, Bytes: 1_234_567_890, Delayed: 4321, Dropped: 12}
	}
	return Limits{
		addr(2): {Host: "n2", HostIP: addr(2), Pods: []topology.PodLimits{
			{Namespace: "web", Pod: "front-0", Ingress: used(1_500_000, 0)}, {Namespace: "db", Pod: "other", Egress: used(1000, 0)},
		}},
		addr(1): {Host: "n1", HostIP: addr(1), Pods: []topology.PodLimits{
			{Namespace: "web", Pod: "front-1", Egress: used(1<<30, 65536)}, {Namespace: "web", Pod: "front-0", Ingress: used(10_000_000, 0), Egress: used(999_999, 0)},
		}},
	}
}

// packets has n3, whose agent is away, hold all others back.
func packets() topology.MTUs {
	m := topology.MTUs{Nodes: map[netip.Addr]topology.NodeMTU{}}
	for i, carries := range map[int]int{1: 1450, 2: 1450, 3: 1350, 4: 8950} {
		m.Nodes[addr(i)] = topology.NodeMTU{Carries: carries, Receives: 1350, Sends: 1350, Limit: "eth0"}
	}
	hole := m.Nodes[addr(2)]
	hole.BlackHoles = "192.0.2.3, 192.0.2.4"
	m.Nodes[addr(2)] = hole
	return m
}

func TestNamespaces(t *testing.T) {
	s, _ := cluster()
	all(t, "list", Namespaces(s), WriteNamespaces)
}

// TestAnnotated: what Kubernetes says shows, and what overrules it.
func TestAnnotated(t *testing.T) {
	s, statuses := cluster()
	for name, forced := range map[string]bool{"web": false, "shop": true} {
		n := s.Namespaces[name]
		n.UID, n.Declared, n.Forced = "u-"+name, "front", forced
		s.Namespaces[name] = n
	}
	all(t, "list-annotated", Namespaces(s), WriteNamespaces)
	all(t, "show-annotated", Show(s, s.Namespaces["shop"], 125, statuses, limited(), Policies{}), WriteDetail)
}

// policies are those of shop: two that select pods on two nodes, of which one does not
// report what it enforces.
func policies() Policies {
	return Policies{
		Isolation: topology.Isolation{Policies: []topology.IsolatingPolicy{
			{Name: "deny", Ingress: true, Egress: true}, {Name: "web", Selector: "app=web", Ingress: true},
		}, Cluster: []topology.SelectingPolicy{{Name: "base"}, {Name: "late"}, {Name: "metadata", Selector: "app=web"}}},
		Cluster: map[string]topology.ClusterPolicyRecord{
			"base":     {Tier: topology.TierBaseline, Priority: 3},
			"late":     {Tier: topology.TierAdmin, Priority: 9},
			"metadata": clusterRecord,
		},
		Pods: map[netip.Addr]topology.NodePods{
			addr(1): {Host: "n1", Pods: []topology.NodePod{
				{Namespace: "shop", Name: "web-1", Ingress: []string{"deny", "web"}, Egress: []string{"deny"}, Cluster: []string{"base", "metadata"}}, {Namespace: "other", Name: "x", Ingress: []string{"web"}},
			}},
			addr(2): {Host: "n2", Pods: []topology.NodePod{{Namespace: "shop", Name: "db-0", Ingress: []string{"deny"}, Egress: []string{"deny"}, Cluster: []string{"base"}}}},
		},
	}
}

// TestPolicies: a namespace of Kubernetes, with policies and without; and one policy.
func TestPolicies(t *testing.T) {
	s, statuses := cluster()
	n := s.Namespaces["shop"]
	n.UID = "u-shop"
	for ip, st := range statuses {
		if ip != addr(4) {
			st.Enforces = []string{topology.EnforcesNetworkPolicy}
			if ip != addr(2) {
				st.Enforces = append(st.Enforces, topology.EnforcesClusterNetworkPolicy)
			}
			statuses[ip] = st
		}
	}
	all(t, "show-policies", Show(s, n, 125, statuses, limited(), policies()), WriteDetail)
	all(t, "show-no-policies", Show(s, n, 125, statuses, limited(), Policies{}), WriteDetail)

	front := topology.PodSet{Namespaces: "team=a", Pods: "app=front"}
	record := topology.PolicyRecord{Selector: "app=web", Ingress: []topology.PolicyRule{
		{
			Peers: []topology.PolicyPeer{{Set: &front}, {Set: &topology.PodSet{Namespace: "shop"}}, {Block: netip.MustParsePrefix("10.0.0.0/8"), Except: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}}},
			Ports: []topology.PolicyPort{{Protocol: "TCP", Port: 80, End: 90}, {Protocol: "TCP", Name: "http"}, {Protocol: "UDP", Port: 53}, {Protocol: "SCTP"}},
		},
		{Peers: []topology.PolicyPeer{{Set: &topology.PodSet{}}}},
		{Ports: []topology.PolicyPort{}},
	}}
	hashes := PolicySets(record)
	if len(hashes) != 2 {
		t.Fatalf("sets %v", hashes)
	}
	sets := map[string]topology.SetMembers{policy.SetFromRecord(front).Hash(): {
		Of:     topology.AddressSet{PodSet: front, Whole: true},
		Chunks: map[netip.Addr]topology.SetChunk{netip.MustParseAddr("172.11.0.0"): {Addresses: topology.Octets{7}}, netip.MustParseAddr("172.11.4.0"): {Addresses: topology.Octets{1}}},
	}}
	d, ok := ShowPolicy("shop", "web", policies(), record, sets)
	if !ok {
		t.Fatal("it is not there")
	}
	all(t, "policy", d, WritePolicy)
	deny, _ := ShowPolicy("shop", "deny", policies(), topology.PolicyRecord{Ingress: []topology.PolicyRule{}, Egress: []topology.PolicyRule{}}, nil)
	all(t, "policy-deny", deny, WritePolicy)
	if _, ok := ShowPolicy("shop", "wbe", policies(), record, sets); ok || policies().Names() != "deny, web" || (Policies{}).Names() != "none" {
		t.Errorf("a policy that is not there; names %q", policies().Names())
	}
}

// clusterRecord is a ClusterNetworkPolicy with each kind of peer.
var clusterRecord = topology.ClusterPolicyRecord{
	Tier: topology.TierAdmin, Priority: 7, Subject: topology.PodSet{Namespaces: "team=a", Pods: "app=web"},
	Ingress: []topology.ClusterPolicyRule{{Action: topology.ActionPass, PolicyRule: topology.PolicyRule{Peers: []topology.PolicyPeer{{Set: &topology.PodSet{}}}}}},
	Egress: []topology.ClusterPolicyRule{
		{Action: topology.ActionAccept, PolicyRule: topology.PolicyRule{
			Peers: []topology.PolicyPeer{{Set: &topology.PodSet{OfNodes: true, Nodes: "zone=b"}}, {Set: &topology.PodSet{OfNodes: true}}},
			Ports: []topology.PolicyPort{{Protocol: "TCP", Port: 443}},
		}},
		{Action: topology.ActionDeny, PolicyRule: topology.PolicyRule{Peers: []topology.PolicyPeer{{Block: netip.MustParsePrefix("169.254.169.254/32")}}}},
	},
}

// TestClusterPolicy: one ClusterNetworkPolicy of a namespace.
func TestClusterPolicy(t *testing.T) {
	hashes := ClusterPolicySets(clusterRecord)
	if len(hashes) != 2 {
		t.Fatalf("sets %v", hashes)
	}
	zone := topology.PodSet{OfNodes: true, Nodes: "zone=b"}
	d, ok := ShowClusterPolicy("shop", "metadata", policies(), map[string]topology.SetMembers{policy.SetFromRecord(zone).Hash(): {
		Of: topology.AddressSet{PodSet: zone, Whole: true}, Chunks: map[netip.Addr]topology.SetChunk{netip.MustParseAddr("192.0.2.0"): {Addresses: topology.Octets{6}}},
	}})
	if !ok {
		t.Fatal("it is not there")
	}
	all(t, "clusterpolicy", d, WriteClusterPolicy)
	if _, ok := ShowClusterPolicy("shop", "deny", policies(), nil); ok || policies().ClusterNames() != "base, late, metadata" || (Policies{}).ClusterNames() != "none" {
		t.Errorf("a policy that is not there; names %q", policies().ClusterNames())
	}
}

func TestNoNamespaces(t *testing.T) {
	all(t, "list-empty", Namespaces(topology.Snapshot{}), WriteNamespaces)
}

func TestSingleTenant(t *testing.T) {
	s, _ := cluster()
	s.Config.PluginName = topology.SingleTenant
	for _, row := range Namespaces(s) {
		if row.State != Invalid && !row.Global {
			t.Errorf("namespace %s is not global in a single-tenant network", row.Namespace)
		}
	}
}

func TestNodes(t *testing.T) {
	s, statuses := cluster()
	all(t, "nodes", Nodes(s, statuses, packets(), 130), WriteNodes)
}

func TestShow(t *testing.T) {
	s, statuses := cluster()
	for _, name := range []string{"web", "shop", "kube-system", "new"} {
		t.Run(name, func(t *testing.T) {
			all(t, "show-"+name, Show(s, s.Namespaces[name], 125, statuses, limited(), Policies{}), WriteDetail)
		})
	}
}

func TestResult(t *testing.T) {
	s, statuses := cluster()
	tests := []struct {
		name    string
		request plan.Request
		finish  func(*Result)
	}{
		{"dry-run-join", plan.Request{Action: topology.Join, Namespace: "web", Target: "db"}, func(r *Result) {
			r.DryRun, r.Result, r.Message = true, WouldChange, "dry run of join web db; nothing was changed"
		}},
		{"dry-run-global", plan.Request{Action: topology.MakeGlobal, Namespace: "web"}, func(r *Result) {
			r.DryRun, r.Result, r.Message = true, WouldChange, "dry run of global web; nothing was changed"
		}},
		{"join", plan.Request{Action: topology.Join, Namespace: "web", Target: "monitoring"}, func(r *Result) {
			id, p := netid.Global, Applied(s, statuses, 110)
			r.Result, r.Message = Done, "web joined monitoring: netID 0, applied on "+p.String()
			r.NetID, r.NetworkWith, r.Revision, r.Nodes = &id, []string{"kube-system", "monitoring"}, 110, &p
		}},
		{"nothing", plan.Request{Action: topology.Isolate, Namespace: "db"}, func(r *Result) {
			r.Result, r.Message = NothingToDo, "db is alone in its network already (netID 3831805); nothing to do"
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, err := plan.Make(s, tt.request)
			if err != nil {
				t.Fatal(err)
			}
			r := NewResult(p)
			tt.finish(&r)
			all(t, "result-"+tt.name, r, WriteResult)
		})
	}
}

func TestApplied(t *testing.T) {
	s, statuses := cluster()
	tests := []struct {
		rev  int64
		want Progress
		text string
	}{
		{100, Progress{Live: 3, Applied: 3, Lagging: []string{}, NotLive: []string{"n3"}}, "3/3 nodes; not live and not counted: n3"},
		{121, Progress{Live: 3, Applied: 2, Lagging: []string{"n2"}, NotLive: []string{"n3"}}, "2/3 nodes, missing on n2; not live and not counted: n3"},
		{132, Progress{Live: 3, Lagging: []string{"n1", "n2", "n4"}, NotLive: []string{"n3"}}, "0/3 nodes, missing on n1, n2, n4; not live and not counted: n3"},
	}
	for _, tt := range tests {
		got := Applied(s, statuses, tt.rev)
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("Applied(%d) (-want +got):\n%s", tt.rev, diff)
		}
		if got.String() != tt.text {
			t.Errorf("Applied(%d) is %q, want %q", tt.rev, got, tt.text)
		}
		if got.Done() != (len(tt.want.Lagging) == 0) {
			t.Errorf("Applied(%d).Done() = %t", tt.rev, got.Done())
		}
	}
	none := Applied(topology.Snapshot{}, nil, 1)
	if !none.Done() || none.String() != "no node: none is live" {
		t.Errorf("without nodes: done %t, %q", none.Done(), none)
	}
}

// TestWriteErrors: a full disk or a closed pipe is not passed over.
func TestWriteErrors(t *testing.T) {
	s, statuses := cluster()
	r, w := io.Pipe()
	r.Close()
	for name, err := range map[string]error{
		"namespaces": WriteNamespaces(w, Namespaces(s)),
		"nodes":      WriteNodes(w, Nodes(s, statuses, topology.MTUs{}, 1)),
		"detail":     WriteDetail(w, Show(s, s.Namespaces["web"], 1, statuses, limited(), Policies{})),
		"result":     WriteResult(w, Result{}),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// A node with a warning is ready all the same, and one that is not ready says why rather than what is besides.
func TestNodeWarnings(t *testing.T) {
	a := netip.MustParseAddr("192.0.2.1")
	subnet := netip.MustParsePrefix("172.11.0.0/22")
	s := topology.Snapshot{Nodes: map[netip.Addr]topology.Node{a: {Host: "n1", HostIP: a, Subnet: subnet}}}
	for _, tc := range []struct{ message, warning, state, shown string }{
		{"", "the flow cache is full", Ready, "the flow cache is full"},
		{"the uplink is down", "the flow cache is full", NotReady, "the uplink is down"},
	} {
		rows := Nodes(s, Statuses{a: {Host: "n1", HostIP: a, Message: tc.message, Warning: tc.warning}}, topology.MTUs{}, 0)
		if len(rows) != 1 || rows[0].State != tc.state || rows[0].Message != tc.shown {
			t.Errorf("%q and %q are shown as %+v", tc.message, tc.warning, rows)
		}
	}
}
