package nodeflows

import (
	"context"
	"errors"
	"net/netip"
	"slices"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/flowstore"
)

// changedAtOnce is how many pods come and go in one bundle.
const changedAtOnce = 64

// change is a pod that comes, or that goes: only its address matters then.
type change struct {
	pod  desired.Attached
	goes bool
}

// Attach puts one pod into the picture and its flows into the switch. Where that fails
// the pod is out of the picture again. Pods that come and go at once share a bundle:
// the switch takes as long for many as for one, and one that it refuses keeps no other.
func (t *Table) Attach(ctx context.Context, a desired.Attached) error {
	err, notBegun := t.changing.Do(ctx, change{pod: a})
	return errors.Join(err, notBegun)
}

// Detach takes the pod with that address out of the picture and its flows out
// of the switch. It is no error when there is none. With [flowstore.ErrDisconnected] and
// [flowstore.ErrNotReady] it is out of the picture, and the flows go when there is a
// connection, or the records are known: until then what the switch has goes on.
func (t *Table) Detach(ctx context.Context, address netip.Addr) error {
	err, notBegun := t.changing.Do(ctx, change{pod: desired.Attached{Address: address}, goes: true})
	return errors.Join(err, notBegun)
}

// change makes several changes, in one bundle; where that fails, each in its own.
func (t *Table) change(ctx context.Context, list []change) []error {
	t.mu.Lock()
	defer t.mu.Unlock()
	errs := make([]error, len(list))
	err := t.together(ctx, list)
	if err == nil {
		return errs
	}
	for i, c := range list {
		errs[i] = err
		if alone := len(list) > 1 && !away(err) && ctx.Err() == nil; alone {
			errs[i] = t.together(ctx, list[i:i+1])
		}
		if c.goes && away(errs[i]) {
			errs[i] = t.gone(ctx, c.pod.Address)
		}
	}
	return errs
}

// away reports whether nothing can be written now, whatever it is.
func away(err error) bool {
	return errors.Is(err, flowstore.ErrDisconnected) || errors.Is(err, flowstore.ErrNotReady)
}

// together makes all of list, or nothing.
func (t *Table) together(ctx context.Context, list []change) error {
	if !slices.ContainsFunc(list, t.changes) {
		return nil
	}
	if t.model == nil {
		return flowstore.ErrNotReady
	}
	list = append(t.displaced(list), list...)
	var addresses []netip.Addr
	var namespaces []string // of pods that come, and of those that were there
	var undo []func()
	for _, c := range list {
		address := c.pod.Address
		addresses = append(addresses, address)
		old, had := t.attached[address]
		restore := t.tenants.remember(old.Namespace, c.pod.Namespace)
		undo = append(undo, func() {
			if had {
				t.take(old)
			} else {
				t.leave(address)
			}
			restore()
		})
		if had {
			namespaces = append(namespaces, old.Namespace)
		}
		if c.goes {
			t.leave(address)
		} else {
			t.take(c.pod)
			namespaces = append(namespaces, c.pod.Namespace)
		}
	}
	slices.Sort(namespaces)
	err := t.try(ctx, addresses, slices.Compact(namespaces))
	if err != nil {
		for _, f := range slices.Backward(undo) {
			f()
		}
	}
	return err
}

// displaced are pods that go as one of list comes with the number of their port. They have
// another one by now, or none, and come back when it is known: until then flows for them would be
// the other's, and a meter of theirs would keep it from having its own.
func (t *Table) displaced(list []change) (gone []change) {
	comes := map[uint32]netip.Addr{}
	for _, c := range list {
		if !c.goes {
			comes[c.pod.Port] = c.pod.Address
		}
	}
	if len(comes) == 0 {
		return nil
	}
	for address, a := range t.attached {
		if by, ok := comes[a.Port]; ok && by != address {
			gone = append(gone, change{pod: a, goes: true})
		}
	}
	return gone
}

// changes reports whether there is something to do: not for a pod that goes and is gone.
func (t *Table) changes(c change) bool {
	_, had := t.attached[c.pod.Address]
	return had || !c.goes
}

// gone takes a pod out of the picture while nothing can be written, which it says.
func (t *Table) gone(ctx context.Context, address netip.Addr) error {
	old, had := t.attached[address]
	t.leave(address)
	if !had {
		return nil
	}
	if t.model == nil {
		return flowstore.ErrNotReady
	}
	_, err := t.store.Set(ctx, t.want([]netip.Addr{address}, []string{old.Namespace}))
	return err
}

// try gives the store what the pods with those addresses and the namespaces want.
func (t *Table) try(ctx context.Context, addresses []netip.Addr, namespaces []string) error {
	c := t.want(addresses, namespaces)
	if t.stale {
		c = t.all()
	}
	err := t.store.Try(ctx, c)
	t.stale = t.stale && err != nil
	return t.unmeter(err)
}

// want is what the pods with those addresses and the namespaces want, as the picture is:
// nothing for those that it does not have.
func (t *Table) want(addresses []netip.Addr, namespaces []string) (c flowstore.Change) {
	for _, address := range addresses {
		c.Set(flowstore.Owner{Kind: KindPod, Name: address.String()}, t.pod(address))
	}
	for _, n := range namespaces {
		t.setTenant(&c, n)
	}
	return c
}
