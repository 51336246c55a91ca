package uplink

import (
	"cmp"
	"maps"
	"slices"

	"github.com/k8s-ovs/k8s-ovs/pkg/link/tc"
	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
)

// Minor numbers of the classes. A pod's is the number of its port and one: Open
// vSwitch gives what is in queue q the priority 1:q+1 (netdev_linux's
// and dpif_netlink_queue_to_priority, for q below 0xf000).
const (
	major       = 1
	maxPort     = 0xf000 - 2
	root        = 0xf000
	firstTenant = 0xf001
	lastTenant  = 0xfffd
	// own is of the node itself, and of whatever has no class.
	own = 0xffff
)

// share is the link-sharing curve of every class, bits per second. As all are
// equal, it is none but their resolution: the kernel counts the time that a packet
// takes at this rate, in steps of 64 ns.
const share = 100_000_000

// Pod is a pod on this node, as far as sharing needs it.
type Pod struct {
	Tenant netid.ID
	// Port is the number of its port of the bridge.
	Port uint32
}

// Queue is the OpenFlow queue of what comes from a port; 0 where it has no class.
func Queue(port uint32) uint32 {
	if port > maxPort {
		return 0
	}
	return port
}

// Priority is that of packets in the queue of a port: the handle of its class. 0
// where it has none.
func Priority(port uint32) uint32 {
	q := Queue(port)
	if q == 0 {
		return 0
	}
	return major<<16 | (q + 1)
}

// minor is the pod's class; 0 where it has none.
func (p Pod) minor() uint16 { return uint16(Priority(p.Port)) }

// change is what is to be done about one class: to remove it, or to set it.
type change struct {
	remove bool
	class  tc.HFSCClass
	// queue is that it is new and has packets of its own.
	queue bool
}

// plan computes the changes that make of the classes there are the ones wanted, in
// an order that the kernel accepts: parents before and after their children. A
// tenant keeps its class as long as a pod of it is there. While pods are not known
// (nil), those of their classes that there are stay.
func plan(have []tc.HFSCClass, pods []Pod, rate uint64) []change {
	is := make(map[uint16]tc.HFSCClass, len(have))
	for _, c := range have {
		is[c.Minor] = c
	}
	want := wanted(is, pods, rate)
	var out []change
	// No class is below one with a lower number, so children go first.
	for _, minor := range slices.Sorted(maps.Keys(is)) {
		if w, ok := want[minor]; pods != nil && (!ok || w.Parent != is[minor].Parent) {
			out = append(out, change{remove: true, class: is[minor]})
			delete(is, minor)
		}
	}
	for _, minor := range slices.SortedFunc(maps.Keys(want), topDown) {
		if c, there := is[minor]; c != want[minor] {
			out = append(out, change{class: want[minor], queue: !there && (minor < root || minor == own)})
		}
	}
	return out
}

// topDown has the root first, then the node's, and pods last.
func topDown(a, b uint16) int {
	rank := func(m uint16) int {
		switch {
		case m == root:
			return 0
		case m == own:
			return 1
		case m > root:
			return 2
		}
		return 3
	}
	return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a, b))
}

// trunk are the classes that are there with or without pods, the node's last: what
// has no class is lost before it is there.
func trunk(rate uint64) []tc.HFSCClass {
	return []tc.HFSCClass{{Minor: root, Share: share, Limit: wire(rate)}, {Minor: own, Parent: root, Share: share}}
}

// wanted are the classes for the pods, where those in is are there. Pods of more
// tenants than there are numbers have none, and share the node's.
func wanted(is map[uint16]tc.HFSCClass, pods []Pod, rate uint64) map[uint16]tc.HFSCClass {
	want := map[uint16]tc.HFSCClass{}
	for _, c := range trunk(rate) {
		want[c.Minor] = c
	}
	tenants := numbers(is, pods)
	for _, p := range pods {
		minor := p.minor()
		parent, ok := tenants[p.Tenant]
		if ok && minor != 0 {
			want[parent] = tc.HFSCClass{Minor: parent, Parent: root, Share: share}
			want[minor] = tc.HFSCClass{Minor: minor, Parent: parent, Share: share}
		}
	}
	return want
}

// numbers gives each tenant with pods a class: that which a pod of it is in, else
// the first that is free.
func numbers(is map[uint16]tc.HFSCClass, pods []Pod) map[netid.ID]uint16 {
	pods = slices.SortedFunc(slices.Values(pods), func(a, b Pod) int {
		return cmp.Or(cmp.Compare(a.Tenant, b.Tenant), cmp.Compare(a.Port, b.Port))
	})
	out, taken := map[netid.ID]uint16{}, map[uint16]bool{}
	for _, p := range pods {
		parent := is[p.minor()].Parent
		if _, has := out[p.Tenant]; !has && parent >= firstTenant && parent <= lastTenant && !taken[parent] {
			out[p.Tenant], taken[parent] = parent, true
		}
	}
	next := uint16(firstTenant)
	for _, p := range pods {
		if _, has := out[p.Tenant]; has {
			continue
		}
		for taken[next] {
			next++
		}
		if next > lastTenant {
			break
		}
		out[p.Tenant], taken[next] = next, true
	}
	return out
}

// wire is the rate as the kernel keeps it, whole bytes.
func wire(rate uint64) uint64 { return rate / 8 * 8 }
