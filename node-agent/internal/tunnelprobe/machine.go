package tunnelprobe

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

const (
	// calm is between rounds while all that are asked answer; alarmed is after a round that one
	// did not answer in, for as many of its rounds as doubted says.
	calm, alarmed = 3 * time.Second, time.Second
	doubted       = 5
	// perRound is how many nodes a round asks, in turn; perAlarm how many where none of the round before answered.
	perRound, perAlarm = 16, 64
	// cutAfter is how many rounds in a row a node must not answer in; an answer to any of as many questions, as late as it
	// comes, is one.
	cutAfter = 3
)

// machine decides whom to ask and what follows from the answers. It does no I/O and has no clock of its own.
type machine struct {
	nonce   func() uint64
	outside Outside
	// nodes are by tunnel address, overlay the same by that in the overlay.
	nodes, overlay map[netip.Addr]*node
	// last is the node that was asked last in its turn.
	last netip.Addr
	// answered is when any node did last.
	answered time.Time
	// asked is how many were in the last round.
	asked int
}

// node is one that is asked.
type node struct {
	Node
	// asked is that a question is open; sent is what that and those before were marked with.
	asked bool
	sent  [cutAfter]uint64
	// missed is how many rounds in a row it has not answered in, the first of which ended at since.
	missed int
	since  time.Time
	// cut is that it has answered outside of the tunnels meanwhile.
	cut bool
}

// question is one to be sent.
type question struct {
	to    Node
	nonce uint64
}

func newMachine(nonce func() uint64, outside Outside) *machine {
	return &machine{nonce: nonce, outside: outside}
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

// round ends a round and begins the next: whom to ask, which nodes to ask outside of the tunnels too, and how long it lasts.
func (m *machine) round(now time.Time) (ask []question, doubt []netip.Addr, lasts time.Duration) {
	lasts = calm
	for _, n := range m.nodes {
		if !n.asked {
			continue
		}
		n.asked = false
		if n.missed++; n.missed == 1 {
			n.since = now
		}
		if n.missed <= doubted {
			lasts = alarmed
		}
		doubt = append(doubt, n.Tunnel)
	}
	most := perRound
	if m.asked > 0 && len(doubt) == m.asked {
		most = perAlarm
	}
	for _, n := range m.turn(most) {
		copy(n.sent[1:], n.sent[:])
		n.asked, n.sent[0] = true, m.nonce()
		ask = append(ask, question{n.Node, n.sent[0]})
	}
	m.asked = len(ask)
	return ask, doubt, lasts
}

// turn are those that are asked next, so many at most: for one half those that did not answer, of late first, else all in turn.
// What does not listen, as its agent is of another release or not there, is not asked, and nothing is said of it.
func (m *machine) turn(most int) (turn []*node) {
	var all []netip.Addr
	for at, n := range m.nodes {
		answered, listens := m.outside.Answered(at)
		if !listens {
			n.missed, n.cut = 0, false
			continue
		}
		n.cut = n.missed >= cutAfter && answered.After(n.since)
		all = append(all, at)
	}
	slices.SortFunc(all, netip.Addr.Compare)
	first, found := slices.BinarySearchFunc(all, m.last, netip.Addr.Compare)
	if found {
		first++
	}
	all = slices.Concat(all[first:], all[:first])
	for _, at := range all {
		if n := m.nodes[at]; n.missed > 0 {
			turn = append(turn, n)
		}
	}
	slices.SortStableFunc(turn, func(a, b *node) int { return cmp.Compare(a.missed, b.missed) })
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
		n.asked, n.sent, n.missed, n.cut, m.answered = false, [cutAfter]uint64{}, 0, false, now
	}
}

// cut are the nodes, in order, that do not answer through the tunnels while they answer outside of them; all is that
// no node has answered since the last of them did not.
func (m *machine) cut() (cut []netip.Addr, all bool) {
	var since time.Time
	for _, n := range m.nodes {
		if n.cut {
			cut = append(cut, n.Tunnel)
			if n.since.After(since) {
				since = n.since
			}
		}
	}
	slices.SortFunc(cut, netip.Addr.Compare)
	return cut, len(cut) > 0 && !m.answered.After(since)
}
