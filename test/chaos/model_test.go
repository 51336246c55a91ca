package main

import (
	"fmt"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"

	meaning "github.com/k8s-ovs/k8s-ovs/pkg/policy"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/probe"
)

// TestModelAndPolicies: what the model says of policies is what they mean, for all states that runs come to. The
// model has its own words for it, so that a mistake of pkg/policy shows in a run; this shows the model's.
func TestModelAndPolicies(t *testing.T) {
	numbers := map[probe.Protocol]uint8{probe.Ping: 1, probe.TCP: 6, probe.UDP: 17}
	said := map[bool]int{}
	for seed := range uint64(30) {
		each(seed, 30, func(s state, _ []*decision) {
			for name := range s.networks {
				s.networks[name] = global // this is about policies
			}
			compiled, addresses := compiled(t, s)
			for _, from := range s.named() {
				for _, to := range s.named() {
					for p, number := range numbers {
						if from == to {
							continue
						}
						packet := meaning.Packet{Src: addresses[from], Dst: addresses[to], Protocol: number, DstPort: 1234}
						want := compiled.Verdict(packet) == meaning.Allowed
						said[want]++
						if got := s.allows(from, to, p); got != want {
							t.Fatalf("seed %d, %s -> %s by %s: the model says %t, policies mean %t:\n%s", seed, from, to, p, got, want, s)
						}
					}
				}
			}
		})
	}
	if said[true] < said[false]/10 || said[false] < said[true]/10 {
		t.Errorf("%d are allowed, %d are not: what is drawn asks too little", said[true], said[false])
	}
}

// each goes through the rounds of a seed as a run does.
func each(seed uint64, rounds int, fn func(s state, plan []*decision)) {
	nodes := []string{"n1", "n2", "n3"}
	m := model{settled: newState(namespaces)}
	for _, d := range begin(seed, nodes, m.settled) {
		m.change(d)
	}
	for n := 1; n <= rounds; n++ {
		plan := round(seed, n, nodes, m.settled)
		fn(m.settled.clone(), plan)
		for _, d := range plan {
			m.change(d)
		}
		m.settle()
	}
}

// compiled is what pkg/policy makes of a state, as if all pods were on one node.
func compiled(t *testing.T, s state) (meaning.Compiled, map[pod]netip.Addr) {
	t.Helper()
	index, addresses := meaning.NewIndex(), map[pod]netip.Addr{}
	for name := range s.networks {
		index.SetNamespace(name, map[string]string{corev1.LabelMetadataName: name})
	}
	var pods []meaning.Pod
	for i, p := range s.named() {
		addresses[p] = netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 5)})
		pods = append(pods, meaning.Pod{Key: meaning.Key{Namespace: p.namespace, Name: p.name}, Labels: map[string]string{"app": p.app}, Member: meaning.Member{Address: addresses[p]}})
		index.SetPod(pods[i])
	}
	var policies []meaning.Policy
	for _, p := range s.policies {
		parsed, err := meaning.Parse(p.object())
		if err != nil {
			t.Fatal(err)
		}
		for _, set := range parsed.Sets() {
			if err := index.Want(set); err != nil {
				t.Fatal(err)
			}
		}
		policies = append(policies, parsed)
	}
	return meaning.NewCompiler(meaning.Input{
		Subjects: pods, Network: netip.MustParsePrefix("10.0.0.0/16"),
		Members: func(set meaning.Set) ([]meaning.Member, bool) { return index.All(set), true },
	}).Compile(policies, nil), addresses
}

// TestModelWhileChanging: while changes are under way, what all of what may be allows must arrive, and what any of it
// does may.
func TestModelWhileChanging(t *testing.T) {
	s := newState([]string{"red", "green", "blue"})
	for _, name := range []string{"red", "green", "blue"} {
		p := pod{namespace: name, name: "p", node: "n1", app: "a"}
		s.pods[p.String()] = p
	}
	(&decision{kind: join, namespace: "red", target: "green"}).apply(&s)
	m := model{settled: s}
	split := &decision{kind: isolate, namespace: "red", network: 9}
	m.change(split)
	m.change(&decision{kind: join, namespace: "blue", target: "green"})
	verdicts := func() string {
		r, text := m.rule(probe.UDP), ""
		for _, pair := range [][2]string{{"red", "green"}, {"red", "blue"}, {"blue", "green"}} {
			from, to := probe.Endpoint{Namespace: pair[0], Name: "p"}, probe.Endpoint{Namespace: pair[1], Name: "p"}
			text += fmt.Sprintf("%s-%s must %t may %t; ", pair[0], pair[1], r.Must(from, to), r.May(from, to))
		}
		return text
	}
	// A node that did not hear that red has left lets it reach those who came.
	if got, want := verdicts(), "red-green must false may true; red-blue must false may true; blue-green must false may true; "; got != want {
		t.Errorf("both changes pending: %s\nwant %s", got, want)
	}
	m.settleOne(split)
	if got, want := verdicts(), "red-green must false may false; red-blue must false may false; blue-green must false may true; "; got != want {
		t.Errorf("red isolated: %s\nwant %s", got, want)
	}
	m.settle()
	if got, want := verdicts(), "red-green must false may false; red-blue must false may false; blue-green must true may true; "; got != want {
		t.Errorf("all settled: %s\nwant %s", got, want)
	}
}

// TestModelSettlesInOrder: a change that builds on one that is pending is not settled alone.
func TestModelSettlesInOrder(t *testing.T) {
	m := model{settled: newState([]string{"red", "green", "blue"})}
	first, second := &decision{kind: join, namespace: "red", target: "green"}, &decision{kind: join, namespace: "blue", target: "red"}
	m.change(first)
	m.change(second)
	if m.settleOne(second); m.settled.joined("blue", "red") || len(m.pending) != 2 {
		t.Error("blue joined red before red joined green")
	}
	m.settleOne(first)
	if m.settleOne(second); !m.settled.joined("blue", "green") || len(m.pending) != 0 {
		t.Errorf("blue has joined red, which has joined green: %s, %d pending", m.settled, len(m.pending))
	}
}
