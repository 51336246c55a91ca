// Package wire sends and sees single Ethernet frames on a link in a network
// namespace: what a pod with CAP_NET_RAW can forge, and what truly arrives.
package wire

import (
	"encoding/binary"
	"net"
	"net/netip"
)

// Ethernet types (IEEE 802 numbers).
const (
	TypeIPv4 = 0x0800
	TypeARP  = 0x0806
	TypeVLAN = 0x8100
)

// VXLANPort is VXLAN's UDP port (RFC 7348, section 5).
const VXLANPort = 4789

// Broadcast is the hardware address of everybody.
var Broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// Ethernet builds a frame.
func Ethernet(dst, src net.HardwareAddr, ethertype uint16, payload []byte) []byte {
	b := append(append(make([]byte, 0, 14+len(payload)), dst...), src...)
	b = binary.BigEndian.AppendUint16(b, ethertype)
	return append(b, payload...)
}

// IPv4 builds a packet that may not be fragmented, TTL 64.
func IPv4(src, dst netip.Addr, proto uint8, payload []byte) []byte {
	return ipv4(src, dst, proto, 0x4000, payload)
}

// Fragments cuts a packet's payload at, a multiple of 8 bytes, into two fragments.
func Fragments(src, dst netip.Addr, proto uint8, payload []byte, at int) [2][]byte {
	const moreFragments = 0x2000
	return [2][]byte{
		ipv4(src, dst, proto, moreFragments, payload[:at]),
		ipv4(src, dst, proto, uint16(at/8), payload[at:]),
	}
}

// Fragment is one of a packet, at an offset, a multiple of 8 bytes, with more to come or not:
// also such as no sender makes.
func Fragment(src, dst netip.Addr, proto uint8, payload []byte, offset int, more bool) []byte {
	field := uint16(offset / 8)
	if more {
		field |= 0x2000
	}
	return ipv4(src, dst, proto, field, payload)
}

// SourceRouted builds a packet for dst that asks it to be sent on to next (loose source
// route, RFC 791).
func SourceRouted(src, dst, next netip.Addr, proto uint8, payload []byte) []byte {
	n := next.As4()
	return ipv4(src, dst, proto, 0x4000, payload, 131, 7, 4, n[0], n[1], n[2], n[3], 0)
}

func ipv4(src, dst netip.Addr, proto uint8, fragment uint16, payload []byte, options ...byte) []byte {
	b := make([]byte, 20+len(options), 20+len(options)+len(payload))
	b[0] = 0x40 | byte(len(b)/4) // version 4, words of header
	binary.BigEndian.PutUint16(b[2:], uint16(cap(b)))
	binary.BigEndian.PutUint16(b[4:], 0x4b38) // identification: the same for fragments of one packet
	binary.BigEndian.PutUint16(b[6:], fragment)
	b[8], b[9] = 64, proto
	s, d := src.As4(), dst.As4()
	copy(b[12:], s[:])
	copy(b[16:], d[:])
	copy(b[20:], options)
	binary.BigEndian.PutUint16(b[10:], checksum(b))
	return append(b, payload...)
}

// checksum is the Internet checksum (RFC 1071) of an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// Protocol numbers.
const (
	ProtoICMP = 1
	ProtoIPIP = 4 // RFC 2003
	ProtoTCP  = 6
	ProtoUDP  = 17
	ProtoGRE  = 47
)

// UDP builds a datagram without checksum, which IPv4 allows (RFC 768).
func UDP(sport, dport uint16, payload []byte) []byte {
	b := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(b[0:], sport)
	binary.BigEndian.PutUint16(b[2:], dport)
	binary.BigEndian.PutUint16(b[4:], uint16(8+len(payload)))
	return append(b, payload...)
}

// TCP builds a segment that acknowledges, whose checksum nobody in between looks at (RFC 9293, section 3.1).
func TCP(sport, dport uint16, payload []byte) []byte {
	b := make([]byte, 20, 20+len(payload))
	binary.BigEndian.PutUint16(b[0:], sport)
	binary.BigEndian.PutUint16(b[2:], dport)
	b[12], b[13] = 5<<4, 0x10 // words of header; ACK
	return append(b, payload...)
}

// VXLAN puts a frame behind a VXLAN header (RFC 7348, section 5).
func VXLAN(vni uint32, inner []byte) []byte {
	b := make([]byte, 8, 8+len(inner))
	b[0] = 0x08 // the VNI is valid
	binary.BigEndian.PutUint32(b[4:], vni<<8)
	return append(b, inner...)
}

// Geneve puts a frame behind a Geneve header (RFC 8926, section 3.4).
func Geneve(vni uint32, inner []byte) []byte {
	b := []byte{0, 0, 0x65, 0x58, 0, 0, 0, 0} // no options, Ethernet
	binary.BigEndian.PutUint32(b[4:], vni<<8)
	return append(b, inner...)
}

// GRE puts a frame behind a GRE header with a key (RFC 2890).
func GRE(key uint32, inner []byte) []byte {
	b := []byte{0x20, 0, 0x65, 0x58, 0, 0, 0, 0} // with a key, Ethernet
	binary.BigEndian.PutUint32(b[4:], key)
	return append(b, inner...)
}

// Tag puts a VLAN tag into a frame (IEEE 802.1Q): vid 0 only has a priority.
func Tag(frame []byte, vid uint16) []byte {
	b := append(make([]byte, 0, len(frame)+4), frame[:12]...)
	b = binary.BigEndian.AppendUint16(b, TypeVLAN)
	b = binary.BigEndian.AppendUint16(b, 3<<13|vid)
	return append(b, frame[12:]...)
}

// Unreachable is the ICMP message that the packet that it is about did not get to a port, or to what another
// code says (RFC 792).
func Unreachable(code uint8, about []byte) []byte {
	b := append([]byte{3, code, 0, 0, 0, 0, 0, 0}, about[:28]...)
	binary.BigEndian.PutUint16(b[2:], checksum(b))
	return b
}

// Redirect is the ICMP message that to gets somewhere by another gateway, about a
// packet that its receiver sent (RFC 792).
func Redirect(gateway netip.Addr, about []byte) []byte {
	g := gateway.As4()
	b := append([]byte{5, 1, 0, 0}, g[:]...) // for the host
	b = append(b, about[:28]...)
	binary.BigEndian.PutUint16(b[2:], checksum(b))
	return b
}

// ARP operations (RFC 826).
const (
	ARPRequest = 1
	ARPReply   = 2
)

// ARP builds a message for Ethernet and IPv4 (RFC 826). Extra bytes go behind
// it, where real frames have padding.
func ARP(op uint16, sha net.HardwareAddr, spa netip.Addr, tha net.HardwareAddr, tpa netip.Addr, extra []byte) []byte {
	b := []byte{0, 1, 8, 0, 6, 4}
	b = binary.BigEndian.AppendUint16(b, op)
	s, t := spa.As4(), tpa.As4()
	b = append(append(b, sha...), s[:]...)
	b = append(append(b, tha...), t[:]...)
	return append(b, extra...)
}
