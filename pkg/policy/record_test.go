package policy

import (
	"encoding/json"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/service"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

var byText = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}

// TestRecord: random policies and members go to etcd and come back the same.
func TestRecord(t *testing.T) {
	for seed := range uint64(500) {
		random := rand.New(rand.NewPCG(seed, 0))
		want := randomPolicy(random)
		data, err := json.Marshal(want.Record())
		if err != nil {
			t.Fatal(err)
		}
		record, err := topology.ParsePolicy(want.Key.String(), data)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if diff := cmp.Diff(want, FromRecord(want.Key, record), byText); diff != "" {
			t.Fatalf("seed %d: policy (-want +got):\n%s", seed, diff)
		}
		if got := want.Isolation(); got.Ingress != (record.Ingress != nil) || got.Egress != (record.Egress != nil) || got.Selector != record.Selector {
			t.Fatalf("seed %d: isolation %+v of %s", seed, got, data)
		}
		cluster := randomClusterPolicy(random)
		if data, err = json.Marshal(cluster.Record()); err != nil {
			t.Fatal(err)
		}
		clusterRecord, err := topology.ParseClusterPolicy(cluster.Name, data)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if diff := cmp.Diff(cluster, ClusterFromRecord(cluster.Name, clusterRecord), byText); diff != "" {
			t.Fatalf("seed %d: ClusterNetworkPolicy (-want +got):\n%s", seed, diff)
		}
		if got, want := cluster.Selecting(), (topology.SelectingPolicy{Name: "c.1", Selector: clusterRecord.Subject.Pods}); got != want {
			t.Fatalf("seed %d: isolation %+v, want %+v", seed, got, want)
		}
		members := randomMembers(random)
		if diff := cmp.Diff(members, MembersOf(Chunks(members)), byText); diff != "" {
			t.Fatalf("seed %d: members (-want +got):\n%s", seed, diff)
		}
	}
}

func randomPolicy(random *rand.Rand) Policy {
	p := Policy{Key: Key{"shop", "p"}, Subject: []Selector{"", "app=web", "app in (a,b)"}[random.IntN(3)]}
	for _, side := range []*Side{&p.Ingress, &p.Egress} {
		if side.Isolates = random.IntN(3) > 0; !side.Isolates {
			continue
		}
		for range random.IntN(3) {
			side.Rules = append(side.Rules, randomRule(random))
		}
	}
	return p
}

func randomClusterPolicy(random *rand.Rand) ClusterPolicy {
	p := ClusterPolicy{Name: "c.1", Baseline: random.IntN(2) == 0, Priority: random.Int32N(1001)}
	p.Subject = []Set{{}, {Namespaces: "team=a"}, {Namespaces: "team=a", Pods: "app=web"}}[random.IntN(3)]
	for _, rules := range []*[]ClusterRule{&p.Ingress, &p.Egress} {
		for range random.IntN(3) {
			*rules = append(*rules, ClusterRule{Action(random.IntN(3)), randomRule(random)})
		}
	}
	return p
}

func randomRule(random *rand.Rand) Rule {
	r := Rule{AnyPeer: random.IntN(3) == 0, AnyPort: random.IntN(3) == 0}
	for range random.IntN(3) {
		peers := []Peer{
			{Set: &Set{}}, {Set: &Set{Namespace: "shop", Pods: "app=db"}}, {Set: &Set{Namespaces: "team=a"}},
			{Set: &Set{OfNodes: true}}, {Set: &Set{OfNodes: true, Nodes: "zone=b"}},
			{Block: netip.MustParsePrefix("10.0.0.0/8"), Except: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}}, {Block: netip.MustParsePrefix("fd00::/8")},
		}
		if !r.AnyPeer {
			r.Peers = append(r.Peers, peers[random.IntN(len(peers))])
		}
		ports := []Port{
			{Protocol: service.TCP, First: 0, Last: maxPort}, {Protocol: service.UDP, First: 53, Last: 53}, {Protocol: service.SCTP, First: 1, Last: maxPort},
			{Protocol: service.TCP, Name: "http"}, {Protocol: service.TCP, First: maxPort, Last: maxPort},
		}
		if !r.AnyPort {
			r.Ports = append(r.Ports, ports[random.IntN(len(ports))])
		}
	}
	return r
}

// randomMembers are in order, as are the ports of each.
func randomMembers(random *rand.Rand) []Member {
	var members []Member
	for low := range uint32(600) {
		if random.IntN(5) > 0 {
			continue
		}
		m := Member{Address: topology.WithLow32(netip.IPv4Unspecified(), 172<<24|11<<16|low)}
		for _, p := range []NamedPort{{"a", service.TCP, 80}, {"a", service.TCP, 81}, {"a", service.UDP, 80}, {"b", service.TCP, 80}} {
			if random.IntN(4) == 0 {
				m.Ports = append(m.Ports, p)
			}
		}
		members = append(members, m)
	}
	return members
}

// TestHash: the names of sets in etcd never change.
func TestHash(t *testing.T) {
	s := Set{Namespaces: "team=a", Pods: "app=web"}
	if got := s.Hash(); got != "0461782e4b6d42a9" || topology.ValidateSetHash(got) != nil {
		t.Errorf("hash %s", got)
	}
}
