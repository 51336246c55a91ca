package allot

import (
	"bytes"
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/attach"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/fairness"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/hostnet"
)

// outgoing is a node's connections: so many of each pod to each destination, and how often they were read.
type outgoing struct {
	Kernel
	connections map[netip.Addr]map[netip.AddrPort]int
	read        int
}

func (o *outgoing) Outgoing(each func(netip.Addr, uint8, netip.AddrPort)) error {
	o.read++
	for pod, all := range o.connections {
		for to, n := range all {
			for range n {
				each(pod, 17, to)
			}
		}
	}
	return nil
}

// memoryGate remembers what it was told.
type memoryGate struct {
	Gate
	asked map[string]fairness.Asked
	want  map[string]hostnet.Passage
}

func (g *memoryGate) Asked(context.Context) (map[string]fairness.Asked, error) { return g.asked, nil }

func (g *memoryGate) Set(_ context.Context, _ string, _ fairness.Allowance, want map[string]hostnet.Passage) error {
	g.want = want
	return nil
}

type podList []attach.Attachment

func (p podList) List() []attach.Attachment { return p }

// All pods of a namespace are counted together. Where it has its part of the ports, and others need them, the gate is told at
// once, also of a pod that comes then; it is counted and said. Nobody else is held back.
func TestPartOfPorts(t *testing.T) {
	var log bytes.Buffer
	reg := prometheus.NewRegistry()
	ip := netip.MustParseAddr
	dns, web := netip.MustParseAddrPort("203.0.113.53:53"), netip.MustParseAddrPort("203.0.113.53:443")
	pod := func(namespace, name, address string) attach.Attachment {
		return attach.Attachment{Namespace: namespace, Pod: name, Addresses: []netip.Addr{ip(address)}}
	}
	pods := podList{pod("red", "a", "172.11.0.5"), pod("red", "b", "172.11.0.6"), pod("blue", "a", "172.11.0.7")}
	half := fairness.PortsPart / 2
	kernel := &outgoing{connections: map[netip.Addr]map[netip.AddrPort]int{
		ip("172.11.0.5"): {dns: half, web: half}, ip("172.11.0.6"): {dns: half}, ip("172.11.0.7"): {dns: fairness.PortsPart - 1},
		ip("198.18.0.1"): {dns: fairness.PortsPart},
	}}
	gate := &memoryGate{asked: map[string]fairness.Asked{"red": {All: 3 * uint64(half)}, "blue": {All: uint64(half)}}}
	a := New(Config{Gate: gate, Kernel: kernel, Pods: pods, Logger: slog.New(slog.NewTextHandler(&log, nil)), Metrics: NewMetrics(reg)})
	look := func(used uint64) {
		t.Helper()
		a.looks++
		if err := a.throughNode(t.Context(), fairness.Table{Size: 1 << 18, Used: used}); err != nil {
			t.Fatal(err)
		}
	}
	look(fairness.PortsBusy - 1)
	if kernel.read > 0 {
		t.Error("all connections are read where nobody can have its part")
	}
	look(4 * uint64(half))
	crowded := []fairness.Destination{{To: dns, Protocol: 17}}
	addresses := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	ports := cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })
	all := fairness.Allowance{Rate: 1 << 14, Burst: 1 << 14}
	want := map[string]hostnet.Passage{
		"red":  {Allowance: all, Addresses: []netip.Addr{ip("172.11.0.5"), ip("172.11.0.6")}, Crowded: crowded},
		"blue": {Allowance: all, Addresses: []netip.Addr{ip("172.11.0.7")}},
	}
	if diff := cmp.Diff(want, gate.want, addresses, ports); diff != "" {
		t.Error(diff)
	}

	a.cfg.Pods = append(pods, pod("red", "c", "172.11.0.8"))
	gate.asked = map[string]fairness.Asked{"red": {All: 3*uint64(half) + 100, Crowded: 100}, "blue": {All: uint64(half)}}
	look(4 * uint64(half))
	if got := gate.want["red"].Addresses; len(got) != 3 {
		t.Errorf("the gate knows %v of red's pods", got)
	}
	if kernel.read != 1 {
		t.Errorf("all connections were read %d times", kernel.read)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	refused := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if l := m.GetLabel(); f.GetName() == "k8s_ovs_connections_refused_total" && l[0].GetValue() == portsLimit {
				refused[l[1].GetValue()] = m.GetCounter().GetValue()
			}
		}
	}
	if diff := cmp.Diff(map[string]float64{"red": 100, "blue": 0}, refused); diff != "" {
		t.Error(diff)
	}
	for _, part := range []string{"limit=node-ports", "tenant=red", "203.0.113.53:53", "--node-connection-rate=off"} {
		if !strings.Contains(log.String(), part) {
			t.Errorf("no %q in\n%s", part, log.String())
		}
	}
}
