package tenants

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// asker stands in for the controller's records: what is asked for is told, and
// answered with err.
type asker struct {
	asked chan string
	err   error
}

func (a *asker) EnsureNamespace(_ context.Context, namespace string) error {
	a.asked <- namespace
	return a.err
}

func withNamespaces(names ...string) topology.Snapshot {
	s := topology.Snapshot{Config: topology.DefaultConfig(), Namespaces: map[string]topology.Namespace{}}
	for i, n := range names {
		id := netid.ID(10 + i)
		s.Namespaces[n] = topology.Namespace{NetName: n, UID: "uid of " + n, Effective: &id}
	}
	return s
}

func TestWaitKnown(t *testing.T) {
	ctx := t.Context()
	a := &asker{asked: make(chan string, 10)}
	w := New(a, slog.New(slog.DiscardHandler))
	w.Applied(withNamespaces("a"))
	if _, err := w.WaitKnown(ctx, "a"); err != nil || len(a.asked) != 0 {
		t.Fatalf("known namespace: %v, %d asked", err, len(a.asked))
	}
	// One that is not known is asked for, and waited for, without holding up others.
	done := make(chan error, 1)
	go func() {
		_, err := w.WaitKnown(ctx, "b")
		done <- err
	}()
	if got := <-a.asked; got != "b" {
		t.Fatalf("asked for %s", got)
	}
	if _, err := w.WaitKnown(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	unconfirmed := withNamespaces("a")
	unconfirmed.Namespaces["b"] = topology.Namespace{NetName: "b"}
	w.Applied(unconfirmed)
	select {
	case err := <-done:
		t.Fatalf("came back before the netID was confirmed: %v", err)
	default:
	}
	w.Applied(withNamespaces("a", "b"))
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestWaitKnownFails(t *testing.T) {
	a := &asker{asked: make(chan string, 10), err: errors.New("etcd is away")}
	w := New(a, slog.New(slog.DiscardHandler))
	_, err := w.WaitKnown(t.Context(), "b")
	if cniapi.AsError(err).Code != cniapi.CodeTryAgain || !strings.Contains(err.Error(), "etcd is away") {
		t.Errorf("cannot ask: %v", err)
	}
	a.err = nil
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-a.asked; <-a.asked; cancel() }()
	_, err = w.WaitKnown(ctx, "b")
	if cniapi.AsError(err).Code != cniapi.CodeTryAgain || !strings.Contains(err.Error(), "controller") {
		t.Errorf("no answer: %v", err)
	}
}

// In Kubernetes records come by themselves: nobody asks, and what the record
// says about the wait is told.
func TestWaitKnownInKubernetes(t *testing.T) {
	w := New(nil, slog.New(slog.DiscardHandler))
	done := make(chan error, 1)
	go func() {
		uid, err := w.WaitKnown(t.Context(), "b")
		if err == nil && uid != "uid of b" {
			err = fmt.Errorf("UID %q", uid)
		}
		done <- err
	}()
	w.Applied(withNamespaces("a", "b"))
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tc := range []struct {
		status *topology.Status
		want   string
	}{
		{nil, "k8s-ovs-controller"},
		{&topology.Status{Message: "waiting: all netIDs are in use"}, "all netIDs are in use"},
	} {
		s := withNamespaces("a")
		s.Namespaces["c"] = topology.Namespace{NetName: "c", Status: tc.status}
		w.Applied(s)
		_, err := w.WaitKnown(over, "c")
		if cniapi.AsError(err).Code != cniapi.CodeTryAgain || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("error %v, want one that says %q", err, tc.want)
		}
	}
}

// In a single-tenant network nobody is asked for anything.
func TestWaitKnownSingle(t *testing.T) {
	a := &asker{asked: make(chan string, 10)}
	w := New(a, slog.New(slog.DiscardHandler))
	s := withNamespaces()
	s.Config.PluginName = topology.SingleTenant
	w.Applied(s)
	if _, err := w.WaitKnown(t.Context(), "whatever"); err != nil || len(a.asked) != 0 {
		t.Errorf("%v, %d asked", err, len(a.asked))
	}
}
