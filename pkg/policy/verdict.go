package policy

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/k8s-ovs/k8s-ovs/pkg/service"
)

// Packet is the first packet of a connection, with the addresses that it has after
// translation. Whatever else belongs to the connection, answers and errors among it, is
// judged as this one.
type Packet struct {
	Src, Dst netip.Addr
	// Protocol is that of IP. DstPort counts for those of policies: TCP, UDP, SCTP.
	Protocol uint8
	DstPort  uint16
}

// Verdict is what becomes of a packet.
type Verdict uint8

// The verdicts.
const (
	Allowed Verdict = iota
	// DeniedEgress: its sender may not send it. DeniedIngress: its receiver may not get it.
	DeniedEgress
	DeniedIngress
)

func (v Verdict) String() string {
	switch v {
	case DeniedEgress:
		return "denied by egress"
	case DeniedIngress:
		return "denied by ingress"
	}
	return "allowed"
}

// Verdict is what the policies of this node say of a packet. Of pods that are not the node's
// it knows nothing: their own nodes judge.
func (c Compiled) Verdict(p Packet) Verdict {
	switch {
	case !c.may(c.Egress, p.Src, p.Dst, p):
		return DeniedEgress
	case !c.may(c.Ingress, p.Dst, p.Src, p):
		return DeniedIngress
	}
	return Allowed
}

// may says whether the policies of one direction let a subject and a peer meet: the Admin
// tier, NetworkPolicies, the Baseline tier, until one decides.
func (c Compiled) may(t Table, subject, peer netip.Addr, p Packet) bool {
	if action := c.decide(t.Admin, subject, peer, p); action != Pass {
		return action == Accept
	}
	if _, isolated := slices.BinarySearchFunc(t.Isolated, subject, netip.Addr.Compare); isolated {
		return c.allowed(t, subject, peer, p)
	}
	return c.decide(t.Baseline, subject, peer, p) != Deny
}

// DeniedBy are the ClusterNetworkPolicies whose rule denies a packet in one direction; none where
// nothing denies it, or the NetworkPolicies that isolate its sender, or its receiver, do.
func (c Compiled) DeniedBy(p Packet, egress, isolated bool) []Key {
	t, subject, peer := c.Ingress, p.Dst, p.Src
	if egress {
		t, subject, peer = c.Egress, p.Src, p.Dst
	}
	tiers := [][]Decision{t.Admin, t.Baseline}
	if isolated {
		tiers = tiers[:1]
	}
	for _, tier := range tiers {
		for _, d := range tier {
			if !c.matches(d.Allow, subject, peer, p) {
				continue
			}
			if d.Action == Deny {
				return d.Policies
			}
			if d.Action == Accept {
				return nil
			}
			break // Pass: to the next tier
		}
	}
	return nil
}

// allowed says so of a pod that NetworkPolicies isolate. A pod always reaches itself and its
// node, and its node reaches it: so says the API, of these policies only.
func (c Compiled) allowed(t Table, subject, peer netip.Addr, p Packet) bool {
	return subject == peer || slices.Contains(c.Own, peer) ||
		slices.ContainsFunc(t.Allows, func(a Allow) bool { return c.matches(a, subject, peer, p) })
}

// decide is what the decisions of a tier say, in their order; Pass where they say nothing.
func (c Compiled) decide(tier []Decision, subject, peer netip.Addr, p Packet) Action {
	for _, d := range tier {
		if c.matches(d.Allow, subject, peer, p) {
			return d.Action
		}
	}
	return Pass
}

func (c Compiled) matches(a Allow, subject, peer netip.Addr, p Packet) bool {
	return a.has(p) && slices.Contains(a.Subjects, subject) && c.isPeer(a.Peers, peer)
}

// has reports whether the packet goes to one of the ports.
func (a Allow) has(p Packet) bool {
	return a.AnyPort || slices.ContainsFunc(a.Ports, func(r PortRange) bool {
		return r.Protocol == service.Protocol(p.Protocol) && r.First <= p.DstPort && p.DstPort <= r.Last
	})
}

func (c Compiled) isPeer(peers Peers, a netip.Addr) bool {
	return peers.Any || peers.Pods && c.isPod(a) || contains(peers.Prefixes, a)
}

// isPod reports whether an address may be a pod's.
func (c Compiled) isPod(a netip.Addr) bool {
	_, isNode := slices.BinarySearchFunc(c.NodeAddresses, a, netip.Addr.Compare)
	return c.Network.Contains(a) && !isNode
}

// sorted are the different ones of list, in order.
func sorted[T comparable](list []T, compare func(a, b T) int) []T {
	list = slices.Clone(list)
	slices.SortFunc(list, compare)
	return slices.Compact(list)
}

func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

func comparePorts(a, b PortRange) int {
	return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.First, b.First), cmp.Compare(a.Last, b.Last))
}
