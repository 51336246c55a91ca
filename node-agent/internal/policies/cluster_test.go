package policies

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/attach"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	"github.com/k8s-ovs/k8s-ovs/pkg/policy"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

var about = pipeline.PodPolicy{Cluster: true}

// strangers is the set of pods that ClusterNetworkPolicies of the tests deny.
var strangers = policy.Set{Namespaces: "team=b"}

// denying is the ClusterNetworkPolicy called name, about pods with app=about, all of them where it
// is empty: it denies strangers.
func denying(name, about string) policy.ClusterPolicy {
	p := policy.ClusterPolicy{
		Name: name, Subject: policy.Set{Namespaces: "team=a"},
		Ingress: []policy.ClusterRule{{Action: policy.Deny, Rule: policy.Rule{Peers: []policy.Peer{{Set: &strangers}}, AnyPort: true}}},
	}
	if about != "" {
		p.Subject.Pods = policy.Selector("app=" + about)
	}
	return p
}

// accepting is one that accepts them.
func accepting(name, about string) policy.ClusterPolicy {
	p := denying(name, about)
	p.Ingress[0].Action = policy.Accept
	return p
}

// withCluster has these ClusterNetworkPolicies be about shop, all of one transaction at a revision.
func withCluster(v store.PolicyView, revision int64, policies ...policy.ClusterPolicy) store.PolicyView {
	v.Cluster = store.ClusterPolicies{Revision: revision, Policies: map[string]topology.ClusterPolicyRecord{}}
	iso := v.Isolation["shop"].Value
	iso.Cluster = nil
	for _, p := range policies {
		v.Cluster.Policies[p.Name] = p.Record()
		iso.Cluster = append(iso.Cluster, p.Selecting())
	}
	v.Isolation["shop"] = store.Versioned[topology.Isolation]{Value: iso, Revision: revision}
	return v
}

// withStrangers has strangers be those addresses.
func withStrangers(v store.PolicyView, revision int64, whole bool, members ...string) store.PolicyView {
	var list []policy.Member
	for _, m := range members {
		list = append(list, policy.Member{Address: netip.MustParseAddr(m)})
	}
	v.Sets[strangers.Hash()] = store.Versioned[topology.SetMembers]{
		Value: topology.SetMembers{Of: topology.AddressSet{PodSet: strangers.Record(), Whole: whole}, Chunks: policy.Chunks(list)}, Revision: revision,
	}
	return v
}

// verdict is what policies in force say of a packet from one address to another.
func (p *picture) verdict(from, to string) policy.Verdict {
	known, unknown := p.labelled()
	w := work{known: known, unknown: unknown, members: p.members, cluster: p.clusterJob(), nodes: nodesOf(twoNodes(), netip.MustParseAddr("198.18.0.1"))}
	return w.compile()[clusterKey].Verdict(policy.Packet{Src: netip.MustParseAddr(from), Dst: netip.MustParseAddr(to), Protocol: 6, DstPort: 80})
}

// What ClusterNetworkPolicies are about a pod follows from the record of its namespace and its
// labels. Of whom that is not known, all may be: they deny, and accept nothing.
func TestClusterSelection(t *testing.T) {
	elsewhere := denying("elsewhere", "")
	view := func(policies ...policy.ClusterPolicy) store.PolicyView {
		v := withStrangers(withCluster(viewAt(1), 1, policies...), 1, true, client)
		v.Cluster.Policies["elsewhere"] = elsewhere.Record()
		return v
	}
	unknown := view(accepting("a", "web"), denying("b", "web"))
	delete(unknown.Isolation, "shop")
	none := viewAt(1)
	unreadable := view(accepting("a", "web"), denying("b", ""))
	delete(unreadable.Cluster.Policies, "b")
	unreadable.Cluster.Invalid = map[string]string{"b": "no JSON"}
	for name, test := range map[string]struct {
		view   store.PolicyView
		labels map[string]string
		want   []string
		denied bool
	}{
		"none":                         {none, app("web"), nil, false},
		"another's":                    {view(denying("a", "db")), app("web"), nil, false},
		"its own":                      {view(denying("a", "web")), app("web"), []string{"a"}, true},
		"the first decides":            {view(accepting("a", "web"), denying("b", "")), app("web"), []string{"a", "b"}, false},
		"labels unknown":               {view(accepting("a", "web"), denying("b", "db")), nil, []string{"a", "b"}, true},
		"labels unknown, all are":      {view(accepting("a", ""), denying("b", "")), nil, []string{"a", "b"}, false},
		"namespace unknown":            {unknown, app("web"), []string{"a", "b", "elsewhere"}, true},
		"namespace and labels unknown": {unknown, nil, []string{"a", "b", "elsewhere"}, true},
		"record unreadable":            {unreadable, app("db"), []string{"b"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPicture()
			p.see(test.view, noon)
			one := podAt(web1, "web-1", test.labels)
			p.enter(one, noon)
			if diff := cmp.Diff(test.want, one.selected.cluster); diff != "" || one.selected.Cluster != (len(test.want) > 0) {
				t.Errorf("selected %+v (-want +got):\n%s", one.selected.PodPolicy, diff)
			}
			if got := p.verdict(client, web1.String()); (got != policy.Allowed) != test.denied {
				t.Errorf("a stranger is %v", got)
			}
		})
	}
}

// A namespace that the leader comes to know is judged by what it says of it.
func TestClusterNamespaceKnown(t *testing.T) {
	p := newPicture()
	whole := withStrangers(withCluster(viewAt(2), 2, denying("a", "db")), 1, true, client)
	unknown := withStrangers(withCluster(viewAt(1), 1, denying("a", "db")), 1, true, client)
	unknown.Isolation = nil
	p.see(unknown, noon)
	one := podAt(db1, "db-1", app("db"))
	other := podAt(web1, "web-1", app("web"))
	p.enter(one, noon)
	p.enter(other, noon)
	if !p.unread(p.spaces["shop"]) || p.whole() || !one.selected.Cluster || other.selected.Cluster {
		t.Errorf("unknown: %+v, %+v", one.selected, other.selected)
	}
	p.see(whole, noon)
	if p.unread(p.spaces["shop"]) || p.verdict(client, db1.String()) != policy.DeniedIngress {
		t.Error("the namespace is not known")
	}
	// Pods that run keep what they have while the record is away.
	away := whole
	away.Isolation = nil
	p.see(away, noon)
	p.settle(noon.Add(time.Hour))
	if !one.selected.Cluster || p.verdict(client, db1.String()) != policy.DeniedIngress || other.selected.Cluster {
		t.Errorf("without the record: %+v, %+v", one.selected, other.selected)
	}
}

// Policies and whom they are about come by two watches: they count together, once both are as new,
// and with their sets. Not much later, whatever is missing.
func TestClusterComesTogether(t *testing.T) {
	old := func() store.PolicyView {
		return withStrangers(withCluster(viewAt(1), 1, denying("a", "")), 1, true, client)
	}
	next := denying("b", "")
	next.Ingress[0].Peers = []policy.Peer{{Set: &clients}}
	replaced := func(sets bool) store.PolicyView {
		v := withStrangers(withCluster(viewAt(2), 2, next), 1, true, client)
		if sets {
			v = withMembers(v, 2, true, "172.11.4.10")
		}
		return v
	}
	isolationFirst, policiesFirst := replaced(true), replaced(true)
	isolationFirst.Cluster = old().Cluster
	policiesFirst.Isolation = old().Isolation
	for name, first := range map[string]store.PolicyView{"isolation first": isolationFirst, "policies first": policiesFirst, "sets last": replaced(false)} {
		t.Run(name, func(t *testing.T) {
			for _, comes := range []bool{true, false} {
				p := newPicture()
				p.see(old(), noon)
				p.enter(podAt(web1, "web-1", app("web")), noon)
				p.see(first, noon)
				if p.settle(noon.Add(policiesLate - 1)); p.verdict(client, web1.String()) != policy.DeniedIngress {
					t.Error("what was denied is not, before what takes its place is there")
				}
				if !slices.Contains(p.needs().sets, strangers.Hash()) {
					t.Errorf("needs %v", p.needs())
				}
				at := noon.Add(policiesLate)
				if comes {
					at = noon
					p.see(replaced(true), noon)
				}
				p.settle(at)
				if comes && (p.verdict(client, web1.String()) != policy.Allowed || p.verdict("172.11.4.10", web1.String()) != policy.DeniedIngress) {
					t.Error("what is newest is not in force")
				}
				if !p.cluster.late.IsZero() {
					t.Errorf("comes: %t: it waits still", comes)
				}
			}
		})
	}
}

// A Deny whose set is late denies all pods until it is whole.
func TestClusterSetLate(t *testing.T) {
	p := newPicture()
	p.see(withStrangers(withCluster(viewAt(1), 1, denying("a", "")), 1, false), noon)
	p.enter(podAt(web1, "web-1", app("web")), noon)
	if p.lateSets() != 1 || p.verdict("172.11.4.77", web1.String()) != policy.DeniedIngress {
		t.Error("with a late set a pod is let through that may be in it")
	}
	clear(p.dirty)
	p.see(withStrangers(withCluster(viewAt(1), 1, denying("a", "")), 2, true, client), noon)
	if !p.dirty[clusterKey] || p.verdict("172.11.4.77", web1.String()) != policy.Allowed || p.verdict(client, web1.String()) != policy.DeniedIngress {
		t.Errorf("with the whole set: dirty %v", p.dirty)
	}
}

// ClusterNetworkPolicies are compiled when they, their subjects or their sets change, and not
// otherwise.
func TestClusterIsCompiled(t *testing.T) {
	p := newPicture()
	v := func(revision int64, policies ...policy.ClusterPolicy) store.PolicyView {
		return withMembers(withStrangers(withCluster(viewAt(revision), revision, policies...), 1, true, client), 1, true)
	}
	p.see(v(1, denying("a", "web")), noon)
	dirty := func(when string, want bool) {
		t.Helper()
		p.settle(noon)
		if p.dirty[clusterKey] != want {
			t.Errorf("%s: compiled %t, want %t", when, p.dirty[clusterKey], want)
		}
		clear(p.dirty)
	}
	dirty("the first", true)
	one := podAt(web1, "web-1", app("web"))
	p.enter(one, noon)
	dirty("a pod comes", true)
	elsewhere := podAt(db1, "db-1", nil)
	elsewhere.Namespace = "elsewhere"
	p.see(withIsolation(v(1, denying("a", "web")), "elsewhere", 1), noon)
	dirty("another namespace", false)
	p.enter(elsewhere, noon)
	dirty("a pod of another namespace", false)
	p.see(withMembers(withIsolation(v(1, denying("a", "web")), "elsewhere", 1), 2, true, client), noon)
	dirty("another set", false)
	p.see(withIsolation(v(2, denying("a", "web")), "elsewhere", 1), noon)
	dirty("nothing but a revision", false)
	p.label(one, app("db"), noon)
	dirty("labels", true)
	p.see(v(3, denying("a", "db")), noon)
	dirty("a policy", true)
	p.leave(web1)
	dirty("a pod goes", true)
}

// withIsolation has a namespace have a record without policies.
func withIsolation(v store.PolicyView, namespace string, revision int64) store.PolicyView {
	v.Isolation[namespace] = store.Versioned[topology.Isolation]{Revision: revision}
	return v
}

// A policy that comes or goes is first in the rules, and then in what selects pods. A pod that comes
// has the rules before its flows.
func TestClusterInOrder(t *testing.T) {
	inTime(t, Copy{}, func(w *world) {
		w.see(viewAt(1))
		w.add(web1, "web-1", app("web"))
		w.see(withStrangers(withCluster(viewAt(2), 2, denying("a", "")), 1, true, client))
		w.happened("rules come", "pods")
		running := about
		running.Midstream = true
		if w.selects(web1) != running {
			t.Errorf("a pod that runs is %+v", w.selects(web1))
		}
		if got := state(w, &w.published); len(got.Pods) != 1 || !slices.Equal(got.Pods[0].Cluster, []string{"a"}) {
			t.Errorf("published is %+v", got)
		}
		w.locked(func() { w.slow = 300 * time.Millisecond })
		if took := w.add(db1, "db-1", app("db")); took != 300*time.Millisecond || w.selects(db1) != about {
			t.Errorf("a pod that comes: after %s %+v", took, w.selects(db1))
		}
		w.happened("rules come", "flows")
		w.locked(func() { w.slow = 0 })
		w.see(withCluster(viewAt(3), 3))
		w.happened("rules go", "pods")
		if w.selects(web1).Selected() || w.flows.Size(AreaName) != 0 {
			t.Errorf("left are %+v, %d flows", w.selects(web1), w.flows.Size(AreaName))
		}
	})
}

// A pod of a namespace that the leader has not looked at waits for it; then it is closed.
func TestClusterFirstPodOfNamespace(t *testing.T) {
	known := func() store.PolicyView {
		return withStrangers(withCluster(viewAt(2), 2, accepting("a", "web")), 1, true, client)
	}
	unknown := known()
	unknown.Isolation = nil
	for name, comes := range map[string]bool{"it is told of": true, "it is not": false} {
		t.Run(name, func(t *testing.T) {
			inTime(t, Copy{}, func(w *world) {
				w.see(unknown)
				if comes {
					go func() {
						time.Sleep(100 * time.Millisecond)
						w.views <- withIsolation(known(), "shop", 3)
					}()
				}
				took := w.add(web1, "web-1", app("web"))
				if want := map[bool]time.Duration{true: 100 * time.Millisecond, false: firstRead + rulesAtMost}[comes]; took != want || w.selects(web1).Cluster == comes {
					t.Errorf("after %s it is %+v", took, w.selects(web1))
				}
			})
		})
	}
}

// A switch that takes no rules has no pod whose flows would let through what is denied.
func TestClusterUnarmed(t *testing.T) {
	inTime(t, Copy{}, func(w *world) {
		w.see(withStrangers(withCluster(viewAt(1), 1, denying("a", "")), 1, true, client))
		w.locked(func() { w.broken = fmt.Errorf("table is full") })
		at := attachment(web1, "web-1")
		w.table.Enter(w.t.Context(), at, "")
		began := time.Now()
		if err := w.table.Arm(w.t.Context(), at); err == nil || time.Since(began) != armedAtMost {
			t.Errorf("after %s: %v", time.Since(began), err)
		}
		w.flows.Disconnect()
		began = time.Now()
		if err := w.table.Arm(w.t.Context(), at); err == nil || time.Since(began) > 2*lastPause {
			t.Errorf("without a switch: after %s: %v", time.Since(began), err)
		}
		if !w.table.Denies() {
			t.Error("nothing is denied")
		}
		w.del(web1, "web-1")
		if err := w.table.Arm(w.t.Context(), at); err != nil || w.table.Denies() {
			t.Errorf("of a pod that is gone: %v", err)
		}
	})
}

// An agent that starts without etcd goes on with the copy. Where the switch has lost its rules it
// gets those that are known at once, and waits for nothing.
func TestClusterStart(t *testing.T) {
	var c Copy
	inTime(t, Copy{}, func(w *world) {
		w.see(withStrangers(withCluster(viewAt(1), 1, denying("a", "web")), 1, false))
		w.add(web1, "web-1", app("web"))
		time.Sleep(2 * keepEvery)
		synctest.Wait()
		c = state(w, &w.kept)
	})
	for name, rules := range map[string][]string{"with rules": nil, "without": {"rules come"}} {
		t.Run(name, func(t *testing.T) {
			inTime(t, c, func(w *world) {
				w.locked(func() { w.before = rules == nil })
				at := attachment(web1, "web-1")
				w.table.Load([]attach.Attachment{at}) // an agent loads before its records are in the flows, which they are here
				w.table.UseCopy(c)
				synctest.Wait()
				if got := w.table.Selection(at); !got.Cluster {
					t.Errorf("it is %+v", got)
				}
				w.happened(rules...)
				if len(rules) == 0 && w.table.Ready() == nil {
					t.Error("it is ready without a set")
				}
				time.Sleep(wholeAtMost)
				synctest.Wait()
				if state(w, &w.added) == 0 {
					t.Error("there are no rules after all")
				}
			})
		})
	}
}

// Nothing is written of ClusterNetworkPolicies where nobody is their subject.
func TestClusterAboutNobody(t *testing.T) {
	inTime(t, Copy{}, func(w *world) {
		w.see(withCluster(viewAt(1), 1, denying("a", "web")))
		w.add(db1, "db-1", app("db"))
		w.happened()
		if got := state(w, &w.wanted); len(got.sets)+len(got.namespaces) > 0 || w.selects(db1).Selected() {
			t.Errorf("wanted are %v, it is %+v", got, w.selects(db1))
		}
	})
}

// TestClusterRandom: however records, pods and their labels come and go, what was compiled last is
// what counts, what selects pods and which sets are needed is as if it was computed anew, and in
// the end all is as the newest records say.
func TestClusterRandom(t *testing.T) {
	for seed := range uint64(60) {
		rnd := rand.New(rand.NewPCG(20261129, seed))
		p, now := newPicture(), noon
		var compiled policy.Compiled
		labels := []map[string]string{app("web"), app("db"), nil}
		namespaces := []string{"shop", "bank"}
		newest := randomClusterView(rnd, 1, namespaces)
		p.see(newest, now)
		for step := range 40 {
			a := netip.AddrFrom4([4]byte{172, 11, 0, byte(2 + rnd.IntN(6))})
			switch one := p.pods[a]; rnd.IntN(5) {
			case 0:
				one = podAt(a, a.String(), labels[rnd.IntN(3)])
				one.Namespace, one.told = namespaces[rnd.IntN(2)], rnd.IntN(2) == 0
				p.enter(one, now)
			case 1:
				p.leave(a)
			case 2:
				if one != nil {
					p.label(one, labels[rnd.IntN(2)], now)
				}
			default:
				next := randomClusterView(rnd, int64(step+2), namespaces)
				seen := next
				if rnd.IntN(3) == 0 { // one watch is ahead of the other
					seen.Isolation = newest.Isolation
				}
				if rnd.IntN(3) == 0 {
					seen.Cluster = newest.Cluster
				}
				newest = next
				p.see(seen, now)
			}
			now = now.Add(time.Duration(rnd.IntN(150)) * time.Millisecond)
			p.settle(now)
			compiled = checkCluster(t, seed, &p, compiled)
		}
		p.see(newest, now)
		for range 2 { // sets that were late, then labels that waited for them
			now = now.Add(policiesLate)
			p.settle(now)
			compiled = checkCluster(t, seed, &p, compiled)
		}
		anew := newPicture()
		anew.see(newest, now)
		for _, one := range p.pods {
			fresh := *one
			anew.enter(&fresh, now)
		}
		for _, one := range p.pods {
			if s := p.spaces[one.Namespace]; !slices.Equal(one.selected.cluster, anew.pods[one.Address].selected.cluster) && !s.subjects.unknown && !anew.spaces[one.Namespace].subjects.unknown {
				t.Fatalf("seed %d: %+v is selected by %v, anew by %v", seed, one.Pod, one.selected.cluster, anew.pods[one.Address].selected.cluster)
			}
		}
	}
}

// checkCluster compiles what is dirty, and compares all with what is computed anew.
func checkCluster(t *testing.T, seed uint64, p *picture, compiled policy.Compiled) policy.Compiled {
	t.Helper()
	byText := cmp.Options{cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })}
	known, unknown := p.labelled()
	w := work{known: known, unknown: unknown, members: p.members, cluster: p.clusterJob(), nodes: nodesOf(twoNodes(), netip.MustParseAddr("198.18.0.1"))}
	anew := w.compile()[clusterKey]
	if p.dirty[clusterKey] {
		compiled = anew
		clear(p.dirty)
	}
	if diff := cmp.Diff(anew.Ingress, compiled.Ingress, byText); diff != "" {
		t.Fatalf("seed %d: what was compiled is not what counts (-anew +compiled):\n%s", seed, diff)
	}
	for _, one := range p.pods {
		was := one.selected
		if p.choose(p.spaces[one.Namespace], one); !slices.Equal(was.cluster, one.selected.cluster) {
			t.Fatalf("seed %d: %+v was selected by %v, anew by %v", seed, one.Pod, was.cluster, one.selected.cluster)
		}
	}
	needs := p.needs()
	p.need = nil
	if again := p.needs(); !slices.Equal(needs.sets, again.sets) {
		t.Fatalf("seed %d: needed are %v, anew %v", seed, needs.sets, again.sets)
	}
	return compiled
}

// randomClusterView has some ClusterNetworkPolicies about some of the namespaces.
func randomClusterView(rnd *rand.Rand, revision int64, namespaces []string) store.PolicyView {
	v := viewAt(revision)
	v.Isolation = map[string]store.Versioned[topology.Isolation]{}
	v.Cluster = store.ClusterPolicies{Revision: revision, Policies: map[string]topology.ClusterPolicyRecord{}}
	var all []policy.ClusterPolicy
	for _, name := range []string{"a", "b", "c"} {
		if rnd.IntN(3) == 0 {
			continue
		}
		p := denying(name, []string{"", "web", "db"}[rnd.IntN(3)])
		p.Ingress[0].Action = policy.Action(rnd.IntN(3))
		p.Ingress[0].Peers = []policy.Peer{{Set: []*policy.Set{&strangers, &clients}[rnd.IntN(2)]}}
		p.Priority = rnd.Int32N(3)
		all, v.Cluster.Policies[name] = append(all, p), p.Record()
	}
	for _, n := range namespaces {
		var iso topology.Isolation
		for _, p := range all {
			if rnd.IntN(2) == 0 {
				iso.Cluster = append(iso.Cluster, p.Selecting())
			}
		}
		if rnd.IntN(6) > 0 {
			v.Isolation[n] = store.Versioned[topology.Isolation]{Value: iso, Revision: revision}
		}
	}
	if rnd.IntN(2) == 0 {
		v = withMembers(v, revision, rnd.IntN(2) == 0, client)
	}
	if rnd.IntN(2) == 0 {
		v = withStrangers(v, revision, rnd.IntN(2) == 0, "172.11.4.10")
	}
	return v
}
