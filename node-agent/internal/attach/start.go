package attach

import (
	"context"
	"errors"
	"fmt"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/bridge"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/ipam"
	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
)

// Start reads back what is attached and makes the Attacher know its node. What
// lost its device is released: the kernel removes a veth with its sandbox, so
// that pod is gone (also after a reboot). Flows are told of the rest by the
// caller, who gets it back.
func (a *Attacher) Start(ctx context.Context, node Node, stateDir, bootID string) ([]desired.Attached, error) {
	ports, err := a.ports.Ports(node.Bridge)
	if err != nil {
		return nil, err
	}
	list := map[cniapi.Attachment]Attachment{}
	var leases []ipam.Lease
	for _, p := range ports {
		at, ours, err := fromExternalIDs(p.ExternalIDs, p.Ofport)
		if !ours {
			continue
		}
		exists, existsErr := a.kernel.Exists(p.Name)
		if existsErr != nil {
			return nil, existsErr
		}
		if exists && err == nil && !node.Subnet.Contains(at.Address) {
			return nil, fmt.Errorf("pod %s/%s has address %s, which is not in this node's subnet %s: put the node's record back, or drain the node", at.Namespace, at.Pod, at.Address, node.Subnet)
		}
		if !exists || err != nil {
			a.log.Info("a pod went while the agent was away", "sandbox", at.Netns, "tenant", at.Namespace, "pod", at.Pod, "address", at.Address, "error", err)
			if err := a.ports.DeletePort(ctx, node.Bridge, p.Name); err != nil {
				return nil, err
			}
			continue
		}
		if at.Port == 0 {
			at.Port = bridge.PodOfport(node.Subnet, at.Address)
		}
		list[at.Attachment] = at
		leases = append(leases, at.lease())
	}
	pool, err := ipam.Open(stateDir, node.Subnet, bootID, leases, ipam.WithLog(a.log))
	if err != nil {
		return nil, err
	}
	if err := a.fromLeases(node, pool, list); err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.node, a.pool, a.list = &node, pool, list
	var attached []desired.Attached
	for _, at := range list {
		attached = append(attached, at.attached())
	}
	return attached, nil
}

// fromLeases adds the attachments that only the pool remembers: the database of
// Open vSwitch was lost, or somebody deleted the port. Their ports are made anew
// by [Attacher.Repair].
func (a *Attacher) fromLeases(node Node, pool *ipam.Pool, list map[cniapi.Attachment]Attachment) error {
	for _, l := range pool.Leases() {
		at := fromLease(l)
		if _, known := list[at.Attachment]; known {
			continue
		}
		exists, err := a.kernel.Exists(at.HostIf())
		if err != nil {
			return err
		}
		if !exists || at.Netns == "" {
			pool.Release(at.Attachment)
			continue
		}
		at.Port = bridge.PodOfport(node.Subnet, at.Address)
		list[at.Attachment] = at
	}
	return nil
}

// Repair puts back ports that somebody else removed, and follows port numbers
// that Open vSwitch changed. It returns how many it mended.
func (a *Attacher) Repair(ctx context.Context) (int, error) {
	node, _, err := a.known()
	if err != nil {
		return 0, err
	}
	ports, err := a.ports.Ports(node.Bridge)
	if err != nil {
		return 0, err
	}
	have := make(map[string]ovs.Port, len(ports))
	for _, p := range ports {
		have[p.Name] = p
	}
	mended := 0
	var errs []error
	for _, at := range a.List() {
		p, there := have[at.HostIf()]
		if there && (p.Ofport == at.Port || p.Ofport == 0) {
			continue
		}
		ok, err := a.repair(ctx, node, at, there)
		if err != nil {
			errs = append(errs, fmt.Errorf("repair the port of %s/%s: %w", at.Namespace, at.Pod, err))
		} else if ok {
			mended++
		}
	}
	return mended, errors.Join(errs...)
}

func (a *Attacher) repair(ctx context.Context, node Node, at Attachment, there bool) (bool, error) {
	a.repairing.Lock()
	defer a.repairing.Unlock()
	if _, still := a.find(at.Attachment); !still {
		return false, nil // detached meanwhile
	}
	if !there {
		// Without its device the pod is gone; DEL or GC will say so.
		if exists, err := a.kernel.Exists(at.HostIf()); err != nil || !exists {
			return false, err
		}
		spec := ovs.PortSpec{Name: at.HostIf(), OfportRequest: bridge.PodOfport(node.Subnet, at.Address), ExternalIDs: at.externalIDs()}
		if err := a.ports.AddPort(ctx, node.Bridge, spec); err != nil {
			return false, err
		}
	}
	port, err := a.ports.WaitOfport(ctx, at.HostIf())
	if err != nil {
		return false, err
	}
	at.Port = port
	a.put(at)
	return true, a.flows.Attach(ctx, at.attached())
}
