package exits

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/hostnet"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/toobig"
)

// nobody is the subnet's network address, which no pod has. What the node forwards to pods has
// the last one.
func nobody(subnet netip.Prefix) netip.Addr { return subnet.Masked().Addr() }

const (
	// domain and https are the ports whose answers firewalls without a memory let in (RFC 1035,
	// RFC 9000, RFC 9110). See hostnet.Exit for what is made of an error about one.
	domain, https = 53, 443
	// Ports from firstPort on are those that programs send from (ip_local_port_range).
	firstPort, ports = 32768, 28000
)

// frame is a packet of IPv4 as it would come from behind the gateway.
func frame(gw Gateway, packet []byte) []byte {
	f := append(append(make([]byte, 0, 14+len(packet)), gw.MAC...), gw.From...)
	f = binary.BigEndian.AppendUint16(f, 0x0800)
	return append(f, packet...)
}

const ipSize, udpSize, tcpSize = 20, 8, 20

// packet is an IPv4 packet of a protocol that has ports, with that much behind its header.
func packet(from, to netip.AddrPort, protocol byte, size int) []byte {
	h := make([]byte, ipSize+size)
	h[0] = 0x45
	binary.BigEndian.PutUint16(h[2:], uint16(len(h)))
	h[8], h[9] = 64, protocol
	src, dst := from.Addr().As4(), to.Addr().As4()
	copy(h[12:], src[:])
	copy(h[16:], dst[:])
	binary.BigEndian.PutUint16(h[10:], toobig.Checksum(h[:ipSize]))
	binary.BigEndian.PutUint16(h[ipSize:], from.Port())
	binary.BigEndian.PutUint16(h[ipSize+2:], to.Port())
	return h
}

// datagram is a UDP datagram that carries that, or nothing.
func datagram(from, to netip.AddrPort, carries ...byte) []byte {
	p := packet(from, to, unix.IPPROTO_UDP, udpSize+len(carries))
	binary.BigEndian.PutUint16(p[ipSize+4:], uint16(udpSize+len(carries))) // a checksum of zero is none (RFC 768)
	copy(p[ipSize+udpSize:], carries)
	return p
}

// acknowledgment is a TCP segment that has nothing else (RFC 9293).
func acknowledgment(from, to netip.AddrPort) []byte {
	p := packet(from, to, unix.IPPROTO_TCP, tcpSize)
	t := p[ipSize:]
	binary.BigEndian.PutUint32(t[4:], hostnet.Sequence)
	binary.BigEndian.PutUint32(t[8:], hostnet.Sequence)
	t[12], t[13] = tcpSize/4<<4, 1<<4         // ACK
	binary.BigEndian.PutUint16(t[14:], 1<<15) // the window
	pseudo := append(append([]byte{}, p[12:20]...), 0, unix.IPPROTO_TCP, 0, tcpSize)
	binary.BigEndian.PutUint16(t[16:], toobig.Checksum(append(pseudo, t...)))
	return p
}
