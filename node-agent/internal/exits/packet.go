package exits

import (
	"encoding/binary"
	"net/netip"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/toobig"
)

// last is the subnet's last address, which no pod has.
func last(subnet netip.Prefix) netip.Addr {
	b := subnet.Masked().Addr().As4()
	host := uint32(1)<<(32-subnet.Bits()) - 1
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])|host)
	return netip.AddrFrom4(b)
}

const (
	// discard is the UDP port whose packets mean nothing (RFC 863).
	discard = 9
	// domain and https are those whose answers firewalls without a memory let in (RFC 1035,
	// RFC 9000). See hostnet.Exit for what is made of an error about one.
	domain, https = 53, 443
	// Ports from firstPort on are those that programs send from (ip_local_port_range).
	firstPort, ports = 32768, 28000
)

// frame is an empty UDP datagram from a pod that is none.
func frame(gw Gateway, from, to netip.AddrPort) []byte {
	f := append(append(make([]byte, 0, 42), gw.MAC...), gw.From...)
	f = binary.BigEndian.AppendUint16(f, 0x0800)
	return append(f, datagram(from, to)...)
}

// datagram is an empty UDP datagram in an IPv4 packet.
func datagram(from, to netip.AddrPort) []byte {
	const ip, udp = 20, 8
	h := make([]byte, ip+udp)
	h[0] = 0x45
	binary.BigEndian.PutUint16(h[2:], ip+udp)
	h[8], h[9] = 64, 17
	src, dst := from.Addr().As4(), to.Addr().As4()
	copy(h[12:], src[:])
	copy(h[16:], dst[:])
	binary.BigEndian.PutUint16(h[10:], toobig.Checksum(h[:ip]))
	u := h[ip:]
	binary.BigEndian.PutUint16(u, from.Port())
	binary.BigEndian.PutUint16(u[2:], to.Port())
	binary.BigEndian.PutUint16(u[4:], udp) // a checksum of zero is none (RFC 768)
	return h
}
