package lead

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/k8s-ovs/k8s-ovs/controller/internal/cluster"
	"github.com/k8s-ovs/k8s-ovs/controller/internal/policies"
	"github.com/k8s-ovs/k8s-ovs/controller/internal/subnet"
	"github.com/k8s-ovs/k8s-ovs/controller/internal/tenant"
	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// Metrics are the controller's. Those of the records show what this controller
// knows, leader or not; those of netIDs and subnets are the leader's.
type Metrics struct {
	leader     prometheus.Gauge
	terms      prometheus.Counter
	requests   *prometheus.CounterVec
	subnetReqs *prometheus.CounterVec
	conflicts  prometheus.Counter
	records    *prometheus.GaugeVec
	netIDs     *prometheus.GaugeVec
	subnets    *prometheus.GaugeVec
	write      prometheus.Histogram
	cluster    *prometheus.GaugeVec
	refused    prometheus.Gauge
	// notEnforced has a name without the controller in it: it is about the cluster.
	notEnforced        prometheus.Gauge
	clusterNotEnforced prometheus.Gauge
	policies           *prometheus.GaugeVec
	policyWrites       prometheus.Counter
	absent             prometheus.Gauge
	users              prometheus.Gauge
	changes            *prometheus.GaugeVec
	without            *prometheus.CounterVec
	lost               prometheus.Gauge
	restored           prometheus.Counter
}

// NewMetrics registers them.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	register := promauto.With(reg)
	const ns, sub = "k8s_ovs", "controller"
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: ns, Subsystem: sub, Name: name, Help: help}
	}
	m := &Metrics{
		leader:     register.NewGauge(prometheus.GaugeOpts(opts("leader", "1 while this controller leads."))),
		terms:      register.NewCounter(prometheus.CounterOpts(opts("terms_total", "How often this controller was elected."))),
		requests:   register.NewCounterVec(prometheus.CounterOpts(opts("namespace_requests_total", "Namespace records answered, by action (netid: one without) and outcome.")), []string{"action", "outcome"}),
		subnetReqs: register.NewCounterVec(prometheus.CounterOpts(opts("subnet_requests_total", "Node records answered, by outcome.")), []string{"outcome"}),
		conflicts:  register.NewCounter(prometheus.CounterOpts(opts("write_conflicts_total", "Writes that someone else was quicker than, and that were planned anew."))),
		records:    register.NewGaugeVec(prometheus.GaugeOpts(opts("records", "Records in etcd, by kind.")), []string{"kind"}),
		netIDs:     register.NewGaugeVec(prometheus.GaugeOpts(opts("netids", "NetIDs of tenants, by state: in_use, or freed and given out last.")), []string{"state"}),
		subnets:    register.NewGaugeVec(prometheus.GaugeOpts(opts("subnets", "Node subnets of the pod network, by state: in_use or free.")), []string{"state"}),
		write: register.NewHistogram(prometheus.HistogramOpts{
			Namespace: ns, Subsystem: sub, Name: "request_seconds", Help: "Time from seeing a request to having written its answer.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
		}),
	}
	m.cluster = register.NewGaugeVec(prometheus.GaugeOpts(opts("kubernetes_objects", "Kubernetes objects that the records follow, by kind.")), []string{"kind"})
	m.refused = register.NewGauge(prometheus.GaugeOpts(opts("refused_annotations", "Namespaces whose network annotation cannot be followed.")))
	m.notEnforced = register.NewGauge(prometheus.GaugeOpts{Namespace: ns, Name: "networkpolicies_not_enforced", Help: "NetworkPolicies that some live node does not enforce; the leader's."})
	m.clusterNotEnforced = register.NewGauge(prometheus.GaugeOpts{Namespace: ns, Name: "clusternetworkpolicies_not_enforced", Help: "ClusterNetworkPolicies that some live node does not enforce; the leader's."})
	m.policies = register.NewGaugeVec(prometheus.GaugeOpts(opts("policy_objects", "NetworkPolicies, ClusterNetworkPolicies, the sets of addresses that they name, and the records of all in etcd, by kind.")), []string{"kind"})
	m.policyWrites = register.NewCounter(prometheus.CounterOpts(opts("policy_writes_total", "Records of NetworkPolicies and their sets that were written.")))
	m.absent = register.NewGauge(prometheus.GaugeOpts(opts("policies_absent", "Admission policies of k8s-ovs that are not in force: while it is not 0, tenants may reach each other by endpoints written by hand.")))
	m.users = register.NewGauge(prometheus.GaugeOpts(opts("node_users", "Nodes that have a user of their own in etcd, kept by this leader.")))
	m.changes = register.NewGaugeVec(prometheus.GaugeOpts(opts("tenant_changes_waiting", "Changes of a namespace's netID that wait until this node has their step in its flows.")), []string{"node"})
	m.without = register.NewCounterVec(prometheus.CounterOpts(opts("tenant_changes_without_total", "Steps of such changes that went on without this node, as it took too long: packets of the namespace from and to its pods there may have been lost.")), []string{"node"})
	m.lost = register.NewGauge(prometheus.GaugeOpts(opts("nodes_hold_lost_records", "Nodes that hold records which etcd has lost, as it does when it is restored from a backup.")))
	m.restored = register.NewCounter(prometheus.CounterOpts(opts("restorations_total", "How often etcd had gone back to older records, and what nodes held was put back.")))
	return m
}

func (m *Metrics) leading(yes bool) {
	if !yes {
		m.leader.Set(0)
		m.netIDs.Reset()
		m.subnets.Reset()
		m.cluster.Reset()
		m.refused.Set(0)
		m.notEnforced.Set(0)
		m.clusterNotEnforced.Set(0)
		m.policies.Reset()
		m.absent.Set(0)
		m.users.Set(0)
		m.lost.Set(0)
		m.changes.Reset()
		return
	}
	m.leader.Set(1)
	m.terms.Inc()
}

func (m *Metrics) observe(r store.Records) {
	m.records.WithLabelValues("namespace").Set(float64(len(r.Namespaces)))
	m.records.WithLabelValues("node").Set(float64(len(r.Nodes)))
	m.records.WithLabelValues("invalid").Set(float64(len(r.Invalid)))
}

func (m *Metrics) tenants(p tenant.Plan) {
	m.netIDs.WithLabelValues("in_use").Set(float64(p.InUse))
	m.netIDs.WithLabelValues("freed").Set(float64(len(p.Freed)))
	m.changes.Reset()
	for _, c := range p.UnderWay {
		for _, node := range c.Lacking {
			m.changes.WithLabelValues(node).Inc()
		}
	}
	for _, w := range p.Without {
		m.without.WithLabelValues(w.Node).Inc()
	}
}

func (m *Metrics) nodes(p subnet.Plan) {
	m.subnets.WithLabelValues("in_use").Set(float64(p.InUse))
	m.subnets.WithLabelValues("free").Set(float64(p.Free))
}

func (m *Metrics) follows(c kube.Cluster, p cluster.Plan) {
	m.cluster.WithLabelValues("namespace").Set(float64(len(c.Namespaces)))
	m.cluster.WithLabelValues("node").Set(float64(len(c.Nodes)))
	m.refused.Set(float64(p.Refused))
}

func (m *Metrics) networkPolicies(c policies.Counts) {
	m.notEnforced.Set(float64(c.NotEnforced))
	m.clusterNotEnforced.Set(float64(c.ClusterNotEnforced))
	m.policies.WithLabelValues("policy").Set(float64(c.Policies))
	m.policies.WithLabelValues("clusterpolicy").Set(float64(c.ClusterPolicies))
	m.policies.WithLabelValues("set").Set(float64(c.Sets))
	m.policies.WithLabelValues("record").Set(float64(c.Records))
	m.policyWrites.Add(float64(c.Writes))
}

func (m *Metrics) policiesAbsent(n int) { m.absent.Set(float64(n)) }

func (m *Metrics) answered(w tenant.Write) {
	action := "netid"
	switch w.Action {
	case topology.Join, topology.Isolate, topology.MakeGlobal:
		action = string(w.Action)
	case topology.None:
	default:
		// People's spelling mistakes must not become label values.
		action = "unknown"
	}
	m.requests.WithLabelValues(action, string(w.Outcome)).Inc()
}
