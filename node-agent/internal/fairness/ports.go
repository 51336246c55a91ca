package fairness

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// Destination is what connections go to once all is translated. Port 0 is of a protocol without ports.
type Destination struct {
	To       netip.AddrPort
	Protocol uint8
}

// All pods of a node leave with its address, so there are only as many connections to each destination as
// there are ports: some 60,700 of UDP, 64,512 of TCP. A namespace may have its part, and more as long as
// all together leave many to others.
const (
	// PortsPart is how many connections to one destination each namespace may have: a quarter.
	PortsPart = 15_000
	// PortsBusy is from how many connections of all namespaces to one destination on nobody may have
	// more than its part: two fifths. What a namespace can make at once and until it is counted
	// again (35,000 with a table of 262,144) still leaves some ports.
	PortsBusy = 24_000
)

const (
	// A namespace that was refused may make others again when it, or all together, have two thirds of
	// that: leavesAgain, or calm.
	leavesAgain, calm = PortsPart / 3 * 2, PortsBusy / 3 * 2
	// Between two counts there is no less than soonest, and up to longest restPart times what a
	// count takes: meanwhile a namespace can make no more connections than leave some ports. While
	// somebody is refused there is no more than latest.
	soonest, longest = 400 * time.Millisecond, 2 * time.Second
	restPart         = 4
	latest           = 5 * time.Second
)

// Ports knows which namespaces have their part of the ports to which destinations. Connections are
// counted by reading all of them, so it says when that is worth it: not before a destination can be busy, and
// a namespace have its part. The zero value knows of none yet.
type Ports struct {
	at      time.Time
	took    time.Duration
	used    uint64
	made    map[string]uint64
	largest map[string]uint64
	// busiest is how many connections go to the destination that has most.
	busiest uint64
	taken   map[string][]Destination
}

// Taken are the busy destinations to which a namespace has its part of the ports, in order.
func (p *Ports) Taken(namespace string) []Destination { return p.taken[namespace] }

// Matters reports whether a table has so many connections that a destination may be busy.
func (p *Ports) Matters(t Table) bool { return t.Used >= PortsBusy || len(p.taken) > 0 }

// Due reports whether connections are to be counted now. asked is what namespaces asked for so far.
func (p *Ports) Due(now time.Time, t Table, asked map[string]Asked) bool {
	since := now.Sub(p.at)
	switch {
	case !p.Matters(t), !p.at.IsZero() && since < max(soonest, min(longest, restPart*p.took)):
		return false
	case p.at.IsZero(), len(p.taken) > 0 && since >= latest:
		return true
	case t.Used >= p.used+PortsPart/2: // also by pods of which it is not known yet whose they are
		return true
	}
	busiest, part := p.busiest, false
	for namespace, a := range asked {
		was := p.made[namespace]
		if was > a.made() {
			was = 0 // counted anew
		}
		more := a.made() - was
		busiest += more
		part = part || more > 0 && p.largest[namespace]+more >= PortsPart
	}
	return part && busiest >= PortsBusy
}

// Counted takes what was counted at a time: the connections of each namespace by where they go. Table and
// asked are those that Due was told.
func (p *Ports) Counted(now time.Time, took time.Duration, t Table, asked map[string]Asked, counts map[string]map[Destination]uint64) {
	p.at, p.took, p.used = now, took, t.Used
	p.made = make(map[string]uint64, len(asked))
	for namespace, a := range asked {
		p.made[namespace] = a.made()
	}
	all := map[Destination]uint64{}
	p.busiest = 0
	for _, to := range counts {
		for d, n := range to {
			all[d] += n
			p.busiest = max(p.busiest, all[d])
		}
	}
	before := p.taken
	p.largest, p.taken = make(map[string]uint64, len(counts)), map[string][]Destination{}
	for namespace, to := range counts {
		for d, n := range to {
			had := slices.Contains(before[namespace], d)
			if n >= PortsPart && all[d] >= PortsBusy || had && n > leavesAgain && all[d] > calm {
				p.taken[namespace] = append(p.taken[namespace], d)
			} else {
				// Those that are refused cannot become more.
				p.largest[namespace] = max(p.largest[namespace], n)
			}
		}
	}
	for _, d := range p.taken {
		slices.SortFunc(d, Destination.compare)
	}
}

func (d Destination) compare(e Destination) int {
	return cmp.Or(d.To.Compare(e.To), cmp.Compare(d.Protocol, e.Protocol))
}
