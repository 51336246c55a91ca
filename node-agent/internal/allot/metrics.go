package allot

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/fairness"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/nodeflows"
)

// Metrics are what keeps namespaces from using up what all of a node share.
type Metrics struct {
	// refused are the new connections by namespace and limit.
	refused           *prometheus.CounterVec
	used, size, heldN *prometheus.GaugeVec
	untold            *prometheus.CounterVec
	// lastUntold and lastJudged are what was counted when it was looked at last, by namespace.
	lastUntold, lastJudged map[string]uint64
}

// NewMetrics registers them.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	register := promauto.With(reg)
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return register.NewCounterVec(prometheus.CounterOpts{Namespace: "k8s_ovs", Name: name, Help: help}, labels)
	}
	gauge := func(name, help string) *prometheus.GaugeVec {
		return register.NewGaugeVec(prometheus.GaugeOpts{Namespace: "k8s_ovs", Name: name, Help: help}, []string{"limit"})
	}
	m := &Metrics{
		refused:    counter("connections_refused_total", "New connections refused because a namespace asked for more than it may; limit is service-connections, node-connections, node-ports (it has its part of the ports to that destination), or policy (of a pod that policies select).", "namespace", "limit"),
		used:       gauge("connections", "Entries of the connection table that a limit guards."),
		size:       gauge("connections_size", "Entries that this table has room for."),
		heldN:      gauge("connections_held_namespaces", "Namespaces that may make fewer new connections than others, because the table is short."),
		untold:     counter("fragmentation_needed_untold_total", "Packets too large for their path whose sender was not told, as its namespace had more than 100 a second.", "namespace"),
		lastUntold: map[string]uint64{}, lastJudged: map[string]uint64{},
	}
	return m
}

func (m *Metrics) table(limit string, t fairness.Table, held int) {
	m.used.WithLabelValues(limit).Set(float64(t.Used))
	m.size.WithLabelValues(limit).Set(float64(t.Size))
	m.heldN.WithLabelValues(limit).Set(float64(held))
}

// tooLarge counts the packets whose senders were not told since it was called last.
func (m *Metrics) tooLarge(demands map[string]nodeflows.Demand) {
	for namespace, d := range demands {
		n := d.Untold
		if last := m.lastUntold[namespace]; last <= n {
			n -= last
		}
		if d.TooLarge > 0 {
			m.untold.WithLabelValues(namespace).Add(float64(n))
		}
		m.lastUntold[namespace] = d.Untold
	}
	for namespace := range m.lastUntold {
		if _, there := demands[namespace]; !there {
			delete(m.lastUntold, namespace)
			m.untold.DeleteLabelValues(namespace)
		}
	}
}

// policyLimit is the limit of new connections of a pod that policies select.
const policyLimit = "policy"

// judged counts the connections that were refused to pods that policies select since it was
// called last. Where a namespace has less than before, it was another one, and nothing is added.
func (m *Metrics) judged(demands map[string]nodeflows.Demand) {
	for namespace, d := range demands {
		if d.Judged > 0 {
			more := max(d.JudgedRefused, m.lastJudged[namespace]) - m.lastJudged[namespace]
			m.refused.WithLabelValues(namespace, policyLimit).Add(float64(more))
		}
		m.lastJudged[namespace] = d.JudgedRefused
	}
	for namespace := range m.lastJudged {
		if _, there := demands[namespace]; !there {
			delete(m.lastJudged, namespace)
			m.refused.DeleteLabelValues(namespace, policyLimit)
		}
	}
}
