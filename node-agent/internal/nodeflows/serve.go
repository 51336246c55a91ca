package nodeflows

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/flowstore"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
)

// View is what other flows of the bridge may depend on: the node's model, without tenants
// and pods, and the slots of the namespaces that serve. It never changes; there is another
// one when something has.
type View struct {
	pipeline.Model
	nodes map[netip.Addr]topology.Node
	slots map[string]uint32
}

// HasNode reports whether a node record has the address.
func (v View) HasNode(a netip.Addr) bool {
	_, ok := v.nodes[a]
	return ok
}

// Slot is the number of a namespace that serves.
func (v View) Slot(namespace string) (slot uint32, ok bool) {
	slot, ok = v.slots[namespace]
	return slot, ok
}

// View is the newest one; false as long as there is none.
func (t *Table) View() (View, bool) {
	if v := t.view.Load(); v != nil {
		return *v, true
	}
	return View{}, false
}

// publish makes a new view.
func (t *Table) publish() {
	v := View{Model: *t.model, nodes: t.records.Nodes, slots: make(map[string]uint32, len(t.tenants.serving))}
	for n := range t.tenants.serving {
		v.slots[n] = t.tenants.slots[n]
	}
	t.view.Store(&v)
}

// SetServiceProxy says who translates the addresses of services. It is called
// before anything else.
func (t *Table) SetServiceProxy(p pipeline.ServiceProxy) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.proxy = p
}

// SetUDPPorts makes ports the UDP ports of the tunnels.
func (t *Table) SetUDPPorts(ctx context.Context, ports []tunnel.Port) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if slices.Equal(t.udp, ports) {
		return t.again(ctx)
	}
	t.udp = slices.Clone(ports)
	err := t.refresh(ctx)
	if errors.Is(err, flowstore.ErrNotReady) {
		return nil
	}
	return err
}

// Serve makes namespaces those that have services, with their slots and the flows
// that say who may use them, in one bundle. Where that fails they are those
// from before.
func (t *Table) Serve(ctx context.Context, namespaces map[string]bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := &t.tenants
	if maps.Equal(n.serving, namespaces) {
		return nil
	}
	if t.model == nil {
		return flowstore.ErrNotReady
	}
	var changed []string
	for name := range n.serving {
		if !namespaces[name] {
			changed = append(changed, name)
		}
	}
	for name := range namespaces {
		if !n.serving[name] {
			changed = append(changed, name)
		}
	}
	slices.Sort(changed) // so that slots are the same after every start
	was, restore := n.serving, n.remember(changed...)
	n.serve(namespaces, changed)
	err := t.try(ctx, nil, changed)
	if err != nil {
		n.serve(was, changed)
		restore()
	}
	n.recalled = n.recalled || err == nil
	t.publish()
	return err
}

// serve takes namespaces as those that have services; changed are those that now
// have, or no longer have.
func (n *tenants) serve(namespaces map[string]bool, changed []string) {
	n.serving = maps.Clone(namespaces)
	for _, name := range changed {
		if n.serving[name] {
			n.slots.Assign(name)
		} else {
			n.release(name)
		}
	}
}

// release takes the slot of a namespace that has neither pods nor services.
func (n *tenants) release(namespace string) {
	if n.members[namespace] == 0 && !n.serving[namespace] {
		delete(n.slots, namespace)
	}
}

// remember keeps the slots and meters of namespaces, for a change that may be taken back:
// the numbers that they would be given anew may be others, and the flows have these.
func (n *tenants) remember(namespaces ...string) (restore func()) {
	slots, meters := map[string]uint32{}, map[string]uint32{}
	for _, name := range namespaces {
		if slot, ok := n.slots[name]; ok {
			slots[name] = slot
		}
		if number, ok := n.fair.numbers[name]; ok {
			meters[name] = number
		}
	}
	return func() {
		for _, name := range namespaces {
			delete(n.slots, name)
			n.fair.release(name)
		}
		maps.Copy(n.slots, slots)
		for name, number := range meters {
			n.fair.numbers[name], n.fair.taken[number] = number, true
		}
	}
}

// recall takes the namespaces that have services as they were when the switch was
// written, for an agent that starts: who may use them stays as it is until it is told
// of services, which may take as long as the API server is away. What the records say
// of tenants is followed all the same.
func (t *Table) recall(found []of.FlowStats) {
	n := &t.tenants
	n.recalled = true
	if t.proxy == pipeline.NoServices {
		return
	}
	served := map[uint32]bool{}
	for _, s := range found {
		if c := pipeline.DecodeCookie(s.Cookie); c.Kind == pipeline.KindTenant && s.Table == pipeline.TableServiceTenant {
			served[c.Object] = true
		}
	}
	for namespace := range t.records.Namespaces {
		slot, ok := n.slots[namespace]
		if !ok {
			slot = desired.Slots{}.Assign(namespace)
		}
		if served[slot] {
			n.serving[namespace] = true
			n.slots.Assign(namespace)
		}
	}
	t.publish()
}
