package agent

import (
	"context"
	"errors"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/underlay"
)

// brokenBridge is an underlay whose bridge has to be put right each time.
type brokenBridge struct {
	underlayOwner
	asked int
	err   error
}

func (b *brokenBridge) EnsureForwarding(context.Context, underlay.Underlay) (bool, error) {
	b.asked++
	return true, b.err
}

// TestEnsureForwarding: a pass that reads back all there is looks at the underlay's bridge, and
// what it puts right is a repair of the host's; one that cannot be put right is why the node is
// not ready.
func TestEnsureForwarding(t *testing.T) {
	b := &brokenBridge{}
	n := &hostSide{picture: &picture{}, metrics: newMetrics(prometheus.NewRegistry()), log: quiet()}
	n.underlay = b
	for _, full := range []bool{true, false, true} {
		if err := n.ensureForwarding(t.Context(), &pass{full: full}); err != nil {
			t.Error(err)
		}
	}
	var m dto.Metric
	if err := n.metrics.hostRepairs.Write(&m); err != nil {
		t.Fatal(err)
	}
	if got := m.GetCounter().GetValue(); got != 2 || b.asked != 2 {
		t.Errorf("%v repairs, and it was asked %d times; want 2 of each", got, b.asked)
	}
	b.err = errors.New("refused")
	if err := n.ensureForwarding(t.Context(), &pass{full: true}); !errors.Is(err, b.err) {
		t.Errorf("error %v, want %v", err, b.err)
	}
}
