package flowtable

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
)

// All meters of the bridge are the table's. They cannot be part of a bundle, and
// one that is deleted takes the flows that refer to it along: so they are added and changed
// before the flows, and deleted after them.

// meter is that of a pod with a limit, numbered as its port.
func meter(a desired.Attached) of.Meter {
	return of.Meter{
		ID: a.Port, Flags: of.MeterKbps | of.MeterBurst | of.MeterStats,
		Bands: []of.Band{{Rate: a.Meter.Rate, Burst: a.Meter.Burst}},
	}
}

// remeter says that the picture's meters have changed. An ADD of a pod that has none of
// its own, in a namespace with pods here, does not look at them.
func (t *Table) remeter() { t.want, t.settled = nil, false }

// desiredMeters are those of the picture, by number.
func (t *Table) desiredMeters() map[uint32]of.Meter {
	if t.want != nil {
		return t.want
	}
	want := map[uint32]of.Meter{}
	for namespace := range t.fair.numbers {
		for _, m := range t.model.TenantMeters(t.tenantModel(namespace), t.fair.allowance(namespace)) {
			want[m.ID] = m
		}
	}
	for _, m := range t.model.Meters() {
		want[m.ID] = m
	}
	for _, a := range t.attached {
		if a.Meter.Rate > 0 {
			want[a.Port] = meter(a)
		}
	}
	t.want = want
	return want
}

// readMeters takes in what meters the switch has.
func (t *Table) readMeters(ctx context.Context) error {
	all, err := t.sw.Meters(ctx)
	if err != nil {
		return err
	}
	t.meters, t.settled = make(map[uint32]of.Meter, len(all)), false
	for _, m := range all {
		t.meters[m.ID] = m
	}
	return nil
}

// meterDifferences is how many meters of the switch are not as in the picture.
func (t *Table) meterDifferences() int {
	n, want := 0, t.desiredMeters()
	for id, m := range want {
		if have, ok := t.meters[id]; !ok || !have.Equal(m) {
			n++
		}
	}
	for id := range t.meters {
		if _, keep := want[id]; !keep {
			n++
		}
	}
	return n
}

// ensureMeters adds the meters that the picture's flows refer to, and changes in place
// those whose rate changed. t.sw is not nil.
func (t *Table) ensureMeters(ctx context.Context) error {
	if t.settled {
		return nil
	}
	if t.meters == nil {
		if err := t.readMeters(ctx); err != nil {
			return err
		}
	}
	for id, m := range t.desiredMeters() {
		have, there := t.meters[id]
		if there && have.Equal(m) {
			continue
		}
		set := t.sw.AddMeter
		if there {
			set = t.sw.ModifyMeter
		}
		if err := set(ctx, m); err != nil {
			t.meters = nil // somebody else was at them: they are read again
			if !there && pipeline.OfTenant(id) {
				// The next attempt is made without them: pods come first.
				t.fair.unmetered = err
				t.remeter()
			}
			return err
		}
		t.meters[id] = m
	}
	return nil
}

// pruneMeters deletes what no flow refers to any more. What cannot be deleted now is
// tried again with the next change: it is no reason to take back one that was made.
func (t *Table) pruneMeters(ctx context.Context) {
	if t.settled {
		return
	}
	want, all := t.desiredMeters(), true
	for id := range t.meters {
		if _, keep := want[id]; keep {
			continue
		}
		if t.sw.DeleteMeter(ctx, id) != nil {
			all = false
			continue
		}
		delete(t.meters, id)
	}
	t.settled = all
}

// checkMeter says what is wrong with the pod's meter in the switch.
func (t *Table) checkMeter(ctx context.Context, a desired.Attached) ([]string, error) {
	if a.Meter.Rate == 0 {
		return nil, nil
	}
	all, err := t.sw.Meters(ctx)
	if err != nil {
		return nil, err
	}
	want := meter(a)
	i := slices.IndexFunc(all, func(m of.Meter) bool { return m.ID == want.ID })
	switch {
	case i < 0:
		return []string{"meter is missing: " + want.String()}, nil
	case !all[i].Equal(want):
		return []string{fmt.Sprintf("meter differs: have %s, want %s", all[i], want)}, nil
	}
	return nil, nil
}

// SetPathMTUs makes m, by VTEP, what the paths to those peers carry of a pod's packet,
// bytes, that carry less than the pods' devices. What is larger comes to the agent
// (see [pipeline.ReadTooLarge]) instead of being lost on the way.
func (t *Table) SetPathMTUs(ctx context.Context, m map[netip.Addr]int) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if maps.Equal(t.pathMTUs, m) {
		return nil
	}
	t.pathMTUs = maps.Clone(m)
	if t.model == nil {
		return nil
	}
	_, err := t.refresh(ctx)
	return err
}

// withPathMTUs gives the model's peers what their paths carry.
func (t *Table) withPathMTUs(m *pipeline.Model) {
	for i := range m.Peers {
		m.Peers[i].PathMTU = uint16(t.pathMTUs[m.Peers[i].VTEP])
	}
}
