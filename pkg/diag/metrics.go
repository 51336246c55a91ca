package diag

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/k8s-ovs/k8s-ovs/pkg/version"
)

// NewRegistry is a registry with what every program shows: the Go runtime
// (go_*), the process (process_*), and k8s_ovs_build_info, which is always 1
// and has the build in its labels. program is the binary's name.
func NewRegistry(program string) *prometheus.Registry {
	r := prometheus.NewRegistry()
	build := version.Get()
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "k8s_ovs_build_info",
		Help: "Always 1; the labels say which build is running.",
		ConstLabels: prometheus.Labels{
			"program": program,
			"version": build.Version,
			"commit":  build.Commit,
			"go":      build.Go,
		},
	})
	info.Set(1)
	r.MustRegister(
		info,
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return r
}
