package lead

import (
	"maps"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/controller/internal/tenant"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/test/etcdtest"
)

// reportingNode is an agent that says how far it is.
type reportingNode struct {
	status topology.NodeStatus
	record *store.StatusPublisher
}

// register makes a node's record, with a subnet, and an agent that reports.
func register(t *testing.T, s *store.Store, host, ip string) *reportingNode {
	t.Helper()
	addr := netip.MustParseAddr(ip)
	if err := s.EnsureNode(ctxOf(t), host, addr); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the subnet of "+host, func() bool {
		snapshot, _, err := s.Snapshot(ctxOf(t))
		return err == nil && snapshot.Nodes[addr].Ready()
	})
	n := &reportingNode{topology.NodeStatus{Host: host, HostIP: addr}, s.StatusPublisher("k8ssdn", 0)}
	t.Cleanup(n.record.Close)
	n.says(1)
	return n
}

// says reports a revision.
func (n *reportingNode) says(revision int64) {
	n.status.Revision = revision
	n.record.Set(n.status)
}

// TestChangeWaitsForNodes: each step of a change comes when both nodes have the one before in
// their flows, also from a leader that takes over in between.
func TestChangeWaitsForNodes(t *testing.T) {
	e := etcdtest.Start(t)
	c := start(t, e, "one", nil)
	s := ready(t, c)
	ensure(t, s, "a", "b")
	a, b := id(t, s, "a"), id(t, s, "b")
	n1, n2 := register(t, s, "n1", "198.18.0.1"), register(t, s, "n2", "198.18.0.2")
	eventually(t, "two reports", func() bool { all, err := s.Statuses(ctxOf(t)); return err == nil && len(all) == 2 })
	c.stop()
	c = start(t, e, "another", nil) // which knows of both when it begins
	s = ready(t, c)
	step := func(want topology.Change) int64 {
		t.Helper()
		want.Request = "join b"
		waitNamespace(t, s, "a", "it is at step "+string(want.Step), func(n topology.Namespace, _ bool) bool { return n.Change == want })
		n, err := s.Namespace(ctxOf(t), "a")
		if err != nil {
			t.Fatal(err)
		}
		return n.Revision
	}
	request(t, s, "a", topology.Join, "b")
	at := step(topology.Change{Step: topology.StepAccept, NetID: b})
	n1.says(at)
	eventually(t, "the metric says that one change waits for n2", func() bool {
		return value(t, c.cfg.Metrics.changes.WithLabelValues("n2")) == 1
	})
	time.Sleep(100 * time.Millisecond)
	step(topology.Change{Step: topology.StepAccept, NetID: b}) // n2 has not
	c.stop()
	start(t, e, "two", nil)
	n2.says(at)
	at = step(topology.Change{Step: topology.StepSend, NetID: a})
	n2.says(at)
	n1.says(at)
	if got := id(t, s, "a"); got != b {
		t.Errorf("a has %d, want %d of b", got, b)
	}
}

// A node that does not take up a step is named, and the change goes on without it.
func TestChangeGoesOnWithout(t *testing.T) {
	e := etcdtest.Start(t)
	c := start(t, e, "one", nil)
	s := ready(t, c)
	ensure(t, s, "a", "b")
	b := id(t, s, "b")
	n1 := register(t, s, "n1", "198.18.0.1")
	register(t, s, "n2", "198.18.0.2")
	eventually(t, "two reports", func() bool { all, err := s.Statuses(ctxOf(t)); return err == nil && len(all) == 2 })
	n1.says(1 << 40) // has all
	eventually(t, "its report", func() bool { all, err := s.Statuses(ctxOf(t)); return err == nil && all[n1.status.HostIP].Revision > 1 })
	c.stop()
	c = start(t, e, "another", nil)
	s = ready(t, c)
	began := time.Now()
	request(t, s, "a", topology.Join, "b")
	if got := id(t, s, "a"); got != b {
		t.Errorf("a has %d, want %d of b", got, b)
	}
	if took := time.Since(began); took < tenant.StepTimeout {
		t.Errorf("the change took %s, less than it waits for n2", took)
	}
	if n := value(t, c.cfg.Metrics.without.WithLabelValues("n2")); n != 1 {
		t.Errorf("the metric says that %v steps went on without n2", n)
	}
	if log := c.log.String(); !strings.Contains(log, "goes on without a node") || !strings.Contains(log, "node=n2") {
		t.Errorf("the log does not name n2:\n%s", log)
	}
}

// An agent that ends and starts again is waited for as one that is slow.
func TestReports(t *testing.T) {
	one, two := netip.MustParseAddr("198.18.0.1"), netip.MustParseAddr("198.18.0.2")
	subnet := netip.MustParsePrefix("172.11.0.0/22")
	records := map[netip.Addr]topology.Node{
		one: {Host: "n1", HostIP: one, Subnet: subnet}, two: {Host: "n2", HostIP: two, Subnet: subnet},
		netip.MustParseAddr("198.18.0.3"): {Host: "n3"},
	}
	both := map[netip.Addr]topology.NodeStatus{one: {Revision: 7}, two: {Revision: 8}}
	only := maps.Clone(both)
	delete(only, two)
	now := time.Now()
	var r reports
	if r.known() {
		t.Error("known before the first word")
	}
	r.take(nil, now)
	if !r.known() {
		t.Error("that nobody reports is not known")
	}
	r.take(both, now)
	r.take(only, now)
	want := tenant.Nodes{"n1": 7, "n2": 8}
	for _, after := range []time.Duration{0, tenant.StepTimeout} {
		if diff := cmp.Diff(want, r.nodes(records, now.Add(after))); diff != "" {
			t.Errorf("after %s (-want +got):\n%s", after, diff)
		}
	}
	if diff := cmp.Diff(tenant.Nodes{"n1": 7}, r.nodes(records, now.Add(tenant.StepTimeout+1))); diff != "" {
		t.Errorf("long after (-want +got):\n%s", diff)
	}
	both[two] = topology.NodeStatus{Revision: 9}
	r.take(both, now.Add(time.Second))
	if diff := cmp.Diff(tenant.Nodes{"n1": 7, "n2": 9}, r.nodes(records, now.Add(time.Hour))); diff != "" {
		t.Errorf("back (-want +got):\n%s", diff)
	}
	delete(records, two)
	if diff := cmp.Diff(tenant.Nodes{"n1": 7}, r.nodes(records, now)); diff != "" {
		t.Errorf("removed (-want +got):\n%s", diff)
	}
}
