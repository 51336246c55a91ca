package hostnet

import (
	"context"
	"errors"
	"fmt"

	"sigs.k8s.io/knftables"

	"github.com/k8s-ovs/k8s-ovs/pkg/link"
)

// ensureHostEnds keeps pods' host ends apart from what takes their frames beside the switch:
//
//   - The node's IPv6. That it is switched off on host ends is one setting of each, which every
//     write to net.ipv6.conf.all.disable_ipv6 changes: with the userspace datapath the node would
//     then take a pod's packets past all flows, and have a default route from its router
//     advertisements.
//   - Bridges of the kernel, which tools make devices ports of by their type: pods there would
//     talk past all flows.
//
// The agent puts either right, and the tables hold until it does, also while none runs.
func (n *Net) ensureHostEnds(ctx context.Context, spec Spec) (changed bool, err error) {
	if spec.HostEnds == "" {
		return false, nil
	}
	nft6, err := n.ipv6()
	for _, nft := range []knftables.Interface{nft6, n.ofBridges(ctx)} {
		if nft == nil {
			continue
		}
		did, ruleErr := n.ensureRules(ctx, nft, hostEnds(spec.HostEnds))
		changed, err = changed || did, errors.Join(err, ruleErr)
	}
	return changed, err
}

// ofBridges is nftables for the table of the kernel's bridges; nil where the kernel has no nf_tables
// for them. Then only attach's Mend guards, which says so where there was something to do.
func (n *Net) ofBridges(ctx context.Context) knftables.Interface {
	if n.triedBridges {
		return n.bridges
	}
	nft, err := openTable(n.ns, knftables.BridgeFamily, table)
	if err == nil {
		tx := nft.NewTransaction()
		replace(tx, hostEnds("none*"))
		err = n.ns.Do(func() error { return nft.Check(ctx, tx) })
	}
	if err == nil {
		n.bridges = nft
	}
	n.triedBridges = ctx.Err() == nil
	return n.bridges
}

// ipv6 is nftables for the table of IPv6; nil where the kernel has no IPv6.
func (n *Net) ipv6() (knftables.Interface, error) {
	if n.nft6 != nil {
		return n.nft6, nil
	}
	_, err := n.ns.Sysctl("net/ipv6/conf/all/disable_ipv6")
	if errors.Is(err, link.ErrNoSysctl) {
		return nil, nil
	}
	if err == nil {
		n.nft6, err = openTable(n.ns, knftables.IPv6Family, table)
	}
	if err != nil {
		return nil, fmt.Errorf("pods could speak to the node by IPv6: %w; a kernel with IPv6 needs nf_tables for it, and one started with ipv6.disable=1 does not", err)
	}
	return n.nft6, nil
}

// hostEnds are the rules of either table. With the kernel's datapath the switch takes what pods send
// before these hooks; what the node would send to them comes by here with either.
func hostEnds(devices string) []chain {
	in, out := fmt.Sprintf("iifname %q counter drop", devices), fmt.Sprintf("oifname %q counter drop", devices)
	return []chain{
		{
			name: "raw-prerouting", kind: knftables.FilterType, hook: knftables.PreroutingHook, priority: early,
			rules: []rule{{[]any{in}, "only the switch takes packets from pods"}},
		},
		{
			name: "postrouting", kind: knftables.FilterType, hook: knftables.PostroutingHook, priority: late,
			rules: []rule{{[]any{out}, "only the switch sends packets to pods"}},
		},
	}
}
