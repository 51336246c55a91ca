package store

import (
	"context"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// syncGrace is how long a change waits for the word that the other watches
	// are as far as it is, before it is handed on under the older revision.
	syncGrace = 5 * time.Millisecond
	// syncLimit is how long that word may take before all records are read anew.
	syncLimit = time.Second
)

// progress asks etcd how far its watches are, while some of them are behind
// the newest change.
type progress struct {
	requests chan struct{}
	since    time.Time
	delay    time.Duration
	timer    *time.Timer // nil when not asking
}

func newProgress(ctx context.Context, w clientv3.Watcher) *progress {
	p := &progress{requests: make(chan struct{}, 1)}
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-p.requests:
				// An error shows on the watches too.
				_ = w.RequestProgress(ctx)
			}
		}
	}()
	return p
}

func (p *progress) asking() bool { return p.timer != nil }

func (p *progress) tick() <-chan time.Time {
	if p.timer == nil {
		return nil
	}
	return p.timer.C
}

func (p *progress) ask(on bool) {
	p.stop()
	if !on {
		return
	}
	p.since, p.delay = time.Now(), syncGrace
	p.timer = time.NewTimer(p.delay)
	p.request()
}

// again repeats the question: etcd does not answer it while a watch catches up.
func (p *progress) again() error {
	if time.Since(p.since) > syncLimit {
		return errNoProgress
	}
	p.delay *= 2
	p.timer.Reset(p.delay)
	p.request()
	return nil
}

func (p *progress) request() {
	select {
	case p.requests <- struct{}{}:
	default:
	}
}

func (p *progress) stop() {
	if p.timer != nil {
		p.timer.Stop()
		p.timer = nil
	}
}
