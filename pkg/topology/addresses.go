package topology

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
)

// This file has what follows from an address whichever family it is of. An attachment, a
// node and a network have one address or prefix, or two: of IPv4 first, then of IPv6.

// NextHop is the address by which a node's own stack sends to all pods. It is
// link-local (RFC 3927), so no other route can mean it. Nobody has it: the bridge
// answers for it. IPv4.
var NextHop = netip.AddrFrom4([4]byte{169, 254, 77, 1})

// MAC is the hardware address that belongs to an overlay address: 0a:58 and its low 32
// bits, which an IPv4 address and its [Twin] share. 0a has the locally administered bit set
// (IEEE 802, section 8.4), so it collides with no vendor's.
func MAC(ip netip.Addr) net.HardwareAddr {
	return binary.BigEndian.AppendUint32(net.HardwareAddr{0x0a, 0x58}, Low32(ip))
}

// Low32 are the low 32 bits of an address: all of an IPv4 address.
func Low32(ip netip.Addr) uint32 {
	b := ip.As16()
	return binary.BigEndian.Uint32(b[12:])
}

// WithLow32 is the address with other low 32 bits, of the same family.
func WithLow32(ip netip.Addr, low uint32) netip.Addr {
	b := ip.As16()
	binary.BigEndian.PutUint32(b[12:], low)
	if ip.Is4() {
		return netip.AddrFrom16(b).Unmap()
	}
	return netip.AddrFrom16(b)
}

// Twin is the IPv6 address in a subnet, a /96 or larger, that belongs to who has an IPv4
// address: that address is its low 32 bits.
func Twin(subnet netip.Prefix, ip netip.Addr) netip.Addr {
	return WithLow32(subnet.Masked().Addr(), Low32(ip))
}

// IPv4 is the IPv4 address among some; not valid where there is none.
func IPv4(addresses []netip.Addr) netip.Addr {
	for _, a := range addresses {
		if a.Is4() {
			return a
		}
	}
	return netip.Addr{}
}

// Listed is what stands in a record as a list beside the first value, which has a field of its
// own: nothing where there is no other, so that records are as they were before the list.
func Listed[T any](values []T) []T {
	if len(values) < 2 {
		return nil
	}
	return values
}

// Unlisted is the opposite of [Listed]: all values, of the first and the list beside it. A
// list that begins with another is an error: one of the two was changed, and not the other.
func Unlisted[T comparable](first T, list []T) ([]T, error) {
	var none T
	switch {
	case len(list) > 0 && list[0] != first:
		return nil, fmt.Errorf("the list begins with %v and not with %v, which stands beside it", list[0], first)
	case len(list) > 0:
		return list, nil
	case first == none:
		return nil, nil
	}
	return []T{first}, nil
}
