// Package mtu decides how large the packets of pods may be: what this node's
// paths carry, and by which steps the nodes of a cluster come to one MTU while
// pods run.
//
// It is pure: what was measured and what other nodes have written goes in, what to
// set and to write comes out. The rules are in docs/mtu.md.
package mtu

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// Policy says what a black hole does: a path that loses large packets and does
// not say so.
type Policy string

const (
	// Clamp makes packets so small that they pass.
	Clamp Policy = "clamp"
	// Report leaves them as they are: log, metric and record say so.
	Report Policy = "report"
)

// Path is the way to one peer by one tunnel; a peer that two lead to has two. Sizes are
// bytes of a tunnel's IP packet.
type Path struct {
	Peer netip.Addr
	// Link is the device by which it leaves, MTU what device and route allow.
	Link string
	MTU  int
	// Overhead is what the tunnel to the peer adds to a pod's packet.
	Overhead int
	// Measured is the largest packet that arrived where a larger one did not,
	// which should have; 0 where nothing is known against MTU.
	Measured int
}

// Node is what is known on a node.
type Node struct {
	// Overhead is what a tunnel adds to a pod's packet, bytes: that which adds most.
	Overhead int
	// Configured is the MTU of pods that was asked for, bytes; 0 for none.
	Configured int
	// Link is the least of the devices that the VTEP address stands on, LinkMTU
	// its MTU, bytes; 0 where only routes count.
	Link    string
	LinkMTU int
	Paths   []Path
	Policy  Policy
}

// Floor is the least MTU of pods that another node's record, or the path to it, brings about, bytes: that
// node may be who makes it small, by what it writes and answers. It is told what is too large for it instead.
// It is no more than this node's own link gives, or, where only routes are known, the widest of them, which
// no peer makes: a cluster whose links are all small agrees as any other. Who asked for less means it.
func (n Node) Floor() int {
	own := n.LinkMTU - n.Overhead
	if n.LinkMTU == 0 {
		own = topology.FloorMTU
		for i, p := range n.Paths {
			if size := p.MTU - p.Overhead; i == 0 || size > own {
				own = size
			}
		}
	}
	if n.Configured > 0 {
		own = min(own, n.Configured)
	}
	return min(topology.FloorMTU, own)
}

// Capacity is what the paths of a node carry. Sizes are bytes of a pod's IP packet.
type Capacity struct {
	// Carries is what every path takes, Limit what it is limited by.
	Carries int
	Limit   string
	// Clamped is set where more was asked for.
	Clamped bool
	// Paths are what the path to each peer takes, by whichever tunnel takes the least,
	// measurements included also where they only are to be reported.
	Paths map[netip.Addr]int
	// BlackHoles are the peers whose path loses what it should take, in order; TooNarrow those
	// whose path takes less than the floor, and does not count.
	BlackHoles, TooNarrow []netip.Addr
}

// Capacity is what n's paths carry. It is zero where nothing is known of any link.
func (n Node) Capacity() Capacity {
	c := Capacity{Paths: make(map[netip.Addr]int, len(n.Paths))}
	least := func(size int, limit string) {
		if size > 0 && (c.Carries == 0 || size < c.Carries) {
			c.Carries, c.Limit = size, limit
		}
	}
	least(n.LinkMTU-n.Overhead, n.Link)
	// In order, so that of equals always the same is named.
	paths := slices.SortedFunc(slices.Values(n.Paths), func(a, b Path) int { return a.Peer.Compare(b.Peer) })
	floor := n.Floor()
	for _, p := range paths {
		c.takes(p.Peer, p.MTU-p.Overhead)
		if p.MTU-p.Overhead < floor {
			c.tooNarrow(p.Peer)
			continue
		}
		least(p.MTU-p.Overhead, fmt.Sprintf("the route to %s by %s", p.Peer, p.Link))
	}
	for _, p := range paths {
		if p.Measured == 0 || p.Measured >= p.MTU {
			continue
		}
		if !slices.Contains(c.BlackHoles, p.Peer) {
			c.BlackHoles = append(c.BlackHoles, p.Peer)
		}
		c.takes(p.Peer, p.Measured-p.Overhead)
		switch {
		case n.Policy == Report:
		case p.Measured-p.Overhead < floor:
			c.tooNarrow(p.Peer)
		default:
			least(p.Measured-p.Overhead, fmt.Sprintf("the path to %s (black hole)", p.Peer))
		}
	}
	c.Clamped = n.Configured > c.Carries && c.Carries > 0
	least(n.Configured, "--mtu")
	return c
}

func (c *Capacity) tooNarrow(peer netip.Addr) {
	if !slices.Contains(c.TooNarrow, peer) {
		c.TooNarrow = append(c.TooNarrow, peer)
	}
}

// takes says that a path to peer takes no more than size.
func (c Capacity) takes(peer netip.Addr, size int) {
	if least, ok := c.Paths[peer]; !ok || size < least {
		c.Paths[peer] = size
	}
}

// Narrow are the peers whose path takes less than size, the MTU of pods' devices.
func (c Capacity) Narrow(size int) map[netip.Addr]int {
	narrow := map[netip.Addr]int{}
	for peer, takes := range c.Paths {
		if takes < size {
			narrow[peer] = takes
		}
	}
	return narrow
}

// Needs is the largest packet of a tunnel on path p that is of use, bytes: what
// probes are to try.
func (n Node) Needs(p Path) int {
	needs := p.MTU
	if n.LinkMTU > 0 {
		needs = min(needs, n.LinkMTU)
	}
	if n.Configured > 0 {
		needs = min(needs, n.Configured+p.Overhead)
	}
	return cmp.Or(needs, p.MTU)
}

// Arrives is the largest packet of a pod that can come to n at all, bytes: no device that a tunnel
// leaves by, or its address stands on, takes a larger one. 0 where only routes are known, whose
// MTU is not the device's.
func (n Node) Arrives() int {
	if n.LinkMTU == 0 {
		return 0
	}
	size, overhead := n.LinkMTU, n.Overhead
	for _, p := range n.Paths {
		size, overhead = max(size, p.MTU), min(overhead, p.Overhead)
	}
	return size - overhead
}
