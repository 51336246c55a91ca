package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/k8s-ovs/k8s-ovs/test/netlab/probe"
)

// The probe sends a numbered datagram from each pod to each other one, again and again. What must arrive by the
// model and does not is lost, and a fault must account for it; what arrives and may not is an error always.

const (
	// interval is the pause between two datagrams of a pair.
	interval = 50 * time.Millisecond
	// grace is how late one may be: on a machine with little time to give they wait in queues.
	grace = 3 * time.Second
	// stepTimeout is after how long a tenant change goes on without a node that does not follow: tenant.StepTimeout, less
	// a second, since nobody says when exactly it began to wait.
	stepTimeout = 4 * time.Second
	// edge is how long before the beginning of a fault a packet may have been sent that it meets.
	edge = 100 * time.Millisecond
)

// window is a fault while it may show, or a change of policies while it comes into force.
type window struct {
	d *decision
	// began is before anything was done, mended when nothing is broken any more, closed when all that must arrive
	// does. All are zero until then.
	began, mended, closed time.Time
	// costs says whose packets it may cost; concerns, at whose it is looked.
	costs, concerns func(from, to probe.Endpoint) bool
	// arrived are the datagrams of pairs that it concerns, at the beginning; later those in between.
	arrived int
	// heard are those of each pair when it was mended.
	heard map[pair]int
}

// pair is who sends to whom, by their names.
type pair struct{ from, to string }

func pairOf(from, to probe.Endpoint) pair { return pair{from.String(), to.String()} }

// covers says whether what was sent then may have met the fault.
func (w *window) covers(at time.Time) bool {
	return !at.Before(w.began.Add(-edge)) && (w.closed.IsZero() || !at.After(w.closed))
}

// tenantChange is a change while it goes on.
type tenantChange struct {
	d            *decision
	began, ended time.Time
}

// openFault begins the window of a fault.
func (r *run) openFault(d *decision) *window {
	f := faults[d.kind]
	return r.open(&window{
		d:        d,
		costs:    func(from, to probe.Endpoint) bool { return f.mayCost(d.node, from, to) },
		concerns: func(from, to probe.Endpoint) bool { return f.concerns(d.node, from, to) },
	})
}

// openPolicies begins the window of a change of policies, which may cost pods that they newly select packets that are
// allowed: what is late is closed, and sets of addresses are when they come for the first time, or from a node that has a fault
// (docs/policy.md, "on the node").
func (r *run) openPolicies(d *decision) {
	r.mu.Lock()
	possible := r.m.possible()
	r.mu.Unlock()
	selected := func(e probe.Endpoint) bool {
		if d.kind == label {
			return d.pod.String() == e.String()
		}
		return slices.ContainsFunc(possible, func(s state) bool {
			p, there := s.policies[d.policy.String()]
			return there && p.selects(s.pods[e.String()])
		})
	}
	either := func(from, to probe.Endpoint) bool { return selected(from) || selected(to) }
	r.open(&window{d: d, costs: either, concerns: either})
}

// open begins a window.
func (r *run) open(w *window) *window {
	w.began, w.arrived = time.Now(), r.arrived(w)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.windows = append(r.windows, w)
	return w
}

// closePolicies ends the windows of changes of policies: they are in force.
func (r *run) closePolicies() {
	for _, w := range r.windows {
		if !w.d.kind.isFault() {
			r.mended(w)
			r.close(w)
		}
	}
}

// arrived counts what has arrived of pairs that a fault concerns.
func (r *run) arrived(w *window) int {
	n := 0
	for _, f := range r.probe.Report().Flows {
		if w.concerns(f.From, f.To) {
			n += f.Received
		}
	}
	return n
}

func (r *run) mended(w *window) {
	at, heard := time.Now(), map[pair]int{}
	for _, f := range r.probe.Report().Flows {
		heard[pairOf(f.From, f.To)] = f.Received
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	w.mended, w.heard = at, heard
}

// close ends a window.
func (r *run) close(w *window) {
	n := r.arrived(w)
	r.mu.Lock()
	defer r.mu.Unlock()
	w.closed, w.arrived = time.Now(), n-w.arrived
	if w.d.kind.isFault() {
		r.say("over after %s: %s", w.closed.Sub(w.began).Round(time.Millisecond), w.d)
	}
}

// enough is how many datagrams must have arrived by each pair before a fault counts as over.
const enough = 5

// flows is nil when enough was sent since a fault was mended by each pair that it concerns and that must be
// able to talk, and has arrived. Pairs that another fault holds up are waited for too.
func (r *run) flows(w *window) error {
	var missing []string
	for _, f := range r.probe.Report().Flows {
		if !f.Must || !w.concerns(f.From, f.To) {
			continue
		}
		if f.Received < w.heard[pairOf(f.From, f.To)]+enough {
			missing = append(missing, fmt.Sprintf("%s -> %s", f.From, f.To))
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("%d pairs are silent, %s among them", len(missing), missing[0])
	}
	return nil
}

// undisturbed remembers that there is no fault now, and says later whether there was none meanwhile.
func (r *run) undisturbed() func() bool {
	quiet := func() (bool, int) {
		r.mu.Lock()
		defer r.mu.Unlock()
		faults := slices.DeleteFunc(slices.Clone(r.windows), func(w *window) bool { return !w.d.kind.isFault() })
		return !slices.ContainsFunc(faults, func(w *window) bool { return w.closed.IsZero() }), len(faults)
	}
	was, n := quiet()
	return func() bool {
		is, now := quiet()
		return was && is && n == now
	}
}

func (r *run) openChange(d *decision) *tenantChange {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := &tenantChange{d: d, began: time.Now()}
	r.changes = append(r.changes, t)
	return t
}

func (r *run) closeChange(t *tenantChange) {
	r.mu.Lock()
	defer r.mu.Unlock()
	t.ended = time.Now()
}

// judgeBy has the probe judge by the model as it is now, with the lock held.
func (r *run) judgeBy() {
	if r.probe != nil {
		r.probe.SetRule(r.m.rule(probe.UDP))
	}
}

// accounts says which fault accounts for a lost datagram: one that may cost it whatever else happens, or, of a node
// that did not hear of a tenant change, one that kept it from hearing; or which change of policies.
func (r *run) accounts(e probe.Event) *window {
	first := func(accounts func(w *window) bool) *window {
		for _, w := range r.windows {
			if w.covers(e.Sent) && accounts(w) {
				return w
			}
		}
		return nil
	}
	fault := func(w *window) bool { return w.d.kind.isFault() && w.costs(e.From, e.To) }
	return cmp.Or(
		// What is still broken is more likely the reason than what was mended before.
		first(func(w *window) bool { return fault(w) && !e.Sent.After(w.mended) }),
		first(fault),
		first(func(w *window) bool {
			return w.concerns(e.From, e.To) && e.From.Node != e.To.Node && r.wentOnWithout(w, e)
		}),
		first(func(w *window) bool { return !w.d.kind.isFault() && w.costs(e.From, e.To) }),
	)
}

// wentOnWithout says whether a change of one of the two namespaces may have gone on without the node of a fault:
// docs/tenant-changes.md, "what a node that is cut off knows". That takes as long as nodes are waited for; a leader that is new
// does not know whom to wait for.
func (r *run) wentOnWithout(w *window, e probe.Event) bool {
	if !faults[w.d.kind].deaf {
		return false
	}
	overlap := func(from, to time.Time) bool {
		return !from.After(w.closed) && (to.IsZero() || !to.Before(w.began))
	}
	long := w.closed.Sub(w.began) >= stepTimeout || slices.ContainsFunc(r.windows, func(o *window) bool {
		return o.d.kind.isFault() && faults[o.d.kind].scope == ofCluster && overlap(o.began, o.closed)
	})
	return long && slices.ContainsFunc(r.changes, func(t *tenantChange) bool {
		return (t.d.namespace == e.From.Namespace || t.d.namespace == e.To.Namespace) && overlap(t.began, t.ended)
	})
}

// judge adds what a round's probe has seen to the tally, and says what no fault accounts for.
func (r *run) judge(rep probe.Report) error {
	var wrong []string
	for _, e := range rep.ForbiddenEvents {
		wrong = append(wrong, "delivered, and may not be: "+e.String())
	}
	for _, w := range r.windows {
		t := r.tally[w.d.kind]
		t.times++
		t.arrived += w.arrived
		t.took = max(t.took, w.closed.Sub(w.mended))
		r.tally[w.d.kind] = t
	}
	gaps := newGaps()
	for _, e := range rep.LostEvents {
		w := r.accounts(e)
		if w == nil {
			wrong = append(wrong, "lost, and no fault accounts for it: "+e.String())
			continue
		}
		t := r.tally[w.d.kind]
		t.lost++
		t.gap = max(t.gap, gaps.until(e))
		if !w.mended.IsZero() {
			t.after = max(t.after, e.Sent.Sub(w.mended))
		}
		r.tally[w.d.kind] = t
	}
	r.sent += rep.Sent()
	r.arrivedAll += rep.Received()
	if rep.Received() == 0 {
		wrong = append(wrong, "nothing arrived at all: this round shows nothing")
	}
	return summary(wrong)
}

// summary makes one error of many lines, with a bound.
func summary(wrong []string) error {
	const most = 20
	if len(wrong) == 0 {
		return nil
	}
	n := len(wrong)
	return fmt.Errorf("%d wrong:\n  %s", n, strings.Join(wrong[:min(n, most)], "\n  "))
}

// gaps are the silences of pairs: what each loses one after the other.
type gaps struct {
	last  map[pair]probe.Event
	since map[pair]time.Time
}

func newGaps() gaps { return gaps{map[pair]probe.Event{}, map[pair]time.Time{}} }

// until takes the next lost datagram, in order of time, and returns how long its pair has heard nothing.
func (g gaps) until(e probe.Event) time.Duration {
	p := pairOf(e.From, e.To)
	if last, there := g.last[p]; !there || e.Seq != last.Seq+1 {
		g.since[p] = e.Sent
	}
	g.last[p] = e
	return e.Sent.Sub(g.since[p]) + interval
}
