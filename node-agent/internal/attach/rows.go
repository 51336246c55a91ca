package attach

import (
	"context"
	"slices"

	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
)

// mending is what a port of the pod that is there is to be: also without what nobody asked for. Its limits are for
// [Attacher.mendLimits].
func (a Attachment) mending(node Node) ovs.PortSpec {
	spec := a.port(node)
	spec.Plain = true
	delete(spec.ExternalIDs, keyLimits)
	for _, name := range a.names() {
		spec.ExternalIDs[name[0]] = name[1]
	}
	return spec
}

// changed reports whether somebody changed the row of the pod's port: limits it, made it a port of another type, as
// which Open vSwitch takes it at the same number, has Open vSwitch set its MTU, which is the agent's to set, or changed
// its names, by which a start without leases knows it. Of the Namespace's UID the lease may know better.
func (a Attachment) changed(node Node, p ovs.Port) bool {
	if want := a.wants(node); want != 0 && p.OfportRequest != want {
		return true // at the next start of ovs-vswitchd another pod may have its number
	}
	if p.Policed || p.Type != "" || p.MTURequest != 0 || len(p.Options) > 0 {
		return true
	}
	for _, name := range a.names() {
		if p.ExternalIDs[name[0]] != name[1] {
			return true
		}
	}
	return false
}

// mendPorts puts right ports whose rows somebody changed.
func (a *Attacher) mendPorts(ctx context.Context, node Node, changed []ovs.PortSpec) error {
	if len(changed) == 0 {
		return nil
	}
	names := make([]string, len(changed))
	for i, spec := range changed {
		names[i] = spec.Name
	}
	a.log.Warn("somebody had changed pods' ports: putting them right", "ports", names)
	return a.ports.MendPorts(ctx, node.Bridge, changed)
}

// mendLimits writes the pod's limits down again where its port has others, which the next start would go by. It
// is the pod's turn: whoever changes limits writes them there before they are known.
func (a *Attacher) mendLimits(ctx context.Context, node Node, at Attachment) (bool, error) {
	ports, err := a.ports.Ports(node.Bridge)
	if err != nil {
		return false, err
	}
	want := encodeLimits(at.Limits)
	i := slices.IndexFunc(ports, func(p ovs.Port) bool { return p.Name == at.HostIf() })
	if i < 0 || ports[i].ExternalIDs[keyLimits] == want {
		return false, nil
	}
	a.log.Warn("somebody had changed the limits in a pod's port: written down again", "tenant", at.Namespace, "pod", at.Pod, "port", at.HostIf())
	return true, a.ports.SetPortExternalIDs(ctx, at.HostIf(), map[string]string{keyLimits: want})
}
