package plan

import (
	"slices"

	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
)

// Change is what becomes of one namespace's reach. The rule is symmetric
// ([netid.Allowed]), so each name stands for both directions: who newly reaches
// it is whom it newly reaches.
type Change struct {
	// Gains are the namespaces that can be reached afterwards but not before.
	Gains []string
	// Loses are the namespaces that can be reached before but not afterwards.
	Loses []string
}

// Diff compares what namespace can reach with the netIDs before and after. A
// namespace without a netID reaches nobody and is reached by nobody. Both
// lists are in order. Pods of one namespace always reach each other, so it is
// in neither.
func Diff(namespace string, before, after map[string]netid.ID) Change {
	var c Change
	for _, other := range union(before, after) {
		if other == namespace {
			continue
		}
		was, is := reaches(before, namespace, other), reaches(after, namespace, other)
		switch {
		case is && !was:
			c.Gains = append(c.Gains, other)
		case was && !is:
			c.Loses = append(c.Loses, other)
		}
	}
	slices.Sort(c.Gains)
	slices.Sort(c.Loses)
	return c
}

// Reaches is all namespaces that namespace can reach and be reached from, in
// order, itself left out.
func Reaches(ids map[string]netid.ID, namespace string) []string {
	return Diff(namespace, nil, ids).Gains
}

func reaches(ids map[string]netid.ID, a, b string) bool {
	x, okA := ids[a]
	y, okB := ids[b]
	return okA && okB && netid.Allowed(x, y)
}

func union(a, b map[string]netid.ID) []string {
	names := make([]string, 0, max(len(a), len(b)))
	for name := range a {
		names = append(names, name)
	}
	for name := range b {
		if _, ok := a[name]; !ok {
			names = append(names, name)
		}
	}
	return names
}
