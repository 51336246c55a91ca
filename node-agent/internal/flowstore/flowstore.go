// Package flowstore owns what the bridge has: flows, groups and meters. Owners say what
// they want there; the store makes the switch agree with it, and keeps it so. Nobody else
// writes flows. docs/flows.md has the whole of it.
//
// It never decides what an owner wants, and calls nobody but the switch.
package flowstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
)

var (
	// ErrDisconnected: there is no connection to ovs-vswitchd now.
	ErrDisconnected = errors.New("not connected to ovs-vswitchd")
	// ErrNotReady: not everything is known yet that belongs into the flows, so none is
	// written or removed.
	ErrNotReady = errors.New("the node has no picture of the network yet")
	// ErrContested: another owner wants something else in the same place.
	ErrContested = errors.New("another owner has it otherwise")
)

// Switch is the bridge's OpenFlow connection; [of.Conn] is one.
type Switch interface {
	Flows(ctx context.Context, filter of.FlowFilter) ([]of.FlowStats, error)
	Groups(ctx context.Context) ([]of.GroupEntry, error)
	Meters(ctx context.Context) ([]of.Meter, error)
	MeterCounters(ctx context.Context) ([]of.MeterCounters, error)
	Commit(ctx context.Context, mods []of.Mod) error
	Post(ctx context.Context, mods []of.Mod) error
	AddMeter(ctx context.Context, m of.Meter) error
	ModifyMeter(ctx context.Context, m of.Meter) error
	DeleteMeter(ctx context.Context, id uint32) error
	Watch(ctx context.Context, tables []uint8, heard func()) error
	FlushConnections(ctx context.Context, filter of.CTFilter) error
}

// Kind is what an owner is: a pod, a service.
type Kind string

// Owner is who wants something in the bridge.
type Owner struct {
	Kind Kind
	Name string
}

// String is the owner in messages.
func (o Owner) String() string { return string(o.Kind) + " " + o.Name }

// Want is all that an owner wants in the bridge; nothing, where it is one no more.
type Want struct {
	Flows  []of.Flow
	Groups []of.GroupEntry
	Meters []of.Meter
}

func (w Want) empty() bool { return len(w.Flows)+len(w.Groups)+len(w.Meters) == 0 }

// Area is a part of the bridge's flows that is read back as one. What is found in it
// that nobody wants goes, once each of its kinds is complete.
type Area struct {
	Name string
	// Cookie and Mask tell its flows from those of all other areas.
	Cookie, Mask uint64
	// Kinds are those of its owners. No kind is in two areas.
	Kinds []Kind
	// Groups and Meters say that its owners may want some. They have no cookies: those
	// that nobody wants go when all areas are complete that may have some.
	Groups, Meters bool
	// Every is how often [Store.Resync] reads it; 0 for always.
	Every time.Duration
	// AtOnce bounds a bundle of [Store.Set] and [Store.Resync], so that others do not wait
	// for all of a large change; 0 for no bound.
	AtOnce int
	// Together, if not nil, says which flows are never in several bundles, as some of them without the
	// others would let through what all of them deny: they are in the first, however many they are.
	Together func(of.Flow) bool
	// Retire, if not nil, is what a flow becomes that nobody wants, in place of being
	// deleted. One that is that already stays as it is.
	Retire func(of.Flow) (of.Flow, bool)
}

// Observer is told about what the store does; for metrics. It must not call the store.
type Observer interface {
	// Committed: one bundle of n changes in an area took seconds.
	Committed(area string, n int, seconds float64)
	// Repaired: n flows, groups and meters of owners of a kind had been changed by
	// somebody else. What nobody wants counts for the first kind of its area.
	Repaired(k Kind, n int)
}

// Config is what a store needs.
type Config struct {
	Areas    []Area
	Observer Observer
	// Watched are the tables that [Store.Run] watches: those whose flows are the owners'
	// alone, not the ones that the switch itself learns flows into.
	Watched []uint8
	// Now is a clock; nil for time.Now.
	Now func() time.Time
	// Logger is nil for slog.Default.
	Logger *slog.Logger
}

// Store is what one bridge has and should have. Its methods may be called at once.
type Store struct {
	observer Observer
	now      func() time.Time
	kinds    map[Kind]*kind
	byNumber []*kind
	areas    map[string]*area
	inOrder  []*area
	watched  []uint8
	log      *slog.Logger
	// changed is that somebody else changed something in the switch.
	changed chan struct{}

	mu sync.Mutex
	sw Switch
	// connections counts them.
	connections uint64
	// listens is that the switch tells what others change, where it can.
	listens bool

	flows  *shelf[flowKey, of.Flow]
	groups *shelf[uint32, of.GroupEntry]
	meters *shelf[uint32, of.Meter]
}

// kind is what the store knows of one; complete is that all its owners were once told.
type kind struct {
	name     Kind
	number   uint8
	area     *area
	complete bool
	owners   map[string]*holding
}

// holding is what an owner has.
type holding struct {
	flows  []*item[of.Flow]
	groups []*item[of.GroupEntry]
	meters []*item[of.Meter]
}

// area is what the store knows of one.
type area struct {
	Area
	number uint8
	kinds  []*kind
	// known is that the switch's part was read since it is connected, and that what
	// became of every commit since is known. readAt is when.
	known  bool
	readAt time.Time
	// commits counts, so that who reads without the lock finds out.
	commits uint64
	// tables are how many flows are wanted in each table.
	tables [256]int32
}

func (a *area) complete() bool {
	return !slices.ContainsFunc(a.kinds, func(k *kind) bool { return !k.complete })
}

// New makes an empty store. It panics when areas overlap: that is a mistake in a program.
func New(cfg Config) *Store {
	s := &Store{
		observer: cfg.Observer, now: cfg.Now, kinds: map[Kind]*kind{}, areas: map[string]*area{},
		watched: cfg.Watched, log: cfg.Logger, changed: make(chan struct{}, 1),
	}
	if s.now == nil {
		s.now = time.Now
	}
	if s.log == nil {
		s.log = slog.Default()
	}
	for _, spec := range cfg.Areas {
		a := &area{Area: spec, number: uint8(len(s.areas))}
		for _, b := range s.areas {
			if both := a.Mask & b.Mask; a.Cookie&both == b.Cookie&both {
				panic(fmt.Sprintf("flowstore: flows of %s and %s cannot be told apart", a.Name, b.Name))
			}
		}
		s.areas[a.Name], s.inOrder = a, append(s.inOrder, a)
		for _, name := range spec.Kinds {
			if _, twice := s.kinds[name]; twice {
				panic("flowstore: there are two kinds " + string(name))
			}
			k := &kind{name: name, number: uint8(len(s.byNumber)), area: a, owners: map[string]*holding{}}
			s.kinds[name], s.byNumber, a.kinds = k, append(s.byNumber, k), append(a.kinds, k)
		}
	}
	areaOf := func(kind uint8) *area { return s.byNumber[kind].area }
	s.flows = newShelf(len(s.areas), areaOf, keyOf, of.Flow.Equal)
	s.flows.counted = func(kind uint8, f of.Flow, n int32) { areaOf(kind).tables[f.Table] += n }
	s.groups = newShelf(len(s.areas), areaOf, func(g of.GroupEntry) uint32 { return g.ID }, of.GroupEntry.Equal)
	s.meters = newShelf(len(s.areas), areaOf, func(m of.Meter) uint32 { return m.ID }, of.Meter.Equal)
	return s
}

// Connect makes sw the switch. What it has is read with the next change or [Store.Resync]
// of each area.
func (s *Store) Connect(sw Switch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sw, s.listens = sw, false
	s.connections++
	for _, a := range s.areas {
		a.known = false
	}
}

// Disconnect says that the switch is gone.
func (s *Store) Disconnect() { s.Connect(nil) }

// Connected reports whether there is a switch.
func (s *Store) Connected() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sw != nil
}

// Change is a change of the picture, of owners in one area. The zero value is none.
type Change struct {
	set map[Owner]Want
	all map[Kind]bool
}

// Set replaces what an owner wants.
func (c *Change) Set(o Owner, w Want) {
	if c.set == nil {
		c.set = map[Owner]Want{}
	}
	c.set[o] = w
}

// All says that the change has all owners of the kinds: others of them want nothing any
// more, and the kinds are complete.
func (c *Change) All(kinds ...Kind) {
	if c.all == nil {
		c.all = map[Kind]bool{}
	}
	for _, k := range kinds {
		c.all[k] = true
	}
}

// target is the area of a change, with its owners in order.
func (s *Store) target(c Change) (*area, []Owner, error) {
	var target *area
	in := func(name Kind) error {
		k, ok := s.kinds[name]
		switch {
		case !ok:
			return fmt.Errorf("flowstore: no area has owners of kind %q", name)
		case target != nil && target != k.area:
			return fmt.Errorf("flowstore: one change of both %s and %s", target.Name, k.area.Name)
		}
		target = k.area
		return nil
	}
	owners := make([]Owner, 0, len(c.set))
	for o := range c.set {
		if err := in(o.Kind); err != nil {
			return nil, nil, err
		}
		owners = append(owners, o)
	}
	for k := range c.all {
		if err := in(k); err != nil {
			return nil, nil, err
		}
		for name := range s.kinds[k].owners {
			if o := (Owner{k, name}); !has(c.set, o) {
				owners = append(owners, o)
			}
		}
	}
	slices.SortFunc(owners, func(a, b Owner) int {
		return cmp.Or(cmp.Compare(s.kinds[a.Kind].number, s.kinds[b.Kind].number), cmp.Compare(a.Name, b.Name))
	})
	return target, owners, nil
}

func has(set map[Owner]Want, o Owner) bool {
	_, ok := set[o]
	return ok
}

// Size is how many flows the owners of an area want, InTable how many of them in one table.
func (s *Store) Size(name string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.areas[name].tables {
		n += int(t)
	}
	return n
}

// InTable is how many flows the owners of an area want in one table.
func (s *Store) InTable(name string, table uint8) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return int(s.areas[name].tables[table])
}
