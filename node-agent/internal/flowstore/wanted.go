package flowstore

import (
	"fmt"
	"slices"
)

// Wanted is all that the bridge is to have, as text, in order: flows, groups and meters of
// all owners. It is for who looks at a node.
func (s *Store) Wanted() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Concat(texts(s.flows), texts(s.groups), texts(s.meters))
}

func texts[K comparable, V fmt.Stringer](s *shelf[K, V]) (out []string) {
	for _, i := range s.items {
		if i.owners > 0 {
			out = append(out, i.value.String())
		}
	}
	slices.Sort(out)
	return out
}
