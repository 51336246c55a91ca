// Package nodeaddr decides which of the addresses that Nodes list in their status are taken for
// theirs. A kubelet writes that status as it likes; ClusterNetworkPolicies have rules for nodes by
// these addresses, and the API server's policies refuse them as endpoints.
//
// It is pure.
package nodeaddr

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// told is how many addresses a complaint names: an Event has room for 1,024 bytes.
const told = 4

// Refused is an address that a Node lists, and why it is not taken for its own.
type Refused struct {
	Address netip.Addr
	Why     string
}

// Addresses are those of one Node.
type Addresses struct {
	// Own are taken for its own, in the order in which [kube.Node] has them.
	Own     []netip.Addr
	Refused []Refused
	// More is how many others it lists, which are too many to look at.
	More int
}

// Complaint says what of a Node's addresses is passed over; empty where nothing is.
func (a Addresses) Complaint() string {
	var parts []string
	for _, r := range a.Refused[:min(len(a.Refused), told)] {
		parts = append(parts, r.Address.String()+" is "+r.Why)
	}
	if more := len(a.Refused) - told; more > 0 {
		parts = append(parts, fmt.Sprintf("%d others cannot be its own either", more))
	}
	if a.More > 0 {
		parts = append(parts, fmt.Sprintf("%d are more than the %d that count of a Node", a.More, kube.MaxNodeAddresses))
	}
	if len(parts) == 0 {
		return ""
	}
	return "policies pass over some of the addresses in its status: " + strings.Join(parts, "; ") + ": see what its kubelet, or the cloud's controller, reports"
}

// Of are the addresses of all Nodes, by their names. records are the hosts of the overlay.
//
// An address belongs to the Node whose record it is, else to the oldest Node that has it as
// InternalIP, of either family, where no older one lists it at all: with an older Node's
// ExternalIP as its InternalIP a stolen one would else take that away. What belongs to no Node,
// such as the address behind which several leave the cluster, may be listed by several.
func Of(cfg topology.Config, nodes map[string]kube.Node, records map[netip.Addr]topology.Node) map[string]Addresses {
	owners := ownersOf(nodes, records)
	out := make(map[string]Addresses, len(nodes))
	for name, n := range nodes {
		a := Addresses{More: n.MoreAddresses}
		for _, ip := range n.Every {
			if why := refuse(cfg, ip.Unmap().WithZone(""), name, owners); why != "" {
				a.Refused = append(a.Refused, Refused{ip, why})
			} else {
				a.Own = append(a.Own, ip)
			}
		}
		out[name] = a
	}
	return out
}

// owner is whose an address is: a Node by its name, or a host that is no Node.
type owner struct {
	name string
	host bool
}

func ownersOf(nodes map[string]kube.Node, records map[netip.Addr]topology.Node) map[netip.Addr]owner {
	byUID := make(map[string]string, len(nodes))
	for name, n := range nodes {
		byUID[n.UID] = name
	}
	owners := make(map[netip.Addr]owner, len(nodes))
	for ip, r := range records {
		name, is := byUID[r.UID]
		switch {
		case r.UID != "" && is:
			owners[ip] = owner{name: name}
		case r.UID != "": // its Node is gone: the next that has the address has it
		default:
			_, node := nodes[r.Host]
			owners[ip] = owner{name: r.Host, host: !node}
		}
	}
	oldest := slices.SortedFunc(maps.Values(nodes), func(a, b kube.Node) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Name, b.Name))
	})
	listed := map[netip.Addr]bool{} // by older ones
	for _, n := range oldest {
		for i, ip := range n.Every {
			ip = ip.Unmap().WithZone("")
			_, taken := owners[ip]
			if i < n.Internal && !taken && !listed[ip] {
				owners[ip] = owner{name: n.Name}
			}
			listed[ip] = true
		}
	}
	return owners
}

// refuse says why an address is not that of the Node called name; empty where it may be.
func refuse(cfg topology.Config, ip netip.Addr, name string, owners map[netip.Addr]owner) string {
	if !ip.IsGlobalUnicast() {
		return "not the address of a machine"
	}
	within := func(networks []netip.Prefix) bool {
		return slices.ContainsFunc(networks, func(p netip.Prefix) bool { return p.Contains(ip) })
	}
	switch is, owned := owners[ip]; {
	case within(cfg.PodNetworks()):
		return "inside the pod network"
	case within(cfg.AllServiceNetworks()):
		return "inside the service network"
	case owned && is.host:
		return "the address of host " + is.name + ", which is no Node"
	case owned && is.name != name:
		return "the InternalIP of Node " + is.name
	}
	return ""
}
