package podlimits

import (
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/attach"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/shaping"
	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/limits"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

const (
	// publishLimitsEvery is how often what limits do is written where operators see
	// it, while it changes; less often where all nodes together would write more than
	// publishLimitsRate bytes per second: etcd keeps an hour of it.
	publishLimitsEvery = 10 * time.Second
	publishLimitsRate  = 100_000
	// dropsPatience bounds the question to the switch how much its meters dropped.
	dropsPatience = time.Second
)

// Counted are the limited pods of the node and what their limits do;
// [attach.Attacher] knows them.
type Counted interface {
	Counters() []attach.PodCounters
}

// MeterDrops are the packets that the bridge dropped of pods that do not keep to
// their limit themselves, by port; [nodeflows.Table] knows them.
type MeterDrops interface {
	MeterDrops(ctx context.Context) (map[uint32]uint64, error)
}

// Collector shows at /metrics what limits do, of limited pods only: what
// nobody asked to be limited has no series.
type Collector struct {
	// sources are nil before the node is set up.
	sources                                 func() (Counted, MeterDrops)
	limit, bytes, dropped, delayed, metered *prometheus.Desc
}

func NewCollector(sources func() (Counted, MeterDrops)) *Collector {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("k8s_ovs_"+name, help, []string{"namespace", "pod", "direction"}, nil)
	}
	return &Collector{
		sources: sources,
		limit:   desc("limit_bits_per_second", "Rate limit of a pod; ingress is what it receives, egress what it sends."),
		bytes:   desc("shaped_bytes_total", "Bytes that have passed a pod's limit."),
		dropped: desc("shaped_dropped_packets_total", "Packets dropped because the queue before a pod's limit was full."),
		delayed: desc("shaped_delayed_packets_total", "Packets that waited for a pod's limit."),
		metered: desc("backstop_dropped_packets_total", "Packets that the bridge dropped of a pod that took its own shaper away."),
	}
}

// Describe implements prometheus.Collector.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.limit, c.bytes, c.dropped, c.delayed, c.metered} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	pods, meters := c.sources()
	if pods == nil {
		return
	}
	all := pods.Counters()
	if len(all) == 0 {
		return
	}
	show := func(key kube.PodKey, direction string, l limits.Limit, d shaping.Direction) {
		if l.Rate == 0 {
			return
		}
		counter := func(desc *prometheus.Desc, v uint64) {
			ch <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(v), key.Namespace, key.Name, direction)
		}
		ch <- prometheus.MustNewConstMetric(c.limit, prometheus.GaugeValue, float64(l.Rate), key.Namespace, key.Name, direction)
		counter(c.bytes, d.Bytes)
		counter(c.dropped, d.Dropped)
		counter(c.delayed, d.Delayed)
	}
	for key, t := range byPod(all) {
		show(key, "ingress", t.Limits.Ingress, t.Counters.Ingress)
		show(key, "egress", t.Limits.Egress, t.Counters.Egress)
	}
	for key, n := range droppedByMeters(all, meters) {
		ch <- prometheus.MustNewConstMetric(c.metered, prometheus.CounterValue, float64(n), key.Namespace, key.Name, "egress")
	}
}

// byPod adds up the attachments of each pod: one that is being replaced has two.
func byPod(all []attach.PodCounters) map[kube.PodKey]attach.PodCounters {
	sum := func(a *shaping.Direction, b shaping.Direction) {
		a.Bytes += b.Bytes
		a.Packets += b.Packets
		a.Dropped += b.Dropped
		a.Delayed += b.Delayed
		a.Backlog += b.Backlog
	}
	out := map[kube.PodKey]attach.PodCounters{}
	for _, c := range all {
		key := kube.PodKey{Namespace: c.Namespace, Name: c.Pod}
		t := c
		if other, ok := out[key]; ok {
			sum(&t.Counters.Ingress, other.Counters.Ingress)
			sum(&t.Counters.Egress, other.Counters.Egress)
		}
		out[key] = t
	}
	return out
}

// droppedByMeters is empty while the switch is away.
func droppedByMeters(all []attach.PodCounters, meters MeterDrops) map[kube.PodKey]uint64 {
	ctx, cancel := context.WithTimeout(context.Background(), dropsPatience)
	defer cancel()
	drops, err := meters.MeterDrops(ctx)
	if err != nil {
		return nil
	}
	out := map[kube.PodKey]uint64{}
	for _, c := range all {
		if n, ok := drops[c.Port]; ok {
			out[kube.PodKey{Namespace: c.Namespace, Name: c.Pod}] += n
		}
	}
	return out
}

// Publisher writes what the node's limited pods do to the records.
type Publisher struct {
	Host   string
	HostIP netip.Addr
	Pods   Counted
	// Peers counts the other nodes.
	Peers  func() int
	Store  *store.Store
	Logger *slog.Logger
}

// Run publishes until ctx ends. There is a record only while there is a limited pod.
func (p Publisher) Run(ctx context.Context) error {
	var to *store.LimitsPublisher
	defer func() {
		if to != nil {
			to.Close()
		}
	}()
	var last topology.NodeLimits
	pause := publishLimitsEvery
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		record := limitsRecord(p.Pods.Counters())
		record.Host, record.HostIP = p.Host, p.HostIP
		switch {
		case len(record.Pods) == 0:
			pause = publishLimitsEvery
			if to != nil {
				to.Close()
				to, last = nil, record
			}
			continue
		case reflect.DeepEqual(record, last):
			continue
		case to == nil:
			cfg, err := p.Store.Config(ctx)
			if err != nil {
				p.Logger.Debug("what limits do is not published while etcd is away", "error", err)
				continue
			}
			to = p.Store.LimitsPublisher(cfg.Value.Name, 0)
		}
		to.Set(record)
		last, pause = record, limitsPause(record, 1+p.Peers())
	}
}

// limitsPause is the time between writes of a record like this in a cluster of that
// many nodes.
func limitsPause(record topology.NodeLimits, nodes int) time.Duration {
	data, err := json.Marshal(record)
	if err != nil {
		panic("podlimits: " + err.Error()) // numbers and names always encode
	}
	return max(publishLimitsEvery, time.Duration(len(data)*nodes)*time.Second/publishLimitsRate)
}

// limitsRecord is the record's pods, in order.
func limitsRecord(all []attach.PodCounters) topology.NodeLimits {
	used := func(l limits.Limit, d shaping.Direction) *topology.LimitUsed {
		if l.Rate == 0 {
			return nil
		}
		return &topology.LimitUsed{Rate: l.Rate, Burst: l.Burst, Bytes: d.Bytes, Delayed: d.Delayed, Dropped: d.Dropped}
	}
	var out topology.NodeLimits
	totals := byPod(all)
	for _, key := range slices.SortedFunc(maps.Keys(totals), kube.PodKey.Compare) {
		t := totals[key]
		out.Pods = append(out.Pods, topology.PodLimits{
			Namespace: key.Namespace, Pod: key.Name,
			Ingress: used(t.Limits.Ingress, t.Counters.Ingress), Egress: used(t.Limits.Egress, t.Counters.Egress),
		})
	}
	return out
}
