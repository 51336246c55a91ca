package agent

import (
	"context"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/flowstore"
	"github.com/k8s-ovs/k8s-ovs/pkg/service"
)

// servedTable stands in for the services in the flows. It tells what it is asked,
// and refuses with err.
type servedTable struct {
	err   error
	asked []string
}

func (s *servedTable) call(what string) error {
	s.asked = append(s.asked, what)
	return s.err
}

func (s *servedTable) Update(_ context.Context, u service.Update) error {
	if u.Full {
		return s.call("all")
	}
	return s.call("some")
}

func (s *servedTable) Connected(context.Context) error { return s.call("connect") }
func (s *servedTable) Resync(context.Context) error    { return s.call("resync") }
func (s *servedTable) Counts() (int, int, int)         { return 1, 2, 3 }
func (s *servedTable) LeftOut() map[service.Reason]int {
	return map[service.Reason]int{service.Loopback: 4}
}

func TestServices(t *testing.T) {
	table := &servedTable{}
	well := func() error { return nil }
	n := newServiceFeed(table, well, newMetrics(prometheus.NewRegistry()), quiet())
	refused := errors.New("refused")
	step := func(what string, err error, act func(), wantAsked []string, wantReady error) {
		t.Helper()
		table.err, table.asked = err, nil
		act()
		if diff := cmp.Diff(wantAsked, table.asked); diff != "" {
			t.Errorf("%s: asked (-want +got):\n%s", what, diff)
		}
		if got := n.ready(); !errors.Is(got, wantReady) {
			t.Errorf("%s: ready: %v, want %v", what, got, wantReady)
		}
	}
	serve := func(full, done bool) func() {
		return func() {
			t.Helper()
			if got := n.update(t.Context(), service.Update{Full: full}); got != done {
				t.Errorf("that was all: %v, want %v", got, done)
			}
		}
	}
	pass := func(full bool) func() { return func() { n.resync(t.Context(), full) } }

	// An agent that starts without the API server leaves flows as they are.
	step("connected", nil, pass(false), []string{"connect"}, errNoServices)
	step("every five seconds", nil, pass(true), []string{"resync"}, errNoServices)
	// The first news make it ready, which is for a pass to notice; then none is needed.
	step("first news", nil, serve(true, false), []string{"all"}, nil)
	step("more news", nil, serve(false, true), []string{"some"}, nil)
	step("a pass", nil, pass(false), nil, nil)
	// What the switch refuses is tried again.
	step("refused", refused, serve(false, false), []string{"some"}, refused)
	step("still refused", refused, pass(false), []string{"resync"}, refused)
	step("accepted", nil, pass(false), []string{"resync"}, nil)
	step("nothing left", nil, pass(false), nil, nil)
	// The switch goes and comes.
	step("lost", nil, n.disconnect, nil, nil)
	step("news meanwhile", flowstore.ErrDisconnected, serve(false, false), []string{"some"}, flowstore.ErrDisconnected)
	step("not there yet", refused, pass(false), []string{"connect"}, refused)
	step("there again", nil, pass(true), []string{"connect"}, nil)
}

// Outside of Kubernetes there are none, and nothing waits for them.
func TestNoServices(t *testing.T) {
	n := newServiceFeed(nil, nil, nil, quiet())
	n.resync(t.Context(), true)
	n.disconnect()
	if err := n.ready(); err != nil {
		t.Error(err)
	}
}
