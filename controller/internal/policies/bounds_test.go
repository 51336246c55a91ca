package policies

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/policy"
	"github.com/k8s-ovs/k8s-ovs/pkg/service"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// chunkOf reads the record of a set in the /24 of the node n1.
func chunkOf(t *testing.T, m *memory, set policy.Set) topology.SetChunk {
	t.Helper()
	base := netip.MustParseAddr("172.11.0.0")
	_, c, err := topology.ParseSetChunk(set.Hash()+"/"+base.String(), []byte(m.records[store.ChunkKey(set.Hash(), base)].Value))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// toPorts is a policy about all pods of a namespace that lets them reach these ports of its pods.
func toPorts(key policy.Key, pods policy.Selector, names ...string) kube.NetworkPolicy {
	r := policy.Rule{Peers: []policy.Peer{{Set: &policy.Set{Namespace: key.Namespace, Pods: pods}}}}
	for _, name := range names {
		r.Ports = append(r.Ports, policy.Port{Protocol: service.TCP, Name: name})
	}
	return kube.NetworkPolicy{UID: key.String(), Policy: policy.Policy{Key: key, Egress: policy.Side{Isolates: true, Rules: []policy.Rule{r}}}}
}

// tellPolicies tells of policies that are no objects.
func tellPolicies(w *world, k *Keeper) {
	for key, p := range w.policies {
		k.state.setPolicy(key, &p, w.now)
	}
}

// TestManyNamedPorts: whatever ports the pods of one namespace have, and policies of it name, sets
// have the ports that their own policies look up, a bounded number of each pod, and all records are
// written.
func TestManyNamedPorts(t *testing.T) {
	w, m, k, n1 := small(t) // the policy shop/db names pods of shop with app=web
	var names []string
	for i := range 250 {
		names = append(names, fmt.Sprintf("averylongname%02x", i))
	}
	number := uint16(1)
	for i := range 50 {
		p := &pod{uid: fmt.Sprintf("u-%d", i), labels: map[string]string{"app": "web"}, node: n1, at: netip.AddrFrom4([4]byte{172, 11, 0, byte(10 + i)})}
		for _, name := range names {
			p.ports = append(p.ports, policy.NamedPort{Name: name, Protocol: service.TCP, Port: number})
			number++
		}
		w.pods[kube.PodKey{Namespace: "evil", Name: fmt.Sprint(i)}] = p
	}
	one := &pod{uid: "u-one", labels: map[string]string{"app": "one"}, node: n1, at: netip.MustParseAddr("172.11.0.5")}
	for i := range 16000 {
		one.ports = append(one.ports, policy.NamedPort{Name: "http", Protocol: service.TCP, Port: uint16(i + 1)})
	}
	w.pods[kube.PodKey{Namespace: "evil", Name: "one"}] = one
	web := w.pods[kube.PodKey{Namespace: "shop", Name: "web"}]
	web.ports = []policy.NamedPort{{Name: names[0], Protocol: service.TCP, Port: 7}, {Name: "http", Protocol: service.TCP, Port: 8080}}
	w.say(n1)
	w.policies[policy.Key{Namespace: "evil", Name: "many"}] = toPorts(policy.Key{Namespace: "evil", Name: "many"}, "app=web", names...)
	w.policies[policy.Key{Namespace: "evil", Name: "one"}] = toPorts(policy.Key{Namespace: "evil", Name: "one"}, "app=one", "http")
	w.policies[policy.Key{Namespace: "shop", Name: "out"}] = toPorts(policy.Key{Namespace: "shop", Name: "out"}, "app=web", "http")
	w.tellAll(k.state)
	tellPolicies(w, k)
	settle(t, k)

	for key, v := range m.records {
		if len(v.Value) > maxRecord {
			t.Errorf("record %s has %d bytes", key, len(v.Value))
		}
		if hash, last, ok := ofSet(key); ok && last == "of" && !must(topology.ParseAddressSet(hash, []byte(v.Value)))(t).Whole {
			t.Errorf("set %s is not whole", v.Value)
		}
	}
	if got := m.records[store.AcknowledgedKey(n1)].Value; got != fmt.Sprintf(`{"Revision":%d}`, w.said[n1].Revision) {
		t.Errorf("acknowledged %s", got)
	}
	var octet topology.Octets
	octet.Add(web.at.As4()[3])
	want := topology.SetChunk{Addresses: octet, Ports: []topology.ChunkPort{{Name: "http", Protocol: "TCP", Port: 8080, Addresses: octet}}}
	if diff := cmp.Diff(want, chunkOf(t, m, policy.Set{Namespace: "shop", Pods: "app=web"})); diff != "" {
		t.Errorf("the set of shop (-want +got):\n%s", diff)
	}
	if got := chunkOf(t, m, policy.Set{Namespace: "evil", Pods: "app=web"}); len(got.Ports) != 50*maxPodPorts {
		t.Errorf("50 pods have %d ports in their set", len(got.Ports))
	}
	if got := chunkOf(t, m, policy.Set{Namespace: "evil", Pods: "app=one"}); len(got.Ports) != maxPodPorts {
		t.Errorf("one pod has %d ports in its set", len(got.Ports))
	}
	told := 0
	for _, n := range k.state.notices(lacking{}) {
		if n.reason == PortsNotHonoured && n.object.Kind == "Pod" && n.object.Namespace == "evil" {
			told++
		}
	}
	if told != 51 {
		t.Errorf("%d pods have an Event", told)
	}
}

// TestLeftPortsBounded: what a former leader wrote of a pod's ports is bounded as well, and has only
// names that the set's policies look up.
func TestLeftPortsBounded(t *testing.T) {
	n := &namedSet{ports: map[string]*named{"http": {}}}
	var both, one topology.Octets
	both.Add(1)
	both.Add(2)
	one.Add(2)
	old := topology.SetChunk{Addresses: both, Ports: []topology.ChunkPort{{Name: "dns", Protocol: "UDP", Port: 53, Addresses: both}}}
	want := topology.SetChunk{Addresses: both}
	for i := range 2 * maxPodPorts {
		p := topology.ChunkPort{Name: "http", Protocol: "TCP", Port: uint16(i + 1), Addresses: both}
		if i >= maxPodPorts/2 {
			p.Addresses = one
		}
		old.Ports = append(old.Ports, p)
		if i < maxPodPorts {
			want.Ports = append(want.Ports, p)
		}
	}
	if diff := cmp.Diff(want, n.lookedUpIn(old)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// stingy is an etcd that takes records up to a length.
type stingy struct {
	*memory
	most int
}

func (s *stingy) PutPolicies(ctx context.Context, changes []store.PolicyChange) (int64, error) {
	for _, c := range changes {
		if len(c.Value) > s.most {
			return 0, fmt.Errorf("too large: %w", store.ErrInvalid)
		}
	}
	return s.memory.PutPolicies(ctx, changes)
}

// TestRefusedRecord: a record that etcd does not take is closed, and holds up no other. A set lacks
// the ports of its members then and is not whole, until it is small again.
func TestRefusedRecord(t *testing.T) {
	w, m, k, n1 := small(t)
	k.cfg.Writer = &stingy{m, 1000}
	k.records.most = 8
	var ports []policy.NamedPort
	for i := range 20 {
		ports = append(ports, policy.NamedPort{Name: "http", Protocol: service.TCP, Port: uint16(i + 1)})
	}
	p := &pod{uid: "u", labels: map[string]string{"app": "x"}, node: n1, at: netip.MustParseAddr("172.11.0.20"), ports: ports}
	w.pods[kube.PodKey{Namespace: "evil", Name: "x"}] = p
	w.say(n1)
	named, large, other := policy.Key{Namespace: "evil", Name: "named"}, policy.Key{Namespace: "evil", Name: "large"}, policy.Key{Namespace: "zoo", Name: "other"}
	w.policies[named] = toPorts(named, "app=x", "http")
	w.policies[large] = toPorts(large, policy.Selector("app in ("+strings.Repeat("x,", 600)+"x)"), "http")
	w.policies[other] = toPorts(other, "app=y", "http")
	long := kube.ClusterNetworkPolicy{UID: "c", ClusterPolicy: policy.ClusterPolicy{Name: "long", Egress: []policy.ClusterRule{{Action: policy.Deny}}}}
	for i := range 100 {
		long.Egress[0].Ports = append(long.Egress[0].Ports, policy.Port{Protocol: service.TCP, First: uint16(i + 1), Last: uint16(i + 1)})
	}
	long.Egress[0].AnyPeer = true
	w.cluster["long"] = long
	w.tellAll(k.state)
	tellPolicies(w, k)
	settle(t, k)

	set := policy.Set{Namespace: "evil", Pods: "app=x"}
	of := func() topology.AddressSet {
		return must(topology.ParseAddressSet(set.Hash(), []byte(m.records[store.SetKey(set.Hash())].Value)))(t)
	}
	if got := chunkOf(t, m, set); got.Addresses.Len() != 1 || len(got.Ports) > 0 || of().Whole {
		t.Errorf("the set that is too large has %+v, whole %v", got, of().Whole)
	}
	for key, want := range map[store.PolicyKey]string{
		"policies/evil/large":     `{"Selector":"","Ingress":null,"Egress":[]}`,
		"policies/zoo/other":      `{"Selector":"","Ingress":null,"Egress":[{"Peers":[{"Set":{"Namespace":"zoo","Pods":"app=y"}}],"Ports":[{"Protocol":"TCP","Name":"http"}]}]}`,
		"clusterpolicies/long":    `{"Tier":"Admin","Priority":0,"Subject":{},"Egress":[{"Action":"Deny"}]}`,
		store.AcknowledgedKey(n1): fmt.Sprintf(`{"Revision":%d}`, w.said[n1].Revision),
	} {
		if got := m.records[key].Value; got != want {
			t.Errorf("%s is %s, want %s", key, got, want)
		}
	}
	told := map[string]bool{}
	for _, n := range k.state.notices(lacking{}) {
		told[n.object.Name] = n.reason == NotHonoured
	}
	if !told["large"] || !told["long"] || told["other"] {
		t.Errorf("told of %v", told)
	}

	// The set is small again, and large once more: it is not whole before its ports go.
	p.ports = ports[:2]
	w.tellPod(k.state, kube.PodKey{Namespace: "evil", Name: "x"})
	settle(t, k)
	if got := chunkOf(t, m, set); len(got.Ports) != 2 || !of().Whole {
		t.Errorf("the set that is small again has %+v, whole %v", got, of().Whole)
	}
	p.ports = ports
	k.records.most = 1
	m.wrote = func([]store.PolicyChange) {
		if of().Whole && len(chunkOf(t, m, set).Ports) == 0 {
			t.Error("the set has no ports, and says that it is whole")
		}
	}
	w.tellPod(k.state, kube.PodKey{Namespace: "evil", Name: "x"})
	settle(t, k)
	if got := chunkOf(t, m, set); len(got.Ports) > 0 || of().Whole {
		t.Errorf("the set that is large once more has %+v, whole %v", got, of().Whole)
	}
}

// fromSets is a policy that lets so many sets of pods reach the pods of its namespace.
func fromSets(key policy.Key, age int, first, count int) kube.NetworkPolicy {
	var r policy.Rule
	r.AnyPort = true
	for i := range count {
		r.Peers = append(r.Peers, policy.Peer{Set: &policy.Set{Pods: policy.Selector(fmt.Sprintf("!a%d", first+i))}})
	}
	return kube.NetworkPolicy{UID: key.String(), Created: start.Add(-time.Duration(age) * time.Hour), Policy: policy.Policy{Key: key, Ingress: policy.Side{Isolates: true, Rules: []policy.Rule{r}}}}
}

// TestTooMuch: a policy that comes to too much closes, its author is told, and nothing is kept for it.
func TestTooMuch(t *testing.T) {
	key := policy.Key{Namespace: "evil", Name: "p"}
	ofRule := func(r policy.Rule) kube.NetworkPolicy {
		return kube.NetworkPolicy{Policy: policy.Policy{Key: key, Egress: policy.Side{Isolates: true, Rules: []policy.Rule{r}}}}
	}
	scattered := policy.Peer{Block: netip.MustParsePrefix("0.0.0.0/0")}
	for i := range 3000 {
		n := uint32(i) * 2654435761
		scattered.Except = append(scattered.Except, netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}), 32))
	}
	ranges := policy.Rule{AnyPeer: true}
	for i := range 1000 {
		ranges.Ports = append(ranges.Ports, policy.Port{Protocol: service.TCP, First: uint16(i + 1), Last: 65534})
	}
	var names []string
	for i := range 1001 {
		names = append(names, fmt.Sprintf("p%d", i))
	}
	named := toPorts(key, "app=web", names...)
	for what, test := range map[string]struct {
		p    kube.NetworkPolicy
		told string
	}{
		"30,000 sets":                 {fromSets(key, 0, 0, 30000), "more than 500 sets of pods or nodes"},
		"3,000 scattered excepts":     {ofRule(policy.Rule{Peers: []policy.Peer{scattered}, AnyPort: true}), "more than 10000 peers and prefixes"},
		"1,000 ranges of ports":       {ofRule(ranges), "more than 10000 rules and ports"},
		"more than 1,000 named ports": {named, "more than 1000 names of ports at peers"},
	} {
		_, m, k, _ := small(t)
		before := texts(m)
		k.state.setPolicy(key, &test.p, start)
		settle(t, k)
		closed := test.p
		closed.Ingress.Rules, closed.Egress.Rules = nil, nil
		isolation, _ := encode(topology.Isolation{Policies: []topology.IsolatingPolicy{closed.Isolation()}})
		record, _ := encode(closed.Record())
		before["isolation/evil"], before["policies/evil/p"] = isolation, record
		wantTexts(t, m, what, before)
		if len(k.state.sets) != 1 || len(k.state.portNames) != 0 {
			t.Errorf("%s: %d sets and %d names of ports are kept", what, len(k.state.sets), len(k.state.portNames))
		}
		told := k.state.notices(lacking{})
		if len(told) != 1 || told[0].object.Name != "p" || told[0].reason != NotHonoured || !strings.Contains(told[0].message, test.told+": none of them is in force") {
			t.Errorf("%s: told %+v", what, told)
		}

		cluster := kube.ClusterNetworkPolicy{UID: "c", ClusterPolicy: policy.ClusterPolicy{Name: "c", Priority: 1}}
		for range 4 { // they may come to more
			for _, r := range append(test.p.Ingress.Rules, test.p.Egress.Rules...) {
				cluster.Egress = append(cluster.Egress, policy.ClusterRule{Action: policy.Pass, Rule: r})
			}
		}
		if what == "3,000 scattered excepts" {
			continue // with 4 of them the record is too large
		}
		k.state.setClusterPolicy("c", &cluster, start)
		if got := k.state.cluster["c"]; !strings.Contains(got.Problem, "none of them is in force") || len(got.Egress) != 1 || got.Egress[0].Action != policy.Deny || !got.Egress[0].AnyPeer {
			t.Errorf("%s: of a ClusterNetworkPolicy is left %+v", what, got)
		}
	}
}

// TestCrowded: what the policies of a namespace come to together is bounded. The oldest are in
// force, whoever leads and whatever comes later, and others are again once there is room. Other
// namespaces have theirs.
func TestCrowded(t *testing.T) {
	w, m, k, _ := small(t)
	put := func(name string, age, first, count int) {
		key := policy.Key{Namespace: "evil", Name: name}
		p := fromSets(key, age, first, count)
		w.policies[key] = p
		k.state.setPolicy(key, &p, w.now)
	}
	check := func(what string, closed ...string) {
		t.Helper()
		settle(t, k)
		var got, told []string
		for key, p := range k.state.policies {
			if record := m.records[store.PolicyRecordKey(key.Namespace, key.Name)].Value; strings.HasSuffix(record, `"Ingress":[],"Egress":null}`) {
				got = append(got, key.Name)
			}
			if strings.Contains(p.Problem, "with those of older policies of namespace evil to more than 1000 sets of pods or nodes: none of them is in force") {
				told = append(told, key.Name)
			}
		}
		slices.Sort(got)
		slices.Sort(told)
		if !slices.Equal(closed, got) || !slices.Equal(closed, told) {
			t.Errorf("%s: %v are closed and %v told, want %v", what, got, told, closed)
		}
	}
	put("d", 1, 0, 400)
	put("c", 2, 400, 400)
	check("below the bound")
	put("a", 0, 800, 400)
	check("one more", "a")
	put("b", 0, 0, 400) // names what another names already
	check("one that names nothing new", "a")
	put("e", 3, 800, 400)
	check("one that is older", "b", "d")

	other := policy.Key{Namespace: "zoo", Name: "z"}
	theirs := fromSets(other, 0, 2000, 400)
	w.policies[other] = theirs
	k.state.setPolicy(other, &theirs, w.now)
	check("another namespace", "b", "d")

	k = keeper(w, m)
	w.tellAll(k.state)
	tellPolicies(w, k)
	check("another leader", "b", "d")

	key := policy.Key{Namespace: "evil", Name: "c"}
	delete(w.policies, key)
	k.state.setPolicy(key, nil, w.now)
	check("there is room again")
	for _, name := range []string{"a", "b", "d", "e"} {
		k.state.setPolicy(policy.Key{Namespace: "evil", Name: name}, nil, w.now)
	}
	check("none is left")
	if k.state.namespaces["evil"] != nil {
		t.Error("the namespace is kept without policies")
	}
}

// TestRoom: what docs/policy.md and the benchmarks have in one namespace is within all bounds.
func TestRoom(t *testing.T) {
	_, _, k, _ := small(t)
	for i := range 250 {
		key := policy.Key{Namespace: "policed", Name: fmt.Sprintf("p%d", i)}
		p := kube.NetworkPolicy{Policy: policy.Policy{Key: key, Ingress: policy.Side{Isolates: true}}}
		for r := range 40 {
			n := i*40 + r
			group := policy.Set{Namespace: "policed", Pods: policy.Selector(fmt.Sprintf("group=%d", n%400))}
			port := uint16(1000 + n%100)
			p.Ingress.Rules = append(p.Ingress.Rules, policy.Rule{Peers: []policy.Peer{{Set: &group}}, Ports: []policy.Port{{Protocol: service.TCP, First: port, Last: port}}})
		}
		k.state.setPolicy(key, &p, start)
	}
	for key, p := range k.state.policies {
		if p.Problem != "" {
			t.Fatalf("%s: %s", key, p.Problem)
		}
	}
}
