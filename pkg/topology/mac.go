package topology

import (
	"net"
	"net/netip"
)

// NextHop is the address by which a node's own stack sends to all pods. It is
// link-local (RFC 3927), so no other route can mean it. Nobody has it: the bridge
// answers for it.
var NextHop = netip.AddrFrom4([4]byte{169, 254, 77, 1})

// MAC is the hardware address that belongs to an overlay address: 0a:58 and
// the four bytes of the IPv4 address. 0a has the locally administered bit set
// (IEEE 802, section 8.4), so it collides with no vendor's. It panics when ip is
// not IPv4: every overlay address is.
func MAC(ip netip.Addr) net.HardwareAddr {
	b := ip.As4()
	return net.HardwareAddr{0x0a, 0x58, b[0], b[1], b[2], b[3]}
}
