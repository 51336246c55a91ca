// Package subnet decides which pod subnet each node has: it gives subnets to
// records that ask for one and checks those that people wrote by hand.
//
// It is pure: records and what this leader remembers go in, the writes that
// should be made come out. The rules are in docs/design.md, "Records".
package subnet

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/alloc"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// MaxFreed bounds the list of freed subnets.
const MaxFreed = 4096

// Record is one record below subnets/.
type Record struct {
	// Key is the last part of the record's key.
	Key string
	// Node is its content; of an unreadable record, what of it could be read.
	Node topology.Node
	// Mod and Create are the etcd revisions of its last change and its creation.
	Mod, Create int64
	// Unreadable says why the record does not parse; empty for one that does.
	Unreadable string
	// Using is the subnet that the node's pods have their addresses from, as its
	// agent says; not valid where that is not known.
	Using netip.Prefix
	// Decoded is false for an unreadable record of which nothing could be read.
	Decoded bool
}

// Outcome says what a Write does about its record. Refused and Waiting are called as
// in package topology.
type Outcome string

const (
	// Assigned: the record asked for a subnet and gets one.
	Assigned Outcome = "assigned"
	// Refused: what the record asks for cannot be, and is undone.
	Refused Outcome = "refused"
	// Waiting: no subnet is free; the record keeps asking.
	Waiting Outcome = "waiting"
	// Confirmed: the record asks for what it has.
	Confirmed Outcome = "confirmed"
)

// Write is one change that should be made, on the revision that was read.
type Write struct {
	Key     string
	Mod     int64
	Node    topology.Node
	Outcome Outcome
	// Message is the reason, where there is one.
	Message string

	create int64
}

// Plan is what should be done about one set of records.
type Plan struct {
	Writes []Write
	// Freed are the subnets that no record has any more, oldest first.
	Freed []netip.Prefix
	// InUse and Free count subnets of the pod network.
	InUse, Free int
}

// memory is what the planner knows of one key.
type memory struct {
	create int64
	// confirmed is the subnet it last had, tried one in a write whose fate is not
	// known; not valid where there is none.
	confirmed, tried netip.Prefix
}

// Planner plans for one term of one leader.
type Planner struct {
	first  bool
	memory map[string]memory
	held   map[netip.Prefix]struct{}
	freed  []netip.Prefix
	used   []netip.Prefix
}

// New starts a term; freed are subnets that were freed before, oldest first.
func New(freed []netip.Prefix) *Planner {
	return &Planner{first: true, memory: map[string]memory{}, held: map[netip.Prefix]struct{}{}, freed: slices.Clone(freed)}
}

// Reserve says which subnets nodes use, whatever the records say: they are given to nobody
// else.
func (p *Planner) Reserve(used []netip.Prefix) { p.used = used }

// Trying tells the planner that w is about to be written.
func (p *Planner) Trying(w Write) {
	m := p.memory[w.Key]
	if m.create != w.create {
		m = memory{create: w.create}
	}
	m.tried = w.Node.Subnet
	p.memory[w.Key] = m
}

// Wrote tells it that w was written. Call neither Wrote nor Failed where that is
// not known.
func (p *Planner) Wrote(w Write) {
	p.memory[w.Key] = memory{create: w.create, confirmed: w.Node.Subnet}
}

// Failed tells it that w was certainly not written.
func (p *Planner) Failed(w Write) {
	m := p.memory[w.Key]
	m.tried = netip.Prefix{}
	p.memory[w.Key] = m
}

// round is the making of one plan.
type round struct {
	planner *Planner
	config  topology.Config
	now     time.Time
	free    *alloc.Prefixes
	// has is the subnet of each key as far as the plan has come, owner who has
	// which, odd the keys whose subnet is none of the allocator's.
	has    map[string]netip.Prefix
	owner  map[netip.Prefix]string
	odd    []string
	writes []Write
}

// Plan says what should be written about records, which are all there are at
// one revision. An error means that cfg cannot be cut into subnets.
func (p *Planner) Plan(cfg topology.Config, records []Record, now time.Time) (Plan, error) {
	free, err := alloc.NewPrefixes(cfg.Network, cfg.NodeBits())
	if err != nil {
		return Plan{}, fmt.Errorf("node subnets: %w", err)
	}
	records = slices.SortedFunc(slices.Values(records), func(a, b Record) int {
		return cmp.Or(cmp.Compare(a.Mod, b.Mod), cmp.Compare(a.Key, b.Key))
	})
	r := &round{planner: p, config: cfg, now: now.UTC().Truncate(time.Second), free: free, has: map[string]netip.Prefix{}, owner: map[netip.Prefix]string{}}
	rest := r.observe(records)
	// What people wrote and nobody has checked yet is not given to others.
	for _, rec := range rest {
		free.Use(rec.Node.Subnet)
	}
	for _, s := range p.used {
		free.Use(s)
	}
	for i := range rest {
		r.decide(&rest[i])
	}
	p.first = false
	return Plan{Writes: r.writes, Freed: slices.Clone(p.freed), InUse: free.InUse(), Free: free.Free()}, nil
}

// observe takes in the records that stand as they were confirmed, and returns
// the others, on which to decide. When a term begins all subnets count as
// confirmed, the older record first.
func (r *round) observe(records []Record) (rest []Record) {
	p := r.planner
	next := map[string]memory{}
	for _, rec := range records {
		m := p.memory[rec.Key]
		if m.create != rec.Create {
			m = memory{create: rec.Create}
		}
		s := rec.Node.Subnet
		known := s.IsValid() && (p.first || s == m.confirmed || s == m.tried)
		if m.tried.IsValid() && s == m.tried {
			m = memory{create: rec.Create, confirmed: s}
		}
		switch {
		case rec.Unreadable != "" || !known || rec.Node.Assign:
			rest = append(rest, rec)
		case r.overlapping(rec.Key, s) != "":
			rest = append(rest, rec)
			m.confirmed = netip.Prefix{}
		default:
			m.confirmed = s
			r.take(rec.Key, s)
			r.misfit(rec)
		}
		next[rec.Key] = m
	}
	p.memory = next
	r.freeOld(records)
	return rest
}

// take notes that key has s.
func (r *round) take(key string, s netip.Prefix) {
	r.has[key], r.owner[s] = s, key
	r.free.Use(s)
	if !r.fits(s) {
		r.odd = append(r.odd, key)
	}
}

// fits reports whether s is one of those that the allocator gives out: two of
// them overlap only if they are the same.
func (r *round) fits(s netip.Prefix) bool {
	return s.Bits() == r.config.NodeBits() && s == s.Masked() && r.config.Network.Contains(s.Addr())
}

// misfit says in a confirmed record that it does not fit the configuration, but
// leaves its subnet: the node has pods in it, and it may be the configuration
// that is wrong.
func (r *round) misfit(rec Record) {
	err := rec.Node.Validate(r.config)
	if err == nil {
		return
	}
	message := "does not fit the network configuration: " + err.Error()
	if rec.Node.Status != nil && rec.Node.Status.Message == message {
		return
	}
	n := rec.Node
	r.write(rec, n, Refused, message)
	r.writes[len(r.writes)-1].Node.Status.Outcome = topology.Misfit
}

// freeOld moves the subnets that nobody has any more to the freed ones, and
// tells the allocator.
func (r *round) freeOld(records []Record) {
	p := r.planner
	held := map[netip.Prefix]struct{}{}
	for _, rec := range records {
		if s := rec.Node.Subnet; s.IsValid() {
			held[s] = struct{}{}
		}
		if m := p.memory[rec.Key]; m.confirmed.IsValid() {
			held[m.confirmed] = struct{}{}
		}
	}
	p.freed = slices.DeleteFunc(p.freed, func(s netip.Prefix) bool { _, ok := held[s]; return ok })
	for _, s := range slices.SortedFunc(maps.Keys(p.held), netip.Prefix.Compare) {
		if _, still := held[s]; !still && !slices.Contains(p.freed, s) {
			p.freed = append(p.freed, s)
		}
	}
	if over := len(p.freed) - MaxFreed; over > 0 {
		p.freed = slices.Clone(p.freed[over:])
	}
	p.held = held
	for _, s := range p.freed {
		if r.free.Use(s) {
			r.free.Release(s)
		}
	}
}

// overlapping names the record, other than key, whose subnet overlaps s; empty
// when none does.
func (r *round) overlapping(key string, s netip.Prefix) string {
	if owner, ok := r.owner[s]; ok && owner != key {
		return owner
	}
	candidates := r.odd
	if !r.fits(s) {
		candidates = slices.Sorted(maps.Keys(r.has))
	}
	for _, k := range candidates {
		if k != key && r.has[k].Overlaps(s) {
			return k
		}
	}
	return ""
}

// decide answers one record that asks for something or was changed by hand.
func (r *round) decide(rec *Record) {
	n := rec.Node
	if rec.Unreadable != "" {
		// Only its request is cleared: the rest is for people to mend.
		if rec.Decoded && n.Assign {
			n.Assign = false
			r.refuse(*rec, n, rec.Unreadable)
		}
		return
	}
	bare := n.WithSubnet(netip.Prefix{})
	if err := bare.Validate(r.config); err != nil {
		if n.Assign || n.Subnet.IsValid() {
			bare.Assign = false
			r.refuse(*rec, bare, err.Error())
		}
		return
	}
	if n.Subnet.IsValid() {
		r.written(rec)
		return
	}
	if n.Assign {
		r.assign(rec)
	}
}

// written decides on a subnet that was written by hand, or is asked for again.
func (r *round) written(rec *Record) {
	n := rec.Node
	reason := ""
	if err := n.Validate(r.config); err != nil {
		reason = err.Error()
	} else if other := r.overlapping(rec.Key, n.Subnet); other != "" {
		reason = fmt.Sprintf("Subnet %s overlaps %s of node record %s", n.Subnet, r.has[other], other)
	}
	if reason == "" {
		r.take(rec.Key, n.Subnet)
		m := r.planner.memory[rec.Key]
		m.confirmed = n.Subnet
		r.planner.memory[rec.Key] = m
		if n.Assign {
			n.Assign, n.Status = false, nil
			r.write(*rec, n, Confirmed, "")
		}
		return
	}
	n.Assign = false
	n = n.WithSubnet(r.before(rec.Key))
	if n.Subnet.IsValid() {
		r.take(rec.Key, n.Subnet)
	}
	r.refuse(*rec, n, reason)
}

// before is the subnet that key had before someone wrote another, if it still
// can have it; else not valid.
func (r *round) before(key string) netip.Prefix {
	s := r.planner.memory[key].confirmed
	if !s.IsValid() || r.overlapping(key, s) != "" {
		return netip.Prefix{}
	}
	return s
}

// assign gives a subnet: the one that the record had before someone blanked it,
// else the one that the node's pods are in (its record was deleted and made anew),
// else a free one.
func (r *round) assign(rec *Record) {
	n := rec.Node
	n.Assign, n.Status = false, nil
	if n = n.WithSubnet(r.before(rec.Key)); !n.Subnet.IsValid() && r.fits(rec.Using) && r.overlapping(rec.Key, rec.Using) == "" {
		n.Subnet = rec.Using
	}
	if !n.Subnet.IsValid() {
		s, err := r.free.Allocate()
		if errors.Is(err, alloc.ErrExhausted) {
			r.wait(rec, err)
			return
		}
		n.Subnet = s
	}
	r.take(rec.Key, n.Subnet)
	r.write(*rec, n, Assigned, "")
}

// wait leaves the request standing: a subnet that comes later is no surprise.
func (r *round) wait(rec *Record, err error) {
	message := "waiting: no node subnet is free: " + err.Error()
	if rec.Node.Status != nil && rec.Node.Status.Message == message {
		return
	}
	r.write(*rec, rec.Node, Waiting, message)
}

func (r *round) refuse(rec Record, n topology.Node, reason string) {
	r.write(rec, n, Refused, "refused: "+reason)
}

func (r *round) write(rec Record, n topology.Node, outcome Outcome, message string) {
	if message != "" {
		n.Status = &topology.Status{Outcome: topology.Outcome(outcome), Message: message, Time: r.now}
	}
	r.writes = append(r.writes, Write{Key: rec.Key, Mod: rec.Mod, Node: n, Outcome: outcome, Message: message, create: rec.Create})
}
