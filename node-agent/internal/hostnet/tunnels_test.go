package hostnet

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

// A pod may not make tunnel packets: not to a peer, not to its own node, not through
// DNAT, not in fragments.
func TestPodsCannotSendVXLAN(t *testing.T) {
	l := newLab(t)
	l.ensure(true)
	l.run(l.node, "nft", `add table ip svc; add chain ip svc pre { type nat hook prerouting priority dstnat; };
		add rule ip svc pre ip daddr 10.96.0.10 udp dport 53 dnat to 198.18.0.1:4789;
		add rule ip svc pre ip daddr 10.96.0.11 udp dport 53 dnat to 198.18.0.7:4789`)
	attempts := []struct {
		name, dst string
		size      int
	}{
		{"to a peer", "198.18.0.1:4789", 100}, {"to a peer in fragments", "198.18.0.1:4789", 4000},
		{"by DNAT to a peer", "10.96.0.10:53", 100}, {"by DNAT in fragments", "10.96.0.10:53", 4000},
	}
	for _, a := range attempts {
		s := l.sniff(l.outside, "eth0")
		l.udp(l.pods, "172.11.0.5", a.dst, a.size)
		l.udp(l.pods, "172.11.0.5", "198.18.0.1:4788", 100) // passes, and marks the end
		if s.until(udpTo(4788), func(p []byte) bool { return udpTo(4789)(p) || anyFragment(p) }) {
			t.Errorf("%s: a tunnel packet got out", a.name)
		}
	}
	vtep, err := ns.ListenUDP(ns.Path(l.node), "198.18.0.7:4789")
	l.ok(err)
	defer vtep.Close()
	l.udp(l.pods, "172.11.0.5", "198.18.0.7:4789", 100)
	l.udp(l.pods, "172.11.0.5", "10.96.0.11:53", 100)
	l.udp(l.outside, "198.18.0.1", "198.18.0.7:4789", 7) // a peer may, and marks the end
	buf := make([]byte, 2000)
	if n, peer, err := vtep.ReadFromUDP(buf); err != nil || n != 7 {
		t.Errorf("the node's VTEP got %d bytes from %v, %v; want the peer's 7 only", n, peer, err)
	}
	// The rules are what holds it back.
	l.ok(l.net.Cleanup(context.Background()))
	l.udp(l.pods, "172.11.0.5", "198.18.0.7:4789", 100)
	if n, _, err := vtep.ReadFromUDP(buf); err != nil || n != 100 {
		t.Errorf("without rules nothing arrives either (%d bytes, %v): the test proves nothing", n, err)
	}
}

// What comes to the ports of tunnels and probes by translation is none of a node's,
// wherever it comes from and goes to; what comes there straight is, whatever others do with
// connection tracking. Both are counted, or not.
func TestTranslatedIsForged(t *testing.T) {
	l := newLab(t)
	l.spec.ProbePort = 4790
	l.ip(l.node, "route add default via 198.18.0.1")
	l.run(l.node, "nft", `add table ip svc; add chain ip svc pre { type nat hook prerouting priority dstnat; };
		add chain ip svc out { type nat hook output priority -100; };
		add chain ip svc post { type nat hook postrouting priority srcnat; }; add rule ip svc post oifname eth0 masquerade;
		add chain ip svc zone { type filter hook prerouting priority raw; }; add rule ip svc zone iifname eth0 ct zone set 7;
		add chain ip svc zoned { type filter hook output priority raw; }; add rule ip svc zoned oifname eth0 ct zone set 7`)
	for port, to := range map[int]string{31: "198.18.0.1:4789", 32: "198.18.0.1:4790", 33: "198.18.0.7:4789", 34: "198.18.0.7:4790", 35: "198.18.0.1:9"} {
		for _, chain := range []string{"pre", "out"} {
			l.run(l.node, "nft", fmt.Sprintf("add rule ip svc %s ip daddr { 198.18.0.7, 10.96.0.10 } udp dport 300%d dnat to %s", chain, port, to))
		}
	}
	l.ensure(true)
	l.up()
	listen := func(where, at string) net.PacketConn {
		c, err := ns.ListenUDP(ns.Path(where), at)
		l.ok(err)
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	honest := listen(l.outside, "198.18.0.1:9")
	for _, guarded := range []struct {
		port         string
		peers, nodes string // ports that are translated to a peer and to this node
		reason       Reason
		others, ours net.PacketConn
	}{
		{"4789", "30031", "30033", ForgedTunnel, listen(l.outside, "198.18.0.1:4789"), listen(l.node, "198.18.0.7:4789")},
		{"4790", "30032", "30034", ForgedProbe, listen(l.outside, "198.18.0.1:4790"), listen(l.node, "198.18.0.7:4790")},
	} {
		before, err := l.net.Dropped(t.Context())
		l.ok(err)
		if diff := cmp.Diff(map[Reason]uint64{ForgedTunnel: 0, ForgedProbe: 0, ForgedError: 0}, before); diff != "" {
			t.Errorf("%s: dropped before (-want +got):\n%s", guarded.port, diff)
		}
		for _, size := range []int{100, 4000} { // the larger one in fragments
			l.udp(l.outside, "198.18.0.1", "198.18.0.7:"+guarded.peers, size)
			l.udp(l.outside, "198.18.0.1", "198.18.0.7:"+guarded.nodes, size)
			l.udp(l.node, "198.18.0.7", "10.96.0.10:"+guarded.peers, size)
			l.udp(l.node, "198.18.0.7", "10.96.0.10:"+guarded.nodes, size)
			l.udp(l.pods, "172.11.0.5", "198.18.0.7:"+guarded.peers, size)
			l.udp(l.pods, "172.11.0.5", "198.18.0.7:"+guarded.nodes, size)
		}
		l.udp(l.node, "198.18.0.7", "198.18.0.1:"+guarded.port, 7)
		l.udp(l.outside, "198.18.0.1", "198.18.0.7:"+guarded.port, 7)
		for who, c := range map[string]net.PacketConn{"a peer": guarded.others, "this node": guarded.ours} {
			_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
			if n, from, err := c.ReadFrom(make([]byte, 5000)); err != nil || n != 7 {
				t.Errorf("%s got %d bytes at %s from %v, %v; want a node's 7 only", who, n, guarded.port, from, err)
			}
		}
		// Other ports are translated as ever, and what pods sent before has been dropped.
		l.udp(l.pods, "172.11.0.5", "198.18.0.7:30035", 5)
		_ = honest.SetReadDeadline(time.Now().Add(5 * time.Second))
		if n, _, err := honest.ReadFrom(make([]byte, 100)); err != nil || n != 5 {
			t.Errorf("an honest endpoint got %d bytes, %v", n, err)
		}
		dropped, err := l.net.Dropped(t.Context())
		l.ok(err)
		want := map[Reason]uint64{ForgedTunnel: 0, ForgedProbe: 0, ForgedError: 0}
		want[guarded.reason] = 12
		if diff := cmp.Diff(want, dropped); diff != "" {
			t.Errorf("%s: dropped (-want +got):\n%s", guarded.port, diff)
		}
	}
}

// No pod leaves from a port where answers would be taken for a node's.
func TestSourcePorts(t *testing.T) {
	at := func(ports ...tunnel.Port) []tunnel.Port { return ports }
	for _, tt := range []struct {
		tunnels []tunnel.Port
		probe   uint16
		want    string
	}{
		{at(4789), 4790, "4791-65535"}, {at(4789), 0, "4790-65535"}, {at(8472), 4790, "8473-65535"}, {at(60000), 50000, "1024-49999"},
		{at(65535), 1024, "1025-65534"}, {at(2000), 64000, "2001-63999"}, {at(80), 81, "1024-65535"}, {at(4789, 40000), 4790, "4791-39999"},
	} {
		if got := (Spec{TunnelPorts: tt.tunnels, ProbePort: tt.probe}).sourcePorts(); got != tt.want {
			t.Errorf("tunnels at %d and probes at %d: %s, want %s", tt.tunnels, tt.probe, got, tt.want)
		}
	}
	l := newLab(t)
	l.spec.TunnelPorts, l.spec.ProbePort = at(65534), 1025 // leaves as many as there are
	l.ensure(true)
	l.up()
	// Somebody translates the source before us, and keeps the port.
	l.run(l.node, "nft", "add table ip svc; add chain ip svc post { type nat hook postrouting priority 90; }; add rule ip svc post oifname eth0 udp dport 9 masquerade")
	s := l.sniff(l.outside, "eth0")
	for _, from := range []string{"172.11.0.5:65534", "172.11.0.5:1025"} {
		l.udp(l.pods, from, "198.18.0.1:9", 100)
		l.udp(l.pods, from, "198.18.0.1:10", 100)
	}
	l.udp(l.pods, "172.11.0.5:0", "198.18.0.1:11", 100)
	got := 0
	if s.until(udpTo(11), func(p []byte) bool {
		if udpTo(10)(p) {
			got++
		}
		port := int(p[20])<<8 | int(p[21])
		return port == 65534 || port == 1025
	}) {
		t.Error("a pod's packet left from a port of the node's own")
	}
	if got != 2 {
		t.Errorf("%d datagrams of 2 left from another port", got)
	}
}

// A pod can neither keep agents busy with probes nor pass for the agent of its node.
func TestPodsCannotProbe(t *testing.T) {
	l := newLab(t)
	l.spec.ProbePort = 4790
	l.ensure(true)
	s := l.sniff(l.outside, "eth0")
	l.udp(l.pods, "172.11.0.5", "198.18.0.1:4790", 100)
	l.udp(l.pods, "172.11.0.5", "198.18.0.1:4788", 100) // passes, and marks the end
	if s.until(udpTo(4788), udpTo(4790)) {
		t.Error("to a peer: a probe got out")
	}
	agent, err := ns.ListenUDP(ns.Path(l.node), "198.18.0.7:4790")
	l.ok(err)
	defer agent.Close()
	l.udp(l.pods, "172.11.0.5", "198.18.0.7:4790", 100)
	l.udp(l.outside, "198.18.0.1", "198.18.0.7:4790", 7) // a peer may, and marks the end
	if n, from, err := agent.ReadFromUDP(make([]byte, 200)); err != nil || n != 7 {
		t.Errorf("the node's agent got %d bytes from %v, %v; want the peer's 7 only", n, from, err)
	}
}

// Another port than 4789 is guarded as well, and each of several.
func TestTunnelPortsAreConfigurable(t *testing.T) {
	l := newLab(t)
	l.ensure(true)
	l.spec.TunnelPorts = []tunnel.Port{4790, 8472}
	l.ensure(true)
	l.ensure(false)
	s := l.sniff(l.outside, "eth0")
	l.udp(l.pods, "172.11.0.5", "198.18.0.1:4790", 100)
	l.udp(l.pods, "172.11.0.5", "198.18.0.1:8472", 100)
	l.udp(l.pods, "172.11.0.5", "198.18.0.1:4789", 100)
	if s.until(udpTo(4789), func(p []byte) bool { return udpTo(4790)(p) || udpTo(8472)(p) }) {
		t.Error("a packet to one of the tunnel ports 4790 and 8472 got out")
	}
}

// While nodes come to another port one by one, the ports of both are guarded.
func TestOtherTunnelPorts(t *testing.T) {
	l := newLab(t)
	l.ensure(true)
	l.spec.TunnelPorts, l.spec.OtherTunnelPorts = []tunnel.Port{8472}, []tunnel.Port{4789}
	l.ensure(true)
	l.ensure(false)
	s := l.sniff(l.outside, "eth0")
	l.udp(l.pods, "172.11.0.5", "198.18.0.1:4789", 100)
	l.udp(l.pods, "172.11.0.5", "198.18.0.1:8472", 100)
	l.udp(l.pods, "172.11.0.5", "198.18.0.1:4791", 100)
	if s.until(udpTo(4791), func(p []byte) bool { return udpTo(4789)(p) || udpTo(8472)(p) }) {
		t.Error("a packet to one of the tunnel ports got out")
	}
}
