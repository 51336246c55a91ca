package mtu

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// world is a cluster with an etcd: revision r of the history is index r.
type world struct {
	t       *testing.T
	random  *rand.Rand
	history []map[netip.Addr]topology.NodeMTU
	mod     map[netip.Addr]int
	nodes   []*simulated
	story   []string
}

// simulated is an agent that sees history with a delay and writes with one.
type simulated struct {
	ip      netip.Addr
	carries int
	// arrives is the largest that can come to it at all; 0 where it does not know, and all comes.
	arrives int
	has     Values
	seen    int
	// wrote is the revision of the last write, if known.
	wrote int
	known bool
	// inFlight are writes that may come to pass: the last is waited for.
	inFlight []flight
	waiting  bool
}

type flight struct {
	record topology.NodeMTU
	mod    int
}

func newWorld(t *testing.T, random *rand.Rand) *world {
	return &world{t: t, random: random, history: []map[netip.Addr]topology.NodeMTU{{}}, mod: map[netip.Addr]int{}}
}

func (w *world) join(carries int) {
	n := &simulated{ip: netip.AddrFrom4([4]byte{192, 0, 2, byte(len(w.nodes) + 1)}), carries: carries, arrives: w.link(carries), has: Nothing}
	n.seen = len(w.history) - 1
	w.nodes = append(w.nodes, n)
	w.tell(n, "joins, carries %d", carries)
}

// link is what can arrive at a node that carries so much: a link of just that, a larger one
// behind which a path or the configuration is in the way, or one that is not known.
func (w *world) link(carries int) int { return []int{carries, 8950, 0}[w.random.IntN(3)] }

func (w *world) tell(n *simulated, format string, args ...any) {
	w.story = append(w.story, fmt.Sprintf("%s ", n.ip)+fmt.Sprintf(format, args...))
}

// act is one pass of an agent.
func (w *world) act(n *simulated) {
	view := View{
		Self: n.ip, Records: topology.MTUs{Revision: int64(n.seen), Nodes: w.history[n.seen]},
		Floor: topology.FloorMTU, Arrives: n.arrives, Confirmed: n.known && !n.waiting && n.seen >= n.wrote,
	}
	set, write := view.Agree(n.carries, n.has)
	if set != n.has {
		w.tell(n, "sets %v at revision %d", set, n.seen)
	}
	n.has = set
	record := topology.NodeMTU{HostIP: n.ip, Carries: n.carries, Receives: write.Receives, Sends: write.Sends}
	if n.waiting || n.known && (!view.Confirmed || w.history[n.seen][n.ip] == record) {
		return
	}
	n.waiting = true
	n.inFlight = append(n.inFlight, flight{record, w.mod[n.ip]})
}

// land brings a write to etcd; one that is not waited for any more may still land.
func (w *world) land(n *simulated, i int) {
	f := n.inFlight[i]
	last := i == len(n.inFlight)-1
	n.inFlight = append(n.inFlight[:i:i], n.inFlight[i+1:]...)
	ok := w.mod[n.ip] == f.mod
	if ok {
		next := maps.Clone(w.history[len(w.history)-1])
		next[n.ip] = f.record
		w.history = append(w.history, next)
		w.mod[n.ip] = len(w.history) - 1
		w.tell(n, "writes %d/%d/%d as revision %d", f.record.Carries, f.record.Receives, f.record.Sends, w.mod[n.ip])
	}
	if last && n.waiting {
		n.waiting, n.known = false, ok && w.random.IntN(8) > 0 // or the answer is lost
		n.wrote = w.mod[n.ip]
	}
}

// restart forgets all but what is set on devices.
func (w *world) restart(n *simulated) {
	w.tell(n, "restarts")
	n.known, n.waiting, n.seen = false, false, len(w.history)-1
}

func (w *world) check() {
	for _, a := range w.nodes {
		for _, b := range w.nodes {
			comes := a.has.Sends
			if a != b && b.arrives > 0 {
				comes = min(comes, b.arrives) // what is larger ends on the way
			}
			if comes > b.has.Receives {
				for _, s := range w.story {
					w.t.Log(s)
				}
				w.t.Fatalf("%s sends %d, %s receives %d", a.ip, a.has.Sends, b.ip, b.has.Receives)
			}
		}
	}
}

func (w *world) step() {
	n := w.nodes[w.random.IntN(len(w.nodes))]
	switch p := w.random.IntN(100); {
	case p < 4:
		n.carries = []int{1280, 1350, 1400, 1450, 8950}[w.random.IntN(5)]
		n.arrives = w.link(n.carries)
		w.tell(n, "carries %d, and %d arrive", n.carries, n.arrives)
		w.act(n) // it is the agent that sees its link change
	case p < 5 && len(w.nodes) < 6:
		w.join(1450)
	case p < 6:
		w.restart(n)
	case p < 7:
		n.waiting, n.known = false, false // gave up waiting; its fate is not known
	case p < 40:
		n.seen += w.random.IntN(len(w.history) - n.seen)
	case p < 60 && len(n.inFlight) > 0:
		w.land(n, w.random.IntN(len(n.inFlight)))
	default:
		w.act(n)
	}
	w.check()
}

// settle lets all come to rest, in any order, and returns how many rounds it took.
func (w *world) settle() int {
	for round := 1; ; round++ {
		before := len(w.history)
		busy := false
		for _, i := range w.random.Perm(len(w.nodes)) {
			n := w.nodes[i]
			n.seen = len(w.history) - 1
			was := n.has
			w.act(n)
			w.check()
			for len(n.inFlight) > 0 {
				w.land(n, len(n.inFlight)-1)
			}
			busy = busy || n.has != was || n.waiting || !n.known
		}
		if !busy && len(w.history) == before {
			return round
		}
		if round > 50 {
			w.t.Fatalf("does not come to rest: %v", w.story[len(w.story)-40:])
		}
	}
}

// However late nodes see what others write, whatever of it is lost, and however
// what they carry changes: nobody sends what somebody does not take, and in the end
// all have the least.
func TestAgreeInAnyOrder(t *testing.T) {
	for seed := range uint64(1500) {
		random := rand.New(rand.NewPCG(seed, 1))
		w := newWorld(t, random)
		for range 1 + random.IntN(4) {
			w.join([]int{1400, 1450, 8950}[random.IntN(3)])
		}
		for range 300 {
			w.step()
		}
		w.settle()
		least := w.nodes[0].carries
		for _, n := range w.nodes {
			least = min(least, n.carries)
		}
		for _, n := range w.nodes {
			if want := (Values{least, least}); n.has != want {
				t.Fatalf("seed %d: %s has %v at rest, want %v", seed, n.ip, n.has, want)
			}
		}
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// A change of T takes a few rounds of writing, not one for each node.
func TestAgreeIsQuick(t *testing.T) {
	w := newWorld(t, rand.New(rand.NewPCG(1, 1)))
	for range 40 {
		w.join(1450)
	}
	w.settle()
	for _, carries := range []int{1400, 1450} {
		before := len(w.history)
		w.nodes[7].carries = carries
		rounds := w.settle()
		writes := float64(len(w.history)-before) / float64(len(w.nodes))
		t.Logf("to %d: %d rounds, %.1f writes a node", carries, rounds, writes)
		if rounds > 7 || writes > 3 {
			t.Errorf("to %d: %d rounds and %.1f writes a node", carries, rounds, writes)
		}
	}
}

// Without a view a node still sends less when its own link shrinks, and no more
// when it grows.
func TestAgreeAlone(t *testing.T) {
	self := netip.MustParseAddr("192.0.2.1")
	at := Values{1450, 1450}
	view := View{Self: self, Records: topology.MTUs{Nodes: map[netip.Addr]topology.NodeMTU{self: {HostIP: self, Carries: 1450, Receives: 1450, Sends: 1450}}}}
	if set, _ := view.Agree(1350, at); set != (Values{1450, 1350}) {
		t.Errorf("link shrinks: %v", set)
	}
	if set, _ := view.Agree(8950, at); set != (Values{8950, 1450}) {
		t.Errorf("link grows: %v", set)
	}
}

// TestAgreeWithLies: one node's record, whatever it says, makes no other node send less than the
// floor, nor receive more than can arrive. An honest one counts, also of an older agent.
func TestAgreeWithLies(t *testing.T) {
	ip := func(last byte) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, last}) }
	at := Values{1450, 1450}
	for name, test := range map[string]struct {
		third     topology.NodeMTU
		set       Values
		ignored   int
		floor, up int
	}{
		"honest, and smaller":           {topology.NodeMTU{Carries: 1400, Receives: 1450, Sends: 1400}, Values{1450, 1400}, 0, topology.FloorMTU, 1450},
		"the least that counts":         {topology.NodeMTU{Carries: 1210, Receives: 1450, Sends: 1210}, Values{1450, 1210}, 0, topology.FloorMTU, 1450},
		"carries nothing":               {topology.NodeMTU{Carries: 576, Receives: 576, Sends: 576}, at, 1, topology.FloorMTU, 1450},
		"receives nothing":              {topology.NodeMTU{Carries: 1450, Receives: 576, Sends: 1450}, at, 1, topology.FloorMTU, 1450},
		"sends all there can be":        {topology.NodeMTU{Carries: 65535, Receives: 65535, Sends: 65535}, at, 0, topology.FloorMTU, 1450},
		"carries nothing, sends all":    {topology.NodeMTU{Carries: 576, Receives: 576, Sends: 65535}, at, 1, topology.FloorMTU, 1450},
		"sends what may arrive":         {topology.NodeMTU{Carries: 1450, Receives: 1450, Sends: 8950}, Values{8950, 1450}, 0, topology.FloorMTU, 8950},
		"small, as the operator has it": {topology.NodeMTU{Carries: 1000, Receives: 1450, Sends: 1000}, Values{1450, 1000}, 0, 1000, 1450},
	} {
		test.third.HostIP = ip(3)
		v := View{Self: ip(1), Floor: test.floor, Arrives: test.up, Confirmed: true, Records: topology.MTUs{Nodes: map[netip.Addr]topology.NodeMTU{
			ip(1): {HostIP: ip(1), Carries: 1450, Receives: 1450, Sends: 1450}, ip(2): {HostIP: ip(2), Carries: 1450, Receives: 1450, Sends: 1450}, ip(3): test.third,
		}}}
		if set, _ := v.Agree(1450, at); set != test.set {
			t.Errorf("%s: sets %v, want %v", name, set, test.set)
		}
		if ignored := v.Ignored(); len(ignored) != test.ignored || test.ignored > 0 && ignored[0] != ip(3) {
			t.Errorf("%s: ignores %v", name, ignored)
		}
	}
}

// TestNarrowPath: a peer that answers small probes alone, or to which only a small route is left,
// makes nobody send less than the floor; what is too large for it is known.
func TestNarrowPath(t *testing.T) {
	a, b := netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3")
	node := func(link int, paths ...Path) Node {
		return Node{Overhead: 50, Link: "eth0", LinkMTU: link, Policy: Clamp, Paths: paths}
	}
	for name, test := range map[string]struct {
		node   Node
		want   int
		narrow int
	}{
		"small probes alone":     {node(1500, Path{Peer: a, MTU: 1500, Overhead: 50, Measured: 626}, Path{Peer: b, MTU: 1500, Overhead: 50}), 1450, 1},
		"a small route":          {node(1500, Path{Peer: a, MTU: 600, Overhead: 50}, Path{Peer: b, MTU: 1400, Overhead: 50}), 1350, 1},
		"the least that counts":  {node(1500, Path{Peer: a, MTU: 1500, Overhead: 50, Measured: 1260}), 1210, 0},
		"a small link":           {node(1000, Path{Peer: a, MTU: 1000, Overhead: 50}), 950, 0},
		"a link smaller than it": {node(1000, Path{Peer: a, MTU: 1000, Overhead: 50, Measured: 626}, Path{Peer: b, MTU: 1000, Overhead: 50}), 950, 1},
		"routes alone are small": {node(0, Path{Peer: a, MTU: 1000, Overhead: 50}), 950, 0},
		"one route of them is":   {node(0, Path{Peer: a, MTU: 600, Overhead: 50}, Path{Peer: b, MTU: 1500, Overhead: 50}), 1450, 1},
		"routes, small probes":   {node(0, Path{Peer: a, MTU: 1500, Overhead: 50, Measured: 626}), 1450, 1},
		"routes, small of small": {node(0, Path{Peer: a, MTU: 1000, Overhead: 50, Measured: 626}), 950, 1},
	} {
		c := test.node.Capacity()
		if c.Carries != test.want || len(c.TooNarrow) != test.narrow {
			t.Errorf("%s: carries %d by %s, too narrow %v; want %d, %d peers", name, c.Carries, c.Limit, c.TooNarrow, test.want, test.narrow)
		}
		if takes := c.Paths[a]; test.narrow > 0 && takes != 576 && takes != 550 {
			t.Errorf("%s: the path takes %d", name, takes)
		}
	}
}

// TestFloorOfSmallLinks: in a cluster whose links are all small the records of others count as in any other; who
// has a smaller link than most is the one to know it, and a single node's record makes nobody think so.
func TestFloorOfSmallLinks(t *testing.T) {
	ip := func(last byte) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, last}) }
	link := func(mtu, configured int) Node { return Node{Overhead: 50, LinkMTU: mtu, Configured: configured} }
	record := func(mtu int) topology.NodeMTU { return topology.NodeMTU{Carries: mtu, Receives: mtu, Sends: mtu} }
	for name, test := range map[string]struct {
		node           Node
		others         []topology.NodeMTU
		floor, cluster int
		unheeded       bool
	}{
		"all small":             {link(1250, 0), []topology.NodeMTU{record(1200), record(1200)}, 1200, 1200, false},
		"all small but one":     {link(1250, 0), []topology.NodeMTU{record(1200), record(9000)}, 1200, 1200, false},
		"one lies":              {link(1250, 0), []topology.NodeMTU{record(1200), record(576)}, 1200, 1200, false},
		"small among large":     {link(1250, 0), []topology.NodeMTU{record(1450), record(1450)}, 1200, 1200, true},
		"of two nodes":          {link(1250, 0), []topology.NodeMTU{record(1450)}, 1200, 1200, true},
		"smaller among small":   {link(1000, 0), []topology.NodeMTU{record(1200), record(1200)}, 950, 950, true},
		"large, older agents":   {link(1250, 0), []topology.NodeMTU{{Carries: 1450, Receives: 1450, Sends: 1200}}, 1200, 1200, false},
		"--mtu on all":          {link(1500, 1200), []topology.NodeMTU{record(1200), record(1200)}, 1200, 1200, false},
		"--mtu on the first":    {link(1500, 1000), []topology.NodeMTU{record(1450), record(1450)}, 1000, 1000, false},
		"large among small":     {link(1500, 0), []topology.NodeMTU{record(1200), record(1200)}, topology.FloorMTU, 1450, false},
		"a link that is larger": {link(1350, 0), []topology.NodeMTU{record(1450), record(1450)}, topology.FloorMTU, 1300, false},
	} {
		v := View{Self: ip(1), Floor: test.node.Floor(), Arrives: test.node.Arrives(), Records: topology.MTUs{Nodes: map[netip.Addr]topology.NodeMTU{}}}
		for i, r := range test.others {
			v.Records.Nodes[ip(byte(i+2))] = r
		}
		own := test.node.Capacity().Carries
		if v.Floor != test.floor || v.Cluster(own) != test.cluster || v.Unheeded(own) != test.unheeded {
			t.Errorf("%s: floor %d, cluster %d, unheeded %v; want %d, %d, %v", name, v.Floor, v.Cluster(own), v.Unheeded(own), test.floor, test.cluster, test.unheeded)
		}
	}
}

// TestArrives: what can come is by devices alone.
func TestArrives(t *testing.T) {
	path := func(mtu, overhead int) Path {
		return Path{Peer: netip.MustParseAddr("192.0.2.2"), MTU: mtu, Overhead: overhead, Measured: 1300}
	}
	for name, test := range map[string]struct {
		node Node
		want int
	}{
		"a link":                                  {Node{Overhead: 50, LinkMTU: 1500, Configured: 1000, Paths: []Path{path(1400, 50)}}, 1450},
		"another device is larger":                {Node{Overhead: 50, LinkMTU: 1500, Paths: []Path{path(9000, 50)}}, 8950},
		"a tunnel that adds less":                 {Node{Overhead: 70, LinkMTU: 1500, Paths: []Path{path(1500, 50)}}, 1450},
		"routes alone, on whatever they stand on": {Node{Overhead: 50, Paths: []Path{path(1400, 50)}}, 0},
	} {
		if got := test.node.Arrives(); got != test.want {
			t.Errorf("%s: %d, want %d", name, got, test.want)
		}
	}
}
