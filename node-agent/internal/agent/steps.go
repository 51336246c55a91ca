package agent

import (
	"context"
	"net/netip"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/mtu"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// step is one part of a pass. It makes something what it should be: it reads first, and
// changes only what differs, so it may run twice or after one that was interrupted. What
// it returns is why pods cannot be attached, and ends the pass; the next one begins anew.
type step struct {
	name string
	run  func(ctx context.Context, p *pass) error
}

// pass is what the steps of one pass find out for those that follow.
type pass struct {
	// full reads back all there is, also what nobody said had changed.
	full bool
	// me is the node's record.
	me topology.Node
	// moved is that the underlay had to be put right.
	moved bool
	// mtu is what pods are to have.
	mtu mtu.Values
	// source is the address that tunnels are bound to, not valid for none; ports are the
	// bridge's own.
	source netip.Addr
	ports  desired.Ports
	// refused is why Open vSwitch does not have a tunnel.
	refused error
	// unwell is why pods do not reach what they should although all of the agent's own
	// is as it should be.
	unwell error
	// waiting runs a function and returns when it has, see [pass.beside]; nil where nobody
	// has anything to do meanwhile.
	waiting func(f func())
}

// beside runs what takes long: who waits for the node or the switch to do or to tell
// something keeps no records from the flows. f must not touch the picture.
func (p *pass) beside(f func()) {
	if p.waiting == nil {
		f()
		return
	}
	p.waiting(f)
}

// steps are what a pass does, in the order in which it hangs together. What follows
// "the ways out of the node" is done also where these are closed: the network of pods
// that run is kept up.
func (r *rooms) steps() []step {
	host, flows, report := r.host, r.flows, r.report
	return []step{
		{"the container runtime's way to the agent", r.runtime.look}, // before what may fail: pods must go whatever the node lacks
		{"the ways to peers, read back", host.forget},
		{"the database of Open vSwitch", host.reachDatabase},
		{"what that may have lost", host.refill},
		{"the underlay", host.ensureUnderlay}, // before the record: the one of the address that the node has
		{"what the underlay's bridge forwards", host.ensureForwarding},
		{"the node's record", r.record.place},
		{"the share of the uplink", host.share},
		{"the UDP port of the tunnels", host.decideTunnels}, // before the MTU: it is less what they add
		{"the MTU that pods are to have", host.wantMTU},
		{"the firewall, before the tunnels move", host.guardMove},
		{"the ways to peers", host.route},
		{"the bridge", host.ensureBridge},
		{"tunnel packets taken", host.listen},
		{"the host's side", host.ensureHost},
		{"which pods policies select", r.policies.known},
		{"what is attached", host.start},
		{"what policies will come to", r.policies.expect},
		{"the MTU of pods", host.setMTU},
		{"the bridge's ports in the flows", flows.setPorts},
		{"the connection to the switch", flows.connect},
		{"room for packets", flows.makeRoom},
		{"the records in the flows", flows.followRecords},
		{"ports of pods", flows.repair},
		{"the flows in the switch", flows.resync},
		{"policies in the flows", r.policies.follow},
		{"a switch that waits for flows", flows.restored},
		{"what the firewall dropped", host.countDropped},
		{"ports that were blocked", flows.unblock},
		{"peers' hardware addresses", flows.warm},
		{"figures", report.observe},
		{"the ways out of the node", r.health.look},
		{"memory that is not needed any more", report.giveBack},
		{"ready, or why not", report.ready},
		{"the node's status", r.status.keep},
		{"services in the flows", r.services.follow},
		{"what a cluster left that the node was in", r.former.clear},
		{"the CNI configuration", report.configuration},
	}
}

// rooms are the owners of what a pass keeps up.
type rooms struct {
	record   *ownRecord
	host     *hostSide
	flows    *flowSide
	health   *health
	services *serviceFeed
	// former is nil in Kubernetes.
	former   *former
	policies *policySide
	report   *reporter
	status   *ownStatus
	runtime  *runtimeWay
}
