package topology

import (
	"encoding/json"
	"fmt"
	"net/netip"
)

const (
	// MinMTU is the least MTU of pods, bytes: what every IPv4 host must accept whole
	// (RFC 791, section 3.2).
	MinMTU = 576
	// FloorMTU is the least MTU of pods, bytes, that a node takes another's word for, where its
	// own link gives as much and nobody asked for less: what the tunnel that adds most (VXLAN over
	// IPv6, 70) leaves of the least link of IPv6 (RFC 8200, section 5). Whoever rules one node
	// would else have all pods of the cluster send [MinMTU].
	FloorMTU = 1280 - 70
	// maxMTU is the largest IPv4 packet, bytes (RFC 791, section 3.1).
	maxMTU = 65535
)

// NodeMTU is the record mtu/<nodeIP>: what packets of pods the node's paths carry,
// and what its pods' devices and routes are set to. It has no lease: pods run on
// without their agent. docs/mtu.md says how nodes agree by it. All sizes are
// bytes of an IP packet of a pod.
type NodeMTU struct {
	Host   string     `json:"Host"`
	HostIP netip.Addr `json:"HostIP"`
	// Carries is what every path of the node carries.
	Carries int `json:"Carries"`
	// Receives is never more than the MTU of the node's pods' devices.
	Receives int `json:"Receives"`
	// Sends is never less than the MTU of the node's pods' routes.
	Sends int `json:"Sends"`
	// Limit names what limits Carries: "eth0", "the path to 198.18.0.2 (black hole)".
	Limit string `json:"Limit"`
	// BlackHoles names the peers whose path loses large packets and does not say so,
	// also where that does not limit Carries; empty for none.
	BlackHoles string `json:"BlackHoles,omitempty"`
}

// ParseNodeMTU decodes the record that stands under key (the node's address).
func ParseNodeMTU(key string, data []byte) (NodeMTU, error) {
	var m NodeMTU
	if err := json.Unmarshal(data, &m); err != nil {
		return NodeMTU{}, fmt.Errorf("MTU record %s is not valid JSON of its form: %w", key, err)
	}
	if m.HostIP.String() != key {
		return NodeMTU{}, fmt.Errorf("MTU record %s: HostIP is %s; it must be the address in the key", key, m.HostIP)
	}
	for name, size := range map[string]int{"Carries": m.Carries, "Receives": m.Receives, "Sends": m.Sends} {
		if size < MinMTU || size > maxMTU {
			return NodeMTU{}, fmt.Errorf("MTU record %s: %s %d is not %d to %d", key, name, size, MinMTU, maxMTU)
		}
	}
	return m, nil
}

// MTUs are the records of all nodes at one revision. It is not changed once
// handed out.
type MTUs struct {
	// Revision is the etcd revision up to which every change is in it.
	Revision int64
	// Nodes by HostIP; only those that have a node record.
	Nodes map[netip.Addr]NodeMTU
}

// HoldsBack reports whether all others have to send less for this node: no node
// carries less, and most of the others carry more. Records below [FloorMTU] hold nobody
// back where most nodes carry that much, and hide nobody that does.
func (m MTUs) HoldsBack(ip netip.Addr) bool {
	own, ok := m.Nodes[ip]
	if !ok {
		return false
	}
	enough := 0
	for _, node := range m.Nodes {
		if node.Carries >= FloorMTU {
			enough++
		}
	}
	ignored := func(n NodeMTU) bool { return 2*enough > len(m.Nodes) && n.Carries < FloorMTU }
	if ignored(own) {
		return false
	}
	more, counted := 0, 0
	for _, node := range m.Nodes {
		if ignored(node) {
			continue
		}
		if node.Carries < own.Carries {
			return false
		}
		if counted++; node.Carries > own.Carries {
			more++
		}
	}
	return 2*more > counted-1
}
