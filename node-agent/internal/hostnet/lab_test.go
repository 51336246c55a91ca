package hostnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

var labs atomic.Int32

// lab is a node between pods and the outside, each a namespace:
//
//	pods 172.11.0.5, .6 ── tun0 node eth0 198.18.0.7 ── 198.18.0.1 outside
//
// The namespace of the pods stands for the bridge with all pods behind it.
type lab struct {
	t                   testing.TB
	pods, node, outside string
	ns                  *link.NS
	net                 *Net
	spec                Spec
	// again sends the last datagram once more.
	again func()
}

func newLab(t testing.TB) *lab {
	t.Helper()
	id := fmt.Sprintf("hostnet-%d-%d-", os.Getpid(), labs.Add(1))
	l := &lab{t: t, pods: id + "pods", node: id + "node", outside: id + "out", again: func() {}}
	for _, n := range []string{l.pods, l.node, l.outside} {
		l.ok(ns.Create(n))
		t.Cleanup(func() { _ = ns.Delete(n) })
	}
	l.ip(l.node, "link add tun0 type veth peer name eth0 address "+nextHopMAC().String()+" netns "+l.pods,
		"link add eth0 type veth peer name eth0 netns "+l.outside,
		"addr add 198.18.0.7/24 dev eth0", "link set eth0 up")
	l.ip(l.outside, "addr add 198.18.0.1/24 dev eth0", "link set eth0 up", "route add 172.11.0.0/16 via 198.18.0.7")
	l.ip(l.pods, "link set eth0 up", "addr add 172.11.0.5/32 dev eth0", "addr add 172.11.0.6/32 dev eth0",
		"route add 172.11.0.1 dev eth0", "route add default via 172.11.0.1",
		"neigh add 172.11.0.1 lladdr 0a:58:ac:0b:00:01 dev eth0")
	n, err := link.Open(ns.Path(l.node))
	l.ok(err)
	t.Cleanup(func() { _ = n.Close() })
	l.ns = n
	l.net, err = New(n)
	l.ok(err)
	l.spec = Spec{
		Device: "tun0", Gateway: netip.MustParseAddr("172.11.0.1"), NodeSubnet: netip.MustParsePrefix("172.11.0.0/22"),
		ClusterNetwork: netip.MustParsePrefix("172.11.0.0/16"), TunnelPorts: []tunnel.Port{4789}, SwitchDevices: []string{"ovs*", "uplink0"},
		HostEnds: "kov*",
	}
	return l
}

func (l *lab) ok(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) ip(name string, lines ...string) {
	l.t.Helper()
	l.ok(ns.IP(context.Background(), name, lines...))
}

// run runs a program in a namespace.
func (l *lab) run(name string, args ...string) string {
	l.t.Helper()
	out, err := exec.Command("ip", append([]string{"netns", "exec", name}, args...)...).CombinedOutput()
	if err != nil {
		l.t.Fatalf("%v: %v: %s", args, err, out)
	}
	return string(out)
}

// ensure calls Ensure and checks whether it found something to do.
func (l *lab) ensure(want bool) {
	l.t.Helper()
	changed, err := l.net.Ensure(context.Background(), l.spec)
	l.ok(err)
	if changed != want {
		l.t.Errorf("Ensure: changed %t, want %t", changed, want)
	}
}

// up waits until nothing that pods send is lost because their link is not up yet.
func (l *lab) up() {
	l.t.Helper()
	l.ok(ns.WaitRunning(context.Background(), l.pods, "eth0"))
	l.ok(ns.WaitRunning(context.Background(), l.node, "tun0"))
}

// patience is how long a connection may take that is expected to fail in the end;
// one that works takes less than a millisecond, or a second where the first packet is
// lost because a device just came up.
const patience = 1500 * time.Millisecond

// tcp connects from a namespace, bound to src where it is not empty, and returns
// what the listener at dst takes for the client's address; "" when nothing gets there.
func (l *lab) tcp(from, src, dst, to, listen string) string {
	l.t.Helper()
	listener, err := ns.ListenTCP(ns.Path(to), listen)
	l.ok(err)
	defer listener.Close()
	peer := make(chan string, 1)
	go func() {
		c, err := listener.Accept()
		if err != nil {
			peer <- ""
			return
		}
		peer <- c.RemoteAddr().(*net.TCPAddr).IP.String()
		_ = c.Close()
	}()
	var c net.Conn
	l.ok(ns.Do(from, func() error {
		d := net.Dialer{Timeout: patience}
		if src != "" {
			d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(src)}
		}
		// Dial makes its socket on this thread: addresses need no resolver.
		c, _ = d.Dial("tcp4", dst)
		return nil
	}))
	if c == nil {
		return ""
	}
	_ = c.Close()
	return <-peer
}

// sniffer collects IPv4 packets that arrive on a device.
type sniffer struct {
	fd int
	t  testing.TB
	// again sends the last packet once more.
	again func()
}

func (l *lab) sniff(name, device string) *sniffer {
	l.t.Helper()
	s := &sniffer{t: l.t, again: func() { l.again() }}
	l.ok(ns.Do(name, func() (err error) {
		const ipv4 = 0x0008 // htons(ETH_P_IP)
		if s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, ipv4); err != nil {
			return err
		}
		i, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		return unix.Bind(s.fd, &unix.SockaddrLinklayer{Protocol: ipv4, Ifindex: i.Index})
	}))
	l.t.Cleanup(func() { _ = unix.Close(s.fd) })
	return s
}

// until reads packets until one satisfies stop, and reports whether one before it
// satisfied seen. A marker packet sent last is what ends it: no sleeping. As datagrams may
// be lost it is sent again after each second of silence.
func (s *sniffer) until(stop, seen func(p []byte) bool) (found bool) {
	s.t.Helper()
	buf := make([]byte, 1<<16)
	deadline := time.Now().Add(5 * time.Second)
	for time.Now().Before(deadline) {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}}, 1000)
		if n == 0 && err == nil {
			s.again()
		}
		if n == 0 || err != nil {
			continue
		}
		var from unix.Sockaddr
		n, from, err = unix.Recvfrom(s.fd, buf, 0)
		if errors.Is(err, unix.EAGAIN) {
			continue
		}
		if err != nil {
			s.t.Fatal(err)
		}
		if a, ok := from.(*unix.SockaddrLinklayer); ok && a.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if seen(buf[:n]) {
			found = true
		}
		if stop(buf[:n]) {
			return found
		}
	}
	s.t.Fatal("the marker packet did not arrive")
	return false
}

// udpTo matches packets, or first fragments, to a UDP port.
func udpTo(port int) func([]byte) bool {
	return func(p []byte) bool {
		h := int(p[0]&15) * 4
		return len(p) >= h+8 && p[9] == unix.IPPROTO_UDP && int(p[h+2])<<8|int(p[h+3]) == port
	}
}

func from(ip string) func([]byte) bool {
	a := netip.MustParseAddr(ip).As4()
	return func(p []byte) bool { return len(p) >= 20 && [4]byte(p[12:16]) == a }
}

func anyFragment(p []byte) bool { return p[6]&0x20 != 0 || p[6]&0x1f != 0 || p[7] != 0 }

// udp sends size bytes from a namespace, from an address with or without a port, or has its own firewall refuse them.
func (l *lab) udp(name, src, dst string, size int) {
	l.t.Helper()
	l.again = func() { l.send(name, src, dst, size) }
	l.again()
}

func (l *lab) send(name, src, dst string, size int) {
	l.t.Helper()
	l.ok(ns.Do(name, func() error {
		local := &net.UDPAddr{IP: net.ParseIP(src)}
		if local.IP == nil {
			local = net.UDPAddrFromAddrPort(netip.MustParseAddrPort(src))
		}
		d := net.Dialer{LocalAddr: local}
		c, err := d.Dial("udp4", dst)
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err = c.Write(make([]byte, size)); errors.Is(err, unix.EPERM) {
			return nil
		}
		return err
	}))
}

func (l *lab) rules(name string) string {
	// A table that is made anew goes behind the others; of one family they are few.
	return strings.TrimSpace(l.run(name, "nft", "list ruleset ip; list ruleset ip6; list ruleset bridge; list ruleset inet"))
}
