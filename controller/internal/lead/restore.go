package lead

import (
	"context"
	"errors"
	"fmt"
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
	// settleFew is how long it waits for others while only few say so. A node that does not
	// report any more is gone from the records by then.
	settleFew = store.DefaultStatusTTL + settle
	// fewEvery is how often it goes by what only few say: to do so ends its term, and a node that lies could
	// say something else each time.
	fewEvery = 5 * time.Minute
	// again is how long it waits for nodes to say what is still missing.
	again = time.Second
)

// errRestored ends a term that has put back records: what is planned next follows from those.
var errRestored = errors.New("records that etcd had lost were put back")

// restoration is what a term knows of nodes that hold what etcd has lost.
type restoration struct {
	// since is when the first of them was seen; not before is when to look again.
	since, notBefore time.Time
	nodes            int
	// due comes then.
	due <-chan time.Time
	// wrote counts what was put back.
	wroteNodes, wroteNamespaces int
}

// wait has the term look again at that time.
func (r *restoration) wait(at, now time.Time) {
	r.notBefore, r.due = at, time.After(at.Sub(now))
}

// putBack puts back what etcd has lost and nodes hold. While most nodes do, nothing else is
// planned: busy.
func (t *term) putBack(ctx context.Context) (busy bool, err error) {
	lost := topology.Lost(t.last.History, t.live.now)
	t.c.cfg.Metrics.lost.Set(float64(len(lost)))
	r := &t.back
	if len(lost) == 0 {
		*r = restoration{}
		return false, nil
	}
	now, most := t.c.cfg.Now(), 2*len(lost) > len(t.live.now)
	if r.since.IsZero() {
		r.since = now
		t.log.Warn("etcd went back to older records (restored from a backup?): nodes hold newer ones, which are put back", "nodes", len(lost), "of", len(t.live.now))
	}
	if len(lost) > r.nodes {
		r.nodes = len(lost)
		r.notBefore = now.Add(again)
	}
	until := r.ripe(most, t.c.wentByFew)
	if now.Before(until) {
		r.wait(until, now)
		return most, nil
	}
	in := restore.Input{Now: t.last.Snapshot, Created: map[string]int64{}, Changed: map[string]int64{}, Lost: lost, Most: most}
	for name, rev := range t.last.Revs.Namespaces {
		in.Created[name], in.Changed[name] = rev.Create, rev.Mod
	}
	plan := restore.Make(in)
	wrote, err := t.writeBack(ctx, plan)
	if err != nil {
		return most, err
	}
	switch {
	case wrote && plan.More, t.follower != nil && !t.follower.policies.Settled():
		r.wait(now.Add(again), now)
		return most, nil
	}
	if err := t.writer.TakeLost(ctx, plan.Points); err != nil {
		return most, err
	}
	if !most {
		t.c.wentByFew = now
	}
	t.tellRestored(plan.Left)
	return true, errRestored
}

// ripe is when what nodes hold is put back, where most nodes say so, or few, by whom the leader last went then.
func (r *restoration) ripe(most bool, few time.Time) time.Time {
	at := r.since.Add(settle)
	if !most {
		at = later(r.since.Add(settleFew), few.Add(fewEvery))
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
		if is, there := t.last.Nodes[n.HostIP]; there && is.Host == n.Host && is.Subnet == n.Subnet && is.ID() == n.ID() && !is.Assign {
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
			t.log.Warn("put back a namespace that etcd had lost, or had with another netID", "tenant", p.Key, "netID", *p.Namespace.Effective, "revision", rev)
		}
		wrote, t.lastWrite = true, max(t.lastWrite, rev)
		t.back.wroteNamespaces += len(batch)
		batch = nil
		return nil
	}
	for _, n := range plan.Namespaces {
		is, there := t.last.Namespaces[n.NetName]
		if there && is.Effective != nil && *is.Effective == *n.Effective && is.Change == n.Change {
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
func (t *term) tellRestored(left []string) {
	said := fmt.Errorf("etcd went back to older records, as it does when it is restored from a backup: put back what nodes hold, %d nodes and %d namespaces", t.back.wroteNodes, t.back.wroteNamespaces)
	if len(left) > 0 {
		const most = 10
		said = fmt.Errorf("%w; left out %d: %s", said, len(left), strings.Join(left[:min(len(left), most)], "; "))
	}
	t.log.Warn("the records are whole again", "error", said)
	t.c.cfg.Metrics.restored.Inc()
	if t.follower != nil {
		t.follower.cluster.complain(said)
	}
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
