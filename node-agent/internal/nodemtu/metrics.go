package nodemtu

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Metrics are the MTU of pods and what the node's paths carry, bytes of a pod's packet.
type Metrics struct {
	mtu, carries, cluster, blackHoles, holdsBack, ignored, silent prometheus.Gauge
	narrow                                                        *prometheus.GaugeVec
}

// NewMetrics registers them.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	register := promauto.With(reg)
	gauge := func(name, help string) prometheus.Gauge {
		return register.NewGauge(prometheus.GaugeOpts{Namespace: "k8s_ovs", Name: name, Help: help})
	}
	m := &Metrics{
		mtu:        gauge("pod_mtu_bytes", "MTU that pods get."),
		carries:    gauge("mtu_carries_bytes", "Packets of pods that every path of this node carries."),
		cluster:    gauge("cluster_mtu_bytes", "Least of what the nodes carry: the MTU of pods, once all have it."),
		silent:     gauge("peers_silent", "Other nodes whose agents have answered probes of paths, and have not for a minute (6 intervals)."),
		blackHoles: gauge("mtu_black_holes", "Paths to other nodes that lose large packets and do not say so."),
		holdsBack:  gauge("mtu_holds_cluster_back", "1 when no node carries less than this one, and most carry more."),
		ignored:    gauge("mtu_records_ignored", "Nodes whose MTU record does not count, as it says less than pods need."),
		narrow: register.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: "k8s_ovs", Name: "path_mtu_bytes", Help: "Packets of pods that the path to a node carries, only where its route or a measurement says less than the link.",
		}, []string{"peer"}),
	}
	return m
}
