package policies

import (
	"net/netip"
	"slices"

	"github.com/k8s-ovs/k8s-ovs/pkg/policy"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// maxPodPorts is how many named ports of a pod a set has, of those that its policies look up. So a
// record has at most 256 times as many, of at most 76 bytes each: 623 kB. Whoever makes pods gives
// them their ports, so what does not count of one pod is that pod's own loss.
const maxPodPorts = 32

// chunk is the part of a set in the /24 that begins with base. Where etcd does not take it with its
// ports it has none, and the set is not whole: what allows by those ports allows nothing, and
// what denies denies all.
func (s *state) chunk(key store.PolicyKey, set policy.Set, base string) (string, error) {
	at, err := netip.ParseAddr(base)
	if err != nil {
		return "", nil // nothing of ours has that key
	}
	n := s.sets[set]
	members := s.index.Members(policy.Chunk{Set: set, Base: at})
	for i, m := range members {
		members[i].Ports = n.lookedUp(m.Ports)
	}
	chunk := policy.Chunks(members)[at]
	for _, part := range s.left[key] {
		chunk = union(chunk, n.lookedUpIn(part))
	}
	if chunk.Addresses.Len() == 0 {
		s.shorten(n, at, false)
		return "", nil
	}
	text, err := encode(chunk)
	short := err == nil && len(text) > s.limit(key)
	if short {
		chunk.Ports = nil
		text, err = encode(chunk)
	}
	s.shorten(n, at, short)
	return text, err
}

// shorten notes whether a chunk lacks its ports.
func (s *state) shorten(n *namedSet, base netip.Addr, short bool) {
	if n.short[base] == short {
		return
	}
	if n.short[base] = short; !short {
		delete(n.short, base)
	}
	s.touched[store.SetKey(n.hash)] = true
}

// lookedUp are the ports of a pod that the set has: the first of those that its policies look up.
func (n *namedSet) lookedUp(ports []policy.NamedPort) (out []policy.NamedPort) {
	for _, p := range ports {
		if n.ports[p.Name] == nil {
			continue
		}
		if out = append(out, p); len(out) == maxPodPorts {
			break
		}
	}
	return out
}

// lookedUpIn is a chunk that a former leader wrote, with those of its ports that the set has.
func (n *namedSet) lookedUpIn(c topology.SetChunk) topology.SetChunk {
	out := topology.SetChunk{Addresses: c.Addresses}
	var have [256]int
	for _, p := range c.Ports {
		if n.ports[p.Name] == nil {
			continue
		}
		port := topology.ChunkPort{Name: p.Name, Protocol: p.Protocol, Port: p.Port}
		for octet := range p.Addresses.All() {
			if have[octet]++; have[octet] <= maxPodPorts {
				port.Addresses.Add(octet)
			}
		}
		if port.Addresses.Len() > 0 {
			out.Ports = append(out.Ports, port)
		}
	}
	return out
}

// union is both chunks. What came first is not changed.
func union(a, b topology.SetChunk) topology.SetChunk {
	out := topology.SetChunk{Addresses: or(a.Addresses, b.Addresses), Ports: slices.Clone(a.Ports)}
	for _, p := range b.Ports {
		at := slices.IndexFunc(out.Ports, func(q topology.ChunkPort) bool {
			return q.Name == p.Name && q.Protocol == p.Protocol && q.Port == p.Port
		})
		if at < 0 {
			out.Ports = append(out.Ports, p)
		} else {
			out.Ports[at].Addresses = or(out.Ports[at].Addresses, p.Addresses)
		}
	}
	return out
}

func or(a, b topology.Octets) topology.Octets {
	for i := range a {
		a[i] |= b[i]
	}
	return a
}
