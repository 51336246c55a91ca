package upgrade

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

func TestNodes(t *testing.T) {
	ip := func(last byte) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, last}) }
	records := map[netip.Addr]topology.Node{ip(1): {Host: "n1"}, ip(2): {Host: "n2"}, ip(3): {Host: "n3"}}
	live := map[netip.Addr]topology.NodeStatus{ip(1): {Host: "n1", Identity: "k8s-ovs-node:n1:u1"}, ip(2): {Host: "n2"}, ip(9): {Host: "gone"}}
	want := []Node{{"n1", true, true}, {"n2", true, false}, {"n3", false, false}}
	if diff := cmp.Diff(want, Nodes(records, live)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestWaits: a node that is away is waited for so long, one with an old agent for ever.
func TestWaits(t *testing.T) {
	begin := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	own, old, away := Node{"n1", true, true}, Node{"n2", true, false}, Node{"n3", false, false}
	back := Node{"n3", true, true}
	var w Watch
	for _, step := range []struct {
		after time.Duration
		nodes []Node
		want  string
	}{
		{0, []Node{own, old, away}, "n2 n3"},
		{Patience - time.Second, []Node{own, old, away}, "n2 n3"},
		{Patience, []Node{own, old, away}, "n2"},
		{Patience + 1, []Node{own, own, back}, ""},
		{Patience + 2, []Node{own, own, away}, "n3"}, // away anew
		{2*Patience + 2, []Node{own, own, away}, ""},
		{1000 * Patience, []Node{own, old, away}, "n2"},
		{1000 * Patience, nil, ""},
	} {
		if got := strings.Join(w.Waits(step.nodes, begin.Add(step.after)), " "); got != step.want {
			t.Errorf("after %s: waits for %q, want %q", step.after, got, step.want)
		}
	}
}

// etcd stands in for the users of etcd, and for the Secret and the files.
type etcd struct {
	mu     sync.Mutex
	shared bool
	left   bool
	nodes  []Node
	broken map[string]error
	events []string
}

func (e *etcd) do(what string, f func()) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.broken[what]; err != nil {
		return err
	}
	f()
	return nil
}

func (e *etcd) Shared(context.Context) (shared bool, err error) {
	return shared, e.do("shared", func() { shared = e.shared })
}
func (e *etcd) Drop(context.Context) error { return e.do("drop", func() { e.shared = false }) }
func (e *etcd) Nodes(context.Context) (nodes []Node, err error) {
	err = e.do("nodes", func() { nodes = e.nodes })
	return nodes, err
}
func (e *etcd) tidy(context.Context) error { return e.do("tidy", func() { e.left = false }) }

func (e *etcd) set(f func()) { _ = e.do("", f) }

func (e *etcd) start(ctx context.Context) (ended chan struct{}) {
	ended = make(chan struct{})
	ending := New(Config{
		Users: e, Tidy: e.tidy, Pod: kube.ObjectRef{Name: "c"}, Logger: slog.New(slog.DiscardHandler),
		Event: func(_ kube.ObjectRef, _ bool, reason kube.EventReason, message string) {
			e.set(func() { e.events = append(e.events, string(reason)+": "+message) })
		},
	})
	go func() { defer close(ended); ending.Run(ctx) }()
	return ended
}

func over(ended chan struct{}) bool {
	synctest.Wait()
	select {
	case <-ended:
		return true
	default:
		return false
	}
}

// TestEnding: agents are upgraded one after the other, one node stays away.
func TestEnding(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &etcd{shared: true, left: true, nodes: []Node{{"n1", true, false}, {"n2", true, false}, {"n3", false, false}}}
		ended := e.start(t.Context())
		time.Sleep(2 * Patience)
		if over(ended) || !e.shared || len(e.events) != 2 || !strings.HasSuffix(e.events[1], ": n1, n2") {
			t.Fatalf("with old agents: shared %v, told %q", e.shared, e.events)
		}
		e.set(func() { e.nodes = []Node{{"n1", true, true}, {"n2", false, false}, {"n3", false, false}} })
		time.Sleep(time.Minute)
		if over(ended) || !e.shared {
			t.Fatal("did not wait for n2, which is only starting anew")
		}
		e.set(func() { e.nodes[1] = Node{"n2", true, true} })
		time.Sleep(time.Minute)
		if !over(ended) || e.shared || e.left {
			t.Errorf("shared %v, left behind %v", e.shared, e.left)
		}
		if last := e.events[len(e.events)-1]; !strings.HasPrefix(last, reasonEnded) {
			t.Errorf("told %q", last)
		}
	})
}

// TestEndingIsInterrupted: whatever fails, and wherever the controller ends meanwhile.
func TestEndingIsInterrupted(t *testing.T) {
	for _, step := range []string{"shared", "nodes", "drop", "tidy"} {
		synctest.Test(t, func(t *testing.T) {
			e := &etcd{shared: true, left: true, nodes: []Node{{"n1", true, true}}, broken: map[string]error{step: errors.New("broken")}}
			ctx, cancel := context.WithCancel(t.Context())
			ended := e.start(ctx)
			time.Sleep(time.Hour)
			if over(ended) {
				t.Errorf("%s fails, and it has ended", step)
			}
			cancel()
			if !over(ended) {
				t.Errorf("%s: goes on", step)
			}
			e.set(func() { e.broken = nil })
			if ended = e.start(t.Context()); !over(ended) || e.shared || e.left {
				t.Errorf("after %s: shared %v, left behind %v", step, e.shared, e.left)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		e := &etcd{left: true}
		if ended := e.start(t.Context()); !over(ended) || e.left || len(e.events) != 0 {
			t.Errorf("nothing shared: left behind %v, told %q", e.left, e.events)
		}
	})
}
