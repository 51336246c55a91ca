package nodeflows

import (
	"context"
	"sync"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
)

// counted is what was counted when it was last looked at: the packets of flows that drop,
// by key, and those too large for their path, by meter. It has a lock of its own, since who
// counts waits for the switch.
type counted struct {
	mu     sync.Mutex
	flows  map[string]uint64
	meters map[uint32]uint64
}

// countDrops adds what the drop flows counted since they were last read. A
// flow that was replaced starts again from zero.
func (t *Table) countDrops(stats []of.FlowStats) {
	seen := make(map[string]uint64, len(t.drops.flows))
	for _, s := range stats {
		reason := pipeline.DecodeCookie(s.Cookie).Reason
		if reason == 0 {
			continue
		}
		key := s.Key()
		seen[key] = s.Packets
		n := s.Packets
		if last := t.drops.flows[key]; last <= n {
			n -= last
		}
		if n > 0 {
			t.observer.Dropped(reason, n)
		}
	}
	t.drops.flows = seen
}

// MeterDrops is how many packets of each metered pod, by its port, its meter has dropped
// since it was made or, in userspace, changed. It fails with [flowstore.ErrDisconnected] or an error
// of the switch.
func (t *Table) MeterDrops(ctx context.Context) (map[uint32]uint64, error) {
	t.mu.Lock()
	drops, metered := map[uint32]uint64{}, map[uint32]bool{}
	for port, a := range t.attached {
		if a.Meter.Rate > 0 {
			metered[port] = true
		}
	}
	t.mu.Unlock()
	if len(metered) == 0 {
		return drops, nil
	}
	counters, err := t.store.MeterCounters(ctx)
	if err != nil {
		return nil, err
	}
	for _, c := range counters {
		if metered[c.ID] { // the number of a pod's meter is its port's
			drops[c.ID] = c.Dropped
		}
	}
	return drops, nil
}

// countTooLarge adds the packets that were too large for their path since they were last
// counted. Their flows' own counts are of no use: Open vSwitch adds to them also those that
// check_pkt_larger found small enough.
func (t *Table) countTooLarge(ctx context.Context) error {
	counters, err := t.store.MeterCounters(ctx)
	if err != nil {
		return err
	}
	for _, c := range counters {
		if !pipeline.CountsTooLarge(c.ID) {
			continue
		}
		n := c.Packets
		if last := t.drops.meters[c.ID]; last <= n {
			n -= last
		}
		if n > 0 {
			t.observer.Dropped(pipeline.TooLarge, n)
		}
		t.drops.meters[c.ID] = c.Packets
	}
	return nil
}
