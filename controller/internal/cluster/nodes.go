package cluster

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// nodeRecords is what has become of the records below subnets/ while a plan is made.
type nodeRecords struct {
	live map[string]kube.Node // by UID
	// gone are the addresses whose records go, moved the subnets that nodes take
	// to their new address, by UID.
	gone  map[netip.Addr]bool
	moved map[string]netip.Prefix
	taken map[netip.Addr]string // by address: the node it is for
}

// nodes plans the records below subnets/.
func (d *round) nodes() {
	r := nodeRecords{live: map[string]kube.Node{}, gone: map[netip.Addr]bool{}, moved: map[string]netip.Prefix{}, taken: map[netip.Addr]string{}}
	addresses := map[netip.Addr]bool{}
	for _, n := range d.cluster.Nodes {
		r.live[n.UID] = n
		for _, ip := range n.Addresses {
			addresses[ip] = true
		}
	}
	d.staleNodes(r, addresses)
	for _, n := range byAge(d.cluster.Nodes, nodeAge) {
		d.node(r, n)
	}
}

// staleNodes plans the end of records whose Node is gone, or has another address.
// A record whose address another Node has now stays: the same machine, registered
// anew.
func (d *round) staleNodes(r nodeRecords, addresses map[netip.Addr]bool) {
	for _, ip := range slices.SortedFunc(maps.Keys(d.records.Nodes), netip.Addr.Compare) {
		rec := d.records.Nodes[ip]
		if rec.UID == "" {
			continue
		}
		why := "its Node is gone"
		n, live := r.live[rec.UID]
		switch {
		case live && (len(n.Addresses) == 0 || slices.Contains(n.Addresses, ip)):
			continue
		case live:
			why = "its Node has another address"
			r.moved[rec.UID] = rec.Subnet
		case addresses[ip]:
			continue
		}
		r.gone[ip] = true
		d.plan.Writes = append(d.plan.Writes, Write{Key: ip.String(), Node: &rec, Delete: true, Revision: d.records.Revs.Nodes[ip].Mod, Why: why})
	}
}

// node plans the record of one Node.
func (d *round) node(r nodeRecords, n kube.Node) {
	refuse := func(reason, message string) { d.refuse(NodeRef(n.Name), reason, message) }
	if len(n.Addresses) == 0 {
		refuse(NodeRefused, "it has no IPv4 InternalIP: give its kubelet one with --node-ip")
		return
	}
	ip := d.address(n)
	want := topology.Node{Host: n.Name, HostIP: ip}
	if err := want.Validate(d.records.Config); err != nil {
		refuse(NodeRefused, err.Error())
		return
	}
	if other, ok := r.taken[ip]; ok {
		refuse(NodeRefused, fmt.Sprintf("its address %s is that of node %s too", ip, other))
		return
	}
	r.taken[ip] = n.Name
	if reason, bad := d.records.Invalid["subnets/"+ip.String()]; bad {
		refuse(NodeRefused, "its record in etcd cannot be used; mend or delete it: "+reason)
		return
	}
	rec, exists := d.records.Nodes[ip]
	exists = exists && !r.gone[ip]
	revision := int64(0)
	if exists {
		want, revision = rec, d.records.Revs.Nodes[ip].Mod
	}
	want.Host, want.UID = n.Name, n.UID
	if reason := d.subnet(&want, n, exists, r.moved[n.UID]); reason != "" {
		refuse(SubnetRefused, reason)
		if !exists {
			return
		}
	}
	if exists && want.Host == rec.Host && want.UID == rec.UID && want.Subnet == rec.Subnet && want.Assign == rec.Assign {
		return
	}
	d.plan.Writes = append(d.plan.Writes, Write{Key: ip.String(), Node: &want, Revision: revision, Why: "its Node"})
}

// address is the one that a node's record has already, else its first.
func (d *round) address(n kube.Node) netip.Addr {
	for _, ip := range n.Addresses {
		if rec, ok := d.records.Nodes[ip]; ok && rec.UID == n.UID {
			return ip
		}
	}
	return n.Addresses[0]
}

// subnet makes want ask for, or have, its subnet. It returns why that cannot be.
func (d *round) subnet(want *topology.Node, n kube.Node, exists bool, moved netip.Prefix) string {
	if d.planner.source == FromNode {
		return d.nodeSubnet(want, n)
	}
	switch {
	case !exists:
		want.Subnet, want.Assign = moved, true
	case !want.Ready() && !want.Assign && !d.resting(want.Status):
		want.Assign, want.Status = true, nil
	}
	return ""
}

func (d *round) nodeSubnet(want *topology.Node, n kube.Node) string {
	cfg := d.records.Config
	if !n.PodCIDR.IsValid() {
		return "it has no IPv4 spec.podCIDR: let kube-controller-manager give them out (--allocate-node-cidrs), or use --subnet-source records"
	}
	fits := topology.Node{Host: n.Name, HostIP: want.HostIP, Subnet: n.PodCIDR}
	switch {
	case fits.Validate(cfg) != nil:
		return fmt.Sprintf("its spec.podCIDR %s is not a /%d of the pod network %s: set network and host-subnet-length to kube-controller-manager's --cluster-cidr and --node-cidr-mask-size, or use --subnet-source records", n.PodCIDR, cfg.NodeBits(), cfg.Network)
	case want.Subnet == n.PodCIDR:
	case want.Ready():
		return fmt.Sprintf("its spec.podCIDR is %s, but its pods have addresses of %s, which stays: drain the node and delete it to change that", n.PodCIDR, want.Subnet)
	case !d.resting(want.Status):
		want.Subnet, want.Assign, want.Status = n.PodCIDR, false, nil
	}
	return ""
}
