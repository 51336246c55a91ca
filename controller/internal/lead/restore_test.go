package lead

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/test/etcdtest"
)

// holder is as much of an agent as reports what it holds.
type holder struct {
	status *store.StatusPublisher
	cancel context.CancelFunc
	ended  chan struct{}
	// held is what it had when it ended.
	held topology.Snapshot
}

// hold starts one; held is what it knows from before.
func hold(t *testing.T, s *store.Store, host string, ip netip.Addr, held topology.Snapshot) *holder {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	h := &holder{status: s.StatusPublisher("k8ssdn", 0), cancel: cancel, ended: make(chan struct{}), held: held}
	go func() {
		defer close(h.ended)
		for now := range s.Watch(ctx) {
			st := topology.NodeStatus{Host: host, HostIP: ip, Revision: now.Revision}
			if now.History.Holds(h.held.History.Now) {
				h.held = now
			} else {
				lost := topology.HeldBeside(h.held, now, func(string) bool { return false })
				st.Held, st.Revision = &lost, 0
			}
			st.Subnet = h.held.Nodes[ip].Subnet
			h.status.Set(st)
		}
	}()
	t.Cleanup(h.end)
	return h
}

func (h *holder) end() {
	h.cancel()
	<-h.ended
	h.status.Close()
}

func subnetOf(t *testing.T, s *store.Store, ip netip.Addr) netip.Prefix {
	t.Helper()
	var n store.Versioned[topology.Node]
	eventually(t, "a subnet of "+ip.String(), func() (done bool) {
		var err error
		n, err = s.Node(ctxOf(t), ip)
		return err == nil && n.Value.Ready() && !n.Value.Assign
	})
	return n.Value.Subnet
}

// TestRestoredUnderNodes: etcd is restored from a backup that lacks a node, a namespace and a
// change of tenants. Nodes hold them, so they are put back; a node that is new gets the subnet
// of none. It is the same whether the leader lives on, or another leads.
func TestRestoredUnderNodes(t *testing.T) {
	t.Parallel()
	for name, again := range map[string]bool{"the same leader": false, "another leader": true} {
		t.Run(name, func(t *testing.T) {
			e := etcdtest.Start(t)
			c := start(t, e, "one", nil)
			s := open(t, e)
			ready(t, c)
			addr := func(i byte) netip.Addr { return netip.AddrFrom4([4]byte{198, 18, 0, i}) }
			node := func(i byte) netip.Prefix {
				if err := s.EnsureNode(ctxOf(t), string(rune('m'+i)), addr(i)); err != nil {
					t.Fatal(err)
				}
				return subnetOf(t, s, addr(i))
			}
			ensure(t, s, "red", "blue", "idle")
			first := node(1)
			h1 := hold(t, open(t, e), "n", addr(1), topology.Snapshot{})
			red, blue, idle := id(t, s, "red"), id(t, s, "blue"), id(t, s, "idle")
			eventually(t, "the first node reports", func() bool {
				all, err := s.Statuses(ctxOf(t))
				return err == nil && all[addr(1)].Subnet == first
			})
			e.Stop()
			restore := e.Save()
			e.Restart()
			second := node(2)
			h2 := hold(t, open(t, e), "o", addr(2), topology.Snapshot{})
			ensure(t, s, "new")
			fresh := id(t, s, "new")
			request(t, s, "red", topology.Join, "blue")
			waitNamespace(t, s, "red", "joined", func(n topology.Namespace, ok bool) bool {
				return ok && n.Action == topology.None && n.Effective != nil && *n.Effective == blue && !n.Change.UnderWay()
			})
			rev, _, err := s.Snapshot(ctxOf(t))
			if err != nil {
				t.Fatal(err)
			}
			eventually(t, "all is reported", func() bool {
				all, err := s.Statuses(ctxOf(t))
				return err == nil && all[addr(1)].Revision >= rev.Revision-5 && all[addr(2)].Subnet == second
			})
			e.Stop()
			if again {
				c.stop()
			}
			restore()
			e.Restart()
			if again {
				c = start(t, e, "two", nil)
			}
			// At once somebody else wants a subnet and a netID.
			third := node(3)
			ensure(t, s, "later")
			later := id(t, s, "later")
			eventually(t, "what was lost is put back", func() bool { return strings.Contains(c.log.String(), "the records are whole again") })
			if got := subnetOf(t, s, addr(2)); got != second || third == first || third == second || subnetOf(t, s, addr(1)) != first {
				t.Errorf("subnets %v and %v, were %v and %v; the new node has %v", subnetOf(t, s, addr(1)), got, first, second, third)
			}
			if id(t, s, "red") != blue || id(t, s, "blue") != blue || id(t, s, "idle") != idle || id(t, s, "new") != fresh || later == fresh || later == red {
				t.Errorf("red %d, blue %d (%d), idle %d (%d), new %d (%d), later %d", id(t, s, "red"), id(t, s, "blue"), blue, id(t, s, "idle"), idle, id(t, s, "new"), fresh, later)
			}
			// Nodes take what etcd has from now on, and leaders go on.
			request(t, s, "red", topology.Isolate, "")
			waitNamespace(t, s, "red", "isolated", func(n topology.Namespace, ok bool) bool {
				return ok && n.Action == topology.None && n.Effective != nil && *n.Effective != blue && !n.Change.UnderWay()
			})
			for _, h := range []*holder{h1, h2} {
				h.end()
				if _, there := h.held.Namespaces["later"]; !there || len(h.held.Nodes) != 3 {
					t.Errorf("a node still holds %+v", h.held)
				}
			}
		})
	}
}

// TestFewHold: a single node of three that says that etcd has lost records is not believed, as it
// may lie: nobody is joined, no node made. Others do not wait for it.
func TestFewHold(t *testing.T) {
	t.Parallel()
	e := etcdtest.Start(t)
	c := start(t, e, "one", nil)
	s := open(t, e)
	ready(t, c)
	ensure(t, s, "red", "blue")
	red, blue := id(t, s, "red"), id(t, s, "blue")
	for i := range 3 {
		p := s.StatusPublisher("k8ssdn", 0)
		defer p.Close()
		st := topology.NodeStatus{Host: "n", HostIP: netip.AddrFrom4([4]byte{198, 18, 0, byte(i)})}
		if i == 0 {
			node := topology.Node{Host: "evil", HostIP: netip.MustParseAddr("198.18.0.9"), Subnet: netip.MustParsePrefix("172.11.0.0/22")}
			st.Held = &topology.Held{At: topology.Point{Term: "x", Revision: 1 << 40}, Namespaces: []topology.Namespace{{NetName: "red", Effective: &blue}}, Nodes: []topology.Node{node}}
		}
		p.Set(st)
	}
	eventually(t, "it is seen", func() bool { return value(t, c.cfg.Metrics.lost) == 1 })
	ensure(t, s, "later")
	if id(t, s, "later"); id(t, s, "red") != red {
		t.Errorf("red is on another network")
	}
	eventually(t, "it is over", func() bool { return strings.Contains(c.log.String(), "the records are whole again") })
	if id(t, s, "red") != red {
		t.Errorf("red is on another network")
	}
	if _, err := s.Node(ctxOf(t), netip.MustParseAddr("198.18.0.9")); err == nil {
		t.Error("a node was made")
	}
}

// TestRipe: a node that says again and again that etcd has lost records, each time others, is gone by
// now and then only.
func TestRipe(t *testing.T) {
	now := time.Now()
	for what, tt := range map[string]struct {
		r    restoration
		most bool
		few  time.Time
		want time.Time
	}{
		"most":                       {restoration{since: now}, true, time.Time{}, now.Add(settle)},
		"most, and few just before":  {restoration{since: now}, true, now, now.Add(settle)},
		"few":                        {restoration{since: now}, false, time.Time{}, now.Add(settleFew)},
		"few, and just before":       {restoration{since: now}, false, now.Add(-time.Second), now.Add(fewEvery - time.Second)},
		"few, and long before":       {restoration{since: now}, false, now.Add(-time.Hour), now.Add(settleFew)},
		"one more of most has come":  {restoration{since: now.Add(-time.Minute), notBefore: now.Add(again)}, true, time.Time{}, now.Add(again)},
		"one more of a few has come": {restoration{since: now.Add(-time.Minute), notBefore: now.Add(again)}, false, time.Time{}, now.Add(again)},
	} {
		if got := tt.r.ripe(tt.most, tt.few); !got.Equal(tt.want) {
			t.Errorf("%s: in %s, want %s", what, got.Sub(now), tt.want.Sub(now))
		}
	}
}
