package mtu

import (
	"maps"
	"net/netip"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

const (
	// swings is how many changes of a node's record are taken as they come, one more every swingTime. Nodes that agree
	// on another MTU make two or three, so ten links in a row that somebody changes by hand are followed at once.
	swings, swingTime = 32, 10 * time.Second
	// calmTime is how long a record that changed more often has to rest before it counts as it stands.
	calmTime = time.Minute
)

// Damper has records that change again and again count by the worst that they said: each change of one has all nodes
// write theirs and set the MTU of all their pods, and whoever rules one node, or has a bad cable, could have them do so
// without end. What is worst is safe: see [View.Agree], which lets views be old.
type Damper struct {
	self  netip.Addr
	view  topology.MTUs
	peers map[netip.Addr]*swinging
}

// swinging is a node's record and its changes; the zero value has none.
type swinging struct {
	last topology.NodeMTU
	// level is how many of its changes are not forgotten at.
	level float64
	at    time.Time
	// worst is what it said while it changed too often, until it has rested; not valid otherwise.
	worst topology.NodeMTU
	until time.Time
}

// NewDamper is one of the node self, whose own record counts as it is.
func NewDamper(self netip.Addr) *Damper {
	return &Damper{self: self, peers: map[netip.Addr]*swinging{}}
}

// See takes in what all nodes have written now. It returns the nodes whose records have begun to change too often.
func (d *Damper) See(now time.Time, view topology.MTUs) (begun []netip.Addr) {
	first := d.view.Nodes == nil
	d.view = view
	for ip, r := range view.Nodes {
		if ip == d.self {
			continue
		}
		s := d.peers[ip]
		if s == nil {
			s = &swinging{at: now}
			d.peers[ip] = s
			if first {
				s.last = r
			}
		}
		if s.changed(now, r) {
			begun = append(begun, ip)
		}
	}
	for ip, s := range d.peers {
		if _, ok := view.Nodes[ip]; ok {
			continue
		}
		if s.changed(now, topology.NodeMTU{}) {
			begun = append(begun, ip)
		}
		if s.forgotten(now) {
			delete(d.peers, ip)
		}
	}
	return begun
}

// changed takes in what the record is now, with no sizes where there is none, and reports whether it has begun to change too
// often.
func (s *swinging) changed(now time.Time, r topology.NodeMTU) (begun bool) {
	if r.Carries == s.last.Carries && r.Receives == s.last.Receives && r.Sends == s.last.Sends {
		return false
	}
	was := s.last
	s.level = s.left(now) + 1
	s.at, s.last = now, r
	damped := now.Before(s.until)
	if s.level <= swings && !damped {
		return false
	}
	if !damped {
		s.worst = topology.NodeMTU{}
	}
	s.level = min(s.level, swings) // a minute of rest is enough, however often it changed
	s.until = now.Add(calmTime)
	s.worst = worse(worse(s.worst, was), r)
	return !damped
}

// left is how many changes are not forgotten now.
func (s *swinging) left(now time.Time) float64 {
	return max(0, s.level-float64(now.Sub(s.at))/float64(swingTime))
}

// forgotten reports whether there is nothing to remember of a record that is gone.
func (s *swinging) forgotten(now time.Time) bool {
	return !now.Before(s.until) && s.left(now) == 0
}

// worse is the least that either carries and receives, and the most that it sends. One without sizes is none.
func worse(a, b topology.NodeMTU) topology.NodeMTU {
	switch {
	case a.Carries == 0:
		return b
	case b.Carries == 0:
		return a
	}
	b.Carries, b.Receives, b.Sends = min(a.Carries, b.Carries), min(a.Receives, b.Receives), max(a.Sends, b.Sends)
	return b
}

// View is what was seen last, with what counts now of records that change too often.
func (d *Damper) View(now time.Time) topology.MTUs {
	v, own := d.view, false
	for ip, s := range d.peers {
		if !now.Before(s.until) || s.worst.Carries == 0 {
			continue
		}
		if !own {
			v.Nodes, own = maps.Clone(v.Nodes), true
		}
		v.Nodes[ip] = s.worst
	}
	return v
}
