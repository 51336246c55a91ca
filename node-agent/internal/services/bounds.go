package services

import (
	"cmp"
	"slices"

	"github.com/k8s-ovs/k8s-ovs/pkg/service"
)

// room is how many flows are taken in each namespace, and which services have ports for which there was
// none.
type room struct {
	// most may be taken by one service, mostOfNamespace by those of a namespace.
	most, mostOfNamespace int
	taken                 map[string]int
	short                 map[service.Key]bool
}

func newRoom() room {
	return room{service.MostFlows, service.MostFlowsOfNamespace, map[string]int{}, map[service.Key]bool{}}
}

// fit is a service with those of its ports for which there is room; others are left out besides, each with
// all its endpoints. Ports that are in the picture come before others, so that what grows takes nothing from
// what is there.
func (t *Table) fit(s service.Service, left []service.LeftOut) (service.Service, []service.LeftOut) {
	old := t.parts[s.Key]
	free := min(t.room.most, t.room.mostOfNamespace-(t.room.taken[s.Namespace]-old.service.Flows()))
	had := map[portKey]bool{}
	for _, p := range old.service.Ports {
		had[keyOf(p)] = len(p.Endpoints) > 0
	}
	ports, short := slices.Clone(s.Ports), false
	for _, there := range []bool{true, false} {
		for i, p := range s.Ports {
			if had[keyOf(p)] != there {
				continue
			}
			if n := p.Flows(); n <= free {
				free -= n
				continue
			}
			short, ports[i].Endpoints = true, nil
			left = append(left, p.LeftOutWhole())
		}
	}
	delete(t.room.short, s.Key)
	if !short {
		return s, left
	}
	t.room.short[s.Key] = true
	s.Ports = ports
	slices.SortFunc(left, service.LeftOut.Compare)
	return s, slices.Compact(left)
}

// takes notes that a service's part of the picture is another one.
func (r room) takes(namespace string, old, now service.Service) {
	if r.taken[namespace] += now.Flows() - old.Flows(); r.taken[namespace] == 0 {
		delete(r.taken, namespace)
	}
}

// waiting are the services that lack room in namespaces that have more of it than before.
func (r room) waiting(before map[string]int) (keys []service.Key) {
	for key := range r.short {
		if r.taken[key.Namespace] < before[key.Namespace] {
			keys = append(keys, key)
		}
	}
	return keys
}

// inTurn are services in the order in which they get room: those that lacked none before others.
func (r room) inTurn(keys []service.Key) []service.Key {
	last := func(k service.Key) int {
		if r.short[k] {
			return 1
		}
		return 0
	}
	slices.SortFunc(keys, func(a, b service.Key) int { return cmp.Or(cmp.Compare(last(a), last(b)), a.Compare(b)) })
	return keys
}
