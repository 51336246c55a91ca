package nodeflows

import (
	"context"
	"maps"
	"math/bits"
	"slices"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/flowstore"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
)

// leastConnections is the least that a selected pod may have of new connections a second, unless its namespace
// is held back: who asks for so few takes nothing from others.
const leastConnections = 50

// SetPolicies makes what policies say of pods, by port, in one bundle. Pods that are not named
// keep what was said of them; a port that no pod has is passed over. It fails with
// [flowstore.ErrNotReady], [flowstore.ErrDisconnected] or an error of the switch; the picture
// has it then, and the flows follow as soon as they can.
func (t *Table) SetPolicies(ctx context.Context, policies map[uint32]pipeline.PodPolicy) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var ports []uint32
	namespaces := map[string]bool{}
	for port, p := range policies {
		a, ok := t.attached[port]
		if !ok || a.Policy == p {
			continue
		}
		a.Policy = p
		t.attached[port] = a
		ports, namespaces[a.Namespace] = append(ports, port), true
	}
	switch {
	case t.model == nil:
		return flowstore.ErrNotReady
	case len(ports) == 0:
		return t.again(ctx)
	case t.stale:
		return t.bring(ctx)
	}
	_, err := t.store.Set(ctx, t.want(ports, slices.Collect(maps.Keys(namespaces))))
	t.failed = t.failed || err != nil
	if t.unmeter(err) != nil && t.stale { // the switch has no such meters: without them, at once
		return t.bring(ctx)
	}
	return err
}

// connectionsMetered reports whether new connections of a pod have a meter of its own.
func (t *Table) connectionsMetered(a desired.Attached) bool {
	f := &t.tenants.fair
	_, numbered := f.numbers[a.Namespace]
	return a.Policy.Selected() && numbered && !f.off && f.unmetered == nil
}

// fairMeters are the meters of a namespace, whose model is m, and those of its selected pods,
// which have what it may among them.
func (t *Table) fairMeters(m pipeline.Tenant, namespace string) []of.Meter {
	a := t.tenants.fair.allowance(namespace)
	meters := t.model.TenantMeters(m, a)
	var ports []uint32
	for port, pod := range t.attached {
		if pod.Namespace == namespace && t.connectionsMetered(pod) {
			ports = append(ports, port)
		}
	}
	// By the power of two that is not less than their number: else each pod that comes would
	// change the meters of all others, one message each.
	shares := uint32(1) << bits.Len(uint(max(len(ports), 1)-1))
	least := uint32(leastConnections)
	if _, held := t.tenants.fair.held[namespace]; held {
		least = 1 // of many pods that little would be more than the namespace may
	}
	each := pipeline.Allowance{Rate: max(a.Rate/shares, least), Burst: max(a.Burst/shares, least)}
	slices.Sort(ports)
	for _, port := range ports {
		meters = append(meters, pipeline.ConnectionsMeter(port, each))
	}
	return meters
}
