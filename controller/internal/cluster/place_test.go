package cluster

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// confirmed is what `netns nodes confirm` leaves.
func (s *scene) confirmed(host, ip string) *scene {
	s.nodeRecord(host, ip, "", "")
	n := s.records.Nodes[netip.MustParseAddr(ip)]
	n.Status = &topology.Status{Outcome: topology.Confirmed, By: "alice@desk"}
	s.records.Nodes[n.HostIP] = n
	return s
}

// TestPlaces has the table of docs/kubernetes.md, "Whose address it is": what one
// plan does, and what another one does when silence is over.
func TestPlaces(t *testing.T) {
	own := func() *scene { return newScene().nodeRecord("n1", "192.0.2.1", "172.11.0.0/22", "u-n1") }
	two := func() *scene { return own().nodeRecord("n2", "192.0.2.2", "172.11.4.0/22", "u-n2") }
	type events []string
	tests := map[string]struct {
		scene       *scene
		now, later  []string // writes
		says, still events   // reason and a part of the message
	}{
		"another node's address": {scene: two().node("n1", "", "192.0.2.2").node("n2", "", "192.0.2.2"),
			says: events{"NodeRefused 192.0.2.2 is the address of node n2, which keeps it, and this node's place in the network stays at 192.0.2.1"}},
		"another node's address, which it claims itself no more": {scene: two().node("n1", "", "192.0.2.2").node("n2", ""),
			says: events{"NodeRefused is the address of node n2", "NodeRefused no IPv4 InternalIP"}},
		"another node's address, which has moved on": {scene: two().node("n1", "", "192.0.2.2").node("n2", "", "192.0.2.3").reportsAt("192.0.2.1", "192.0.2.2"),
			says: events{"NodeRefused is the address of node n2", "NodeAddressWaiting stays at 192.0.2.2"}},
		"another node's address, by a newcomer": {scene: two().node("n0", "", "192.0.2.1").node("n1", "", "192.0.2.1").node("n2", "", "192.0.2.2"),
			says: events{"NodeRefused is the address of node n1, which keeps it: "}},
		"another node's address, beside its own": {scene: two().node("n1", "", "192.0.2.2", "192.0.2.1").node("n2", "", "192.0.2.2")},
		"addresses change places": {scene: two().node("n1", "", "192.0.2.2").node("n2", "", "192.0.2.1"),
			says: events{"NodeRefused is the address of node n2", "NodeRefused is the address of node n1"}},
		"a new address while the old one reports": {scene: own().node("n1", "", "192.0.2.9").reportsAt("192.0.2.1"),
			says: events{"NodeAddressWaiting `netns nodes confirm n1 192.0.2.9`"}},
		"a new address while the old one is silent": {scene: own().node("n1", "", "192.0.2.9").reportsAt("192.0.2.9"),
			later: []string{"192.0.2.1 deleted", "192.0.2.9 n1 uid=u-n1 172.11.0.0/22 assign (new)"},
			says:  events{"NodeAddressWaiting 192.0.2.9 now; its place in the network stays at 192.0.2.1 until the agent there has not reported for 2m0s"}},
		"a new address that was confirmed": {scene: own().node("n1", "", "192.0.2.9").confirmed("n1", "192.0.2.9").reportsAt("192.0.2.1"),
			now: []string{"192.0.2.1 deleted", "192.0.2.9 n1 uid=u-n1 172.11.0.0/22 assign"}},
		"confirmed, and not claimed": {scene: own().node("n1", "", "192.0.2.1").confirmed("n1", "192.0.2.9")},
		"confirmed for another": {scene: own().node("n1", "", "192.0.2.9").confirmed("n2", "192.0.2.9"),
			says: events{"NodeRefused 192.0.2.9 is the address of host n2, whose record follows no Node"}},
		"a host outside, claimed by a node": {scene: own().node("n1", "", "192.0.2.9").nodeRecord("lb", "192.0.2.9", "172.11.8.0/22", ""),
			says: events{"NodeRefused 192.0.2.9 is the address of host lb"}},
		"a host outside, claimed by a newcomer": {scene: newScene().node("n1", "", "192.0.2.9").nodeRecord("lb", "192.0.2.9", "172.11.8.0/22", ""),
			says: events{"NodeRefused netns nodes confirm n1 192.0.2.9` --force"}},
		"a host outside of no name": {scene: newScene().node("n1", "", "192.0.2.9").nodeRecord("", "192.0.2.9", "", ""),
			says: events{"NodeRefused is the address of host without a name"}},
		"registered anew": {scene: newScene().node("n1", "", "192.0.2.1").nodeRecord("n1", "192.0.2.1", "172.11.0.0/22", "old"),
			now: []string{"192.0.2.1 n1 uid=u-n1 172.11.0.0/22"}},
		"registered anew, and claimed by an older node": {scene: newScene().node("n0", "", "192.0.2.1").node("n1", "", "192.0.2.1").nodeRecord("n1", "192.0.2.1", "172.11.0.0/22", "old"),
			now: []string{"192.0.2.1 n1 uid=u-n1 172.11.0.0/22"}, says: events{"NodeRefused is the address of node n1, which is registered anew"}},
		"registered under another name": {scene: newScene().node("n9", "", "192.0.2.1").nodeRecord("n1", "192.0.2.1", "172.11.0.0/22", "old"),
			now: []string{"192.0.2.1 n9 uid=u-n9 172.11.0.0/22"}},
		"to the address of a node that is gone": {scene: own().node("n1", "", "192.0.2.2").nodeRecord("n2", "192.0.2.2", "172.11.4.0/22", "old"),
			now: []string{"192.0.2.2 deleted"}, later: []string{"192.0.2.1 deleted", "192.0.2.2 n1 uid=u-n1 172.11.0.0/22 assign"},
			says: events{"NodeAddressWaiting stays at 192.0.2.1"}},
		"a second record of its own": {scene: own().node("n1", "", "192.0.2.5").nodeRecord("n1", "192.0.2.5", "172.11.4.0/22", "u-n1"),
			now: []string{"192.0.2.1 deleted"}},
		"an unreadable record there": {scene: own().node("n1", "", "192.0.2.9").unreadable("192.0.2.9"),
			says: events{"NodeRefused cannot be used; mend or delete it"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			p := New(FromRecords)
			plan := p.Plan(test.scene.state(), now)
			if diff := cmp.Diff(test.now, words(plan)); diff != "" {
				t.Errorf("writes (-want +got):\n%s", diff)
			}
			if len(plan.Events) != len(test.says) {
				t.Fatalf("events %+v, want %q", plan.Events, test.says)
			}
			for i, e := range plan.Events {
				if reason, message, _ := strings.Cut(test.says[i], " "); string(e.Reason) != reason || !strings.Contains(e.Message, message) || !e.Warning {
					t.Errorf("event %+v, want %q", e, test.says[i])
				}
			}
			if test.later == nil {
				test.later = test.now
			}
			at := now
			for range 4 { // as the plans themselves ask for
				at = at.Add(silence / 4)
				if plan.Again.After(at) {
					t.Errorf("comes again at %v only", plan.Again)
				}
				plan = p.Plan(test.scene.state(), at)
			}
			if diff := cmp.Diff(test.later, words(plan)); diff != "" {
				t.Errorf("writes later (-want +got):\n%s", diff)
			}
		})
	}
}

// TestAddressesRefused: what a kubelet reports that cannot be its node's is told on its Node, once,
// beside what else is told of the Node.
func TestAddressesRefused(t *testing.T) {
	s := newScene().node("n1", "", "192.0.2.1").node("n2", "", "172.11.0.5")
	for name, n := range s.cluster.Nodes {
		n.Every = n.Addresses
		s.cluster.Nodes[name] = n
	}
	p := New(FromRecords)
	plan := p.Plan(s.state(), now)
	var said []string
	for _, e := range plan.Events {
		said = append(said, e.Object.Name+" "+string(e.Reason))
		if e.Reason == NodeAddressRefused && !strings.Contains(e.Message, "172.11.0.5 is inside the pod network") {
			t.Errorf("Event: %s", e.Message)
		}
	}
	if diff := cmp.Diff([]string{"n2 NodeRefused", "n2 NodeAddressRefused"}, said); diff != "" {
		t.Errorf("Events (-want +got)\n%s", diff)
	}
	if own := plan.Addresses; len(own["n1"].Own) != 1 || len(own["n2"].Own) != 0 {
		t.Errorf("addresses %+v", own)
	}
	if again := p.Plan(s.state(), now).Events; len(again) != 0 {
		t.Errorf("told again: %+v", again)
	}
}

func (s *scene) unreadable(ip string) *scene {
	s.records.Invalid["subnets/"+ip] = "not JSON"
	return s
}

// TestSilence: what counts is silence without a break.
func TestSilence(t *testing.T) {
	type step struct {
		after   time.Duration
		reports bool
		claims  string
		moves   bool
	}
	const elsewhere, home, quarter = "192.0.2.9", "192.0.2.1", silence / 4
	tests := map[string][]step{
		"without a break": {{0, false, elsewhere, false}, {quarter, false, elsewhere, false}, {quarter, false, elsewhere, false}, {quarter, false, elsewhere, false}, {quarter, false, elsewhere, true}},
		"reports once":    {{0, false, elsewhere, false}, {quarter, false, elsewhere, false}, {quarter, true, elsewhere, false}, {quarter, false, elsewhere, false}, {quarter, false, elsewhere, false}, {quarter, false, elsewhere, false}},
		"nobody listened": {{0, false, elsewhere, false}, {silence, false, elsewhere, false}, {silence, false, elsewhere, false}},
		"claims its own":  {{0, false, elsewhere, false}, {quarter, false, elsewhere, false}, {quarter, false, home, false}, {quarter, false, elsewhere, false}, {quarter, false, elsewhere, false}},
	}
	for name, steps := range tests {
		t.Run(name, func(t *testing.T) {
			p, at := New(FromRecords), now
			for i, step := range steps {
				at = at.Add(step.after)
				s := newScene().node("n1", "", step.claims).nodeRecord("n1", home, "172.11.0.0/22", "u-n1")
				if step.reports {
					s.reportsAt(home)
				}
				if got := len(words(p.Plan(s.state(), at))) > 0; got != step.moves {
					t.Errorf("step %d: moves %v, want %v", i, got, step.moves)
				}
			}
		})
	}
}

// TestPlacesAreKept: whatever Nodes claim, come, go and are called, a record whose Node
// is there never goes to another one, nor does one that people made go to a Node of
// another name.
func TestPlacesAreKept(t *testing.T) {
	for seed := range uint64(300) {
		random := rand.New(rand.NewPCG(seed, 1))
		h := &history{scene: newScene(), random: random, uids: map[string]int{}}
		p, at := New(FromRecords), now
		for step := range 60 {
			at = at.Add(time.Duration(random.IntN(3)) * silence / 4)
			did := h.disturb()
			plan := p.Plan(h.state(), at)
			before := h.records.Nodes
			h.carryOut(t, plan)
			for ip, was := range before {
				is, there := h.records.Nodes[ip]
				live := slices.ContainsFunc(h.nodes(), func(n kube.Node) bool { return n.UID == was.UID })
				switch {
				case live && there && is.UID != was.UID:
					t.Fatalf("seed %d step %d, %s: the record of %s at %s went to %s", seed, step, did, was.UID, ip, is.UID)
				case was.UID == "" && (!there || is.Host != was.Host):
					t.Fatalf("seed %d step %d, %s: the record that people made for %s at %s is now %+v", seed, step, did, was.Host, ip, is)
				}
			}
			h.oneEach(t)
		}
	}
}

// history is a cluster to which things happen.
type history struct {
	*scene
	random *rand.Rand
	uids   map[string]int
}

func (h *history) nodes() []kube.Node {
	var all []kube.Node
	for _, n := range h.cluster.Nodes {
		all = append(all, n)
	}
	return all
}

func (h *history) anyAddress() netip.Addr {
	return netip.AddrFrom4([4]byte{192, 0, 2, byte(1 + h.random.IntN(4))})
}

// disturb does one thing and says what.
func (h *history) disturb() string {
	name, ip := fmt.Sprintf("n%d", h.random.IntN(3)), h.anyAddress()
	n, there := h.cluster.Nodes[name]
	what := h.random.IntN(7)
	switch {
	case what == 0:
		delete(h.cluster.Nodes, name)
		return name + " goes"
	case what == 1:
		h.reporting[ip] = !h.reporting[ip]
		return fmt.Sprintf("reports at %s: %v", ip, h.reporting[ip])
	case what == 2 && there:
		n.Addresses = nil
		h.cluster.Nodes[name] = n
		return name + " claims nothing"
	case what == 3:
		if _, taken := h.records.Nodes[ip]; !taken {
			h.confirmed(name, ip.String())
		}
		return fmt.Sprintf("%s confirmed for %s", ip, name)
	case !there:
		h.uids[name]++
		h.node(name, "", ip.String())
		n = h.cluster.Nodes[name]
		n.UID = fmt.Sprintf("u-%s-%d", name, h.uids[name])
	case what == 4:
		n.Addresses = append(n.Addresses, ip)
	default:
		n.Addresses = []netip.Addr{ip}
	}
	h.cluster.Nodes[name] = n
	return fmt.Sprintf("%s claims %v", name, n.Addresses)
}

// carryOut does what a plan says, as etcd would.
func (h *history) carryOut(t *testing.T, p Plan) {
	t.Helper()
	nodes, revs := map[netip.Addr]topology.Node{}, map[netip.Addr]store.Rev{}
	for ip, n := range h.records.Nodes {
		nodes[ip], revs[ip] = n, h.records.Revs.Nodes[ip]
	}
	for _, w := range p.Writes {
		ip := netip.MustParseAddr(w.Key)
		if revs[ip].Mod != w.Revision {
			t.Fatalf("write of %s at revision %d, want %d", w.Key, w.Revision, revs[ip].Mod)
		}
		if w.Delete {
			delete(nodes, ip)
			delete(revs, ip)
			continue
		}
		h.age++
		nodes[ip], revs[ip] = *w.Node, store.Rev{Mod: h.age, Create: h.age}
	}
	h.records.Nodes, h.records.Revs.Nodes = nodes, revs
}

// oneEach: a Node has one record at most.
func (h *history) oneEach(t *testing.T) {
	t.Helper()
	seen := map[string]netip.Addr{}
	for ip, n := range h.records.Nodes {
		if other, twice := seen[n.UID]; twice && n.UID != "" {
			t.Fatalf("%s has the records %s and %s", n.UID, ip, other)
		}
		seen[n.UID] = ip
	}
}
