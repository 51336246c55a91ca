package pipeline

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// Kind says what a flow belongs to.
type Kind uint8

// The kinds.
const (
	KindFixed  Kind = 1
	KindPeer   Kind = 2
	KindPod    Kind = 3
	KindTenant Kind = 4
	// Those of services have kindServices: they are an area of the flow store, the rest is another.
	KindService  Kind = kindServices | 1
	KindEndpoint Kind = kindServices | 2
	KindLearned  Kind = kindServices | 3
	// Those of what policies allow have kindPolicies, and are an area of their own: a rule, and
	// the clauses that it has in common with others. Whom policies isolate is the pods'.
	KindRule    Kind = kindPolicies | 1
	KindSubject Kind = kindPolicies | 2
	KindAllowed Kind = kindPolicies | 3
	KindPort    Kind = kindPolicies | 4

	kindServices Kind = 0x10
	kindPolicies Kind = 0x20
)

// Areas of the flow store: each is the flows whose cookie has those bits. Every cookie is in one of
// them, also those that only somebody else would use.
const areaMask = uint64(kindServices|kindPolicies) << 40

// Others selects the flows that belong neither to services nor to what policies allow: cookie and mask.
func Others() (cookie, mask uint64) { return 0, areaMask }

// Services selects the flows that belong to services: cookie and mask.
func Services() (cookie, mask uint64) { return uint64(kindServices) << 40, areaMask }

// Policies selects the flows of what policies allow: cookie and mask.
func Policies() (cookie, mask uint64) { return uint64(kindPolicies) << 40, uint64(kindPolicies) << 40 }

// Reason says why a flow drops; 0 where it does not.
type Reason uint8

// The reasons.
const (
	UnknownPeer Reason = iota + 1
	Forged
	NoTenant
	HostForged
	IPv6
	ARP
	NoNode
	Multicast
	HostReturn
	OtherTenant
	NoPod
	VXLANToHost
	ServiceTenant
	ServiceState
	Loopback
	MTUToHost
	// TooLarge is counted by [MeterTooLarge]: no flow has it.
	TooLarge
	ForeignNetID
	PolicyIngress
	PolicyEgress
	PolicyState
	// endOfReasons is behind the last: a new one is before it, with a name below and a line in PIPELINE.md.
	endOfReasons
)

var reasonNames = map[Reason]string{
	UnknownPeer: "unknown-peer", Forged: "forged", NoTenant: "no-tenant", HostForged: "host-forged", IPv6: "ipv6", ARP: "arp",
	NoNode: "no-node", Multicast: "multicast", HostReturn: "host-return",
	OtherTenant: "tenant", NoPod: "no-pod", VXLANToHost: "vxlan-to-host",
	ServiceTenant: "service-tenant", ServiceState: "service-state", Loopback: "loopback", MTUToHost: "mtu-to-host", TooLarge: "too-large",
	ForeignNetID: "foreign-netid", PolicyIngress: "policy-ingress", PolicyEgress: "policy-egress", PolicyState: "policy-state",
}

// Reasons are all reasons, in order.
func Reasons() []Reason {
	out := make([]Reason, 0, len(reasonNames))
	for r := UnknownPeer; r < endOfReasons; r++ {
		out = append(out, r)
	}
	return out
}

// String is the reason's name in metrics and messages.
func (r Reason) String() string {
	if n, ok := reasonNames[r]; ok {
		return n
	}
	return fmt.Sprintf("reason-%d", uint8(r))
}

// Cookie is what a flow's cookie says; PIPELINE.md has the bits.
type Cookie struct {
	Generation uint16
	Kind       Kind
	Reason     Reason
	// Object is what the flow is about: a pod's port, a tenant's slot, the number of a
	// service port, an IPv4 address of a peer's prefix, a service or an endpoint, or 0. A flow
	// about no prefix of a peer has its VTEP address.
	Object uint32
}

// Encode is the cookie of this generation.
func (c Cookie) Encode() uint64 {
	return uint64(Version)<<48 | uint64(c.Kind)<<40 | uint64(c.Reason)<<32 | uint64(c.Object)
}

// DecodeCookie reads the cookie of any generation.
func DecodeCookie(v uint64) Cookie {
	return Cookie{Generation: uint16(v >> 48), Kind: Kind(v >> 40), Reason: Reason(v >> 32), Object: uint32(v)}
}

func object(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}
