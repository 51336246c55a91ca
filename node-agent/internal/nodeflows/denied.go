package nodeflows

import (
	"context"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/flowstore"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
)

// denied is whether the agent is told of packets that policies deny, and why that cannot be done.
type denied struct {
	told      bool
	unmetered error
}

// TellDenied says that the agent is to be told of packets that policies deny. It is called before
// anything else.
func (t *Table) TellDenied() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.denied.told = true
}

// Denied is how many packets policies denied that the agent may have been told of, since the
// switch made their meters. It fails with [flowstore.ErrDisconnected], an error of the switch, or
// why the switch has no such meters.
func (t *Table) Denied(ctx context.Context) (packets uint64, err error) {
	t.mu.Lock()
	unmetered := t.denied.unmetered
	t.mu.Unlock()
	switch {
	case unmetered != nil:
		return 0, unmetered
	case !t.store.Connected():
		return 0, flowstore.ErrDisconnected
	}
	counters, err := t.store.MeterCounters(ctx)
	for _, c := range counters {
		if pipeline.OfDenied(c.ID) {
			packets += c.Packets
		}
	}
	return packets, err
}
