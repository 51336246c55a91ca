// Package service says what the services of a cluster are and what one node should serve of them: which endpoints stand behind each
// address and port. It is pure, and knows neither the API that the specifications come from nor the flows that carry them out.
package service

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"
)

// Key names a service.
type Key struct{ Namespace, Name string }

func (k Key) String() string { return k.Namespace + "/" + k.Name }

// Compare orders keys by namespace, then name.
func (k Key) Compare(l Key) int {
	return cmp.Or(cmp.Compare(k.Namespace, l.Namespace), cmp.Compare(k.Name, l.Name))
}

// Protocol is an IP protocol number of a transport that services can have.
type Protocol uint8

// The transports of services, by their numbers in the IANA registry of protocol numbers.
const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

func (p Protocol) String() string {
	switch p {
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case SCTP:
		return "SCTP"
	}
	return "protocol " + strconv.Itoa(int(p))
}

// Spec is a service as its owner asked for it.
type Spec struct {
	Key
	UID           string
	VIPs          []netip.Addr // cluster addresses; None: headless
	Ports         []PortSpec
	Affinity      time.Duration // a client stays with its endpoint until it made no new connection for this long; 0: no affinity
	InternalLocal bool          // only endpoints on the client's node (internalTrafficPolicy Local)
}

// PortSpec is one port of a service.
type PortSpec struct {
	Name     string // "" for the only port of a service
	Protocol Protocol
	Port     uint16
}

// Slice is a part of the endpoints of a service (EndpointSlice, discovery.k8s.io/v1).
type Slice struct {
	Service   Key
	Name      string // of the slice itself, unique in the namespace of its service
	Ports     []SlicePort
	Endpoints []SliceEndpoint
}

// SlicePort is where the endpoints of a slice answer for the service port of the same name and protocol.
type SlicePort struct {
	Name     string
	Protocol Protocol
	Port     uint16
}

// SliceEndpoint is one address behind a service.
type SliceEndpoint struct {
	Address     netip.Addr
	Node        string // "" when it is on none
	Ready       bool
	Serving     bool
	Terminating bool
	ForZones    []string // topology hints: the zones, and the nodes, whose clients should use it
	ForNodes    []string
}

// Node is the node that serves.
type Node struct{ Name, Zone string }

// Service is what one node serves of a service.
type Service struct {
	Key
	UID      string
	Affinity time.Duration
	Ports    []Port // sorted by VIP, protocol and port; none: there is nothing to serve
	// LeftOut are the endpoints that it names and that nobody is sent to: sorted and distinct.
	LeftOut []LeftOut
}

// Equal compares all of two services.
func (s Service) Equal(o Service) bool {
	return s.Key == o.Key && s.UID == o.UID && s.Affinity == o.Affinity && slices.EqualFunc(s.Ports, o.Ports, Port.Equal) && slices.Equal(s.LeftOut, o.LeftOut)
}

// Addresses returns the distinct cluster addresses of the service, in order.
func (s Service) Addresses() []netip.Addr {
	var addresses []netip.Addr
	for _, port := range s.Ports {
		addresses = append(addresses, port.VIP)
	}
	return slices.Compact(addresses)
}

// Port is one address and port of a service, with the endpoints that its new connections go to.
type Port struct {
	VIP       netip.Addr
	Protocol  Protocol
	Port      uint16
	Endpoints []Endpoint // sorted and distinct; none: connections are refused
}

// Equal compares all of two ports.
func (p Port) Equal(o Port) bool {
	return p.VIP == o.VIP && p.Protocol == o.Protocol && p.Port == o.Port && slices.Equal(p.Endpoints, o.Endpoints)
}

// Endpoint is where a connection goes.
type Endpoint struct {
	Address netip.Addr
	Port    uint16
}

func (e Endpoint) String() string { return fmt.Sprintf("%v:%d", e.Address, e.Port) }

// Update is news of services: some of them, or all there are.
type Update struct {
	Full     bool // Services are all there are; any other is gone
	Services map[Key]Service
}
