package probe

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestSilences(t *testing.T) {
	begin := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	at := func(seconds float64) time.Time { return begin.Add(time.Duration(seconds * float64(time.Second))) }
	lost := func(seconds ...float64) (r Report) {
		for _, s := range seconds {
			r.LostEvents = append(r.LostEvents, Event{Sent: at(s)})
		}
		return r
	}
	moments := []time.Time{at(1), at(5), at(9)}
	for name, tt := range map[string]struct {
		report Report
		want   []time.Duration
	}{
		"nothing is lost":            {lost(), []time.Duration{0, 0, 0}},
		"the last one counts":        {lost(1.1, 1.5, 1.3, 9.2), []time.Duration{500 * time.Millisecond, 0, 200 * time.Millisecond}},
		"under way at that moment":   {lost(4.96), []time.Duration{0, 0, 0}},
		"before any moment":          {lost(0.5), []time.Duration{0, 0, 0}},
		"up to the next moment":      {lost(4.8), []time.Duration{3800 * time.Millisecond, 0, 0}},
		"one moment after the other": {lost(2, 6), []time.Duration{time.Second, time.Second, 0}},
		"after the last moment":      {lost(20), []time.Duration{0, 0, 11 * time.Second}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, tt.report.Silences(moments, 50*time.Millisecond)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
