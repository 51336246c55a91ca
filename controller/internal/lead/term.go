package lead

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/k8s-ovs/k8s-ovs/controller/internal/policies"
	"github.com/k8s-ovs/k8s-ovs/controller/internal/subnet"
	"github.com/k8s-ovs/k8s-ovs/controller/internal/tenant"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// writer is a leadership: all that a term may write through.
type writer interface {
	Name() string
	Done() <-chan struct{}
	PutNamespace(ctx context.Context, key string, n topology.Namespace, rev int64) (int64, error)
	PutNamespaces(ctx context.Context, batch []store.NamespacePut) (int64, error)
	PutNode(ctx context.Context, key string, n topology.Node, rev int64) (int64, error)
	DeleteNamespace(ctx context.Context, key string, rev int64) (int64, error)
	DeleteNode(ctx context.Context, key string, rev int64) (int64, error)
	PutReleased(ctx context.Context, r store.Released, rev int64) (int64, error)
	DropLeft(ctx context.Context) (dropped []string, err error)
	PutCertificate(ctx context.Context, ip netip.Addr, c topology.Certificate, rev int64) (int64, error)
	DropRequest(ctx context.Context, key string) error
	PutConfig(ctx context.Context, cfg topology.Config, rev int64) (int64, error)
	TakeLost(ctx context.Context, points []topology.Point) error
	policies.Writer
}

// term is the time from an election to its end. What it remembers dies with it:
// the next leader reads everything anew.
type term struct {
	c      *Controller
	writer writer
	log    *slog.Logger

	tenants  *tenant.Planner
	subnets  *subnet.Planner
	released store.Versioned[store.Released] // revision 0: no record
	follower *follower                       // of the Kubernetes cluster; nil for none

	last      store.Records   // the newest
	seen      time.Time       // when it came
	lastWrite int64           // revision of our newest write
	nodes     map[string]bool // keys of the nodes that were there last; nil at first
	live      reports

	tunnels    tunnels
	identities identities
	back       restoration
	began      time.Time
	// assignable comes when nodes may have their first subnets.
	assignable <-chan time.Time
	// late comes when a tenant change has waited for nodes for long enough.
	late <-chan time.Time
	// clusterCut is that what follows Kubernetes was cut short, and the rest has its turn.
	clusterCut bool
}

func newTerm(c *Controller, w writer) *term {
	t := &term{c: c, writer: w, log: c.log, began: c.cfg.Now()}
	if c.world != nil {
		t.follower = newFollower(c.cfg, w)
	}
	return t
}

// run leads until ctx ends or leadership does.
func (t *term) run(ctx context.Context) error {
	if err := t.begin(ctx); err != nil {
		return err
	}
	// A watch of its own, begun after the election: its first listing has all
	// that former leaders wrote.
	wctx, cancel := context.WithCancel(ctx)
	compare := time.NewTicker(compareEvery)
	defer compare.Stop()
	events, stop := t.follow(wctx)
	defer stop()
	from := sources{
		records: t.c.cfg.Store.WatchRecords(wctx), requests: t.c.cfg.Store.WatchRequests(wctx), statuses: t.c.cfg.Store.WatchStatuses(wctx),
		events: events, compare: compare.C,
	}
	duties := t.startDuties(wctx)
	defer duties.Wait()
	defer cancel() // first of all: what is waited for ends by it
	pauses := newPauses()
	for {
		due, err := t.next(ctx, from)
		if err != nil {
			return err
		}
		if !due {
			continue
		}
		from.retry = nil
		t.late = nil
		switch err := t.act(ctx); {
		case err == nil:
			pauses.Reset()
		case errors.Is(err, store.ErrDeposed):
			return err
		case errors.Is(err, store.ErrUnavailable):
			t.log.Warn("cannot write to etcd; trying again", "error", err)
			from.retry = time.After(pauses.Next())
		case errors.Is(err, store.ErrConflict):
			// The record changed: the watch is about to say how.
			t.c.cfg.Metrics.conflicts.Inc()
		default:
			return err
		}
	}
}

// sources are what a term waits for.
type sources struct {
	records  <-chan store.Records
	requests <-chan store.Requests
	statuses <-chan map[netip.Addr]topology.NodeStatus
	events   <-chan struct{} // of the Kubernetes cluster
	compare  <-chan time.Time
	retry    <-chan time.Time
}

// errWatchEnded: a watch ends with its context only.
var errWatchEnded = errors.New("the watch ended")

// next waits for an event, and reports whether there may be something to write. There is
// not while the newest records lack what this term wrote.
func (t *term) next(ctx context.Context, from sources) (due bool, err error) {
	select {
	case <-ctx.Done():
		return false, ctx.Err()
	case <-t.writer.Done():
		return false, store.ErrDeposed
	case r, open := <-from.records:
		if !open {
			return false, cmp.Or(ctx.Err(), errWatchEnded)
		}
		fresh, err := t.take(r)
		return fresh && t.live.known(), err
	case all, open := <-from.statuses:
		if !open {
			return false, cmp.Or(ctx.Err(), errWatchEnded)
		}
		first := !t.live.known()
		t.live.take(all, t.c.cfg.Now())
		lost := !t.back.since.IsZero() || len(topology.Lost(t.last.History, all)) > 0
		return t.current() && (first || lost || t.tenants.Due(t.waitedFor)), nil
	case <-t.late:
		return t.current(), nil
	case <-t.back.due:
		return t.current(), nil
	case <-t.assignable:
		return t.current(), nil
	case r, open := <-from.requests:
		if !open {
			return false, cmp.Or(ctx.Err(), errWatchEnded)
		}
		t.takeRequests(r)
		return t.current(), nil
	case <-from.compare:
		return t.current(), nil
	case <-from.events:
		return t.current(), nil
	case <-from.retry:
		return true, nil
	}
}

// startDuties runs until ctx ends what a leader does beside.
func (t *term) startDuties(ctx context.Context) *sync.WaitGroup {
	var running sync.WaitGroup
	for _, duty := range t.c.cfg.Duties {
		running.Go(func() { duty(ctx) })
	}
	return &running
}

// current reports whether the newest records have all that this term wrote, and what nodes
// report is known; where they have not, a watch is about to say more.
func (t *term) current() bool {
	return !t.seen.IsZero() && t.last.Revision >= t.lastWrite && t.live.known()
}

// begin reads what former leaders left.
func (t *term) begin(ctx context.Context) error {
	rel, err := t.c.cfg.Store.Released(ctx, t.writer.Name())
	switch {
	case errors.Is(err, store.ErrInvalid):
		t.log.Warn("the list of freed netIDs is not readable; beginning a new one", "error", err)
	case err != nil && !errors.Is(err, store.ErrNotFound):
		return err
	}
	t.released = rel
	t.tenants = tenant.New(tenant.Config{
		Global: t.c.cfg.GlobalNamespaces, Import: errors.Is(err, store.ErrNotFound),
		Freed: rel.Value.NetIDs, Random: t.c.cfg.Random,
	})
	t.subnets = subnet.New(rel.Value.Subnets)
	return nil
}

// take takes a snapshot in. It is not fresh when it lacks what this term wrote.
func (t *term) take(r store.Records) (fresh bool, err error) {
	switch {
	case r.Config.Name != t.writer.Name():
		return false, errRenamed
	case r.Listing != t.last.Listing && r.Revision < t.last.Revision:
		return false, errWentBack
	case r.Listing == t.last.Listing && r.Revision < t.lastWrite:
		return false, nil
	}
	for key, reason := range r.Invalid {
		if t.last.Invalid[key] != reason {
			t.log.Warn("a record does not parse", "record", key, "error", reason)
		}
	}
	t.last, t.seen = r, t.c.cfg.Now()
	t.c.observe(r)
	if t.follower != nil {
		t.follower.policies.SetNodes(r.Config, r.Nodes)
	}
	return true, nil
}

// act writes what the newest records call for. Each part ends after a slice of time, and
// what is left of it is in the plan of the next snapshot, which its writes bring about.
func (t *term) act(ctx context.Context) error {
	if busy, err := t.putBack(ctx); busy || err != nil {
		return err
	}
	if err := t.keepPort(ctx); err != nil {
		return err
	}
	if t.clusterCut {
		t.clusterCut = false
		before := t.lastWrite
		if err := t.actRecords(ctx); err != nil || t.lastWrite != before {
			return err
		}
	}
	wrote, all, err := t.actCluster(ctx)
	t.clusterCut = !all
	if wrote || err != nil {
		return err // the watch shows what was written; the rest builds on it
	}
	return t.actRecords(ctx)
}

// actRecords writes what the records themselves call for.
func (t *term) actRecords(ctx context.Context) error {
	ids, allIDs, err := t.actTenants(ctx)
	subnets, allSubnets, nodeErr := t.actNodes(ctx)
	if err := errors.Join(err, nodeErr, t.actIdentities(ctx)); err != nil {
		return err
	}
	if err := t.dropLeft(ctx); err != nil {
		return err
	}
	if !allIDs || !allSubnets {
		return nil
	}
	return t.keepReleased(ctx, store.Released{NetIDs: append(freedIDs{}, ids...), Subnets: subnets})
}

// keepReleased writes the list of what was freed, if it changed. It comes last:
// its presence says that all records were confirmed once.
func (t *term) keepReleased(ctx context.Context, r store.Released) error {
	old := t.released
	if old.Revision != 0 && slices.Equal(old.Value.NetIDs, r.NetIDs) && slices.Equal(old.Value.Subnets, r.Subnets) {
		t.tenants.Imported()
		return nil
	}
	rev, err := t.writer.PutReleased(ctx, r, old.Revision)
	if err != nil {
		return t.releasedFailed(ctx, err)
	}
	t.tenants.Imported()
	t.released = store.Versioned[store.Released]{Value: r, Revision: rev}
	return nil
}

// releasedFailed finds out the revision of the list after a conflict: a write of
// ours whose answer was lost, or someone's hand.
func (t *term) releasedFailed(ctx context.Context, err error) error {
	if !errors.Is(err, store.ErrConflict) {
		return err
	}
	rel, rerr := t.c.cfg.Store.Released(ctx, t.writer.Name())
	if rerr != nil && !errors.Is(rerr, store.ErrNotFound) && !errors.Is(rerr, store.ErrInvalid) {
		return rerr
	}
	t.released = rel
	return nil // the next plan writes it
}

// actTenants plans and writes the namespaces: what people asked for, and then first
// netIDs. all is false where some of the plan was left for the next.
func (t *term) actTenants(ctx context.Context) (freed freedIDs, all bool, err error) {
	now := t.c.cfg.Now()
	plan, err := t.tenants.Plan(tenantRecords(t.last), t.waitedFor(), now)
	if err != nil {
		return nil, false, err
	}
	t.c.cfg.Metrics.tenants(plan)
	t.tellWaiting(plan, now)
	for _, w := range plan.Writes {
		t.tenants.Trying(w)
		rev, err := t.writer.PutNamespace(ctx, w.Key, w.Namespace, w.Mod)
		t.account(w, rev, err)
		if err != nil {
			return nil, false, err
		}
	}
	all, err = t.giveFirst(ctx, plan.First)
	return plan.Freed, all, err
}

// account takes in what became of a namespace's write that was tried.
func (t *term) account(w tenant.Write, rev int64, err error) {
	if err != nil {
		if certain(err) {
			t.tenants.Failed(w)
		}
		return
	}
	t.tenants.Wrote(w)
	t.lastWrite = max(t.lastWrite, rev)
	if w.Outcome == tenant.Stepped {
		t.log.Debug("a tenant change goes on", "tenant", w.Key, "step", w.Namespace.Change.Step, "revision", rev)
		return
	}
	t.c.cfg.Metrics.answered(w)
	t.c.cfg.Metrics.write.Observe(t.c.cfg.Now().Sub(t.seen).Seconds())
	t.logTenant(w, rev)
	t.follower.tellTenant(w)
}

// certain reports whether err means that nothing was written.
func certain(err error) bool {
	return errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrDeposed) || errors.Is(err, store.ErrInvalid)
}

func (t *term) logTenant(w tenant.Write, rev int64) {
	level, attrs := slog.LevelInfo, []any{"tenant", w.Key, "outcome", w.Outcome, "revision", rev}
	if w.Action != topology.None {
		attrs = append(attrs, "action", w.Action)
	}
	if w.By != "" {
		attrs = append(attrs, "by", w.By)
	}
	if w.Namespace.Effective != nil {
		attrs = append(attrs, "netID", *w.Namespace.Effective)
	}
	if w.From != nil {
		attrs = append(attrs, "was", *w.From)
	}
	if w.Message != "" {
		attrs = append(attrs, "reason", w.Message)
	}
	if w.Outcome == tenant.Refused || w.Outcome == tenant.Waiting {
		level = slog.LevelWarn
	}
	t.log.Log(context.Background(), level, "namespace", attrs...)
}

// nodeRecords are the records of nodes, those that ask for a subnet with the one
// that the node's pods are in.
func (t *term) nodeRecords(ctx context.Context) ([]subnet.Record, error) {
	records := nodeRecords(t.last)
	asks := func(r subnet.Record) bool { return r.Node.Assign && !r.Node.Subnet.IsValid() }
	if !slices.ContainsFunc(records, asks) {
		return records, nil
	}
	if !t.mayAssign(t.c.cfg.Now()) {
		return slices.DeleteFunc(records, asks), nil
	}
	live, err := t.c.cfg.Store.Statuses(ctx)
	if err != nil {
		return nil, err
	}
	for i, r := range records {
		if asks(r) {
			records[i].Using = live[r.Node.HostIP].Subnet
		}
	}
	var used []netip.Prefix
	for _, status := range live {
		if status.Subnet.IsValid() {
			used = append(used, status.Subnet)
		}
	}
	t.subnets.Reserve(used)
	return records, nil
}

// actNodes plans and writes the nodes. all is false where some of the plan was left for
// the next.
func (t *term) actNodes(ctx context.Context) (freed freedSubnets, all bool, err error) {
	records, err := t.nodeRecords(ctx)
	if err != nil {
		return nil, false, err
	}
	plan, err := t.subnets.Plan(t.last.Config, records, t.c.cfg.Now())
	if err != nil {
		return nil, false, err
	}
	over := t.slice()
	t.c.cfg.Metrics.nodes(plan)
	for i, w := range plan.Writes {
		if i > 0 && over() {
			return nil, false, nil
		}
		t.subnets.Trying(w)
		rev, err := t.writer.PutNode(ctx, w.Key, w.Node, w.Mod)
		t.accountNode(w, rev, err)
		if err != nil {
			return nil, false, err
		}
	}
	return plan.Freed, true, nil
}

// accountNode takes in what became of a node's write that was tried.
func (t *term) accountNode(w subnet.Write, rev int64, err error) {
	if err != nil {
		if certain(err) {
			t.subnets.Failed(w)
		}
		return
	}
	t.subnets.Wrote(w)
	t.lastWrite = max(t.lastWrite, rev)
	t.c.cfg.Metrics.subnetReqs.WithLabelValues(string(w.Outcome)).Inc()
	t.c.cfg.Metrics.write.Observe(t.c.cfg.Now().Sub(t.seen).Seconds())
	level, attrs := slog.LevelInfo, []any{"node", w.Node.Host, "key", w.Key, "outcome", w.Outcome, "subnet", w.Node.Subnet, "revision", rev}
	if w.Message != "" {
		level, attrs = slog.LevelWarn, append(attrs, "reason", w.Message)
	}
	t.log.Log(context.Background(), level, "node", attrs...)
	t.follower.tellNode(w)
}
