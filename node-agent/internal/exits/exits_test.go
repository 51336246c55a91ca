package exits

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/hostnet"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/link/conntrack"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/wire"
)

var labs atomic.Int32

// lab is a real node between pods and the outside, each a namespace:
//
//	pods ── tun0 node eth0 198.18.0.7 ── 198.18.0.1 outside
//	              eth1 198.19.0.7
type lab struct {
	t             testing.TB
	node, outside string
	pods          *wire.Port // the bridge, with all pods behind it
	seen          *wire.Port // what comes to the outside
	host          Node
	net           *hostnet.Net
	exit          *hostnet.Exit
	gw            Gateway
	file          File
	log           bytes.Buffer
}

func newLab(t testing.TB) *lab {
	id := fmt.Sprintf("exits-%d-%d-", os.Getpid(), labs.Add(1))
	l := &lab{t: t, node: id + "node", outside: id + "out", file: NewFile(t.TempDir())}
	pods := id + "pods"
	for _, n := range []string{pods, l.node, l.outside} {
		if err := ns.Create(n); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = ns.Delete(n) })
	}
	l.run("ip link add tun0 type veth peer name eth0 netns " + pods + "; ip link add eth0 type veth peer name eth0 netns " + l.outside +
		"; ip link add eth1 type veth peer name eth1 netns " + l.outside + "; ip link set eth0 up; ip link set eth1 up; ip addr add 198.18.0.7/24 dev eth0; ip addr add 198.19.0.7/24 dev eth1")
	l.must(ns.IP(t.Context(), pods, "link set eth0 up"))
	l.must(ns.IP(t.Context(), l.outside, "link set eth0 up", "link set eth1 up", "addr add 198.18.0.1/24 dev eth0", "addr add 198.19.0.1/24 dev eth1"))
	var err error
	host, err := link.Open(ns.Path(l.node))
	l.must(err)
	t.Cleanup(func() { _ = l.host.Close() })
	l.host = NodeIn(host)
	l.net, err = hostnet.New(host)
	l.must(err)
	l.exit, err = hostnet.NewExit(host)
	l.must(err)
	l.ensure()
	open := func(name string) *wire.Port {
		port, err := wire.Open(ns.Path(name), "eth0")
		l.must(err)
		t.Cleanup(func() { _ = port.Close() })
		return port
	}
	l.pods, l.seen = open(pods), open(l.outside)
	tun0, _, err := l.host.Link("tun0")
	l.must(err)
	l.gw = Gateway{Device: "tun0", MAC: tun0.MAC, From: net.HardwareAddr{2, 0, 0, 0, 0, 1}, Address: netip.MustParseAddr("172.11.0.1"), Subnet: netip.MustParsePrefix("172.11.0.0/22")}
	return l
}

func (l *lab) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

// run runs commands on the node.
func (l *lab) run(commands string) {
	l.t.Helper()
	out, err := exec.Command("ip", "netns", "exec", l.node, "sh", "-ec", commands).CombinedOutput()
	if err != nil {
		l.t.Fatalf("%s: %v: %s", commands, err, out)
	}
}

// ensure makes the agent's own part of the node what it should be.
func (l *lab) ensure() {
	l.t.Helper()
	_, err := l.net.Ensure(l.t.Context(), hostnet.Spec{
		Device: "tun0", Gateway: netip.MustParseAddr("172.11.0.1"), NodeSubnet: netip.MustParsePrefix("172.11.0.0/22"),
		ClusterNetwork: netip.MustParsePrefix("172.11.0.0/16"), TunnelPorts: []tunnel.Port{4789}, Outside: "eth0",
	})
	l.must(err)
}

// start is the check of an agent that starts.
func (l *lab) start() *Check {
	c := New(l.host, l.exit, l.file, slog.New(slog.NewTextHandler(&l.log, nil)))
	c.patience = 100 * time.Millisecond
	return c
}

// Send implements Switch: what the bridge sends comes out of the gateway port.
func (l *lab) Send(_ context.Context, frames ...[]byte) error {
	for _, f := range frames {
		if err := l.pods.Send(f); err != nil {
			return err
		}
	}
	return nil
}

func (l *lab) check(c *Check, when, want string) {
	l.t.Helper()
	err := c.Outside(l.t.Context(), l, l.gw)
	if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
		l.t.Errorf("%s: %v, want %q", when, err, want)
	}
}

// await checks until it says something, as long as the kernel takes to give a neighbour up.
func (l *lab) await(c *Check, when, want string) {
	l.t.Helper()
	var err error
	for deadline := time.Now().Add(10 * time.Second); err == nil && time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		err = c.Outside(l.t.Context(), l, l.gw)
	}
	if err == nil || !strings.Contains(err.Error(), want) {
		l.t.Errorf("%s: %v, want %q", when, err, want)
	}
}

// TestOutside breaks the way out of a real node, and the way back, one after the other.
func TestOutside(t *testing.T) {
	l := newLab(t)
	c := l.start()
	l.check(c, "a node that leads nowhere", "")
	l.run("ip route add default via 198.18.0.1")
	l.check(c, "all well", "")
	l.check(c, "again", "")
	const (
		out, back = "does not get out of the node: somebody's firewall", "do not get back to them: somebody's firewall"
		toPods    = "what the node sends to its pods does not get to them, so the kubelet's probes fail: somebody's firewall or routing rules keep back what leaves by tun0"
		fromPods  = "what its pods answer the node does not get to it, so the kubelet's probes fail: somebody's firewall drops what comes in by tun0"
		input     = "nft 'add table inet fw; add chain inet fw n { type filter hook input priority %s; policy %s; }; add rule inet fw n %s'"
		output    = "nft 'add table inet fw; add chain inet fw n { type filter hook output priority filter; policy %s; }; add rule inet fw n %s'"
		undoNode  = "nft delete table inet fw"
		podsOwn   = "ip route add default via 198.18.0.1 table 100; ip rule add iif tun0 lookup 100; ip route replace default via 198.19.0.1"
		undoOwn   = "ip route replace default via 198.18.0.1; ip rule del iif tun0; ip route flush table 100"
	)
	for _, tt := range []struct{ name, do, undo, want string }{
		{"no default route", "ip route del default", "ip route add default via 198.18.0.1", "lost its default route"},
		{"a default route on the link", "ip route replace default dev eth0", "ip route replace default via 198.18.0.1", ""},
		{"two halves of one", "ip route del default; ip route add 0.0.0.0/1 via 198.18.0.1; ip route add 128.0.0.0/1 via 198.18.0.1", "ip route del 0.0.0.0/1; ip route del 128.0.0.0/1; ip route add default via 198.18.0.1", ""},
		{"one over two devices", "ip route replace default nexthop via 198.18.0.1 nexthop via 198.19.0.1", "ip route replace default via 198.18.0.1", ""},
		{"none but in a rule's table", "ip route del default; ip route add default via 198.18.0.1 table 100; ip rule add from 172.11.0.0/22 lookup 100; ip rule add to 172.11.0.0/16 lookup main priority 9", "ip rule del from 172.11.0.0/22; ip rule del priority 9; ip route flush table 100; ip route add default via 198.18.0.1", ""},
		{"a default route that refuses", "ip route replace unreachable default", "ip route replace default via 198.18.0.1", "lost its default route"},
		{"no forwarding", "echo 0 >/proc/sys/net/ipv4/ip_forward", "echo 1 >/proc/sys/net/ipv4/ip_forward", "net/ipv4/ip_forward is 0"},
		{"a port that does not forward", "echo 0 >/proc/sys/net/ipv4/conf/tun0/forwarding", "echo 1 >/proc/sys/net/ipv4/conf/tun0/forwarding", "conf/tun0/forwarding is 0"},
		{"another table's policy", "nft 'add table ip docker; add chain ip docker f { type filter hook forward priority filter; policy drop; }'", "nft delete table ip docker", out},
		{"another table's rule", "nft 'add table inet fw; add chain inet fw f { type filter hook forward priority filter; }; add rule inet fw f oifname eth0 drop'", "nft delete table inet fw", out},
		{"iptables' policy", "iptables-legacy -P FORWARD DROP", "iptables-legacy -P FORWARD ACCEPT", out},
		{"a routing rule", "ip rule add iif tun0 blackhole", "ip rule del iif tun0 blackhole", "routing rules"},

		{"another table lets only pods out", "nft 'add table ip docker; add chain ip docker f { type filter hook forward priority filter; policy drop; }; add rule ip docker f iifname tun0 accept'", "nft delete table ip docker", back},
		{"and answers in", "nft 'add table ip docker; add chain ip docker f { type filter hook forward priority filter; policy drop; }; add rule ip docker f iifname tun0 accept; add rule ip docker f ct state established accept'", "nft delete table ip docker", ""},
		{"another table drops what goes to pods", "nft 'add table inet fw; add chain inet fw f { type filter hook postrouting priority 300; }; add rule inet fw f oifname tun0 drop'", "nft delete table inet fw", back},
		{"another table refuses what goes to pods", "nft 'add table ip fw; add chain ip fw f { type filter hook forward priority filter; }; add rule ip fw f oifname tun0 reject with icmp type host-prohibited'", "nft delete table ip fw", back},
		{"another table drops UDP that comes in", "nft 'add table ip fw; add chain ip fw p { type filter hook prerouting priority raw; }; add rule ip fw p iifname eth0 udp sport != 123 drop'", "nft delete table ip fw", ""},
		{"and TCP", "nft 'add table ip fw; add chain ip fw p { type filter hook prerouting priority raw; }; add rule ip fw p iifname eth0 udp sport != 123 drop; add rule ip fw p iifname eth0 tcp dport != 22 drop'", "nft delete table ip fw", back},
		{"another table drops TCP that comes in", "nft 'add table ip fw; add chain ip fw p { type filter hook prerouting priority raw; }; add rule ip fw p iifname eth0 ip protocol tcp drop'", "nft delete table ip fw", ""},
		{"another table refuses TCP that comes in", "nft 'add table ip fw; add chain ip fw p { type filter hook prerouting priority raw; }; add rule ip fw p iifname eth0 ip protocol tcp reject with tcp reset; add rule ip fw p iifname eth0 ip protocol udp reject'", "nft delete table ip fw", back},
		{"another table refuses TCP that goes to pods", "nft 'add table ip fw; add chain ip fw f { type filter hook forward priority filter; }; add rule ip fw f oifname tun0 ip protocol tcp reject with tcp reset; add rule ip fw f oifname tun0 drop'", "nft delete table ip fw", back},
		{"another table tells why TCP does not go to pods", "nft 'add table ip fw; add chain ip fw f { type filter hook forward priority filter; }; add rule ip fw f oifname tun0 ip protocol tcp reject with icmp type host-prohibited; add rule ip fw f oifname tun0 drop'", "nft delete table ip fw", back},
		{"another table lets only known TCP in", "nft 'add table ip docker; add chain ip docker f { type filter hook forward priority filter; policy drop; }; add rule ip docker f iifname tun0 accept; add rule ip docker f ct state invalid drop; add rule ip docker f ip protocol tcp ct state established accept'", "nft delete table ip docker", ""},
		{"a firewall with a memory of its own, as the check cannot know it", "nft 'add table ip fw; add chain ip fw f { type filter hook forward priority filter; }; add rule ip fw f oifname tun0 ct mark != 7 drop'", "nft delete table ip fw", back},
		{"another table keeps pods in, and refuses TCP that goes to them", "nft 'add table ip fw; add chain ip fw f { type filter hook forward priority filter; }; add rule ip fw f iifname tun0 drop; add rule ip fw f oifname tun0 ip protocol tcp reject with tcp reset'", "nft delete table ip fw", out},
		{"pods are kept from the node's link", "nft 'add table ip fw; add chain ip fw f { type filter hook forward priority filter; }; add rule ip fw f iifname tun0 ip daddr 198.18.0.0/15 drop'", "nft delete table ip fw", ""},
		{"pods are kept from all but the node's link", "nft 'add table ip fw; add chain ip fw f { type filter hook forward priority filter; }; add rule ip fw f iifname tun0 ip daddr != 198.18.0.0/15 drop'", "nft delete table ip fw", ""},
		{"another table drops UDP that comes to the device", "nft 'add table netdev fw; add chain netdev fw i { type filter hook ingress device eth0 priority 0; }; add rule netdev fw i ip protocol udp drop'", "nft delete table netdev fw", ""},
		{"another table drops what comes to the device", "nft 'add table netdev fw; add chain netdev fw i { type filter hook ingress device eth0 priority 0; }; add rule netdev fw i ip protocol { udp, tcp } drop'", "nft delete table netdev fw", back},
		{"iptables lets only pods out", "iptables-legacy -P FORWARD DROP; iptables-legacy -A FORWARD -i tun0 -j ACCEPT", "iptables-legacy -P FORWARD ACCEPT; iptables-legacy -F FORWARD", back},
		{"iptables lets answers in", "iptables-legacy -P FORWARD DROP; iptables-legacy -A FORWARD -i tun0 -j ACCEPT; iptables-legacy -A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT", "iptables-legacy -P FORWARD ACCEPT; iptables-legacy -F FORWARD", ""},
		{"iptables drops what goes to pods", "iptables-legacy -t mangle -A POSTROUTING -o tun0 -j DROP", "iptables-legacy -t mangle -F POSTROUTING", back},
		{"iptables drops UDP that comes in", "iptables-legacy -t raw -A PREROUTING -i eth0 -p udp -j DROP", "iptables-legacy -t raw -F PREROUTING", ""},
		{"iptables drops what comes in", "iptables-legacy -t raw -A PREROUTING -i eth0 -j DROP", "iptables-legacy -t raw -F PREROUTING", back},
		{"those of one port are not tracked", "nft 'add table ip fw; add chain ip fw p { type filter hook prerouting priority raw; }; add rule ip fw p iifname eth0 udp sport 53 notrack'", "nft delete table ip fw", ""},
		{"only those of one port are let in", "nft 'add table ip fw; add chain ip fw p { type filter hook prerouting priority raw; }; add rule ip fw p iifname eth0 udp sport != 53 drop'", "nft delete table ip fw", ""},
		{"answers are not tracked", "nft 'add table ip fw; add chain ip fw p { type filter hook prerouting priority raw; }; add rule ip fw p iifname eth0 notrack'", "nft delete table ip fw", back},
		{"nothing is tracked", "nft 'add table ip fw; add chain ip fw p { type filter hook prerouting priority raw; }; add rule ip fw p notrack'", "nft delete table ip fw", out},
		{"all in another zone of conntrack", "nft 'add table ip fw; add chain ip fw p { type filter hook prerouting priority raw; }; add rule ip fw p ct zone set 7'", "nft delete table ip fw", ""},
		{"senders that cannot be are dropped", "nft 'add table ip fw; add chain ip fw p { type filter hook prerouting priority raw; }; add rule ip fw p iifname eth0 ip saddr { 192.0.2.0/24, 198.18.0.0/15 } drop'", "nft delete table ip fw", ""},
		{"an uplink that does not forward", "echo 0 >/proc/sys/net/ipv4/conf/eth0/forwarding", "echo 1 >/proc/sys/net/ipv4/conf/eth0/forwarding", "conf/eth0/forwarding is 0"},
		{"strict reverse paths", "sysctl -qw net.ipv4.conf.eth0.rp_filter=1", "sysctl -qw net.ipv4.conf.eth0.rp_filter=0", ""},
		{"routing rules lead what the node sends to pods elsewhere", "ip rule add from 172.11.0.1 lookup 100; ip route add default via 198.18.0.1 table 100", "ip rule del from 172.11.0.1; ip route flush table 100", toPods},
		{"the node is kept from its pods", fmt.Sprintf(output, "accept", "oifname tun0 drop"), undoNode, toPods},
		{"the node is refused its pods", fmt.Sprintf(output, "accept", "oifname tun0 ip protocol tcp reject with tcp reset; add rule inet fw n oifname tun0 reject"), undoNode, toPods},
		{"all that the node sends is kept back but TCP", fmt.Sprintf(output, "drop", "ip protocol tcp accept"), undoNode, ""},
		{"and but UDP", fmt.Sprintf(output, "drop", "ip protocol udp accept"), undoNode, ""},
		{"what pods answer the node is dropped", fmt.Sprintf(input, "5", "accept", "iifname tun0 drop"), undoNode, fromPods},
		{"behind all else", fmt.Sprintf(input, "1000", "accept", "iifname tun0 drop"), undoNode, fromPods},
		{"it is refused", fmt.Sprintf(input, "5", "accept", "iifname tun0 ip protocol tcp reject with tcp reset; add rule inet fw n iifname tun0 reject"), undoNode, fromPods},
		{"it is refused as all else, and what the node sends dropped", fmt.Sprintf(input, "5", "accept", "iifname tun0 ip protocol tcp reject with tcp reset; add rule inet fw n iifname tun0 reject; add chain inet fw o { type filter hook output priority 5; }; add rule inet fw o oifname tun0 ct state new drop"), undoNode, toPods},
		{"nothing is let in", fmt.Sprintf(input, "filter", "drop", "iifname lo accept"), undoNode, fromPods},
		{"nothing but what is known", fmt.Sprintf(input, "filter", "drop", "ct state established,related accept"), undoNode, ""},
		{"pods may not begin anything with the node", fmt.Sprintf(input, "filter", "accept", "iifname tun0 ct state != established drop"), undoNode, ""},
		{"and all of them are known elsewhere", fmt.Sprintf(input, "filter", "accept", "iifname tun0 ct state != established drop; add chain inet fw z { type filter hook prerouting priority raw; }; add rule inet fw z ct zone set 7; add chain inet fw y { type filter hook output priority raw; }; add rule inet fw y ct zone set 7"), undoNode, ""},
		{"pods may not answer the node by UDP", fmt.Sprintf(input, "filter", "accept", "iifname tun0 ip protocol udp drop"), undoNode, ""},
		{"the node speaks to pods with another address", "ip addr add 192.0.2.9/32 dev eth0; ip route replace 172.11.0.0/16 via 169.254.77.1 dev tun0 onlink src 192.0.2.9", "ip route replace 172.11.0.0/16 via 169.254.77.1 dev tun0 onlink src 172.11.0.1; ip addr del 192.0.2.9/32 dev eth0", ""},
		{"iptables drops what pods answer the node", "iptables-legacy -I INPUT -i tun0 -j DROP", "iptables-legacy -F INPUT", fromPods},
		{"iptables lets nothing in", "iptables-legacy -P INPUT DROP", "iptables-legacy -P INPUT ACCEPT", fromPods},
		{"iptables drops what the node sends to pods", "iptables-legacy -I OUTPUT -o tun0 -j DROP", "iptables-legacy -F OUTPUT", toPods},
		{"pods' own default route", podsOwn, undoOwn, ""},
		{"and the kernel's strict reverse paths", podsOwn + "; sysctl -qw net.ipv4.conf.all.rp_filter=1", undoOwn + "; sysctl -qw net.ipv4.conf.all.rp_filter=0", ""},
		{"and a firewall's", podsOwn + "; nft 'add table ip fw; add chain ip fw p { type filter hook prerouting priority raw; }; add rule ip fw p fib saddr . iif oif missing drop'", undoOwn + "; nft delete table ip fw", back},
	} {
		if strings.HasPrefix(tt.do, "iptables") {
			if _, err := exec.LookPath("iptables-legacy"); err != nil {
				continue // the machine has no such firewall
			}
		}
		l.run(tt.do)
		l.check(c, tt.name, tt.want)
		l.run(tt.undo)
		l.check(c, "after "+tt.name, "")
	}
	l.run("nft flush ruleset")
	l.ensure()
	l.check(c, "a flushed firewall", "")
	for _, f := range l.seen.Frames() {
		for _, ip := range [][]byte{l.gw.way().Probe.AsSlice(), Beyond.AsSlice()} {
			if bytes.Contains(f, ip) {
				t.Errorf("a packet of the check left the node: %x", f)
			}
		}
	}
	if l.log.Len() > 0 {
		t.Errorf("it could not do all: %s", l.log.String())
	}
	l.must(l.exit.Cleanup(t.Context()))
}

// TestNodeAndPods: also a node that leads nowhere has to reach its pods.
func TestNodeAndPods(t *testing.T) {
	l := newLab(t)
	c := l.start()
	l.check(c, "all well", "")
	l.run("nft 'add table inet fw; add chain inet fw i { type filter hook input priority 5; }; add rule inet fw i iifname tun0 drop'")
	l.check(c, "it does not hear them", "what its pods answer the node does not get to it")
	l.check(c, "again", "what its pods answer the node does not get to it")
	l.run("nft flush chain inet fw i")
	l.check(c, "it hears them", "")
	if l.log.Len() > 0 {
		t.Errorf("it could not do all: %s", l.log.String())
	}
}

// crowded is a node with that many connections of so many.
type crowded struct {
	Node
	used, size uint64
}

func (c crowded) Fill() (used, size uint64, err error) { return c.used, c.size, nil }

// TestFullTable: where the connection table has no room, it is that which keeps packets back and nobody's firewall.
func TestFullTable(t *testing.T) {
	l := newLab(t)
	l.run("ip route add default via 198.18.0.1")
	check := func(used, size uint64, want string) {
		t.Helper()
		c := l.start()
		c.host = crowded{l.host, used, size}
		l.check(c, fmt.Sprintf("%d of %d", used, size), want)
	}
	check(1000, 1000, "")
	const full, firewall = "net.netfilter.nf_conntrack_max", "somebody's firewall"
	for _, drop := range []string{"prerouting priority -190; }; add rule ip fw c iifname tun0 drop", "forward priority 0; }; add rule ip fw c oifname tun0 drop", "output priority 0; }; add rule ip fw c oifname tun0 drop"} {
		l.run("nft 'add table ip fw; add chain ip fw c { type filter hook " + drop + "'")
		check(1000, 1000, full)
		check(990, 1000, full)
		check(500, 1000, firewall)
		check(1000, 0, firewall) // there is no limit
		l.run("nft delete table ip fw")
	}
}

// taken is a node that has every other connection that the check would have answered.
type taken struct {
	Node
	asked *int
}

func (t taken) Track(c conntrack.Translated, lasts time.Duration) error {
	if c.To == netip.AddrPortFrom(Beyond, domain) {
		if *t.asked++; *t.asked%2 == 1 {
			return fs.ErrExist
		}
	}
	return t.Node.Track(c, lasts)
}

// TestTakenPort: a connection that there is already proves nothing; another one is tried at once.
func TestTakenPort(t *testing.T) {
	l := newLab(t)
	l.run("ip route add default via 198.18.0.1; nft 'add table ip fw; add chain ip fw f { type filter hook forward priority 0; }; add rule ip fw f oifname tun0 drop'")
	c := l.start()
	c.host = taken{l.host, new(int)}
	l.check(c, "answers are dropped", "answers to what pods send to the outside do not get back to them")
}

// TestFlushedExit: where somebody flushed the table in which the check's packets end, its counters stand still, which is
// nobody's firewall.
func TestFlushedExit(t *testing.T) {
	l := newLab(t)
	l.run("ip route add default via 198.18.0.1")
	c := l.start()
	l.check(c, "all well", "")
	l.run("nft flush table ip k8s-ovs-exit")
	l.check(c, "flushed", "")
	l.check(c, "again", "")
}

// TestRouter: a router is wrong that never answered where another one did; one that is away
// is none of the node's doing, also when the agent starts meanwhile.
func TestRouter(t *testing.T) {
	l := newLab(t)
	l.run("ip route replace default via 198.18.0.1")
	c := l.start()
	c.patience = 5 * time.Second
	l.check(c, "a router that answers", "")
	c.patience = 100 * time.Millisecond
	l.run("ip route replace default via 198.18.0.77")
	l.await(c, "a router that nobody is", "the router 198.18.0.77 of the default route does not answer on eth0, and never has, while 198.18.0.1 did")
	l.await(l.start(), "after a restart of the agent", "the router 198.18.0.77 of the default route does not answer")
	l.run("ip route replace default via 198.18.0.1")
	l.check(c, "the router again", "")
	for _, both := range []string{"nexthop via 198.18.0.1 nexthop via 198.18.0.78", "nexthop via 198.18.0.78 nexthop via 198.18.0.1"} {
		l.run("ip route replace default " + both)
		l.await(c, "a second one that nobody is", "the router 198.18.0.78 of the default route does not answer on eth0, and never has, while 198.18.0.1 did: a part of pods' connections to the outside fails; take it out of the default route")
		l.run("sysctl -qw net.ipv4.fib_multipath_use_neigh=1; ip neigh replace 198.18.0.78 dev eth0 nud failed")
		l.check(c, "and the kernel takes only those that answer", "")
		l.run("sysctl -qw net.ipv4.fib_multipath_use_neigh=0; ip route replace default via 198.18.0.1")
		l.check(c, "one router again", "")
	}
	l.must(ns.IP(t.Context(), l.outside, "addr del 198.18.0.1/24 dev eth0"))
	l.run("ip neigh flush dev eth0")
	away := func(when string, c *Check) {
		t.Helper()
		c.asked = map[netip.Addr]time.Time{netip.MustParseAddr("198.18.0.1"): time.Now().Add(-time.Minute)}
		l.check(c, when, "")
	}
	away("the router is away", c)
	away("and the agent starts", l.start())
	l.must(os.Remove(l.file.path))
	if l.log.Len() > 0 {
		t.Errorf("before it forgot: %s", l.log.String())
	}
	fresh := l.start()
	away("a node that has seen no router", fresh)
	away("again", fresh)
	if n := strings.Count(l.log.String(), "no answer from 198.18.0.1 on eth0"); n != 1 {
		t.Errorf("said %d times: %s", n, l.log.String())
	}
}

// TestDefaultRouteIsRemembered: also a route that went before the agent started is missed,
// until somebody has the node forget.
func TestDefaultRouteIsRemembered(t *testing.T) {
	l := newLab(t)
	l.check(l.start(), "a node that never led anywhere", "")
	l.check(l.start(), "after a restart", "")
	l.run("ip route add default via 198.18.0.1")
	l.check(l.start(), "a default route", "")
	l.run("ip route del default")
	c := l.start()
	l.check(c, "lost before the agent started", "or delete "+l.file.path+" where the node is to have none")
	l.must(os.Remove(l.file.path))
	l.check(c, "forgotten", "")
	l.run("ip route add default via 198.18.0.1")
	l.check(c, "the same agent sees one", "")
	l.run("ip route del default")
	l.check(c, "and misses it", "lost its default route")
	l.check(l.start(), "as does the next", "lost its default route")
	l.must(os.Remove(l.file.path))
	l.check(c, "forgotten again", "")
	l.check(l.start(), "and the agent restarted", "")

	l.run("ip route add default via 198.18.0.1")
	l.check(c, "a default route again", "")
	l.must(os.WriteFile(l.file.path, []byte("{"), 0o600))
	l.check(l.start(), "a damaged file", "")
	l.run("ip route del default")
	l.check(l.start(), "made anew", "lost its default route")

	l.must(os.Remove(l.file.path))
	l.run("ip route add default via 198.18.0.1")
	l.file = NewFile(t.TempDir() + "/nowhere")
	c = l.start()
	l.check(c, "a state directory that cannot be written", "")
	l.run("ip route del default")
	l.check(c, "remembered as long as the agent runs", "lost its default route")
}

// BenchmarkOutside is what a node pays every 5 s where all is well.
func BenchmarkOutside(b *testing.B) {
	l := newLab(b)
	l.run("ip route add default via 198.18.0.1; ping -c1 -w5 198.18.0.1")
	c := l.start()
	for b.Loop() {
		l.check(c, "all well", "")
	}
}
