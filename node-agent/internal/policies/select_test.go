package policies

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	"github.com/k8s-ovs/k8s-ovs/pkg/policy"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

var (
	noon   = time.Unix(1_700_000_000, 0)
	web1   = netip.MustParseAddr("172.11.0.5")
	db1    = netip.MustParseAddr("172.11.0.6")
	inward = pipeline.PodPolicy{Ingress: true}
	both   = pipeline.PodPolicy{Ingress: true, Egress: true}
)

// clients is the set of pods of the namespace that may, in the tests.
var clients = policy.Set{Namespace: "shop", Pods: "app=client"}

// allowing is the policy called name, about pods with app=about: it isolates ingress and allows
// clients.
func allowing(name, about string) policy.Policy {
	return policy.Policy{
		Key: policy.Key{Namespace: "shop", Name: name}, Subject: policy.Selector("app=" + about),
		Ingress: policy.Side{Isolates: true, Rules: []policy.Rule{{Peers: []policy.Peer{{Set: &clients}}, AnyPort: true}}},
	}
}

// viewAt is what etcd has at a revision: these policies, all of one transaction, and clients.
func viewAt(revision int64, policies ...policy.Policy) store.PolicyView {
	v := store.PolicyView{
		Isolation: map[string]store.Versioned[topology.Isolation]{}, Policies: map[string]store.NamespacePolicies{},
		Sets: map[string]store.Versioned[topology.SetMembers]{},
	}
	read := store.NamespacePolicies{Revision: revision, Policies: map[string]topology.PolicyRecord{}}
	var iso topology.Isolation
	for _, p := range policies {
		iso.Policies = append(iso.Policies, p.Isolation())
		read.Policies[p.Name] = p.Record()
	}
	if len(policies) > 0 {
		v.Isolation["shop"] = store.Versioned[topology.Isolation]{Value: iso, Revision: revision}
	}
	v.Policies["shop"] = read
	return v
}

// withMembers has clients be those addresses.
func withMembers(v store.PolicyView, revision int64, whole bool, members ...string) store.PolicyView {
	var list []policy.Member
	for _, m := range members {
		list = append(list, policy.Member{Address: netip.MustParseAddr(m)})
	}
	v.Sets[clients.Hash()] = store.Versioned[topology.SetMembers]{
		Value: topology.SetMembers{Of: topology.AddressSet{PodSet: clients.Record(), Whole: whole}, Chunks: policy.Chunks(list)}, Revision: revision,
	}
	return v
}

func podAt(a netip.Addr, name string, labels map[string]string) *pod {
	return &pod{Pod: Pod{Namespace: "shop", Name: name, Address: a}, labels: labels, labelled: labels != nil}
}

func app(name string) map[string]string { return map[string]string{"app": name} }

// What selects a pod follows from the record of its namespace and its labels.
func TestSelection(t *testing.T) {
	egress := allowing("out", "web")
	egress.Ingress, egress.Egress = policy.Side{}, policy.Side{Isolates: true}
	all := allowing("all", "")
	all.Subject = ""
	for name, test := range map[string]struct {
		policies []policy.Policy
		labels   map[string]string
		want     selection
	}{
		"none":             {nil, app("web"), selection{}},
		"another's":        {[]policy.Policy{allowing("a", "db")}, app("web"), selection{}},
		"its own":          {[]policy.Policy{allowing("a", "web")}, app("web"), selection{PodPolicy: inward, ingress: []string{"a"}}},
		"both ways":        {[]policy.Policy{allowing("a", "web"), egress}, app("web"), selection{PodPolicy: both, ingress: []string{"a"}, egress: []string{"out"}}},
		"all pods":         {[]policy.Policy{all}, map[string]string{}, selection{PodPolicy: inward, ingress: []string{"all"}}},
		"unknown labels":   {[]policy.Policy{allowing("a", "db"), egress}, nil, selection{PodPolicy: both, ingress: []string{"a"}, egress: []string{"out"}}},
		"unknown, no need": {nil, nil, selection{}},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPicture()
			p.see(viewAt(1, test.policies...), noon)
			one := podAt(web1, "web-1", test.labels)
			p.enter(one, noon)
			if diff := cmp.Diff(test.want, one.selected, cmp.AllowUnexported(selection{})); diff != "" {
				t.Errorf("selected (-want +got):\n%s", diff)
			}
		})
	}
}

// A record that cannot be read isolates all pods of its namespace.
func TestUnreadableIsolates(t *testing.T) {
	p := newPicture()
	one := podAt(web1, "web-1", app("web"))
	p.enter(one, noon)
	v := viewAt(1)
	v.Invalid = map[string]string{"isolation/shop": "not valid JSON"}
	p.see(v, noon)
	p.settle(noon.Add(policiesLate))
	if one.selected.PodPolicy != both || !p.any() {
		t.Errorf("selected is %+v, policies %v", one.selected, p.any())
	}
}

// Isolation waits for the policies of its revision, and not for long. A pod that comes does not
// wait.
func TestIsolationWaitsForPolicies(t *testing.T) {
	p := newPicture()
	p.see(viewAt(1), noon)
	old := podAt(web1, "web-1", app("web"))
	p.enter(old, noon)
	early := viewAt(2, allowing("a", "web"))
	late := early.Policies["shop"]
	early.Policies = map[string]store.NamespacePolicies{"shop": {Revision: 1}}
	p.see(early, noon)
	p.settle(noon.Add(policiesLate - time.Millisecond))
	if old.selected.Selected() {
		t.Error("a pod that runs is isolated before the policies came")
	}
	fresh := podAt(db1, "web-2", app("web"))
	fresh.fresh = true
	p.enter(fresh, noon)
	if fresh.selected.PodPolicy != inward {
		t.Errorf("a pod that comes is %+v", fresh.selected)
	}
	p.settle(noon.Add(policiesLate))
	if old.selected.PodPolicy != inward {
		t.Error("a pod that runs is not isolated when it is time")
	}
	// With the policies it is at once.
	q := newPicture()
	q.see(viewAt(1), noon)
	other := podAt(web1, "web-1", app("web"))
	q.enter(other, noon)
	q.see(early, noon)
	whole := withMembers(early, 2, true, "172.11.0.9")
	whole.Policies = map[string]store.NamespacePolicies{"shop": late}
	q.see(whole, noon)
	q.settle(noon)
	if other.selected.PodPolicy != inward {
		t.Error("a pod is not isolated though its policies are there")
	}
}

// A policy that goes keeps its rules until what it isolates goes: so nothing is cut between.
func TestPolicyThatGoesKeepsItsRules(t *testing.T) {
	p := newPicture()
	p.see(viewAt(1, allowing("a", "web")), noon)
	one := podAt(web1, "web-1", app("web"))
	p.enter(one, noon)
	key := policy.Key{Namespace: "shop", Name: "a"}
	before := viewAt(1, allowing("a", "web"))
	before.Policies = map[string]store.NamespacePolicies{"shop": {Revision: 2}}
	clear(p.dirty)
	p.see(before, noon) // the policies are ahead
	p.settle(noon)
	if len(p.says(key)) == 0 || !one.selected.Selected() {
		t.Error("the rules went before the isolation")
	}
	p.see(viewAt(2), noon)
	p.settle(noon)
	if len(p.says(key)) != 0 || one.selected.Selected() || !p.dirty[key] {
		t.Errorf("the policy is still there: %v, %+v, dirty %v", p.says(key), one.selected, p.dirty)
	}
}

// Only what pods here need is asked for: policies of their namespaces, sets of the policies
// that select them.
func TestNeeds(t *testing.T) {
	p := newPicture()
	p.see(viewAt(1, allowing("a", "web")), noon)
	need := func(when string, namespaces, sets []string) {
		t.Helper()
		if got := p.needs(); !slices.Equal(got.namespaces, namespaces) || !slices.Equal(got.sets, sets) {
			t.Errorf("%s: needs %v; want %v, %v", when, got, namespaces, sets)
		}
	}
	need("without pods", nil, nil)
	p.enter(podAt(db1, "db-1", app("db")), noon)
	need("with another's pod", []string{"shop"}, nil)
	p.enter(podAt(web1, "web-1", app("web")), noon)
	need("with its pod", []string{"shop"}, []string{clients.Hash()})
	if p.whole() || p.lateSets() != 1 {
		t.Error("the set counts as whole before it was read")
	}
	p.see(withMembers(viewAt(1, allowing("a", "web")), 1, false, "172.11.0.9"), noon)
	if p.whole() {
		t.Error("the set counts as whole before the leader says so")
	}
	p.see(withMembers(viewAt(1, allowing("a", "web")), 2, true, "172.11.0.9"), noon)
	if !p.whole() {
		t.Error("the set is not whole")
	}
	p.leave(web1)
	need("when it is gone", []string{"shop"}, nil)
	p.leave(db1)
	need("without pods again", nil, nil)
}

// What changes names the policies that have to be compiled anew, and no others.
func TestOnlyWhatChangesIsCompiled(t *testing.T) {
	p := newPicture()
	nobody := allowing("n", "nobody")
	other := allowing("b", "db")
	other.Ingress.Rules = nil
	v := func(revision int64) store.PolicyView { return viewAt(revision, allowing("a", "web"), other, nobody) }
	p.see(withMembers(v(1), 1, true, "172.11.0.9"), noon)
	one := podAt(web1, "web-1", app("web"))
	p.enter(one, noon)
	dirty := func(when string, want ...string) {
		t.Helper()
		var got []string
		for key := range p.dirty {
			got = append(got, key.Name)
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v are compiled, want %v", when, got, want)
		}
		clear(p.dirty)
	}
	clear(p.dirty)
	p.enter(podAt(db1, "db-1", app("db")), noon)
	dirty("a pod comes", "b")
	p.see(withMembers(v(1), 2, true, "172.11.0.9", "172.11.0.10"), noon)
	dirty("a set changes", "a")
	p.label(one, app("db"), noon)
	dirty("labels change", "a", "b")
	if p.label(one, app("db"), noon) {
		t.Error("the same labels are news")
	}
	dirty("labels do not change")
	p.leave(db1)
	dirty("a pod goes", "b")
	changed := other
	changed.Egress.Isolates = true
	p.see(withMembers(viewAt(3, allowing("a", "web"), changed, nobody), 2, true, "172.11.0.9", "172.11.0.10"), noon)
	dirty("a policy changes", "b")
}
