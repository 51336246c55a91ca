package lead

import (
	"net/netip"
	"time"

	"github.com/k8s-ovs/k8s-ovs/controller/internal/tenant"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// reports are what nodes say that they have in their flows, for tenant changes to wait for.
type reports struct {
	// now is nil before the first word.
	now map[netip.Addr]topology.NodeStatus
	// ended are nodes that have ceased to report, with the last that they said. Their flows go
	// on: an agent that starts anew is waited for as one that is slow.
	ended map[netip.Addr]lastReport
}

type lastReport struct {
	revision int64
	at       time.Time
}

func (r *reports) known() bool { return r.now != nil }

// take takes in what all live nodes say.
func (r *reports) take(all map[netip.Addr]topology.NodeStatus, now time.Time) {
	if r.ended == nil {
		r.ended = map[netip.Addr]lastReport{}
	}
	for ip, was := range r.now {
		if _, still := all[ip]; !still {
			r.ended[ip] = lastReport{was.Revision, now}
		}
	}
	for ip, e := range r.ended {
		if _, again := all[ip]; again || now.Sub(e.at) > tenant.StepTimeout {
			delete(r.ended, ip)
		}
	}
	r.now = all
	if all == nil {
		r.now = map[netip.Addr]topology.NodeStatus{}
	}
}

// nodes are those of the records that a tenant change waits for.
func (r *reports) nodes(records map[netip.Addr]topology.Node, now time.Time) tenant.Nodes {
	nodes := make(tenant.Nodes, len(records))
	for ip, n := range records {
		if !n.Ready() {
			continue
		}
		revision := int64(0)
		if status, live := r.now[ip]; live {
			revision = status.Revision
		} else if e, ended := r.ended[ip]; ended && now.Sub(e.at) <= tenant.StepTimeout {
			revision = e.revision
		} else {
			continue
		}
		if other, twice := nodes[n.Host]; !twice || revision < other {
			nodes[n.Host] = revision
		}
	}
	return nodes
}

// waitedFor are the nodes that tenant changes wait for now.
func (t *term) waitedFor() tenant.Nodes { return t.live.nodes(t.last.Nodes, t.c.cfg.Now()) }

// tellWaiting names the nodes that hold up changes for too long, and sees to it that others are
// looked at again when it is time.
func (t *term) tellWaiting(plan tenant.Plan, now time.Time) {
	for _, w := range plan.Without {
		t.log.Warn("a tenant change goes on without a node, which has not got its step in its flows: what the namespace's pods there send and receive may be lost until it has",
			"tenant", w.Key, "node", w.Node, "step", w.Step, "revision", w.Revision, "applied", w.Applied, "waited", tenant.StepTimeout)
	}
	var until time.Time
	for _, c := range plan.UnderWay {
		if until.IsZero() || c.Until.Before(until) {
			until = c.Until
		}
	}
	if !until.IsZero() {
		t.late = time.After(until.Sub(now))
	}
}
