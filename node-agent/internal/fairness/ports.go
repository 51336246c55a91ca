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

// PortsPart is how many connections a namespace may have to one destination. All pods of a node leave
// with its address, so there are only as many connections to each destination as there are ports: some
// 60,700 of UDP, 64,512 of TCP. It is a quarter.
const PortsPart = 15_000

const (
	// leavesAgain is how many connections a namespace that has its part may still have when it may
	// make others again: two thirds of the part.
	leavesAgain = PortsPart / 3 * 2
	// Between two counts there is no less than soonest, and up to longest restPart times what a
	// count takes: meanwhile a namespace can make no more connections than leave some ports. While
	// somebody is refused there is no more than latest.
	soonest, longest = time.Second, 2 * time.Second
	restPart         = 4
	latest           = 5 * time.Second
)

// Ports knows which namespaces have their part of the ports to which destinations. Connections are
// counted by reading all of them, so it says when that is worth it: not before a namespace can have its
// part. The zero value knows of none yet.
type Ports struct {
	at      time.Time
	took    time.Duration
	used    uint64
	made    map[string]uint64
	largest map[string]uint64
	taken   map[string][]Destination
}

// Taken are the destinations to which a namespace has its part of the ports, in order.
func (p *Ports) Taken(namespace string) []Destination { return p.taken[namespace] }

// Matters reports whether a table has so many connections that one namespace may have its part.
func (p *Ports) Matters(t Table) bool { return t.Used >= PortsPart || len(p.taken) > 0 }

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
	for namespace, a := range asked {
		was := p.made[namespace]
		if was > a.made() {
			was = 0 // counted anew
		}
		if p.largest[namespace]+a.made()-was >= PortsPart {
			return true
		}
	}
	return false
}

// Counted takes what was counted at a time: the connections of each namespace by where they go. Table and
// asked are those that Due was told.
func (p *Ports) Counted(now time.Time, took time.Duration, t Table, asked map[string]Asked, counts map[string]map[Destination]uint64) {
	p.at, p.took, p.used = now, took, t.Used
	p.made = make(map[string]uint64, len(asked))
	for namespace, a := range asked {
		p.made[namespace] = a.made()
	}
	before := p.taken
	p.largest, p.taken = make(map[string]uint64, len(counts)), map[string][]Destination{}
	for namespace, to := range counts {
		for d, n := range to {
			had := slices.Contains(before[namespace], d)
			if n >= PortsPart || had && n > leavesAgain {
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
