package admission

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/controller/internal/nodeaddr"
	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// TestAddresses: all that a node may be reached at, of both families, and hosts that
// are no Nodes.
func TestAddresses(t *testing.T) {
	cfg := topology.DefaultConfig()
	nodes := map[string]nodeaddr.Addresses{
		"n1": {Own: []netip.Addr{addr("192.0.2.1"), addr("203.0.113.7"), addr("2001:db8::1")}},
		"n2": {Own: []netip.Addr{addr("::ffff:192.0.2.2")}},
	}
	records := map[netip.Addr]topology.Node{addr("192.0.2.1"): {Host: "n1"}, addr("192.0.2.9"): {Host: "balancer"}}
	want := map[string]string{
		"network": cfg.Network.String(), "service-network": cfg.ServiceNetwork.String(),
		"192.0.2.1": "n1", "203.0.113.7": "n1", "2001-db8--1": "n1", "192.0.2.2": "n2", "192.0.2.9": "balancer",
	}
	if diff := cmp.Diff(want, (Network{cfg, nodes, records}).data()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// TestSharedAddress: an address of several nodes makes no new ConfigMap each time.
func TestSharedAddress(t *testing.T) {
	nodes := map[string]nodeaddr.Addresses{}
	for _, name := range []string{"n1", "n2", "n3", "n4"} {
		nodes[name] = nodeaddr.Addresses{Own: []netip.Addr{addr("203.0.113.7")}}
	}
	for range 100 {
		if got := (Network{topology.DefaultConfig(), nodes, nil}).data()["203.0.113.7"]; got != "n4" {
			t.Fatalf("it is %s's, want n4's each time", got)
		}
	}
}

// server is an API server.
type server struct {
	mu     sync.Mutex
	err    error // of every call
	data   map[string]string
	puts   int
	absent map[string]string
	events []string
	log    bytes.Buffer
	gauge  int
}

// Write is the log's.
func (s *server) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.Write(p)
}

func (s *server) PutConfigMap(_ context.Context, ref string, data map[string]string) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.puts++
	if s.err != nil || maps.Equal(s.data, data) {
		return false, s.err
	}
	s.data = maps.Clone(data)
	return true, nil
}

func (s *server) PolicyAbsent(_ context.Context, name string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.absent[name], s.err
}

func (s *server) Event(object kube.ObjectRef, warning bool, reason kube.EventReason, message string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, object.Name+" "+string(reason)+" "+message)
}

// change is what somebody does on the server.
func (s *server) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// start runs a Keeper until the end of the test.
func start(t *testing.T, s *server) *Keeper {
	k := New(Config{
		API: s, Pod: kube.ObjectRef{Kind: "Pod", Name: "c"}, Absent: func(n int) { s.change(func() { s.gauge = n }) },
		Logger: slog.New(slog.NewTextHandler(s, nil)),
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { k.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	return k
}

// TestKeep: the ConfigMap follows what is wanted, also when somebody deletes it, and
// when the API server was away.
func TestKeep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{}
		k := start(t, s)
		expect := func(what string, want map[string]string) {
			t.Helper()
			synctest.Wait()
			s.change(func() {
				if diff := cmp.Diff(want, s.data); diff != "" {
					t.Errorf("%s (-want +got)\n%s", what, diff)
				}
			})
		}
		expect("nothing is known", nil)
		network := Network{Config: topology.DefaultConfig()}
		one := network.data()
		k.Set(network)
		expect("set", one)
		k.Set(network)
		expect("set again", one)
		s.change(func() {
			if s.puts != 1 {
				t.Error("the API server is asked though nothing changed")
			}
		})
		s.change(func() { s.data = nil })
		time.Sleep(keepEvery)
		expect("put back", one)
		s.change(func() { s.err = errors.New("away") })
		network.Addresses = map[string]nodeaddr.Addresses{"n1": {Own: []netip.Addr{addr("192.0.2.1")}}}
		two := network.data()
		k.Set(network)
		expect("away", one)
		time.Sleep(keepEvery)
		synctest.Wait()
		s.change(func() {
			if n := strings.Count(s.log.String(), "level=ERROR"); n != 1 {
				t.Errorf("%d errors in the log:\n%s", n, &s.log)
			}
		})
		s.change(func() { s.err = nil })
		time.Sleep(retryAfter)
		expect("back", two)
	})
}

// TestLook: what is not in force is said while it is so, and in the log once.
func TestLook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{absent: map[string]string{}}
		start(t, s)
		expect := func(what string, n, events, warnings int) {
			t.Helper()
			synctest.Wait()
			s.change(func() {
				if s.gauge != n || len(s.events) != events || strings.Count(s.log.String(), "level=WARN") != warnings {
					t.Errorf("%s: %d absent, events %q, log:\n%s", what, s.gauge, s.events, &s.log)
				}
			})
		}
		expect("all in force", 0, 0, 0)
		s.change(func() { s.absent["k8s-ovs-endpoints"] = "there is no such policy" })
		time.Sleep(lookEvery)
		expect("one is gone", 1, 1, 1)
		s.change(func() {
			if e := s.events[0]; !strings.HasPrefix(e, "c NotGuarded ") || !strings.Contains(e, "there is no such policy") {
				t.Errorf("Event %q", e)
			}
		})
		time.Sleep(lookEvery)
		expect("still gone", 1, 2, 1)
		s.change(func() { clear(s.absent) })
		time.Sleep(lookEvery)
		expect("back", 0, 2, 1)
		s.change(func() { s.err = errors.New("forbidden") })
		time.Sleep(lookEvery)
		expect("nobody knows", len(Policies), 3, 2)
	})
}
