package policies

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Metrics are what policies come to on the node.
type Metrics struct {
	policies, rules, sets, pods, flows, late prometheus.Gauge
	eventToFlows                             prometheus.Histogram
}

// NewMetrics registers them.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	register := promauto.With(reg)
	gauge := func(name, help string) prometheus.Gauge {
		return register.NewGauge(prometheus.GaugeOpts{Namespace: "k8s_ovs", Name: name, Help: help})
	}
	m := &Metrics{
		policies: gauge("policies", "NetworkPolicies and ClusterNetworkPolicies that are about pods of this node."),
		rules:    gauge("policy_rules", "Rules of these policies."),
		sets:     gauge("policy_sets", "Sets of pods and of nodes that these policies name."),
		pods:     gauge("policy_selected_pods", "Pods of this node that policies isolate, or ClusterNetworkPolicies are about."),
		flows:    gauge("policy_flows", "Flows of policies' rules in the bridge."),
		late:     gauge("policy_late_sets", "Sets that are needed and not whole yet: what they allow is closed until then."),
		eventToFlows: register.NewHistogram(prometheus.HistogramOpts{
			Namespace: "k8s_ovs", Name: "policy_event_to_flows_seconds", Help: "Time from news of the records of policies to flows in the bridge.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16),
		}),
	}
	return m
}

// measure sets the gauges; mu is held.
func (t *Table) measure(flows int) {
	about, rules, selected := 0, 0, 0
	for _, r := range t.inCluster() {
		about, rules = about+1, rules+len(r.Ingress)+len(r.Egress)
	}
	for _, s := range t.spaces {
		for n := range s.policies {
			if r, ok := s.counts(n); ok && len(r.pods) > 0 {
				about, rules = about+1, rules+len(r.Ingress.Rules)+len(r.Egress.Rules)
			}
		}
	}
	for _, one := range t.pods {
		if one.selected.Selected() {
			selected++
		}
	}
	m := t.cfg.Metrics
	m.policies.Set(float64(about))
	m.rules.Set(float64(rules))
	m.sets.Set(float64(len(t.needs().sets)))
	m.pods.Set(float64(selected))
	m.flows.Set(float64(flows))
	m.late.Set(float64(t.lateSets()))
}
