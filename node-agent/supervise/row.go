package main

import "time"

const (
	// settled is how long a daemon runs that has started: one that ends sooner may be one
	// that cannot start.
	settled = time.Second
	// patience is for how long, and leastLives how often, a daemon may end so soon again and
	// again before its supervisor ends, too.
	patience   = 30 * time.Second
	leastLives = 10
	// firstPause and lastPause bound the pause before the next start after such an end, so
	// that a daemon that cannot start takes no processor for itself. Open vSwitch's own start
	// takes 0.1 to 0.5 s: with it, it is back in under a second.
	firstPause, lastPause = 10 * time.Millisecond, 250 * time.Millisecond
)

// row decides when a daemon that has ended is started again. It has no clock. The zero
// value has seen no end.
type row struct {
	// began is when the first of the lives began that were short without one in between that
	// was not; lives is how many they are.
	began time.Time
	lives int
}

// ended says after what pause the daemon is to be started again that began and ended then;
// again is false when it is not, since it cannot stay up.
func (r *row) ended(began, now time.Time) (pause time.Duration, again bool) {
	if now.Sub(began) >= settled {
		*r = row{}
		return 0, true
	}
	if r.lives == 0 {
		r.began = began
	}
	r.lives++
	if r.lives >= leastLives && now.Sub(r.began) >= patience {
		return 0, false
	}
	pause = firstPause
	for n := 1; n < r.lives && pause < lastPause; n++ {
		pause *= 2
	}
	return min(pause, lastPause), true
}
