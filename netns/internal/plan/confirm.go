package plan

import (
	"fmt"
	"net/netip"

	"github.com/k8s-ovs/k8s-ovs/pkg/options/near"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// Confirm says why there is no sense in confirming ip as an address of node: nobody
// has the name, or a node that follows no Kubernetes Node, which writes its record
// itself.
func Confirm(s topology.Snapshot, node string, ip netip.Addr) error {
	var names []string
	for _, n := range s.Nodes {
		if n.Host == node && (n.UID != "" || n.HostIP == ip) {
			return nil
		}
		if n.UID != "" {
			names = append(names, n.Host)
		}
	}
	if _, there := s.Nodes[ip]; there {
		return nil // a newcomer that is kept out by that record
	}
	if len(names) == 0 {
		return fmt.Errorf("no node of the network %q follows a Kubernetes Node; a host that registers itself needs no confirmation", s.Config.Name)
	}
	return fmt.Errorf("there is no node %q%s; a node that has no record yet gets one without confirmation", node, near.Phrase(node, names))
}
