package policies

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/policy"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// TestOracle: what agents read comes to the same as the cluster itself, however the leader
// was interrupted: writes that fail or whose answer is lost, other leaders that go on from
// what there is, at any time.
func TestOracle(t *testing.T) {
	for seed := range uint64(10) {
		w, m := newWorld(seed), newMemory()
		m.fail = func() (bool, error) {
			switch w.random.IntN(20) {
			case 0:
				return false, store.ErrUnavailable
			case 1:
				return true, store.ErrUnavailable // made, and the answer lost
			}
			return true, nil
		}
		k := keeper(w, m)
		for range 40 {
			for range w.random.IntN(15) {
				w.step(k.state)
			}
			switch w.random.IntN(6) {
			case 0: // another leader, in the middle of what this one had to do
				_, _ = k.write(context.Background())
				k = keeper(w, m)
				w.tellAll(k.state)
			case 1:
				w.now = w.now.Add(time.Minute)
			}
			settle(t, k)
			if diff := cmp.Diff(w.direct(t), w.read(t, m.records), byValue); diff != "" {
				t.Fatalf("seed %d (-cluster +records):\n%s", seed, diff)
			}
		}
		// In the end nothing is left of what nobody names.
		for key := range w.objects {
			delete(w.objects, key)
			w.tellPolicy(k.state, key)
		}
		settle(t, k)
		w.now = w.now.Add(setGrace)
		settle(t, k)
		if len(m.records) > 0 {
			t.Fatalf("seed %d: %d records are left: %v", seed, len(m.records), m.records)
		}
	}
}

// TestCrashBetweenWrites: a leader that stops after any of its transactions leaves records
// that allow nobody whom the old and the new policies do not allow, and the next one makes
// the rest, without touching what is right.
func TestCrashBetweenWrites(t *testing.T) {
	build := func() (*world, *memory, *Keeper) {
		w, m := newWorld(7), newMemory()
		for range 300 {
			w.step(newState())
		}
		k := keeper(w, m)
		k.records.most = 10
		w.tellAll(k.state)
		return w, m, k
	}
	_, m, k := build()
	settle(t, k)
	all := m.transactions
	if all < 2 {
		t.Fatalf("%d transactions show nothing", all)
	}
	want := m.records
	for stop := range all {
		w, m, k := build()
		m.fail = func() (bool, error) {
			if m.transactions >= stop {
				return false, store.ErrDeposed
			}
			return true, nil
		}
		if _, err := k.write(context.Background()); !errors.Is(err, store.ErrDeposed) {
			t.Fatalf("stopped after %d: %v", stop, err)
		}
		left := maps.Clone(m.records)
		m.fail = nil
		k = keeper(w, m)
		w.tellAll(k.state)
		rewritten := 0
		m.wrote = func(changes []store.PolicyChange) {
			for _, c := range changes {
				if left[c.Key].Value != "" {
					rewritten++
				}
			}
		}
		settle(t, k)
		if rewritten > 0 {
			t.Errorf("stopped after %d: the next leader wrote %d records that were right", stop, rewritten)
		}
		for key, v := range want {
			if m.records[key].Value != v.Value {
				t.Fatalf("stopped after %d: record %s is %s, want %s", stop, key, m.records[key].Value, v.Value)
			}
		}
		if len(m.records) != len(want) {
			t.Errorf("stopped after %d: %d records, want %d", stop, len(m.records), len(want))
		}
	}
}

// TestOrder: sets are there before the policies that name them, isolation never names a
// policy that has no record, and what is acknowledged is in the sets.
func TestOrder(t *testing.T) {
	for seed := range uint64(4) {
		w, m := newWorld(seed), newMemory()
		k := keeper(w, m)
		k.records.most = 3 // so that changes need several transactions
		m.wrote = func([]store.PolicyChange) { inOrder(t, w, m.records) }
		for range 15 {
			for range w.random.IntN(20) {
				w.step(k.state)
			}
			settle(t, k)
		}
	}
}

// inOrder checks what holds after every transaction.
func inOrder(t *testing.T, w *world, records map[store.PolicyKey]store.Versioned[string]) {
	t.Helper()
	for key, v := range records {
		kind, rest, _ := strings.Cut(string(key), "/")
		switch kind {
		case "isolation":
			for _, p := range must(topology.ParseIsolation(rest, []byte(v.Value)))(t).Policies {
				record, there := records[store.PolicyRecordKey(rest, p.Name)]
				if !there {
					t.Fatalf("isolation names %s/%s, which has no record", rest, p.Name)
				}
				parsed := policy.FromRecord(policy.Key{Namespace: rest, Name: p.Name}, must(topology.ParsePolicy(rest+"/"+p.Name, []byte(record.Value)))(t))
				for _, set := range parsed.Sets() {
					if _, there := records[store.SetKey(set.Hash())]; !there {
						t.Fatalf("policy %s names set %s, which is not there", parsed.Key, set)
					}
				}
			}
		case "acknowledged":
			ip := netip.MustParseAddr(rest)
			if must(topology.ParseAcknowledged(rest, []byte(v.Value)))(t).Revision == w.said[ip].Revision {
				noStrangers(t, w, ip, records)
			}
		}
	}
}

// noStrangers checks that sets have no address of a node that no pod of it has.
func noStrangers(t *testing.T, w *world, ip netip.Addr, records map[store.PolicyKey]store.Versioned[string]) {
	t.Helper()
	used := map[netip.Addr]bool{}
	for _, p := range w.said[ip].Value.Pods {
		used[p.Address] = true
	}
	for key, v := range records {
		hash, last, ok := ofSet(key)
		if !ok || last == "of" {
			continue
		}
		base, chunk, err := topology.ParseSetChunk(hash+"/"+last, []byte(v.Value))
		if err != nil {
			t.Fatal(err)
		}
		for _, member := range policy.MembersOf(map[netip.Addr]topology.SetChunk{base: chunk}) {
			if w.nodes[ip].Subnet.Contains(member.Address) && !used[member.Address] {
				t.Fatalf("%s is acknowledged to be out of the sets, and is in %s", member.Address, key)
			}
		}
	}
}

// small is a world with one policy that allows web to reach db, and pods of both on node 1.
func small(t *testing.T) (*world, *memory, *Keeper, netip.Addr) {
	w, m := newWorld(1), newMemory()
	k := keeper(w, m)
	n1 := netip.MustParseAddr("198.18.0.1")
	w.namespaces["shop"] = map[string]string{}
	for i, app := range []string{"web", "db"} {
		w.pods[kube.PodKey{Namespace: "shop", Name: app}] = &pod{uid: "u-" + app, labels: map[string]string{"app": app}, node: n1, at: netip.AddrFrom4([4]byte{172, 11, 0, byte(i + 2)})}
	}
	w.say(n1)
	chosen := func(app string) metav1.LabelSelector {
		return metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}
	}
	from := chosen("web")
	w.objects[dbPolicy] = &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db", UID: "p"},
		Spec:       networkingv1.NetworkPolicySpec{PodSelector: chosen("db"), Ingress: []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{PodSelector: &from}}}}},
	}
	w.tellAll(k.state)
	settle(t, k)
	return w, m, k, n1
}

// dbPolicy is the policy of [small], webSet the set that it names.
var dbPolicy = policy.Key{Namespace: "shop", Name: "db"}

var webSet = policy.Set{Namespace: "shop", Pods: "app=web"}.Hash()

func texts(m *memory) map[store.PolicyKey]string {
	out := map[store.PolicyKey]string{}
	for key, v := range m.records {
		if !strings.HasPrefix(string(key), "acknowledged/") {
			out[key] = v.Value
		}
	}
	return out
}

func wantTexts(t *testing.T, m *memory, what string, want map[store.PolicyKey]string) {
	t.Helper()
	if diff := cmp.Diff(want, texts(m)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// TestRecords: one policy's records in full, over what happens to a pod of it.
func TestRecords(t *testing.T) {
	w, m, k, n1 := small(t)
	chunk := store.ChunkKey(webSet, netip.MustParseAddr("172.11.0.0"))
	want := map[store.PolicyKey]string{
		"isolation/shop":     `{"Policies":[{"Name":"db","Selector":"app=db","Ingress":true}]}`,
		"policies/shop/db":   `{"Selector":"app=db","Ingress":[{"Peers":[{"Set":{"Namespace":"shop","Pods":"app=web"}}]}],"Egress":null}`,
		chunk:                `{"Addresses":"2"}`,
		store.SetKey(webSet): `{"Namespace":"shop","Pods":"app=web","Whole":true}`,
	}
	wantTexts(t, m, "at first", want)
	if got := m.records[store.AcknowledgedKey(n1)].Value; got != fmt.Sprintf(`{"Revision":%d}`, w.said[n1].Revision) {
		t.Errorf("acknowledged %s", got)
	}
	if len(m.records) != 4+5 {
		t.Errorf("%d records; each of 5 nodes waits for an acknowledgement", len(m.records))
	}

	// A pod that comes is one record of the set that it is in, and the acknowledgement.
	before := m.changes
	w.pods[kube.PodKey{Namespace: "shop", Name: "web2"}] = &pod{uid: "u2", labels: map[string]string{"app": "web"}, node: n1, at: netip.MustParseAddr("172.11.0.9")}
	w.say(n1)
	w.tellNodes(k.state)
	settle(t, k)
	want[chunk] = `{"Addresses":"2"}`
	wantTexts(t, m, "a pod whose labels are not known", want)
	w.tellPod(k.state, kube.PodKey{Namespace: "shop", Name: "web2"})
	settle(t, k)
	want[chunk] = `{"Addresses":"2,9"}`
	wantTexts(t, m, "a pod that came", want)
	if m.changes-before != 2 {
		t.Errorf("%d records were written", m.changes-before)
	}

	// A namesake with another UID is another pod.
	k.state.setLabels(kube.PodKey{Namespace: "shop", Name: "web2"}, &kube.PodLabels{UID: "other", Labels: map[string]string{"app": "web"}})
	settle(t, k)
	want[chunk] = `{"Addresses":"2"}`
	wantTexts(t, m, "a namesake", want)

	// What a node says of another's addresses does not count.
	n2 := netip.MustParseAddr("198.18.0.2")
	said := w.said[n2]
	said.Value.Pods = []topology.NodePod{{Namespace: "shop", Name: "web", UID: "u-web", Address: netip.MustParseAddr("172.11.0.30")}}
	said.Revision = 900
	w.said[n2] = said
	w.tellNodes(k.state)
	settle(t, k)
	wantTexts(t, m, "a lie", want)
	if got := m.records[store.AcknowledgedKey(n2)].Value; got != `{"Revision":900}` {
		t.Errorf("acknowledged %s", got)
	}
}

// TestGrace: a node that is silent keeps its members for a while, also when the leader
// changes meanwhile; so do sets that nobody names.
func TestGrace(t *testing.T) {
	for _, change := range []bool{false, true} {
		t.Run(fmt.Sprintf("new leader %t", change), func(t *testing.T) {
			w, m, k, n1 := small(t)
			want := texts(m)
			delete(w.said, n1)
			w.tellNodes(k.state)
			settle(t, k)
			if change {
				k = keeper(w, m)
				w.tellAll(k.state)
			}
			settle(t, k)
			wantTexts(t, m, "at once", want)
			w.now = w.now.Add(nodeGrace - time.Second)
			settle(t, k)
			wantTexts(t, m, "just before it is over", want)

			// Back again it has fewer.
			delete(w.pods, kube.PodKey{Namespace: "shop", Name: "db"})
			w.say(n1)
			w.tellNodes(k.state)
			settle(t, k)
			wantTexts(t, m, "back again", want)
			delete(w.said, n1)
			w.tellNodes(k.state)
			w.now = w.now.Add(nodeGrace)
			settle(t, k)
			w.now = w.now.Add(nodeGrace)
			settle(t, k)
			delete(want, store.ChunkKey(webSet, netip.MustParseAddr("172.11.0.0")))
			wantTexts(t, m, "over", want)

			// The policy goes: its set stays a while, and comes back as it was.
			delete(w.objects, dbPolicy)
			w.tellPolicy(k.state, dbPolicy)
			w.say(n1)
			w.tellNodes(k.state)
			settle(t, k)
			sets := map[store.PolicyKey]string{store.SetKey(webSet): want[store.SetKey(webSet)], store.ChunkKey(webSet, netip.MustParseAddr("172.11.0.0")): `{"Addresses":"2"}`}
			wantTexts(t, m, "without the policy", sets)
			if change {
				k = keeper(w, m)
				w.tellAll(k.state)
				settle(t, k)
				wantTexts(t, m, "and with another leader", sets)
			}
			w.now = w.now.Add(setGrace)
			settle(t, k)
			if len(m.records) > 0 {
				t.Errorf("left: %v", m.records)
			}
		})
	}
}

// TestNothingGoesUnseen: as long as something is not known nothing is written.
func TestNothingGoesUnseen(t *testing.T) {
	w, m, _, _ := small(t)
	for name, unknown := range map[string]func(*inputs){
		"policies": func(i *inputs) { i.policies = false }, "namespaces": func(i *inputs) { i.namespaces = false },
		"labels": func(i *inputs) { i.labels = false }, "nodes' pods": func(i *inputs) { i.pods = false }, "subnets": func(i *inputs) { i.subnets = false },
	} {
		k := keeper(w, m)
		w.objects[policy.Key{Namespace: "ns1", Name: "x"}] = w.policy(policy.Key{Namespace: "ns1", Name: "x"})
		w.tellAll(k.state)
		unknown(&k.known)
		if k.ready() {
			t.Errorf("without the %s it is ready", name)
		}
	}
	// A leader that finds sets which no policy names has to know the pods first.
	k := keeper(w, m)
	k.known.labels = false
	before := maps.Clone(m.records)
	if _, err := k.write(context.Background()); err != nil || !maps.Equal(before, m.records) {
		t.Errorf("%v; records were written", err)
	}
	if k.begun {
		t.Error("it went on without labels")
	}
}

// TestTooLarge: a policy that etcd would not take isolates, and allows nothing.
func TestTooLarge(t *testing.T) {
	w, m := newWorld(1), newMemory()
	k := keeper(w, m)
	key := policy.Key{Namespace: "shop", Name: "huge"}
	p := kube.NetworkPolicy{UID: "p", Policy: policy.Policy{Key: key, Egress: policy.Side{Isolates: true}}}
	for i := range 60000 {
		block := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)
		p.Egress.Rules = append(p.Egress.Rules, policy.Rule{Peers: []policy.Peer{{Block: block}}, AnyPort: true})
	}
	k.state.setPolicy(key, &p, w.now)
	settle(t, k)
	wantTexts(t, m, "too large", map[store.PolicyKey]string{
		"isolation/shop":     `{"Policies":[{"Name":"huge","Selector":"","Egress":true}]}`,
		"policies/shop/huge": `{"Selector":"","Ingress":null,"Egress":[]}`,
	})
	told := wanted(k.state.policies, lacking{})
	if len(told) != 1 || told[0].reason != NotHonoured || !strings.Contains(told[0].message, "none of them is in force") {
		t.Errorf("told %+v", told)
	}
}

// TestSmallEtcd: an etcd that takes fewer changes in a transaction gets fewer.
func TestSmallEtcd(t *testing.T) {
	w, m := newWorld(3), newMemory()
	k := keeper(w, m)
	for range 300 {
		w.step(k.state)
	}
	small := &limited{m, 4}
	k.cfg.Writer = small
	settle(t, k)
	if diff := cmp.Diff(w.direct(t), w.read(t, m.records), byValue); diff != "" {
		t.Errorf("(-cluster +records):\n%s", diff)
	}
}

type limited struct {
	*memory
	most int
}

func (l *limited) PutPolicies(ctx context.Context, changes []store.PolicyChange) (int64, error) {
	if len(changes) > l.most {
		return 0, store.ErrInvalid
	}
	return l.memory.PutPolicies(ctx, changes)
}

// TestBatch: groups stay whole where they can, and changes in order.
func TestBatch(t *testing.T) {
	change := func(keys ...string) (g group) {
		for _, key := range keys {
			g = append(g, store.PolicyChange{Key: store.PolicyKey(key), Value: "x"})
		}
		return g
	}
	groups := []group{change("a"), change("b", "c"), change("d", "e", "f"), change("g", "h", "i", "j", "k", "l"), change("m")}
	var got [][]string
	for len(groups) > 0 {
		var changes []store.PolicyChange
		changes, groups = batch(groups, 4)
		var keys []string
		for _, c := range changes {
			keys = append(keys, string(c.Key))
		}
		got = append(got, keys)
	}
	want := [][]string{{"a", "b", "c"}, {"d", "e", "f"}, {"g", "h", "i", "j"}, {"k", "l", "m"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	large := []group{{{Key: "a", Value: strings.Repeat("x", maxRecord)}, {Key: "b", Value: strings.Repeat("x", maxRecord)}}}
	changes, rest := batch(large, 100)
	if len(changes) != 1 || len(rest) != 1 || len(rest[0]) != 1 {
		t.Errorf("two large records: %d now, then %v", len(changes), len(rest))
	}
}

// TestNotices: each thing once a day for each policy, whatever else comes and goes; nodes
// that change do not make it news.
func TestNotices(t *testing.T) {
	policies := func(names ...string) map[policy.Key]kube.NetworkPolicy {
		all := map[policy.Key]kube.NetworkPolicy{}
		for _, name := range names {
			name, bad := strings.CutSuffix(name, "!")
			p := kube.NetworkPolicy{Policy: policy.Policy{Key: policy.Key{Namespace: "a", Name: name}}, UID: "u-" + name}
			if bad {
				p.Problem = "it is odd"
			}
			all[p.Key] = p
		}
		return all
	}
	n, now := newNotices(), start
	for i, step := range []struct {
		after    time.Duration
		policies map[policy.Key]kube.NetworkPolicy
		lacking  []string
		want     []string
		again    time.Duration
	}{
		{0, nil, []string{"n1"}, nil, 0},
		{0, policies("x"), nil, nil, 0},
		{0, policies("x"), []string{"n1"}, []string{"x " + NotEnforced}, noticeEvery},
		{time.Hour, policies("y!", "x"), []string{"n2", "n3"}, []string{"y " + NotHonoured, "y " + NotEnforced}, noticeEvery - time.Hour},
		{time.Hour, policies("y!"), nil, nil, noticeEvery - time.Hour},
		{0, policies("y!", "x"), []string{"n1"}, []string{"x " + NotEnforced, "y " + NotEnforced}, noticeEvery - time.Hour}, // not in force again
		{0, policies("y"), nil, nil, 0},
	} {
		now = now.Add(step.after)
		due, again := n.due(wanted(step.policies, lacking{policies: step.lacking}), now)
		var got []string
		for _, e := range due {
			if e.object.APIVersion != "networking.k8s.io/v1" || e.object.Kind != "NetworkPolicy" {
				t.Errorf("notice %+v", e)
			}
			got = append(got, e.object.Name+" "+e.reason)
		}
		if diff := cmp.Diff(step.want, got); diff != "" {
			t.Errorf("step %d (-want +got):\n%s", i, diff)
		}
		if want := now.Add(step.again); step.again == 0 && !again.IsZero() || step.again != 0 && !again.Equal(want) {
			t.Errorf("step %d: again at %v, want %v", i, again, want)
		}
	}
	if got := wanted(policies("x"), lacking{policies: []string{"n1", "n2", "n3", "n4", "n5", "n6", "n7"}})[0].text(); !strings.Contains(got, "n1, n2, n3, n4, n5 and 2 more") {
		t.Errorf("message %q", got)
	}
}

// TestManyNotices: a thousand policies are told of a few at a time, and all of them.
func TestManyNotices(t *testing.T) {
	all := map[policy.Key]kube.NetworkPolicy{}
	for i := range 1000 {
		key := policy.Key{Namespace: "a", Name: fmt.Sprintf("p%04d", i)}
		all[key] = kube.NetworkPolicy{Policy: policy.Policy{Key: key}, UID: fmt.Sprint(i)}
	}
	n, told := newNotices(), map[string]int{}
	at := start
	for at.Before(start.Add(noticeEvery)) {
		due, again := n.due(wanted(all, lacking{policies: []string{"n1"}}), at)
		if len(due) > noticesAtOnce || !again.After(at) {
			t.Fatalf("%d at once, again at %v", len(due), again)
		}
		for _, e := range due {
			told[e.object.Name]++
		}
		at = again
	}
	for _, name := range slices.Sorted(maps.Keys(told)) {
		if told[name] != 1 {
			t.Errorf("%s: told %d times in a day", name, told[name])
		}
	}
	if len(told) != len(all) {
		t.Errorf("%d of %d were told", len(told), len(all))
	}
}
