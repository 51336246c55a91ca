package policies

import (
	"net/netip"
	"slices"

	"github.com/k8s-ovs/k8s-ovs/pkg/policy"
)

// noteTooLarge tells, once each, which policies come to more than one may on a node, so that they allow
// nothing, and which do so no longer.
func (t *Table) noteTooLarge(compiled map[policy.Key]policy.Compiled) {
	for key, c := range compiled {
		switch large := len(c.TooLarge) > 0; {
		case large && !t.tooLarge[key]:
			t.tooLarge[key] = true
			t.cfg.Logger.Warn("a NetworkPolicy comes to more than one may on a node, and allows nothing here: make its blocks, ports or rules fewer, or divide it",
				"tenant", key.Namespace, "policy", key.Name, "mostPrefixesAndPorts", policy.MostWritten, "mostFlows", policy.MostFlows)
		case !large && t.tooLarge[key]:
			delete(t.tooLarge, key)
			t.cfg.Logger.Info("a NetworkPolicy that came to too much is in force again, or gone", "tenant", key.Namespace, "policy", key.Name)
		}
	}
}

// noteClosed tells, once each, of which pods nothing gets past the switch by the node's translation, as
// what they may reach there is too much.
func (t *Table) noteClosed(w work, before, now []netip.Addr) {
	for _, p := range slices.Concat(w.known, w.unknown) {
		is, was := slices.Contains(now, p.Address), slices.Contains(before, p.Address)
		switch {
		case is && !was:
			t.cfg.Logger.Warn("what policies let a pod reach outside of the pod network is too much for the node's firewall, which drops all that the node translates for it: make blocks and ports of the policies about it fewer",
				"tenant", p.Namespace, "pod", p.Name, "most", policy.MostReach, "mostOfNode", policy.MostReachOfNode)
		case was && !is:
			t.cfg.Logger.Info("a pod reaches again what policies let it outside of the pod network", "tenant", p.Namespace, "pod", p.Name)
		}
	}
}

// many reports whether policies may need more than one bundle to become what they come to now: what they
// were goes with as many flows as it came with. It learns how many they have now.
func (w *writer) many(compiled map[policy.Key]policy.Compiled) bool {
	changes := 0
	for key, c := range compiled {
		had, flows := w.flows[key], 0
		for _, a := range slices.Concat(c.Ingress.Allows, c.Egress.Allows) {
			flows += 1 + a.Flows()
		}
		if w.flows[key] = flows; flows == 0 {
			delete(w.flows, key)
		}
		changes += had + flows
	}
	return changes > mostAtOnce
}
