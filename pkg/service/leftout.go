package service

import (
	"cmp"
	"fmt"
	"net/netip"
)

// Reason is why an endpoint is left out: a word for logs and metrics.
type Reason string

// The reasons that an address has by itself.
const (
	Unspecified Reason = "unspecified" // 0.0.0.0/8
	Loopback    Reason = "loopback"    // 127.0.0.0/8
	LinkLocal   Reason = "link-local"  // 169.254.0.0/16, where clouds have what they tell a machine about itself
	Multicast   Reason = "multicast"   // 224.0.0.0/4
	Reserved    Reason = "reserved"    // 240.0.0.0/4, and with it broadcast
)

// The reasons that an address has in a cluster.
const (
	// InServiceNetwork: it is the address of a service, which is translated once only.
	InServiceNetwork Reason = "service-network"
	// IsGateway: it is a node's address towards its pods.
	IsGateway Reason = "gateway"
	// IsTunnel: it is where a node takes what other nodes say that tenants sent, or how wide a path is.
	IsTunnel Reason = "tunnel-port"
	// TooMany: its service comes to more than one may ([MostFlows]), or those of its namespace do. It is told
	// of a port and all its endpoints at once: address and port are the service's own.
	TooMany Reason = "too-many"
)

// Reasons are all of them.
var Reasons = []Reason{Unspecified, Loopback, LinkLocal, Multicast, Reserved, InServiceNetwork, IsGateway, IsTunnel, TooMany}

// thisNetwork and reserved are of RFC 6890, section 2.2.2.
var (
	thisNetwork = netip.MustParsePrefix("0.0.0.0/8")
	reserved    = netip.MustParsePrefix("240.0.0.0/4")
)

// Unreachable is why no machine of a network has an IPv4 address, or only as its own; "" where one may.
func Unreachable(a netip.Addr) Reason {
	switch {
	case thisNetwork.Contains(a):
		return Unspecified
	case a.IsLoopback():
		return Loopback
	case a.IsLinkLocalUnicast():
		return LinkLocal
	case a.IsMulticast():
		return Multicast
	case reserved.Contains(a):
		return Reserved
	}
	return ""
}

// LeftOut is an endpoint that a service names and that nobody is sent to; of [TooMany] all of a port.
type LeftOut struct {
	Protocol Protocol
	Endpoint
	Reason Reason
}

func (l LeftOut) String() string { return fmt.Sprintf("%s %v (%s)", l.Protocol, l.Endpoint, l.Reason) }

// Compare orders them by address, port and protocol.
func (l LeftOut) Compare(o LeftOut) int {
	return cmp.Or(l.Address.Compare(o.Address), cmp.Compare(l.Port, o.Port), cmp.Compare(l.Protocol, o.Protocol))
}
