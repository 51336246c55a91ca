package service

import (
	"cmp"
	"net/netip"
	"slices"
)

// For returns what node should serve of spec, whose endpoints are in all; slices of other services are ignored.
// It has no more than most flows ([MostKept]), and is found without looking at all endpoints of thousands of ports:
// those of ports for which there is no room are left out whole, and of others the first ones are told.
func For(spec Spec, all []Slice, node Node, most int) Service {
	served := Service{Key: spec.Key, UID: spec.UID, Affinity: spec.Affinity}
	answers := byPort(spec, all)
	vips := slices.DeleteFunc(slices.Clone(spec.VIPs), func(a netip.Addr) bool { return !Serves(a) })
	var tooMany []LeftOut
	looked := 0
	for _, port := range spec.Ports {
		answering := answers[named{port.Name, port.Protocol}]
		some := number(answering)
		whole := some > 0 && (most < leastFlows || looked+some > mostLooked)
		var endpoints []Endpoint
		if !whole {
			looked += some
			found, leftOut := candidates(answering, mostLeftOut-len(served.LeftOut))
			served.LeftOut = append(served.LeftOut, leftOut...)
			endpoints = choose(found, spec.InternalLocal, node)
			flows := len(vips) * Port{Endpoints: endpoints}.Flows()
			if whole = flows > most; whole {
				endpoints, flows = nil, 0
			}
			most -= flows
		}
		for _, vip := range vips {
			p := Port{VIP: vip, Protocol: port.Protocol, Port: port.Port, Endpoints: endpoints}
			served.Ports = append(served.Ports, p)
			if whole {
				tooMany = append(tooMany, p.LeftOutWhole())
			}
		}
	}
	slices.SortFunc(served.Ports, func(a, b Port) int {
		return cmp.Or(a.VIP.Compare(b.VIP), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
	})
	served.LeftOut = append(served.LeftOut, tooMany...)
	slices.SortFunc(served.LeftOut, LeftOut.Compare)
	served.LeftOut = slices.Compact(served.LeftOut)
	return served
}

// Serves reports whether services may have addresses and endpoints of the family of a: of
// IPv4, as nodes translate no other.
func Serves(a netip.Addr) bool { return a.Is4() }

// candidate is an endpoint of one service port, with what decides whether it is used.
type candidate struct {
	SliceEndpoint
	Port uint16
}

// named is what a port of a service and those of its slices have in common.
type named struct {
	name     string
	protocol Protocol
}

// answering are endpoints that answer at a port.
type answering struct {
	at        SlicePort
	endpoints []SliceEndpoint
}

// byPort are the endpoints of a service by its ports, of which there may be thousands. They are in the order of the names of slices:
// which of them come first must not depend on anything else.
func byPort(spec Spec, all []Slice) map[named][]answering {
	out := map[named][]answering{}
	for _, slice := range slices.SortedStableFunc(slices.Values(all), func(a, b Slice) int { return cmp.Compare(a.Name, b.Name) }) {
		if slice.Service != spec.Key {
			continue
		}
		for _, at := range slice.Ports {
			if at.Port != 0 {
				name := named{at.Name, at.Protocol}
				out[name] = append(out[name], answering{at, slice.Endpoints})
			}
		}
	}
	return out
}

// number is how many endpoints there are to look at.
func number(all []answering) (n int) {
	for _, some := range all {
		n += len(some.endpoints)
	}
	return n
}

// candidates leaves out endpoints that nothing may be sent to. Some of them the switch would refuse, and all services with them; nobody
// but a person writes one (an endpoint of a pod has the pod's address), so it is said which, of the first few.
func candidates(all []answering, few int) (found []candidate, leftOut []LeftOut) {
	found = make([]candidate, 0, number(all))
	for _, some := range all {
		for _, endpoint := range some.endpoints {
			if !Serves(endpoint.Address) {
				continue
			}
			if reason := Unreachable(endpoint.Address); reason != "" {
				if len(leftOut) < few {
					leftOut = append(leftOut, LeftOut{some.at.Protocol, Endpoint{endpoint.Address, some.at.Port}, reason})
				}
				continue
			}
			found = append(found, candidate{endpoint, some.at.Port})
		}
	}
	return found, leftOut
}

// choose returns the endpoints that clients on node are sent to: the ready ones, or when there are none, those that still serve while
// they terminate (KEP-1669).
func choose(all []candidate, local bool, node Node) []Endpoint {
	if local {
		all = keep(all, func(c candidate) bool { return c.Node == node.Name })
	}
	usable := keep(all, func(c candidate) bool { return c.Ready })
	switch {
	case len(usable) == 0:
		usable = keep(all, func(c candidate) bool { return c.Serving && c.Terminating })
	case !local:
		usable = near(usable, node)
	}
	var endpoints []Endpoint
	for _, c := range usable {
		endpoints = append(endpoints, Endpoint{c.Address, c.Port})
	}
	slices.SortFunc(endpoints, func(a, b Endpoint) int {
		return cmp.Or(a.Address.Compare(b.Address), cmp.Compare(a.Port, b.Port))
	})
	return slices.Compact(endpoints)
}

// near keeps the endpoints whose topology hints name the node, else its zone. As in kube-proxy, hints count only when every endpoint has
// one of that kind and some are for this node or zone; otherwise all are kept.
func near(all []candidate, node Node) []candidate {
	for _, hint := range []struct {
		of    func(candidate) []string
		value string
	}{
		{func(c candidate) []string { return c.ForNodes }, node.Name},
		{func(c candidate) []string { return c.ForZones }, node.Zone},
	} {
		if hint.value == "" || slices.ContainsFunc(all, func(c candidate) bool { return len(hint.of(c)) == 0 }) {
			continue
		}
		if kept := keep(all, func(c candidate) bool { return slices.Contains(hint.of(c), hint.value) }); len(kept) > 0 {
			return kept
		}
	}
	return all
}

func keep(all []candidate, wanted func(candidate) bool) []candidate {
	var kept []candidate
	for _, c := range all {
		if wanted(c) {
			kept = append(kept, c)
		}
	}
	return kept
}
