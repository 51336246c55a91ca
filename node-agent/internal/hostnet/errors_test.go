package hostnet

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/wire"
)

// What a pod says of packets gets to the outside, and to the node, where they came to that pod, whoever
// asked whom; and not where they came to another.
func TestErrorsOfPods(t *testing.T) {
	l := newLab(t)
	l.ensure(true)
	l.up()
	l.run(l.node, "nft", "add table ip lab; add chain ip lab pre { type nat hook prerouting priority -100; }; add rule ip lab pre udp dport 30000 dnat to 172.11.0.6:80")
	port, err := wire.Open(ns.Path(l.pods), "eth0")
	l.ok(err)
	t.Cleanup(func() { _ = port.Close() })
	dial := func(name, local, to string) *net.UDPConn {
		t.Helper()
		var c net.Conn
		l.ok(ns.Do(name, func() (err error) {
			c, err = (&net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.MustParseAddrPort(local))}).Dial("udp4", to)
			return err
		}))
		t.Cleanup(func() { _ = c.Close() })
		return c.(*net.UDPConn)
	}
	listen := func(name, at string) *net.UDPConn {
		t.Helper()
		c, err := ns.ListenUDP(ns.Path(name), at)
		l.ok(err)
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	// came waits for a datagram, and returns whom it came from.
	came := func(at *net.UDPConn) netip.AddrPort {
		t.Helper()
		_ = at.SetReadDeadline(time.Now().Add(5 * time.Second))
		_, from, err := at.ReadFromUDPAddrPort(make([]byte, 10))
		l.ok(err)
		return netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	}
	server, pod := listen(l.outside, "198.18.0.1:443"), listen(l.pods, "172.11.0.6:80")
	ask := func(c *net.UDPConn, at *net.UDPConn) netip.AddrPort {
		t.Helper()
		_, err := c.Write([]byte("x"))
		l.ok(err)
		return came(at)
	}
	ask(dial(l.pods, "172.11.0.6:5000", "198.18.0.1:443"), server)
	byNode, byPort := dial(l.node, "172.11.0.1:6000", "172.11.0.6:80"), dial(l.outside, "198.18.0.1:7000", "198.18.0.7:30000")
	ask(byNode, pod)
	byPortFrom := ask(byPort, pod)

	outside := l.sniff(l.outside, "eth0")
	toldOutside := func(from, to string, about []byte) bool {
		l.again = func() { l.send(l.pods, "172.11.0.5:1999", "198.18.0.1:99", 1) }
		l.ok(port.Send(packet(from, to, about)))
		l.again()
		return outside.until(udpTo(99), func(p []byte) bool { return p[9] == unix.IPPROTO_ICMP && p[20] == 3 && p[21] == unreachableCode })
	}
	toldNode := func(from, to string, about []byte) bool {
		// The kernel says what it was told before what came; packets may overtake each other.
		for range 5 {
			l.ok(port.Send(packet(from, to, about)))
			_, err := pod.WriteToUDPAddrPort([]byte("x"), netip.MustParseAddrPort("172.11.0.1:6000"))
			l.ok(err)
			_ = byNode.SetReadDeadline(time.Now().Add(5 * time.Second))
			if _, err := byNode.Read(make([]byte, 10)); errors.Is(err, unix.ECONNREFUSED) {
				return true
			}
		}
		return false
	}
	quote := func(from, to string) []byte {
		f, a := netip.MustParseAddrPort(from), netip.MustParseAddrPort(to)
		return wire.IPv4(f.Addr(), a.Addr(), wire.ProtoUDP, wire.UDP(f.Port(), a.Port(), nil))
	}
	for _, tc := range []struct {
		name, to string
		told     func(from, to string, about []byte) bool
		about    []byte
	}{
		{"an answer from outside", "198.18.0.1", toldOutside, quote("198.18.0.1:443", "172.11.0.6:5000")},
		{"a request from outside by a port of the node", "198.18.0.1", toldOutside, quote(byPortFrom.String(), "172.11.0.6:80")},
		{"a request of the node", "172.11.0.1", toldNode, quote("172.11.0.1:6000", "172.11.0.6:80")},
	} {
		if tc.told("172.11.0.5", tc.to, tc.about) {
			t.Errorf("%s: another pod than that which got it tells of it", tc.name)
		}
		if !tc.told("172.11.0.6", tc.to, tc.about) {
			t.Errorf("%s: the pod that got it cannot tell of it", tc.name)
		}
	}
	dropped, err := l.net.Dropped(t.Context())
	l.ok(err)
	if n := dropped[ForgedError]; n != 2+5 {
		t.Errorf("%d were dropped, want two to the outside and five to the node", n)
	}
}

// unreachableCode is that of a port.
const unreachableCode = 3

// packet is an ICMP error of a pod, as a frame.
func packet(from, to string, about []byte) []byte {
	gateway := net.HardwareAddr{0x0a, 0x58, 0xac, 0x0b, 0, 1}
	return wire.Ethernet(gateway, net.HardwareAddr(nextHopMAC()), wire.TypeIPv4,
		wire.IPv4(netip.MustParseAddr(from), netip.MustParseAddr(to), wire.ProtoICMP, wire.Unreachable(unreachableCode, about)))
}
