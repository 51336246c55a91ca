package nodeflows

import (
	"context"
	"maps"
	"net/netip"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
)

// meter is that of a pod with a limit, numbered as its port.
func meter(a desired.Attached) of.Meter {
	return of.Meter{
		ID: a.Port, Flags: of.MeterKbps | of.MeterBurst | of.MeterStats,
		Bands: []of.Band{{Rate: a.Meter.Rate, Burst: a.Meter.Burst}},
	}
}

// SetPathMTUs makes m, by VTEP, what the paths to those peers carry of a pod's packet,
// bytes, that carry less than the pods' devices. What is larger comes to the agent
// (see [pipeline.ReadTooLarge]) instead of being lost on the way.
func (t *Table) SetPathMTUs(ctx context.Context, m map[netip.Addr]int) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if maps.Equal(t.pathMTUs, m) {
		return t.again(ctx)
	}
	t.pathMTUs = maps.Clone(m)
	if t.model == nil {
		return nil
	}
	err := t.refresh(ctx)
	return err
}

// withPathMTUs gives the model's peers what their paths carry.
func (t *Table) withPathMTUs(m *pipeline.Model) {
	for i := range m.Peers {
		m.Peers[i].PathMTU = uint16(t.pathMTUs[m.Peers[i].VTEP])
	}
}
