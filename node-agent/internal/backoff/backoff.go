// Package backoff gives the pauses between attempts at something that fails: they grow, up
// to a bound, until an attempt succeeds. It never decides whether to try again.
package backoff

import (
	"context"
	"time"
)

// Pause is a growing wait between attempts. It belongs to one goroutine.
type Pause struct{ next time.Duration }

// First and Max are the shortest and the longest pause.
const (
	First = 20 * time.Millisecond
	Max   = 2 * time.Second
)

// New returns a pause that begins with [First].
func New() *Pause { return &Pause{next: First} }

// Take is the next wait.
func (p *Pause) Take() time.Duration {
	d := p.next
	p.next = min(2*p.next, Max)
	return d
}

// Longest reports whether pauses grow no more.
func (p *Pause) Longest() bool { return p.next == Max }

// Reset begins again with [First]: an attempt has succeeded.
func (p *Pause) Reset() { p.next = First }

// Sleep waits; false means that ctx ended.
func (p *Pause) Sleep(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(p.Take()):
		return true
	}
}
