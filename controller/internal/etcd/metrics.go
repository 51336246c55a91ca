package etcd

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Metrics are those of the etcd in the controller.
type Metrics struct {
	refused prometheus.Counter
	cut     prometheus.Counter
	size    prometheus.Gauge
	free    prometheus.Gauge
}

// NewMetrics registers them.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	register := promauto.With(reg)
	const namespace, subsystem = "k8s_ovs", "controller_etcd"
	m := &Metrics{
		refused: register.NewCounter(prometheus.CounterOpts{Namespace: namespace, Subsystem: subsystem, Name: "refused_total",
			Help: "Requests of nodes that asked more of the etcd in the controller than agents do."}),
		cut: register.NewCounter(prometheus.CounterOpts{Namespace: namespace, Subsystem: subsystem, Name: "history_cut_total",
			Help: "Times that the history of the records was cut short to make room."}),
		size: register.NewGauge(prometheus.GaugeOpts{Namespace: namespace, Subsystem: subsystem, Name: "database_bytes",
			Help: "Size of the database of the etcd in the controller, with its history."}),
		free: register.NewGauge(prometheus.GaugeOpts{Namespace: namespace, Subsystem: subsystem, Name: "disk_free_bytes",
			Help: "Room that is free on the disk of the etcd in the controller. It takes no changes under 81 MB."}),
	}
	return m
}
