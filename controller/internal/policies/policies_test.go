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
	"github.com/k8s-ovs/k8s-ovs/pkg/service"
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
		for name := range w.cluster {
			delete(w.cluster, name)
			w.tellClusterPolicy(k.state, name)
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
// policy that has no record, namespaces that no ClusterNetworkPolicy selects have records as long
// as there is one, and what is acknowledged is in the sets.
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
			w.settled = maps.Clone(w.namespaces)
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
			isolation := must(topology.ParseIsolation(rest, []byte(v.Value)))(t)
			for _, p := range isolation.Cluster {
				_, there := records[store.ClusterPolicyKey(p.Name)]
				if _, stays := w.cluster[p.Name]; !there && stays {
					t.Fatalf("isolation of %s names ClusterNetworkPolicy %s, which has no record", rest, p.Name)
				}
			}
			for _, p := range isolation.Policies {
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
		case "clusterpolicies":
			parsed := policy.ClusterFromRecord(rest, must(topology.ParseClusterPolicy(rest, []byte(v.Value)))(t))
			for _, set := range parsed.Sets() {
				if _, there := records[store.SetKey(set.Hash())]; !there {
					t.Fatalf("ClusterNetworkPolicy %s names set %s, which is not there", rest, set)
				}
			}
			for name := range w.settled {
				have, stays := w.namespaces[name]
				selected := slices.ContainsFunc(slices.Collect(maps.Values(w.cluster)), func(p kube.ClusterNetworkPolicy) bool { return p.Selects(have) })
				if _, there := records[store.IsolationKey(name)]; !there && stays && !selected {
					t.Fatalf("there is ClusterNetworkPolicy %s, and namespace %s has no record", rest, name)
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

// TestNeverOpens: whatever becomes of one ClusterNetworkPolicy, no transaction of that lets
// through what neither the old policies do nor the new ones, wherever the leader stops.
func TestNeverOpens(t *testing.T) {
	seen := 0
	for seed := range uint64(6) {
		w, m := newWorld(seed), newMemory()
		k := keeper(w, m)
		k.records.most = 2
		for range 200 {
			w.step(k.state)
		}
		settle(t, k)
		for range 12 {
			before := w.read(t, m.records)
			name := fmt.Sprintf("c%d", w.random.IntN(4))
			if w.random.IntN(4) == 0 {
				delete(w.cluster, name)
			} else {
				w.cluster[name] = w.clusterPolicy(name)
			}
			w.tellClusterPolicy(k.state, name)
			after := w.direct(t)
			m.wrote = func([]store.PolicyChange) {
				seen++
				w.nothingNew(t, before, w.read(t, m.records), after)
			}
			settle(t, k)
			m.wrote = nil
		}
	}
	if seen < 100 {
		t.Errorf("%d transactions show little", seen)
	}
}

// nothingNew checks that what passes now passed before, or is to pass. Deny may be early and
// Accept late.
func (w *world) nothingNew(t *testing.T, before, now, after map[netip.Addr]policy.Compiled) {
	t.Helper()
	var addresses []netip.Addr
	for _, p := range w.pods {
		addresses = append(addresses, p.at)
	}
	for _, h := range w.hosts {
		addresses = append(addresses, h.Node.Every...)
	}
	for ip := range w.nodes {
		for _, from := range addresses {
			for _, to := range addresses {
				for _, port := range []uint16{80, 53, 8001} {
					p := policy.Packet{Src: from, Dst: to, Protocol: uint8(service.TCP), DstPort: port}
					if port == 53 {
						p.Protocol = uint8(service.UDP)
					}
					if now[ip].Verdict(p) == policy.Allowed && before[ip].Verdict(p) != policy.Allowed && after[ip].Verdict(p) != policy.Allowed {
						t.Fatalf("on node %s %+v passes between two states in which it does not", ip, p)
					}
				}
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
	k.state.setLabels(kube.PodKey{Namespace: "shop", Name: "web2"}, &kube.PodLabels{UID: "other", Node: "n1", Labels: map[string]string{"app": "web"}})
	settle(t, k)
	want[chunk] = `{"Addresses":"2"}`
	wantTexts(t, m, "a namesake", want)

	// What a node says of another's addresses does not count, nor what it says of another's pods.
	n2 := netip.MustParseAddr("198.18.0.2")
	said := w.said[n2]
	said.Value.Pods = []topology.NodePod{
		{Namespace: "shop", Name: "web", UID: "u-web", Address: netip.MustParseAddr("172.11.0.30")}, {Namespace: "shop", Name: "web", UID: "u-web", Address: netip.MustParseAddr("172.11.0.70")},
	}
	said.Revision = 900
	w.said[n2] = said
	w.tellNodes(k.state)
	settle(t, k)
	wantTexts(t, m, "lies", want)
	if got := m.records[store.AcknowledgedKey(n2)].Value; got != `{"Revision":900}` {
		t.Errorf("acknowledged %s", got)
	}
}

// TestGrace: a node that is silent keeps its members as long as it has a subnet, also when the
// leader changes meanwhile; sets that nobody names keep theirs for a while.
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
			w.now = w.now.Add(time.Hour)
			settle(t, k)
			wantTexts(t, m, "long after", want)
			if got, there := m.records[store.AcknowledgedKey(n1)]; there {
				t.Errorf("acknowledged is what it does not say: %s", got.Value)
			}

			// Back again it has fewer.
			delete(w.pods, kube.PodKey{Namespace: "shop", Name: "db"})
			w.say(n1)
			w.tellNodes(k.state)
			settle(t, k)
			wantTexts(t, m, "back again", want)
			delete(w.said, n1)
			w.tellNodes(k.state)
			w.now = w.now.Add(time.Hour)
			settle(t, k)
			wantTexts(t, m, "silent again", want)
			others := maps.Clone(w.nodes)
			delete(others, n1)
			k.state.setSubnets(others)
			settle(t, k)
			delete(want, store.ChunkKey(webSet, netip.MustParseAddr("172.11.0.0")))
			wantTexts(t, m, "without a subnet", want)
			k.state.setSubnets(w.nodes)

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
	// ClusterNetworkPolicies that this program may not see hold up nothing, but where some are
	// in force.
	unseen := keeper(w, m)
	unseen.known.cluster = false
	w.tellAll(unseen.state)
	if !unseen.ready() {
		t.Error("it waits for ClusterNetworkPolicies that nobody made")
	}
	m.records[store.ClusterPolicyKey("old")] = store.Versioned[string]{Value: `{"Tier":"Admin","Priority":1,"Subject":{}}`, Revision: m.rev}
	old := maps.Clone(m.records)
	if _, err := unseen.write(context.Background()); err != nil || unseen.ready() || !maps.Equal(old, m.records) {
		t.Errorf("%v; it is ready (%v), or records were written, while ClusterNetworkPolicies in force are not known", err, unseen.ready())
	}
	unseen.known.cluster = true
	settle(t, unseen)
	if _, there := m.records[store.ClusterPolicyKey("old")]; there {
		t.Error("one that the API server does not have is still there")
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
	told := k.state.notices(lacking{})
	if len(told) != 1 || told[0].reason != NotHonoured || !strings.Contains(told[0].message, "none of them is in force") {
		t.Errorf("told %+v", told)
	}
}

// TestTooLargeCluster: a ClusterNetworkPolicy that etcd would not take accepts nothing and
// denies all.
func TestTooLargeCluster(t *testing.T) {
	w, m := newWorld(1), newMemory()
	k := keeper(w, m)
	rule := policy.ClusterRule{Action: policy.Pass, Rule: policy.Rule{AnyPort: true}}
	for i := range 60000 {
		rule.Peers = append(rule.Peers, policy.Peer{Block: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)})
	}
	p := kube.ClusterNetworkPolicy{UID: "p", Version: "v1beta1", ClusterPolicy: policy.ClusterPolicy{Name: "huge", Priority: 3, Egress: []policy.ClusterRule{rule}}}
	k.state.setClusterPolicy("huge", &p, w.now)
	settle(t, k)
	wantTexts(t, m, "too large", map[store.PolicyKey]string{
		"clusterpolicies/huge": `{"Tier":"Admin","Priority":3,"Subject":{},"Egress":[{"Action":"Deny"}]}`,
	})
	told := k.state.notices(lacking{})
	if len(told) != 1 || told[0].reason != NotHonoured || !strings.Contains(told[0].message, "none of them is in force") {
		t.Errorf("told %+v", told)
	}
	if say := honouredOf(k.state.cluster["huge"].ClusterNetworkPolicy); say.OK || !strings.Contains(say.Message, "none of them is in force") {
		t.Errorf("condition %+v", say)
	}
}

// TestPortsStayNamed: whom a record denies by a named port is denied until the record is another,
// also when the leader changes in between.
func TestPortsStayNamed(t *testing.T) {
	for _, change := range []bool{false, true} {
		w, m := newWorld(1), newMemory()
		k := keeper(w, m)
		k.records.most = 1
		w.namespaces["shop"] = map[string]string{"app": "v1"}
		at := netip.MustParseAddr("172.11.0.2")
		w.pods[kube.PodKey{Namespace: "shop", Name: "web"}] = &pod{uid: "u", node: n1, at: at, ports: []policy.NamedPort{{Name: "http", Protocol: service.TCP, Port: 8000}}}
		w.say(n1)
		deny := policy.ClusterPolicy{Name: "c1", Subject: policy.Set{Namespaces: "app=v1"}, Ingress: []policy.ClusterRule{{Action: policy.Deny, Rule: policy.Rule{AnyPeer: true, Ports: []policy.Port{{Protocol: service.TCP, Name: "http"}}}}}}
		w.cluster["c1"] = kube.ClusterNetworkPolicy{ClusterPolicy: deny, UID: "c"}
		w.tellAll(k.state)
		settle(t, k)
		packet := policy.Packet{Src: netip.MustParseAddr("172.11.0.70"), Dst: at, Protocol: uint8(service.TCP), DstPort: 8000}
		denied := 0
		m.wrote = func([]store.PolicyChange) {
			denied++
			if got := w.read(t, m.records)[n1].Verdict(packet); got != policy.DeniedIngress {
				t.Errorf("leader changes %v: after transaction %d it is %v", change, denied, got)
			}
		}
		deny.Ingress = []policy.ClusterRule{{Action: policy.Deny, Rule: policy.Rule{AnyPeer: true, AnyPort: true}}}
		w.cluster["c1"] = kube.ClusterNetworkPolicy{ClusterPolicy: deny, UID: "c"}
		if change {
			k = keeper(w, m)
			k.records.most = 1
			w.tellAll(k.state)
		} else {
			w.tellClusterPolicy(k.state, "c1")
		}
		settle(t, k)
		w.now = w.now.Add(setGrace)
		settle(t, k)
		if denied < 2 || len(k.state.portNames) > 0 || w.read(t, m.records)[n1].Verdict(packet) != policy.DeniedIngress {
			t.Errorf("leader changes %v: %d transactions, names of ports %v", change, denied, k.state.portNames)
		}
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
			got = append(got, e.object.Name+" "+string(e.reason))
		}
		if diff := cmp.Diff(step.want, got); diff != "" {
			t.Errorf("step %d (-want +got):\n%s", i, diff)
		}
		if want := now.Add(step.again); step.again == 0 && !again.IsZero() || step.again != 0 && !again.Equal(want) {
			t.Errorf("step %d: again at %v, want %v", i, again, want)
		}
	}
	s := newState()
	sctp := policy.Rule{AnyPeer: true, Ports: []policy.Port{{Protocol: service.SCTP, First: 7, Last: 7}}}
	s.setClusterPolicy("c", &kube.ClusterNetworkPolicy{
		ClusterPolicy: policy.ClusterPolicy{Name: "c", Egress: []policy.ClusterRule{{Action: policy.Deny, Rule: sctp}}}, UID: "u", Version: "v1alpha2", Problem: "it is odd",
	}, now)
	object := kube.ObjectRef{APIVersion: "policy.networking.k8s.io/v1alpha2", Kind: "ClusterNetworkPolicy", Name: "c", UID: "u"}
	want := []notice{
		{object: object, reason: NotHonoured, message: "it is odd. What was not understood accepts nothing, and denies all where it does not accept"},
		{object, NotHonoured, "for pods on nodes whose Open vSwitch does not know ports of SCTP, rules with some accept nothing, and deny all of SCTP where they do not accept: ", "n3", sctpRemedy},
		{object, ClusterNotEnforced, "not in force for pods on nodes whose agents do not know ClusterNetworkPolicy: ", "n2", ". Upgrade k8s-ovs there"},
	}
	if diff := cmp.Diff(want, s.notices(lacking{[]string{"n1"}, []string{"n2"}, []string{"n3"}}), cmp.AllowUnexported(notice{})); diff != "" {
		t.Errorf("of a ClusterNetworkPolicy (-want +got):\n%s", diff)
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
