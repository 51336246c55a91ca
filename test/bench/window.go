package main

import (
	"sync"
	"time"
)

// window measures the rate of what arrives in a stretch of time. It reaches from
// the first arrival after its begin, which does not count, to the first one after
// its end, which does: what is read at once may be as large as it likes.
type window struct {
	// full is closed when the window has its last arrival.
	full chan struct{}

	mu          sync.Mutex
	begin, end  time.Time // zero: not yet known
	first, last time.Time
	bytes       int
}

func newWindow() *window { return &window{full: make(chan struct{})} }

// open says when the window is.
func (w *window) open(begin time.Time, length time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.begin, w.end = begin, begin.Add(length)
}

// arrived notes n bytes of payload that came just now by clock.
func (w *window) arrived(clock func() time.Time, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch now := clock(); {
	case w.begin.IsZero() || now.Before(w.begin) || w.last.After(w.end):
	case w.first.IsZero():
		w.first = now
	default:
		w.bytes += n
		if w.last = now; now.After(w.end) {
			close(w.full)
		}
	}
}

// bits is the rate in bits a second. When the window is not full, now is
// where it ends: what should have come did not.
func (w *window) bits(now time.Time) float64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.bytes == 0 {
		return 0
	}
	if w.last.After(w.end) {
		now = w.last
	}
	return float64(w.bytes) * 8 / now.Sub(w.first).Seconds()
}
