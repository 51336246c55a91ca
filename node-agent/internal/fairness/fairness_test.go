package fairness

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// world is a connection table with namespaces that ask for so many connections a second,
// none of which is answered: each entry stays for life.
type world struct {
	table    Table
	life     int // ticks
	asked    map[string]Asked
	entries  map[string][]int // that were made in a tick
	refused  map[string]int
	tokens   map[string]float64
	allowed  map[string]Allowance
	judge    Judge
	most     uint64
	now      time.Time
	counting bool
}

const tick = 500 * time.Millisecond

func newWorld(size uint64, life time.Duration) *world {
	return &world{
		table: Table{Size: size}, life: int(life / tick), asked: map[string]Asked{}, entries: map[string][]int{},
		refused: map[string]int{}, tokens: map[string]float64{}, allowed: map[string]Allowance{}, now: time.Unix(0, 0),
	}
}

// run lets each namespace ask for its rate, per second, for a time.
func (w *world) run(d time.Duration, rates map[string]float64) {
	for range int(d / tick) {
		w.now = w.now.Add(tick)
		for namespace, rate := range rates {
			a, held := w.judge.Held()[namespace]
			if !held {
				a = Auto.Ceiling(w.table.Size)
			}
			had := w.tokens[namespace]
			if a != w.allowed[namespace] {
				had, w.allowed[namespace] = float64(a.Burst), a // as the userspace datapath does
			}
			tokens := min(had+float64(a.Rate)*tick.Seconds(), float64(a.Burst))
			want := int(rate * tick.Seconds())
			got := min(want, int(tokens), int(w.table.Size-w.used()))
			w.tokens[namespace] = tokens - float64(got)
			n := w.asked[namespace]
			w.asked[namespace] = Asked{All: n.All + uint64(want), Refused: n.Refused + uint64(want-got)}
			w.refused[namespace] += want - got
			w.entries[namespace] = append(w.entries[namespace], got)
		}
		for namespace, e := range w.entries {
			if len(e) > w.life {
				w.entries[namespace] = e[1:]
			}
		}
		w.table.Used = w.used()
		w.most = max(w.most, w.table.Used)
		var holds map[string]uint64
		if w.counting {
			holds = w.holds()
		}
		w.judge.Next(w.now, w.table, w.asked, holds)
	}
}

func (w *world) holds() map[string]uint64 {
	h := map[string]uint64{}
	for namespace, e := range w.entries {
		for _, n := range e {
			h[namespace] += uint64(n)
		}
	}
	return h
}

func (w *world) used() (n uint64) {
	for _, v := range w.holds() {
		n += v
	}
	return n
}

// A flood of one namespace, and of several, never fills the table, and who asks for little
// is never refused, however long entries live and whatever the size.
func TestFloods(t *testing.T) {
	for _, size := range []uint64{20_000, 262_144, 3_000_000} {
		for _, life := range []time.Duration{30 * time.Second, 120 * time.Second} {
			for _, floods := range []int{1, 3, 8} {
				t.Run(fmt.Sprintf("%d entries for %s, %d floods", size, life, floods), func(t *testing.T) {
					w := newWorld(size, life)
					rates := map[string]float64{"quiet": 10}
					for i := range floods {
						rates[fmt.Sprint("flood", i)] = 100_000
					}
					w.run(5*time.Minute, rates)
					if n := w.refused["quiet"]; n > 0 {
						t.Errorf("%d connections of the quiet one were refused", n)
					}
					if w.most >= size {
						t.Errorf("%d of %d entries were used", w.most, size)
					}
				})
			}
		}
	}
}

// At rest nobody is held back, and a flood that ends is forgotten.
func TestRelaxes(t *testing.T) {
	w := newWorld(262_144, 30*time.Second)
	w.run(time.Minute, map[string]float64{"busy": 150})
	if w.refused["busy"] > 0 || w.judge.Held() != nil {
		t.Errorf("at rest %d were refused, held %v", w.refused["busy"], w.judge.Held())
	}
	w.run(30*time.Second, map[string]float64{"busy": 150, "flood": 100_000})
	held := w.judge.Held()
	if _, ok := held["flood"]; !ok || len(held) != 1 {
		t.Errorf("held are %v, want the flood only", held)
	}
	if w.refused["busy"] > 0 {
		t.Errorf("%d of the busy one's were refused", w.refused["busy"])
	}
	w.run(2*time.Minute, map[string]float64{"busy": 150, "flood": 0})
	if held := w.judge.Held(); held != nil {
		t.Errorf("held are %v long after the flood", held)
	}
}

// Who holds more than its share while the table is short makes no more, however slow it is.
func TestHoarder(t *testing.T) {
	w := newWorld(20_000, time.Hour)
	w.counting = true
	w.run(40*time.Minute, map[string]float64{"hoarder": 30, "quiet": 2})
	if w.most >= 20_000 {
		t.Errorf("%d of 20000 entries were used", w.most)
	}
	if n := w.refused["quiet"]; n > 0 {
		t.Errorf("%d connections of the quiet one were refused", n)
	}
	if diff := cmp.Diff(map[string]Allowance{"hoarder": {1, 1}}, w.judge.Held()); diff != "" {
		t.Error(diff)
	}
}

func TestFairRate(t *testing.T) {
	for _, tc := range []struct {
		total  float64
		demand map[string]float64
		want   float64
	}{
		{100, map[string]float64{"a": 1000}, 100},
		{100, map[string]float64{"a": 1000, "b": 10}, 90},
		{100, map[string]float64{"a": 1000, "b": 1000, "c": 10}, 45},
		{100, map[string]float64{"a": 10}, 90},
		{0, map[string]float64{"a": 10}, 0},
		{100, nil, 100},
	} {
		if got := fairRate(tc.total, tc.demand); got != tc.want {
			t.Errorf("%v among %v: %v, want %v", tc.total, tc.demand, got, tc.want)
		}
	}
}

func TestRate(t *testing.T) {
	for _, text := range []string{"auto", "off", "1", "2147483647"} {
		var r Rate
		if err := r.Set(text); err != nil || r.String() != text {
			t.Errorf("%s: %s, %v", text, r.String(), err)
		}
	}
	for _, text := range []string{"", "0", "-1", "2147483648", "10k", "on"} {
		var r Rate
		if err := r.Set(text); err == nil {
			t.Errorf("%q is %s", text, r.String())
		}
	}
}

// A table that has no limit (net.netfilter.nf_conntrack_max=0) holds nobody back for its size, and
// who was held back before that is free again; a rate that somebody chose holds.
func TestNoLimit(t *testing.T) {
	var j Judge
	now := time.Unix(0, 0)
	look := func(table Table, asked, holds uint64) map[string]Allowance {
		now = now.Add(time.Second)
		return j.Next(now, table, map[string]Asked{"red": {All: asked}}, map[string]uint64{"red": holds})
	}
	look(Table{Size: 1000, Used: 900}, 0, 900)
	if held := look(Table{Size: 1000, Used: 900}, 5000, 900); len(held) != 1 {
		t.Fatalf("held are %v with a table that is short", held)
	}
	for range 3 {
		for _, used := range []uint64{0, 900, 1 << 30} {
			table := Table{Used: used}
			if held := look(table, 10_000, used); len(held) > 0 || table.Short() || table.Filling() {
				t.Errorf("with %d of any number held are %v, it is short: %t, filling: %t", used, held, table.Short(), table.Filling())
			}
		}
	}
	if a := Auto.Ceiling(0); a.Rate < 1_000_000 || a.Burst < 1_000_000 {
		t.Errorf("%+v is what each may at most of a table without limit", a)
	}
	if diff := cmp.Diff(Allowance{7, 7}, Rate(7).Ceiling(0)); diff != "" {
		t.Error(diff)
	}
}
