package attach

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/flowstore"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/ipam"
	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
)

// Del detaches. What is gone already is no error. When it returns the pod is off the
// network: its flows are gone, or, while the switch does not answer, its devices. Its port, its devices and its address go a moment later,
// with those of others that go at the same time ([Attacher.Run]); until then its lease
// says that this is to be done, whoever is killed. A second DEL does it at once.
func (a *Attacher) Del(ctx context.Context, req cniapi.Request) error {
	key := req.Attachment()
	end, err := a.turns.take(ctx, key)
	if err != nil {
		return err
	}
	defer end()
	defer a.leaving.begin()()
	release := a.bare.Hold()
	node, pool, err := a.known()
	if err != nil {
		defer release()
		return a.bare.Del(ctx, key)
	}
	release()
	if a.leaving.has(key) {
		if err := a.down(ctx).of(key); err != nil {
			return fmt.Errorf("detach %s: %w", key, err)
		}
		return nil
	}
	at, ok := a.find(key)
	if lease, leased := pool.Lookup(key); !ok && leased {
		at = fromLease(node, lease)
	} else if !ok {
		// Nothing is known of it: a device may still be there.
		at = Attachment{Attachment: key}
	}
	if err := a.depart(ctx, pool, at); err != nil {
		return fmt.Errorf("detach %s: %w", key, err)
	}
	if ok {
		a.log.Debug("detached", "tenant", at.Namespace, "pod", at.Pod, "addresses", at.Addresses, "sandbox", at.Netns)
	}
	return nil
}

// depart takes at off the network, and leaves the rest to [Attacher.Run]. Where that
// cannot be written down nothing is left.
func (a *Attacher) depart(ctx context.Context, pool *ipam.Pool, at Attachment) error {
	if _, leased := pool.Lookup(at.Attachment); !leased {
		return a.disconnect(ctx, pool, at)
	}
	silent, err := a.silence(ctx, at)
	if err != nil {
		return err
	}
	if err := a.observe(DelMark, func() error { return pool.Leave(at.Attachment) }); err != nil {
		a.log.Warn("that a pod is leaving cannot be written down: all of it is removed at once", "sandbox", at.Netns, "error", err)
		return a.disconnect(ctx, pool, at)
	}
	a.leaving.put(at)
	a.remove(at.Attachment)
	a.policies.Leave(at)
	if silent {
		return nil
	}
	return a.down(ctx).of(at.Attachment)
}

// silence removes the flows of at: nothing reaches it any more, nor it anything. It is not
// silent where the switch does not answer: what the datapath has cached goes on until the
// devices are gone.
func (a *Attacher) silence(ctx context.Context, at Attachment) (silent bool, err error) {
	if len(at.Addresses) == 0 {
		return true, nil
	}
	// What its flows were made for, should its port have got another number since.
	port := cmp.Or(at.told.Port, at.Port)
	err = a.observe(DelFlows, func() error { return a.flows.Detach(ctx, port, at.MAC) })
	if errors.Is(err, flowstore.ErrDisconnected) || errors.Is(err, flowstore.ErrNotReady) {
		return false, nil
	}
	return err == nil, err
}

// disconnect removes what there is of at, all of it: flows, port, devices, lease.
func (a *Attacher) disconnect(ctx context.Context, pool *ipam.Pool, at Attachment) error {
	if _, err := a.silence(ctx, at); err != nil {
		return err
	}
	err := a.observe(DelRest, func() error { return a.bare.disconnect(ctx, at) })
	if err != nil {
		return err
	}
	a.policies.Leave(at)
	if err := a.policies.Forget(ctx, at.Addresses...); err != nil {
		return err
	}
	pool.Release(at.Attachment)
	a.remove(at.Attachment)
	return nil
}

// GC detaches everything of the network that the runtime no longer lists.
func (a *Attacher) GC(ctx context.Context, req cniapi.Request) error {
	spared, err := req.Spared()
	if err != nil {
		return err
	}
	release := a.bare.Hold()
	node, pool, err := a.known()
	if err != nil {
		defer release()
		return a.bare.GC(ctx, req)
	}
	release()
	var errs []error
	drop := func(at Attachment) {
		if spared[at.Attachment] || at.Network != req.NetworkName {
			return
		}
		end, err := a.turns.take(ctx, at.Attachment)
		if err != nil {
			errs = append(errs, err)
			return
		}
		defer end()
		if a.leaving.has(at.Attachment) {
			return
		}
		if err := a.depart(ctx, pool, at); err != nil {
			errs = append(errs, fmt.Errorf("collect %s: %w", at.Attachment, err))
			return
		}
		a.log.Info("collected: the runtime no longer lists it", "tenant", at.Namespace, "pod", at.Pod, "addresses", at.Addresses)
	}
	for _, at := range a.List() {
		drop(at)
	}
	for _, lease := range pool.Leases() {
		if _, attached := a.find(lease.Attachment()); !attached {
			drop(fromLease(node, lease))
		}
	}
	return errors.Join(append(errs, a.downOf(ctx, req.NetworkName), a.sweep(a.List()))...)
}

// downOf takes down all that are leaving; the error is what is still there of a network's.
func (a *Attacher) downOf(ctx context.Context, network string) error {
	asked := a.leaving.those(false)
	r := a.down(ctx)
	own := remains{err: r.err, each: map[cniapi.Attachment]error{}}
	for _, d := range asked {
		key := d.Attachment.Attachment
		if err := r.each[key]; err != nil && d.Network == network {
			own.each[key] = err
		}
	}
	return own.all()
}
