package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/test/etcdtest"
)

func campaign(t *testing.T, s *Store, id string) *Leadership {
	t.Helper()
	l, err := s.Campaign(ctxOf(t), "k8ssdn", id, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func closed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

func TestLeaderWrites(t *testing.T) {
	_, s := network(t)
	ctx := ctxOf(t)
	l := campaign(t, s, "one")
	if id, err := s.Leader(ctx, "k8ssdn"); err != nil || id != "one" {
		t.Errorf("leader %q, %v", id, err)
	}
	rev, err := l.PutNamespace(ctx, "a", topology.Namespace{NetName: "a"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.PutNamespace(ctx, "a", topology.Namespace{NetName: "a"}, 0); !errors.Is(err, ErrConflict) {
		t.Errorf("create what is there: %v, want ErrConflict", err)
	}
	if _, err := l.PutNamespace(ctx, "a", topology.Namespace{NetName: "a"}, rev-1); !errors.Is(err, ErrConflict) {
		t.Errorf("on an older revision: %v, want ErrConflict", err)
	}
	if _, err := l.PutNamespace(ctx, "b", topology.Namespace{NetName: "b"}, 5); !errors.Is(err, ErrConflict) {
		t.Errorf("change what is not there: %v, want ErrConflict (it must not come back)", err)
	}
	if _, err := l.DeleteNamespace(ctx, "a", rev); err != nil {
		t.Error(err)
	}
	if rev, err = l.PutNode(ctx, "198.18.0.1", topology.Node{Host: "n"}, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := l.DeleteNode(ctx, "198.18.0.1", rev); err != nil {
		t.Error(err)
	}
	want := Released{NetIDs: []netid.ID{10, 99}}
	if rev, err = l.PutReleased(ctx, want, 0); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Released(ctx, "k8ssdn"); err != nil || got.Revision != rev || len(got.Value.NetIDs) != 2 {
		t.Errorf("%+v, %v", got, err)
	}
	if err := l.Resign(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Leader(ctx, "k8ssdn"); !errors.Is(err, ErrNotFound) {
		t.Errorf("leader after resignation: %v", err)
	}
	if _, err := l.PutNamespace(ctx, "c", topology.Namespace{NetName: "c"}, 0); !errors.Is(err, ErrDeposed) {
		t.Errorf("write after resignation: %v, want ErrDeposed", err)
	}
}

// Failure 18, split brain: a leader that does not know that its lease has run
// out (it was suspended, say) writes nothing, before and after another is elected.
func TestDeposedWritesNothing(t *testing.T) {
	e, s := network(t)
	ctx := ctxOf(t)
	old := campaign(t, s, "old")
	// The leader sleeps: it hears nothing of its session, Done stays open.
	asleep := make(chan struct{})
	old.done = asleep
	rev, err := old.PutNamespace(ctx, "a", topology.Namespace{NetName: "a"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Client().Revoke(ctx, old.session.Lease()); err != nil {
		t.Fatal(err)
	}
	refused := func(when string) {
		t.Helper()
		for name, write := range map[string]func() error{
			"create":   func() error { _, err := old.PutNamespace(ctx, "b", topology.Namespace{NetName: "b"}, 0); return err },
			"change":   func() error { _, err := old.PutNamespace(ctx, "a", topology.Namespace{NetName: "a"}, rev); return err },
			"delete":   func() error { _, err := old.DeleteNamespace(ctx, "a", rev); return err },
			"node":     func() error { _, err := old.PutNode(ctx, "198.18.0.1", topology.Node{}, 0); return err },
			"released": func() error { _, err := old.PutReleased(ctx, Released{}, 0); return err },
		} {
			if err := write(); !errors.Is(err, ErrDeposed) {
				t.Errorf("%s, %s: %v, want ErrDeposed", when, name, err)
			}
		}
	}
	refused("before another is elected")
	other := campaign(t, open(t, e), "new")
	defer other.Resign()
	refused("after another was elected")
	if _, err := other.PutNamespace(ctx, "a", topology.Namespace{NetName: "a"}, rev); err != nil {
		t.Errorf("the new leader: %v", err)
	}
	got, _, err := s.Snapshot(ctx)
	if err != nil || len(got.Namespaces) != 1 || len(got.Nodes) != 0 {
		t.Errorf("records %+v, %v", got, err)
	}
}

func TestOneLeaderAtATime(t *testing.T) {
	e, s := network(t)
	one, err := s.Campaign(ctxOf(t), "k8ssdn", "one", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	type result struct {
		l   *Leadership
		err error
	}
	elected := make(chan result, 1)
	go func() {
		l, err := open(t, e).Campaign(ctxOf(t), "k8ssdn", "two", 0)
		elected <- result{l, err}
	}()
	// The second stands in line.
	c := e.Client()
	eventually(t, "the second candidate", func() bool {
		r, err := c.Get(ctxOf(t), DefaultPrefix+"/k8ssdn/leader/", clientv3.WithPrefix(), clientv3.WithCountOnly())
		return err == nil && r.Count == 2
	})
	if len(elected) > 0 || closed(one.Done()) {
		t.Fatal("two leaders")
	}
	began := time.Now()
	if err := one.Resign(); err != nil {
		t.Fatal(err)
	}
	select {
	case r := <-elected:
		if r.err != nil {
			t.Fatal(r.err)
		}
		if d := time.Since(began); d > 20*time.Second { // the lease has most of a minute
			t.Errorf("it took %s after the resignation", d)
		}
		r.l.Resign()
	case <-time.After(patience):
		t.Fatal("nobody leads")
	}
	if !closed(one.Done()) {
		t.Error("the first does not know that it resigned")
	}
}

func TestLeaderLearnsOfItsEnd(t *testing.T) {
	e, s := network(t)
	l := campaign(t, s, "one")
	if _, err := e.Client().Revoke(ctxOf(t), l.session.Lease()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-l.Done():
	case <-time.After(patience):
		t.Fatal("a leader without a lease believes that it leads")
	}
}

// waits makes a second candidate, and returns how to make it give up and what
// comes of it. keys counts the candidates' keys.
func waits(t *testing.T, e *etcdtest.Server, s *Store) (giveUp func(), failed <-chan error, keys func() int64) {
	t.Helper()
	ctx, cancel := context.WithCancel(ctxOf(t))
	ended := make(chan error, 1)
	go func() {
		_, err := s.Campaign(ctx, "k8ssdn", "two", 0)
		ended <- err
	}()
	c := e.Client()
	keys = func() int64 {
		r, err := c.Get(ctxOf(t), DefaultPrefix+"/k8ssdn/leader/", clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err != nil {
			return -1
		}
		return r.Count
	}
	eventually(t, "the second candidate", func() bool { return keys() == 2 })
	return cancel, ended, keys
}

// A candidate that gives up leaves no one waiting behind it.
func TestCampaignGivesUp(t *testing.T) {
	e, s := network(t)
	one := campaign(t, s, "one")
	defer one.Resign()
	giveUp, failed, keys := waits(t, e, s)
	giveUp()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	eventually(t, "its key is gone", func() bool { return keys() == 1 })
}

// One that gives up while etcd is away does not wait for it.
func TestCampaignGivesUpWithoutEtcd(t *testing.T) {
	e, s := network(t)
	one := campaign(t, s, "one")
	defer one.Resign()
	giveUp, failed, _ := waits(t, e, s)
	e.Stop()
	giveUp()
	if err := <-failed; err == nil {
		t.Error("it leads")
	}
}

// batchOf are n records that do not exist yet.
func batchOf(n int) []NamespacePut {
	var batch []NamespacePut
	for i := range n {
		ns := fmt.Sprintf("ns%d", i)
		batch = append(batch, NamespacePut{Key: ns, Namespace: topology.Namespace{NetName: ns}})
	}
	return batch
}

// A batch is written whole or not at all, and by the leader only.
func TestPutNamespaces(t *testing.T) {
	_, s := network(t)
	ctx := ctxOf(t)
	l := campaign(t, s, "one")
	count := func(want int) {
		t.Helper()
		if got, _, err := s.Snapshot(ctx); err != nil || len(got.Namespaces) != want {
			t.Errorf("%d records, %v; want %d", len(got.Namespaces), err, want)
		}
	}
	batch := batchOf(MaxBatch)
	rev, err := l.PutNamespaces(ctx, batch)
	if err != nil {
		t.Fatal(err)
	}
	count(MaxBatch)
	if n, err := s.Namespace(ctx, "ns7"); err != nil || n.Revision != rev {
		t.Errorf("ns7 at revision %d, %v; want %d", n.Revision, err, rev)
	}
	later := []NamespacePut{{Key: "new", Namespace: topology.Namespace{NetName: "new"}}, {Key: "ns7", Namespace: topology.Namespace{NetName: "ns7"}, Revision: rev - 1}}
	if _, err := l.PutNamespaces(ctx, later); !errors.Is(err, ErrConflict) {
		t.Errorf("one of two on an older revision: %v, want ErrConflict", err)
	}
	count(MaxBatch)
	if err := l.Resign(); err != nil {
		t.Fatal(err)
	}
	l.done = make(chan struct{}) // it does not know
	if _, err := l.PutNamespaces(ctx, later[:1]); !errors.Is(err, ErrDeposed) {
		t.Errorf("after resignation: %v, want ErrDeposed", err)
	}
	count(MaxBatch)
}

// An etcd that is told to take less says so, and that is not an etcd that is away.
func TestPutNamespacesRefused(t *testing.T) {
	_, s := network(t, func(c *embed.Config) { c.MaxTxnOps = 11 })
	l := campaign(t, s, "one")
	if _, err := l.PutNamespaces(ctxOf(t), batchOf(MaxBatch)); !errors.Is(err, ErrInvalid) || errors.Is(err, ErrUnavailable) {
		t.Errorf("%v, want ErrInvalid", err)
	}
	huge := batchOf(2)
	for i := range huge {
		huge[i].Namespace.By = strings.Repeat("x", 1<<20)
	}
	if _, err := l.PutNamespaces(ctxOf(t), huge); !errors.Is(err, ErrInvalid) || errors.Is(err, ErrUnavailable) {
		t.Errorf("2 MiB: %v, want ErrInvalid", err)
	}
	if _, err := l.PutNamespaces(ctxOf(t), batchOf(9)); err != nil {
		t.Error(err)
	}
}
