package service

// What a service may come to on each node, in flows and in choices of groups, and what all services of a
// namespace together may. Every node has all services, so that one with 20,000 ports and 20 pods would
// be half a gigabyte on each. A service of 10,000 pods may have six ports, and a namespace 10,000
// services of one port and a dozen pods.
const (
	MostFlows            = 1 << 17
	MostFlowsOfNamespace = 1 << 18
)

// Flows is about how many flows and choices a port comes to: none without endpoints, which the node
// refuses.
func (p Port) Flows() int {
	if len(p.Endpoints) == 0 {
		return 0
	}
	return 2 + 2*len(p.Endpoints)
}
