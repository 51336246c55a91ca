package policies

import (
	"cmp"
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// Writer is a leadership, as far as it writes records of policies.
type Writer interface {
	PolicyRecords(ctx context.Context) (map[store.PolicyKey]store.Versioned[string], error)
	PutPolicies(ctx context.Context, changes []store.PolicyChange) (int64, error)
}

// records are the records as they stand in etcd, which nobody else writes, and those that
// may have to be other than they are.
type records struct {
	is    map[store.PolicyKey]store.Versioned[string]
	dirty map[store.PolicyKey]bool
	// most is how many changes etcd takes in a transaction.
	most int
}

// group is changes that are one transaction where etcd takes that many, and else made in
// their order.
type group []store.PolicyChange

// reread takes in the records as they stand: whatever differs from what was known is to be
// looked at.
func (r *records) reread(is map[store.PolicyKey]store.Versioned[string]) {
	for key, v := range is {
		if r.is[key] != v {
			r.dirty[key] = true
		}
	}
	for key := range r.is {
		if _, there := is[key]; !there {
			r.dirty[key] = true
		}
	}
	r.is = is
}

// drop has all records of a set looked at.
func (r *records) drop(hash string) {
	prefix := "sets/" + hash + "/"
	for key := range r.is {
		if strings.HasPrefix(string(key), prefix) {
			r.dirty[key] = true
		}
	}
}

// ranks of records, in whose order they are written: sets before policies that name them,
// isolation together with these, and acknowledgements when what they acknowledge is there.
const (
	rankChunk = iota
	rankSet
	rankPolicies
	rankAcknowledged
)

func rank(key store.PolicyKey) int {
	switch kind := kindOf(key); {
	case kind == "sets" && strings.HasSuffix(string(key), "/of"):
		return rankSet
	case kind == "sets":
		return rankChunk
	case kind == "acknowledged":
		return rankAcknowledged
	}
	return rankPolicies
}

// kindOf is what a key begins with.
func kindOf(key store.PolicyKey) string {
	kind, _, _ := strings.Cut(string(key), "/")
	return kind
}

// plan is what is to be written, in order. Records that are as they should be are no
// longer dirty; should says what one is to be, and what cannot be is left out.
func (r *records) plan(should func(store.PolicyKey) (string, bool)) []group {
	var groups, first []group
	spaces := map[string]group{}
	cluster := false // ClusterNetworkPolicies are among what changes
	for _, key := range slices.SortedFunc(maps.Keys(r.dirty), func(a, b store.PolicyKey) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a, b))
	}) {
		value, ok := should(key)
		if !ok || value == r.is[key].Value {
			delete(r.dirty, key)
			continue
		}
		change := store.PolicyChange{Key: key, Value: value, Revision: r.is[key].Revision}
		if rank(key) == rankSet && value != "" && whole(r.is[key].Value) && !whole(value) {
			// What needs the set closes before members, or their ports, go.
			first = append(first, group{change})
			continue
		}
		if rank(key) != rankPolicies {
			groups = append(groups, group{change})
			continue
		}
		cluster = cluster || kindOf(key) == "clusterpolicies"
		_, rest, _ := strings.Cut(string(key), "/")
		namespace, _, _ := strings.Cut(rest, "/")
		spaces[namespace] = append(spaces[namespace], change)
	}
	if cluster {
		// What they select in all namespaces changes with them.
		spaces = map[string]group{"": slices.Concat(slices.Collect(maps.Values(spaces))...)}
	}
	// Sorted in: behind the sets, before the acknowledgements.
	at := slices.IndexFunc(groups, func(g group) bool { return rank(g[0].Key) > rankPolicies })
	if at < 0 {
		at = len(groups)
	}
	var middle []group
	for _, namespace := range slices.Sorted(maps.Keys(spaces)) {
		middle = append(middle, r.ordered(spaces[namespace]))
	}
	return slices.Concat(first, slices.Insert(groups, at, middle...))
}

// whole reports whether the record of a set says that all members are there.
func whole(record string) bool {
	var set topology.AddressSet
	return json.Unmarshal([]byte(record), &set) == nil && set.Whole
}

// ordered are the changes of a group in the order that they have to be made in, where they do
// not fit into one transaction. After each of them a pod's policies are those that it had or
// those that it is to have, of each kind: what comes is there before it is named, a
// ClusterNetworkPolicy that changes has lost the namespaces that are to be none of its, and
// what goes is not named any more. Namespaces that no ClusterNetworkPolicy selects have records
// from before the first until the last is gone.
func (r *records) ordered(g group) group {
	steps := map[store.PolicyKey]int{}
	for _, c := range g {
		steps[c.Key] = r.step(c)
	}
	slices.SortFunc(g, func(a, b store.PolicyChange) int {
		return cmp.Or(cmp.Compare(steps[a.Key], steps[b.Key]), cmp.Compare(a.Key, b.Key))
	})
	return g
}

func (r *records) step(c store.PolicyChange) int {
	switch kind, goes := kindOf(c.Key), c.Value == ""; {
	case kind == "policies" && !goes:
		return 0
	case kind == "isolation" && !goes && !gains(r.is[c.Key].Value, c.Value):
		return 1
	case kind == "clusterpolicies" && !goes:
		return 2
	case kind == "isolation" && !goes:
		return 3
	case kind == "clusterpolicies":
		return 4
	case kind == "isolation":
		return 5
	}
	return 6 // policies that go
}

// gains reports whether a record of isolation comes to name ClusterNetworkPolicies that it did
// not. One that cannot be read named none.
func gains(from, to string) bool {
	var old, fresh topology.Isolation
	_ = json.Unmarshal([]byte(from), &old)
	_ = json.Unmarshal([]byte(to), &fresh) // it was made here
	return slices.ContainsFunc(fresh.Cluster, func(p topology.SelectingPolicy) bool {
		return !slices.ContainsFunc(old.Cluster, func(q topology.SelectingPolicy) bool { return p.Name == q.Name })
	})
}

// batch takes as many groups as one transaction may have off the front. A group that is
// larger is begun, and goes on with the next.
func batch(groups []group, most int) (changes []store.PolicyChange, rest []group) {
	size := 0
	for i, g := range groups {
		bytes := 0
		for _, c := range g {
			bytes += bytesOf(c)
		}
		if len(changes)+len(g) <= most && size+bytes <= store.MaxBatchBytes {
			changes, size = append(changes, g...), size+bytes
			continue
		}
		if len(changes) > 0 {
			return changes, groups[i:]
		}
		n := 0
		for n < min(len(g), most) && (n == 0 || size+bytesOf(g[n]) <= store.MaxBatchBytes) {
			size += bytesOf(g[n])
			n++
		}
		return g[:n], append([]group{g[n:]}, groups[i+1:]...)
	}
	return changes, nil
}

// keyBytes is more than the key of a record has.
const keyBytes = 512

func bytesOf(c store.PolicyChange) int { return len(c.Value) + keyBytes }

// wrote takes in that changes were made at a revision.
func (r *records) wrote(changes []store.PolicyChange, rev int64) {
	for _, c := range changes {
		delete(r.dirty, c.Key)
		if c.Value == "" {
			delete(r.is, c.Key)
		} else {
			r.is[c.Key] = store.Versioned[string]{Value: c.Value, Revision: rev}
		}
	}
}
