package store

import (
	"context"
	"math/rand/v2"
	"time"
)

const (
	minPause = 50 * time.Millisecond
	maxPause = 2 * time.Second
)

// pauser spaces attempts: longer each time, with jitter so that many nodes do
// not come back at once. The zero value is ready.
type pauser struct{ next time.Duration }

func (p *pauser) reset() { p.next = 0 }

// wait pauses before the next attempt; it returns early when ctx ends.
func (p *pauser) wait(ctx context.Context) {
	if p.next < minPause {
		p.next = minPause
	}
	d := p.next/2 + rand.N(p.next)
	if p.next *= 2; p.next > maxPause {
		p.next = maxPause
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
