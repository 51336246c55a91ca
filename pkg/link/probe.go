package link

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/pkg/link/internal/dump"
)

// ProbeNeighbour makes the kernel ask for the hardware address of the next hop
// towards ip, also when it knows it already, and does not wait for the answer.
// The userspace datapath learns where its tunnels lead from such answers, and drops
// a tunnel's first packet where it has seen none.
func (n *NS) ProbeNeighbour(ip netip.Addr) error {
	p, err := n.PathTo(ip)
	if err != nil {
		return err
	}
	hop := ip
	if p.Via.IsValid() {
		hop = p.Via
	}
	entry := netlink.Neigh{LinkIndex: p.Link.Index, Family: unix.AF_INET, IP: hop.AsSlice()}
	// NTF_USE resolves what is not known; what is known is probed on request.
	use, probe := entry, entry
	use.Flags = netlink.NTF_USE
	probe.State = unix.NUD_PROBE
	if err := n.nl.NeighSet(&use); err != nil {
		return fmt.Errorf("resolve neighbour %s of %s: %w", hop, p.Link.Name, err)
	}
	// An entry that is still being resolved cannot be probed: it is on its way.
	_ = n.nl.NeighSet(&probe)
	return nil
}

// NeighbourAnswers reports whether the hardware address of a neighbour on the link is
// known, and failed whether the kernel has asked for it and nobody said. Neither is so
// where nobody has asked, or the answer is on its way.
func (n *NS) NeighbourAnswers(ip netip.Addr) (known, failed bool, err error) {
	list, err := dump.Whole(func() ([]netlink.Neigh, error) { return n.nl.NeighList(0, familyOf(ip)) })
	if err != nil {
		return false, false, fmt.Errorf("listing neighbours: %w", err)
	}
	for _, e := range list {
		if a, ok := netip.AddrFromSlice(e.IP); ok && a.Unmap() == ip {
			known = known || e.State&(unix.NUD_REACHABLE|unix.NUD_STALE|unix.NUD_DELAY|unix.NUD_PROBE|unix.NUD_PERMANENT|unix.NUD_NOARP) != 0
			failed = failed || e.State&unix.NUD_FAILED != 0
		}
	}
	return known, failed && !known, nil
}
