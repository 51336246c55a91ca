package flowstore

import (
	"testing"
	"time"
)

// Repairs in a row have ever longer pauses, those after quiet short ones again, and no look
// takes more than a quarter of the time.
func TestPace(t *testing.T) {
	var p pace
	now := time.Unix(1000, 0)
	after := func(quiet, took time.Duration, repaired bool) (time.Duration, bool) {
		began := now.Add(quiet)
		now = began.Add(took)
		pause, tell := p.after(began, now, repaired)
		now = now.Add(pause)
		return pause, tell
	}
	is := func(what string, got, want time.Duration) {
		t.Helper()
		if got != want {
			t.Errorf("%s: a pause of %s, want %s", what, got, want)
		}
	}
	told := 0
	for n := range 20 {
		pause, tell := after(0, time.Millisecond, true)
		is("in a row", pause, min(mendFirst<<n, mendLast))
		if tell {
			told++
		}
	}
	if told != 1 {
		t.Errorf("told %d times of one row, want once", told)
	}
	pause, _ := after(mendQuiet-1, time.Millisecond, true)
	is("not quiet for long enough", pause, mendLast)
	pause, _ = after(mendQuiet, time.Millisecond, true)
	is("after quiet", pause, mendFirst)
	pause, _ = after(mendQuiet, time.Second, true)
	is("a long look", pause, mendShare*time.Second)
	for range 10 {
		pause, _ = after(0, time.Millisecond, false)
		is("nothing was found", pause, mendFirst)
	}
	for n := range mendTell {
		if _, tell := after(0, 0, true); tell != (n == mendTell-2) {
			t.Errorf("repair %d of another row is told: %v", n+2, tell)
		}
	}
}
