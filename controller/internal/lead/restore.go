package lead

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/k8s-ovs/k8s-ovs/controller/internal/restore"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

const (
	// settle is how long a leader waits for nodes that hold what etcd has lost, from the first
	// that says so; and from its election, before it gives a subnet to a node that has none.
	// An agent is back within 3 s after etcd is.
	settle = 3 * time.Second
	// settleFew is how long it waits for others while only few say so, and the others report that
	// nothing is lost. A node that does not report any more is gone from the records by then.
	settleFew = store.DefaultStatusTTL + settle
	// settleAway is how long it waits where others do not report: they may hold more.
	settleAway = 5 * time.Minute
	// fewEvery is how often it goes by what only few say: a node that lies could say something else each time.
	fewEvery = 5 * time.Minute
	// again is how long it waits for nodes to say what is still missing.
	again = time.Second
)

// errRestored ends a term that has put back records: what is planned next follows from those.
var errRestored = errors.New("records that etcd had lost were put back")

// restoration is what a term knows of nodes that hold what etcd has lost.
type restoration struct {
	// since is when the first of them was seen, mostSince when they were most of all nodes; not before
	// is when to look again.
	since, mostSince, notBefore time.Time
	nodes                       int
	// shortSince is when records were first found that most nodes may hold, but too few say so yet.
	shortSince time.Time
	// due comes then.
	due <-chan time.Time
	// wroteNodes counts the nodes that were put back, wroteNamespaces has the namespaces.
	wroteNodes      int
	wroteNamespaces map[string]bool
}

func (r *restoration) wrote() int { return r.wroteNodes + len(r.wroteNamespaces) }

// wait has the term look again at that time.
func (r *restoration) wait(at, now time.Time) {
	r.notBefore, r.due = at, time.After(at.Sub(now))
}

// voters counts the nodes.
type voters struct {
	// lost is how many hold what etcd has lost, reporting how many report, known how many there are.
	lost, reporting, known int
}

// most reports whether those that hold something may be believed together. One that is alone
// is not: the others may only be slower.
func (v voters) most() bool { return v.lost > 1 && 2*v.lost > v.known }

// denied reports whether so many say that nothing is lost that those which say so cannot be most.
func (v voters) denied() bool { return 2*(v.reporting-v.lost) >= v.known }

// voters are the nodes that are asked. Who does not report counts too: else a node that is the first to report,
// or that keeps others from it, would be all there are. ok is false while the API server has not said which there are.
func (t *term) voters(lost int) (v voters, live map[string]string, ok bool) {
	v = voters{lost: lost, reporting: len(t.live.now), known: len(t.live.now)}
	for ip, n := range t.last.Nodes {
		if _, reports := t.live.now[ip]; !reports && n.Ready() {
			v.known++
		}
	}
	if t.follower == nil {
		return v, nil, true
	}
	now, ok := t.c.world.now()
	v.known = max(v.known, len(now.Nodes))
	live = map[string]string{}
	for name, n := range now.Namespaces {
		live[name] = n.UID
	}
	return v, live, ok
}

// putBack puts back what etcd has lost and nodes hold. While that may be much, nothing else is
// planned: busy.
func (t *term) putBack(ctx context.Context) (busy bool, err error) {
	lost := topology.Lost(t.last.History, t.live.now)
	t.c.cfg.Metrics.lost.Set(float64(len(lost)))
	r := &t.back
	if len(lost) == 0 {
		wrote := r.wrote() > 0
		*r = restoration{}
		if wrote {
			return true, errRestored // nobody holds any more what is not put back
		}
		return false, nil
	}
	now := t.c.cfg.Now()
	v, live, known := t.voters(len(lost))
	if r.see(v, now) {
		t.log.Warn("nodes say that etcd went back to older records (restored from a backup?), and hold newer ones", "nodes", v.lost, "of", v.known)
	}
	// One of few that report could else keep everybody waiting. After something was put back, what the term
	// remembers is wrong.
	busy = v.most() || r.wrote() > 0 || 2*v.lost > v.reporting && now.Before(r.since.Add(settleFew))
	if !known {
		r.wait(now.Add(again), now)
	}
	if until := r.ripe(v, t.c.wentByFew); now.Before(until) {
		r.due = time.After(until.Sub(now))
		return busy, nil
	}
	plan := restore.Make(t.restoreInput(lost, v, live))
	wrote, err := t.writeBack(ctx, plan)
	if err != nil {
		return busy, err
	}
	first, short := r.short(v, plan.Short, now)
	if first {
		t.log.Warn("put back what more than half of all nodes hold; waiting for nodes that may hold what is left out, too", "nodes", v.lost, "reporting", v.reporting, "of", v.known, "limit", settleAway, "left", leftOut(plan.Left))
	}
	switch {
	case short, wrote && plan.More, t.follower != nil && !t.follower.policies.Settled():
		r.wait(now.Add(again), now)
		return busy || wrote, nil
	}
	if err := t.writer.TakeLost(ctx, plan.Points); err != nil {
		return busy, err
	}
	if !v.most() {
		t.c.wentByFew = now
	}
	t.tellRestored(v, plan.Left)
	if !v.most() && r.wrote() == 0 {
		return false, nil // nothing that a term remembers has changed
	}
	t.c.cfg.Metrics.restored.Inc()
	return true, errRestored
}

// restoreInput is what there is to decide on what is put back.
func (t *term) restoreInput(lost map[netip.Addr]topology.Held, v voters, live map[string]string) restore.Input {
	in := restore.Input{Now: t.last.Snapshot, Created: map[string]int64{}, Changed: map[string]int64{}, Lost: lost, Known: v.known, Live: live}
	for name, rev := range t.last.Revs.Namespaces {
		in.Created[name], in.Changed[name] = rev.Create, rev.Mod
		if t.back.wroteNamespaces[name] {
			in.Created[name] = 0 // it was there before: others may be joined with it
		}
	}
	return in
}

// see takes in how many there are now. first reports that there were none before.
func (r *restoration) see(v voters, now time.Time) (first bool) {
	if first = r.since.IsZero(); first {
		r.since = now
	}
	switch {
	case !v.most():
		r.mostSince = time.Time{}
	case r.mostSince.IsZero():
		r.mostSince = now
	}
	if v.lost > r.nodes {
		r.nodes = v.lost
		r.notBefore = now.Add(again)
	}
	return first
}

// short reports whether it is too early to say that all is put back. A record that only votes nodes say they
// hold may still be most nodes': others have not reported yet, and what those say that report no loss may come
// from the backup. If the points were taken now, nodes that report later would follow etcd, and the record
// would be lost. This ends settleAway after it began at the latest, whatever nodes say meanwhile. first
// reports that it begins.
func (r *restoration) short(v voters, votes int, now time.Time) (first, short bool) {
	may := func(others int) bool {
		return v.most() && votes > 0 && voters{lost: votes + others, known: v.known}.most()
	}
	if first = r.shortSince.IsZero() && may(v.known-v.lost); first {
		r.shortSince = now
	}
	return first, may(v.known-v.lost) && now.Before(r.shortSince.Add(settleFew)) || may(v.known-v.reporting) && now.Before(r.shortSince.Add(settleAway))
}

// ripe is when what nodes hold is put back, where most nodes say so, or few, by whom the leader last went then.
func (r *restoration) ripe(v voters, few time.Time) time.Time {
	var at time.Time
	switch {
	case v.most():
		at = r.mostSince.Add(settle)
	case v.known == 1, v.denied():
		at = later(r.since.Add(settleFew), few.Add(fewEvery))
	default:
		at = later(r.since.Add(settleAway), few.Add(fewEvery))
	}
	return later(at, r.notBefore)
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// writeBack writes what of a plan is not so yet.
func (t *term) writeBack(ctx context.Context, plan restore.Plan) (wrote bool, err error) {
	for _, n := range plan.Nodes {
		key := n.HostIP.String()
		if is, there := t.last.Nodes[n.HostIP]; there && is.SameClaim(n) && !is.Assign {
			continue
		}
		rev, err := t.writer.PutNode(ctx, key, n, t.last.Revs.Nodes[n.HostIP].Mod)
		if err != nil {
			return wrote, err
		}
		wrote, t.lastWrite = true, max(t.lastWrite, rev)
		t.back.wroteNodes++
		t.log.Warn("put back a node that etcd had lost", "node", n.Host, "key", key, "subnet", n.Subnet, "revision", rev)
	}
	if t.back.wroteNamespaces == nil {
		t.back.wroteNamespaces = map[string]bool{}
	}
	var batch []store.NamespacePut
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		rev, err := t.writer.PutNamespaces(ctx, batch)
		if err != nil {
			return err
		}
		for _, p := range batch {
			t.back.wroteNamespaces[p.Key] = true
			t.log.Warn("put back a namespace that etcd had lost, or had with another netID", "tenant", p.Key, "netID", *p.Namespace.Effective, "revision", rev)
		}
		wrote, t.lastWrite = true, max(t.lastWrite, rev)
		batch = nil
		return nil
	}
	for _, n := range plan.Namespaces {
		if n.SameTenancy(t.last.Namespaces[n.NetName]) {
			continue
		}
		batch = append(batch, store.NamespacePut{Key: n.NetName, Namespace: n, Revision: t.last.Revs.Namespaces[n.NetName].Mod})
		if len(batch) == store.MaxBatch {
			if err := flush(); err != nil {
				return wrote, err
			}
		}
	}
	return wrote, flush()
}

// tellRestored tells people.
func (t *term) tellRestored(v voters, left []string) {
	what, said := "the records are whole again", fmt.Errorf("etcd went back to older records, as it does when it is restored from a backup: put back what nodes hold, %d nodes and %d namespaces", t.back.wroteNodes, len(t.back.wroteNamespaces))
	if !v.most() {
		what = "nodes that hold other records than etcd now follow etcd"
		said = fmt.Errorf("%d of %d nodes say that etcd went back to older records, too few to be believed: put back the netIDs of %d namespaces. Where etcd was restored from a backup, ask again for what is left out; where it was not, those nodes lie", v.lost, v.known, len(t.back.wroteNamespaces))
	}
	if len(left) > 0 {
		said = fmt.Errorf("%w; left out %d: %s", said, len(left), leftOut(left))
	}
	t.log.Warn(what, "error", said)
	if t.follower != nil {
		t.follower.cluster.complain(said)
	}
}

// leftOut names what is left out, as far as people want to read it.
func leftOut(left []string) string {
	const most = 10
	return strings.Join(left[:min(len(left), most)], "; ")
}

// mayAssign reports whether a node may have its first subnet now. A leader that was just elected
// does not know whether etcd went back to older records, without nodes that came later;
// these have a while to say which subnets are theirs.
func (t *term) mayAssign(now time.Time) bool {
	if len(t.last.History.Terms) < 2 {
		return true // it is the first that ever led
	}
	until := t.began.Add(settle)
	if now.Before(until) {
		t.assignable = time.After(until.Sub(now))
		return false
	}
	return true
}
