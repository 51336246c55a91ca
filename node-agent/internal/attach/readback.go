package attach

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/ipam"
	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
	"github.com/k8s-ovs/k8s-ovs/pkg/limits"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// trace is what a start finds of an attachment.
type trace struct {
	Attachment
	// leased is that it has a lease of this boot; port is the name of its port, empty where it has none.
	leased bool
	port   string
	// err is why it cannot be read.
	err error
}

// readBack reads what was attached, of leases of this boot and of the external_ids of ports.
//
// Where both tell of an attachment the lease wins: only the agent writes it, and a port may have been changed by
// whoever uses Open vSwitch, while the agent was away or long before. By its port the pod would be another tenant's, or
// have flows for another's address. The port has what a lease lacks: what an earlier release did not write down, the
// second address of a node that got a second subnet, and limits, of which the lease has those of ADD. A lease whose
// attachment is gone says nothing, as it has neither device nor sandbox; one that is leaving is no more attached,
// whatever its port says. Of what has no lease, as the file was lost or is of another boot, the port says all.
func (a *Attacher) readBack(node Node, ports []ovs.Port, leases []ipam.Lease) []trace {
	rows := make(map[string]ovs.Port, len(ports))
	for _, p := range ports {
		rows[p.Name] = p
	}
	var traces []trace
	leased := map[string]bool{}
	for _, l := range leases {
		t := trace{Attachment: fromLease(node, l), leased: true}
		name := t.HostIf()
		leased[name] = true
		if l.Leaving {
			continue
		}
		t.Port = 0
		if p, there := rows[name]; there {
			t.port, t.Port = name, p.Ofport
			a.complete(node, &t.Attachment, p)
		}
		traces = append(traces, t)
	}
	for _, p := range ports {
		at, ours, err := fromExternalIDs(p.ExternalIDs, p.Ofport)
		if !ours || leased[p.Name] {
			continue
		}
		if err == nil && at.HostIf() != p.Name {
			err = errors.New("its external_ids are those of another port")
		}
		if err == nil {
			at.Limits = a.limitsIn(p, at)
		}
		traces = append(traces, trace{Attachment: at, port: p.Name, err: err})
	}
	return traces
}

// complete adds to what the lease of at says what its port p says besides.
func (a *Attacher) complete(node Node, at *Attachment, p ovs.Port) {
	row, ours, err := fromExternalIDs(p.ExternalIDs, p.Ofport)
	if !ours || row.Attachment != at.Attachment {
		return // somebody took its names from it, or gave it another's
	}
	at.Netns, at.Network = cmp.Or(at.Netns, row.Netns), cmp.Or(at.Network, row.Network)
	at.Namespace, at.Pod = cmp.Or(at.Namespace, row.Namespace), cmp.Or(at.Pod, row.Pod)
	at.UIDs.Namespace, at.UIDs.Pod = cmp.Or(at.UIDs.Namespace, row.UIDs.Namespace), cmp.Or(at.UIDs.Pod, row.UIDs.Pod)
	if err == nil && len(at.Addresses) == 1 && len(row.Addresses) == 2 && row.Addresses[0] == at.Addresses[0] &&
		node.has(row.Addresses) && row.Addresses[1] == topology.Twin(node.Subnets[1], row.Addresses[0]) {
		at.Addresses = row.Addresses
	}
	at.Limits = a.limitsIn(p, *at)
}

// limitsIn are the limits that the port p of at says; where it cannot be read, those of at.
func (a *Attacher) limitsIn(p ovs.Port, at Attachment) limits.Limits {
	l, err := decodeLimits(p.ExternalIDs[keyLimits])
	if err != nil {
		a.log.Error("a pod's limits cannot be read: it gets those of its ADD", "sandbox", at.Netns, "tenant", at.Namespace, "pod", at.Pod, "error", err)
		return at.Limits
	}
	return l
}

// name gives the pods' devices on the node their names back that somebody changed while the agent was
// away: a pod whose device has another name would count as gone, and its address be another's. No
// device outlives its boot, and the path of a sandbox of an earlier one may lead to somebody else's by now.
func (a *Attacher) name(traces []trace, stateDir, bootID string) error {
	if ipam.OfOtherBoot(stateDir, bootID) {
		return nil
	}
	var wires []Wire
	for _, t := range traces {
		if t.err == nil {
			wires = append(wires, Wire{HostIf: t.HostIf(), Netns: t.Netns, IfName: t.IfName, MAC: t.MAC})
		}
	}
	named, unnamed, err := a.kernel.Name(wires)
	if len(named) > 0 {
		a.log.Warn("somebody had renamed the node's ends of pods' devices: put right", "devices", named)
	}
	for device, why := range unnamed {
		a.log.Warn("the node's end of a pod's device cannot have its name back", "device", device, "error", why)
	}
	return err
}

// living are the attachments that are still there, and their leases; the ports of others are deleted.
func (a *Attacher) living(ctx context.Context, node Node, traces []trace) (list map[cniapi.Attachment]Attachment, leases []ipam.Lease, err error) {
	list = map[cniapi.Attachment]Attachment{}
	holders := map[netip.Addr]Attachment{}
	for _, t := range traces {
		stays, err := a.lives(node, t)
		if err != nil {
			return nil, nil, err
		}
		if !stays && t.port != "" {
			a.log.Info("a pod went while the agent was away", "sandbox", t.Netns, "tenant", t.Namespace, "pod", t.Pod, "addresses", t.Addresses, "error", t.err)
			if err := a.ports.DeletePort(ctx, node.Bridge, t.port); err != nil {
				return nil, nil, err
			}
		}
		if !stays {
			continue
		}
		if holder, taken := holders[t.Addresses[0]]; taken {
			a.log.Error("a pod has another one's address, and gets no network: delete it, so that it is made anew",
				"tenant", t.Namespace, "pod", t.Pod, "addresses", t.Addresses, "sandbox", t.Netns, "holder", holder.Namespace+"/"+holder.Pod)
			continue
		}
		holders[t.Addresses[0]], list[t.Attachment.Attachment] = t.Attachment, t.Attachment
		leases = append(leases, t.lease())
	}
	return list, leases, nil
}

// lives reports whether an attachment is there: its device is, or is to be made anew, as somebody deleted it, or moved
// it away, while the agent was away. That is so where its sandbox stands; whose ADD was cut off
// before its device was made gets one as well, until its runtime calls DEL. One without a port was detached while the
// node was not set up.
func (a *Attacher) lives(node Node, t trace) (bool, error) {
	exists, err := a.kernel.Exists(cmp.Or(t.port, t.HostIf()))
	if err != nil || t.err != nil {
		return false, err
	}
	if exists && !node.has(t.Addresses) {
		return false, fmt.Errorf("pod %s/%s has %v, which is not in this node's subnets %v: put the node's record back, or drain the node", t.Namespace, t.Pod, t.Addresses, node.Subnets)
	}
	if exists {
		return t.port != "" || t.Netns != "", nil
	}
	if !t.leased || t.port == "" || !t.lasting() || !node.has(t.Addresses) {
		return false, nil
	}
	stands, err := a.kernel.Stands(t.Netns)
	if stands {
		a.log.Warn("a pod's device went while the agent was away, and its sandbox stands: it gets another", "tenant", t.Namespace, "pod", t.Pod, "addresses", t.Addresses, "sandbox", t.Netns)
	}
	return stands, err
}

// lasting reports whether the path of the sandbox leads to no other one as long as the machine runs. That of a process
// does when its number is another's, and outside Kubernetes, where pods have no UID, somebody may use a name again.
func (t trace) lasting() bool {
	return t.Netns != "" && !strings.HasPrefix(t.Netns, "/proc/") && t.UIDs.Pod != ""
}

// settle gives back the leases of what is not in the list, and takes into it what only they say. What was detached
// before, and is not gone yet, it returns.
func settle(node Node, pool *ipam.Pool, list map[cniapi.Attachment]Attachment) (left []Attachment) {
	for _, l := range pool.Leases() {
		at, listed := list[l.Attachment()]
		switch {
		case l.Leaving:
			left = append(left, fromLease(node, l))
		case !listed:
			pool.Release(l.Attachment())
		default:
			at.MAC = net.HardwareAddr(l.MAC)
			at.UIDs = UIDs{Namespace: l.NamespaceUID, Pod: l.PodUID}
			list[l.Attachment()] = at
		}
	}
	return left
}
