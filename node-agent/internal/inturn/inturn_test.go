package inturn

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// One key's turns follow each other in their order, whoever gives up; another key's do not wait.
func TestQueues(t *testing.T) {
	var q Queues[string, int]
	ctx := t.Context()
	first, err := q.Take(ctx, "a", 1)
	if err != nil {
		t.Fatal(err)
	}
	other, err := q.Take(ctx, "b", 1)
	if err != nil {
		t.Fatal(err)
	}
	other()
	gone, giveUp := context.WithCancel(ctx)
	gaveUp := make(chan struct{})
	var order []int
	var waiting sync.WaitGroup
	for i, ctx := range []context.Context{ctx, gone, ctx} {
		n := i + 2
		waiting.Go(func() {
			leave, err := q.Take(ctx, "a", n)
			if err != nil {
				if !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
				close(gaveUp)
				return
			}
			order = append(order, n) // one at a time, so the race detector has nothing to say
			leave()
		})
		for deadline := time.Now().Add(10 * time.Second); q.Newest()["a"] != n; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("turn %d is not in the queue: %v", n, q.Newest())
			}
		}
	}
	giveUp()
	<-gaveUp
	first()
	waiting.Wait()
	if len(order) != 2 || order[0] != 2 || order[1] != 4 {
		t.Errorf("the turns were %v, want 2 and 4", order)
	}
	if left := q.Newest(); len(left) != 0 {
		t.Errorf("left over: %v", left)
	}
}

// Nobody shares a turn, and everybody has one.
func TestQueuesUnderLoad(t *testing.T) {
	var q Queues[int, struct{}]
	var busy [4]atomic.Int32
	var had atomic.Int32
	var all sync.WaitGroup
	for i := range 200 {
		all.Go(func() {
			key := i % len(busy)
			leave, err := q.Take(context.Background(), key, struct{}{})
			if err != nil {
				t.Error(err)
				return
			}
			if busy[key].Add(1) != 1 {
				t.Errorf("two have the turn of %d", key)
			}
			had.Add(1)
			busy[key].Add(-1)
			leave()
		})
	}
	all.Wait()
	if had.Load() != 200 || len(q.Newest()) != 0 {
		t.Errorf("%d of 200 had their turn; left over: %v", had.Load(), q.Newest())
	}
}
