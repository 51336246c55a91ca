package nodeflows

import (
	"bytes"
	"context"
	"errors"
	"net"
	"slices"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/flowstore"
)

// changedAtOnce is how many pods come and go in one bundle.
const changedAtOnce = 64

// change is a pod that comes, or that goes: only its port and its MAC matter then.
type change struct {
	pod  desired.Attached
	goes bool
}

// Attach puts one pod into the picture and its flows into the switch. What policies say of it
// counts for a pod that was not there; of one that was, with that port and MAC, only
// [Table.SetPolicies] says that. Where it fails the pod is out of the picture again. Who had its port before is not there any more, and
// who has an address of it at another port comes back when its own number is known. Pods that come and go at once share a bundle:
// the switch takes as long for many as for one, and one that it refuses keeps no other.
func (t *Table) Attach(ctx context.Context, a desired.Attached) error {
	err, notBegun := t.changing.Do(ctx, change{pod: a})
	return errors.Join(err, notBegun)
}

// Detach takes the pod with that port and MAC out of the picture and its flows out
// of the switch. It is no error when there is none: a port that another has by now is left
// alone. With [flowstore.ErrDisconnected] and
// [flowstore.ErrNotReady] it is out of the picture, and the flows go when there is a
// connection, or the records are known: until then what the switch has goes on.
func (t *Table) Detach(ctx context.Context, port uint32, mac net.HardwareAddr) error {
	err, notBegun := t.changing.Do(ctx, change{pod: desired.Attached{Port: port, MAC: mac}, goes: true})
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
			errs[i] = t.gone(ctx, c)
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
	var ports []uint32
	var namespaces []string // of pods that come, and of those that were there
	var undo []func()
	for _, asked := range list {
		for _, c := range append(t.displaced(asked), asked) {
			if !t.changes(c) {
				continue
			}
			old, had := t.attached[c.pod.Port]
			undo = append(undo, t.apply(c))
			ports = append(ports, c.pod.Port)
			if had {
				namespaces = append(namespaces, old.Namespace)
			}
			if !c.goes {
				namespaces = append(namespaces, c.pod.Namespace)
			}
		}
	}
	slices.Sort(namespaces)
	err := t.try(ctx, ports, slices.Compact(namespaces))
	if err != nil {
		for _, f := range slices.Backward(undo) {
			f()
		}
	}
	return err
}

// apply makes one change of the picture; undo takes it back.
func (t *Table) apply(c change) (undo func()) {
	old, had := t.attached[c.pod.Port]
	restore := t.tenants.remember(old.Namespace, c.pod.Namespace)
	if had && bytes.Equal(old.MAC, c.pod.MAC) {
		c.pod.Policy = old.Policy
	}
	if c.goes {
		t.leave(c.pod.Port)
	} else {
		t.take(c.pod)
	}
	return func() {
		if had {
			t.take(old)
		} else {
			t.leave(c.pod.Port)
		}
		restore()
	}
}

// displaced are pods that go as one comes with an address of theirs: the same pod at the
// number that its port had before, or one whose address was given to another. Flows for
// both would be two ways to one address. Who has the port itself is replaced.
func (t *Table) displaced(c change) (gone []change) {
	if c.goes {
		return nil
	}
	for port, a := range t.attached {
		if port != c.pod.Port && a.Shares(c.pod) {
			gone = append(gone, change{pod: a, goes: true})
		}
	}
	return gone
}

// changes reports whether there is something to do: not for a pod that goes and is gone.
func (t *Table) changes(c change) bool {
	old, had := t.attached[c.pod.Port]
	return !c.goes || had && bytes.Equal(old.MAC, c.pod.MAC)
}

// gone takes a pod out of the picture while nothing can be written, which it says.
func (t *Table) gone(ctx context.Context, c change) error {
	if !t.changes(c) {
		return nil
	}
	port := c.pod.Port
	namespace := t.attached[port].Namespace
	t.leave(port)
	if t.model == nil {
		return flowstore.ErrNotReady
	}
	_, err := t.store.Set(ctx, t.want([]uint32{port}, []string{namespace}))
	return err
}

// try gives the store what the pods with those ports and the namespaces want.
func (t *Table) try(ctx context.Context, ports []uint32, namespaces []string) error {
	c := t.want(ports, namespaces)
	if t.stale {
		c = t.all()
	}
	err := t.store.Try(ctx, c)
	t.stale = t.stale && err != nil
	return t.unmeter(err)
}

// want is what the pods with those ports and the namespaces want, as the picture is:
// nothing for those that it does not have.
func (t *Table) want(ports []uint32, namespaces []string) (c flowstore.Change) {
	for _, port := range ports {
		c.Set(podOwner(port), t.pod(port))
	}
	for _, n := range namespaces {
		t.setTenant(&c, n)
	}
	return c
}
