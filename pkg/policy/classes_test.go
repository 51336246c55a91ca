package policy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/k8s-ovs/k8s-ovs/pkg/service"
)

// senders are pods that policies of some namespaces isolate.
type senders struct {
	Compiled
	isolated map[netip.Addr]bool
	// of are the pods of each namespace, in the order in which they came, which is that of their addresses.
	of map[string][]netip.Addr
}

func newSenders() *senders {
	return &senders{Compiled: NewCompiler(input(nil)).Compile(nil, nil), isolated: map[netip.Addr]bool{}, of: map[string][]netip.Addr{}}
}

// pod adds one of a namespace that may reach prefixes, on all ports of theirs; and on single ports, each by
// a rule of its own, all others.
func (s *senders) pod(namespace string, prefixes []netip.Prefix, ports int) {
	a := addressOf(numberOf(netip.MustParseAddr("172.11.0.2")) + uint64(len(s.isolated)))
	s.isolated[a] = true
	s.of[namespace] = append(s.of[namespace], a)
	allow := func(name string, more Allow) {
		more.Name, more.Subjects, more.Policies = fmt.Sprint(a, name), []netip.Addr{a}, []Key{{namespace, name}}
		s.Egress.Allows = append(s.Egress.Allows, more)
	}
	allow("blocks", Allow{AnyPort: true, Peers: Peers{Prefixes: sorted(prefixes, comparePrefixes)}})
	for n := range ports {
		allow(fmt.Sprint("port ", n), Allow{Peers: Peers{Any: true}, Ports: []PortRange{{service.TCP, uint16(2 * n), uint16(2 * n)}}})
	}
}

// work is how many steps it takes to find out what all may reach.
func (s *senders) work() (all steps) {
	rules := s.rulesOutside()
	for _, k := range classesOf(rules, s.isolated) {
		left := steps(mostSteps)
		s.reach(append(rulesOf(rules, k.about), s.last(true)...), &left)
		all += mostSteps - left
	}
	return all
}

// closes checks how many pods of each namespace are closed: those with the highest addresses.
func (s *senders) closes(t *testing.T, most steps, want map[string]int) {
	t.Helper()
	_, closed := s.reaches(s.isolated, most)
	for namespace, pods := range s.of {
		var got []netip.Addr
		for _, a := range pods {
			if slices.Contains(closed, a) {
				got = append(got, a)
			}
		}
		if diff := cmp.Diff(pods[len(pods)-want[namespace]:], got, cmpopts.EquateComparable(netip.Addr{}), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("of %s's %d pods these are closed (-want +got):\n%s", namespace, len(pods), diff)
		}
	}
}

// TestReachOfNodeIsShared: a namespace with many small ways past the switch closes none of another's that
// needs no more than its share, be each of those dearer; and what one does not need is left to others.
func TestReachOfNodeIsShared(t *testing.T) {
	s := newSenders()
	for i := range 20 {
		s.pod("many", scattered(3020)[i:i+3000], 0) // some 6,000 each
	}
	for i := range 2 {
		s.pod("dear", scattered(7000+i), 0) // some 14,000 each
	}
	s.pod("small", scattered(3), 0)
	s.closes(t, mostStepsOfNode, map[string]int{"many": 14})
}

// TestReachClosesTheSame: which pods are closed does not follow from the order in which policies are told
// of; of those that need the same, the ones with the highest addresses are.
func TestReachClosesTheSame(t *testing.T) {
	s := newSenders()
	for i := range 12 {
		s.pod("shop", scattered(3020)[i:i+3000], 0) // some 6,000 each
	}
	_, want := s.Reaches(s.isolated)
	if len(want) != 2 || !slices.Equal(want, s.of["shop"][10:]) {
		t.Errorf("%v are closed", want)
	}
	for seed := range uint64(5) {
		rand.New(rand.NewPCG(seed, 0)).Shuffle(len(s.Egress.Allows), func(i, j int) {
			s.Egress.Allows[i], s.Egress.Allows[j] = s.Egress.Allows[j], s.Egress.Allows[i]
		})
		if _, got := s.Reaches(s.isolated); !slices.Equal(got, want) {
			t.Errorf("in another order %v are closed, not %v", got, want)
		}
	}
}

// TestReachWorkIsShared: all pods of a node have so many steps, however many there are of which policies
// say something else, and a namespace with much to find out takes none of another's share.
func TestReachWorkIsShared(t *testing.T) {
	s := newSenders()
	for i := range 20 {
		s.pod("busy", scattered(30)[i:i+1], 400) // some 4 million steps each
	}
	all := s.work()
	for i := range 3 {
		s.pod("quiet", scattered(100)[:50+i], 5)
	}
	s.closes(t, all+all/20, nil)
	s.closes(t, all/4+all/40, map[string]int{"busy": 15})
	// Another that needs no more than its share has it.
	for range 4 {
		s.pod("busier", scattered(1), 400)
	}
	s.closes(t, all/2, map[string]int{"busy": 15})
}

// TestReachWorkHasShares: where it is more work than it seems to find out what a namespace's pods may reach,
// others' steps are there still.
func TestReachWorkHasShares(t *testing.T) {
	s := newSenders()
	for range 4 {
		s.pod("plain", scattered(1), 400)
	}
	all := s.work()
	for range 3 { // each of their blocks has other ports
		s.pod("sly", nil, 100)
		a := s.of["sly"][len(s.of["sly"])-1]
		for n, p := range scattered(150) {
			s.Egress.Allows = append(s.Egress.Allows, Allow{
				Name: fmt.Sprint(a, p), Subjects: []netip.Addr{a}, Policies: []Key{{"sly", "a"}},
				Peers: Peers{Prefixes: []netip.Prefix{p}}, Ports: []PortRange{{service.TCP, uint16(30000 + 2*n), uint16(30000 + 2*n)}},
			})
		}
	}
	if more := s.work() - all; more < 2*all {
		t.Fatalf("these are %d steps more than %d", more, all)
	}
	s.closes(t, 2*all+all/10, map[string]int{"sly": 3})
}
