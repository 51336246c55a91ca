// Package restore decides what of that which etcd has lost is put back: it went back to
// older records, as it does when it is restored from a backup, and nodes hold newer ones.
//
// It is pure: what etcd has and what nodes hold go in, the records to write come out. The
// rules are in docs/restored-etcd.md.
package restore

import (
	"cmp"
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
	// Lost is what nodes hold, by node. Any of them may lie.
	Lost map[netip.Addr]topology.Held
	// Known is how many nodes there are, whether they report or not.
	Known int
	// Live are the UIDs of the Namespaces that the API server has, by name; nil outside of
	// Kubernetes.
	Live map[string]string
}

// Plan is what to write.
type Plan struct {
	Namespaces []topology.Namespace
	Nodes      []topology.Node
	// Left says what is not put back, and why.
	Left []string
	// Short is how many nodes hold what is left out because too few do: of such records that which most
	// hold. 0 is that there is none.
	Short int
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
	m := maker{Input: in, fork: fork(in)}
	points := map[topology.Point]bool{}
	for _, h := range in.Lost {
		points[h.At] = true
		m.plan.More = m.plan.More || h.More
	}
	m.plan.Points = slices.SortedFunc(maps.Keys(points), func(a, b topology.Point) int { return cmp.Compare(a.Revision, b.Revision) })
	m.nodes()
	m.namespaces()
	return m.plan
}

// fork is the middle one of what the histories of nodes say, so that fewer than half of them cannot
// move it; of two in the middle the older, which puts fewer namespaces together.
func fork(in Input) int64 {
	var forks []int64
	for _, h := range in.Lost {
		if len(h.Nodes)+len(h.Namespaces) > 0 {
			forks = append(forks, in.Now.History.Fork(h.History))
		}
	}
	if len(forks) == 0 {
		return math.MaxInt64
	}
	slices.Sort(forks)
	return forks[(len(forks)-1)/2]
}

// claim is what nodes hold in place of one record.
type claim[T any] struct {
	value T
	votes int
}

// record is a kind of record that nodes hold.
type record[T any] interface{ Claim() T }

// claims counts who holds what, by the records' names, and keeps of each the claim that most make. A node has
// one vote for each name: what it says second does not count.
func claims[T record[T]](m *maker, of func(topology.Held) []T, name func(T) string) map[string]claim[T] {
	all := map[string]map[string]claim[T]{}
	for _, h := range m.Lost {
		voted := map[string]bool{}
		for _, v := range of(h) {
			data, err := json.Marshal(v)
			if err != nil || voted[name(v)] {
				continue // it came as JSON
			}
			voted[name(v)] = true
			if all[name(v)] == nil {
				all[name(v)] = map[string]claim[T]{}
			}
			all[name(v)][string(data)] = claim[T]{v, all[name(v)][string(data)].votes + 1}
		}
	}
	best := map[string]claim[T]{}
	for n, forms := range all {
		best[n] = most(forms, m.half)
	}
	return best
}

// most is the claim that most nodes make, by the forms of one record that they hold. Those of one claim differ
// in what is beside it, of which the record has what enough of them hold.
func most[T record[T]](forms map[string]claim[T], enough func(votes int) bool) (best claim[T]) {
	made := map[string]map[string]claim[T]{} // forms, by claim
	for form, c := range forms {
		data, _ := json.Marshal(c.value.Claim()) // it came as JSON
		if made[string(data)] == nil {
			made[string(data)] = map[string]claim[T]{}
		}
		made[string(data)][form] = c
	}
	said := ""
	for _, text := range slices.Sorted(maps.Keys(made)) {
		votes := 0
		for _, c := range made[text] {
			votes += c.votes
		}
		if votes > best.votes {
			said, best.votes = text, votes
		}
	}
	data, _ := json.Marshal(beside(said, made[said], enough))
	_ = json.Unmarshal(data, &best.value) // all of it came as JSON
	return best
}

// beside has the members of a claim, and those beside it that enough nodes hold so.
func beside[T any](said string, forms map[string]claim[T], enough func(votes int) bool) map[string]json.RawMessage {
	members := func(record string) (members map[string]json.RawMessage) {
		_ = json.Unmarshal([]byte(record), &members) // it was written here
		return members
	}
	votes := map[string]map[string]int{} // by member and value
	for form, c := range forms {
		for member, value := range members(form) {
			if votes[member] == nil {
				votes[member] = map[string]int{}
			}
			votes[member][string(value)] += c.votes
		}
	}
	all := members(said)
	for member, values := range votes {
		if _, claimed := all[member]; claimed {
			continue
		}
		for _, value := range slices.Sorted(maps.Keys(values)) {
			if enough(values[value]) {
				all[member] = json.RawMessage(value)
			}
		}
	}
	return all
}

// believed reports whether so many nodes are to be believed whatever they say: several, and more than
// half of all there are. Those that do not report are asked in vain, and do not agree.
func (m *maker) believed(votes int) bool { return votes > 1 && 2*votes > m.Known }

// half reports whether so many are to be believed in what a record that is put back has beside its claim: nodes
// whose release does not know it cannot say so, and those that lie are fewer.
func (m *maker) half(votes int) bool { return votes > 1 && 2*votes >= m.Known }

func (m *maker) leave(what, why string, args ...any) {
	m.plan.Left = append(m.plan.Left, what+": "+fmt.Sprintf(why, args...))
}

// nodes puts back nodes that have their subnets, where no other has them.
func (m *maker) nodes() {
	held := claims(m, func(h topology.Held) []topology.Node { return h.Nodes }, func(n topology.Node) string { return n.HostIP.String() })
	for _, key := range slices.Sorted(maps.Keys(held)) {
		if c := held[key]; !m.believed(c.votes) {
			m.plan.Short = max(m.plan.Short, c.votes)
			m.leave("node "+key, "only %d of %d nodes hold it", c.votes, m.Known)
			delete(held, key)
		}
	}
	taken := map[netip.Addr]topology.Node{}
	for ip, n := range m.Now.Nodes {
		if _, claimed := held[ip.String()]; !claimed {
			taken[ip] = n
		}
	}
	for _, key := range slices.Sorted(maps.Keys(held)) {
		c, what := held[key], "node "+key
		switch other, overlaps := overlapping(taken, c.value); {
		case c.value.Validate(m.Now.Config) != nil:
			m.leave(what, "%v", c.value.Validate(m.Now.Config))
		case overlaps:
			m.leave(what, "its subnet %s is %s's by now", c.value.Subnet, other)
		default:
			c.value.Assign, c.value.Status = false, nil
			if is := m.Now.Nodes[c.value.HostIP]; is.Host == c.value.Host && is.ID() == c.value.ID() {
				c.value.Rest = is.Rest.With(c.value.Rest)
			}
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
	name := func(n topology.Namespace) string { return n.NetName }
	whole := claims(m, valid, name)
	// Where nodes are at different steps of a change, they still agree on what comes of it.
	settled := claims(m, func(h topology.Held) (all []topology.Namespace) {
		for _, n := range valid(h) {
			all = append(all, after(n))
		}
		return all
	}, name)
	has := map[netid.ID][]string{}
	for name, n := range m.Now.Namespaces {
		for _, id := range netIDs(n) {
			has[id] = append(has[id], name)
		}
	}
	given := map[netid.ID]bool{}
	for _, name := range slices.Sorted(maps.Keys(settled)) {
		n, what := settled[name].value, "namespace "+name
		believed, alone := m.believed(settled[name].votes), m.Known == 1
		switch {
		case m.believed(whole[name].votes):
			n = whole[name].value
		case alone:
			n = m.narrowed(n)
		}
		others := func(count func(other string) bool) bool {
			return slices.ContainsFunc(netIDs(n), func(id netid.ID) bool {
				return !id.IsGlobal() && slices.ContainsFunc(has[id], func(other string) bool { return other != name && count(other) })
			})
		}
		_, there := m.Now.Namespaces[name]
		switch {
		case !believed && !alone:
			m.plan.Short = max(m.plan.Short, settled[name].votes)
			m.leave(what, "only %d of %d nodes hold it with netID %d", settled[name].votes, m.Known, *n.Effective)
		case m.Live != nil && (n.UID == "" || m.Live[name] != n.UID):
			m.leave(what, "the API server has no Namespace of that name with UID %q", n.UID)
		case others(func(other string) bool { return m.Created[other] > m.fork }):
			m.leave(what, "its netID %d is another's by now", *n.Effective)
		case !believed && (!there && m.Live == nil):
			m.leave(what, "no record has its name, and there is only one node to say so")
		case !believed && (n.Effective.IsGlobal() || given[*n.Effective] || others(func(string) bool { return true })):
			m.leave(what, "netID %d is not its own, and there is only one node to say so", *n.Effective)
		default:
			for _, id := range netIDs(n) {
				given[id] = true
			}
			m.plan.Namespaces = append(m.plan.Namespaces, m.put(n))
		}
	}
}

// valid are the namespaces that a node holds with a netID, as records that etcd could have.
func valid(h topology.Held) (all []topology.Namespace) {
	for _, n := range h.Namespaces {
		data, err := json.Marshal(n)
		if err != nil {
			continue // it came as JSON
		}
		if n, err = topology.ParseNamespace(n.NetName, data); err == nil && n.Effective != nil {
			all = append(all, n)
		}
	}
	return all
}

// after is a namespace when its change is over, and nothing is asked for.
func after(n topology.Namespace) topology.Namespace {
	id := n.Change.Goal(*n.Effective)
	return topology.Namespace{NetName: n.NetName, Effective: &id, UID: n.UID, Declared: n.Declared, Forced: n.Forced, Rest: n.Rest}
}

// narrowed is what of a namespace the only node there is may say: its netID. The rest is what etcd and
// the API server say.
func (m *maker) narrowed(n topology.Namespace) topology.Namespace {
	is, there := m.Now.Namespaces[n.NetName]
	if !there {
		is.UID = m.Live[n.NetName]
	}
	return topology.Namespace{NetName: n.NetName, Effective: n.Effective, UID: is.UID, Declared: is.Declared, Forced: is.Forced}
}

// put is what a namespace's record is to be. What somebody has asked for since stands.
func (m *maker) put(n topology.Namespace) topology.Namespace {
	is := m.Now.Namespaces[n.NetName]
	if m.Changed[n.NetName] > m.fork && is.Action != topology.None {
		n.Action, n.Namespace, n.By, n.Forced, n.Status = is.Action, is.Namespace, is.By, is.Forced, is.Status
	}
	if is.UID == n.UID {
		n.Rest = is.Rest.With(n.Rest)
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
