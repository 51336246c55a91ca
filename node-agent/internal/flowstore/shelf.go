package flowstore

import (
	"iter"
	"slices"

	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
)

// flowKey is the identity of a flow: of those with the same key a table has one. It
// shares the match with the flow.
type flowKey struct {
	match    of.Match
	priority uint16
	table    uint8
}

func keyOf(f of.Flow) flowKey { return flowKey{f.Match, f.Priority, f.Table} }

// state is what the switch is known to have in place of an item.
type state uint8

const (
	absent  state = iota
	differs       // something else, or perhaps something else
	same
)

// item is a flow, a group or a meter that somebody wants or that the switch has.
type item[V any] struct {
	value V
	// owners are as many as want it so: 0 where it has to go.
	owners int32
	// kind is its owners', or that of the area where it was found.
	kind  uint8
	state state
	// queued is the number of the area, from 1, in whose queue it is; 0 for none.
	queued uint8
	// stray is that no owner ever wanted it; marked, that who looks at all items has
	// seen this one.
	stray, marked bool
}

// due reports whether the switch has to be changed for the item.
func (i *item[V]) due() bool {
	if i.owners == 0 {
		return i.state != absent
	}
	return i.state != same
}

// claim is of an owner that has to wait, as another has the same key otherwise.
type claim[V any] struct {
	owner Owner
	kind  uint8
	value V
}

// shelf is all flows, all groups or all meters.
type shelf[K comparable, V any] struct {
	areaOf func(kind uint8) *area
	key    func(V) K
	equal  func(a, b V) bool
	// counted, if not nil, is told how many of a kind are wanted more.
	counted func(kind uint8, v V, n int32)

	items   map[K]*item[V]
	waiting map[K][]claim[V]
	// queues are, by area, items that may be due.
	queues [][]*item[V]
	// before is, while a change may be taken back, how items were that it touched.
	before []was[V]
	noting bool
}

// was is how an item was.
type was[V any] struct {
	item    *item[V]
	copy    item[V]
	waiting []claim[V]
}

func newShelf[K comparable, V any](areas int, areaOf func(uint8) *area, key func(V) K, equal func(a, b V) bool) *shelf[K, V] {
	return &shelf[K, V]{
		areaOf: areaOf, key: key, equal: equal,
		items: map[K]*item[V]{}, waiting: map[K][]claim[V]{}, queues: make([][]*item[V], areas),
	}
}

// claim has an owner want v, and reports whether it has to wait.
func (s *shelf[K, V]) claim(o Owner, kind uint8, v V) (i *item[V], waits bool) {
	k := s.key(v)
	i = s.items[k]
	if i == nil {
		i = &item[V]{value: v, kind: kind}
		s.items[k] = i
	}
	s.note(k, i)
	switch {
	case i.owners == 0:
		s.become(i, kind, v)
	case s.equal(i.value, v):
		i.owners++
	default:
		s.waiting[k] = append(s.waiting[k], claim[V]{o, kind, v})
		return i, true
	}
	return i, false
}

// become gives an item that nobody wants its first owner.
func (s *shelf[K, V]) become(i *item[V], kind uint8, v V) {
	if i.state == absent || !s.equal(i.value, v) {
		i.value = v
		i.state = min(i.state, differs)
	}
	i.owners, i.kind, i.stray = 1, kind, false
	s.count(i, 1)
	s.queue(i)
}

// release has an owner want an item no more. The first that waits gets it, with all that
// want the same.
func (s *shelf[K, V]) release(o Owner, i *item[V]) {
	k := s.key(i.value)
	s.note(k, i)
	waiting := s.waiting[k]
	if at := slices.IndexFunc(waiting, func(c claim[V]) bool { return c.owner == o }); at >= 0 {
		s.wait(k, slices.Concat(waiting[:at], waiting[at+1:]))
		return
	}
	if i.owners--; i.owners > 0 {
		return
	}
	s.count(i, -1)
	if len(waiting) == 0 {
		s.queue(i)
		return
	}
	var rest []claim[V]
	s.become(i, waiting[0].kind, waiting[0].value)
	for _, c := range waiting[1:] {
		if s.equal(c.value, i.value) {
			i.owners++
		} else {
			rest = append(rest, c)
		}
	}
	s.wait(k, rest)
}

// releaseAll has an owner let go of what it had but for what it goes on to want alike, which
// it returns by key.
func releaseAll[K comparable, V any](s *shelf[K, V], o Owner, had []*item[V], want []V) map[K]*item[V] {
	if len(had) == 0 {
		return nil
	}
	wanted := make(map[K]int, len(want))
	for n, v := range want {
		wanted[s.key(v)] = n
	}
	stays := map[K]*item[V]{}
	for _, i := range had {
		k := s.key(i.value)
		if first, twice := stays[k]; twice {
			s.release(o, first)
			delete(stays, k)
			delete(wanted, k)
		}
		if n, ok := wanted[k]; ok && s.equal(want[n], s.told(o, i)) {
			stays[k] = i
			continue
		}
		s.release(o, i)
	}
	return stays
}

// told is what an owner wants in place of an item that it has or waits for.
func (s *shelf[K, V]) told(o Owner, i *item[V]) V {
	if c, waits := s.claimOf(o, s.key(i.value)); waits {
		return c.value
	}
	return i.value
}

// claimOf is that of an owner which waits for what has the key.
func (s *shelf[K, V]) claimOf(o Owner, k K) (c claim[V], waits bool) {
	at := slices.IndexFunc(s.waiting[k], func(c claim[V]) bool { return c.owner == o })
	if at < 0 {
		return c, false
	}
	return s.waiting[k][at], true
}

// claimAll gives an owner what it wants; stays are what it did not let go of.
func claimAll[K comparable, V any](s *shelf[K, V], o Owner, kind uint8, want []V, stays map[K]*item[V]) (items []*item[V], waits bool) {
	if len(want) == 0 {
		return nil, false
	}
	items = make([]*item[V], len(want))
	for n, v := range want {
		var w bool
		k := s.key(v)
		if i, ok := stays[k]; ok {
			delete(stays, k)
			_, w = s.claimOf(o, k)
			items[n] = i
		} else {
			items[n], w = s.claim(o, kind, v)
		}
		waits = waits || w
	}
	return items, waits
}

func (s *shelf[K, V]) wait(k K, claims []claim[V]) {
	if len(claims) == 0 {
		delete(s.waiting, k)
	} else {
		s.waiting[k] = claims
	}
}

func (s *shelf[K, V]) count(i *item[V], n int32) {
	if s.counted != nil {
		s.counted(i.kind, i.value, n)
	}
}

// queue notes that an item may be due.
func (s *shelf[K, V]) queue(i *item[V]) {
	if a := s.areaOf(i.kind).number; i.queued != a+1 {
		i.queued = a + 1
		s.queues[a] = append(s.queues[a], i)
	}
}

// note remembers how an item is before it is touched.
func (s *shelf[K, V]) note(k K, i *item[V]) {
	if s.noting {
		s.before = append(s.before, was[V]{i, *i, slices.Clone(s.waiting[k])})
	}
}

// undo makes the items as they were before they were touched.
func (s *shelf[K, V]) undo() {
	for _, w := range slices.Backward(s.before) {
		k := s.key(w.item.value)
		if w.item.owners > 0 {
			s.count(w.item, -1)
		}
		queued := w.item.queued
		*w.item = w.copy
		w.item.queued = queued
		if w.item.owners > 0 {
			s.count(w.item, 1)
		}
		s.wait(k, w.waiting)
		s.queue(w.item)
	}
}

// settled ends a change that may be taken back.
func (s *shelf[K, V]) settled() {
	for _, w := range s.before {
		s.forget(w.item)
	}
	s.before, s.noting = nil, false
}

// touched are the items that the change touched, some of them twice.
func (s *shelf[K, V]) touched() []*item[V] {
	items := make([]*item[V], len(s.before))
	for n, w := range s.before {
		items[n] = w.item
	}
	return items
}

// dues are those of the items that are due, each once: those to be written, and those to
// be removed.
func dues[V any](items []*item[V]) (write, remove []*item[V]) {
	for _, i := range items {
		switch {
		case i.marked || !i.due():
			continue
		case i.owners > 0:
			write = append(write, i)
		default:
			remove = append(remove, i)
		}
		i.marked = true
	}
	for _, i := range items {
		i.marked = false
	}
	return write, remove
}

// done notes that the switch has an item as it should be.
func (s *shelf[K, V]) done(i *item[V]) {
	if i.owners > 0 {
		i.state = same
		return
	}
	i.state = absent
	s.forget(i)
}

// forget drops an item that nobody wants and the switch does not have.
func (s *shelf[K, V]) forget(i *item[V]) {
	if k := s.key(i.value); i.owners == 0 && i.state == absent && s.items[k] == i {
		delete(s.items, k)
	}
}

// dues are the items of an area's queue that are due: those to be written, and those
// to be removed.
func (s *shelf[K, V]) dues(a *area, strays bool) (write, remove []*item[V]) {
	stay := s.queues[a.number][:0]
	for _, i := range s.queues[a.number] {
		switch {
		case i.queued != a.number+1: // it is another area's by now
			continue
		case !i.due():
			i.queued = 0
			s.forget(i)
			continue
		case i.owners > 0:
			write = append(write, i)
		case strays || !i.stray:
			remove = append(remove, i)
		}
		stay = append(stay, i)
	}
	clear(s.queues[a.number][len(stay):])
	s.queues[a.number] = stay
	return write, remove
}

// judge compares what the switch has of an area with the items; repaired is told of each
// that had been as it should be.
func (s *shelf[K, V]) judge(a *area, found iter.Seq[V], retire func(V) (V, bool), repaired func(kind uint8)) {
	for v := range found {
		k := s.key(v)
		i := s.items[k]
		if i != nil && i.owners > 0 {
			i.marked = true
			if s.equal(i.value, v) {
				i.state = same
				continue
			}
			if i.state == same {
				repaired(i.kind)
			}
			i.state = differs
			s.queue(i)
			continue
		}
		if r, ok := retire(v); ok && s.equal(r, v) {
			continue
		}
		if i == nil {
			i = &item[V]{kind: a.kinds[0].number, stray: true}
			s.items[k] = i
			repaired(i.kind)
		}
		i.value, i.state, i.marked = v, same, true
		s.queue(i)
	}
	for _, i := range s.items {
		switch {
		case i.marked:
			i.marked = false
		case s.areaOf(i.kind) != a:
		default:
			if i.state == same && i.owners > 0 {
				repaired(i.kind)
			}
			i.state = absent
			s.queue(i)
		}
	}
}
