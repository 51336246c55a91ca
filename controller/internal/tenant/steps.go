package tenant

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// This file is how a namespace comes from one netID to another without losing a packet between
// its own pods: docs/tenant-changes.md. A change is in the record, so that any leader goes on
// with it; what a planner remembers beside is only how long it has waited.

// StepTimeout is how long a step waits for nodes that report and do not take it up. An agent
// that only is slow, or starts anew, is back by then.
const StepTimeout = 5 * time.Second

// Nodes are the nodes that a change waits for, by name, with the revision of the records that
// is in their flows.
type Nodes map[string]int64

// standing is what a record says of its netID.
type standing struct {
	id     netid.ID
	change topology.Change
}

// standingOf is that of a record; nil where it has no netID yet.
func standingOf(n topology.Namespace) *standing {
	if n.Effective == nil {
		return nil
	}
	return &standing{*n.Effective, n.Change}
}

// netIDs are the one or two that it has.
func (s standing) netIDs() []netid.ID {
	if s.change.UnderWay() {
		return []netid.ID{s.id, s.change.NetID}
	}
	return []netid.ID{s.id}
}

// goal is the netID that it has in the end, origin the one that it had before.
func (s standing) goal() netid.ID   { return s.change.Goal(s.id) }
func (s standing) origin() netid.ID { return s.change.Origin(s.id) }

// next is the step after it, once all nodes have taken it up.
func (s standing) next() standing {
	if s.change.Step != topology.StepAccept {
		return standing{id: s.id}
	}
	change := s.change
	change.Step, change.NetID = topology.StepSend, s.id
	return standing{s.change.NetID, change}
}

// move is a change under way.
type move struct{ from, to netid.ID }

// meets reports whether two changes must not be under way together: one goes to where the other
// comes from. For a while a packet with that netID could be of either, though the two may never
// talk.
func (m move) meets(from, to netid.ID) bool { return m.from == to || m.to == from }

// underWay takes in a change that a record tells of.
func (r *round) underWay(rec *Record, s standing) {
	if !s.change.UnderWay() {
		return
	}
	r.moves = append(r.moves, move{s.origin(), s.goal()})
	r.pending[s.origin()] = append(r.pending[s.origin()], rec.Key)
	r.planner.steps.see(rec, s, r.began)
}

// asks reports whether a record asks for something that could change its netID.
func (r *round) asks(rec *Record) bool {
	n, has := &rec.Namespace, r.has(rec.Key)
	return n.Action != topology.None || has != nil && n.NetID != nil && *n.NetID != int64(*has)
}

// waits reports whether a verdict has to wait for changes that are under way: because it begins
// one that they meet, or because it says that something is so already that they are about to
// change, or to bring about.
func (r *round) waits(v verdict, has *netid.ID) bool {
	if v.id == nil || has == nil || *v.id == *has && v.outcome != Unchanged {
		return false
	}
	return slices.ContainsFunc(r.moves, func(m move) bool {
		if *v.id == *has {
			return m.from == *has || m.to == *has
		}
		return m.meets(*has, *v.id)
	})
}

// moveOff begins a change. The request stays in the record until the change is over, so that a
// leader of a release that knows no steps carries it out.
func (r *round) moveOff(rec *Record, v verdict, from netid.ID) {
	was := rec.Namespace
	n := was
	n.Effective = &from
	n.Change = topology.Change{Step: topology.StepAccept, NetID: *v.id, Request: was.Request(), By: asker(was)}
	if was.Action != topology.None {
		n.NetID = number(from)
	}
	n.Status = nil
	if v.message != "" {
		n.Status = r.status(was, v.outcome, v.message)
	}
	r.moves = append(r.moves, move{from, *v.id})
	r.pending[from] = append(r.pending[from], rec.Key)
	r.set(rec.Key, *v.id)
	r.stepTo(rec, n, Stepped)
}

// proceed goes on with a change: by a step where all nodes have taken up the one before, else it
// only puts back what somebody changed by hand.
func (r *round) proceed(rec *Record, s standing) {
	next := s
	if now := standingOf(rec.Namespace); now != nil && *now == s && r.planner.steps.taken(rec.Key) {
		next = s.next()
	}
	was := rec.Namespace
	n := was
	n.Effective, n.Change = &next.id, next.change
	if own := was.NetID == nil || *was.NetID == int64(s.origin()) || *was.NetID == int64(s.goal()); own {
		// Any other is a wish of its own, which has its turn after this one.
		n.NetID = number(next.id)
		if next.change.Step == topology.StepAccept && next.change.Request == "" {
			n.NetID = number(s.goal())
		}
	}
	outcome := Stepped
	if !next.change.UnderWay() {
		outcome = r.over(&n, s.change)
	}
	if same(was, n) {
		return
	}
	r.stepTo(rec, n, outcome)
	if outcome != Stepped {
		w := r.writes[rec.Key]
		from := s.origin()
		w.From, w.By = &from, s.change.By
		action, _, _ := strings.Cut(s.change.Request, " ")
		w.Action = topology.Action(action)
	}
}

// over clears the request that a change has carried out. Another one that was made meanwhile
// stays, and is next.
func (r *round) over(n *topology.Namespace, c topology.Change) Outcome {
	if c.Request == "" {
		return Confirmed
	}
	if n.Request() == c.Request {
		n.Action, n.Namespace, n.By = topology.None, "", ""
	}
	n.Status = nil
	if c.By != "" {
		n.Status = &topology.Status{Outcome: topology.Done, Message: "done: " + c.Request, Request: c.Request, By: c.By, Time: r.now}
	}
	return Done
}

// stepTo notes the write of a step.
func (r *round) stepTo(rec *Record, n topology.Namespace, outcome Outcome) {
	r.writes[rec.Key] = &Write{Key: rec.Key, Mod: rec.Mod, Namespace: n, Outcome: outcome, Action: rec.Namespace.Action, By: asker(rec.Namespace), create: rec.Create}
}

func number(id netid.ID) *int64 {
	n := int64(id)
	return &n
}

// UnderWay is a change that waits for nodes.
type UnderWay struct {
	Key  string
	Step topology.Step
	// Revision is that of the record, which the nodes in Lacking have not got in their flows.
	Revision int64
	Lacking  []string
	// Until is when they are no longer waited for.
	Until time.Time
}

// Without is a node that is no longer waited for, until it reports something newer.
type Without struct {
	Node string
	// Key is a namespace whose change it held up, at Step; Revision is that of the record,
	// and Applied the node's.
	Key               string
	Step              topology.Step
	Revision, Applied int64
}

// steps is what a planner knows of the changes under way and of the nodes that they wait for.
type steps struct {
	nodes   Nodes
	waiting map[string]stage
	// seen are those of the records that are being looked at.
	seen map[string]stage
	// without are nodes that were waited for too long, with the revision that they had then.
	without map[string]int64
}

// stage is a step that nodes are to take up.
type stage struct {
	mod   int64
	step  topology.Step
	since time.Time
}

func newSteps() steps { return steps{waiting: map[string]stage{}, without: map[string]int64{}} }

// news takes in what nodes say. It gives up those that hold up a step for too long.
func (s *steps) news(nodes Nodes, now time.Time) (without []Without) {
	s.nodes = nodes
	for name, at := range s.without {
		if applied, there := nodes[name]; !there || applied != at {
			delete(s.without, name)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(s.waiting)) {
		w := s.waiting[key]
		if now.Sub(w.since) < StepTimeout {
			continue
		}
		for _, name := range s.lacking(w.mod) {
			s.without[name] = nodes[name]
			without = append(without, Without{Node: name, Key: key, Step: w.step, Revision: w.mod, Applied: nodes[name]})
		}
	}
	return without
}

// lacking are the nodes that are waited for and have not got a revision in their flows.
func (s *steps) lacking(revision int64) (names []string) {
	for name, applied := range s.nodes {
		if _, without := s.without[name]; !without && applied < revision {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// begin, see and forget take in which changes the records tell of.
func (s *steps) begin() { s.seen = map[string]stage{} }

func (s *steps) see(rec *Record, st standing, now time.Time) {
	w := stage{mod: rec.Mod, step: st.change.Step, since: now}
	if before, ok := s.waiting[rec.Key]; ok && before.mod == rec.Mod {
		w.since = before.since
	}
	s.seen[rec.Key] = w
}

func (s *steps) forget() { s.waiting, s.seen = s.seen, nil }

// taken reports whether all nodes that are waited for have the record of a namespace in their flows.
func (s *steps) taken(key string) bool {
	w, ok := s.waiting[key]
	return ok && len(s.lacking(w.mod)) == 0
}

// underWay are the changes that wait for nodes.
func (s *steps) underWay() (all []UnderWay) {
	for _, key := range slices.Sorted(maps.Keys(s.waiting)) {
		w := s.waiting[key]
		if lacking := s.lacking(w.mod); len(lacking) > 0 {
			all = append(all, UnderWay{Key: key, Step: w.step, Revision: w.mod, Lacking: lacking, Until: w.since.Add(StepTimeout)})
		}
	}
	return all
}

// Due reports whether with what nodes say now some change could go on that could not at the last
// plan. It is cheap, as nodes report all the time; nodes is asked only while there are changes.
func (p *Planner) Due(nodes func() Nodes) bool {
	if len(p.steps.waiting) == 0 {
		return false
	}
	s := steps{nodes: nodes(), without: p.steps.without}
	for _, w := range p.steps.waiting {
		if len(s.lacking(w.mod)) == 0 {
			return true
		}
	}
	return false
}
