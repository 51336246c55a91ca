package tunnelprobe

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// fresh is for how long an answer counts in tests.
const fresh = 30 * time.Second

// mesh is a machine, a clock, and other nodes.
type mesh struct {
	t       *testing.T
	m       *machine
	now     time.Time
	others  []*other
	sent    int
	nonces  uint64
	doubted []netip.Addr
}

// other is a node: what it says of itself outside of the tunnels, and whether it can be heard there and through them.
type other struct {
	Node
	listens, outside, through bool
	answered                  time.Time
	// saidListens is what it said when it answered last.
	saidListens bool
}

func newMesh(t *testing.T, n int) *mesh {
	w := &mesh{t: t, now: time.Unix(1e9, 0)}
	w.m = newMachine(func() uint64 { w.nonces++; return w.nonces }, w, fresh)
	var nodes []Node
	for i := range n {
		var at [4]byte
		binary.BigEndian.PutUint32(at[:], uint32(i+1))
		o := &other{Node: Node{Tunnel: netip.AddrFrom4([4]byte{198, 18, at[2], at[3]}), Overlay: netip.AddrFrom4([4]byte{172, 11, at[2], at[3]})}, listens: true, outside: true, through: true}
		w.others = append(w.others, o)
		nodes = append(nodes, o.Node)
	}
	w.m.setNodes(nodes)
	w.Ask(w.tunnels())
	return w
}

func (w *mesh) tunnels() (out []netip.Addr) {
	for _, o := range w.others {
		out = append(out, o.Tunnel)
	}
	return out
}

func (w *mesh) Ask(nodes []netip.Addr) {
	for _, o := range w.others {
		if o.outside && slices.Contains(nodes, o.Tunnel) {
			o.answered, o.saidListens = w.now.Add(time.Millisecond), o.listens
		}
	}
}

// probe is the probes of paths, to all every 10 s.
func (w *mesh) probe() {
	for _, o := range w.others {
		if o.outside && w.now.Sub(o.answered) > 10*time.Second {
			o.answered, o.saidListens = w.now, o.listens
		}
	}
}

func (w *mesh) Answered(node netip.Addr) (time.Time, bool) {
	for _, o := range w.others {
		if o.Tunnel == node {
			return o.answered, o.saidListens
		}
	}
	return time.Time{}, false
}

// rounds goes on for a while.
func (w *mesh) rounds(during time.Duration) {
	for end := w.now.Add(during); w.now.Before(end); {
		w.probe()
		ask, doubt, lasts := w.m.round(w.now)
		w.sent += len(ask)
		w.doubted = append(w.doubted, doubt...)
		w.Ask(doubt)
		for _, q := range ask {
			for _, o := range w.others {
				if o.Node == q.to && o.through && o.listens {
					w.m.answer(w.now.Add(time.Millisecond), o.Overlay, q.nonce)
				}
			}
		}
		w.now = w.now.Add(lasts)
	}
}

// want compares which nodes are cut off.
func (w *mesh) want(when string, all bool, cut ...netip.Addr) {
	w.t.Helper()
	w.rounds(0)
	got, gotAll := w.m.cut()
	if diff := cmp.Diff(cut, got, cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Addr{})); diff != "" || gotAll != all {
		w.t.Errorf("%s: all are cut off: %t, want %t (-want +got):\n%s", when, gotAll, all, diff)
	}
}

func TestCut(t *testing.T) {
	w := newMesh(t, 3)
	a, b, c := w.others[0], w.others[1], w.others[2]
	w.rounds(time.Minute)
	w.want("all answer", false)
	if len(w.doubted) > 0 {
		t.Errorf("%v are asked outside of the tunnels though they answer", w.doubted)
	}
	a.through = false
	w.rounds(8 * time.Second)
	w.want("one is cut off", false, a.Tunnel)
	b.through, c.through = false, false
	w.rounds(8 * time.Second)
	w.want("all are", true, a.Tunnel, b.Tunnel, c.Tunnel)
	b.through = true
	w.rounds(4 * time.Second)
	w.want("one answers again", false, a.Tunnel, c.Tunnel)
	a.through, c.through = true, true
	w.rounds(4 * time.Second)
	w.want("all do", false)
}

// What a node that is away, restarts, or is of another release does not answer proves nothing.
func TestNotJudged(t *testing.T) {
	w := newMesh(t, 3)
	away, former, starts := w.others[0], w.others[1], w.others[2]
	former.listens = false
	w.Ask(w.tunnels())
	w.rounds(10 * time.Second)
	w.want("one of another release", false)
	away.outside, away.through = false, false
	starts.listens = false
	w.rounds(time.Minute)
	w.want("one is away, and one was downgraded", false)
	before := w.sent
	w.rounds(time.Minute)
	if n := w.sent - before; n > 20 {
		t.Errorf("%d questions in a minute to a node that is away, want one each round", n)
	}
	starts.listens = true
	w.Ask(w.tunnels())
	w.rounds(10 * time.Second)
	w.want("it is of this release again", false)
	away.outside = true
	w.rounds(10 * time.Second)
	w.want("the other one is back, not through the tunnel", false, away.Tunnel)
}

// TestAwayAfterwards: a node that is cut off and then goes away proves nothing any more, and one that starts is not taken
// for one that is cut off.
func TestAwayAfterwards(t *testing.T) {
	w := newMesh(t, 1)
	one := w.others[0]
	one.through = false
	w.rounds(15 * time.Second)
	w.want("it is cut off", true, one.Tunnel)
	one.outside = false
	w.rounds(fresh + 20*time.Second)
	w.want("it is away", false)
	before := w.sent
	w.rounds(time.Hour)
	if w.sent != before {
		t.Errorf("%d questions to a node that is away", w.sent-before)
	}
	one.outside = true
	for range 3 {
		w.rounds(alarmed)
		w.want("it starts", false)
	}
	one.through = true
	w.rounds(10 * time.Second)
	w.want("it is there", false)
	one.through = false
	w.rounds(5 * time.Second)
	w.m.rest()
	w.want("this node was not well", false)
}

// TestFew: one of few that listen among many nodes says nothing of this node.
func TestFew(t *testing.T) {
	w := newMesh(t, 10)
	for i, o := range w.others {
		o.through, o.listens = false, i < 4
	}
	w.Ask(w.tunnels())
	w.rounds(20 * time.Second)
	if cut, all := w.m.cut(); len(cut) != 4 || all {
		t.Errorf("%d are cut off, all: %t; want 4 of 10", len(cut), all)
	}
}

// TestMany: each round asks few, all in turn, and those that are cut off are no reason to pass over the others.
func TestMany(t *testing.T) {
	w := newMesh(t, 500)
	w.rounds(calm)
	if w.sent != perRound {
		t.Errorf("a round asks %d nodes, want %d", w.sent, perRound)
	}
	for _, o := range w.others[:100] {
		o.through = false
	}
	w.rounds(10 * time.Minute)
	if cut, all := w.m.cut(); len(cut) != 100 || all {
		t.Errorf("%d are cut off, all: %t; want 100 of them", len(cut), all)
	}
	for _, o := range w.others {
		o.through = false
	}
	w.rounds(15 * time.Second)
	if cut, all := w.m.cut(); len(cut) < 100 || !all {
		t.Errorf("%d are cut off, all: %t; want all to be said within 15 s", len(cut), all)
	}
	for _, o := range w.others {
		o.through = true
	}
	w.rounds(10 * time.Second)
	if cut, all := w.m.cut(); all {
		t.Errorf("%d are cut off, all: %t; want not all as soon as some answer", len(cut), all)
	}
	w.rounds(10 * time.Minute)
	w.want("all answer again", false)
}

// TestSetNodes: what is known of a node goes with it, and with its address.
func TestSetNodes(t *testing.T) {
	w := newMesh(t, 2)
	w.others[0].through = false
	w.rounds(10 * time.Second)
	w.want("one is cut off", false, w.others[0].Tunnel)
	w.m.setNodes([]Node{w.others[1].Node})
	w.want("it is gone", false)
	w.m.setNodes([]Node{w.others[0].Node, w.others[1].Node})
	w.want("it is back", false)
	// An answer that nobody asked for.
	w.m.answer(w.now, netip.MustParseAddr("192.0.2.1"), 7)
	w.m.answer(w.now, w.others[1].Overlay, 0)
}

// TestLate: an answer that takes longer than a round is one, for as many rounds as count.
func TestLate(t *testing.T) {
	w := newMesh(t, 1)
	one := w.others[0]
	one.through = false
	w.rounds(calm)
	first := w.nonces
	w.rounds(time.Second)
	w.m.answer(w.now, one.Overlay, first)
	w.rounds(alarmed)
	w.want("it answers late", false)
	w.rounds(time.Minute)
	w.want("it does not answer", true, one.Tunnel)
	w.m.answer(w.now, one.Overlay, first)
	w.want("it answered long ago", true, one.Tunnel)
}

func TestExplain(t *testing.T) {
	w := newMesh(t, 2)
	p := &Prober{machine: w.m}
	p.SetNodes(netip.MustParsePrefix("172.11.8.0/22"), 4789, []Node{w.others[0].Node, w.others[1].Node})
	if err, why := p.Reach(), p.Why(); err != nil || why != "" || p.Kept() != 0 {
		t.Errorf("before anything: %v, %q, %d", err, why, p.Kept())
	}
	w.others[0].through = false
	w.rounds(10 * time.Second)
	if err, why := p.Reach(), p.Why(); err != nil || !strings.Contains(why, w.others[0].Tunnel.String()+" answers outside of the tunnels only") || p.Kept() != 1 {
		t.Errorf("one is cut off: %v, %q, %d", err, why, p.Kept())
	}
	w.others[1].through = false
	w.rounds(10 * time.Second)
	err, why := p.Reach(), p.Why()
	if !errors.Is(err, ErrCut) || why != "" || p.Kept() != 2 {
		t.Fatalf("all are: %v, %q, %d", err, why, p.Kept())
	}
	for _, part := range []string{w.others[0].Tunnel.String() + " and 1 more answer outside of the tunnels only", "UDP port 4789"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("all are: %q does not say %q", err, part)
		}
	}
}
