package hostnet

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/wire"
)

// A node whose host ends have IPv6, as every write to net.ipv6.conf.all.disable_ipv6 gives it to
// them, believes no router advertisement of a pod and answers it nothing; without the table it does.
func TestHostEndsHaveNoIPv6(t *testing.T) {
	l := newLab(t)
	const end = "kov0123456789ab"
	l.ip(l.node, "link add "+end+" type veth peer name eth1 address 02:00:00:00:00:05 netns "+l.pods)
	l.run(l.node, "sysctl", "-qw", "net.ipv6.conf."+end+".accept_dad=0")
	l.run(l.pods, "sysctl", "-qw", "net.ipv6.conf.eth1.disable_ipv6=1")
	l.ip(l.pods, "link set eth1 up")
	l.ip(l.node, "link set "+end+" up")
	pod, err := wire.Open(ns.Path(l.pods), "eth1")
	l.ok(err)
	t.Cleanup(func() { _ = pod.Close() })
	// Its advertisement comes before its echo request, so who answers this has seen that.
	mac, from := net.HardwareAddr{2, 0, 0, 0, 0, 5}, netip.MustParseAddr("fe80::5")
	hails := func(mark string) {
		for _, message := range [][]byte{wire.RouterAdvertisement(netip.MustParsePrefix("2001:db8::/64")), wire.EchoV6(mark)} {
			l.ok(pod.Send(wire.Ethernet(wire.AllNodesMAC, mac, wire.TypeIPv6, wire.ICMPv6(from, wire.AllNodes, message))))
		}
	}
	routes := func() string { return l.run(l.node, "ip", "-6", "route", "show", "default") }
	until := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: not within 10 s; default routes: %q", what, routes())
			}
		}
	}
	until("a node without the table believes a pod", func() bool { hails("open"); return strings.Contains(routes(), end) })

	l.ensure(true)
	l.run(l.node, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
	l.run(l.node, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=0")
	until("the host end has IPv6", func() bool {
		return strings.Contains(l.run(l.node, "ip", "-6", "addr", "show", "dev", end, "scope", "link"), "fe80::")
	})
	hails("shut")
	until("the firewall has dropped both", func() bool {
		return strings.Contains(l.run(l.node, "nft", "list", "chain", "ip6", table, "raw-prerouting"), "counter packets 2 ")
	})
	if got := routes(); got != "" {
		t.Errorf("the node has a default route from a pod: %s", got)
	}
	// What the node itself says to all of a link does not get there either.
	l.ok(ns.Do(l.node, func() error {
		c, err := (&net.Dialer{}).Dial("udp6", "[ff02::1%"+end+"]:9")
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err = c.Write([]byte("said")); errors.Is(err, unix.EPERM) {
			return nil
		}
		return err
	}))
	node, err := wire.Open(ns.Path(l.node), end)
	l.ok(err)
	t.Cleanup(func() { _ = node.Close() })
	l.ok(node.Send(wire.Ethernet(mac, mac, wire.TypeARP, []byte("the last frame"))))
	if _, err := pod.WaitFor("the last frame", 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if pod.Saw("shut") || pod.Saw("said") {
		t.Errorf("the pod hears the node: answers to it %t, what it says to all %t", pod.Saw("shut"), pod.Saw("said"))
	}
}
