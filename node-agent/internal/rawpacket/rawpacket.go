// Package rawpacket makes the packets of IPv4 that the agent's checks send past its node's sockets.
package rawpacket

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/toobig"
)

// Sizes of headers without options, bytes.
const (
	IPSize  = 20 // RFC 791
	UDPSize = 8  // RFC 768
	TCPSize = 20 // RFC 9293
)

// Packet is an IPv4 packet of a protocol that has ports, with that much, in bytes, behind its header.
func Packet(from, to netip.AddrPort, protocol byte, size int) []byte {
	h := make([]byte, IPSize+size)
	h[0] = 0x45
	binary.BigEndian.PutUint16(h[2:], uint16(len(h)))
	h[8], h[9] = 64, protocol
	src, dst := from.Addr().As4(), to.Addr().As4()
	copy(h[12:], src[:])
	copy(h[16:], dst[:])
	binary.BigEndian.PutUint16(h[10:], toobig.Checksum(h[:IPSize]))
	binary.BigEndian.PutUint16(h[IPSize:], from.Port())
	binary.BigEndian.PutUint16(h[IPSize+2:], to.Port())
	return h
}

// Datagram is a UDP datagram that carries that, or nothing. It has no checksum.
func Datagram(from, to netip.AddrPort, carries ...byte) []byte {
	p := Packet(from, to, unix.IPPROTO_UDP, UDPSize+len(carries))
	binary.BigEndian.PutUint16(p[IPSize+4:], uint16(UDPSize+len(carries))) // a checksum of zero is none (RFC 768)
	copy(p[IPSize+UDPSize:], carries)
	return p
}

// Acknowledgment is a TCP segment that has nothing else, with that number for both sequences (RFC 9293).
func Acknowledgment(from, to netip.AddrPort, number uint32) []byte {
	p := Packet(from, to, unix.IPPROTO_TCP, TCPSize)
	t := p[IPSize:]
	binary.BigEndian.PutUint32(t[4:], number)
	binary.BigEndian.PutUint32(t[8:], number)
	t[12], t[13] = TCPSize/4<<4, 1<<4         // ACK
	binary.BigEndian.PutUint16(t[14:], 1<<15) // the window
	pseudo := append(append([]byte{}, p[12:20]...), 0, unix.IPPROTO_TCP, 0, TCPSize)
	binary.BigEndian.PutUint16(t[16:], toobig.Checksum(append(pseudo, t...)))
	return p
}
