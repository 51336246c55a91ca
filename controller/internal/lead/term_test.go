package lead

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/test/etcdtest"
)

// errKilled ends a term as a kill does.
var errKilled = errors.New("killed")

// mortal dies before its n-th write, or, late, after it was made but before the
// answer came.
type mortal struct {
	*store.Leadership
	left int
	late bool
}

func (m *mortal) PutNamespace(ctx context.Context, key string, n topology.Namespace, rev int64) (int64, error) {
	m.left--
	if m.left < 0 && !m.late {
		return 0, errKilled
	}
	r, err := m.Leadership.PutNamespace(ctx, key, n, rev)
	if m.left < 0 {
		return 0, errKilled
	}
	return r, err
}

func (m *mortal) PutNamespaces(ctx context.Context, batch []store.NamespacePut) (int64, error) {
	m.left--
	if m.left < 0 && !m.late {
		return 0, errKilled
	}
	r, err := m.Leadership.PutNamespaces(ctx, batch)
	if m.left < 0 {
		return 0, errKilled
	}
	return r, err
}

func (m *mortal) PutReleased(ctx context.Context, r store.Released, rev int64) (int64, error) {
	if m.left--; m.left < 0 {
		return 0, errKilled
	}
	return m.Leadership.PutReleased(ctx, r, rev)
}

// Failures 12 and 18: a leader that dies between any two steps leaves nothing
// that the next does not put right.
func TestKilledBetweenSteps(t *testing.T) {
	for _, late := range []bool{false, true} {
		for n := range 7 {
			e := etcdtest.Start(t)
			s := open(t, e)
			if _, err := s.PutConfig(ctxOf(t), topology.DefaultConfig()); err != nil {
				t.Fatal(err)
			}
			c := New(Config{Store: s, Random: rand.Reader, Metrics: NewMetrics(prometheus.NewRegistry()), Logger: slog.New(slog.DiscardHandler)})
			ensure(t, s, "a", "b", "c", "d")
			live(t, s, c, 1000, false) // they have their netIDs
			d := id(t, s, "d")
			request(t, s, "b", topology.Isolate, "") // alone: nothing to do
			request(t, s, "a", topology.Join, "b")
			request(t, s, "c", topology.MakeGlobal, "")
			if err := s.DeleteNamespace(ctxOf(t), "d"); err != nil {
				t.Fatal(err)
			}
			ensure(t, s, "e", "f") // their netIDs come together
			live(t, s, c, n, late)
			ensure(t, s, "d") // a namesake
			live(t, s, c, 1000, false)
			if id(t, s, "a") != id(t, s, "b") || id(t, s, "c") != 0 || id(t, s, "d") == d || id(t, s, "e") == id(t, s, "f") {
				t.Errorf("killed at step %d (late %v): a %d, b %d, c %d, d %d (was %d)", n, late, id(t, s, "a"), id(t, s, "b"), id(t, s, "c"), id(t, s, "d"), d)
			}
		}
	}
}

// live leads for one term that dies at its n-th write, or is ended when there is
// nothing left to do.
func live(t *testing.T, s *store.Store, c *Controller, n int, late bool) {
	t.Helper()
	l, err := s.Campaign(ctxOf(t), "k8ssdn", "mortal", 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(ctxOf(t))
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- newTerm(c, &mortal{Leadership: l, left: n, late: late}).run(ctx) }()
	idle := func() bool {
		snapshot, _, err := s.Snapshot(ctx)
		if err != nil {
			return false
		}
		for _, n := range snapshot.Namespaces {
			if n.Action != topology.None || n.Effective == nil {
				return false
			}
		}
		_, err = s.Released(ctx, "k8ssdn")
		return err == nil
	}
	eventually(t, "the end of the term", func() bool { return len(ended) > 0 || idle() })
	cancel()
	if err := <-ended; !errors.Is(err, errKilled) && !errors.Is(err, context.Canceled) {
		t.Errorf("the term ended with %v", err)
	}
	// A killed leader's lease runs out; this is quicker.
	if err := l.Resign(); err != nil {
		t.Fatal(err)
	}
}
