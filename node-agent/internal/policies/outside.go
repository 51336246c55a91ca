package policies

import (
	"context"
	"maps"
	"net/netip"
	"reflect"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/hostnet"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	"github.com/k8s-ovs/k8s-ovs/pkg/policy"
)

// outside is what is known of the way past the switch. Who writes has it: see [Table.writing].
type outside struct {
	// says is what each policy says of it, where that is anything; place is what they have in
	// common.
	says  map[policy.Key]policy.Compiled
	place policy.Compiled
	// isolated are the pods that policies are about, with whether some isolate what they send.
	isolated map[netip.Addr]bool
	// told is what [Outside] was told last; current is that this is what policies say, whole that
	// nothing from before the agent's start is kept beside it.
	told           hostnet.Senders
	current, whole bool
	// closed are the pods that were told of as having their way past the switch closed.
	closed []netip.Addr
}

// sends reports whether policies may be about what a pod sends.
func sends(p pipeline.PodPolicy) bool { return p.Egress || p.Cluster }

// tellOutside has the way past the switch follow. As long as the whole is not known, pods that were
// there before the agent started keep what they had.
func (t *Table) tellOutside(ctx context.Context, w work, compiled map[policy.Key]policy.Compiled, whole bool) error {
	o := &t.outside
	o.learn(w, compiled)
	var services netip.Prefix
	if t.cfg.NodeServes {
		services = w.nodes.services
	}
	if !o.current || o.whole != whole || o.told.Services != services {
		reach, closed := o.reach()
		t.noteClosed(w, closed)
		want := hostnet.Senders{Services: services, Reach: reach}
		if !whole {
			want.Keep = func(a netip.Addr) bool { return w.loaded[a] }
		}
		err := t.cfg.Outside.Set(ctx, want)
		if o.told, o.current, o.whole = want, err == nil, whole; err != nil {
			return wrap(err)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.barred = w.asked
	return nil
}

// resync puts right what others changed, where pods are judged at all.
func (o *outside) resync(ctx context.Context, at Outside) error {
	if !o.current || !o.whole || len(o.told.Reach) == 0 {
		return nil
	}
	at.Forget()
	err := at.Set(ctx, o.told)
	o.current = err == nil
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
			o.current = o.current && !there
		case !there || !reflect.DeepEqual(had, c):
			o.says[key], o.current = c, false
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
		o.isolated, o.place, o.current = isolated, place, false
	}
}

// reach is what the pods may reach that may not reach everything; for those in closed that would be too
// much to be written.
func (o *outside) reach() (reach map[netip.Addr]policy.Reach, closed []netip.Addr) {
	all := o.place
	for key, c := range o.says {
		if key == clusterKey {
			all.Egress.Admin, all.Egress.Baseline = c.Egress.Admin, c.Egress.Baseline
		}
		all.Egress.Allows = append(all.Egress.Allows, c.Egress.Allows...)
	}
	reach, closed = all.Reaches(o.isolated)
	maps.DeleteFunc(reach, func(_ netip.Addr, r policy.Reach) bool { return r.All() })
	return reach, closed
}
