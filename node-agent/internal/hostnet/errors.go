package hostnet

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// The chains that ICMP errors of pods pass: all of them, and those about packets of either direction of a
// connection.
const aboutConnections, aboutAnswers, aboutRequests = "errors", "errors-answers", "errors-requests"

// errorsOf sends the ICMP errors (RFC 792) of pods to the chain that judges them.
func errorsOf(pods string) rule {
	return rule{[]any{pods, "icmp type { destination-unreachable, source-quench, redirect, time-exceeded, parameter-problem } jump", aboutConnections}, "may the pod tell of it?"}
}

// connectionErrors drop the ICMP errors of pods about packets that did not come to that very pod. A peer
// outside, and the node itself, would believe them: they come out of the node translated as if the other
// pod had sent them. An error goes the way of the answer to the packet that it quotes, so it comes from
// where that direction of the connection does.
func connectionErrors(s Spec) []chain {
	drop := fmt.Sprintf("counter name %q drop", ForgedError)
	from := func(name, address string) chain {
		c := chain{name: name, rules: []rule{{[]any{address, "!=", s.ClusterNetwork.String(), drop}, "about somebody's outside"}}}
		for _, b := range bitsOf(s.ClusterNetwork) {
			c.rules = append(c.rules, rule{[]any{differ(address, "ip saddr", b), drop}, "about another pod's"})
		}
		return c
	}
	return []chain{
		from(aboutAnswers, "ct original ip saddr"),
		from(aboutRequests, "ct reply ip saddr"),
		{name: aboutConnections, rules: []rule{
			{[]any{"ct state != related", drop}, "about no connection"},
			{[]any{"ct direction original goto", aboutAnswers}, "what was answered to a pod"},
			{[]any{"goto", aboutRequests}, "what was asked of a pod"},
		}},
	}
}

// bitsOf are the bits in which addresses of a network differ, each alone.
func bitsOf(p netip.Prefix) (bits []netip.Addr) {
	for bit := range 32 - p.Bits() {
		bits = append(bits, netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, 1<<bit))))
	}
	return bits
}

// differ matches packets of which two addresses differ in a bit: to nftables they are the same when each
// bit of one is that of the other.
func differ(a, b string, bit netip.Addr) string {
	return fmt.Sprintf("%s & %s . %s & %s != { 0.0.0.0 . 0.0.0.0, %s . %s }", a, bit, b, bit, bit, bit)
}
