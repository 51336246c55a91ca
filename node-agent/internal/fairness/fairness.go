// Package fairness decides how many new connections namespaces may make while the
// node's connection table, which all of them share, fills up.
//
// It is pure.
package fairness

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"
)

// Allowance is how many new connections a namespace may make: per second, and at once
// after a pause.
type Allowance struct{ Rate, Burst uint32 }

// Table is a connection table: entries that it has room for and that it has. Size 0 is that it has
// no limit, as with the kernel's net.netfilter.nf_conntrack_max: it is never short.
type Table struct{ Size, Used uint64 }

// Asked are the connections that a namespace has asked for so far, those of them that were
// refused for how many there were, those for where they went, see [Ports], and those to or from pods that policies
// select, for how many these had.
type Asked struct{ All, Refused, Crowded, Judged uint64 }

// made are those that were not refused.
func (a Asked) made() uint64 { return a.All - min(a.All, a.Refused+a.Crowded+a.Judged) }

// At rest every namespace may fill a sixteenth of the table in a second, and as much at
// once, so that one alone cannot fill it between two looks. From half on, those who ask
// for most share evenly what becomes free, and over the next 20 s what is left up to five
// eighths: what is beyond is for those who ask for little. However much becomes free at
// once, in two seconds they get no further than three quarters. Below three eighths all
// are free again.
const (
	ceilingPart = 16
	horizon     = 20 // seconds
	haste       = 2  // seconds
	// quietPart of the table a second is little, and no less than leastQuiet.
	quietPart  = 2000
	leastQuiet = 50
	leastBurst = 100
	// unlimited is the most with a table that has no limit: more than a node can make.
	unlimited = 1 << 20
	// heldBurst is the least that who is held back may at once. Each change of a meter
	// gives it anew, so it is small.
	heldBurst = 10
	// sharePart is the part of the table that one namespace may hold while the table is
	// short, where it is known.
	sharePart = 4
	// memory is how much of what became free before still counts at the next look.
	memory = 0.8
)

// Rate is the most new connections per second that a namespace may make at rest: a
// number, or one of [Auto] and [Off]. It is a flag.
type Rate uint32

const (
	// Auto follows the size of the table.
	Auto Rate = 0
	// Off is that nobody is ever held back.
	Off Rate = 1<<32 - 1
)

// String is the rate as Set takes it.
func (r Rate) String() string {
	switch r {
	case Auto:
		return "auto"
	case Off:
		return "off"
	}
	return strconv.FormatUint(uint64(r), 10)
}

// Set reads auto, off, or a number.
func (r *Rate) Set(s string) error {
	switch s {
	case "auto":
		*r = Auto
		return nil
	case "off":
		*r = Off
		return nil
	}
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil || n == 0 {
		return fmt.Errorf("%q is none of auto, off, and a number of connections per second from 1 to 2147483647", s)
	}
	*r = Rate(n)
	return nil
}

// Type is the flag's kind.
func (r *Rate) Type() string { return "rate" }

// Ceiling is what every namespace may at rest, with a table of that size.
func (r Rate) Ceiling(size uint64) Allowance {
	n := uint32(min(max(size/ceilingPart, leastBurst), 1<<30))
	switch {
	case r != Auto:
		n = uint32(r)
	case size == 0:
		n = unlimited
	}
	return Allowance{Rate: n, Burst: n}
}

// Short reports whether the table is so full that it matters who holds what.
func (t Table) Short() bool { return t.Size > 0 && t.Used >= t.Size/2 }

// Filling reports whether it may be short before long.
func (t Table) Filling() bool { return t.Size > 0 && t.Used >= t.Size/4 }

// relaxed reports whether there is room for all.
func (t Table) relaxed() bool { return t.Size == 0 || t.Used < t.Size*3/8 }

// Judge holds back those who ask for most. The zero value holds nobody back yet.
type Judge struct {
	// Rate is what they may at rest; not [Off].
	Rate Rate

	at   time.Time
	seen map[string]Asked
	used uint64
	// freed is how many entries become free, per second.
	freed float64
	held  map[string]Allowance
}

// Held are those who are held back now.
func (j *Judge) Held() map[string]Allowance { return j.held }

// Next says who is held back from now on. Holds are the entries that each namespace has
// in the table, nil where that is not known.
func (j *Judge) Next(now time.Time, t Table, asked map[string]Asked, holds map[string]uint64) map[string]Allowance {
	demand := j.demand(now, t, asked)
	switch {
	case t.relaxed():
		j.held = nil
	case t.Short() && demand != nil:
		j.held = j.restrict(t, demand, holds)
	}
	return j.held
}

// demand is what each namespace asked for, per second, since the last time; nil where
// there was none.
func (j *Judge) demand(now time.Time, t Table, asked map[string]Asked) map[string]float64 {
	var demand map[string]float64
	if passed := now.Sub(j.at).Seconds(); j.seen != nil && passed > 0 {
		demand = make(map[string]float64, len(asked))
		made := 0.0
		for namespace, n := range asked {
			last := j.seen[namespace]
			if last.All > n.All || last.Refused > n.Refused || last.Crowded > n.Crowded || last.Judged > n.Judged {
				last = Asked{} // counted anew
			}
			demand[namespace] = float64(n.All-last.All) / passed
			made += float64(n.made()) - float64(last.made())
		}
		freed := max(0, (made-(float64(t.Used)-float64(j.used)))/passed)
		j.freed = memory*j.freed + (1-memory)*freed
	}
	j.seen, j.at, j.used = maps.Clone(asked), now, t.Used
	return demand
}

// restrict holds back who asks for more than the fair rate, or holds more than its share.
func (j *Judge) restrict(t Table, demand map[string]float64, holds map[string]uint64) map[string]Allowance {
	size, used := float64(t.Size), float64(t.Used)
	total := min(j.freed+(size*5/8-used)/horizon, (size*3/4-used)/haste)
	ceiling := j.Rate.Ceiling(t.Size)
	rate := min(max(fairRate(max(total, 0), demand), 1), float64(ceiling.Rate))
	quiet := max(float64(t.Size)/quietPart, leastQuiet)
	held := map[string]Allowance{}
	r := step(rate)
	for namespace, d := range demand {
		_, already := j.held[namespace]
		switch {
		case holds[namespace] > t.Size/sharePart:
			held[namespace] = Allowance{Rate: 1, Burst: 1}
		case already || d > max(rate, quiet):
			held[namespace] = Allowance{Rate: r, Burst: max(r, heldBurst)}
		}
	}
	return held
}

// step is the largest of 1, 1.5, 2, 3, 4, 6 ... that a rate reaches: each change of a
// meter gives a whole burst, so there are few.
func step(rate float64) uint32 {
	s := uint32(1)
	for 2*float64(s) <= rate {
		s *= 2
	}
	if more := s + s/2; float64(more) <= rate {
		return more
	}
	return s
}

// fairRate is the rate that, as the most for each, shares total among those who demand.
func fairRate(total float64, demand map[string]float64) float64 {
	all := slices.Sorted(maps.Values(demand))
	for i, d := range all {
		even := total / float64(len(all)-i)
		if d >= even {
			return even
		}
		total -= d
	}
	return total
}
