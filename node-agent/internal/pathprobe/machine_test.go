package pathprobe

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
)

var usual = timing{interval: 10 * time.Second, retry: time.Second, recheck: time.Minute}

const floor = 626

// network is a machine, a clock and paths.
type network struct {
	t       *testing.T
	m       *machine
	now     time.Time
	paths   map[netip.Addr]*path
	pending []arrival
	random  *rand.Rand
	sent    int
	bytes   int
}

// path is what lies between the node and a peer.
type path struct {
	carries, theirs int
	silent          bool
	loss            float64
	rtt             time.Duration
}

type arrival struct {
	at    time.Time
	from  netip.Addr
	nonce uint64
}

func newNetwork(t *testing.T, own int, paths ...*path) *network {
	n := &network{t: t, now: time.Unix(1000, 0), paths: map[netip.Addr]*path{}, random: rand.New(rand.NewPCG(1, 2))}
	nonce := uint64(0)
	n.m = newMachine(usual, floor, func() uint64 { nonce++; return nonce })
	peers := map[netip.Addr]int{}
	for i, p := range paths {
		n.paths[address(i)] = p
		peers[address(i)] = own
	}
	n.m.setPeers(n.now, peers)
	return n
}

func address(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, byte(2 + i>>8), byte(i)}) }

// run lets time pass.
func (n *network) run(d time.Duration) {
	for end := n.now.Add(d); n.now.Before(end); {
		probes, next := n.m.step(n.now)
		for _, pr := range probes {
			p := n.paths[pr.peer]
			n.sent++
			n.bytes += max(pr.size, 44)
			if !p.silent && pr.size <= p.carries && n.random.Float64() >= p.loss {
				n.pending = append(n.pending, arrival{n.now.Add(p.rtt), pr.peer, pr.nonce})
			}
		}
		first := -1
		for i, a := range n.pending {
			if !a.at.After(next) && (first < 0 || a.at.Before(n.pending[first].at)) {
				first = i
			}
			if !a.at.After(n.now) {
				break
			}
		}
		if first < 0 {
			if !next.After(n.now) {
				n.t.Fatalf("nothing to wait for at %s", n.now)
			}
			n.now = next
			continue
		}
		a := n.pending[first]
		n.pending = append(n.pending[:first], n.pending[first+1:]...)
		if a.at.After(n.now) {
			n.now = a.at
		}
		n.m.answer(n.now, a.from, a.nonce, n.paths[a.from].theirs, false)
	}
}

// until lets time pass until the first peer's verdict is size, and returns how long
// that took.
func (n *network) until(size int, limit time.Duration) time.Duration {
	n.t.Helper()
	began := n.now
	for n.m.holes()[address(0)] != size {
		if n.now.Sub(began) > limit {
			n.t.Fatalf("verdict is %d and not %d after %s", n.m.holes()[address(0)], size, limit)
		}
		n.run(100 * time.Millisecond)
	}
	return n.now.Sub(began)
}

func TestBlackHoleComesAndGoes(t *testing.T) {
	for _, own := range []int{1500, 9000, 65535} {
		for _, rtt := range []time.Duration{0, 300 * time.Millisecond} {
			p := &path{carries: own, theirs: own, rtt: rtt}
			n := newNetwork(t, own, p)
			n.run(time.Minute)
			n.until(0, 0)
			for _, size := range []int{1400, 1399, 1280, floor} {
				p.carries = size
				took := n.until(size, 30*time.Second)
				t.Logf("%d -> %d, round trip %s: found within %s", own, size, rtt, took)
			}
			p.carries = 700 // partly mended
			n.until(700, 2*time.Minute)
			p.carries = own
			n.until(0, 2*time.Minute)
		}
	}
}

// A peer that has answered and is silent for a minute is named until it answers again; one that never answered is not.
func TestSilent(t *testing.T) {
	p, never := &path{carries: 1500, theirs: 1500}, &path{silent: true}
	n := newNetwork(t, 1500, p, never)
	is := func(when string, want ...netip.Addr) {
		t.Helper()
		if got := n.m.silent(n.now); !slices.Equal(got, want) {
			t.Errorf("%s: %v are silent, want %v", when, got, want)
		}
	}
	n.run(5 * time.Minute)
	is("it answers")
	p.silent = true
	n.run(30 * time.Second)
	is("for half a minute it has not")
	n.run(time.Minute)
	is("for a minute and a half it has not", address(0))
	p.silent = false
	n.run(15 * time.Second)
	is("it answers again")
}

// A peer's smaller link is no black hole, nor is one of its own.
func TestSmallerLinks(t *testing.T) {
	p := &path{carries: 1500, theirs: 1500}
	n := newNetwork(t, 9000, p)
	n.run(30 * time.Second)
	n.until(0, 0)
	p.carries, p.theirs = 1400, 1400
	n.run(40 * time.Second)
	n.until(0, 0)
	p.carries, p.theirs = 9000, 9000
	n.run(40 * time.Second)
	n.m.setPeers(n.now, map[netip.Addr]int{address(0): 1280})
	p.carries = 1280
	n.run(40 * time.Second)
	n.until(0, 0)
}

// A hole that is no narrower than what is needed now is none any more.
func TestHoleBecomesWideEnough(t *testing.T) {
	p := &path{carries: 1400, theirs: 1500}
	n := newNetwork(t, 1500, p)
	n.until(1400, 30*time.Second)
	n.m.news = false
	n.m.setPeers(n.now, map[netip.Addr]int{address(0): 1350})
	n.until(0, 0)
	if !n.m.news {
		t.Error("nobody was told")
	}
	n.run(time.Minute)
	n.until(0, 0)
}

func TestSilentIsNotJudged(t *testing.T) {
	p := &path{carries: 1500, theirs: 1500, silent: true}
	n := newNetwork(t, 1500, p)
	n.run(5 * time.Minute)
	n.until(0, 0)
	p.silent = false
	n.run(time.Minute)
	p.silent = true // its agent is away
	n.run(5 * time.Minute)
	n.until(0, 0)
	p.silent, p.carries = false, 1300
	n.until(1300, 30*time.Second)
	p.silent = true
	n.run(5 * time.Minute)
	n.until(1300, 0)
	n.m.setPeers(n.now, nil)
	n.until(0, 0)
}

// Losses alone make no black hole, however many: pods that overload the uplink would
// change the MTU of the cluster. And a few of them do not hide one.
func TestLoss(t *testing.T) {
	for _, loss := range []float64{0.1, 0.3, 0.5, 0.7} {
		p := &path{carries: 1500, theirs: 1500, loss: loss}
		n := newNetwork(t, 1500, p)
		for range 3000 {
			n.run(10 * time.Second)
			if hole := n.m.holes()[address(0)]; hole != 0 {
				t.Fatalf("a path that loses %.0f %% is judged a black hole of %d", 100*loss, hole)
			}
		}
	}
	p := &path{carries: 1400, theirs: 1500, loss: 0.1}
	newNetwork(t, 1500, p).until(1400, 2*time.Minute)
}

// What probing costs a node of a large cluster, and that a hole before all peers
// is found for all at no great cost.
func TestCostOfManyPeers(t *testing.T) {
	paths := make([]*path, 1000)
	for i := range paths {
		paths[i] = &path{carries: 1500, theirs: 1500}
	}
	n := newNetwork(t, 1500, paths...)
	n.run(30 * time.Second)
	n.sent, n.bytes = 0, 0
	n.run(100 * time.Second)
	t.Logf("%.1f datagrams/s, %.2f Mbit/s", float64(n.sent)/100, float64(n.bytes)*8/100/1e6)
	if n.sent > 11000 {
		t.Errorf("%d datagrams in 100 s", n.sent)
	}
	for _, p := range paths {
		p.carries = 1400
	}
	n.sent, n.bytes = 0, 0
	n.run(30 * time.Second)
	t.Logf("black hole: %.1f datagrams/s, %.2f Mbit/s", float64(n.sent)/30, float64(n.bytes)*8/30/1e6)
	if got := len(n.m.holes()); got != len(paths) {
		t.Errorf("%d of %d black holes found within 30 s", got, len(paths))
	}
	if n.sent > 30*1000 {
		t.Errorf("%d datagrams in 30 s", n.sent)
	}
	n.run(time.Minute)
	n.sent, n.bytes = 0, 0
	n.run(5 * time.Minute)
	t.Logf("behind it: %.1f datagrams/s, %.2f Mbit/s", float64(n.sent)/300, float64(n.bytes)*8/300/1e6)
}

// BenchmarkStep is what finding the next probe costs among 1,000 peers, 100 times a second.
func BenchmarkStep(b *testing.B) {
	m := newMachine(usual, floor, func() uint64 { return 1 })
	now := time.Unix(1000, 0)
	own := map[netip.Addr]int{}
	for i := range 1000 {
		own[address(i)] = 1500
	}
	m.setPeers(now, own)
	for b.Loop() {
		m.step(now.Add(-time.Second))
	}
}
