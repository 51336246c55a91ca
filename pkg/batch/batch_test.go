package batch

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// gated is a run that says what it is about to do and waits until it may.
type gated struct {
	began chan []int
	may   chan struct{}
}

func newGated() gated { return gated{make(chan []int), make(chan struct{})} }

func (g gated) double(_ context.Context, in []int) []int {
	g.began <- in
	<-g.may
	out := make([]int, len(in))
	for i, n := range in {
		out[i] = 2 * n
	}
	return out
}

// waits blocks until so many calls wait.
func (b *Batch[In, Out]) waits(n int) {
	for {
		b.mu.Lock()
		have := len(b.waiting)
		b.mu.Unlock()
		if have == n {
			return
		}
	}
}

// What comes during a run makes the next one, up to the most, in order.
func TestRuns(t *testing.T) {
	g := newGated()
	b := New(3, g.double)
	var wg sync.WaitGroup
	call := func(n int) {
		wg.Go(func() {
			if got, err := b.Do(t.Context(), n); got != 2*n || err != nil {
				t.Errorf("%d: %d, %v", n, got, err)
			}
		})
	}
	call(1)
	got := [][]int{<-g.began}
	for n := range 4 {
		call(n + 2)
		b.waits(n + 1)
	}
	for range 2 {
		g.may <- struct{}{}
		got = append(got, <-g.began)
	}
	g.may <- struct{}{}
	wg.Wait()
	if diff := cmp.Diff([][]int{{1}, {2, 3, 4}, {5}}, got); diff != "" {
		t.Error(diff)
	}
	call(6) // nobody leads any more
	<-g.began
	g.may <- struct{}{}
	wg.Wait()
}

// Who gives up while others run is not done; who gives up during its own run learns what
// became of it. The run ends early only when nobody wants it any more.
func TestGiveUp(t *testing.T) {
	g := newGated()
	var run context.Context
	b := New(8, func(ctx context.Context, in []int) []int { run = ctx; return g.double(ctx, in) })
	type answer struct {
		out int
		err error
	}
	call := func(ctx context.Context, n int) chan answer {
		done := make(chan answer, 1)
		go func() {
			out, err := b.Do(ctx, n)
			done <- answer{out, err}
		}()
		return done
	}
	first, endFirst := context.WithCancel(t.Context())
	one := call(first, 1)
	<-g.began
	second, endSecond := context.WithCancel(t.Context())
	two := call(second, 2)
	b.waits(1)
	three := call(t.Context(), 3)
	b.waits(2)
	endSecond()
	if a := <-two; !errors.Is(a.err, context.Canceled) {
		t.Errorf("given up while it waited: %+v", a)
	}
	endFirst()
	<-run.Done()
	g.may <- struct{}{}
	if a := <-one; a.out != 2 || a.err != nil {
		t.Errorf("given up during its run: %+v", a)
	}
	if diff := cmp.Diff([]int{3}, <-g.began); diff != "" {
		t.Error(diff)
	}
	if run.Err() != nil {
		t.Error("the run of a call that waits has ended")
	}
	g.may <- struct{}{}
	if a := <-three; a.out != 6 || a.err != nil {
		t.Errorf("the last: %+v", a)
	}
}

// Whoever gives up, everybody else is done once.
func TestMany(t *testing.T) {
	var mu sync.Mutex
	done := map[int]int{}
	b := New(7, func(_ context.Context, in []int) []int {
		mu.Lock()
		defer mu.Unlock()
		for _, n := range in {
			done[n]++
		}
		return in
	})
	var wg sync.WaitGroup
	for n := range 2000 {
		wg.Go(func() {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if n%3 == 0 {
				go cancel()
			}
			out, err := b.Do(ctx, n)
			mu.Lock()
			defer mu.Unlock()
			if err == nil && out != n || (err == nil) != (done[n] == 1) {
				t.Errorf("%d: %d, %v, done %d times", n, out, err, done[n])
			}
		})
	}
	wg.Wait()
	if b.running || len(b.waiting) > 0 {
		t.Errorf("running %t, %d wait", b.running, len(b.waiting))
	}
}

// Who waits is answered when a run panics, or gives too few results, and the next run is
// made. The panic is the leader's.
func TestNoResult(t *testing.T) {
	for name, broken := range map[string]func() []int{
		"panic":   func() []int { panic("broken") },
		"too few": func() []int { return []int{4} },
	} {
		t.Run(name, func(t *testing.T) {
			g := newGated()
			b := New(2, func(ctx context.Context, in []int) []int {
				out := g.double(ctx, in)
				if in[0] == 2 {
					return broken()
				}
				return out
			})
			errs, panicked := make([]error, 6), make([]any, 6)
			var wg sync.WaitGroup
			call := func(n int) {
				wg.Go(func() {
					defer func() { panicked[n] = recover() }()
					_, errs[n] = b.Do(t.Context(), n)
				})
			}
			call(1)
			<-g.began
			for n := range 4 {
				call(n + 2)
				b.waits(n + 1)
			}
			for range 2 {
				g.may <- struct{}{}
				<-g.began
			}
			g.may <- struct{}{}
			wg.Wait()
			want, wantPanic := []error{nil, nil, nil, ErrNoResult, nil, nil}, make([]any, 6)
			if name == "panic" {
				wantPanic[2] = "broken"
			}
			if diff := cmp.Diff(want, errs, cmpopts.EquateErrors()) + cmp.Diff(wantPanic, panicked); diff != "" {
				t.Error(diff)
			}
		})
	}
}
