package service

import "slices"

// What a service may come to on each node, in flows and in choices of groups, and what all services of a
// namespace together may. Every node has all services, so that one with 20,000 ports and 20 pods would
// be half a gigabyte on each. A service of 10,000 pods may have six ports, and a namespace 10,000
// services of one port and a dozen pods.
const (
	MostFlows            = 1 << 17
	MostFlowsOfNamespace = 1 << 18
)

// What is computed of services and kept on the way to the flows, where it is decided what there is room for.
// Ports and endpoints are linear in what the API server keeps; the endpoints of all ports are their product.
const (
	// MostKept bounds [For] of a service, MostKeptOfNamespace those of a namespace together: flows and choices.
	MostKept            = 2 * MostFlows
	MostKeptOfNamespace = 2 * MostFlowsOfNamespace
	// leastFlows is what a port with one endpoint comes to.
	leastFlows = 4
	// mostLooked is how many endpoints of all its ports are looked at for one service.
	mostLooked = 1 << 19
	// mostLeftOut is how many endpoints are told that a service names and that no machine has.
	mostLeftOut = 1024
)

// Flows is about how many flows and choices a port comes to: none without endpoints, which the node
// refuses.
func (p Port) Flows() int {
	if len(p.Endpoints) == 0 {
		return 0
	}
	return 2 + 2*len(p.Endpoints)
}

// Flows is what all ports come to.
func (s Service) Flows() (n int) {
	for _, p := range s.Ports {
		n += p.Flows()
	}
	return n
}

// Short reports whether ports are left out as there are [TooMany].
func (s Service) Short() bool {
	return slices.ContainsFunc(s.LeftOut, func(l LeftOut) bool { return l.Reason == TooMany })
}

// LeftOutWhole is what tells that a port is left out with all its endpoints.
func (p Port) LeftOutWhole() LeftOut {
	return LeftOut{p.Protocol, Endpoint{p.VIP, p.Port}, TooMany}
}
