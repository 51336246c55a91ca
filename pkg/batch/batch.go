// Package batch makes calls that come at once one: what costs the same for one and
// for many is done once for all who wait. It knows nothing of what is done.
package batch

import (
	"context"
	"errors"
	"slices"
	"sync"
)

// Batch collects calls. While one run is under way those that come meanwhile wait, and
// the next run takes them all: a call that comes alone waits for nobody.
type Batch[In, Out any] struct {
	// run returns one result for each of in, in their order.
	run func(ctx context.Context, in []In) []Out
	// most is how many a run takes.
	most int

	mu      sync.Mutex
	waiting []*call[In, Out]
	running bool
}

type call[In, Out any] struct {
	in  In
	ctx context.Context
	// lead tells the call to make the next run, which it is the first of.
	lead   chan struct{}
	answer chan answer[Out]
}

type answer[Out any] struct {
	out Out
	err error
}

// ErrNoResult says that a run ended without a result for a call: it panicked, or returned
// too few. What was done of it is not known.
var ErrNoResult = errors.New("what was done for several at once ended without a result for this one")

// New makes a Batch whose runs take most calls at once. The context of a run ends when
// those of all its calls have.
func New[In, Out any](most int, run func(ctx context.Context, in []In) []Out) *Batch[In, Out] {
	return &Batch[In, Out]{run: run, most: most}
}

// Do has in done in the next run and returns its result. The error is ctx's, where that
// ends first: then nothing was done. Once its run has begun a call waits for the result;
// it is [ErrNoResult] where the run fails to give one. A run that panics does so in one of
// its calls.
func (b *Batch[In, Out]) Do(ctx context.Context, in In) (out Out, err error) {
	mine := &call[In, Out]{in: in, ctx: ctx, lead: make(chan struct{}, 1), answer: make(chan answer[Out], 1)}
	b.mu.Lock()
	b.waiting = append(b.waiting, mine)
	if !b.running {
		b.running = true
		mine.lead <- struct{}{}
	}
	b.mu.Unlock()
	select {
	case <-mine.lead:
		b.next()
		a := <-mine.answer
		return a.out, a.err
	case a := <-mine.answer:
		return a.out, a.err
	case <-ctx.Done():
	}
	if b.giveUp(mine) {
		return out, ctx.Err()
	}
	a := <-mine.answer
	return a.out, a.err
}

// giveUp takes a call out that no run has taken, and reports whether it could.
func (b *Batch[In, Out]) giveUp(mine *call[In, Out]) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := slices.Index(b.waiting, mine)
	if i < 0 {
		return false
	}
	b.waiting = slices.Delete(b.waiting, i, i+1)
	select {
	case <-mine.lead:
		b.handOver()
	default:
	}
	return true
}

// next makes one run and hands over to whoever waits.
func (b *Batch[In, Out]) next() {
	b.mu.Lock()
	n := min(len(b.waiting), b.most)
	calls := slices.Clone(b.waiting[:n])
	b.waiting = slices.Delete(b.waiting, 0, n)
	b.mu.Unlock()
	answered := 0
	defer func() { // also when run panics
		for _, c := range calls[answered:] {
			c.answer <- answer[Out]{err: ErrNoResult}
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		b.handOver()
	}()
	in := make([]In, n)
	for i, c := range calls {
		in[i] = c.in
	}
	ctx, end := together(calls)
	defer end()
	for _, out := range b.run(ctx, in) {
		calls[answered].answer <- answer[Out]{out: out}
		answered++
	}
}

// handOver makes the first that waits lead; b.mu is held.
func (b *Batch[In, Out]) handOver() {
	if b.running = len(b.waiting) > 0; b.running {
		b.waiting[0].lead <- struct{}{}
	}
}

// together is a context that ends when those of all calls have.
func together[In, Out any](calls []*call[In, Out]) (ctx context.Context, end func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(calls[0].ctx))
	var mu sync.Mutex
	left := len(calls)
	stops := make([]func() bool, len(calls))
	for i, c := range calls {
		stops[i] = context.AfterFunc(c.ctx, func() {
			mu.Lock()
			defer mu.Unlock()
			if left--; left == 0 {
				cancel()
			}
		})
	}
	return ctx, func() {
		for _, stop := range stops {
			stop()
		}
		cancel()
	}
}
