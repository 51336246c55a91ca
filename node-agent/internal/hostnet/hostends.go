package hostnet

import (
	"context"
	"errors"
	"fmt"
	"os/exec"

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
	for _, family := range endsFamilies {
		nft, ofErr := n.ofEnds(ctx, family)
		if lacks := new(lackError); errors.As(ofErr, &lacks) && !lacks.matters(spec) {
			n.tellLack(lacks)
			continue
		}
		err = errors.Join(err, ofErr)
		if nft == nil {
			continue
		}
		did, ruleErr := n.ensureRules(ctx, nft, hostEnds(spec.HostEnds))
		changed, err = changed || did, errors.Join(err, ruleErr)
	}
	return changed, err
}

// endsFamilies are those of the tables for host ends. A kernel may have nf_tables without one of them.
var endsFamilies = []knftables.Family{knftables.IPv6Family, knftables.BridgeFamily}

// lackError is that the kernel has no nf_tables for a family.
type lackError struct {
	family knftables.Family
	err    error
}

func (e *lackError) Error() string {
	if e.family == knftables.IPv6Family {
		return fmt.Sprintf("pods could speak to the node by IPv6: %v; a kernel with IPv6 needs nf_tables for it, and one started with ipv6.disable=1 does not", e.err)
	}
	return fmt.Sprintf("pods whose devices a tool makes ports of a bridge of the kernel talk there past all flows, until the agent takes them out within 5 s: %v; nf_tables for bridges would keep them apart at once", e.err)
}

func (e *lackError) Unwrap() error { return e.err }

// matters reports whether pods are not kept apart as they are to be without the table. With the kernel's
// datapath the switch takes what pods send before the node's IPv6 sees it; bridges are guarded by
// attach's Mend, too.
func (e *lackError) matters(spec Spec) bool {
	return e.family == knftables.IPv6Family && len(spec.SwitchDevices) > 0
}

// tellLack remembers that the kernel lacks a table that it need not have, and says so once.
func (n *Net) tellLack(e *lackError) {
	if _, told := n.lacks[e.family]; !told {
		n.lacks[e.family] = e
		n.log.Warn("the kernel cannot have a firewall table of the agent's", "error", e)
	}
}

// ofEnds is nftables for the table of the family; nil where the kernel has nothing of the family. The
// error is a [lackError] where the kernel refuses such a table, though it has others.
func (n *Net) ofEnds(ctx context.Context, family knftables.Family) (knftables.Interface, error) {
	if nft := n.ends[family]; nft != nil {
		return nft, nil
	}
	if e := n.lacks[family]; e != nil {
		return nil, e
	}
	if family == knftables.IPv6Family {
		if _, err := n.ns.Sysctl("net/ipv6/conf/all/disable_ipv6"); errors.Is(err, link.ErrNoSysctl) {
			return nil, nil
		}
	}
	nft, err := n.open(n.ns, family, table)
	if err == nil {
		err = n.check(ctx, nft)
	}
	// An nft that was killed says nothing of the kernel, and one that refuses the same of IPv4 nothing of
	// the family.
	if refused := new(exec.ExitError); errors.As(err, &refused) && refused.Exited() && n.check(ctx, n.nft) == nil {
		return nil, &lackError{family, err}
	}
	if err != nil {
		return nil, fmt.Errorf("firewall table %s %s: %w", family, table, err)
	}
	n.ends[family] = nft
	return nft, nil
}

// check is whether a table for host ends could be made.
func (n *Net) check(ctx context.Context, nft knftables.Interface) error {
	tx := nft.NewTransaction()
	replace(tx, hostEnds("none*"))
	return n.ns.Do(func() error { return nft.Check(ctx, tx) })
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
