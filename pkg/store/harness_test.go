package store

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/test/etcdtest"
)

// patience bounds every wait; a condition that holds ends it at once.
const patience = 20 * time.Second

var byValue = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}

func ctxOf(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	t.Cleanup(cancel)
	return ctx
}

func open(t *testing.T, e *etcdtest.Server) *Store {
	t.Helper()
	s, err := Open(Config{Endpoints: e.Endpoints, Logger: testLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// testLogger shows the log with -v only.
func testLogger(t *testing.T) *slog.Logger {
	if testing.Verbose() {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(slog.DiscardHandler)
}

// network starts etcd with a network configuration in it.
func network(t *testing.T, options ...etcdtest.Option) (*etcdtest.Server, *Store) {
	t.Helper()
	e := etcdtest.Start(t, options...)
	s := open(t, e)
	if _, err := s.PutConfig(ctxOf(t), topology.DefaultConfig()); err != nil {
		t.Fatal(err)
	}
	return e, s
}

// key is the whole key of a namespace's record.
func key(ns string) string { return DefaultPrefix + "/k8ssdn/netnamespaces/" + ns }

// until reads ch until cond holds, and returns what it held of.
func until[T any](t *testing.T, ch <-chan T, what string, cond func(T) bool) T {
	t.Helper()
	timeout := time.After(patience)
	var last T
	for {
		select {
		case v, ok := <-ch:
			if !ok {
				t.Fatalf("%s: the channel was closed; last %+v", what, last)
			}
			if last = v; cond(v) {
				return v
			}
		case <-timeout:
			// Where everybody stands says who waits for whom.
			stacks := make([]byte, 1<<20)
			t.Fatalf("%s: not within %s; last %+v\n%s", what, patience, last, stacks[:runtime.Stack(stacks, true)])
		}
	}
}

// eventually asks cond until it holds.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if cond() {
			return
		}
	}
	t.Fatalf("%s: not within %s", what, patience)
}

func nsRecord(ns string, id int) string {
	return fmt.Sprintf(`{"NetName":"%s","NetID":%d,"Action":"","Namespace":"","Effective":%d}`, ns, id, id)
}

func has(s topology.Snapshot, ns string, id int64) bool {
	n, ok := s.Namespaces[ns]
	return ok && n.NetID != nil && *n.NetID == id
}
