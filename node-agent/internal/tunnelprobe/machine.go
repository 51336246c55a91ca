package tunnelprobe

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

const (
	// calm and alarmed are how long rounds last: while all that are asked answer, and while there is doubt about one.
	calm, alarmed = 2 * time.Second, time.Second
	// perRound is how many nodes a round asks, in turn; perAlarm how many where none of the round before answered.
	perRound, perAlarm = 16, 64
	// cutAfter is how many questions in a row a node must not answer that it was asked while it answered outside of the
	// tunnels; an answer to any of as many, as late as it comes, is one.
	cutAfter = 3
)

// machine decides whom to ask and what follows from the answers. It does no I/O and has no clock of its own.
type machine struct {
	nonce   func() uint64
	outside Outside
	// fresh is how old what a node said outside of the tunnels may be.
	fresh time.Duration
	// nodes are by tunnel address, overlay the same by that in the overlay.
	nodes, overlay map[netip.Addr]*node
	// last is the node that was asked last in its turn.
	last netip.Addr
	// answered is when any node did last.
	answered time.Time
	// listening is how many nodes say that they answer.
	listening int
	// asked and silent are how many were asked in the last round, and did not answer.
	asked, silent int
}

// node is one that is asked.
type node struct {
	Node
	// askedAt is when the question was sent that is open, zero for none; sent is what that and those before were marked with.
	askedAt time.Time
	sent    [cutAfter]uint64
	// doubt is that it did not answer the last question. Then it is asked outside of the tunnels beside each.
	doubt bool
	// missed is how many it has not answered though it answered there; since is when the first of them was sent.
	missed int
	since  time.Time
}

// cut is that it is cut off.
func (n *node) cut() bool { return n.missed >= cutAfter }

// rest forgets what it has not answered.
func (n *node) rest() { n.askedAt, n.doubt, n.missed = time.Time{}, false, 0 }

// question is one to be sent.
type question struct {
	to    Node
	nonce uint64
}

func newMachine(nonce func() uint64, outside Outside, fresh time.Duration) *machine {
	return &machine{nonce: nonce, outside: outside, fresh: fresh}
}

// setNodes replaces the nodes.
func (m *machine) setNodes(list []Node) {
	had := m.nodes
	m.nodes, m.overlay = map[netip.Addr]*node{}, map[netip.Addr]*node{}
	for _, n := range list {
		have := had[n.Tunnel]
		if have == nil || have.Node != n {
			have = &node{Node: n}
		}
		m.nodes[n.Tunnel], m.overlay[n.Overlay] = have, have
	}
}

// rest forgets what was not answered: this node was not well meanwhile.
func (m *machine) rest() {
	for _, n := range m.nodes {
		n.rest()
	}
}

// round ends a round and begins the next: whom to ask, which of them to ask outside of the tunnels too, and how long it lasts.
func (m *machine) round(now time.Time) (ask []question, doubt []netip.Addr, lasts time.Duration) {
	m.silent, m.listening = 0, 0
	var listening []netip.Addr
	for at, n := range m.nodes {
		answered, listens := m.outside.Answered(at)
		if !listens || now.Sub(answered) > m.fresh {
			n.rest() // it is away, of another release, or not well: nothing follows from its silence
			continue
		}
		listening = append(listening, at)
		if n.askedAt.IsZero() {
			continue
		}
		m.silent++
		if answered.After(n.askedAt) && !n.cut() {
			if n.missed++; n.missed == 1 {
				n.since = n.askedAt
			}
		}
		n.askedAt, n.doubt = time.Time{}, true
	}
	m.listening = len(listening)
	most := perRound
	if m.asked > 0 && m.silent >= m.asked {
		most = perAlarm
	}
	lasts = calm
	for _, n := range m.turn(listening, most) {
		copy(n.sent[1:], n.sent[:])
		n.askedAt, n.sent[0] = now, m.nonce()
		ask = append(ask, question{n.Node, n.sent[0]})
		if n.doubt {
			doubt = append(doubt, n.Tunnel)
		}
		if n.doubt && !n.cut() {
			lasts = alarmed
		}
	}
	m.asked = len(ask)
	return ask, doubt, lasts
}

// turn are those of all that are asked next, so many at most: for one half those that did not answer, first those about whom
// it is known soonest whether they are cut off, else all in turn.
func (m *machine) turn(all []netip.Addr, most int) (turn []*node) {
	slices.SortFunc(all, netip.Addr.Compare)
	first, found := slices.BinarySearchFunc(all, m.last, netip.Addr.Compare)
	if found {
		first++
	}
	all = slices.Concat(all[first:], all[:first])
	for _, at := range all {
		if n := m.nodes[at]; n.doubt {
			turn = append(turn, n)
		}
	}
	slices.SortStableFunc(turn, func(a, b *node) int { return cmp.Compare(b.missed%cutAfter, a.missed%cutAfter) })
	turn = turn[:min(most/2, len(turn))]
	for _, at := range all {
		if n := m.nodes[at]; len(turn) < most && !slices.Contains(turn, n) {
			turn, m.last = append(turn, n), at
		}
	}
	return turn
}

// answer takes in that a node, which has that address in the overlay, has answered a question.
func (m *machine) answer(now time.Time, overlay netip.Addr, nonce uint64) {
	if n := m.overlay[overlay]; n != nil && nonce != 0 && slices.Contains(n.sent[:], nonce) {
		n.rest()
		n.sent, m.answered = [cutAfter]uint64{}, now
	}
}

// cut are the nodes, in order, that do not answer through the tunnels while they answer outside of them. All is that no
// node has answered since the last of them did not, and that those who could are half of all at least: one of two that
// listen among many that do not says little of this node.
func (m *machine) cut() (cut []netip.Addr, all bool) {
	var since time.Time
	for _, n := range m.nodes {
		if n.cut() {
			cut = append(cut, n.Tunnel)
			if n.since.After(since) {
				since = n.since
			}
		}
	}
	slices.SortFunc(cut, netip.Addr.Compare)
	return cut, len(cut) > 0 && !m.answered.After(since) && 2*m.listening >= len(m.nodes)
}
