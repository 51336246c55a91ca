package podlimits

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/attach"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/shaping"
	"github.com/k8s-ovs/k8s-ovs/pkg/limits"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// countedPods are limited pods as they stand.
type countedPods struct {
	counters []attach.PodCounters
	drops    map[uint32]uint64
}

func (c countedPods) Counters() []attach.PodCounters { return c.counters }
func (c countedPods) MeterDrops(context.Context) (map[uint32]uint64, error) {
	if c.drops == nil {
		return nil, errors.New("ovs-vswitchd is away")
	}
	return c.drops, nil
}

// twice is a pod that is being replaced, so it is attached twice, and one that is
// limited in one direction.
func twice() countedPods {
	both := limits.Limits{Ingress: limits.Limit{Rate: 1_000_000}, Egress: limits.Limit{Rate: 2_000_000, Burst: 65536}}
	used := func(n uint64) shaping.Counters {
		d := shaping.Direction{Bytes: 100 * n, Packets: n, Dropped: 10 * n, Delayed: n}
		return shaping.Counters{Ingress: d, Egress: d}
	}
	return countedPods{
		counters: []attach.PodCounters{
			{Namespace: "red", Pod: "b", Port: 11, Limits: both, Counters: used(1)},
			{Namespace: "red", Pod: "b", Port: 12, Limits: both, Counters: used(2)},
			{Namespace: "red", Pod: "a", Limits: limits.Limits{Ingress: both.Ingress}, Counters: used(4)},
		},
		drops: map[uint32]uint64{11: 2, 12: 3, 19: 6},
	}
}

// series is what a registry shows of the collector: it refuses one that is there
// twice, and with it all.
func series(t *testing.T, c prometheus.Collector) map[string]float64 {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(c)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := strings.TrimPrefix(f.GetName(), "k8s_ovs_")
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			out[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return out
}

func TestLimitMetrics(t *testing.T) {
	pods := twice()
	collector := NewCollector(func() (Counted, MeterDrops) { return pods, pods })
	want := map[string]float64{
		"limit_bits_per_second ingress red a": 1e6, "limit_bits_per_second ingress red b": 1e6, "limit_bits_per_second egress red b": 2e6,
		"shaped_bytes_total ingress red a": 400, "shaped_bytes_total ingress red b": 300, "shaped_bytes_total egress red b": 300,
		"shaped_delayed_packets_total ingress red a": 4, "shaped_delayed_packets_total ingress red b": 3, "shaped_delayed_packets_total egress red b": 3,
		"shaped_dropped_packets_total ingress red a": 40, "shaped_dropped_packets_total ingress red b": 30, "shaped_dropped_packets_total egress red b": 30,
		"backstop_dropped_packets_total egress red b": 5,
	}
	if diff := cmp.Diff(want, series(t, collector)); diff != "" {
		t.Errorf("series (-want +got):\n%s", diff)
	}
	pods.drops = nil
	delete(want, "backstop_dropped_packets_total egress red b")
	if diff := cmp.Diff(want, series(t, collector)); diff != "" {
		t.Errorf("while the switch is away (-want +got):\n%s", diff)
	}
	early := NewCollector(func() (Counted, MeterDrops) { return nil, nil })
	if got := series(t, early); len(got) != 0 {
		t.Errorf("before the node is set up: %v", got)
	}
}

func TestLimitsRecord(t *testing.T) {
	want := []topology.PodLimits{
		{Namespace: "red", Pod: "a", Ingress: &topology.LimitUsed{Rate: 1_000_000, Bytes: 400, Delayed: 4, Dropped: 40}},
		{
			Namespace: "red", Pod: "b", Ingress: &topology.LimitUsed{Rate: 1_000_000, Bytes: 300, Delayed: 3, Dropped: 30},
			Egress: &topology.LimitUsed{Rate: 2_000_000, Burst: 65536, Bytes: 300, Delayed: 3, Dropped: 30},
		},
	}
	if diff := cmp.Diff(want, limitsRecord(twice().counters).Pods); diff != "" {
		t.Errorf("record (-want +got):\n%s", diff)
	}
}

// The records of large clusters do not fill etcd.
func TestLimitsPause(t *testing.T) {
	record := topology.NodeLimits{Host: "n1", HostIP: netip.MustParseAddr("198.18.0.1")}
	for range 100 {
		used := &topology.LimitUsed{Rate: 10_000_000, Bytes: 1 << 40, Delayed: 1 << 20, Dropped: 1 << 10}
		record.Pods = append(record.Pods, topology.PodLimits{Namespace: "shop", Pod: "front-0", Ingress: used, Egress: used})
	}
	data, err := json.Marshal(record)
	if err != nil {
		t.Fatal(err)
	}
	for _, nodes := range []int{1, 10, 1000, 5000} {
		pause := limitsPause(record, nodes)
		if hour := float64(len(data)*nodes) * 3600 / pause.Seconds(); pause < 10*time.Second || hour > 400e6 {
			t.Errorf("%d nodes write every %s, %.0f bytes an hour", nodes, pause, hour)
		}
	}
	if pause := limitsPause(record, 10); pause != 10*time.Second {
		t.Errorf("10 nodes write every %s", pause)
	}
}
