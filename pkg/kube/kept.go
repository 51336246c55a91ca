package kube

import (
	"cmp"
	"maps"
	"slices"

	"github.com/k8s-ovs/k8s-ovs/pkg/service"
)

// kept is how many flows the services come to that were told, and what of them was left out as their
// namespace has too many: a tenant's services may name far more endpoints than a node has memory for.
// Which of those that were told get into the switch is the reader's to decide.
type kept struct {
	of          map[service.Key]int
	ofNamespace map[string]int
	short       map[service.Key]struct{}
}

func newKept() kept {
	return kept{of: map[service.Key]int{}, ofNamespace: map[string]int{}, short: map[service.Key]struct{}{}}
}

// room is how many flows a service may come to.
func (k kept) room(key service.Key) int { return min(service.MostKept, k.left(key)) }

// left is what its namespace leaves a service.
func (k kept) left(key service.Key) int {
	return service.MostKeptOfNamespace - k.ofNamespace[key.Namespace] + k.of[key]
}

// note takes in what is told of a service.
func (k kept) note(s service.Service) {
	delete(k.short, s.Key)
	if s.Short() && k.left(s.Key) < service.MostKept {
		k.short[s.Key] = struct{}{}
	}
	now := s.Flows()
	if k.ofNamespace[s.Namespace] += now - k.of[s.Key]; k.ofNamespace[s.Namespace] == 0 {
		delete(k.ofNamespace, s.Namespace)
	}
	if k.of[s.Key] = now; now == 0 {
		delete(k.of, s.Key)
	}
}

// inTurn are services in the order in which they get room: those that lacked none before others.
func (k kept) inTurn(some map[service.Key]struct{}) []service.Key {
	last := func(key service.Key) int {
		if _, short := k.short[key]; short {
			return 1
		}
		return 0
	}
	return slices.SortedFunc(maps.Keys(some), func(a, b service.Key) int { return cmp.Or(cmp.Compare(last(a), last(b)), a.Compare(b)) })
}

// waiting are those that lack room in namespaces that have more of it than before.
func (k kept) waiting(before map[string]int) []service.Key {
	return slices.SortedFunc(func(yield func(service.Key) bool) {
		for key := range k.short {
			if k.ofNamespace[key.Namespace] < before[key.Namespace] && !yield(key) {
				return
			}
		}
	}, service.Key.Compare)
}
