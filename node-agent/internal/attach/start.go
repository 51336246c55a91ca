package attach

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/ipam"
	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
)

// Start reads back what is attached and makes the Attacher know its node. What
// lost its device with its sandbox is released: that pod is gone (also after a
// reboot). Flows are told of the rest by the caller, who gets it back.
func (a *Attacher) Start(ctx context.Context, node Node, stateDir, bootID string) ([]desired.Attached, error) {
	a.bare.starting.Lock()
	defer a.bare.starting.Unlock()
	ports, err := a.ports.Ports(node.Bridge)
	if err != nil {
		return nil, err
	}
	traces := a.readBack(node, ports, ipam.Stored(stateDir, node.Subnets, bootID))
	if err := a.name(traces, stateDir, bootID); err != nil {
		return nil, err
	}
	list, leases, err := a.living(ctx, node, traces)
	if err != nil {
		return nil, err
	}
	pool, err := ipam.Open(stateDir, node.Subnets, bootID, leases, ipam.WithLog(a.log), ipam.WithReuse(a.policies.Reusable))
	if err != nil {
		return nil, err
	}
	left := settle(node, pool, list)
	if err := a.sweep(slices.Collect(maps.Values(list))); err != nil {
		return nil, err
	}
	number(node, list)
	a.policies.Load(slices.Collect(maps.Values(list)))
	var attached []desired.Attached
	for key, at := range list {
		at.told = a.attached(node, at)
		list[key] = at
		if at.Port != 0 {
			attached = append(attached, at.told)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.node, a.pool, a.list, a.examined = &node, pool, list, false
	for _, at := range left {
		a.leaving.put(at)
	}
	return attached, nil
}

// number gives pods whose ports have no number, as ovs-vswitchd is away or the port is to
// be made anew, the one that their ports ask for: so their flows stay meanwhile. One
// that another pod has by now is not theirs: they have none until Open vSwitch gives it.
func number(node Node, list map[cniapi.Attachment]Attachment) {
	taken := map[uint32]bool{}
	for _, at := range list {
		taken[at.Port] = true
	}
	for key, at := range list {
		if wants := at.wants(node); at.Port == 0 && !taken[wants] {
			at.Port, taken[wants] = wants, true
			list[key] = at
		}
	}
}

// Writable is nil when it can be written down who has which address, as it must be before the next pod comes; else an
// [ipam.StorageError]. Pods that are attached, or go, do not need it.
func (a *Attacher) Writable() error {
	_, pool, err := a.known()
	if err != nil {
		return err
	}
	return pool.Writable()
}

// Repair puts back ports that somebody else removed, and their QoS, and follows
// port numbers that Open vSwitch changed. A full one also puts back the limits of
// pods. It returns how many pods it mended.
func (a *Attacher) Repair(ctx context.Context, full bool) (int, error) {
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
	var wrong, limited []cniapi.Attachment
	var bare []string
	var changed []ovs.PortSpec
	for _, at := range a.List() {
		p, there := have[at.HostIf()]
		if !there || p.Ofport != at.Port && p.Ofport != 0 {
			wrong = append(wrong, at.Attachment)
		}
		if there && at.changed(node, p) {
			changed = append(changed, at.mending(node))
		}
		if there && p.ExternalIDs[keyLimits] != encodeLimits(at.Limits) {
			limited = append(limited, at.Attachment)
		}
		if there && (p.QoS == nil || p.QoS.Type != portQoS) {
			bare = append(bare, p.Name)
		}
	}
	var mended atomic.Int32
	// A port of another type has another number until it is mended.
	mendErr := a.mendPorts(ctx, node, changed)
	if mendErr == nil {
		mended.Add(int32(len(changed)))
	}
	repairErr := a.each(ctx, wrong, func(ctx context.Context, node Node, at Attachment) error {
		ok, err := a.repair(ctx, node, at, have)
		if ok {
			mended.Add(1)
		}
		return err
	})
	shared, shareErr := a.ports.ShareQoS(ctx, node.Bridge, portQoS, bare)
	if shared {
		mended.Add(int32(len(bare)))
	}
	limitsErr := a.each(ctx, limited, func(ctx context.Context, node Node, at Attachment) error {
		ok, err := a.mendLimits(ctx, node, at)
		if ok {
			mended.Add(1)
		}
		return err
	})
	if err := errors.Join(mendErr, repairErr, shareErr, limitsErr); err != nil || !full {
		return int(mended.Load()), err
	}
	wires, err := a.mendWires(ctx)
	again, againErr := a.plugAgain(ctx, node)
	did := int(mended.Load()) + wires + again
	if err := errors.Join(err, againErr, a.collect(ctx, node, ports)); err != nil {
		return did, err
	}
	return did + a.reshape(ctx), nil
}

// Refill puts back ports that the database lost, and does not wait for their numbers, which are those that they had.
func (a *Attacher) Refill(ctx context.Context) error {
	node, _, err := a.known()
	if err != nil {
		return err
	}
	ports, err := a.ports.Ports(node.Bridge)
	if err != nil {
		return err
	}
	have := make(map[string]bool, len(ports))
	for _, p := range ports {
		have[p.Name] = true
	}
	var lost []cniapi.Attachment
	for _, at := range a.List() {
		if !have[at.HostIf()] {
			lost = append(lost, at.Attachment)
		}
	}
	return a.each(ctx, lost, func(ctx context.Context, node Node, at Attachment) error {
		if exists, err := a.kernel.Exists(at.HostIf()); err != nil || !exists {
			return err // without its device the pod is gone; DEL or GC will say so
		}
		return a.ports.AddPort(ctx, node.Bridge, at.port(node))
	})
}

// mendWires puts back what somebody changed of the node's ends of pods' wires, and makes
// those anew that somebody deleted. The pods' own ends are theirs.
func (a *Attacher) mendWires(ctx context.Context) (int, error) {
	a.mu.Lock()
	var wires []Wire
	keys := map[string]cniapi.Attachment{}
	for key, at := range a.list {
		w := a.wire(*a.node, at)
		if at.mtu != a.node.MTU {
			w.MTU = 0 // it did not take the node's, and keeps the one that it has
		}
		wires = append(wires, w)
		keys[w.HostIf] = key
	}
	a.mu.Unlock()
	mended, gone, failed, err := a.kernel.Mend(wires)
	if len(mended) > 0 {
		a.log.Warn("somebody had changed the node's ends of pods' devices: put right", "devices", mended)
	}
	var lost, told []cniapi.Attachment
	for _, name := range gone {
		lost = append(lost, keys[name])
	}
	for _, name := range append(slices.Collect(maps.Keys(failed)), mended...) {
		told = append(told, keys[name])
	}
	tellErr := a.each(ctx, told, func(_ context.Context, _ Node, at Attachment) error {
		if why := failed[at.HostIf()]; why != nil {
			a.complain(at, why)
			return nil
		}
		at.trouble.port.until = time.Time{} // what Open vSwitch refused it may take now
		a.put(at)
		return nil
	})
	var remade atomic.Int32
	remakeErr := a.each(ctx, lost, func(ctx context.Context, node Node, at Attachment) error {
		did, err := a.remake(ctx, node, at)
		if did {
			remade.Add(1)
		}
		return err
	})
	return len(mended) + int(remade.Load()), errors.Join(err, tellErr, remakeErr)
}

// lostAfter is how many looks, of which there is one every 5 s, find neither a pod's device nor
// its sandbox before it is collected. A runtime that is about to call DEL has done so by then.
const lostAfter = 6

// miss notes that the sandbox of at is gone, and its device with it. Not every runtime calls GC,
// and one that lost its memory does not call DEL: the pod goes by itself then.
func (a *Attacher) miss(ctx context.Context, at Attachment) error {
	if at.missed++; at.missed < lostAfter {
		a.put(at)
		return nil
	}
	_, pool, err := a.known()
	if err == nil {
		err = a.depart(ctx, pool, at)
	}
	if err != nil {
		return fmt.Errorf("collect %s: %w", at.Attachment, err)
	}
	a.log.Warn("collected a pod whose sandbox is gone: its runtime has called neither DEL nor GC", "tenant", at.Namespace, "pod", at.Pod, "addresses", at.Addresses, "sandbox", at.Netns)
	return nil
}

// remake makes the pair of a pod anew, whose device somebody deleted. Where the sandbox is
// gone as well the pod is, and DEL or GC will say so, or else [Attacher.miss].
func (a *Attacher) remake(ctx context.Context, node Node, at Attachment) (bool, error) {
	if exists, err := a.kernel.Exists(at.HostIf()); err != nil || exists {
		return false, err
	}
	t := &at.trouble
	if !t.pair.over() {
		return false, nil
	}
	if time.Since(t.made) < soonGone {
		t.pair.pause()
		t.made = time.Time{}
		a.complain(at, errors.New("its device is deleted as soon as it is made"))
		return false, nil
	}
	w := a.wire(node, at)
	t.made = time.Now()
	err := a.kernel.CreateVeth(w)
	if errors.Is(err, link.ErrSandboxLinkExists) {
		taken := err
		var cut bool
		if cut, err = a.kernel.Cut(w); cut {
			a.log.Warn("somebody had moved the node's end of a pod's device into another network namespace: both ends are deleted there", "tenant", at.Namespace, "pod", at.Pod, "device", w.HostIf)
			err = a.kernel.CreateVeth(w)
		} else {
			err = errors.Join(taken, err)
		}
	}
	if errors.Is(err, link.ErrNoSandbox) {
		t.made = time.Time{}
		return false, a.miss(ctx, at)
	}
	at.missed = 0
	if err != nil {
		t.made = time.Time{}
		a.complain(at, fmt.Errorf("its device is gone, and another is not to be made: %w", err))
		return false, nil
	}
	if _, err := a.configure(w); err != nil {
		a.complain(at, fmt.Errorf("its device was made anew, and cannot be set up: %w", errors.Join(err, a.kernel.Delete(w.HostIf))))
		return false, nil
	}
	a.log.Warn("somebody had deleted a pod's device: made anew", "tenant", at.Namespace, "pod", at.Pod, "addresses", at.Addresses, "sandbox", at.Netns)
	// The userspace datapath goes on with the device that is gone until its port is
	// another one.
	return a.replug(ctx, node, at)
}

// collect removes ports of pods that were detached while the database did not answer:
// nobody lists them, nobody is about to, and their devices are gone.
func (a *Attacher) collect(ctx context.Context, node Node, ports []ovs.Port) error {
	for _, p := range ports {
		at, ours, _ := fromExternalIDs(p.ExternalIDs, p.Ofport)
		if !ours || a.expected(at.Attachment) {
			continue
		}
		if exists, err := a.kernel.Exists(p.Name); err != nil || exists {
			if err != nil {
				return err
			}
			continue
		}
		a.log.Info("removing the port of a pod that is gone", "tenant", at.Namespace, "pod", at.Pod, "addresses", at.Addresses, "sandbox", at.Netns)
		if err := a.ports.DeletePort(ctx, node.Bridge, p.Name); err != nil {
			return err
		}
	}
	return nil
}

// expected reports whether the attachment is in the list or on its way there, or whether
// its port is about to be removed.
func (a *Attacher) expected(key cniapi.Attachment) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, listed := a.list[key]
	_, arriving := a.arriving[key]
	return listed || arriving || a.leaving.has(key)
}

// repair mends the port of at and reports whether there was something to do.
func (a *Attacher) repair(ctx context.Context, node Node, at Attachment, have map[string]ovs.Port) (bool, error) {
	if _, there := have[at.HostIf()]; !there {
		// Without its device the pod is gone; DEL or GC will say so.
		if exists, err := a.kernel.Exists(at.HostIf()); err != nil || !exists {
			return false, err
		}
		if err := a.ports.AddPort(ctx, node.Bridge, at.port(node)); err != nil {
			return false, fmt.Errorf("putting its port back: %w", err)
		}
	}
	port, err := a.awaitNumber(ctx, node, at)
	var refused *ovs.PortError
	if errors.As(err, &refused) { // as when the pod deletes its device meanwhile
		at.trouble.port.pause()
		a.complain(at, err)
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, a.renumber(ctx, node, at, port)
}

// renumber makes port the number of at. Where the flows do not get there at is listed at the
// number that they have, so that the next repair finds it.
func (a *Attacher) renumber(ctx context.Context, node Node, at Attachment, port uint32) error {
	at.Port, at.trouble.told, at.trouble.port = port, backoff.Trouble{}, retry{}
	if err := a.tell(ctx, &at, a.attached(node, at)); err != nil {
		return err
	}
	a.put(at)
	return nil
}
