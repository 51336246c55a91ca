package tenant

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// TestStepsModel searches all that can happen to changes on three nodes, event by event, in
// every order: nodes hear of each record as late as they like, the leader hears of nodes as late, it
// dies between any two of its writes or loses an answer, a node is cut off for good or for a
// while, one is of the release before. What the leader does is the planner's own, what nodes do
// is [topology.Tenancy]. In every state it asks who is delivered what:
//
//   - what may be sent both before and after a change arrives, also what was on its way when its
//     node went on;
//   - what may be sent neither before nor after never does, from nodes that are cut off neither;
//   - what a change forbids does not, once `netns` would have returned;
//   - and that all comes to rest.
func TestStepsModel(t *testing.T) {
	total := 0
	all := scenarios
	if raceEnabled {
		all = all[:2] // one goroutine does it all, and takes ten times as long: `make test` runs it without, too
	}
	for _, s := range all {
		for _, f := range []faults{{crashes: 1, lost: 1}, {cut: true, crashes: 1}, {old: true}} {
			if f.cut && len(s.asks) > 1 {
				f.crashes = 0 // fewer states: one change alone is searched with both
			}
			t.Run(s.name+" "+f.String(), func(t *testing.T) {
				n := search(t, s, f)
				t.Logf("%d states", n)
				total += n
			})
		}
	}
	t.Logf("%d states in all", total)
}

// A model that finds nothing wrong with a protocol that is wrong is worth nothing.
func TestModelFinds(t *testing.T) {
	for name, wrong := range map[string]func(*state){
		"steps do not wait for nodes": func(s *state) { s.heedless = true },
		"one step only":               func(s *state) { s.oneStep = true },
		"nodes take only one netID":   func(s *state) { s.forgetful = true },
	} {
		found := ""
		for _, sc := range scenarios {
			first := begin(sc, faults{})
			wrong(first)
			if _, why := explore(first); why != "" {
				found = why
				break
			}
		}
		if found == "" {
			t.Errorf("%s: nothing was found", name)
		}
		t.Logf("%s: %s", name, found)
	}
}

// scenario is what namespaces have at first, what is asked for, and who may reach whom.
type scenario struct {
	name string
	at   map[string]netid.ID
	asks []ask
	// always may reach each other all the time, never at no time; each ":" is both ways.
	always, never string
	// apart are of never, and reach each other all the same on a node that is cut off: it does
	// not know that one of them has left.
	apart string
}

// ask is a request; hand is one by hand, which waits for no other. After it has returned, met
// reach each other, and split do not any more.
type ask struct {
	key    string
	action topology.Action
	target string
	hand   bool
	met    string
	split  string
}

var scenarios = []scenario{
	{
		"join", map[string]netid.ID{"a": 11, "c": 11, "b": 12, "g": 0, "x": 13},
		[]ask{{key: "a", action: topology.Join, target: "b", met: "a:b", split: "a:c"}},
		"a:a b:b c:c a:g b:g c:g x:g", "a:x b:x c:x b:c", "",
	},
	{
		"isolate", map[string]netid.ID{"a": 11, "c": 11, "b": 12, "g": 0},
		[]ask{{key: "a", action: topology.Isolate, split: "a:c"}},
		"a:a c:c a:g c:g", "a:b b:c", "",
	},
	{
		"global", map[string]netid.ID{"a": 11, "c": 11, "b": 12, "g": 0},
		[]ask{{key: "a", action: topology.MakeGlobal}},
		"a:a a:c a:g c:c", "b:c", "",
	},
	{
		"no longer global", map[string]netid.ID{"a": 0, "c": 11, "b": 12, "g": 0},
		[]ask{{key: "a", action: topology.Isolate, split: "a:b a:c"}},
		"a:a a:g b:b", "b:c", "",
	},
	{
		"from global to another's", map[string]netid.ID{"a": 0, "c": 11, "b": 12, "g": 0},
		[]ask{{key: "a", action: topology.Join, target: "b", split: "a:c"}},
		"a:a a:b a:g b:g", "b:c", "",
	},
	{
		"a netID by hand", map[string]netid.ID{"a": 11, "c": 11, "g": 0},
		[]ask{{key: "a", hand: true, split: "a:c"}},
		"a:a a:g c:c", "", "",
	},
	{
		"one leaves, another comes", map[string]netid.ID{"b": 12, "c": 12, "a": 11},
		[]ask{{key: "b", action: topology.Isolate, split: "b:c"}, {key: "a", action: topology.Join, target: "c"}},
		"a:a b:b c:c", "a:b", "a:b",
	},
	{
		"its partner leaves", map[string]netid.ID{"b": 12, "c": 12, "a": 11},
		[]ask{{key: "a", action: topology.Join, target: "b"}, {key: "b", action: topology.Isolate, split: "a:b b:c"}},
		"a:a b:b c:c", "", "",
	},
	{
		"to one that is leaving", map[string]netid.ID{"b": 12, "c": 12, "a": 11},
		[]ask{{key: "b", action: topology.Isolate, split: "b:c"}, {key: "a", action: topology.Join, target: "b"}},
		"a:a b:b", "a:c", "",
	},
	{
		"joined by one of those that it is coming to", map[string]netid.ID{"b": 12, "c": 12, "a": 11},
		[]ask{{key: "a", action: topology.Join, target: "b", met: "a:b"}, {key: "c", action: topology.Join, target: "a", met: "a:c b:c"}},
		"a:a b:b c:c b:c", "", "",
	},
	{
		"the last one left", map[string]netid.ID{"a": 11, "b": 11},
		[]ask{{key: "a", action: topology.Isolate, split: "a:b"}, {key: "b", action: topology.Isolate, split: "a:b"}},
		"a:a b:b", "", "",
	},
	{
		"they change places", map[string]netid.ID{"a": 11, "c": 11, "b": 12, "x": 12},
		[]ask{{key: "a", action: topology.Join, target: "b", split: "a:c"}, {key: "b", action: topology.Join, target: "c", split: "b:x a:b"}},
		"a:a b:b", "c:x", "",
	},
	{
		"another request at once", map[string]netid.ID{"a": 11, "c": 11, "b": 12},
		[]ask{{key: "a", action: topology.Join, target: "b"}, {key: "a", action: topology.Isolate, hand: true, split: "a:b a:c"}},
		"a:a c:c", "b:c", "",
	},
	{
		"both leave", map[string]netid.ID{"a": 11, "b": 11, "c": 11},
		[]ask{{key: "a", action: topology.Isolate, split: "a:b a:c"}, {key: "b", action: topology.Isolate, split: "b:c"}},
		"a:a b:b c:c", "", "",
	},
	{
		"one becomes global, another no longer is", map[string]netid.ID{"a": 0, "b": 12, "c": 11, "g": 0},
		[]ask{{key: "b", action: topology.MakeGlobal}, {key: "a", action: topology.Isolate, split: "a:c"}},
		"a:a b:b a:b a:g b:g", "", "",
	},
}

// faults are what may go wrong, each so many times.
type faults struct {
	crashes, lost int
	cut           bool // of node 2, for a while or for good
	old           bool // node 2 is of the release before, which knows no steps
}

func (f faults) String() string {
	var words []string
	for what, on := range map[string]bool{"crash": f.crashes > 0, "lost answer": f.lost > 0, "cut": f.cut, "old agent": f.old} {
		if on {
			words = append(words, what)
		}
	}
	slices.Sort(words)
	return strings.Join(words, ", ")
}

const modelNodes = 3

// state is one state of the world. Revision r of the records is history[r].
type state struct {
	sc      *scenario
	pairs   *pairs
	left    faults
	records map[string]Record
	history []map[string]topology.Tenancy
	plain   []map[string]topology.Tenancy // as an agent sees it that knows no steps
	nodes   [modelNodes]modelNode
	planner *Planner
	queue   []Write // of the last plan
	now     time.Time
	asked   int
	// done has the requests that `netns` has returned from.
	done []bool
	how  *trail

	heedless, oneStep, forgetful bool // see TestModelFinds
}

// trail are the events that led to a state, the last first.
type trail struct {
	event  string
	before *trail
}

func (t *trail) String() string {
	if t == nil {
		return ""
	}
	return t.before.String() + t.event + "; "
}

// modelNode has revision at in its flows; the leader has heard of revision heard.
type modelNode struct {
	at, heard int
	cut, gone bool // it hears nothing; its status is gone
	faulty    bool // it was cut off once
	old       bool
}

// pairs are those of a scenario, parsed.
type pairs struct {
	always, never, apart [][2]string
	met, split           [][][2]string
}

func parsePairs(text string) (all [][2]string) {
	for _, word := range strings.Fields(text) {
		a, b, _ := strings.Cut(word, ":")
		all = append(all, [2]string{a, b})
		if a != b {
			all = append(all, [2]string{b, a})
		}
	}
	return all
}

// zeros is a source of no randomness: the model's netIDs are drawn in order.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func modelPlanner() *Planner { return New(Config{Min: 20, Max: 40, Random: zeros{}}) }

func begin(sc scenario, f faults) *state {
	s := &state{sc: &sc, left: f, records: map[string]Record{}, planner: modelPlanner(), now: time.Unix(0, 0), done: make([]bool, len(sc.asks))}
	s.pairs = &pairs{always: parsePairs(sc.always), never: parsePairs(sc.never), apart: parsePairs(sc.apart)}
	for _, a := range sc.asks {
		s.pairs.split = append(s.pairs.split, parsePairs(a.split))
		s.pairs.met = append(s.pairs.met, parsePairs(a.met))
	}
	for key, id := range sc.at {
		n := int64(id)
		s.records[key] = Record{Key: key, Namespace: topology.Namespace{NetName: key, NetID: &n, Effective: &id}}
	}
	s.nodes[2].old = f.old
	s.put("", topology.Namespace{})
	return s
}

// put writes a record, at the next revision.
func (s *state) put(key string, n topology.Namespace) {
	s.records = maps.Clone(s.records)
	if key != "" {
		s.records[key] = Record{Key: key, Namespace: n, Mod: int64(len(s.history))}
	}
	full, plain := map[string]topology.Tenancy{}, map[string]topology.Tenancy{}
	for k, r := range s.records {
		full[k], _ = r.Namespace.Tenancy()
		plain[k] = topology.Tenancy{NetID: full[k].NetID}
	}
	s.history = append(slices.Clip(s.history), full)
	s.plain = append(slices.Clip(s.plain), plain)
}

func (s *state) latest() int { return len(s.history) - 1 }

// with is a copy of the state after one more event.
func (s *state) with(what string, change func(*state)) *state {
	c := *s
	p := *s.planner
	p.memory, p.freed, p.steps.without = maps.Clone(p.memory), slices.Clone(p.freed), maps.Clone(p.steps.without)
	c.planner = &p
	c.done = slices.Clone(s.done)
	c.how = &trail{what, s.how}
	change(&c)
	c.returns()
	return &c
}

// tenancy is what node i does for a namespace at a revision.
func (s *state) tenancy(i, revision int, key string) topology.Tenancy {
	if s.nodes[i].old || s.forgetful {
		return s.plain[revision][key]
	}
	return s.history[revision][key]
}

// heardOf are the nodes as the leader knows them.
func (s *state) heardOf() Nodes {
	nodes := Nodes{}
	for i, n := range s.nodes {
		switch {
		case n.gone:
		case s.heedless:
			nodes[strconv.Itoa(i)] = int64(s.latest())
		default:
			nodes[strconv.Itoa(i)] = int64(n.heard)
		}
	}
	if s.oneStep {
		return nil
	}
	return nodes
}

// returns notes which requests `netns` would have returned from.
func (s *state) returns() {
	for k := range s.asked {
		r := s.records[s.sc.asks[k].key]
		if s.done[k] || !s.rests(r) {
			continue
		}
		s.done[k] = !slices.ContainsFunc(s.nodes[:], func(n modelNode) bool { return !n.gone && int64(n.at) < r.Mod })
	}
}

// rests reports whether nothing is asked of a record.
func (s *state) rests(r Record) bool {
	n := r.Namespace
	return n.Action == topology.None && !n.Change.UnderWay() && *n.NetID == int64(*n.Effective)
}

// progress are the states after all that must happen some time, faulty those after what may.
func (s *state) progress() (next []*state) {
	if s.asked < len(s.sc.asks) {
		a := s.sc.asks[s.asked]
		if r := s.records[a.key]; a.hand || s.rests(r) {
			next = append(next, s.with("ask "+string(a.action)+" "+a.key, func(c *state) {
				n := r.Namespace
				n.Action, n.Namespace, n.Status = a.action, a.target, nil
				if a.action == topology.None {
					n.NetID = number(40)
				}
				c.put(a.key, n)
				c.asked++
			}))
		}
	}
	for i, n := range s.nodes {
		if !n.cut && n.at < s.latest() {
			next = append(next, s.with(fmt.Sprintf("node %d has %d", i, n.at+1), func(c *state) {
				c.nodes[i].at++
				if len(s.sc.asks) > 1 {
					c.nodes[i].heard = c.nodes[i].at // fewer states: one change alone is searched without
				}
			}))
		}
		if !n.cut && n.heard < n.at {
			next = append(next, s.with(fmt.Sprintf("leader hears %d of node %d", n.at, i), func(c *state) { c.nodes[i].heard = n.at }))
		}
	}
	if len(s.queue) > 0 {
		return append(next, s.with("write "+s.queue[0].Key, func(c *state) { c.write(true) }))
	}
	planned := s.with("plan", func(c *state) { c.plan() })
	if len(planned.queue) > 0 || planned.key() != s.key() {
		next = append(next, planned)
	} else if s.nodes[2].cut && planned.onlyLacking("2") {
		next = append(next, s.with("time passes", func(c *state) { c.now = c.now.Add(StepTimeout) }))
	}
	return next
}

// onlyLacking reports whether changes wait for that node and no other, and not for long enough
// yet: of nodes that only are slow this model takes it that they are quicker than [StepTimeout].
func (s *state) onlyLacking(node string) bool {
	all := s.planner.steps.underWay()
	return len(all) > 0 && !slices.ContainsFunc(all, func(u UnderWay) bool {
		return len(u.Lacking) > 1 || u.Lacking[0] != node || !u.Until.After(s.now)
	})
}

func (s *state) faulty() (next []*state) {
	if s.left.crashes > 0 {
		next = append(next, s.with("the leader dies", func(c *state) {
			c.left.crashes--
			c.planner, c.queue = modelPlanner(), nil
			for i := range c.nodes {
				if !c.nodes[i].cut {
					c.nodes[i].heard = c.nodes[i].at
				}
			}
		}))
	}
	if s.left.lost > 0 && len(s.queue) > 0 {
		next = append(next, s.with("write, answer lost "+s.queue[0].Key, func(c *state) { c.left.lost--; c.write(false) }))
	}
	switch two := s.nodes[2]; {
	case s.left.cut && !two.cut:
		next = append(next, s.with("node 2 is cut off", func(c *state) {
			c.left.cut = false
			c.nodes[2].cut, c.nodes[2].faulty = true, true
		}))
	case two.cut && !two.gone:
		next = append(next, s.with("the status of node 2 expires", func(c *state) { c.nodes[2].gone = true }))
	case two.cut && two.at < s.latest():
		next = append(next, s.with("node 2 is back", func(c *state) {
			c.nodes[2].cut, c.nodes[2].gone, c.nodes[2].at = false, false, c.latest()
		}))
	}
	return next
}

func (s *state) plan() {
	p, err := s.planner.Plan(slices.Collect(maps.Values(s.records)), s.heardOf(), s.now)
	if err != nil {
		panic(err)
	}
	s.queue = p.Writes
}

// write makes the first write of the queue; told is whether the leader learns of it.
func (s *state) write(told bool) {
	w := s.queue[0]
	s.planner.Trying(w)
	if s.records[w.Key].Mod != w.Mod {
		s.planner.Failed(w)
		s.queue = nil
		return
	}
	s.put(w.Key, w.Namespace)
	s.queue = s.queue[1:]
	if !told {
		s.queue = nil
		return
	}
	s.planner.Wrote(w)
}

// key tells the state from all that differ in what can follow.
func (s *state) key() string {
	b := make([]byte, 0, 512)
	num := func(n int64) { b = append(strconv.AppendInt(b, n, 36), ' ') }
	flag := func(all ...bool) {
		for _, on := range all {
			b = strconv.AppendBool(b, on)
		}
	}
	standingKey := func(st *standing) {
		if st == nil {
			b = append(b, '-')
			return
		}
		num(int64(st.id))
		b = append(b, st.change.Step...)
		num(int64(st.change.NetID))
		b = append(b, st.change.Request...)
	}
	base := s.latest()
	for _, n := range s.nodes {
		base = min(base, n.at, n.heard)
		num(int64(n.at))
		num(int64(n.heard))
		flag(n.cut, n.gone)
	}
	keys := slices.Sorted(maps.Keys(s.records))
	for _, k := range keys {
		r := s.records[k]
		num(r.Mod)
		num(*r.Namespace.NetID)
		standingKey(standingOf(r.Namespace))
		b = append(b, r.Namespace.Request()...)
		m := s.planner.memory[k]
		standingKey(m.confirmed)
		standingKey(m.tried)
		for _, u := range m.unknown {
			standingKey(&u)
		}
		if w, ok := s.planner.steps.waiting[k]; ok {
			num(w.mod)
			b = append(b, w.step...)
			num(int64(s.now.Sub(w.since)))
		}
		for r := base; r <= s.latest(); r++ {
			t := s.history[r][k]
			num(int64(t.NetID))
			if t.Both {
				num(int64(t.Other))
			}
		}
	}
	for _, w := range s.queue {
		b = append(b, w.Key...)
		num(w.Mod)
		standingKey(standingOf(w.Namespace))
	}
	for _, k := range slices.Sorted(maps.Keys(s.planner.steps.without)) {
		b = append(b, k...)
		num(s.planner.steps.without[k])
	}
	for _, id := range s.planner.freed {
		num(int64(id))
	}
	for _, n := range []int{s.asked, s.left.crashes, s.left.lost} {
		num(int64(n))
	}
	flag(s.left.cut, s.planner.first)
	flag(s.done...)
	return string(b)
}

// wrong says what is delivered that must not be, or is not that must.
func (s *state) wrong() string {
	for i, from := range s.nodes {
		for j := range s.nodes {
			oldest := from.at
			if i != j && !from.faulty {
				oldest = min(from.heard, from.at) // what it sent until the leader heard may be on its way
			}
			for r := oldest; r <= from.at; r++ {
				if why := s.wrongBetween(i, j, r); why != "" {
					return fmt.Sprintf("%s, sent by node %d at %d (it is at %d) to node %d at %d", why, i, r, from.at, j, s.nodes[j].at)
				}
			}
		}
	}
	return ""
}

func (s *state) wrongBetween(i, j, sent int) string {
	from, to := s.nodes[i], s.nodes[j]
	delivered := func(p [2]string) bool {
		return s.tenancy(j, to.at, p[1]).Admits(s.tenancy(i, sent, p[0]).NetID)
	}
	if !from.faulty && !to.faulty && !from.old && !to.old {
		for _, p := range s.pairs.always {
			if !delivered(p) {
				return fmt.Sprintf("%s to %s is lost", p[0], p[1])
			}
		}
	}
	for _, p := range s.pairs.never {
		if delivered(p) && !((s.behind(from) || s.behind(to)) && slices.Contains(s.pairs.apart, p)) {
			return fmt.Sprintf("%s to %s is delivered", p[0], p[1])
		}
	}
	for k, pairs := range s.pairs.split {
		if !s.done[k] || sent != from.at || from.cut || to.cut {
			continue
		}
		for _, p := range pairs {
			if delivered(p) {
				return fmt.Sprintf("%s to %s is delivered after request %d returned", p[0], p[1], k)
			}
		}
		for _, p := range s.pairs.met[k] {
			if !delivered(p) {
				return fmt.Sprintf("%s to %s is not delivered after request %d returned", p[0], p[1], k)
			}
		}
	}
	return ""
}

// behind reports whether a node was cut off and has not caught up.
func (s *state) behind(n modelNode) bool { return n.cut || n.faulty && n.at < s.latest() }

// search explores a scenario, and fails the test on the first thing that is wrong.
func search(t *testing.T, sc scenario, f faults) int {
	t.Helper()
	n, why := explore(begin(sc, f))
	if why != "" {
		t.Fatal(why)
	}
	return n
}

func explore(first *state) (states int, why string) {
	seen := map[string]struct{}{first.key(): {}}
	for todo := []*state{first}; len(todo) > 0; {
		s := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if why := s.wrong(); why != "" {
			return len(seen), why + "\nafter: " + s.how.String()
		}
		must := s.progress()
		if len(must) == 0 && (s.asked < len(s.sc.asks) || slices.ContainsFunc(slices.Collect(maps.Values(s.records)), func(r Record) bool { return !s.rests(r) })) {
			return len(seen), "it does not go on\nafter: " + s.how.String()
		}
		for _, next := range append(must, s.faulty()...) {
			if k := next.key(); !has(seen, k) {
				seen[k] = struct{}{}
				todo = append(todo, next)
			}
		}
	}
	return len(seen), ""
}

func has(seen map[string]struct{}, key string) bool { _, ok := seen[key]; return ok }
