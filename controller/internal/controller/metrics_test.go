package controller

import (
	"testing"

	"github.com/k8s-ovs/k8s-ovs/controller/internal/etcd"
	"github.com/k8s-ovs/k8s-ovs/controller/internal/lead"
	csr "github.com/k8s-ovs/k8s-ovs/controller/internal/signer"
	"github.com/k8s-ovs/k8s-ovs/test/metricspage"
)

// TestMetricsPage: the operators' page has each metric of the controller, and no other.
func TestMetricsPage(t *testing.T) {
	has := metricspage.NewRecorder()
	enforced(has)
	lead.NewMetrics(has)
	etcd.NewMetrics(has)
	csr.NewMetrics(has)
	metricspage.Compare(t, "The controller", has)
}
