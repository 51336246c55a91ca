package agent

import (
	"testing"

	"github.com/k8s-ovs/k8s-ovs/test/metricspage"
)

// TestMetricsPage: the operators' page has each metric of the agent, and no other.
func TestMetricsPage(t *testing.T) {
	has := metricspage.NewRecorder()
	newMetrics(has)
	has.MustRegister(collectors(nil, t.TempDir())...)
	metricspage.Compare(t, "The agent", has)
}
