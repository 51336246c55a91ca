package agent

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/allot"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/attach"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/crashnews"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/flowcache"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/flowstore"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/hostnet"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/identity"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/nodemtu"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/podlimits"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/policies"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/services"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/sharing"
	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
)

// metrics are what the agent shows at /metrics.
type metrics struct {
	flowMetrics
	nodeMetrics
	serviceMetrics
	tooLarge prometheus.Counter
	missed   prometheus.Counter
	cni      *prometheus.HistogramVec
	steps    *prometheus.HistogramVec
	mtu      *nodemtu.Metrics
	fair     *allot.Metrics
	cache    *flowcache.Metrics
	sharing  *sharing.Metrics
	identity *identity.Metrics
	policies *policies.Metrics
}

// flowMetrics are about what is changed in the switch and beside it.
type flowMetrics struct {
	commits     prometheus.Histogram
	changes     prometheus.Counter
	repairs     prometheus.Counter
	portRepairs prometheus.Counter
	hostRepairs prometheus.Counter
	reconnects  prometheus.Counter
	drops       *prometheus.CounterVec
}

// nodeMetrics are what the node is now.
type nodeMetrics struct {
	pods     prometheus.Gauge
	flows    prometheus.Gauge
	peers    prometheus.Gauge
	problems prometheus.Gauge
	revision prometheus.Gauge
	older    prometheus.Gauge
	ready    prometheus.Gauge
	closed   prometheus.Gauge
	alone    prometheus.Gauge
	kept     prometheus.Gauge
}

// serviceMetrics are about the services in the flows.
type serviceMetrics struct {
	services       prometheus.Gauge
	endpoints      prometheus.Gauge
	leftOut        *prometheus.GaugeVec
	serviceFlows   prometheus.Gauge
	programming    prometheus.Histogram
	serviceRepairs prometheus.Counter
}

// register makes metrics of k8s_ovs, which are shown from then on.
type register struct{ promauto.Factory }

func (r register) counter(name, help string) prometheus.Counter {
	return r.NewCounter(prometheus.CounterOpts{Namespace: "k8s_ovs", Name: name, Help: help})
}

func (r register) gauge(name, help string) prometheus.Gauge {
	return r.NewGauge(prometheus.GaugeOpts{Namespace: "k8s_ovs", Name: name, Help: help})
}

func newMetrics(reg prometheus.Registerer) *metrics {
	r := register{promauto.With(reg)}
	m := &metrics{
		flowMetrics: newFlowMetrics(r), nodeMetrics: newNodeMetrics(r), serviceMetrics: newServiceMetrics(r),
		tooLarge: r.counter("fragmentation_needed_total", "Senders told that a packet is too large for its path."),
		missed:   r.counter("datapath_missed_packets_total", "Packets lost because they came faster than ovs-vswitchd of the userspace datapath took them."),
		cni: r.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "k8s_ovs", Name: "cni_seconds", Help: "Time of CNI requests in the agent, by command and CNI error code (0 is success).",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16),
		}, []string{"command", "code"}),
		steps: r.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "k8s_ovs", Name: "attach_step_seconds", Help: "Time of each step of attaching and detaching a pod.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2, 16),
		}, []string{"step"}),
		mtu:      nodemtu.NewMetrics(reg),
		fair:     allot.NewMetrics(reg),
		cache:    flowcache.NewMetrics(reg),
		sharing:  sharing.NewMetrics(reg),
		identity: identity.NewMetrics(reg),
		policies: policies.NewMetrics(reg),
	}
	for _, r := range pipeline.Reasons() {
		m.drops.WithLabelValues(r.String())
	}
	for _, r := range hostnet.Reasons() {
		m.drops.WithLabelValues(string(r))
	}
	return m
}

// collectors show what is read when somebody asks: limits of pods, and crashes of daemons whose records are below dir.
func collectors(limits func() (podlimits.Counted, podlimits.MeterDrops), dir string) []prometheus.Collector {
	return []prometheus.Collector{podlimits.NewCollector(limits), crashnews.NewCollector(dir)}
}

func newFlowMetrics(r register) flowMetrics {
	return flowMetrics{
		commits: r.NewHistogram(prometheus.HistogramOpts{
			Namespace: "k8s_ovs", Name: "flow_commit_seconds", Help: "Time of one atomic bundle of flow changes.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2, 14),
		}),
		changes:     r.counter("flow_changes_total", "Flows added or removed."),
		repairs:     r.counter("flow_repairs_total", "Flows put right that somebody else had changed."),
		portRepairs: r.counter("port_repairs_total", "Pod ports put back that somebody else had removed."),
		hostRepairs: r.counter("host_repairs_total", "Times that the host's addresses, routes or firewall rules had to be put right."),
		reconnects:  r.counter("ovs_reconnects_total", "Connections made to ovs-vswitchd."),
		drops: r.NewCounterVec(prometheus.CounterOpts{
			Namespace: "k8s_ovs", Name: "drops_total", Help: "Packets dropped by the pipeline and by the node's firewall, by reason; PIPELINE.md explains them.",
		}, []string{"reason"}),
	}
}

func newNodeMetrics(r register) nodeMetrics {
	return nodeMetrics{
		pods:     r.gauge("pods", "Pods attached on this node."),
		flows:    r.gauge("flows", "Flows in the bridge."),
		peers:    r.gauge("peers", "Other nodes that this one exchanges packets with."),
		problems: r.gauge("record_problems", "Records that this node leaves out because they are not valid."),
		older:    r.gauge("etcd_older", "1 while etcd has older records than this node, as it does when it is restored from a backup: the node takes no new ones."),
		revision: r.gauge("applied_revision", "etcd revision of the newest records that are in the flows."),
		ready:    r.gauge("ready", "1 when pods can be attached."),
		closed:   r.gauge("outside_closed", "1 when the check of the ways from pods to the outside, and between the node and its pods, finds one closed (--exit-check)."),
		alone:    r.gauge("tunnels_closed", "1 when the check of the ways to other nodes finds none that is open (--tunnel-check)."),
		kept:     r.gauge("tunnel_peers_kept_back", "Other nodes that the node's firewall or routes keep tunnels' packets from, or that do not answer through the tunnels."),
	}
}

func newServiceMetrics(r register) serviceMetrics {
	return serviceMetrics{
		services:  r.gauge("services", "Services that the bridge serves to this node's pods."),
		endpoints: r.gauge("service_endpoints", "Distinct endpoints of these services."),
		leftOut: r.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: "k8s_ovs", Name: "service_endpoints_left_out", Help: "Endpoints that services name and that no pod is sent to, by reason; docs/kubernetes.md explains them.",
		}, []string{"reason"}),
		serviceFlows: r.gauge("service_flows", "Flows of services in the bridge; each port of a service with endpoints has a group besides."),
		programming: r.NewHistogram(prometheus.HistogramOpts{
			Namespace: "k8s_ovs", Name: "service_programming_seconds", Help: "Time to bring one batch of news of services into the flows.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
		}),
		serviceRepairs: r.counter("service_repairs_total", "Flows and groups of services put right that somebody else had changed."),
	}
}

// Committed implements flowstore.Observer. Bundles of services have a metric of their own:
// service_programming_seconds.
func (m *metrics) Committed(area string, n int, seconds float64) {
	if area == services.AreaName {
		return
	}
	m.commits.Observe(seconds)
	m.changes.Add(float64(n))
}

// Repaired implements flowstore.Observer.
func (m *metrics) Repaired(k flowstore.Kind, n int) {
	if k == services.KindService {
		m.serviceRepairs.Add(float64(n))
		return
	}
	m.repairs.Add(float64(n))
}

// Dropped implements nodeflows.Observer.
func (m *metrics) Dropped(r pipeline.Reason, n uint64) {
	m.drops.WithLabelValues(r.String()).Add(float64(n))
}

// firewallDropped counts what the node's firewall has dropped.
func (m *metrics) firewallDropped(by map[hostnet.Reason]uint64) {
	for r, n := range by {
		m.drops.WithLabelValues(string(r)).Add(float64(n))
	}
}

// ObserveRequest implements cniserver.Metrics.
func (m *metrics) ObserveRequest(command cniapi.Command, code uint, took time.Duration) {
	m.cni.WithLabelValues(string(command), strconv.Itoa(int(code))).Observe(took.Seconds())
}

// AttachStep implements attach.Observer.
func (m *metrics) AttachStep(step attach.Step, took time.Duration) {
	m.steps.WithLabelValues(string(step)).Observe(took.Seconds())
}
