package exits

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/hostnet"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/wire"
)

// bridge is what is behind the gateway port: what it sends comes out there.
type bridge struct{ port *wire.Port }

func (b bridge) Send(_ context.Context, frame []byte) error { return b.port.Send(frame) }

// TestOutside breaks the way out of a real node, one way after the other.
func TestOutside(t *testing.T) {
	id := fmt.Sprintf("exits-%d-", os.Getpid())
	pods, node, outside := id+"pods", id+"node", id+"out"
	for _, n := range []string{pods, node, outside} {
		if err := ns.Create(n); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = ns.Delete(n) })
	}
	run := func(command string) {
		t.Helper()
		out, err := exec.Command("ip", "netns", "exec", node, "sh", "-ec", command).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", command, err, out)
		}
	}
	run("ip link add tun0 type veth peer name eth0 netns " + pods + "; ip link add eth0 type veth peer name eth0 netns " + outside +
		"; ip addr add 198.18.0.7/24 dev eth0; ip link set eth0 up; ip link set tun0 up; ip addr add 172.11.0.1/32 dev tun0")
	for _, n := range []string{pods, outside} {
		if err := ns.IP(t.Context(), n, "link set eth0 up"); err != nil {
			t.Fatal(err)
		}
	}
	if err := ns.IP(t.Context(), outside, "addr add 198.18.0.1/24 dev eth0"); err != nil {
		t.Fatal(err)
	}
	run("ip route add 172.11.0.0/16 dev tun0; echo 1 >/proc/sys/net/ipv4/ip_forward; echo 2 >/proc/sys/net/ipv4/conf/tun0/rp_filter")
	host, err := link.Open(ns.Path(node))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = host.Close() })
	exit, err := hostnet.NewExit(host)
	if err != nil {
		t.Fatal(err)
	}
	port, err := wire.Open(ns.Path(pods), "eth0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = port.Close() })
	seen, err := wire.Open(ns.Path(outside), "eth0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = seen.Close() })
	tun0, _, err := host.Link("tun0")
	if err != nil {
		t.Fatal(err)
	}
	gw := Gateway{Device: "tun0", MAC: tun0.MAC, From: net.HardwareAddr{2, 0, 0, 0, 0, 1}, Subnet: netip.MustParsePrefix("172.11.0.0/22")}
	c := New(host, exit)
	c.patience = 100 * time.Millisecond
	check := func(when, want string) {
		t.Helper()
		err := c.Outside(t.Context(), bridge{port}, gw)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", when, err, want)
		}
	}
	check("a node that leads nowhere", "")
	run("ip route add default via 198.18.0.1")
	check("all well", "")
	check("again", "")
	for _, tt := range []struct{ name, do, undo, want string }{
		{"no default route", "ip route del default", "ip route add default via 198.18.0.1", "lost its default route"},
		{"a default route on the link", "ip route replace default dev eth0", "ip route replace default via 198.18.0.1", ""},
		{"no forwarding", "echo 0 >/proc/sys/net/ipv4/ip_forward", "echo 1 >/proc/sys/net/ipv4/ip_forward", "net/ipv4/ip_forward is 0"},
		{"a port that does not forward", "echo 0 >/proc/sys/net/ipv4/conf/tun0/forwarding", "echo 1 >/proc/sys/net/ipv4/conf/tun0/forwarding", "conf/tun0/forwarding is 0"},
		{"another table's policy", "nft 'add table ip docker; add chain ip docker f { type filter hook forward priority filter; policy drop; }'", "nft delete table ip docker", "FORWARD chain"},
		{"another table's rule", "nft 'add table inet fw; add chain inet fw f { type filter hook forward priority filter; }; add rule inet fw f oifname eth0 drop'", "nft delete table inet fw", "FORWARD chain"},
		{"iptables' policy", "iptables-legacy -P FORWARD DROP", "iptables-legacy -P FORWARD ACCEPT", "FORWARD chain"},
		{"a routing rule", "ip rule add iif tun0 blackhole", "ip rule del iif tun0 blackhole", "routing rules"},
		{"a flushed firewall", "nft flush ruleset", "true", ""},
	} {
		if strings.HasPrefix(tt.do, "iptables") {
			if _, err := exec.LookPath("iptables-legacy"); err != nil {
				continue // the machine has no such firewall
			}
		}
		run(tt.do)
		check(tt.name, tt.want)
		run(tt.undo)
		check("after "+tt.name, "")
	}
	// A router that nobody is: said as soon as the kernel has asked in vain.
	run("ip route replace default via 198.18.0.77")
	deadline := time.Now().Add(10 * time.Second)
	for err = nil; err == nil && time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		err = c.Outside(t.Context(), bridge{port}, gw)
	}
	if err == nil || !strings.Contains(err.Error(), "the router 198.18.0.77 of the default route does not answer") {
		t.Errorf("a router that nobody is: %v", err)
	}
	run("ip route replace default via 198.18.0.1")
	check("the router again", "")
	// One that answered before and is away is none of this node's doing.
	if err := ns.IP(t.Context(), outside, "addr del 198.18.0.1/24 dev eth0"); err != nil {
		t.Fatal(err)
	}
	run("ip neigh flush dev eth0")
	check("the router is away", "")
	for _, f := range seen.Frames() {
		if strings.Contains(string(f), string(net.IPv4(172, 11, 3, 255).To4())) {
			t.Error("a packet of the check left the node")
		}
	}
	if err := exit.Cleanup(t.Context()); err != nil {
		t.Fatal(err)
	}
}
