// Package tenant decides which netID each namespace has: it gives netIDs to
// records that ask for one, carries out join, isolate and global, checks what
// people wrote by hand, and refuses what cannot be, with the reason.
//
// It is pure: records and what this leader remembers go in, the writes that
// should be made come out. The rules are in docs/design.md, "Records".
package tenant

import (
	"cmp"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/alloc"
	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// MaxFreed bounds the list of freed netIDs. Of 2^24 numbers, given out at
// random, one forgotten after 4096 others were freed is as good as never used.
const MaxFreed = 4096

// Record is one record below netnamespaces/.
type Record struct {
	// Key is the last part of the record's key.
	Key string
	// Namespace is its content; of an unreadable record, what of it could be read.
	Namespace topology.Namespace
	// Mod and Create are the etcd revisions of its last change and its creation.
	Mod, Create int64
	// Unreadable says why the record does not parse; empty for one that does.
	Unreadable string
	// Decoded is false for an unreadable record of which nothing could be read.
	Decoded bool
}

// Outcome says what a Write does about its record. Those that a Status tells of are
// called as in package topology.
type Outcome string

const (
	// Assigned: the record asked for a netID and gets one.
	Assigned Outcome = "assigned"
	// Done: its request is carried out.
	Done Outcome = "done"
	// Refused: its request cannot be carried out and is cleared.
	Refused Outcome = "refused"
	// Waiting: it asks for a first netID and none is free; the record keeps asking.
	Waiting Outcome = "waiting"
	// Unchanged: its request asks for what is so already, and is cleared.
	Unchanged Outcome = "unchanged"
	// Confirmed: a netID written by hand, or imported, is accepted, or the
	// record is brought back to what was confirmed before.
	Confirmed Outcome = "confirmed"
	// Stepped: a change of its netID goes on by a step. What was asked for is answered with
	// the last one.
	Stepped Outcome = "stepped"
)

// Write is one change that should be made, on the revision that was read.
type Write struct {
	Key       string
	Mod       int64
	Namespace topology.Namespace
	// Outcome and Action are for the log and the metrics; Action is the one asked for.
	Outcome Outcome
	Action  topology.Action
	// By is who made the request, where that is known.
	By string
	// Message is the reason, where there is one.
	Message string
	// From is the netID until now, nil where there was none.
	From *netid.ID

	create int64
}

// Plan is what should be done about one set of records.
type Plan struct {
	// Writes answer the requests of people, in the order to make them. When one fails
	// the later ones must wait for the next plan: they may build on it.
	Writes []Write
	// First give first netIDs, to records that ask for nothing else. They come after
	// Writes. None builds on another, so that they can be made together, and those that
	// are not made are in the next plan.
	First []Write
	// Freed are the netIDs that no record has any more, oldest first.
	Freed []netid.ID
	// InUse counts the distinct netIDs of tenants, global not among them.
	InUse int
	// UnderWay are the changes that nodes are taking up, in order of their namespaces.
	UnderWay []UnderWay
	// Without are nodes that are no longer waited for.
	Without []Without
}

// Config of a Planner.
type Config struct {
	// Global names the namespaces whose new records start global.
	Global []string
	// Import accepts netIDs as they stand, shared ones too, in records that no
	// controller has confirmed: a tree of the first k8s-ovs.
	Import bool
	// Freed are netIDs that were freed before, oldest first.
	Freed []netid.ID
	// Random is the source of netIDs: crypto/rand.Reader, save in tests.
	Random io.Reader
	// Min and Max bound the netIDs; those of package netid where zero.
	Min, Max netid.ID
}

// memory is what the planner knows of one key.
type memory struct {
	create int64
	// confirmed is what the record last said; nil: nothing yet.
	confirmed *standing
	// tried is what the write says that is being made, and unknown what those before it say
	// whose fate was never told.
	tried   *standing
	unknown []standing
}

// settle moves what was tried to what is not known.
func (m *memory) settle() {
	if m.tried != nil && !slices.Contains(m.unknown, *m.tried) {
		m.unknown = append(slices.Clone(m.unknown), *m.tried)
	}
	m.tried = nil
}

// Planner plans for one term of one leader. It remembers which netIDs were
// confirmed, so that a record rewritten by hand keeps its tenant.
type Planner struct {
	cfg    Config
	first  bool // no plan was made yet
	memory map[string]memory
	held   map[netid.ID]struct{}
	freed  []netid.ID
	steps  steps
}

// New starts a term.
func New(cfg Config) *Planner {
	if cfg.Min == 0 {
		cfg.Min = netid.Min
	}
	if cfg.Max == 0 {
		cfg.Max = netid.Max
	}
	return &Planner{cfg: cfg, first: true, memory: map[string]memory{}, held: map[netid.ID]struct{}{}, freed: slices.Clone(cfg.Freed), steps: newSteps()}
}

// Imported ends the import: call it when all writes of a plan were made.
func (p *Planner) Imported() { p.cfg.Import = false }

// Trying tells the planner that w is about to be written.
func (p *Planner) Trying(w Write) {
	m := p.memory[w.Key]
	if m.create != w.create {
		m = memory{create: w.create}
	}
	m.settle()
	m.tried = standingOf(w.Namespace)
	p.memory[w.Key] = m
}

// Wrote tells it that w was written. Call neither Wrote nor Failed where that is
// not known.
func (p *Planner) Wrote(w Write) {
	p.memory[w.Key] = memory{create: w.create, confirmed: standingOf(w.Namespace)}
}

// Failed tells it that w was certainly not written. An attempt before it, whose fate
// was not told, may have been.
func (p *Planner) Failed(w Write) {
	m := p.memory[w.Key]
	m.tried = nil
	p.memory[w.Key] = m
}

// Plan says what should be written about records, which are all there are at
// one revision. An error is that of the source of randomness.
//
// Requests are carried out in the order in which they were written, so that
// what becomes of several does not depend on how many of them a plan sees. First
// netIDs come after all of them, save those that a join needs. Changes of a netID go in
// steps, each of which all of nodes take up; one that has to wait for another keeps back what
// was asked for after it.
func (p *Planner) Plan(records []Record, nodes Nodes, now time.Time) (Plan, error) {
	sorted := make([]*Record, len(records))
	for i := range records {
		sorted[i] = &records[i]
	}
	slices.SortFunc(sorted, func(a, b *Record) int {
		return cmp.Or(cmp.Compare(a.Mod, b.Mod), strings.Compare(a.Key, b.Key))
	})
	if p.first && len(sorted) > 0 && !slices.ContainsFunc(sorted, func(r *Record) bool { return r.Namespace.Effective != nil }) {
		p.cfg.Import = true
	}
	without := p.steps.news(nodes, now)
	r, err := p.begin(sorted, nodes, now)
	if err != nil {
		return Plan{}, err
	}
	requests, first := r.split(sorted)
	for _, rec := range requests {
		r.step(rec.Key)
	}
	for _, rec := range first {
		r.step(rec.Key)
	}
	if r.err != nil {
		return Plan{}, r.err
	}
	p.first = false
	order := r.order()
	return Plan{Writes: order(requests), First: order(first), Freed: slices.Clone(p.freed), InUse: len(p.held), UnderWay: p.steps.underWay(), Without: without}, nil
}

// begin observes the records: who has which netID now.
func (p *Planner) begin(records []*Record, nodes Nodes, now time.Time) (*round, error) {
	ids, err := alloc.NewIDs(p.cfg.Min, p.cfg.Max, p.cfg.Random)
	if err != nil {
		return nil, err
	}
	r := newRound(p, now, ids, len(records))
	// One node has something to take up in steps too: its switch finds the receiver of what it translates with
	// the netID that it found before.
	r.inSteps = len(nodes) > 0
	p.steps.begin()
	next := make(map[string]memory, len(records))
	for _, rec := range records {
		r.records[rec.Key] = rec
		m := p.observe(rec)
		next[rec.Key] = m
		if m.confirmed != nil {
			r.set(rec.Key, m.confirmed.goal())
			r.underWay(rec, *m.confirmed)
		}
		for _, s := range m.unknown {
			for _, id := range s.netIDs() {
				r.pending[id] = append(r.pending[id], rec.Key)
			}
		}
	}
	p.memory = next
	p.steps.forget()
	p.free(r)
	for id := range p.held {
		ids.Use(id)
	}
	for _, id := range p.freed {
		if ids.Use(id) {
			ids.Release(id)
		}
	}
	// What may have been written is not given to others either.
	for id := range r.pending {
		ids.Use(id)
	}
	// Nor is what people wrote and nobody has checked yet.
	for _, rec := range records {
		n := &rec.Namespace
		if n.NetID == nil || n.Action != topology.None {
			continue
		}
		if has, ok := r.current[rec.Key]; ok && int64(has) == *n.NetID {
			continue // it has that, and it is in use
		}
		if n.ValidateRequest() == nil {
			ids.Use(netid.ID(*n.NetID))
		}
	}
	return r, nil
}

// observe is what is known of a record now. A confirmed netID counts if this
// leader wrote it, or found it when its term began; else someone wrote the field
// by hand, and what was confirmed before still holds.
func (p *Planner) observe(r *Record) memory {
	m, known := p.memory[r.Key]
	if known && m.create != r.Create {
		// Deleted and made anew: a namesake, which inherits nothing.
		m, known = memory{}, false
	}
	m.create = r.Create
	m.settle()
	eff := r.Namespace.Effective
	if eff == nil || eff.Validate() != nil {
		return m
	}
	if s := standingOf(r.Namespace); p.first || slices.Contains(m.unknown, *s) {
		// Other writes that are still on their way compare an older revision.
		return memory{create: r.Create, confirmed: s}
	}
	return m
}

// free moves the netIDs that nobody has any more to the freed ones. Who is leaving one has it
// still.
func (p *Planner) free(r *round) {
	held := make(map[netid.ID]struct{}, len(r.holders))
	for id := range r.holders {
		held[id] = struct{}{}
	}
	for _, m := range r.moves {
		held[m.from] = struct{}{}
	}
	delete(held, netid.Global)
	p.freed = slices.DeleteFunc(p.freed, func(id netid.ID) bool { _, ok := held[id]; return ok })
	known := map[netid.ID]struct{}{}
	for _, id := range p.freed {
		known[id] = struct{}{}
	}
	var gone []netid.ID
	for id := range p.held {
		_, still := held[id]
		if _, dup := known[id]; !still && !dup {
			gone = append(gone, id)
		}
	}
	slices.Sort(gone)
	p.freed = append(p.freed, gone...)
	if over := len(p.freed) - MaxFreed; over > 0 {
		p.freed = slices.Clone(p.freed[over:])
	}
	p.held = held
}
