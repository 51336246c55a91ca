// Package act carries an operator's request through: it writes the request
// into the namespace's record and follows what becomes of it, until every live
// node has it in its flows.
//
// It changes nothing itself: the controller does.
package act

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/k8s-ovs/k8s-ovs/netns/internal/plan"
	"github.com/k8s-ovs/k8s-ovs/netns/internal/view"
	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// DefaultTimeout is how long [Do] waits: nodes follow within milliseconds, a
// controller that takes over from one that died within its lease, about 10 s.
const DefaultTimeout = 30 * time.Second

// stepsTold is how long the steps of a change may take before people are told which nodes they
// wait for.
const stepsTold = time.Second

const (
	// askTime is how long records are read, and a request is written, anew while etcd is away: two elections of its leader, and the
	// time in which a dead connection is noticed.
	askTime = 10 * time.Second
	// askPause is the first pause before that.
	askPause = 100 * time.Millisecond
)

// statusTime bounds the wait for the nodes' first word before a request is written.
const statusTime = time.Second

// withdrawTimeout bounds taking back a request that nobody took.
const withdrawTimeout = 5 * time.Second

// Store is what is needed of [store.Store].
type Store interface {
	Snapshot(ctx context.Context) (topology.Snapshot, store.Revs, error)
	RequestAction(ctx context.Context, ns string, action topology.Action, target string) (int64, error)
	ForceAction(ctx context.Context, ns string, action topology.Action, target string) (int64, error)
	WithdrawAction(ctx context.Context, ns string, rev int64) error
	// Leader names the controller that leads; [store.ErrNotFound] for none.
	Leader(ctx context.Context, name string) (string, error)
	// FollowRecords gives all records, which are there when it returns, and again after each change.
	FollowRecords(ctx context.Context) (<-chan store.Records, error)
	// WatchStatuses gives what all live nodes report, and again after each change.
	WatchStatuses(ctx context.Context) <-chan map[netip.Addr]topology.NodeStatus
}

// Options say how far to go.
type Options struct {
	// DryRun writes nothing.
	DryRun bool
	// Force asks for the change also where an annotation rules the namespace.
	Force bool
	// Confirm is asked before anything is written, with what would change; its error
	// keeps it from being written. May be nil.
	Confirm func(plan.Plan) error
	// NoWait writes the request and does not follow it.
	NoWait bool
	// Timeout bounds the waiting; zero for no bound.
	Timeout time.Duration
	// Progress is told what is being waited for, whenever that changes; may be nil.
	Progress func(string)
}

// ErrTimeout is in the errors of a wait that took too long.
var ErrTimeout = errors.New("timed out")

// Do carries r through. Errors say what is wrong and what stands; the result
// that comes with an error has its Result and Message filled in if a request
// was written, and is empty if none was.
func Do(ctx context.Context, st Store, r plan.Request, o Options) (view.Result, error) {
	watching, stop := context.WithCancel(ctx)
	defer stop()
	// From before the request: etcd looks only every 100 ms whether a watch that begins in its past is
	// to hear of something.
	records, err := read(watching, st)
	if err != nil {
		return view.Result{}, err
	}
	now := <-records
	snap := now.Snapshot
	p, err := plan.Make(snap, r)
	if err != nil {
		return view.Result{}, err
	}
	if err := p.Overrule(snap, o.Force); err != nil {
		return view.Result{}, err
	}
	result := view.NewResult(p)
	result.DryRun = o.DryRun
	switch {
	case p.Nothing != "":
		result.Result, result.Message = view.NothingToDo, p.Nothing+"; nothing to do"
		if o.DryRun || o.NoWait {
			return result, nil
		}
		// The records say so, and perhaps only just now.
		w := &wait{store: st, request: r, applied: newest(now), options: o, result: result, snapshot: snap, records: records, states: st.WatchStatuses(watching)}
		return w.run(ctx)
	case o.DryRun:
		result.Result, result.Message = view.WouldChange, fmt.Sprintf("dry run of %s; nothing was changed", r)
		return result, nil
	}
	if o.Confirm != nil {
		if err := o.Confirm(p); err != nil {
			return view.Result{}, err
		}
	}
	if o.NoWait {
		if _, err := ask(ctx, st, p, o.Force); err != nil {
			return view.Result{}, err
		}
		result.Result, result.Message = view.Requested, fmt.Sprintf("requested: %s; `netns show %s` tells what became of it", r, r.Namespace)
		return result, nil
	}
	w := &wait{store: st, request: r, targetID: p.TargetID, options: o, result: result, records: records, states: st.WatchStatuses(watching)}
	if err := w.hear(ctx); err != nil {
		return view.Result{}, err
	}
	if w.requested, err = ask(ctx, st, p, o.Force); err != nil {
		return view.Result{}, err
	}
	return w.run(ctx)
}

// newest is the revision of the newest change of a namespace.
func newest(r store.Records) (revision int64) {
	for _, rev := range r.Revs.Namespaces {
		revision = max(revision, rev.Mod)
	}
	return revision
}

// read begins to follow the records.
func read(ctx context.Context, st Store) (records <-chan store.Records, err error) {
	err = whileAway(ctx, func(bool) error {
		records, err = st.FollowRecords(ctx)
		return err
	})
	return records, err
}

// ask writes the request and returns its revision. It asks again once it has seen that the request has not been
// carried out meanwhile.
func ask(ctx context.Context, st Store, p plan.Plan, force bool) (rev int64, err error) {
	request := st.RequestAction
	if force {
		request = st.ForceAction
	}
	r := p.Request
	err = whileAway(ctx, func(again bool) error {
		if again {
			snap, revs, unseen := st.Snapshot(ctx)
			if n := snap.Namespaces[r.Namespace]; unseen == nil && n.Action == topology.None && plan.Fulfilled(snap, r, p.TargetID) {
				rev = revs.Namespaces[r.Namespace].Mod
				return nil
			}
		}
		rev, err = request(ctx, r.Namespace, r.Action, r.Target)
		return err
	})
	if err != nil && store.Passing(err) {
		return 0, fmt.Errorf("%w; the request may have been written: `netns show %s` tells", err, r.Namespace)
	}
	return rev, err
}

// whileAway tries it, and again where etcd was away for a moment: a member of it that was cut off says nothing, and the others
// have no leader for some seconds.
func whileAway(ctx context.Context, try func(again bool) error) error {
	deadline, again := time.Now().Add(askTime), false
	for pauses := (backoff.Pauses{First: askPause, Last: 8 * askPause}); ; again = true {
		err := try(again)
		if err == nil || !store.Passing(err) || time.Now().After(deadline) || !pauses.Wait(ctx) {
			return err
		}
	}
}

// wait follows one request. All its fields belong to the goroutine in run.
type wait struct {
	store     Store
	request   plan.Request
	targetID  netid.ID
	requested int64 // revision of the request
	options   Options
	result    view.Result

	records  <-chan store.Records
	states   <-chan map[netip.Addr]topology.NodeStatus
	snapshot topology.Snapshot
	statuses view.Statuses // nil before the first report
	applied  int64         // revision of the record with the change; 0 before it is carried out
	step     int64         // revision of the record with the step that nodes are taking up; 0 for none
	said     string
}

// hear waits for what nodes say, so that they are followed before the request is written. It goes on
// without after statusTime: an etcd that is away just now may be back for the request.
func (w *wait) hear(ctx context.Context) error {
	select {
	case all := <-w.states:
		w.statuses = orEmpty(all)
	case <-time.After(statusTime):
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// run returns when the outcome is clear or ctx or the timeout ends it.
func (w *wait) run(parent context.Context) (view.Result, error) {
	ctx, cancel := context.WithCancel(parent)
	defer cancel()
	if w.options.Timeout > 0 {
		ctx, cancel = context.WithTimeoutCause(ctx, w.options.Timeout, ErrTimeout)
		defer cancel()
	}
	if w.applied == 0 {
		w.say("waiting for the controller")
	}
	records, statuses := w.records, w.states
	slow, slowly := false, time.After(stepsTold)
	for !w.done(slow) {
		select {
		case rec, ok := <-records:
			if !ok {
				records = nil // the end of ctx closes it
				continue
			}
			if err := w.see(rec); err != nil {
				return w.result, err
			}
		case all, ok := <-statuses:
			if !ok {
				statuses = nil
				continue
			}
			w.statuses = orEmpty(all)
		case <-slowly:
			slow = true
		case <-ctx.Done():
			if errors.Is(context.Cause(ctx), ErrTimeout) {
				return w.timedOut(parent)
			}
			return w.interrupted()
		}
	}
	return w.result, nil
}

// done is whether all live nodes have the change. It says how far they are; of the steps only where
// they are slow.
func (w *wait) done(slow bool) bool {
	if slow && w.applied == 0 && w.step != 0 && w.statuses != nil {
		w.say("nodes are taking it up: %s", view.Applied(w.snapshot, w.statuses, w.step))
	}
	if w.applied == 0 || w.statuses == nil {
		return false
	}
	progress := view.Applied(w.snapshot, w.statuses, w.applied)
	w.result.Nodes = &progress
	if progress.Done() {
		w.finish()
		return true
	}
	w.say("applied on %d/%d nodes", progress.Applied, progress.Live)
	return false
}

// orEmpty tells "no node is live" from "not heard yet".
func orEmpty(statuses view.Statuses) view.Statuses {
	if statuses == nil {
		return view.Statuses{}
	}
	return statuses
}

// see takes in a new state of the records. An error ends the wait.
func (w *wait) see(rec store.Records) error {
	name := w.request.Namespace
	n, ok := rec.Namespaces[name]
	rev := rec.Revs.Namespaces[name]
	w.snapshot, w.step = rec.Snapshot, 0
	if ok && n.Change.UnderWay() {
		w.step = rev.Mod
	}
	switch {
	case w.applied != 0:
		// Carried out. What is asked of the namespace after that does not matter.
		return nil
	case !ok || rev.Create > w.requested:
		return w.fail(view.Refused, "the record of namespace %s was deleted before the request %s was carried out", name, w.request)
	case rev.Mod < w.requested:
		return nil // from before the request
	case n.Action == topology.None:
		return w.settle(n, rev.Mod)
	case plan.Of(n) != w.request:
		return w.fail(view.Unknown, "another request, %s, was made before the outcome of %s was seen; `netns show %s` tells what holds", plan.Of(n), w.request, name)
	}
	return nil // still pending
}

// settle judges the record n, whose request is gone. It may be newer than the request's end, and others may have joined
// or left meanwhile: what the record says of the request counts, and what is there only where it says nothing.
func (w *wait) settle(n topology.Namespace, rev int64) error {
	if !n.Status.CarriedOut(w.request.InRecord()) && !plan.Fulfilled(w.snapshot, w.request, w.targetID) {
		return w.fail(view.Refused, "%s was not carried out: %s", w.request, reason(n.Status))
	}
	w.applied, w.result.Revision = rev, rev
	ids := plan.IDs(w.snapshot)
	id := ids[n.NetName]
	w.result.NetID = &id
	if others := plan.Sharing(ids, n.NetName); others != nil {
		w.result.NetworkWith = others
	}
	return nil
}

// reason is why a request that is gone was not carried out.
func reason(s *topology.Status) string {
	switch {
	case s == nil, s.Message == "", s.Is(topology.Done), s.Is(topology.Withdrawn):
		who := "somebody else"
		if s != nil && s.By != "" {
			who = s.By
		}
		return "it was taken back, or changed again, by " + who
	}
	return s.Message
}

// nothing is that nothing was asked for, as the records said so already.
func (w *wait) nothing() bool { return w.requested == 0 }

// finish words the result of what is done.
func (w *wait) finish() {
	if w.nothing() {
		if len(w.result.Nodes.NotLive) > 0 {
			w.result.Message += fmt.Sprintf(", applied on %s", w.result.Nodes)
		}
		return
	}
	r, id := w.request, *w.result.NetID
	var what string
	switch r.Action {
	case topology.Join:
		what = fmt.Sprintf("%s joined %s: netID %s", r.Namespace, r.Target, id)
	case topology.Isolate:
		what = fmt.Sprintf("%s is isolated: netID %s", r.Namespace, id)
	case topology.MakeGlobal:
		what = fmt.Sprintf("%s is global: netID %s", r.Namespace, id)
	}
	w.result.Result = view.Done
	w.result.Message = fmt.Sprintf("%s, applied on %s", what, *w.result.Nodes)
}

// fail fills in the result and returns its message as an error.
func (w *wait) fail(result, format string, args ...any) error {
	w.result.Result, w.result.Message = result, fmt.Sprintf(format, args...)
	return errors.New(w.result.Message)
}

// failTimeout is fail for a wait that took too long.
func (w *wait) failTimeout(result, format string, args ...any) error {
	return &timeoutError{w.fail(result, format, args...)}
}

// timeoutError is ErrTimeout in words of its own.
type timeoutError struct{ error }

func (*timeoutError) Is(target error) bool { return target == ErrTimeout }

// timedOut says what lags. A request that no controller took is taken back,
// so that it does not fire at a time when nobody expects it.
func (w *wait) timedOut(parent context.Context) (view.Result, error) {
	if w.applied != 0 {
		return w.result, w.lagging()
	}
	name := w.request.Namespace
	ctx, cancel := context.WithTimeout(context.WithoutCancel(parent), withdrawTimeout)
	defer cancel()
	err := w.store.WithdrawAction(ctx, name, w.requested)
	var snap topology.Snapshot
	var revs store.Revs
	if err == nil {
		snap, revs, err = w.store.Snapshot(ctx)
	}
	if err != nil {
		return w.result, w.failTimeout(view.Unknown, "the outcome of %s is unknown after %s, and the request may stand: %v", w.request, w.options.Timeout, err)
	}
	n, ok := snap.Namespaces[name]
	w.snapshot = snap
	nobody := fmt.Sprintf("no controller has taken the request in %s: %s", w.options.Timeout, w.controller(ctx))
	switch {
	case ok && n.Change.UnderWay() && plan.Of(n) == w.request:
		progress := view.Applied(snap, orEmpty(w.statuses), revs.Namespaces[name].Mod)
		w.result.Nodes = &progress
		return w.result, w.failTimeout(view.Lagging, "the controller is carrying out %s: after %s its step is applied on %s. The request stands: the controller goes on without nodes that lag for too long", w.request, w.options.Timeout, progress)
	case ok && n.Action != topology.None:
		return w.result, w.failTimeout(view.Unknown, "%s The request %s stands", nobody, plan.Of(n))
	case ok && plan.Fulfilled(snap, w.request, w.targetID):
		// It was taken at the last moment.
		if err := w.settle(n, revs.Namespaces[name].Mod); err != nil {
			return w.result, err
		}
		return w.result, w.lagging()
	case ok && n.Status != nil && !n.Status.Is(topology.Withdrawn):
		return w.result, w.settle(n, revs.Namespaces[name].Mod)
	}
	return w.result, w.failTimeout(view.Withdrawn, "%s The request was withdrawn, nothing was changed", nobody)
}

// controller says what is known about the controller that does not answer.
func (w *wait) controller(ctx context.Context) string {
	if leader, err := w.store.Leader(ctx, w.snapshot.Config.Name); err == nil {
		return fmt.Sprintf("controller %s leads but did not act; its log and /readyz say why.", leader)
	} else if errors.Is(err, store.ErrNotFound) {
		return "none is leading; is k8s-ovs-controller running?"
	}
	return "is k8s-ovs-controller running?"
}

// lagging says which nodes do not have the change, and what they say themselves.
func (w *wait) lagging() error {
	switch {
	case w.statuses != nil:
	case w.nothing():
		return w.failTimeout(view.Lagging, "%s; but what nodes have applied could not be read in %s", w.result.Message, w.options.Timeout)
	default:
		return w.failTimeout(view.Lagging, "the controller carried out %s, but what nodes have applied could not be read in %s; the request stands", w.request, w.options.Timeout)
	}
	progress := view.Applied(w.snapshot, w.statuses, w.applied)
	w.result.Nodes = &progress
	text := fmt.Sprintf("after %s applied on %s. The request stands: nodes that lag follow as soon as they can", w.options.Timeout, progress)
	if w.nothing() {
		text = fmt.Sprintf("%s; but after %s that is applied on %s: nodes that lag follow as soon as they can", w.result.Message, w.options.Timeout, progress)
	}
	for addr, n := range w.snapshot.Nodes {
		if s, ok := w.statuses[addr]; ok && n.Ready() && s.Revision < w.applied && s.Message != "" {
			text += fmt.Sprintf("\n%s says: %s", n.Host, s.Message)
		}
	}
	return w.failTimeout(view.Lagging, "%s", text)
}

// interrupted says what stands when the operator stops waiting.
func (w *wait) interrupted() (view.Result, error) {
	if w.nothing() {
		return w.result, w.fail(view.Lagging, "interrupted: %s, and nodes that lack that follow; `netns show %s` tells how far they are", w.result.Message, w.request.Namespace)
	}
	if w.applied == 0 {
		return w.result, w.fail(view.Unknown, "interrupted: the request %s stands, and a controller carries it out as soon as it can; `netns show %s` tells what became of it", w.request, w.request.Namespace)
	}
	return w.result, w.fail(view.Lagging, "interrupted: the request %s stands: the controller has carried it out, and the nodes that lack it follow; `netns show %s` tells how far it is", w.request, w.request.Namespace)
}

// say reports progress once.
func (w *wait) say(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if w.options.Progress != nil && text != w.said {
		w.options.Progress(text)
	}
	w.said = text
}
