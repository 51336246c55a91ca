package wire

import (
	"encoding/binary"
	"net"
	"net/netip"
)

// TypeIPv6 is the Ethernet type of IPv6 (RFC 2464).
const TypeIPv6 = 0x86dd

// What pods may try by IPv6: messages of ICMPv6 (RFC 4443, RFC 4861) to all nodes of a link.
var (
	AllNodes    = netip.MustParseAddr("ff02::1")
	AllNodesMAC = net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}
)

// ICMPv6 builds a packet with a message of ICMPv6, hop limit 255.
func ICMPv6(src, dst netip.Addr, message []byte) []byte {
	const proto = 58
	b := make([]byte, 40, 40+len(message))
	b[0] = 0x60
	binary.BigEndian.PutUint16(b[4:], uint16(len(message)))
	b[6], b[7] = proto, 255
	s, d := src.As16(), dst.As16()
	copy(b[8:], s[:])
	copy(b[24:], d[:])
	// The checksum is also one of a pseudo header (RFC 8200, section 8.1).
	pseudo := append(b[8:40:40], 0, 0, byte(len(message)>>8), byte(len(message)), 0, 0, 0, proto)
	message = append([]byte{}, message...)
	binary.BigEndian.PutUint16(message[2:], checksum(append(append(pseudo, message...), make([]byte, len(message)%2)...)))
	return append(b, message...)
}

// RouterAdvertisement is the message of one who wants to be a default router for half an hour, and
// names a prefix for addresses.
func RouterAdvertisement(prefix netip.Prefix) []byte {
	b := []byte{134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0}
	b = append(b, 3, 4, byte(prefix.Bits()), 0xc0, 0, 0, 0x07, 0x08, 0, 0, 0x07, 0x08, 0, 0, 0, 0)
	p := prefix.Addr().As16()
	return append(b, p[:]...)
}

// EchoV6 is an echo request with data, whose answer has it, too.
func EchoV6(data string) []byte { return append([]byte{128, 0, 0, 0, 0x4b, 0x38, 0, 1}, data...) }
