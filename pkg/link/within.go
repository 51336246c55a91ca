package link

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/pkg/link/internal/dump"
)

// Part is what the node has for a part of a network.
type Part struct {
	Dst netip.Prefix
	// Device is where it leads, the first of several; empty where packets are refused or dropped.
	Device string
	// Local is that these are addresses of the node itself.
	Local bool
}

// Parts are the routes of IPv4 to parts of network, of the main table and, where they are addresses of the
// node, of the local one: each of them has precedence over a route to all of network. It lists routes once.
func (n *NS) Parts(network netip.Prefix) ([]Part, error) {
	all, err := n.table(unix.AF_INET, unix.RT_TABLE_UNSPEC)
	if err != nil {
		return nil, err
	}
	var out []Part
	for _, raw := range all {
		dst, ok := prefixOf(raw.Dst)
		local := raw.Table == unix.RT_TABLE_LOCAL && raw.Type == unix.RTN_LOCAL
		if !ok || !local && raw.Table != unix.RT_TABLE_MAIN || dst.Bits() <= network.Bits() || !network.Contains(dst.Addr()) {
			continue
		}
		index := raw.LinkIndex
		if index == 0 && len(raw.MultiPath) > 0 {
			index = raw.MultiPath[0].LinkIndex
		}
		part := Part{Dst: dst, Local: local}
		if index != 0 && (local || raw.Type == unix.RTN_UNICAST) {
			l, _, err := n.LinkByIndex(index)
			if err != nil {
				return nil, err
			}
			part.Device = l.Name
		}
		out = append(out, part)
	}
	return out, nil
}

// Ruled reports whether other rules decide where packets of IPv4 go than those that the kernel begins with, by
// which the main table decides about all that is no address of the node's and that it has a route for
// (ip-rule(8)).
func (n *NS) Ruled() (bool, error) {
	rules, err := dump.Whole(func() ([]netlink.Rule, error) { return n.nl.RuleList(unix.AF_INET) })
	if err != nil {
		return false, fmt.Errorf("listing routing rules: %w", err)
	}
	return slices.ContainsFunc(rules, func(r netlink.Rule) bool {
		forAll := r.Src == nil && r.Dst == nil && r.IifName == "" && r.OifName == "" && r.Mark == 0 && !r.Invert
		switch r.Table {
		case unix.RT_TABLE_LOCAL, unix.RT_TABLE_MAIN:
			return !forAll
		case unix.RT_TABLE_DEFAULT:
			return !forAll || r.Priority != 32767
		}
		return true
	}), nil
}
