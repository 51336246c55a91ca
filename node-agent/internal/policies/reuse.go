package policies

import (
	"net/netip"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// addresses are those that were freed and that other nodes may still count among the members
// of a set. It is pure.
type addresses struct {
	freed map[netip.Addr]freed
	// first is the revision of the first record that this agent wrote: addresses that were
	// freed before it started are not in it. 0 before there is one.
	first int64
	// acknowledged is the revision that the leader has taken into account.
	acknowledged int64
}

// freed is an address that was freed.
type freed struct {
	at time.Time
	// revision is that of the first record without it; 0 before there is one.
	revision int64
}

func newAddresses() addresses { return addresses{freed: map[netip.Addr]freed{}} }

// free notes that a pod has its address no longer.
func (f *addresses) free(a netip.Addr, now time.Time) { f.freed[a] = freed{at: now} }

// take notes that an address has a pod.
func (f *addresses) take(a netip.Addr) { delete(f.freed, a) }

// published notes which record stands in etcd.
func (f *addresses) published(n topology.NodePods, revision int64) {
	if f.first == 0 || f.first > revision {
		f.first = revision
	}
	has := map[netip.Addr]bool{}
	for _, p := range n.Pods {
		has[p.Address] = true
	}
	for a, one := range f.freed {
		// One of before etcd went back to older records says nothing any more.
		if (one.revision == 0 || one.revision > revision) && !has[a] {
			one.revision = revision
			f.freed[a] = one
		}
	}
}

// acknowledge notes how far the leader is; an etcd that was restored may go back.
func (f *addresses) acknowledge(revision int64) { f.acknowledged = revision }

// reusable reports whether an address may be given out again. Of those that were freed
// before the agent started, at started, nobody knows when.
func (f *addresses) reusable(a netip.Addr, started, now time.Time) bool {
	one, ok := f.freed[a]
	if !ok {
		one = freed{at: started, revision: f.first}
	}
	return !now.Before(one.at.Add(reuseAfter)) && one.revision > 0 && f.acknowledged >= one.revision
}
