package flowtable

import (
	"context"
	"maps"
	"net/netip"
	"slices"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
)

// SetServiceProxy says who translates the addresses of services. It is called
// before anything else.
func (t *Table) SetServiceProxy(p pipeline.ServiceProxy) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.proxy = p
}

// Model is what the flows follow from, without tenants and pods; false as long as
// there is none.
func (t *Table) Model() (pipeline.Model, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.model == nil {
		return pipeline.Model{}, false
	}
	return *t.model, true
}

// Slot is the number of a namespace that has pods here or serves.
func (t *Table) Slot(namespace string) (slot uint32, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	slot, ok = t.slots[namespace]
	return slot, ok
}

// HasNode reports whether a node record has the address.
func (t *Table) HasNode(a netip.Addr) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.records == nil {
		return false
	}
	_, ok := t.records.Nodes[a]
	return ok
}

// Serve makes namespaces those that have services, with their slots and the flows
// that say who may use them, in one bundle. Where the commit fails they are those
// from before.
func (t *Table) Serve(ctx context.Context, namespaces map[string]bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if maps.Equal(t.serving, namespaces) {
		return nil
	}
	if t.model == nil {
		return ErrNotReady
	}
	t.recalled = true
	var changed []string
	for n := range t.serving {
		if !namespaces[n] {
			changed = append(changed, n)
		}
	}
	for n := range namespaces {
		if !t.serving[n] {
			changed = append(changed, n)
		}
	}
	slices.Sort(changed) // so that slots are the same after every start
	was := t.serving
	before := byKey(t.flowsOf(changed))
	t.serve(namespaces, changed)
	err := t.commitPart(ctx, before, byKey(t.flowsOf(changed)))
	if err != nil {
		t.serve(was, changed)
	}
	return err
}

// serve takes namespaces as those that have services; changed are those that now
// have, or no longer have.
func (t *Table) serve(namespaces map[string]bool, changed []string) {
	t.serving = maps.Clone(namespaces)
	for _, n := range changed {
		if t.serving[n] {
			t.slots.Assign(n)
		} else {
			t.release(n)
		}
	}
}

// recall takes the namespaces that have services as they were when the switch was
// written, for an agent that starts: who may use them stays as it is until it is told
// of services, which may take as long as the API server is away. What the records say
// of tenants is followed all the same.
func (t *Table) recall(stats []of.FlowStats) {
	if t.recalled || t.proxy == pipeline.NoServices {
		return
	}
	t.recalled = true
	served := map[uint32]bool{}
	for _, s := range stats {
		if c := pipeline.DecodeCookie(s.Cookie); c.Kind == pipeline.KindTenant && s.Table == pipeline.TableServiceTenant {
			served[c.Object] = true
		}
	}
	for namespace := range t.records.Namespaces {
		slot, ok := t.slots[namespace]
		if !ok {
			slot = desired.Slots{}.Assign(namespace)
		}
		if served[slot] {
			t.serving[namespace] = true
			t.slots.Assign(namespace)
		}
	}
}

// release takes the slot of a namespace that has neither pods nor services.
func (t *Table) release(namespace string) {
	if t.members[namespace] == 0 && !t.serving[namespace] {
		delete(t.slots, namespace)
	}
}

// flowsOf are the flows of those of the namespaces that have a slot.
func (t *Table) flowsOf(namespaces []string) []of.Flow {
	var flows []of.Flow
	for _, n := range namespaces {
		if _, ok := t.slots[n]; ok {
			flows = append(flows, t.tenant(n)...)
		}
	}
	return flows
}

// tenant are the flows of a namespace that has a slot.
func (t *Table) tenant(namespace string) []of.Flow {
	return t.model.Tenant(t.tenantModel(namespace))
}

func (t *Table) tenantModel(namespace string) pipeline.Tenant {
	m := desired.Tenant(*t.records, t.slots, namespace)
	m.Serves = t.serving[namespace]
	m.Meters = t.fair.meters(namespace)
	return m
}
