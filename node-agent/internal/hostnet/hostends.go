package hostnet

import (
	"context"
	"errors"
	"fmt"

	"sigs.k8s.io/knftables"

	"github.com/k8s-ovs/k8s-ovs/pkg/link"
)

// ensureHostEnds keeps the node's IPv6 and pods' host ends apart. That IPv6 is switched off on
// those is one setting of each, which every write to net.ipv6.conf.all.disable_ipv6 changes: with
// the userspace datapath the node would then take a pod's packets past all flows, and have a
// default route from its router advertisements. The table holds meanwhile, also while no agent runs.
func (n *Net) ensureHostEnds(ctx context.Context, spec Spec) (changed bool, err error) {
	if spec.HostEnds == "" {
		return false, nil
	}
	nft, err := n.ipv6()
	if nft == nil || err != nil {
		return false, err
	}
	return n.ensureRules(ctx, nft, hostEnds(spec))
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

// hostEnds are the rules of IPv6. With the kernel's datapath the switch takes what pods send before
// these hooks; what the node would send to them comes by here with either.
func hostEnds(s Spec) []chain {
	in, out := fmt.Sprintf("iifname %q counter drop", s.HostEnds), fmt.Sprintf("oifname %q counter drop", s.HostEnds)
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
