package lead

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/k8s-ovs/k8s-ovs/controller/internal/tenant"
	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// memory is records as etcd would hold them, written by a leader.
type memory struct {
	writer
	rev     int64
	records store.Records
	calls   []string // "1" for a single write, "batch of n"
	// lose has that many batches written, or not, without an answer.
	lose    int
	written bool
	refuse  bool          // batches of any size
	clock   time.Time     // of the term
	takes   time.Duration // each call
}

func newMemory() *memory {
	m := &memory{clock: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	m.records.Namespaces, m.records.Revs.Namespaces = map[string]topology.Namespace{}, map[string]store.Rev{}
	return m
}

// person writes a record.
func (m *memory) person(n topology.Namespace) {
	m.rev++
	rev := m.records.Revs.Namespaces[n.NetName]
	if rev.Create == 0 {
		rev.Create = m.rev
	}
	rev.Mod = m.rev
	m.records.Namespaces[n.NetName], m.records.Revs.Namespaces[n.NetName] = n, rev
}

func (m *memory) PutNamespace(_ context.Context, key string, n topology.Namespace, rev int64) (int64, error) {
	m.calls = append(m.calls, "1")
	m.clock = m.clock.Add(m.takes)
	if m.records.Revs.Namespaces[key].Mod != rev {
		return 0, store.ErrConflict
	}
	m.person(n)
	return m.rev, nil
}

func (m *memory) PutNamespaces(_ context.Context, batch []store.NamespacePut) (int64, error) {
	m.calls = append(m.calls, fmt.Sprintf("batch of %d", len(batch)))
	m.clock = m.clock.Add(m.takes)
	if m.refuse {
		return 0, store.ErrInvalid
	}
	for _, p := range batch {
		if m.records.Revs.Namespaces[p.Key].Mod != p.Revision {
			return 0, store.ErrConflict
		}
	}
	m.lose--
	if m.lose >= 0 && !m.written {
		return 0, store.ErrUnavailable
	}
	for _, p := range batch {
		m.person(p.Namespace)
	}
	if m.lose >= 0 {
		return 0, store.ErrUnavailable
	}
	return m.rev, nil
}

// term leads over m. It sees the records as they are now until it looks again.
func (m *memory) term() *term {
	c := New(Config{Now: func() time.Time { return m.clock }, Random: rand.Reader, Metrics: NewMetrics(prometheus.NewRegistry()), Logger: slog.New(slog.DiscardHandler)})
	t := newTerm(c, m)
	t.tenants = tenant.New(tenant.Config{Random: rand.Reader})
	m.look(t)
	return t
}

func (m *memory) look(t *term) {
	t.last = store.Records{}
	t.last.Namespaces, t.last.Revs.Namespaces = map[string]topology.Namespace{}, map[string]store.Rev{}
	for ns, n := range m.records.Namespaces {
		t.last.Namespaces[ns], t.last.Revs.Namespaces[ns] = n, m.records.Revs.Namespaces[ns]
	}
}

func (m *memory) ask(n int) {
	for i := range n {
		m.person(topology.Namespace{NetName: fmt.Sprintf("ns%d", i)})
	}
}

// settled checks that each namespace has a netID of its own, and no reason.
func (m *memory) settled(t *testing.T) {
	t.Helper()
	has := map[netid.ID]string{}
	for ns, n := range m.records.Namespaces {
		if n.Effective == nil || n.Status != nil {
			t.Errorf("%s: %+v", ns, n)
			continue
		}
		if other := has[*n.Effective]; other != "" {
			t.Errorf("%s and %s share netID %d", ns, other, *n.Effective)
		}
		has[*n.Effective] = ns
	}
}

func act(t *testing.T, m *memory, term *term, wantAll bool, wantCalls ...string) {
	t.Helper()
	m.calls = nil
	if _, all, err := term.actTenants(t.Context()); err != nil || all != wantAll {
		t.Errorf("all %v, %v; want %v", all, err, wantAll)
	}
	if diff := cmp.Diff(wantCalls, m.calls); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	m.look(term)
}

func TestFirstInBatches(t *testing.T) {
	m := newMemory()
	m.ask(250)
	m.person(topology.Namespace{NetName: "late", Action: topology.Isolate})
	act(t, m, m.term(), true, "1", "batch of 100", "batch of 100", "batch of 50")
	m.settled(t)
}

// A record that changed meanwhile holds up no others, and is in the next plan.
func TestFirstFallsBack(t *testing.T) {
	m := newMemory()
	m.ask(3)
	term := m.term()
	m.person(topology.Namespace{NetName: "ns1", Action: topology.Isolate})
	act(t, m, term, false, "batch of 3", "1", "1", "1")
	if m.records.Namespaces["ns0"].Effective == nil || m.records.Namespaces["ns2"].Effective == nil {
		t.Error("others wait for it")
	}
	act(t, m, term, true, "1")
	m.settled(t)
}

// An etcd that takes no transactions of that size is written to one by one.
func TestFirstRefused(t *testing.T) {
	m := newMemory()
	m.ask(3)
	m.refuse = true
	act(t, m, m.term(), true, "batch of 3", "1", "1", "1")
	m.settled(t)
}

// A batch without an answer: written or not, seen or not before it is tried again, each has
// one netID and nobody is told of a refusal.
func TestFirstUnknown(t *testing.T) {
	for _, written := range []bool{true, false} {
		for _, seen := range []bool{true, false} {
			t.Run(fmt.Sprintf("written=%v seen=%v", written, seen), func(t *testing.T) {
				m := newMemory()
				m.ask(3)
				m.lose, m.written = 1, written
				term := m.term()
				if _, _, err := term.actTenants(t.Context()); err == nil {
					t.Fatal("no error")
				}
				if seen {
					m.look(term)
				}
				for range 2 {
					if _, _, err := term.actTenants(t.Context()); err != nil {
						t.Fatal(err)
					}
					m.look(term)
				}
				m.settled(t)
				act(t, m, term, true)
			})
		}
	}
}

// A burst is cut into slices; a request that comes meanwhile is first in the next.
func TestFirstCut(t *testing.T) {
	m := newMemory()
	m.ask(500)
	m.takes = sliceTime / 2
	term := m.term()
	act(t, m, term, false, "batch of 100", "batch of 100")
	m.person(topology.Namespace{NetName: "late", Action: topology.Isolate})
	m.look(term)
	act(t, m, term, false, "1", "batch of 100", "batch of 100")
	act(t, m, term, true, "batch of 100")
	m.settled(t)
}
