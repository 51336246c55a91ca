package main

import (
	"math"
	"testing"
	"time"
)

// TestWindow: arrivals of any size at a steady rate give that rate, wherever the
// window's ends are between them.
func TestWindow(t *testing.T) {
	began := time.Unix(1000, 0)
	type arrival struct {
		at    time.Duration
		bytes int
	}
	steady := func(every time.Duration, bytes int) (out []arrival) {
		for at := time.Duration(0); at < 5*time.Second; at += every {
			out = append(out, arrival{at, bytes})
		}
		return out
	}
	for _, tc := range []struct {
		name     string
		arrivals []arrival
		want     float64 // bits a second
		full     bool
	}{
		{"packets", steady(10*time.Millisecond, 1250), 1e6, true},
		{"large reads", steady(700*time.Millisecond, 87500), 1e6, true},
		{"what comes before does not count", append([]arrival{{0, 1e6}}, steady(100*time.Millisecond, 1250)...), 1e5, true},
		{"a gap counts", []arrival{{1100 * time.Millisecond, 5}, {1200 * time.Millisecond, 1000}, {3100 * time.Millisecond, 1000}}, 8000, true},
		{"it ends early", []arrival{{time.Second, 1}, {2 * time.Second, 1000}}, 2000, false},
		{"one arrival is no rate", []arrival{{2 * time.Second, 1000}}, 0, false},
		{"nothing", nil, 0, false},
	} {
		w := newWindow()
		w.arrived(func() time.Time { return began.Add(2 * time.Second) }, 1e6) // too early: it is not open
		w.open(began.Add(time.Second), 2*time.Second)
		for _, a := range tc.arrivals {
			w.arrived(func() time.Time { return began.Add(a.at) }, a.bytes)
		}
		if got := w.bits(began.Add(5 * time.Second)); math.Round(got) != tc.want {
			t.Errorf("%s: %g bit/s, want %g", tc.name, got, tc.want)
		}
		select {
		case <-w.full:
			if !tc.full {
				t.Errorf("%s: the window is full", tc.name)
			}
		default:
			if tc.full {
				t.Errorf("%s: the window is not full", tc.name)
			}
		}
	}
}
