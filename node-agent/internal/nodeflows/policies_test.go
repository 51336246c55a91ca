package nodeflows

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/flowstore"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
)

// judgedPorts are those of pods whose packets the switch has judged, in which directions.
func judgedPorts(t *testing.T, conn *of.Conn) map[uint32]string {
	t.Helper()
	stats, err := conn.Flows(t.Context(), of.FlowFilter{})
	if err != nil {
		t.Fatal(err)
	}
	got := map[uint32]string{}
	for _, s := range stats {
		switch c := pipeline.DecodeCookie(s.Cookie); {
		case c.Kind != pipeline.KindPod:
		case s.Table == pipeline.TableReceive:
			got[c.Object] = "selected " + got[c.Object]
		case s.Goto != nil && *s.Goto == pipeline.TableDeniedIngress:
			got[c.Object] += "in"
		case s.Goto != nil && *s.Goto == pipeline.TableDeniedEgress:
			got[c.Object] += "out"
		}
	}
	return got
}

func requireJudged(t *testing.T, when string, conn *of.Conn, want map[uint32]string) {
	t.Helper()
	if diff := cmp.Diff(want, judgedPorts(t, conn)); diff != "" {
		t.Errorf("%s: who is judged (-want +got):\n%s", when, diff)
	}
}

// What policies say of pods is in the pod's own flows, each change in one bundle; a pod that
// is attached anew as it was keeps it.
func TestSetPolicies(t *testing.T) {
	o, table, obs := start(t)
	conn := connect(t, o, table)
	_, _, _ = table.SetRecords(t.Context(), records(1, nil))
	if err := table.SetPolicies(t.Context(), map[uint32]pipeline.PodPolicy{12: {Ingress: true}}); !errors.Is(err, flowstore.ErrNotReady) {
		t.Errorf("before records and ports: %v", err)
	}
	if err := table.SetPorts(t.Context(), desired.Ports{Tunnels: map[string]uint32{desired.NodeTunnel: 1}, Gateway: 2}); err != nil {
		t.Fatal(err)
	}
	selected := pod("a", 2)
	selected.Policy = pipeline.PodPolicy{Ingress: true}
	bundles := obs.bundles
	attach(t, table, selected)
	requireJudged(t, "attached", conn, map[uint32]string{12: "selected in"})
	attach(t, table, pod("a", 3), pod("b", 4))
	bundles += 3
	set := func(policies map[uint32]pipeline.PodPolicy) {
		t.Helper()
		if err := table.SetPolicies(t.Context(), policies); err != nil {
			t.Error(err)
		}
	}
	set(map[uint32]pipeline.PodPolicy{12: {}, 13: {Egress: true}, 14: {Ingress: true, Egress: true}, 99: {Ingress: true}})
	bundles++
	want := map[uint32]string{13: "selected out", 14: "selected outin"}
	requireJudged(t, "changed", conn, want)
	set(map[uint32]pipeline.PodPolicy{13: {Egress: true}})
	if obs.bundles != bundles {
		t.Errorf("%d bundles, want %d", obs.bundles, bundles)
	}
	again := pod("a", 3)
	again.Queue = 7
	attach(t, table, again)
	requireJudged(t, "attached again with another queue", conn, want)
	another := pod("a", 3)
	another.MAC = net.HardwareAddr{2, 0, 0, 0, 0, 9}
	attach(t, table, another)
	requireJudged(t, "another pod at the port", conn, map[uint32]string{14: "selected outin"})

	storeOf(table).Disconnect()
	if err := table.SetPolicies(t.Context(), map[uint32]pipeline.PodPolicy{14: {Ingress: true}}); !errors.Is(err, flowstore.ErrDisconnected) {
		t.Errorf("without a switch: %v", err)
	}
	if err := reconnect(t.Context(), table, conn); err != nil {
		t.Fatal(err)
	}
	requireJudged(t, "connected again", conn, map[uint32]string{14: "selected in"})
	sw := &losing{Switch: conn, lose: true, before: true}
	storeOf(table).Connect(sw)
	if err := table.SetPolicies(t.Context(), map[uint32]pipeline.PodPolicy{14: {}}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("what the switch was told is lost: %v", err)
	}
	sw.lose = false
	set(map[uint32]pipeline.PodPolicy{14: {}})
	requireJudged(t, "told again", conn, map[uint32]string{})
	if err := table.Detach(t.Context(), 14, pod("b", 4).MAC); err != nil {
		t.Fatal(err)
	}
}

// The selected pods of a namespace have among them what the namespace may of new connections,
// and one that comes does not change the others' meters each time.
func TestPodConnections(t *testing.T) {
	_, table, sw := metering(t, false)
	attach(t, table, pod("a", 2), pod("a", 3), pod("b", 4))
	judged := func(ports ...uint32) {
		t.Helper()
		policies := map[uint32]pipeline.PodPolicy{}
		for port := uint32(12); port <= 20; port++ {
			policies[port] = pipeline.PodPolicy{Ingress: slices.Contains(ports, port)}
		}
		if err := table.SetPolicies(t.Context(), policies); err != nil {
			t.Fatal(err)
		}
	}
	meter := func(port, rate uint32) string {
		return fmt.Sprintf("meter=%d,pktps,burst,stats,band=type=drop,rate=%d,burst_size=%d", pipeline.ConnectionsOf(port), rate, rate)
	}
	require := func(when string, want ...string) {
		t.Helper()
		var got []string
		for _, m := range meters(t, sw.Conn) {
			var id uint32
			if _, err := fmt.Sscanf(m, "meter=%d,", &id); err == nil && pipeline.OfConnections(id) {
				got = append(got, m)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: meters (-want +got):\n%s", when, diff)
		}
	}
	const all = 16384
	judged(12)
	require("one", meter(12, all))
	judged(12, 14)
	require("one of each namespace", meter(12, all), meter(14, all))
	judged(12, 13, 14)
	require("two of one", meter(12, all/2), meter(13, all/2), meter(14, all))
	attach(t, table, pod("a", 5), pod("a", 6))
	judged(12, 13, 14, 15)
	require("three", meter(12, all/4), meter(13, all/4), meter(14, all), meter(15, all/4))
	requests := sw.requests
	judged(12, 13, 14, 15, 16)
	if n := sw.requests - requests; n != 1 {
		t.Errorf("%d requests about meters for the fourth pod, want one", n)
	}
	if err := table.SetAllowances(t.Context(), pipeline.Allowance{Rate: 100, Burst: 100}, nil); err != nil {
		t.Fatal(err)
	}
	require("little", meter(12, 50), meter(13, 50), meter(14, 100), meter(15, 50), meter(16, 50))
	if d, err := table.Demands(t.Context()); err != nil || len(d) != 2 {
		t.Errorf("demands %v, %v", d, err)
	}
	held := map[string]pipeline.Allowance{"a": {Rate: 16, Burst: 16}}
	if err := table.SetAllowances(t.Context(), pipeline.Allowance{Rate: 100, Burst: 100}, held); err != nil {
		t.Fatal(err)
	}
	require("held back", meter(12, 4), meter(13, 4), meter(14, 100), meter(15, 4), meter(16, 4))
	judged()
	require("none")

	sw.refuse = true
	judged(12)
	requireJudged(t, "no room for meters", sw.Conn, map[uint32]string{12: "selected in"})
	require("no room")
}

// What selected pods have asked for only grows: when a pod goes, when another has its port, and when a meter
// counts anew.
func TestJudgedGrows(t *testing.T) {
	table := &Table{}
	table.tenants.fair = newFairness()
	table.tenants.fair.numbers["a"] = 0
	first, second := pipeline.ConnectionsOf(12), pipeline.ConnectionsOf(13)
	both := map[uint32]string{first: "a", second: "a"}
	for _, step := range []struct {
		name     string
		owners   map[uint32]string
		counters []of.MeterCounters
		want     map[string]judgedCount
	}{
		{"two pods", both, []of.MeterCounters{{ID: first, Packets: 10, Dropped: 3}, {ID: second, Packets: 5}}, map[string]judgedCount{"a": {15, 3}}},
		{"more", both, []of.MeterCounters{{ID: first, Packets: 12, Dropped: 3}, {ID: second, Packets: 5}}, map[string]judgedCount{"a": {17, 3}}},
		{"one goes", map[uint32]string{second: "a"}, []of.MeterCounters{{ID: second, Packets: 6}}, map[string]judgedCount{"a": {18, 3}}},
		{"another comes", both, []of.MeterCounters{{ID: first, Packets: 2}, {ID: second, Packets: 6}}, map[string]judgedCount{"a": {20, 3}}},
		{"counted anew", both, []of.MeterCounters{{ID: first, Packets: 2}, {ID: second, Packets: 4, Dropped: 1}}, map[string]judgedCount{"a": {24, 4}}},
	} {
		if diff := cmp.Diff(step.want, table.countJudged(step.counters, step.owners), cmp.AllowUnexported(judgedCount{})); diff != "" {
			t.Errorf("%s: (-want +got):\n%s", step.name, diff)
		}
	}
	delete(table.tenants.fair.numbers, "a")
	if left := table.countJudged(nil, nil); len(left) > 0 {
		t.Errorf("of a namespace that is gone: %v", left)
	}
}
