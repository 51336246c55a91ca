package store

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// ofPolicy is the whole key of a record of policies.
func ofPolicy(key string) string { return DefaultPrefix + "/k8ssdn/" + key }

const (
	setA = "9f2c00000000000a"
	setB = "9f2c00000000000b"
)

var nodeOne = netip.MustParseAddr("198.18.0.1")

func isolationOf(names ...string) topology.Isolation {
	var i topology.Isolation
	for _, name := range names {
		i.Policies = append(i.Policies, topology.IsolatingPolicy{Name: name, Selector: "app=" + name, Ingress: true})
	}
	return i
}

// TestFollowPolicies: a node is told of all isolation, of what it wants and of nothing else;
// of its own acknowledgement and of no namesake's.
func TestFollowPolicies(t *testing.T) {
	e, s := network(t)
	e.Put(ofPolicy("isolation/shop"), `{"Policies":[{"Name":"web","Selector":"app=web","Ingress":true}]}`)
	e.Put(ofPolicy("policies/shop/web"), `{"Selector":"app=web","Ingress":[],"Egress":null}`)
	e.Put(ofPolicy("policies/other/x"), `{"Selector":"","Ingress":[],"Egress":null}`)
	e.Put(ofPolicy("acknowledged/198.18.0.10"), `{"Revision":77}`)
	e.Put(ofPolicy("clusterpolicies/base"), `{"Tier":"Baseline","Priority":7,"Subject":{"Namespaces":"team=a"},"Ingress":[{"Action":"Deny"}]}`)
	f := s.FollowPolicies(ctxOf(t), nodeOne)
	first := until(t, f.Updates(), "the first view", func(PolicyView) bool { return true })
	base := topology.ClusterPolicyRecord{
		Tier: topology.TierBaseline, Priority: 7, Subject: topology.PodSet{Namespaces: "team=a"},
		Ingress: []topology.ClusterPolicyRule{{Action: topology.ActionDeny}},
	}
	want := PolicyView{
		Listing: 1, Isolation: map[string]Versioned[topology.Isolation]{"shop": {Value: isolationOf("web"), Revision: 3}},
		Cluster: ClusterPolicies{Revision: 7, Policies: map[string]topology.ClusterPolicyRecord{"base": base}},
	}
	if diff := cmp.Diff(want, first, byValue); diff != "" {
		t.Errorf("first view (-want +got):\n%s", diff)
	}

	f.Want([]string{"shop", "empty"}, []string{setA})
	view := until(t, f.Updates(), "what is wanted", func(v PolicyView) bool { return len(v.Policies) == 2 && len(v.Sets) == 1 })
	if diff := cmp.Diff(map[string]topology.PolicyRecord{"web": {Selector: "app=web", Ingress: []topology.PolicyRule{}}}, view.Policies["shop"].Policies); diff != "" {
		t.Errorf("policies (-want +got):\n%s", diff)
	}
	if got := view.Policies["shop"].Revision; got < view.Isolation["shop"].Revision {
		t.Errorf("policies are whole at %d, before isolation at %d", got, view.Isolation["shop"].Revision)
	}
	if view.Sets[setA].Value.Of.Whole || len(view.Sets[setA].Value.Chunks) != 0 {
		t.Errorf("a set without records is %+v", view.Sets[setA])
	}

	// One transaction: isolation and policies have one revision.
	l := campaign(t, s, "one")
	rev, err := l.PutPolicies(ctxOf(t), []PolicyChange{
		{Key: PolicyRecordKey("shop", "db"), Value: `{"Selector":"app=db","Ingress":[],"Egress":null}`},
		{Key: IsolationKey("shop"), Value: `{"Policies":[{"Name":"db","Selector":"app=db","Ingress":true},{"Name":"web","Selector":"app=web","Ingress":true}]}`, Revision: 3},
		{Key: ChunkKey(setA, netip.MustParseAddr("172.11.0.0")), Value: `{"Addresses":"2,5"}`},
		{Key: SetKey(setA), Value: `{"Pods":"app=web","Whole":true}`},
		{Key: AcknowledgedKey(nodeOne), Value: `{"Revision":5}`},
		{Key: SetKey(setB), Value: `{"Pods":"app=db","Whole":true}`},
	})
	if err != nil {
		t.Fatal(err)
	}
	view = until(t, f.Updates(), "the transaction", func(v PolicyView) bool {
		return v.Isolation["shop"].Revision == rev && v.Policies["shop"].Revision == rev && v.Sets[setA].Revision == rev && v.Acknowledged == 5
	})
	members := topology.SetMembers{
		Of:     topology.AddressSet{PodSet: topology.PodSet{Pods: "app=web"}, Whole: true},
		Chunks: map[netip.Addr]topology.SetChunk{netip.MustParseAddr("172.11.0.0"): {Addresses: topology.Octets{1<<2 | 1<<5}}},
	}
	if diff := cmp.Diff(map[string]Versioned[topology.SetMembers]{setA: {Value: members, Revision: rev}}, view.Sets, byValue); diff != "" {
		t.Errorf("sets (-want +got):\n%s", diff)
	}

	// What was handed out does not change, and what did not change is the same.
	e.Put(ofPolicy("sets/"+setA+"/172.11.4.0"), `{"Addresses":"9"}`)
	later := until(t, f.Updates(), "another chunk", func(v PolicyView) bool { return len(v.Sets[setA].Value.Chunks) == 2 })
	if len(view.Sets[setA].Value.Chunks) != 1 || later.Policies["shop"].Revision != rev {
		t.Errorf("a view that was handed out changed: %+v", view.Sets)
	}

	// Records that do not parse are named; their keys go on being followed.
	e.Put(ofPolicy("isolation/shop"), `{"Policies":7}`)
	e.Put(ofPolicy("policies/shop/web"), `{"Ingress":[{"Ports":[{}]}]}`)
	e.Put(ofPolicy("sets/"+setA+"/172.11.4.0"), `{"Addresses":"300"}`)
	view = until(t, f.Updates(), "what does not parse", func(v PolicyView) bool { return len(v.Invalid) == 2 && len(v.Policies["shop"].Invalid) == 1 })
	if _, there := view.Isolation["shop"]; there || view.Invalid["isolation/shop"] == "" || len(view.Policies["shop"].Policies) != 1 || len(view.Sets[setA].Value.Chunks) != 1 {
		t.Errorf("view %+v", view)
	}
	e.Put(ofPolicy("isolation/shop"), `{"Policies":[]}`)
	e.Put(ofPolicy("policies/shop/web"), `{"Selector":"app=web","Ingress":[],"Egress":null}`)
	remove(t, s, "sets/"+setA+"/172.11.4.0")
	remove(t, s, "acknowledged/198.18.0.1")
	until(t, f.Updates(), "all well", func(v PolicyView) bool {
		return len(v.Invalid) == 0 && len(v.Policies["shop"].Invalid) == 0 && len(v.Policies["shop"].Policies) == 2 && v.Acknowledged == 0
	})

	// What is not wanted any more is gone, and comes again when it is.
	f.Want([]string{"empty"}, nil)
	until(t, f.Updates(), "what is left", func(v PolicyView) bool { return len(v.Policies) == 1 && len(v.Sets) == 0 })
	e.Put(ofPolicy("policies/shop/late"), `{"Selector":"","Ingress":null,"Egress":[]}`)
	f.Want([]string{"shop"}, []string{setB, setB})
	until(t, f.Updates(), "what came meanwhile", func(v PolicyView) bool {
		return len(v.Policies["shop"].Policies) == 3 && len(v.Policies) == 1 && v.Sets[setB].Value.Of.Whole
	})
}

func remove(t *testing.T, s *Store, key string) {
	t.Helper()
	if _, err := s.connectOrDie(t).Delete(ctxOf(t), ofPolicy(key)); err != nil {
		t.Fatal(err)
	}
}

// TestFollowClusterPolicies: a node is told of all ClusterNetworkPolicies and of their ends,
// at the revision of the transaction that selects by them.
func TestFollowClusterPolicies(t *testing.T) {
	e, s := network(t)
	f := s.FollowPolicies(ctxOf(t), nodeOne)
	l := campaign(t, s, "one")
	rev, err := l.PutPolicies(ctxOf(t), []PolicyChange{
		{Key: ClusterPolicyKey("a.b"), Value: `{"Tier":"Admin","Priority":1,"Subject":{}}`},
		{Key: ClusterPolicyKey("c"), Value: `{"Tier":"Admin","Priority":2,"Subject":{}}`},
		{Key: IsolationKey("shop"), Value: `{"Policies":null,"Cluster":[{"Name":"a.b","Selector":""}]}`},
	})
	if err != nil {
		t.Fatal(err)
	}
	view := until(t, f.Updates(), "the transaction", func(v PolicyView) bool {
		return v.Cluster.Revision == rev && v.Isolation["shop"].Revision == rev
	})
	if got := view.Isolation["shop"].Value.Cluster; len(view.Cluster.Policies) != 2 || len(got) != 1 || got[0].Name != "a.b" {
		t.Errorf("view %+v", view)
	}
	e.Put(ofPolicy("clusterpolicies/c"), `{"Tier":"None"}`)
	broken := until(t, f.Updates(), "what does not parse", func(v PolicyView) bool { return len(v.Cluster.Invalid) == 1 })
	if len(broken.Cluster.Policies) != 1 || broken.Cluster.Invalid["c"] == "" || len(broken.Invalid) != 0 || len(view.Cluster.Policies) != 2 {
		t.Errorf("view %+v after %+v", broken, view)
	}
	remove(t, s, "clusterpolicies/a.b")
	gone := until(t, f.Updates(), "its end", func(v PolicyView) bool { return len(v.Cluster.Policies) == 0 })
	if gone.Cluster.Revision != broken.Cluster.Revision+1 {
		t.Errorf("revision %d after %d", gone.Cluster.Revision, broken.Cluster.Revision)
	}
	read, err := s.ClusterPolicies(ctxOf(t))
	if err != nil || len(read.Policies) != 0 || len(read.Invalid) != 1 {
		t.Errorf("read: %+v, %v", read, err)
	}
}

// TestFollowPoliciesSurvives: what is wanted is followed over stops of etcd and over history
// that was compacted away meanwhile.
func TestFollowPoliciesSurvives(t *testing.T) {
	e, s := network(t)
	f := s.FollowPolicies(ctxOf(t), nodeOne)
	f.Want([]string{"shop"}, []string{setA})
	listing := 0
	for round := range 3 {
		e.Put(ofPolicy("policies/shop/web"), fmt.Sprintf(`{"Selector":"round=%d","Ingress":[],"Egress":null}`, round))
		e.Put(ofPolicy("sets/"+setA+"/172.11.0.0"), fmt.Sprintf(`{"Addresses":"%d"}`, round))
		v := until(t, f.Updates(), fmt.Sprintf("round %d", round), func(v PolicyView) bool {
			return v.Policies["shop"].Policies["web"].Selector == fmt.Sprintf("round=%d", round) && v.Sets[setA].Value.Chunks[netip.MustParseAddr("172.11.0.0")].Addresses.Has(byte(round))
		})
		if v.Listing <= listing {
			t.Errorf("round %d: listing %d, before it %d", round, v.Listing, listing)
		}
		listing = v.Listing
		e.Stop()
		eventually(t, "unhealthy", func() bool { return errors.Is(s.Healthy(), ErrUnavailable) })
		e.Restart()
		eventually(t, "healthy", func() bool { return s.Healthy() == nil })
	}
	e.Stop()
	e.Restart()
	// Whoever watches from before the compaction is told so, and reads anew.
	c := s.connectOrDie(t)
	for n := range 10 {
		e.Put(ofPolicy("isolation/shop"), fmt.Sprintf(`{"Policies":[{"Name":"p%d","Selector":""}]}`, n))
	}
	r, err := c.Get(ctxOf(t), ofPolicy("isolation/shop"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Compact(ctxOf(t), r.Header.Revision); err != nil {
		t.Fatal(err)
	}
	f.Want([]string{"shop", "other"}, nil)
	e.Put(ofPolicy("policies/other/x"), `{"Selector":"","Ingress":[],"Egress":null}`)
	until(t, f.Updates(), "the newest", func(v PolicyView) bool {
		i := v.Isolation["shop"].Value.Policies
		return len(i) == 1 && i[0].Name == "p9" && len(v.Policies["other"].Policies) == 1
	})
}

// TestManyWants: a hundred sets that come and go are followed by one watch stream, and each
// change is told.
func TestManyWants(t *testing.T) {
	e, s := network(t)
	f := s.FollowPolicies(ctxOf(t), nodeOne)
	var all []string
	for i := range 100 {
		hash := fmt.Sprintf("%016x", i)
		all = append(all, hash)
		f.Want(nil, all)
		e.Put(ofPolicy("sets/"+hash+"/172.11.0.0"), `{"Addresses":"1"}`)
	}
	one := func(v PolicyView, hash string) bool { return len(v.Sets[hash].Value.Chunks) == 1 }
	until(t, f.Updates(), "all sets", func(v PolicyView) bool {
		for _, hash := range all {
			if !one(v, hash) {
				return false
			}
		}
		return true
	})
	f.Want(nil, all[50:])
	until(t, f.Updates(), "half of them", func(v PolicyView) bool { return len(v.Sets) == 50 })
	for _, hash := range all {
		e.Put(ofPolicy("sets/"+hash+"/172.11.1.0"), `{"Addresses":"1"}`)
	}
	v := until(t, f.Updates(), "the last change", func(v PolicyView) bool { return len(v.Sets[all[99]].Value.Chunks) == 2 })
	for _, hash := range all[50:] {
		if len(v.Sets[hash].Value.Chunks) != 2 {
			v = until(t, f.Updates(), "a change of "+hash, func(v PolicyView) bool { return len(v.Sets[hash].Value.Chunks) == 2 })
		}
	}
	if len(v.Sets) != 50 {
		t.Errorf("%d sets", len(v.Sets))
	}
}

// TestPoliciesRead: what is read once is what is followed.
func TestPoliciesRead(t *testing.T) {
	e, s := network(t)
	e.Put(ofPolicy("policies/shop/web"), `{"Selector":"app=web","Ingress":[],"Egress":null}`)
	e.Put(ofPolicy("policies/shop/bad"), `{`)
	e.Put(ofPolicy("policies/shop2/x"), `{"Selector":"","Ingress":[],"Egress":null}`)
	e.Put(ofPolicy("sets/"+setA+"/172.11.0.0"), `{"Addresses":"1-3"}`)
	got, err := s.Policies(ctxOf(t), "shop")
	if err != nil || len(got.Policies) != 1 || len(got.Invalid) != 1 || got.Revision != 6 {
		t.Errorf("%+v, %v", got, err)
	}
	sets, err := s.Sets(ctxOf(t), []string{setA, setB})
	if err != nil || sets[setA].Chunks[netip.MustParseAddr("172.11.0.0")].Addresses.Len() != 3 || len(sets[setB].Chunks) != 0 || len(sets) != 2 {
		t.Errorf("%+v, %v", sets, err)
	}
	if _, err := s.Isolation(ctxOf(t), "shop"); !errors.Is(err, ErrNotFound) {
		t.Errorf("isolation: %v", err)
	}
}

// TestNodePods: a node's record is there as long as its agent, with the revision that its
// publisher is told.
func TestNodePods(t *testing.T) {
	_, s := network(t)
	wrote := make(chan int64, 10)
	p := s.PodsPublisher("k8ssdn", 2*time.Second, func(n topology.NodePods, rev int64) {
		if len(n.Pods) == 1 {
			wrote <- rev
		}
	})
	ch := s.WatchNodePods(ctxOf(t))
	want := topology.NodePods{Host: "n1", HostIP: nodeOne, Pods: []topology.NodePod{{Namespace: "shop", Name: "web", UID: "u", Address: netip.MustParseAddr("172.11.0.5")}}}
	p.Set(want)
	rev := <-wrote
	got := until(t, ch, "the record", func(n NodePods) bool { return len(n.Nodes) == 1 })
	if diff := cmp.Diff(map[netip.Addr]Versioned[topology.NodePods]{nodeOne: {Value: want, Revision: rev}}, got.Nodes, byValue); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if all, err := s.NodePods(ctxOf(t)); err != nil || len(all[nodeOne].Pods) != 1 {
		t.Errorf("read: %+v, %v", all, err)
	}
	p.Close()
	until(t, ch, "none", func(n NodePods) bool { return len(n.Nodes) == 0 })
}

// TestPutPolicies: all or nothing, and by the leader only.
func TestPutPolicies(t *testing.T) {
	_, s := network(t)
	l := campaign(t, s, "one")
	ctx := ctxOf(t)
	rev, err := l.PutPolicies(ctx, []PolicyChange{{Key: IsolationKey("a"), Value: "1"}, {Key: PolicyRecordKey("a", "p"), Value: "2"}})
	if err != nil {
		t.Fatal(err)
	}
	have := func() map[PolicyKey]Versioned[string] {
		t.Helper()
		all, err := l.PolicyRecords(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	want := map[PolicyKey]Versioned[string]{"isolation/a": {"1", rev}, "policies/a/p": {"2", rev}}
	if diff := cmp.Diff(want, have()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	// One record is another by now: none is written.
	_, err = l.PutPolicies(ctx, []PolicyChange{{Key: IsolationKey("a"), Value: "3", Revision: rev}, {Key: PolicyRecordKey("a", "p"), Revision: rev - 1}})
	if !errors.Is(err, ErrConflict) || !cmp.Equal(want, have()) {
		t.Errorf("a change that came late: %v; %v", err, have())
	}
	var many []PolicyChange
	for i := range 200 {
		many = append(many, PolicyChange{Key: PolicyRecordKey("b", fmt.Sprint(i)), Value: "x"})
	}
	if _, err := l.PutPolicies(ctx, many); !errors.Is(err, ErrInvalid) {
		t.Errorf("200 changes at once: %v", err)
	}
	if _, err := l.PutPolicies(ctx, []PolicyChange{{Key: IsolationKey("b"), Value: strings.Repeat("x", MaxBatchBytes)}}); !errors.Is(err, ErrInvalid) {
		t.Errorf("a large record: %v", err)
	}
	if _, err := l.PutPolicies(ctx, []PolicyChange{{Key: IsolationKey("a"), Revision: rev}, {Key: PolicyRecordKey("a", "p"), Revision: rev}}); err != nil || len(have()) != 0 {
		t.Errorf("deleted: %v, %v", err, have())
	}
	if err := l.Resign(); err != nil {
		t.Fatal(err)
	}
	if _, err := l.PutPolicies(context.WithoutCancel(ctx), []PolicyChange{{Key: IsolationKey("a"), Value: "4"}}); !errors.Is(err, ErrDeposed) {
		t.Errorf("after the end of the lead: %v", err)
	}
}
