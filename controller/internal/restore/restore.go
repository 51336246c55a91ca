// Package restore decides what of that which etcd has lost is put back: it went back to
// older records, as it does when it is restored from a backup, and nodes hold newer ones.
//
// It is pure: what etcd has and what nodes hold go in, the records to write come out. The
// rules are in docs/restored-etcd.md.
package restore

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"

	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// Input is what there is to decide on.
type Input struct {
	// Now is what etcd has; Created and Changed are the revisions of its namespaces' creation
	// and last change.
	Now              topology.Snapshot
	Created, Changed map[string]int64
	// Lost is what nodes hold, by node.
	Lost map[netip.Addr]topology.Held
	// Most is that they are more than half of the nodes that report.
	Most bool
}

// Plan is what to write.
type Plan struct {
	Namespaces []topology.Namespace
	Nodes      []topology.Node
	// Left says what is not put back, and why.
	Left []string
	// More is that nodes hold more than they told.
	More bool
	// Points are up to where all that is put back then.
	Points []topology.Point
}

// maker makes a plan.
type maker struct {
	Input
	plan Plan
	// fork is the revision after which etcd's records and those that are held have nothing to
	// do with each other any more.
	fork int64
}

// Make makes it.
func Make(in Input) Plan {
	m := maker{Input: in}
	points := map[topology.Point]bool{}
	m.fork = math.MaxInt64
	for _, h := range in.Lost {
		points[h.At] = true
		m.plan.More = m.plan.More || h.More
		if len(h.Nodes)+len(h.Namespaces) > 0 {
			m.fork = min(m.fork, in.Now.History.Fork(h.History))
		}
	}
	m.plan.Points = slices.SortedFunc(maps.Keys(points), func(a, b topology.Point) int { return int(a.Revision - b.Revision) })
	m.nodes()
	m.namespaces()
	return m.plan
}

// claim is what nodes hold in place of one record.
type claim[T any] struct {
	value T
	votes int
	at    topology.Point
}

// claims counts who holds what, by the records' names, and keeps of each the one that most
// hold: of two the newer.
func claims[T any](lost map[netip.Addr]topology.Held, of func(topology.Held) []T, name func(T) string) map[string]claim[T] {
	all := map[string]map[string]claim[T]{}
	for _, h := range lost {
		for _, v := range of(h) {
			data, err := json.Marshal(v)
			if err != nil {
				continue // it came as JSON
			}
			if all[name(v)] == nil {
				all[name(v)] = map[string]claim[T]{}
			}
			c := all[name(v)][string(data)]
			c.value, c.votes = v, c.votes+1
			if h.At.Revision > c.at.Revision {
				c.at = h.At
			}
			all[name(v)][string(data)] = c
		}
	}
	best := map[string]claim[T]{}
	for n, by := range all {
		for _, form := range slices.Sorted(maps.Keys(by)) {
			if c, b := by[form], best[n]; c.votes > b.votes || c.votes == b.votes && c.at.Revision > b.at.Revision {
				best[n] = c
			}
		}
	}
	return best
}

// believed reports whether so many nodes are to be believed whatever they say.
func (m *maker) believed(votes int) bool { return m.Most && 2*votes >= len(m.Lost) }

func (m *maker) leave(what, why string, args ...any) {
	m.plan.Left = append(m.plan.Left, what+": "+fmt.Sprintf(why, args...))
}

// nodes puts back nodes that have their subnets, where no other has them.
func (m *maker) nodes() {
	held := claims(m.Lost, func(h topology.Held) []topology.Node { return h.Nodes }, func(n topology.Node) string { return n.HostIP.String() })
	taken := map[netip.Addr]topology.Node{}
	for ip, n := range m.Now.Nodes {
		if _, claimed := held[ip.String()]; !claimed {
			taken[ip] = n
		}
	}
	for _, key := range slices.Sorted(maps.Keys(held)) {
		c, what := held[key], "node "+key
		switch other, overlaps := overlapping(taken, c.value); {
		case !m.believed(c.votes):
			m.leave(what, "only %d of %d nodes hold it", c.votes, len(m.Lost))
		case c.value.Validate(m.Now.Config) != nil:
			m.leave(what, "%v", c.value.Validate(m.Now.Config))
		case overlaps:
			m.leave(what, "its subnet %s is %s's by now", c.value.Subnet, other)
		default:
			c.value.Assign, c.value.Status = false, nil
			taken[c.value.HostIP] = c.value
			m.plan.Nodes = append(m.plan.Nodes, c.value)
			continue
		}
		// What etcd has of it stays.
		if n, there := m.Now.Nodes[c.value.HostIP]; there {
			taken[c.value.HostIP] = n
		}
	}
}

// overlapping names a node that has of the subnets of n.
func overlapping(taken map[netip.Addr]topology.Node, n topology.Node) (host string, overlaps bool) {
	for ip, other := range taken {
		for _, a := range other.PodSubnets() {
			if ip != n.HostIP && slices.ContainsFunc(n.PodSubnets(), a.Overlaps) {
				return other.Host, true
			}
		}
	}
	return "", false
}

// namespaces puts back namespaces with the netIDs that nodes enforce.
func (m *maker) namespaces() {
	held := claims(m.Lost, func(h topology.Held) []topology.Namespace { return h.Namespaces }, func(n topology.Namespace) string { return n.NetName })
	has := map[netid.ID][]string{}
	for name, n := range m.Now.Namespaces {
		for _, id := range netIDs(n) {
			has[id] = append(has[id], name)
		}
	}
	given := map[netid.ID]bool{}
	for _, name := range slices.Sorted(maps.Keys(held)) {
		c, what := held[name], "namespace "+name
		if c.value.Effective == nil || topology.ValidateNamespaceName(name) != nil {
			continue
		}
		ids := netIDs(c.value)
		// Given to somebody else since etcd went back.
		later := func(id netid.ID) bool {
			return !id.IsGlobal() && slices.ContainsFunc(has[id], func(other string) bool { return other != name && m.Created[other] > m.fork })
		}
		_, there := m.Now.Namespaces[name]
		alone := !there && !slices.ContainsFunc(ids, func(id netid.ID) bool { return id.IsGlobal() || len(has[id]) > 0 || given[id] })
		switch {
		case slices.ContainsFunc(ids, later):
			m.leave(what, "its netID %d is another's by now", *c.value.Effective)
		case !m.believed(c.votes) && !alone:
			m.leave(what, "only %d of %d nodes hold it with netID %d", c.votes, len(m.Lost), *c.value.Effective)
		default:
			for _, id := range ids {
				given[id] = true
			}
			m.plan.Namespaces = append(m.plan.Namespaces, m.record(c.value))
		}
	}
}

// record is what a namespace's is to be. What somebody has asked for since stands.
func (m *maker) record(n topology.Namespace) topology.Namespace {
	if is := m.Now.Namespaces[n.NetName]; m.Changed[n.NetName] > m.fork && is.Action != topology.None {
		n.Action, n.Namespace, n.By, n.Forced, n.Status = is.Action, is.Namespace, is.By, is.Forced, is.Status
	}
	id := int64(*n.Effective)
	n.NetID = &id
	return n
}

// netIDs are those that a namespace's pods send and take.
func netIDs(n topology.Namespace) (ids []netid.ID) {
	if n.Effective != nil {
		ids = append(ids, *n.Effective)
	}
	if n.Change.UnderWay() {
		ids = append(ids, n.Change.NetID)
	}
	return ids
}
