// Package toobig writes what a router says of a packet that is too large for its
// path: ICMP "fragmentation needed", with the size that fits.
//
// It is pure.
package toobig

import (
	"encoding/binary"
	"net/netip"
)

// Lengths in bytes.
const (
	ethernetHeader = 14
	ipHeader       = 20
	icmpHeader     = 8
	// most is how long an ICMP error may be (RFC 1812, section 4.3.2.3).
	most = 576
)

// Packet is one that was too large.
type Packet struct {
	// Frame has its Ethernet header, without a VLAN tag.
	Frame []byte
	// MTU is what fits, bytes.
	MTU uint16
	// SentTo is whom the sender addressed, where that has been translated since; else
	// not valid.
	SentTo netip.AddrPort
}

// Destination is the address that the packet goes to; not valid where it is not IPv4.
func (p Packet) Destination() netip.Addr { return p.address(16) }

func (p Packet) address(at int) netip.Addr {
	ip, ok := p.ip()
	if !ok {
		return netip.Addr{}
	}
	return netip.AddrFrom4([4]byte(ip[at:]))
}

// ip is the IPv4 packet, without what an Ethernet frame may have behind it.
func (p Packet) ip() ([]byte, bool) {
	if len(p.Frame) < ethernetHeader+ipHeader || binary.BigEndian.Uint16(p.Frame[12:]) != 0x0800 {
		return nil, false
	}
	ip := p.Frame[ethernetHeader:]
	n := int(binary.BigEndian.Uint16(ip[2:]))
	if ip[0]>>4 != 4 || headerLength(ip) < ipHeader || n < headerLength(ip) || n > len(ip) {
		return nil, false
	}
	return ip[:n], true
}

func headerLength(ip []byte) int { return int(ip[0]&0xf) * 4 }

// Answer is the frame that tells the sender, from the address given (RFC 792; RFC 1191,
// section 4). It is false where there is nothing to tell or it must not be told (RFC 1812,
// section 4.3.2.7): the packet may be fragmented, is a later fragment or itself an
// ICMP error, or its addresses are not of one host each.
func (p Packet) Answer(from netip.Addr) (frame []byte, ok bool) {
	ip, ok := p.ip()
	if !ok || !from.Is4() || len(ip) <= int(p.MTU) || !answerable(ip) {
		return nil, false
	}
	quote := p.asSent(ip[:min(len(ip), most-ipHeader-icmpHeader)])
	n := ipHeader + icmpHeader + len(quote)
	frame = make([]byte, ethernetHeader, ethernetHeader+n)
	copy(frame, p.Frame[6:12])
	copy(frame[6:], p.Frame[:6])
	binary.BigEndian.PutUint16(frame[12:], 0x0800)

	const internetworkControl, dontFragment, ttl, protocolICMP = 0xc0, 0x40, 64, 1
	head := []byte{0x45, internetworkControl, byte(n >> 8), byte(n), 0, 0, dontFragment, 0, ttl, protocolICMP, 0, 0}
	source := from.As4()
	head = append(append(head, source[:]...), ip[12:16]...)
	binary.BigEndian.PutUint16(head[10:], Checksum(head))

	const unreachable, fragmentationNeeded = 3, 4
	body := append([]byte{unreachable, fragmentationNeeded, 0, 0, 0, 0, byte(p.MTU >> 8), byte(p.MTU)}, quote...)
	binary.BigEndian.PutUint16(body[2:], Checksum(body))
	return append(append(frame, head...), body...), true
}

// answerable is whether the sender may be told of its packet.
func answerable(ip []byte) bool {
	const dontFragment, offset = 0x4000, 0x1fff
	fragment := binary.BigEndian.Uint16(ip[6:])
	if fragment&dontFragment == 0 || fragment&offset != 0 {
		return false
	}
	for _, at := range []int{12, 16} {
		a := netip.AddrFrom4([4]byte(ip[at:]))
		if a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || ip[at] >= 240 {
			return false
		}
	}
	if l4 := ip[headerLength(ip):]; ip[9] == 1 && len(l4) > 0 {
		switch l4[0] {
		case 3, 4, 5, 11, 12: // errors, and a redirect
			return false
		}
	}
	return true
}

// asSent is the beginning of the packet as the sender knows it, or it would not find
// the connection. The transport's checksum, which nobody can compute of a part, stays.
func (p Packet) asSent(ip []byte) []byte {
	if !p.SentTo.Addr().Is4() {
		return ip
	}
	out := append([]byte(nil), ip...)
	to := p.SentTo.Addr().As4()
	copy(out[16:], to[:])
	header := out[:headerLength(out)]
	header[10], header[11] = 0, 0
	binary.BigEndian.PutUint16(header[10:], Checksum(header))
	if l4 := out[len(header):]; p.SentTo.Port() != 0 && len(l4) >= 4 {
		binary.BigEndian.PutUint16(l4[2:], p.SentTo.Port()) // of TCP, UDP and SCTP alike
	}
	return out
}

// Checksum is the Internet checksum (RFC 1071).
func Checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
