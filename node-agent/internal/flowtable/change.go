package flowtable

import (
	"context"
	"errors"
	"net/netip"
	"slices"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
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
// of the switch. It is no error when there is none, or no switch: without a
// connection the flows go with the next one.
func (t *Table) Detach(ctx context.Context, address netip.Addr) error {
	err, notBegun := t.changing.Do(ctx, change{pod: desired.Attached{Address: address}, goes: true})
	return errors.Join(err, notBegun)
}

// change makes several changes, in one bundle; where that fails, each in its own.
func (t *Table) change(ctx context.Context, list []change) []error {
	t.mu.Lock()
	defer t.mu.Unlock()
	errs := make([]error, len(list))
	err := t.changeTogether(ctx, list)
	if err == nil {
		return errs
	}
	away := errors.Is(err, ErrDisconnected) || errors.Is(err, ErrNotReady)
	for i, c := range list {
		switch errs[i] = err; {
		case away && c.goes:
			t.leave(c.pod.Address)
			errs[i] = nil
		case !away && len(list) > 1 && ctx.Err() == nil:
			errs[i] = t.changeTogether(ctx, list[i:i+1])
			if c.goes && errors.Is(errs[i], ErrDisconnected) {
				t.leave(c.pod.Address)
				errs[i] = nil
			}
		}
	}
	return errs
}

// changeTogether makes all of list, or nothing.
func (t *Table) changeTogether(ctx context.Context, list []change) error {
	if !slices.ContainsFunc(list, t.changes) {
		return nil
	}
	if t.model == nil {
		return ErrNotReady
	}
	addresses := make([]netip.Addr, len(list))
	var namespaces []string // of pods that were there
	for i, c := range list {
		addresses[i] = c.pod.Address
		if old, had := t.attached[c.pod.Address]; had && !slices.Contains(namespaces, old.Namespace) {
			namespaces = append(namespaces, old.Namespace)
		}
	}
	before := t.flowsAround(addresses)
	undo := make([]func(), len(list))
	for i, c := range list {
		old, had := t.attached[c.pod.Address]
		undo[i] = func() {
			if had {
				t.take(old)
			} else {
				t.leave(c.pod.Address)
			}
		}
		if c.goes {
			t.leave(c.pod.Address)
		} else {
			t.take(c.pod)
		}
	}
	err := t.commitPart(ctx, before, t.flowsAround(addresses, namespaces...))
	if err != nil {
		for _, f := range slices.Backward(undo) {
			f()
		}
	}
	return err
}

// changes reports whether there is something to do: not for a pod that goes and is gone.
func (t *Table) changes(c change) bool {
	_, had := t.attached[c.pod.Address]
	return had || !c.goes
}

// flowsAround are the flows that the pods with those addresses need, and those of the
// namespaces named, as the picture is: none for one without a slot.
func (t *Table) flowsAround(addresses []netip.Addr, namespaces ...string) map[string]of.Flow {
	var flows []of.Flow
	namespaces = slices.Clone(namespaces)
	for _, address := range addresses {
		a, ok := t.attached[address]
		if !ok {
			continue
		}
		flows = append(flows, t.model.Pod(desired.Pod(t.slots, a))...)
		if !slices.Contains(namespaces, a.Namespace) {
			namespaces = append(namespaces, a.Namespace)
		}
	}
	return byKey(append(flows, t.flowsOf(namespaces)...))
}
