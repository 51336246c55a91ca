package tenant

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/alloc"
	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// round is the making of one plan.
type round struct {
	planner *Planner
	now     time.Time // of Status, whole seconds
	began   time.Time
	ids     *alloc.IDs
	records map[string]*Record
	// current is the netID of each namespace as far as the plan has come, and
	// holders who has which.
	current map[string]netid.ID
	holders map[netid.ID]*members
	// pending are those who may have a netID that nobody knows of: by writes whose fate
	// was not told.
	pending map[netid.ID][]string
	done    map[string]bool
	writes  map[string]*Write
	after   map[string]string // by key: the target of its join
	// inSteps is that there are nodes that have to agree about a change; moves are the changes
	// under way, and those that this plan begins.
	inSteps bool
	moves   []move
	// blocked is that something people asked for has to wait, and all that was asked for
	// after it with it.
	blocked bool
	err     error // of the source of randomness
}

func newRound(p *Planner, now time.Time, ids *alloc.IDs, size int) *round {
	return &round{
		planner: p, now: now.UTC().Truncate(time.Second), began: now, ids: ids,
		records: make(map[string]*Record, size), current: make(map[string]netid.ID, size), holders: make(map[netid.ID]*members, size),
		pending: map[netid.ID][]string{}, done: make(map[string]bool, size), writes: map[string]*Write{}, after: map[string]string{},
	}
}

// members are the namespaces that have one netID; most often it is one.
type members struct {
	one  string
	many map[string]struct{} // nil while there is one
}

func (m *members) add(key string) {
	if m.many == nil {
		m.many = map[string]struct{}{m.one: {}}
	}
	m.many[key] = struct{}{}
}

// remove reports whether any are left.
func (m *members) remove(key string) (left bool) {
	if m.many == nil {
		return m.one != key
	}
	delete(m.many, key)
	return len(m.many) > 0
}

// other is the first of them by name, key not among them; empty for none.
func (m *members) other(key string) string {
	if m == nil || m.many == nil && m.one == key {
		return ""
	}
	if m.many == nil {
		return m.one
	}
	name := ""
	for n := range m.many {
		if n != key && (name == "" || n < name) {
			name = n
		}
	}
	return name
}

// split tells records that only ask for a first netID from all others.
func (r *round) split(records []*Record) (requests, first []*Record) {
	for _, rec := range records {
		n := &rec.Namespace
		if rec.Unreadable == "" && n.Action == topology.None && n.NetID == nil && n.Effective == nil && r.has(rec.Key) == nil {
			first = append(first, rec)
		} else {
			requests = append(requests, rec)
		}
	}
	return requests, first
}

// verdict is what becomes of one record.
type verdict struct {
	outcome Outcome
	message string
	// id is its netID from now on; nil: it has none yet.
	id *netid.ID
}

// set gives a namespace a netID.
func (r *round) set(key string, id netid.ID) {
	if old, ok := r.current[key]; ok {
		if old == id {
			return
		}
		if !r.holders[old].remove(key) {
			delete(r.holders, old)
		}
	}
	r.current[key] = id
	if m := r.holders[id]; m != nil {
		m.add(key)
	} else {
		r.holders[id] = &members{one: key}
	}
}

// has is a namespace's netID at this point of the plan; nil: none.
func (r *round) has(key string) *netid.ID {
	if id, ok := r.current[key]; ok {
		return &id
	}
	return nil
}

// other names one that has id beside key, or may have; empty when nobody has.
func (r *round) other(id netid.ID, key string) string {
	if name := r.holders[id].other(key); name != "" {
		return name
	}
	for _, name := range r.pending[id] {
		if name != key {
			return name
		}
	}
	return ""
}

// fresh is a netID for key that nobody has; nil and a reason when there is none. One
// that key may have already, by a write whose fate was not told, comes first, so that
// an etcd that does not answer does not cost a netID at each attempt.
func (r *round) fresh(key string) (*netid.ID, string) {
	for _, s := range r.planner.memory[key].unknown {
		if id := s.goal(); !id.IsGlobal() && r.holders[id] == nil && r.other(id, key) == "" {
			return &id, ""
		}
	}
	id, err := r.ids.Allocate()
	switch {
	case err == nil:
		return &id, ""
	case r.err == nil && !errors.Is(err, alloc.ErrExhausted):
		r.err = err
	}
	return nil, "no netID is free: " + err.Error()
}

// first is the netID of a new record.
func (r *round) first(key string) (*netid.ID, string) {
	if slices.Contains(r.planner.cfg.Global, key) {
		global := netid.Global
		return &global, ""
	}
	return r.fresh(key)
}

// step decides about one record, once.
func (r *round) step(key string) {
	if r.done[key] || r.err != nil {
		return
	}
	r.done[key] = true
	rec := r.records[key]
	if rec.Unreadable != "" {
		r.unreadable(rec)
		return
	}
	if s := r.planner.memory[key].confirmed; s != nil && s.change.UnderWay() {
		r.proceed(rec, *s)
		return
	}
	if r.blocked && r.asks(rec) {
		return
	}
	var v verdict
	switch n := rec.Namespace; {
	case n.Action == topology.None:
		tampered := n.Effective != nil && !equal(n.Effective, r.has(key))
		v = r.settle(rec)
		if tampered && v.message == "" {
			v.outcome, v.message = Refused, "refused: Effective is for the controller to write; ask for a change with NetID or Action"
		}
	case r.planner.cfg.Import && n.Effective == nil && n.NetID != nil:
		// How old is it? The first k8s-ovs left failed requests in their records.
		v = r.refuse(rec, fmt.Sprintf("action %q was found in a record that no controller had confirmed and was not carried out: ask again", n.Action))
	default:
		if err := n.ValidateRequest(); err != nil {
			v = r.refuse(rec, err.Error())
			break
		}
		switch n.Action {
		case topology.Join:
			v = r.join(rec)
		case topology.Isolate:
			v = r.isolate(rec)
		default:
			v = r.global(rec)
		}
	}
	has := r.has(key)
	switch {
	case r.waits(v, has):
		r.blocked = true
		return
	case v.id != nil && has != nil && *v.id != *has && r.inSteps:
		r.moveOff(rec, v, *has)
		return
	case v.id != nil:
		r.set(key, *v.id)
	}
	r.write(rec, v)
}

// unreadable clears what an unreadable record asks for, so that it does not
// fire when someone mends the rest, and leaves the rest to people.
func (r *round) unreadable(rec *Record) {
	if !rec.Decoded || rec.Namespace.Action == topology.None {
		return
	}
	was := rec.Namespace
	n := was
	n.Action, n.Namespace, n.By = topology.None, "", ""
	message := "refused: " + rec.Unreadable
	n.Status = r.status(was, Refused, message)
	r.writes[rec.Key] = &Write{Key: rec.Key, Mod: rec.Mod, Namespace: n, Outcome: Refused, Action: was.Action, By: was.By, Message: message, From: r.has(rec.Key), create: rec.Create}
}

// refuse answers no; the record keeps its netID. One without gets what it would
// get had it asked for nothing.
func (r *round) refuse(rec *Record, reason string) verdict {
	v := verdict{id: r.has(rec.Key)}
	if v.id == nil {
		v = r.settle(rec)
	}
	v.outcome, v.message = Refused, "refused: "+reason
	return v
}

// settle decides the netID of a record apart from any action: what was
// confirmed, what was written by hand if that may be, or a new one.
func (r *round) settle(rec *Record) verdict {
	have, want := r.has(rec.Key), rec.Namespace.NetID
	switch {
	case want == nil && have != nil:
		return verdict{outcome: Confirmed, id: have}
	case want == nil:
		return r.assign(rec, "")
	case have != nil && *want == int64(*have):
		return verdict{outcome: Confirmed, id: have}
	}
	request := topology.Namespace{NetName: rec.Key, NetID: want}
	if err := request.ValidateRequest(); err != nil {
		return r.assign(rec, err.Error())
	}
	id := netid.ID(*want)
	if !id.IsGlobal() && !r.planner.importing(rec) {
		if other := r.other(id, rec.Key); other != "" {
			return r.assign(rec, fmt.Sprintf("netID %d belongs to namespace %s; to share it ask for action join", id, other))
		}
	}
	return verdict{outcome: Confirmed, id: &id}
}

// importing reports whether rec is part of a tree that is taken over as it is.
func (p *Planner) importing(rec *Record) bool {
	return p.cfg.Import && rec.Namespace.Effective == nil
}

// assign keeps the netID that a record has, or gives it its first. refused says
// why the one written in it cannot be; empty when it only asked.
func (r *round) assign(rec *Record, refused string) verdict {
	v := verdict{outcome: Assigned, id: r.has(rec.Key)}
	lack := ""
	if v.id == nil {
		v.id, lack = r.first(rec.Key)
	}
	switch {
	case refused != "":
		v.outcome, v.message = Refused, "refused: "+refused
	case lack != "":
		// It keeps asking: this is no change of tenant that could come as a surprise.
		v.outcome, v.message = Waiting, "waiting: "+lack
	}
	return v
}

func (r *round) join(rec *Record) verdict {
	name := rec.Namespace.Namespace
	target, ok := r.records[name]
	switch {
	case !ok:
		return r.refuse(rec, fmt.Sprintf("cannot join %s: there is no namespace %s", name, name))
	case target.Unreadable != "":
		return r.refuse(rec, fmt.Sprintf("cannot join %s: %s", name, target.Unreadable))
	}
	id := r.has(name)
	if r.done[name] || id == nil {
		// What the target asks for later is written later: until then others may look.
		r.after[rec.Key] = name
	}
	if id == nil && target.Namespace.Action == topology.None {
		r.step(name)
		id = r.has(name)
	}
	if id == nil {
		// A new record with a request of its own, which comes later: it has a
		// first netID until then.
		lack := ""
		if id, lack = r.first(name); lack != "" {
			return r.refuse(rec, fmt.Sprintf("cannot join %s: it has no netID: %s", name, lack))
		}
		r.set(name, *id)
	}
	if have := r.has(rec.Key); have != nil && *have == *id {
		return verdict{outcome: Unchanged, id: id, message: fmt.Sprintf("nothing to do: %s has the netID %d of %s already", rec.Key, *id, name)}
	}
	return verdict{outcome: Done, id: id}
}

func (r *round) isolate(rec *Record) verdict {
	have := r.has(rec.Key)
	if have != nil && !have.IsGlobal() && r.other(*have, rec.Key) == "" {
		return verdict{outcome: Unchanged, id: have, message: fmt.Sprintf("nothing to do: no other namespace has the netID %d of %s", *have, rec.Key)}
	}
	if have == nil {
		// Rewritten by hand while no controller looked: what stands there is
		// most likely what it had, and may be if nobody else has it.
		if want := rec.Namespace.NetID; want != nil && *want != int64(netid.Global) {
			request := topology.Namespace{NetName: rec.Key, NetID: want}
			if id := netid.ID(*want); request.ValidateRequest() == nil && r.other(id, rec.Key) == "" && r.ids.Use(id) {
				return verdict{outcome: Done, id: &id}
			}
		}
	}
	id, lack := r.fresh(rec.Key)
	if lack != "" {
		return r.refuse(rec, lack)
	}
	return verdict{outcome: Done, id: id}
}

func (r *round) global(rec *Record) verdict {
	id := netid.Global
	if have := r.has(rec.Key); have != nil && have.IsGlobal() {
		return verdict{outcome: Unchanged, id: &id, message: fmt.Sprintf("nothing to do: %s is global already", rec.Key)}
	}
	return verdict{outcome: Done, id: &id}
}

// write notes what the record should become, if it is not that already.
func (r *round) write(rec *Record, v verdict) {
	was := rec.Namespace
	n := was
	n.Action, n.Namespace, n.By, n.NetID, n.Effective, n.Change = topology.None, "", "", nil, v.id, topology.Change{}
	if v.id != nil {
		id := int64(*v.id)
		n.NetID = &id
	}
	switch {
	case v.message != "":
		n.Status = r.status(was, v.outcome, v.message)
	case v.outcome == Done && was.By != "":
		n.Status = r.status(was, Done, "done: "+was.Request())
	case v.outcome != Confirmed || !equal(was.Effective, v.id):
		n.Status = nil
	}
	if same(was, n) {
		return
	}
	var from *netid.ID
	if m := r.planner.memory[rec.Key]; m.confirmed != nil {
		from = &m.confirmed.id
	}
	r.writes[rec.Key] = &Write{
		Key: rec.Key, Mod: rec.Mod, Namespace: n, Outcome: v.outcome, Action: was.Action, By: asker(was), Message: v.message, From: from, create: rec.Create,
	}
}

// status tells what became of what the record was asking for.
func (r *round) status(was topology.Namespace, o Outcome, message string) *topology.Status {
	return &topology.Status{Outcome: topology.Outcome(o), Message: message, Request: was.Request(), By: asker(was), Time: r.now}
}

// asker is who made the request in a record; a name beside no request is nobody's.
func asker(was topology.Namespace) string {
	if was.Action == topology.None {
		return ""
	}
	return was.By
}

// same reports whether a record says already what it should: a reason that
// stays the same is not written anew, or its time would never rest.
func same(was, n topology.Namespace) bool {
	return was.Action == n.Action && was.By == n.By && equal(was.NetID, n.NetID) && equal(was.Effective, n.Effective) &&
		was.Change == n.Change && message(was.Status) == message(n.Status)
}

func equal[T comparable](a, b *T) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}

func message(s *topology.Status) string {
	if s == nil {
		return ""
	}
	return s.Message
}

// order lists the writes of records, so that each comes after those it builds on: who
// joins a namespace is written after that namespace. A write is listed once.
func (r *round) order() func([]*Record) []Write {
	seen := map[string]bool{}
	var out []Write
	var visit func(string)
	visit = func(key string) {
		if seen[key] {
			return
		}
		seen[key] = true
		if target := r.after[key]; target != "" {
			visit(target)
		}
		if w := r.writes[key]; w != nil {
			out = append(out, *w)
		}
	}
	return func(records []*Record) []Write {
		out = nil
		for _, rec := range records {
			visit(rec.Key)
		}
		return out
	}
}
