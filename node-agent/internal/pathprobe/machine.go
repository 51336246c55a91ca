package pathprobe

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"
)

const (
	// tries are how many full-size probes must be lost before a path is suspected.
	tries = 3
	// rungs are how many sizes one round of a search tries, at most.
	rungs = 16
	// A size that passes is sent 2*confirmations times at last, as is the next one: sure
	// of these must be answered, and none of those, or it is no hole but a path that is
	// overloaded and loses some of any size.
	confirmations, sure = 3, 5
	// maxWide bounds the searches that try many sizes at once: whatever is behind the
	// same black hole is found with few, once its size is known.
	maxWide = 8
)

// timing of a machine.
type timing struct {
	// interval is between rounds of one peer, retry how long an answer may take,
	// recheck how often a black hole is looked at for a larger size.
	interval, retry, recheck time.Duration
}

// probe is a datagram to be sent.
type probe struct {
	peer netip.Addr
	// size, bytes, of its IP packet; small is the least there is.
	size  int
	nonce uint64
}

// small stands for the least size: whether the peer answers at all.
const small = 0

// machine decides what to send and what follows from the answers. It does no I/O
// and has no clock of its own.
type machine struct {
	timing
	// floor is the size that is taken to pass wherever a small one does, bytes.
	floor int
	nonce func() uint64
	peers map[netip.Addr]*peer
	// hint is the size last found: others are likely behind the same black hole.
	hint int
	wide int
	// news is set when a verdict changed.
	news bool
}

// peer is the path to one peer.
type peer struct {
	addr netip.Addr
	// own and theirs are the largest packets, bytes, that either end would send;
	// theirs is 0 until the peer has said it.
	own, theirs int
	// size is the largest that passes, where that is less than target; else 0.
	size int
	// due is when there is something to do.
	due time.Time
	// sent are the sizes of this round's probes, by nonce.
	sent map[uint64]int
	// tried counts the full-size ones; heard is that the peer answered in this round, answered when it did last.
	tried    int
	heard    bool
	answered time.Time
	// listens is what it said then of itself.
	listens   bool
	search    *search
	recheckAt time.Time
}

// search looks for the largest size that passes.
type search struct {
	// pass is known to pass, fail is known not to.
	pass, fail int
	sizes      []int
	sends      int
	wide       bool
	// confirms is that this is the last round, and passed how often pass did in it.
	confirms bool
	passed   int
}

// target is the size that should pass; 0 while that is not known.
func (p *peer) target() int {
	if p.theirs == 0 {
		return 0
	}
	return min(p.own, p.theirs)
}

// aim is the size that rounds try.
func (p *peer) aim() int {
	if p.size > 0 {
		return p.size
	}
	return p.target()
}

func newMachine(t timing, floor int, nonce func() uint64) *machine {
	return &machine{timing: t, floor: floor, nonce: nonce, peers: map[netip.Addr]*peer{}}
}

// setPeers replaces the peers; own is the largest packet to be sent to each.
func (m *machine) setPeers(now time.Time, own map[netip.Addr]int) {
	for addr, p := range m.peers {
		if _, ok := own[addr]; !ok {
			m.rest(p, now)
			m.news = m.news || p.size > 0
			delete(m.peers, addr)
		}
	}
	for addr, size := range own {
		p, ok := m.peers[addr]
		if !ok {
			// Not all at once, and not so late that a hole waits for it.
			first := now.Add(rand.N(min(m.interval, 2*m.retry)))
			m.peers[addr] = &peer{addr: addr, own: size, due: first, sent: map[uint64]int{}}
			continue
		}
		m.retarget(p, now, size, p.theirs)
	}
}

// retarget takes in what either end would send. Where that changes what should
// pass, the round begins anew.
func (m *machine) retarget(p *peer, now time.Time, own, theirs int) {
	was := p.target()
	p.own, p.theirs = own, theirs
	if p.target() == was {
		return
	}
	if p.size >= p.target() {
		m.verdict(p, 0)
	}
	m.rest(p, now)
}

// rest ends the round; the next begins at next.
func (m *machine) rest(p *peer, next time.Time) {
	if p.search != nil && p.search.wide {
		m.wide--
	}
	p.search, p.tried, p.heard, p.due = nil, 0, false, next
	clear(p.sent)
}

// later is a while after now, not the same for all.
func (m *machine) later(now time.Time) time.Time {
	return now.Add(m.interval*9/10 + rand.N(m.interval/5))
}

func (m *machine) verdict(p *peer, size int) {
	if p.size != size {
		p.size, m.news = size, true
	}
}

// step is what there is to send now, and when to call again.
func (m *machine) step(now time.Time) (out []probe, next time.Time) {
	next = now.Add(m.interval)
	for _, p := range m.peers {
		if !p.due.After(now) {
			out = m.act(out, p, now)
		}
		if p.due.Before(next) {
			next = p.due
		}
	}
	return out, next
}

func (m *machine) act(out []probe, p *peer, now time.Time) []probe {
	switch {
	case p.search != nil:
		return m.searchOn(out, p, now)
	case p.size > 0 && p.tried == 0 && !now.Before(p.recheckAt):
		p.recheckAt = now.Add(m.recheck)
		return m.lookFor(out, p, now, p.size)
	case p.tried < tries:
		if p.target() > 0 {
			out = m.send(out, p, p.aim())
		}
		// The first time a small one only where nothing is known of the peer.
		if p.target() == 0 || p.tried > 0 {
			out = m.send(out, p, small)
		}
		p.tried++
		p.due = now.Add(m.retry)
		return out
	case p.heard && p.aim() > m.floor:
		return m.lookFor(out, p, now, m.floor)
	}
	m.rest(p, m.later(now)) // a peer that answers nothing is not judged
	return out
}

func (m *machine) send(out []probe, p *peer, size int) []probe {
	nonce := m.nonce()
	p.sent[nonce] = size
	return append(out, probe{peer: p.addr, size: size, nonce: nonce})
}

// lookFor begins to search from a size that passes. First are the likely ones:
// nothing has changed, or it is the black hole that others are behind.
func (m *machine) lookFor(out []probe, p *peer, now time.Time, pass int) []probe {
	m.rest(p, now)
	s := &search{pass: pass, fail: p.target() + 1}
	hint := p.size
	if hint == 0 {
		hint = m.hint
	}
	if hint >= pass && hint < p.target() {
		s.sizes = []int{hint, hint + 1, p.target()}
	}
	p.search = s
	return m.searchOn(out, p, now)
}

// searchOn sends a round's sizes twice, then narrows the search by what was
// answered.
func (m *machine) searchOn(out []probe, p *peer, now time.Time) []probe {
	s := p.search
	if s.sends == 2 {
		if !p.heard {
			m.rest(p, m.later(now))
			return out
		}
		for _, size := range s.sizes {
			if size > s.pass {
				s.fail = min(s.fail, size)
			}
		}
		s.sizes, s.sends, p.heard = nil, 0, false
	}
	if s.fail-s.pass <= 1 && s.sizes == nil {
		switch {
		case s.pass >= p.target() || s.pass == p.size || s.passed >= sure:
			m.found(p, s.pass, now)
			return out
		case s.confirms:
			m.rest(p, m.later(now)) // it loses too much to be judged
			return out
		}
		s.confirms, s.sizes = true, slices.Repeat([]int{s.pass, s.fail}, confirmations)
	}
	if s.sizes == nil {
		if !s.wide && m.wide >= maxWide {
			m.rest(p, now.Add(m.retry)) // the others' answer may be this one's
			p.tried, p.heard = tries, true
			return out
		}
		if !s.wide {
			s.wide = true
			m.wide++
		}
		s.sizes = ladder(s.pass, s.fail)
	}
	for _, size := range s.sizes {
		if size > s.pass || s.confirms {
			out = m.send(out, p, size)
		}
	}
	out = m.send(out, p, small)
	s.sends++
	p.due = now.Add(m.retry / 2)
	return out
}

// ladder are sizes between pass and fail, the largest first.
func ladder(pass, fail int) []int {
	var sizes []int
	step := (fail - pass - 1 + rungs - 1) / rungs
	for size := fail - 1; size > pass; size -= step {
		sizes = append(sizes, size)
	}
	return sizes
}

// found ends a search.
func (m *machine) found(p *peer, size int, now time.Time) {
	if size >= p.target() {
		m.verdict(p, 0)
	} else {
		m.verdict(p, size)
		m.hint = size
		p.recheckAt = now.Add(m.recheck)
	}
	m.rest(p, m.later(now))
}

// answer takes in that a probe arrived; theirs is what the peer would send, and listens what it says of itself. It
// reports whether there is something to do at once.
func (m *machine) answer(now time.Time, from netip.Addr, nonce uint64, theirs int, listens bool) bool {
	p, ok := m.peers[from]
	if !ok {
		return false
	}
	size, ok := p.sent[nonce]
	if !ok {
		return false
	}
	delete(p.sent, nonce)
	p.heard, p.answered, p.listens = true, now, listens
	m.retarget(p, now, p.own, theirs)
	switch {
	case size == small:
	case p.search != nil && p.search.confirms && size == p.search.pass:
		p.search.passed++
	case p.search != nil:
		p.search.pass, p.search.passed = max(p.search.pass, size), 0
	case size >= p.aim():
		m.rest(p, m.later(now))
	}
	return !p.due.After(now)
}

// ask has a round of each of these begin now, where none is under way.
func (m *machine) ask(now time.Time, peers []netip.Addr) {
	for _, addr := range peers {
		if p, ok := m.peers[addr]; ok && p.search == nil && p.tried == 0 {
			p.due = now
		}
	}
}

// tooBig takes in that the node itself does not send a probe: its own link is
// smaller than was known, which says nothing about the path.
func (m *machine) tooBig(now time.Time, to netip.Addr) {
	if p, ok := m.peers[to]; ok {
		m.rest(p, m.later(now))
	}
}

// holes are the sizes that pass where larger ones should.
func (m *machine) holes() map[netip.Addr]int {
	out := map[netip.Addr]int{}
	for addr, p := range m.peers {
		if p.size > 0 {
			out[addr] = p.size
		}
	}
	return out
}

// silent are the peers that have answered, and have not for as long as it takes until a black hole is looked at again.
func (m *machine) silent(now time.Time) []netip.Addr {
	var out []netip.Addr
	for addr, p := range m.peers {
		if !p.answered.IsZero() && now.Sub(p.answered) > m.recheck {
			out = append(out, addr)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}
