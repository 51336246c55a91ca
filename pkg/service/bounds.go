package service

// What a service may come to on each node, in flows and in choices of groups, and what all services of a
// namespace together may. Every node has all services, so that one with 20,000 ports and 20 pods would
// be half a gigabyte on each.
const (
	MostFlows            = 1 << 15
	MostFlowsOfNamespace = 1 << 16
)

// Flows is about how many flows and choices a port comes to: none without endpoints, which the node
// refuses.
func (p Port) Flows() int {
	if len(p.Endpoints) == 0 {
		return 0
	}
	return 2 + 2*len(p.Endpoints)
}
