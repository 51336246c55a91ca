package cluster

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/k8s-ovs/k8s-ovs/controller/internal/nodeaddr"
	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// nodeRecords is what has become of the records below subnets/ while a plan is made.
type nodeRecords struct {
	live map[string]kube.Node // by UID
	// has are the addresses of the records that live Nodes have, by UID.
	has map[string]netip.Addr
	// claimed are the Nodes' first InternalIPs, by name.
	claimed map[string]netip.Addr
	taken   map[netip.Addr]string // by address: the node it is for
}

// placed is a Node whose record is to stand at address.
type placed struct {
	node    kube.Node
	address netip.Addr
	// moved is the subnet that it brings along; not valid where it does not move.
	moved netip.Prefix
}

// nodes plans the records below subnets/.
func (d *round) nodes() {
	r := d.nodeRecords()
	var all []placed
	for _, n := range byAge(d.cluster.Nodes, nodeAge) {
		if p, ok := d.place(r, n); ok {
			all = append(all, p)
		}
	}
	gone := d.staleNodes(r)
	for _, p := range all {
		d.node(p, gone[p.address])
	}
}

// addresses plans what Nodes are taken to have, and has those told whose addresses are passed over.
func (d *round) addresses() {
	d.plan.Addresses = nodeaddr.Of(d.records.Config, d.cluster.Nodes, d.records.Nodes)
	for _, n := range byAge(d.cluster.Nodes, nodeAge) {
		if complaint := d.plan.Addresses[n.Name].Complaint(); complaint != "" {
			d.refuse(NodeRef(n.Name), NodeAddressRefused, complaint)
		}
	}
}

func (d *round) nodeRecords() nodeRecords {
	r := nodeRecords{live: map[string]kube.Node{}, has: map[string]netip.Addr{}, claimed: map[string]netip.Addr{}, taken: map[netip.Addr]string{}}
	for _, n := range d.cluster.Nodes {
		r.live[n.UID] = n
		if len(n.Addresses) > 0 {
			r.claimed[n.Name] = n.Addresses[0]
		}
	}
	for _, ip := range slices.SortedFunc(maps.Keys(d.records.Nodes), netip.Addr.Compare) {
		n, live := r.live[d.records.Nodes[ip].UID]
		// Of two records, as people may make them, the one whose address it lists.
		if _, second := r.has[n.UID]; live && (!second || slices.Contains(n.Addresses, ip)) {
			r.has[n.UID] = ip
		}
	}
	for uid, ip := range r.has {
		r.taken[ip] = r.live[uid].Name
	}
	return r
}

// place decides where the record of one Node is to stand; ok is false where none
// is to be written.
func (d *round) place(r nodeRecords, n kube.Node) (p placed, ok bool) {
	if len(n.Addresses) == 0 {
		d.refuse(NodeRef(n.Name), NodeRefused, "it has no IPv4 InternalIP: give its kubelet one with --node-ip")
		return p, false
	}
	c := d.claim(r, n)
	if err := (topology.Node{Host: n.Name, HostIP: c.address}).Validate(d.records.Config); err != nil {
		d.refuse(NodeRef(n.Name), NodeRefused, err.Error())
		return p, false
	}
	if reason, bad := d.records.Invalid["subnets/"+c.address.String()]; bad {
		d.refuse(NodeRef(n.Name), NodeRefused, "its record in etcd cannot be used; mend or delete it: "+reason)
		return p, false
	}
	p = placed{node: n, address: c.address}
	switch verdict, why := c.judge(); verdict {
	case refused:
		d.refuse(NodeRef(n.Name), NodeRefused, why)
		return p, false
	case waits:
		d.refuse(NodeRef(n.Name), NodeAddressWaiting, why)
		return p, false
	case moves:
		p.moved = d.records.Nodes[c.has].Subnet
		r.has[n.UID] = c.address
	}
	r.taken[c.address] = n.Name
	return p, true
}

// claim is what a Node claims: the address that its record has, where it lists that
// one, else its first.
func (d *round) claim(r nodeRecords, n kube.Node) claim {
	c := claim{node: n.Name, address: n.Addresses[0], has: r.has[n.UID]}
	if slices.Contains(n.Addresses, c.has) {
		c.address = c.has
		return c
	}
	if rec, ok := d.records.Nodes[c.address]; ok {
		c.record = &rec
		if holder, live := r.live[rec.UID]; live {
			c.holder = holder.Name
		} else {
			c.namesake = rec.Host != n.Name && r.claimed[rec.Host] == c.address
		}
	}
	c.taken = r.taken[c.address]
	if c.has.IsValid() {
		c.silent = d.silent(n.UID, c.has)
	}
	return c
}

// silent reports whether the agent at ip, the address of the record of a Node that
// claims another one, was not heard for long enough. It counts from plan to plan, and
// anew after a gap in which nobody listened.
func (d *round) silent(uid string, ip netip.Addr) bool {
	if d.reporting[ip] {
		d.again(d.now.Add(silence / 4))
		return false
	}
	q, ok := d.planner.silent[uid]
	if !ok || q.ip != ip || d.now.Sub(q.seen) > silence/2 {
		q = quiet{ip: ip, since: d.now}
	}
	q.seen = d.now
	d.quiet[uid] = q
	end := q.since.Add(silence)
	if !end.After(d.now) {
		return true
	}
	d.again(d.now.Add(min(end.Sub(d.now), silence/4)))
	return false
}

// staleNodes plans the end of records whose Node is gone, or has another one now, and
// returns their addresses. One that another Node takes over stays: the same machine,
// registered anew.
func (d *round) staleNodes(r nodeRecords) map[netip.Addr]bool {
	gone := map[netip.Addr]bool{}
	for _, ip := range slices.SortedFunc(maps.Keys(d.records.Nodes), netip.Addr.Compare) {
		rec := d.records.Nodes[ip]
		_, live := r.live[rec.UID]
		why := "its Node is gone"
		switch {
		case rec.UID == "", live && r.has[rec.UID] == ip:
			continue
		case live:
			why = "its Node has another address"
		case r.taken[ip] != "":
			continue
		}
		gone[ip] = true
		d.plan.Writes = append(d.plan.Writes, Write{Key: ip.String(), Node: &rec, Delete: true, Revision: d.records.Revs.Nodes[ip].Mod, Why: why})
	}
	return gone
}

// node plans the record of one Node at its place. gone reports that what stood there
// is deleted before.
func (d *round) node(p placed, gone bool) {
	n := p.node
	rec, exists := d.records.Nodes[p.address]
	exists = exists && !gone
	want, revision := topology.Node{HostIP: p.address}, int64(0)
	if exists {
		revision = d.records.Revs.Nodes[p.address].Mod
	}
	// The subnet of a node that moves comes along: its pods have its addresses.
	kept := exists && !p.moved.IsValid()
	if kept {
		want = rec
	}
	why := "its Node"
	if rec.Status.Is(topology.Confirmed) && exists {
		why, want.Status = "its Node, whose address was confirmed by "+cmp.Or(rec.Status.By, "an operator"), nil
	}
	// Its UID is its identity from then on: a bundle that somebody made for it before is of
	// no use.
	want.Host, want.UID, want.Identity = n.Name, n.UID, ""
	if reason := d.subnet(&want, n, kept, p.moved); reason != "" {
		d.refuse(NodeRef(n.Name), SubnetRefused, reason)
		if !exists {
			return
		}
	}
	if exists && want.Equal(rec) {
		return
	}
	d.plan.Writes = append(d.plan.Writes, Write{Key: p.address.String(), Node: &want, Revision: revision, Why: why})
}

// subnet makes want ask for, or have, its subnet. It returns why that cannot be.
func (d *round) subnet(want *topology.Node, n kube.Node, exists bool, moved netip.Prefix) string {
	if d.planner.source == FromNode {
		return d.nodeSubnet(want, n)
	}
	switch {
	case !exists:
		*want = want.WithSubnet(moved)
		want.Assign = true
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
		*want = want.WithSubnet(n.PodCIDR)
		want.Assign, want.Status = false, nil
	}
	return ""
}
