package flowstore

import (
	"fmt"
	"slices"
)

// Wanted is all that the bridge is to have, as text, in order: flows, groups and meters of
// all owners. It is for who looks at a node; writing the text keeps nobody from the store.
func (s *Store) Wanted() []string {
	s.mu.Lock()
	flows, groups, meters := wanted(s.flows), wanted(s.groups), wanted(s.meters)
	s.mu.Unlock()
	return slices.Concat(texts(flows), texts(groups), texts(meters))
}

// wanted are the values that somebody wants. They are replaced, never changed.
func wanted[K comparable, V any](s *shelf[K, V]) (values []V) {
	for _, i := range s.items {
		if i.owners > 0 {
			values = append(values, i.value)
		}
	}
	return values
}

func texts[V fmt.Stringer](values []V) []string {
	out := make([]string, len(values))
	for i, v := range values {
		out[i] = v.String()
	}
	slices.Sort(out)
	return out
}
