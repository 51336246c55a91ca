package agent

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/underlay"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// brokenBridge is an underlay whose bridge has to be put right each time.
type brokenBridge struct {
	underlayOwner
	asked       int
	peer        netip.AddrPort
	closed, err error
}

func (b *brokenBridge) EnsureForwarding(_ context.Context, _ underlay.Underlay, peer netip.AddrPort) (bool, error, error) {
	b.asked++
	b.peer = peer
	return true, b.closed, b.err
}

// TestEnsureForwarding: a pass that reads back all there is looks at the underlay's bridge, and
// what it puts right is a repair of the host's; what it does not put right is why the node is not ready until the next
// such look.
func TestEnsureForwarding(t *testing.T) {
	b := &brokenBridge{}
	n := &hostSide{picture: &picture{records: &topology.Snapshot{}}, metrics: newMetrics(prometheus.NewRegistry()), log: quiet()}
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
	b.closed = errors.New("a VLAN")
	n.self, n.tunnels.as.Port = netip.MustParseAddr("192.0.2.1"), 4789
	n.records.Nodes = map[netip.Addr]topology.Node{n.self: {}, netip.MustParseAddr("192.0.2.3"): {}, netip.MustParseAddr("192.0.2.2"): {}}
	for _, full := range []bool{true, false} {
		p := &pass{full: full}
		if err := n.ensureForwarding(t.Context(), p); err != nil || !errors.Is(p.unwell, b.closed) {
			t.Errorf("full %t: unwell %v, want %v (%v)", full, p.unwell, b.closed, err)
		}
	}
	if want := netip.MustParseAddrPort("192.0.2.2:4789"); b.peer != want {
		t.Errorf("it was asked about %s, want %s", b.peer, want)
	}
	b.closed, b.err = nil, errors.New("refused")
	if err := n.ensureForwarding(t.Context(), &pass{full: true}); !errors.Is(err, b.err) {
		t.Errorf("error %v, want %v", err, b.err)
	}
}
