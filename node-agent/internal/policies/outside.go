package policies

import (
	"context"
	"maps"
	"net/netip"
	"reflect"
	"slices"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/hostnet"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	"github.com/k8s-ovs/k8s-ovs/pkg/policy"
)

// outside is what policies say of the way past the switch. Who compiles has it: see [Table.compiling].
type outside struct {
	// says is what each policy says of it, where that is anything; place is what they have in
	// common.
	says  map[policy.Key]policy.Compiled
	place policy.Compiled
	// isolated are the pods that policies are about, with whether some isolate what they send.
	isolated map[netip.Addr]bool
	// found is what follows from these; stale is that they have changed since.
	found reached
	stale bool
}

// reached is what the pods may reach that may not reach everything; for those in closed that would be too
// much to be written. Others have another version. It is not changed.
type reached struct {
	reach   map[netip.Addr]policy.Reach
	closed  []netip.Addr
	version int
}

func newOutside() outside { return outside{says: map[policy.Key]policy.Compiled{}, stale: true} }

// barrier is the way past the switch as it was written. Who writes has it: see [Table.writing].
type barrier struct {
	// told is what [Outside] was told last, version which it is; current is that it has it, whole that
	// nothing from before the agent's start is kept beside it.
	told           hostnet.Senders
	version        int
	current, whole bool
}

// sends reports whether policies may be about what a pod sends.
func sends(p pipeline.PodPolicy) bool { return p.Egress || p.Cluster }

// findOutside is what the pods of w may reach past the switch. That can be much work: it is done where
// something changed, and not again because it could not be written.
func (t *Table) findOutside(w work, compiled map[policy.Key]policy.Compiled) reached {
	o := &t.outside
	o.learn(w, compiled)
	if o.stale {
		before := o.found
		o.found, o.stale = o.find(), false
		t.noteClosed(w, before.closed, o.found.closed)
	}
	return o.found
}

// tellOutside has the way past the switch follow. As long as the whole is not known, pods that were
// there before the agent started keep what they had.
func (t *Table) tellOutside(ctx context.Context, w work, found reached, whole bool) error {
	b := &t.barrier
	var services netip.Prefix
	if t.cfg.NodeServes {
		services = w.nodes.services
	}
	if !b.current || b.version != found.version || b.whole != whole || b.told.Services != services {
		want := hostnet.Senders{Services: services, Reach: found.reach}
		if !whole {
			want.Keep = func(a netip.Addr) bool { return w.loaded[a] }
		}
		err := t.cfg.Outside.Set(ctx, want)
		if b.told, b.version, b.current, b.whole = want, found.version, err == nil, whole; err != nil {
			return wrap(err)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.barred = w.asked
	return nil
}

// resync puts right what others changed, where pods are judged at all.
func (b *barrier) resync(ctx context.Context, at Outside) error {
	if !b.current || !b.whole || len(b.told.Reach) == 0 {
		return nil
	}
	at.Forget()
	err := at.Set(ctx, b.told)
	b.current = err == nil
	return err
}

// learn takes in what policies come to now, and whom they are about.
func (o *outside) learn(w work, compiled map[policy.Key]policy.Compiled) {
	for key, c := range compiled {
		c = c.Outside()
		had, there := o.says[key]
		switch {
		case len(c.Egress.Allows)+len(c.Egress.Admin)+len(c.Egress.Baseline) == 0:
			delete(o.says, key)
			o.stale = o.stale || there
		case !there || !reflect.DeepEqual(had, c):
			o.says[key], o.stale = c, true
		}
	}
	isolated := map[netip.Addr]bool{}
	for a, p := range w.pods {
		if sends(p) {
			isolated[a] = p.Egress
		}
	}
	place := policy.NewCompiler(w.input(nil)).Compile(nil, nil).Outside()
	if !maps.Equal(isolated, o.isolated) || !reflect.DeepEqual(place, o.place) {
		o.isolated, o.place, o.stale = isolated, place, true
	}
}

// find is what follows from what policies say.
func (o *outside) find() reached {
	all := o.place
	for _, key := range slices.SortedFunc(maps.Keys(o.says), policy.Key.Compare) {
		c := o.says[key]
		if key == clusterKey {
			all.Egress.Admin, all.Egress.Baseline = c.Egress.Admin, c.Egress.Baseline
		}
		all.Egress.Allows = append(all.Egress.Allows, c.Egress.Allows...)
	}
	reach, closed := all.Reaches(o.isolated)
	maps.DeleteFunc(reach, func(_ netip.Addr, r policy.Reach) bool { return r.All() })
	return reached{reach, closed, o.found.version + 1}
}
