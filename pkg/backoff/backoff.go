// Package backoff is for work that is tried again after it failed: how long to pause
// before the next attempt, and whether a failure is news.
//
// It imports nothing but the standard library, because the CNI plugin uses it and is to
// stay small.
package backoff

import (
	"context"
	"math/rand/v2"
	"time"
)

// Pauses are the pauses between attempts. Each is about twice as long as the one before,
// with jitter, so that many who failed together do not come back together. Set First and
// Last; both are more than 0.
type Pauses struct {
	// First and Last bound the pauses before jitter, which makes each from half to one
	// and a half times as long.
	First, Last time.Duration

	next time.Duration // before jitter; 0 is First
}

// Next returns how long to pause now, and grows.
func (p *Pauses) Next() time.Duration {
	pause := max(p.next, p.First)
	p.next = min(2*pause, p.Last)
	return pause/2 + rand.N(pause)
}

// Reset makes the next pause the first again: an attempt succeeded.
func (p *Pauses) Reset() { p.next = 0 }

// Wait pauses before the next attempt; false when ctx ended first.
func (p *Pauses) Wait(ctx context.Context) bool {
	t := time.NewTimer(p.Next())
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// Trouble tells a failure that is news from one that was told at the last attempt. The
// zero value has told nothing. Failures are the same when their texts are.
type Trouble struct{ told string }

// News reports whether err is to be told: it is another one than the last that was, or
// there was none. No error ends the trouble, and is no news.
func (t *Trouble) News(err error) bool {
	if err == nil {
		t.told = ""
		return false
	}
	news := err.Error() != t.told
	t.told = err.Error()
	return news
}

// Over ends the trouble, and reports whether there was any.
func (t *Trouble) Over() bool {
	was := t.told != ""
	t.told = ""
	return was
}
