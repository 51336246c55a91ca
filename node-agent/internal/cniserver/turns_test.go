package cniserver

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
)

// began is take in a goroutine: its turn, once it has it.
type began struct {
	adding []cniapi.Attachment
	done   func()
	err    error
}

func take(ctx context.Context, t *turns, req cniapi.Request) chan began {
	c := make(chan began, 1)
	go func() {
		adding, done, err := t.take(ctx, req)
		c <- began{adding, done, err}
	}()
	return c
}

// queued waits until the newest command on id's attachment is cmd.
func queued(t *testing.T, ts *turns, cmd cniapi.Command, id string) {
	t.Helper()
	until(t, func() bool {
		newest, waits := ts.commands.Newest()[request(cmd, id).Attachment()]
		return waits && newest == cmd
	})
}

func until(t *testing.T, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not come to pass")
		}
	}
}

func notYet(t *testing.T, c chan began, what string) {
	t.Helper()
	select {
	case <-c:
		t.Errorf("%s has begun", what)
	default:
	}
}

func TestOneAttachmentOneCommand(t *testing.T) {
	ts := newTurns(8)
	ctx := context.Background()
	add := <-take(ctx, ts, request(cniapi.Add, "a"))
	del := take(ctx, ts, request(cniapi.Del, "a"))
	queued(t, ts, cniapi.Del, "a")
	again := take(ctx, ts, request(cniapi.Add, "a"))
	queued(t, ts, cniapi.Add, "a")
	// Another attachment of the same sandbox, and another sandbox, go ahead.
	eth1 := request(cniapi.Add, "a")
	eth1.IfName = "eth1"
	(<-take(ctx, ts, eth1)).done()
	(<-take(ctx, ts, request(cniapi.Del, "b"))).done()

	notYet(t, del, "DEL beside ADD")
	add.done()
	d := <-del
	notYet(t, again, "the second ADD beside DEL")
	d.done()
	(<-again).done()
	if left := ts.commands.Newest(); len(left) != 0 {
		t.Errorf("%v are left over", left)
	}
}

// TestGivingUpKeepsOrder: who stops waiting in the middle of a queue lets nobody
// past the one in front.
func TestGivingUpKeepsOrder(t *testing.T) {
	ts := newTurns(8)
	ctx, cancel := context.WithCancel(context.Background())
	first := <-take(context.Background(), ts, request(cniapi.Add, "a"))
	second := take(ctx, ts, request(cniapi.Del, "a"))
	queued(t, ts, cniapi.Del, "a")
	third := take(context.Background(), ts, request(cniapi.Check, "a"))
	queued(t, ts, cniapi.Check, "a")
	cancel()
	if got := <-second; got.err == nil {
		t.Error("the second did not give up")
	}
	notYet(t, third, "the third beside the first")
	first.done()
	(<-third).done()
	if left := ts.commands.Newest(); len(left) != 0 {
		t.Errorf("%v are left over", left)
	}
}

// TestWaitersHoldNoSlot: many commands for one busy attachment leave room for
// the others.
func TestWaitersHoldNoSlot(t *testing.T) {
	ts := newTurns(2)
	ctx := context.Background()
	busy := <-take(ctx, ts, request(cniapi.Add, "a"))
	var waiting []chan began
	for _, command := range []cniapi.Command{cniapi.Del, cniapi.Check, cniapi.Del, cniapi.Check, cniapi.Del} {
		waiting = append(waiting, take(ctx, ts, request(command, "a")))
		queued(t, ts, command, "a")
	}
	other := <-take(ctx, ts, request(cniapi.Add, "b"))

	// Both places are taken now.
	third := take(ctx, ts, request(cniapi.Add, "c"))
	queued(t, ts, cniapi.Add, "c")
	notYet(t, third, "a third of two")
	other.done()
	(<-third).done()
	busy.done()
	for len(waiting) > 0 { // in any order: they came at once
		waiting = slices.DeleteFunc(waiting, func(c chan began) bool {
			select {
			case b := <-c:
				b.done()
				return true
			case <-time.After(time.Millisecond):
				return false
			}
		})
	}
}

// TestGCRunsAlone, and knows which attachments were being made when it came.
func TestGCRunsAlone(t *testing.T) {
	ts := newTurns(8)
	ctx := context.Background()
	add := <-take(ctx, ts, request(cniapi.Add, "new"))
	del := <-take(ctx, ts, request(cniapi.Del, "old"))
	gc := take(ctx, ts, request(cniapi.GC, ""))
	until(t, func() bool { // nothing passes a GC that waits, though there is room
		if ts.slots.TryAcquire(1) {
			ts.slots.Release(1)
			return false
		}
		return true
	})
	late := take(ctx, ts, request(cniapi.Add, "late"))
	queued(t, ts, cniapi.Add, "late")
	add.done()
	notYet(t, gc, "GC beside DEL")
	notYet(t, late, "ADD before the GC that came first")
	del.done()
	g := <-gc
	if diff := cmp.Diff([]cniapi.Attachment{{ContainerID: "new", IfName: "eth0"}}, g.adding); diff != "" {
		t.Errorf("adding (-want +got):\n%s", diff)
	}
	notYet(t, late, "ADD beside GC")
	g.done()
	(<-late).done()
}

// TestTurnsUnderLoad: random commands, some given up; never two on one
// attachment, never more than the limit, never one beside GC.
func TestTurnsUnderLoad(t *testing.T) {
	const limit, keys = 5, 7
	ts := newTurns(limit)
	var mu sync.Mutex
	running := map[cniapi.Attachment]int{}
	total, gcs, ran := 0, 0, 0
	enter := func(req cniapi.Request, by int) {
		mu.Lock()
		defer mu.Unlock()
		if req.Command == cniapi.GC {
			gcs += by
		} else {
			running[req.Attachment()] += by
			total += by
		}
		ran++
		if running[req.Attachment()] > 1 || total > limit || gcs > 1 || gcs == 1 && total > 0 {
			t.Errorf("%d on %s, %d in all, %d GC", running[req.Attachment()], req.Attachment(), total, gcs)
		}
	}
	var wg sync.WaitGroup
	for g := range 24 {
		rnd := rand.New(rand.NewPCG(uint64(g), 7))
		wg.Go(func() {
			for range 150 {
				cmd := []cniapi.Command{cniapi.Add, cniapi.Del, cniapi.Check, cniapi.GC}[min(rnd.IntN(20)/6, 3)]
				req := request(cmd, fmt.Sprint("c", rnd.IntN(keys)))
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rnd.IntN(3000))*time.Microsecond)
				if _, done, err := ts.take(ctx, req); err == nil {
					enter(req, 1)
					time.Sleep(time.Duration(rnd.IntN(50)) * time.Microsecond)
					enter(req, -1)
					done()
				}
				cancel()
			}
		})
	}
	wg.Wait()
	if left := ts.commands.Newest(); len(left) != 0 {
		t.Errorf("%v are left over", left)
	}
	if !ts.slots.TryAcquire(limit) {
		t.Error("places are lost")
	}
	if ran < 100 {
		t.Errorf("only %d ran", ran/2)
	}
}
