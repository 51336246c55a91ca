package store

import (
	"errors"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// TestLeaderOfRestoredEtcd: a leader whose own writes are gone writes nothing more, although its
// election key is there as it was. Who read the records before sees that these came before.
func TestLeaderOfRestoredEtcd(t *testing.T) {
	e, s := network(t)
	ch := s.Watch(ctxOf(t))
	l := campaign(t, s, "one")
	eleven, twelve := netid.ID(11), netid.ID(12)
	// What is handed on may have more than all up to its revision, and lack what was written beside that.
	wrote, err := l.PutNamespace(ctxOf(t), "a", topology.Namespace{NetName: "a", Effective: &eleven}, 0)
	if err != nil {
		t.Fatal(err)
	}
	first := until(t, ch, "the first write", func(s topology.Snapshot) bool { return s.Revision >= wrote })
	e.Stop()
	restore := e.Save()
	e.Restart()
	if wrote, err = l.PutNamespace(ctxOf(t), "b", topology.Namespace{NetName: "b", Effective: &twelve}, 0); err != nil {
		t.Fatal(err)
	}
	lost := until(t, ch, "the second write", func(s topology.Snapshot) bool { return s.Revision >= wrote })
	if !lost.History.Holds(first.History.Now) || lost.History.Now.Term != first.History.Now.Term {
		t.Errorf("history %+v, before it %+v", lost.History, first.History)
	}
	e.Stop()
	restore()
	e.Restart()
	// Others may have written so much meanwhile that its revision tells nothing.
	for range 20 {
		e.Put(DefaultPrefix+"/k8ssdn/other", "x")
	}
	_, err = l.PutNamespace(ctxOf(t), "c", topology.Namespace{NetName: "c", Effective: &twelve}, 0)
	if !errors.Is(err, ErrDeposed) || !errors.Is(err, errWentBack) {
		t.Errorf("a write after etcd was restored: %v", err)
	}
	back := until(t, ch, "the restored records", func(s topology.Snapshot) bool { return len(s.Namespaces) == 1 })
	if back.History.Holds(lost.History.Now) || !back.History.Holds(first.History.Now) {
		t.Errorf("restored history %+v; lost %+v", back.History, lost.History.Now)
	}
	if err := l.Resign(); err != nil {
		t.Fatal(err)
	}
	next := campaign(t, s, "two")
	if wrote, err = next.PutNamespace(ctxOf(t), "d", topology.Namespace{NetName: "d", Effective: &twelve}, 0); err != nil {
		t.Fatal(err)
	}
	later := until(t, ch, "another leader's write", func(s topology.Snapshot) bool { return s.Revision >= wrote && len(s.Namespaces) == 2 })
	if later.History.Holds(lost.History.Now) || later.Revision < lost.Revision {
		t.Errorf("history %+v at %d; lost %+v", later.History, later.Revision, lost.History.Now)
	}
	if err := next.TakeLost(ctxOf(t), []topology.Point{lost.History.Now}); err != nil {
		t.Fatal(err)
	}
	until(t, ch, "what was lost is put back", func(s topology.Snapshot) bool { return s.History.Holds(lost.History.Now) })
}

// TestMarksAreNoNews: what a leader writes elsewhere wakes nobody who follows records.
func TestMarksAreNoNews(t *testing.T) {
	_, s := network(t)
	l := campaign(t, s, "one")
	ch := s.Watch(ctxOf(t))
	until(t, ch, "the first snapshot", func(topology.Snapshot) bool { return true })
	for i := range 5 {
		if _, err := l.PutPolicies(ctxOf(t), []PolicyChange{{Key: PolicyRecordKey("a", string(rune('a'+i))), Value: "x"}}); err != nil {
			t.Fatal(err)
		}
	}
	eleven := netid.ID(11)
	rev, err := l.PutNamespace(ctxOf(t), "a", topology.Namespace{NetName: "a", Effective: &eleven}, 0)
	if err != nil {
		t.Fatal(err)
	}
	woken := 0
	v := until(t, ch, "a namespace", func(s topology.Snapshot) bool {
		if len(s.Namespaces) == 0 {
			woken++
		}
		return len(s.Namespaces) == 1 && s.Revision >= rev
	})
	if woken > 0 || v.History.Now.Revision != rev {
		t.Errorf("%d snapshots before the namespace's; history %+v at %d", woken, v.History, rev)
	}
}

// TestPublisherAfterRestore: what a node says of itself stands again in an etcd that was
// restored, also where its lease came back with an older record.
func TestPublisherAfterRestore(t *testing.T) {
	e, s := network(t)
	p := s.StatusPublisher("k8ssdn", 60*time.Second)
	defer p.Close()
	st := topology.NodeStatus{Host: "n1", HostIP: nodeOne, Pods: 1}
	pods := func(n int) func() bool {
		return func() bool {
			all, err := s.Statuses(ctxOf(t))
			return err == nil && all[nodeOne].Pods == n
		}
	}
	p.Set(st)
	eventually(t, "the status", pods(1))
	e.Stop()
	restore := e.Save()
	e.Restart()
	st.Pods = 2
	p.Set(st)
	eventually(t, "the newer status", pods(2))
	e.Stop()
	restore()
	e.Restart()
	eventually(t, "the newer status again", pods(2))
}
