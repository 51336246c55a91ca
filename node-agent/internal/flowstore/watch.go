package flowstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
)

// Run puts right what others change in the switch as soon as the switch tells of it, until
// ctx ends. It reads the areas that are complete as [Store.Resync] does, one after the
// other; what the switch does not tell is left to that.
func (s *Store) Run(ctx context.Context) error {
	var p pace
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.changed:
		}
		began := time.Now()
		repaired := s.mend(ctx)
		pause, again := p.after(began, time.Now(), repaired > 0)
		if again {
			s.log.Warn("somebody changes the flows of the bridge again and again: they are put right after ever longer pauses until that ends",
				"longest pause", mendLast)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// listen has the switch tell what others change. It comes before the first look at a
// switch, for what is read would go stale unheard.
func (s *Store) listen(ctx context.Context) error {
	if s.listens {
		return nil
	}
	err := s.sw.Watch(ctx, s.watched, s.hear)
	var cannot *of.SwitchError
	switch {
	case errors.As(err, &cannot):
		s.log.Warn("this Open vSwitch does not tell when somebody changes its flows: they are put right when it is time to look", "error", err)
	case err != nil:
		return fmt.Errorf("watch what others change in the bridge: %w", err)
	}
	s.listens = true
	return nil
}

// hear wakes Run, and never waits.
func (s *Store) hear() {
	select {
	case s.changed <- struct{}{}:
	default: // it is awake
	}
}

// mend looks at all areas, and puts right what differs.
func (s *Store) mend(ctx context.Context) (repaired int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.inOrder {
		// One that is not known is read with its next change.
		if !a.complete() || !a.known || s.sw == nil {
			continue
		}
		_, n, err := s.read(ctx, a, true)
		repaired += n
		if err == nil {
			err = s.bring(ctx, a, &Result{})
		}
		if err != nil && ctx.Err() == nil && !errors.Is(err, ErrDisconnected) {
			s.log.Warn("what somebody changed in the bridge could not be put right: trying again when it is time to look", "area", a.Name, "error", err)
		}
	}
	return repaired
}

const (
	// mendFirst and mendLast bound the pauses after looks that found something.
	mendFirst, mendLast = 100 * time.Millisecond, 5 * time.Second
	// mendQuiet is how long it has to be quiet after a pause for the next one to be short again.
	mendQuiet = 2 * time.Second
	// mendShare is how many times as long as a look the pause after it is at least.
	mendShare = 3
	// mendTell is the repair of a row at which it is told that they do not end.
	mendTell = 5
)

// pace holds back who puts right what is changed again and again. The zero value is ready.
type pace struct {
	// next is the pause after the next repair, over when the last pause ended.
	next time.Duration
	over time.Time
	// row counts repairs without quiet in between.
	row int
}

// after says how long to pause after a look, and whether this is the repair at which to
// tell that they do not end.
func (p *pace) after(began, ended time.Time, repaired bool) (pause time.Duration, tell bool) {
	if began.Sub(p.over) >= mendQuiet {
		p.next, p.row = mendFirst, 0
	}
	pause = mendFirst
	if repaired {
		pause, p.next = p.next, min(2*p.next, mendLast)
		p.row++
		tell = p.row == mendTell
	}
	pause = max(pause, mendShare*ended.Sub(began))
	p.over = ended.Add(pause)
	return pause, tell
}
