package asking

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// leader keeps what a node has asked for last.
type leader struct {
	mu     sync.Mutex
	broken error
	asked  []topology.Request
}

func (l *leader) put(_ context.Context, r topology.Request) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.broken != nil {
		return l.broken
	}
	l.asked = append(l.asked, r)
	return nil
}

func (l *leader) last() topology.Request {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.asked[len(l.asked)-1]
}

func (l *leader) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.broken = err
}

func TestAsking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &leader{}
		a := New("n1", l.put, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- a.Run(ctx) }()
		self := netip.MustParseAddr("192.0.2.1")
		is := func(step string, want topology.Request) {
			t.Helper()
			synctest.Wait()
			want.Host, want.HostIP = "n1", self
			if diff := cmp.Diff(want, l.last(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
				t.Errorf("%s (-want +got):\n%s", step, diff)
			}
		}
		a.Namespace("red")
		synctest.Wait()
		if len(l.asked) > 0 {
			t.Fatalf("it asks without an address: %+v", l.asked)
		}
		a.SetSelf(self)
		is("at first", topology.Request{Namespaces: []string{"red"}})
		a.Subnet(true)
		a.Certificate("csr")
		is("more", topology.Request{Subnet: true, CSR: "csr", Namespaces: []string{"red"}})
		if err := a.EnsureNamespace(ctx, "blue"); err != nil {
			t.Error(err)
		}
		is("one more", topology.Request{Subnet: true, CSR: "csr", Namespaces: []string{"blue", "red"}})

		l.fail(errors.New("away"))
		if err := a.EnsureNamespace(ctx, "green"); err == nil {
			t.Error("that etcd is away is no error")
		}
		l.fail(nil)
		synctest.Wait()
		if err := a.EnsureNamespace(ctx, "green"); err != nil {
			t.Error(err)
		}
		a.Subnet(false)
		a.Certificate("")
		a.Applied(topology.Snapshot{Namespaces: map[string]topology.Namespace{"red": {}, "blue": {}}})
		is("what is there is asked for no more", topology.Request{Namespaces: []string{"green"}})
		n := len(l.asked)
		a.Subnet(false)
		synctest.Wait()
		if len(l.asked) != n {
			t.Error("the same is written again")
		}
		a.Applied(topology.Snapshot{Namespaces: map[string]topology.Namespace{"green": {}}})
		is("nothing", topology.Request{})
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}
