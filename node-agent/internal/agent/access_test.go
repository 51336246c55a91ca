package agent

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
)

// secret stands in for the API server: it tells what comes.
type secret chan kube.EtcdAccess

func (s secret) WatchEtcdAccess(_ context.Context, ref string) <-chan kube.EtcdAccess {
	if ref != secretRef {
		panic("asked for " + ref)
	}
	return s
}

const secretRef = "kube-system/k8s-ovs-etcd"

func etcdAt(address string) kube.EtcdAccess {
	return kube.EtcdAccess{Endpoints: []string{"https://" + address}, CA: []byte("ca"), Cert: []byte("cert"), Key: []byte("key")}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func first(t *testing.T, a *access, want kube.EtcdAccess) {
	t.Helper()
	got, err := a.first(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("access (-want +got):\n%s", diff)
	}
}

// accessTo is the access as the Secret tells it, with a copy in dir.
func accessTo(t *testing.T, s secret, dir string, patience time.Duration) *access {
	a := newAccess(t.Context(), s, secretRef, dir, quiet())
	a.patience = patience
	return a
}

func TestAccessFirst(t *testing.T) {
	dir, s := t.TempDir(), make(secret, 10)
	// Without a copy it waits, however long; with one, no longer than its patience.
	a := accessTo(t, s, dir, time.Millisecond)
	time.AfterFunc(20*time.Millisecond, func() { s <- etcdAt("192.0.2.1:2379") })
	first(t, a, etcdAt("192.0.2.1:2379"))
	if info, err := os.Stat(a.path); err != nil || info.Mode() != 0o600 {
		t.Errorf("copy: %v, %v", info.Mode(), err)
	}
	first(t, accessTo(t, s, dir, time.Millisecond), etcdAt("192.0.2.1:2379"))
	// An API server that answers wins.
	s <- etcdAt("192.0.2.2:2379")
	first(t, accessTo(t, s, dir, time.Minute), etcdAt("192.0.2.2:2379"))
	first(t, accessTo(t, s, dir, time.Millisecond), etcdAt("192.0.2.2:2379"))
	// A damaged copy is none, nor is one of an earlier version that is not encrypted.
	for _, copied := range []string{"{", `{"Endpoints": ["http://192.0.2.9:2379"]}`} {
		if err := os.WriteFile(a.path, []byte(copied), 0o600); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(20*time.Millisecond, func() { s <- etcdAt("192.0.2.3:2379") })
		first(t, accessTo(t, s, dir, time.Millisecond), etcdAt("192.0.2.3:2379"))
	}
}

func TestAccessFirstEnds(t *testing.T) {
	s := make(secret)
	close(s) // as the watch does when ctx ends
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	a := newAccess(ctx, s, secretRef, t.TempDir(), quiet())
	if _, err := a.first(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if _, held := a.load(); held {
		t.Error("a failure was kept as a copy")
	}
}

func TestAccessFollow(t *testing.T) {
	dir, s, used := t.TempDir(), make(secret, 10), etcdAt("192.0.2.1:2379")
	other := etcdAt("192.0.2.1:2379")
	other.Key = []byte("another key")
	s <- used
	s <- other
	err := accessTo(t, s, dir, time.Minute).follow(t.Context(), used)
	if err == nil || !strings.Contains(err.Error(), secretRef+" changed") {
		t.Errorf("error %v", err)
	}
	// The next start has it, also without the API server.
	first(t, accessTo(t, s, dir, time.Millisecond), other)
	// The end of the agent is no change.
	close(s)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := accessTo(t, s, dir, time.Minute).follow(ended, used); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}
