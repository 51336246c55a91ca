package hostnet

import (
	"fmt"
	"math"
	"slices"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// guarded are the rules about the ports by which nodes believe each other: those of the
// tunnels and that of the probes. What another port was meant by and was translated to one of
// these, by whoever serves a service of a tenant's, would be believed with this node's
// address. Its connection tells the port that it first came to. What comes there straight is not
// tracked, but where the node's owner has it tracked in a zone of its own.
type guarded struct {
	came, made   []rule // before connection tracking
	pods, toNode []rule // what pods send there to others, and before translation to this node
	in, out      []rule // behind all translation
}

func guards(s Spec, in, notIn, notOut string) guarded {
	var g guarded
	// What ipvs translates to this node itself does not leave the input hook, and may say that
	// it is not tracked. Before it does, packets for other ports get a priority, of which
	// nothing else makes use there.
	const elsewhere = "ffff:fff0"
	other := []any{"meta l4proto udp"}
	for _, port := range s.guardedPorts() {
		other = append(other, fmt.Sprintf("udp dport != %d", port.number))
	}
	g.toNode = []rule{{append(other, "meta priority set", elsewhere), "came for another port"}}
	for _, port := range s.guardedPorts() {
		to := fmt.Sprintf("udp dport %d", port.number)
		translated := fmt.Sprintf("ct original proto-dst != %d", port.number)
		drop := fmt.Sprintf("counter name %q drop", port.reason)
		g.came = append(g.came, rule{[]any{notIn, to, "notrack"}, port.name + " need no conntrack"})
		g.made = append(g.made,
			// What this node makes is not seen by conntrack before this. What ipvs sends on
			// was, and it may say that it is not tracked.
			rule{[]any{notOut, to, "ct state untracked", drop}, "sent on by ipvs, so none of this node's " + port.name},
			rule{[]any{notOut, to, "notrack"}, port.name + " need no conntrack"})
		g.pods = append(g.pods, rule{[]any{in, notOut, to, drop}, "pods may not make " + port.name})
		if port.reason == ForgedProbe {
			g.toNode = append(g.toNode, rule{append([]any{in, to}, nodesOwn(s)...), "other nodes ask through the tunnels, and the agent has heard them"})
		}
		g.toNode = append(g.toNode, rule{[]any{in, to, drop}, "pods may not make " + port.name})
		g.in = append(g.in,
			rule{[]any{to, translated, drop}, "translated, so none of another node's " + port.name},
			rule{[]any{to, "meta priority", elsewhere, drop}, "came for another port: none of another node's " + port.name})
		g.out = append(g.out,
			rule{[]any{notOut, to, translated, drop}, "translated, so none of this node's " + port.name},
			// Its answers would be taken for a peer's.
			rule{[]any{notOut, "udp sport", port.number, "udp dport !=", port.number, "ct state != untracked", drop}, "answers would come to the port of " + port.name})
	}
	return g
}

// nodesOwn drops what comes from nodes' own addresses in the overlay, which are the first of their subnets and which pods cannot
// have.
func nodesOwn(s Spec) []any {
	first := s.NodeSubnet.Masked().Addr()
	hosts := topology.WithLow32(first, ^uint32(0)>>s.NodeSubnet.Bits())
	return []any{"ip saddr &", hosts.String(), "==", topology.WithLow32(first, 1).String(), "drop"}
}

// guardedPort is a UDP port by which nodes believe each other.
type guardedPort struct {
	number uint16
	name   string
	reason Reason
}

func (s Spec) guardedPorts() []guardedPort {
	var ports []guardedPort
	for _, p := range s.TunnelPorts {
		ports = append(ports, guardedPort{uint16(p), "tunnel packets", ForgedTunnel})
	}
	for _, p := range s.OtherTunnelPorts {
		ports = append(ports, guardedPort{uint16(p), "other nodes' tunnel packets", ForgedTunnel})
	}
	if s.ProbePort != 0 {
		ports = append(ports, guardedPort{s.ProbePort, "probes of paths", ForgedProbe})
	}
	return ports
}

// sourcePorts are UDP ports that pods leave from, as many as there are in a row: without those
// where answers would be taken for a node's.
func (s Spec) sourcePorts() string {
	guarded := []int{1023, math.MaxUint16 + 1}
	for _, p := range s.guardedPorts() {
		guarded = append(guarded, max(int(p.number), 1023))
	}
	slices.Sort(guarded)
	from, to := 0, -1
	for i, p := range guarded[1:] {
		if first := guarded[i] + 1; p-first > to-from+1 {
			from, to = first, p-1
		}
	}
	return fmt.Sprintf("%d-%d", from, to)
}
