package agent

import (
	"testing"
	"testing/synctest"
	"time"
)

// However often devices change, links are looked at every 50 ms at most, and the pass
// that follows in any case is asked for.
func TestLooksSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, looks, wider := &events{}, 0, false
		look := func() due {
			return e.look(func() bool {
				looks++
				time.Sleep(10 * time.Millisecond) // many devices
				return wider
			})
		}
		for began := time.Now(); time.Since(began) < time.Second; time.Sleep(time.Millisecond) {
			if got := look(); got != passLater {
				t.Fatalf("nothing changed: %v", got)
			}
		}
		if looks < 10 || looks > 17 { // 50 ms, 10 ms each
			t.Errorf("%d looks in a second", looks)
		}
		time.Sleep(lookEvery)
		wider = true
		if got := look(); got != passNow {
			t.Errorf("after a change: %v", got)
		}
	})
}
