package policies

import (
	"net/netip"
	"slices"

	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/policy"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// place is what a node's record says of it: its name, and which addresses it may give to pods.
type place struct {
	name    string
	subnets []netip.Prefix
}

func (p place) has(a netip.Addr) bool {
	return slices.ContainsFunc(p.subnets, func(subnet netip.Prefix) bool { return subnet.Contains(a) })
}

// claim is that a pod has an address, by the word of the node of that name.
type claim struct {
	topology.NodePod
	node string
}

// node is what one said of its pods.
type node struct {
	told store.Versioned[topology.NodePods]
	pods map[netip.Addr]claim // those in its subnets
	// silent is that it has no record: its agent is away. Its pods are in sets as before, for
	// as long as the node has a subnet: they go on, and their addresses are given to nobody else
	// meanwhile.
	silent bool
}

// setSubnets takes in which addresses a node may give to pods: what it says of others does
// not count.
func (s *state) setSubnets(nodes map[netip.Addr]topology.Node) {
	for ip, was := range s.places {
		if n, there := nodes[ip]; !there || n.Host != was.name {
			delete(s.places, ip)
			s.takeNode(ip)
		}
	}
	for ip, n := range nodes {
		now := place{name: n.Host, subnets: n.PodSubnets()}
		if was, had := s.places[ip]; !had || !slices.Equal(now.subnets, was.subnets) {
			s.places[ip] = now
			s.takeNode(ip)
		}
	}
}

// setPods takes in what all live nodes say of their pods.
func (s *state) setPods(all store.NodePods) {
	anew := all.Listing != s.listing
	s.listing = all.Listing
	for ip, n := range s.nodes {
		if _, there := all.Nodes[ip]; !there && !n.silent {
			n.silent = true
			s.touched[store.AcknowledgedKey(ip)] = true
		}
	}
	for ip, told := range all.Nodes {
		n := s.nodes[ip]
		if n == nil {
			n = &node{}
			s.nodes[ip] = n
		}
		if !n.silent && n.told.Revision == told.Revision && !anew {
			continue
		}
		n.told, n.silent = told, false
		s.takeNode(ip)
		s.dropLeft(ip)
		s.touched[store.AcknowledgedKey(ip)] = true
	}
}

// takeNode takes in what a node said, as far as that is its own to say.
func (s *state) takeNode(ip netip.Addr) {
	n := s.nodes[ip]
	if n == nil {
		return
	}
	was := n.pods
	n.pods = map[netip.Addr]claim{}
	where := s.places[ip]
	for _, p := range n.told.Value.Pods {
		if where.has(p.Address) {
			n.pods[p.Address] = claim{p, where.name}
		}
	}
	for a, old := range was {
		if p, still := n.pods[a]; !still || !same(p, old) {
			s.unplace(a, old)
		}
	}
	for a, p := range n.pods {
		if old, had := was[a]; had && same(p, old) {
			continue
		}
		key := kube.PodKey{Namespace: p.Namespace, Name: p.Name}
		if s.addresses[key] == nil {
			s.addresses[key] = map[netip.Addr]claim{}
		}
		s.addresses[key][a] = p
		s.place(a, p)
	}
}

// same reports whether both are one pod.
func same(a, b claim) bool {
	return a.Namespace == b.Namespace && a.Name == b.Name && a.UID == b.UID && a.node == b.node
}

// unplace says that a pod has an address no longer.
func (s *state) unplace(a netip.Addr, p claim) {
	key := kube.PodKey{Namespace: p.Namespace, Name: p.Name}
	if delete(s.addresses[key], a); len(s.addresses[key]) == 0 {
		delete(s.addresses, key)
		delete(s.static, key)
	}
	s.index.DeletePod(a)
}

func (s *state) placeAll(key kube.PodKey) {
	for a, p := range s.addresses[key] {
		s.place(a, p)
	}
}

// takesStatic reports whether, by a namespace's labels, static pods of it are in sets.
func takesStatic(namespace map[string]string) bool {
	return namespace[topology.StaticPodsLabel] == topology.StaticPodsAllowed
}

// placeStatic has the static pods of a namespace in sets, or in none.
func (s *state) placeStatic(namespace string) {
	for key, labels := range s.labels {
		if key.Namespace == namespace && labels.Mirror {
			s.placeAll(key)
		}
	}
}

// place tells the index of who has an address. A pod whose labels are not known, or are those
// of a namesake, is in no set; nor is one that the API server has bound to another node: whoever
// has stolen a node could give its own addresses to pods that policies let in. He could make such
// pods, too, in any namespace and with any labels: what its node made itself, as the image of a
// static pod, is in no set where the namespace's label does not say otherwise.
func (s *state) place(a netip.Addr, p claim) {
	key := kube.PodKey{Namespace: p.Namespace, Name: p.Name}
	labels, known := s.labels[key]
	delete(s.static, key)
	if known && labels.Mirror && !takesStatic(s.spaces[p.Namespace]) {
		s.static[key] = true
		s.index.DeletePod(a)
		return
	}
	if !known || !labels.Is(p.UID) || labels.Node != p.node {
		s.index.DeletePod(a)
		return
	}
	member := policy.Member{Address: a}
	if ports := s.ports[key]; ports.UID == labels.UID {
		for _, port := range ports.Ports {
			if s.portNames[port.Name] != nil {
				member.Ports = append(member.Ports, port)
			}
		}
	}
	s.index.SetPod(policy.Pod{Key: policy.Key{Namespace: p.Namespace, Name: p.Name}, Labels: labels.Labels, Member: member})
}

// leave keeps those members of a record that are of nodes which have not said anything.
func (s *state) leave(key store.PolicyKey, base netip.Addr, chunk topology.SetChunk) {
	for ip, where := range s.places {
		if n := s.nodes[ip]; n != nil && n.told.Revision != 0 {
			continue
		}
		if !slices.ContainsFunc(where.subnets, netip.PrefixFrom(base, 24).Overlaps) {
			continue
		}
		part := within(base, chunk, where)
		if part.Addresses.Len() == 0 {
			continue
		}
		if s.left[key] == nil {
			s.left[key] = map[netip.Addr]topology.SetChunk{}
		}
		s.left[key][ip] = part
		if s.nodes[ip] == nil {
			s.nodes[ip] = &node{silent: true}
		}
	}
}

// within is the part of a chunk that a node may give to pods.
func within(base netip.Addr, c topology.SetChunk, where place) topology.SetChunk {
	var mask topology.Octets
	b := base.As4()
	for octet := range c.Addresses.All() {
		b[3] = octet
		if where.has(netip.AddrFrom4(b)) {
			mask.Add(octet)
		}
	}
	out := topology.SetChunk{Addresses: mask}
	for _, p := range c.Ports {
		if p.Addresses = and(p.Addresses, mask); p.Addresses.Len() > 0 {
			out.Ports = append(out.Ports, p)
		}
	}
	return out
}

func and(a, b topology.Octets) topology.Octets {
	for i := range a {
		a[i] &= b[i]
	}
	return a
}

// dropLeft drops what former leaders left of a node.
func (s *state) dropLeft(ip netip.Addr) {
	for key, parts := range s.left {
		if _, there := parts[ip]; !there {
			continue
		}
		s.touched[key] = true
		if delete(parts, ip); len(parts) == 0 {
			delete(s.left, key)
		}
	}
}
