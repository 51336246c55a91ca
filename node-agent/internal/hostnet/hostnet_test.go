package hostnet

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

func TestPodsLeaveWithTheNodesAddress(t *testing.T) {
	l := newLab(t)
	l.ensure(true)
	if got := l.tcp(l.pods, "172.11.0.5", "198.18.0.1:8080", l.outside, "198.18.0.1:8080"); got != "198.18.0.7" {
		t.Errorf("outside sees %q, want the node's 198.18.0.7", got)
	}
	if got := l.tcp(l.pods, "172.11.0.5", "198.18.0.7:8080", l.node, "198.18.0.7:8080"); got != "172.11.0.5" {
		t.Errorf("the node itself sees %q, want the pod's own 172.11.0.5", got)
	}
	if got := l.tcp(l.node, "", "172.11.0.5:8080", l.pods, "172.11.0.5:8080"); got != "172.11.0.1" {
		t.Errorf("pods see the node as %q, want the gateway 172.11.0.1", got)
	}
}

// Whatever somebody takes away or adds is noticed and put right.
func TestEnsureRepairs(t *testing.T) {
	tests := []struct{ name, breaks string }{
		{"flush", "nft flush ruleset"},
		{"table deleted", "nft delete table ip k8s-ovs"},
		{"chain flushed", "nft flush chain ip k8s-ovs forward"},
		{"rule added", "nft insert rule ip k8s-ovs forward accept"},
		{"rule replaced", "sh -c 'nft replace rule ip k8s-ovs input handle $(nft -a list chain ip k8s-ovs input | grep -o \"handle [0-9]*$\" | tail -1 | cut -d\" \" -f2) accept'"},
		{"chain added", "sh -c 'nft add chain ip k8s-ovs mine; nft add rule ip k8s-ovs mine accept'"},
		{"table asleep", "nft 'add table ip k8s-ovs { flags dormant; }'"},
		{"table of IPv6 deleted", "nft delete table ip6 k8s-ovs"},
		{"table of IPv6 flushed", "nft flush table ip6 k8s-ovs"},
		{"table of IPv6 asleep", "nft 'add table ip6 k8s-ovs { flags dormant; }'"},
		{"table of bridges deleted", "nft delete table bridge k8s-ovs"},
		{"table of bridges asleep", "nft 'add table bridge k8s-ovs { flags dormant; }'"},
		{"address removed", "ip addr del 172.11.0.1/32 dev tun0"},
		{"address added", "ip addr add 172.11.9.1/24 dev tun0"},
		{"route removed", "ip route del 172.11.0.0/16"},
		{"route of another network", "ip route add 10.128.0.0/14 via 169.254.77.1 dev tun0 onlink"},
		{"neighbour removed", "ip neigh del 169.254.77.1 dev tun0"},
		{"device down", "ip link set tun0 down"},
		{"another MAC", "ip link set tun0 address 0a:58:00:00:00:01"},
		{"another name", "ip link set tun0 down; ip link set tun0 name foo0"},
		{"no forwarding", "sysctl -qw net.ipv4.ip_forward=0"},
		{"strict filter", "sysctl -qw net.ipv4.conf.tun0.rp_filter=1"},
	}
	l := newLab(t)
	l.ensure(true)
	l.ensure(false)
	good := l.rules(l.node)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l.t = t
			l.run(l.node, "sh", "-c", tt.breaks)
			l.ensure(true)
			l.ensure(false)
			// The counters may differ, the rest may not.
			if got := l.rules(l.node); withoutCounters(got) != withoutCounters(good) {
				t.Errorf("rules are\n%s\nnot\n%s", got, good)
			}
			if got := l.tcp(l.pods, "172.11.0.5", "198.18.0.1:8080", l.outside, "198.18.0.1:8080"); got != "198.18.0.7" {
				t.Errorf("pods do not reach the outside any more (seen as %q)", got)
			}
		})
	}
}

func withoutCounters(rules string) string {
	words := strings.Fields(rules)
	for i, w := range words {
		if i > 0 && (words[i-1] == "packets" || words[i-1] == "bytes") && w != "" {
			words[i] = "N"
		}
	}
	return strings.Join(words, " ")
}

func TestOtherTablesAreLeftAlone(t *testing.T) {
	l := newLab(t)
	l.run(l.node, "nft", "add table ip mine; add chain ip mine c; add rule ip mine c accept; add table inet k8s-ovs")
	mine := l.rules(l.node)
	l.ensure(true)
	l.ok(l.net.Cleanup(context.Background()))
	l.ok(l.net.Cleanup(context.Background()))
	if got := l.rules(l.node); got != mine {
		t.Errorf("rules after cleanup:\n%s\nwant\n%s", got, mine)
	}
}

// The bridge serves services: what it sends to the node all the same is refused, at
// once, and not translated by the node.
func TestServicesAreRefused(t *testing.T) {
	l := newLab(t)
	l.spec.ServiceProxy, l.spec.ServiceNetwork = pipeline.OVS, netip.MustParsePrefix("10.96.0.0/12")
	l.ensure(true)
	l.run(l.node, "nft", `add table ip svc; add chain ip svc pre { type nat hook prerouting priority dstnat; };
		add rule ip svc pre ip daddr 10.96.0.10 dnat to 198.18.0.1`)
	c, err := ns.DialTCP(ns.Path(l.pods), "10.96.0.10:80", patience)
	if c != nil {
		_ = c.Close()
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("TCP: %v, want connection refused", err)
	}
	var answer error
	l.ok(ns.Do(l.pods, func() error {
		u, err := net.Dial("udp4", "10.96.0.10:53")
		if err != nil {
			return err
		}
		defer u.Close()
		_ = u.SetDeadline(time.Now().Add(patience))
		if _, err := u.Write([]byte("x")); err != nil {
			return err
		}
		_, answer = u.Read(make([]byte, 10))
		return nil
	}))
	if !errors.Is(answer, unix.ECONNREFUSED) {
		t.Errorf("UDP: %v, want connection refused", answer)
	}
}

// A reset of a connection that conntrack does not know is not translated: it must
// not leave with the pod's address.
func TestInvalidPacketsDoNotLeave(t *testing.T) {
	l := newLab(t)
	l.ensure(true)
	try := func() bool {
		s := l.sniff(l.outside, "eth0")
		l.reset("172.11.0.5", "198.18.0.1")
		l.udp(l.pods, "172.11.0.6", "198.18.0.1:4788", 100)
		return s.until(udpTo(4788), from("172.11.0.5"))
	}
	if try() {
		t.Error("a packet with a pod's address got out")
	}
	l.run(l.node, "nft", "flush chain ip k8s-ovs forward")
	if !try() {
		t.Error("without the rule none got out either: the test proves nothing")
	}
}

// reset sends a TCP reset out of the blue.
func (l *lab) reset(src, dst string) {
	l.t.Helper()
	s, d := netip.MustParseAddr(src).As4(), netip.MustParseAddr(dst).As4()
	tcp := []byte{0x9c, 0x40, 0x1f, 0x90, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x04, 0, 0, 0, 0, 0, 0} // 40000 -> 8080, RST
	sum := uint32(unix.IPPROTO_TCP + len(tcp))
	for _, b := range [][]byte{s[:], d[:], tcp} {
		for i := 0; i < len(b); i += 2 {
			sum += uint32(b[i])<<8 | uint32(b[i+1])
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	tcp[16], tcp[17] = byte(^sum>>8), byte(^sum)
	l.ok(ns.Do(l.pods, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_TCP)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: s}); err != nil {
			return err
		}
		return unix.Sendto(fd, tcp, 0, &unix.SockaddrInet4{Addr: d})
	}))
}

// An outside host that routes the pod network through the node gets nowhere; what
// the node translates for it (NodePort) does.
func TestOutsideCannotRouteIntoPods(t *testing.T) {
	l := newLab(t)
	l.spec.ServiceProxy, l.spec.ServiceNetwork = pipeline.OVS, netip.MustParsePrefix("10.96.0.0/12")
	l.ensure(true)
	if got := l.tcp(l.outside, "", "172.11.0.5:8080", l.pods, "172.11.0.5:8080"); got != "" {
		t.Errorf("outside reached the pod, seen as %s", got)
	}
	l.run(l.node, "nft", `add table ip svc; add chain ip svc pre { type nat hook prerouting priority dstnat; };
		add rule ip svc pre ip daddr 198.18.0.7 tcp dport 30080 dnat to 172.11.0.5:8080`)
	if got := l.tcp(l.outside, "", "198.18.0.7:30080", l.pods, "172.11.0.5:8080"); got != "198.18.0.1" {
		t.Errorf("through the node's port the pod sees %q, want 198.18.0.1", got)
	}
}

// What the node forwards and kube-proxy wants masqueraded is not the node to pods; what it sends by
// itself is, from whichever of its addresses, and also where somebody would masquerade that.
func TestForwardedIsNotTheNode(t *testing.T) {
	l := newLab(t)
	l.spec.ServiceProxy, l.spec.ServiceNetwork = pipeline.KubeProxy, netip.MustParsePrefix("10.96.0.0/12")
	l.ensure(true)
	l.ip(l.node, "route add 10.96.0.0/12 via 198.18.0.1")
	// As kube-proxy does, for ports of the node and for what the node sends to a service.
	l.run(l.node, "nft", `add table ip svc; add chain ip svc pre { type nat hook prerouting priority dstnat; };
		add chain ip svc out { type nat hook output priority -100; };
		add chain ip svc post { type nat hook postrouting priority srcnat; };
		add rule ip svc pre ip daddr 198.18.0.7 tcp dport 30080 meta mark set mark or 0x4000;
		add rule ip svc pre ip daddr 198.18.0.7 tcp dport { 30080, 30081 } dnat to 172.11.0.5:8080;
		add rule ip svc out ip daddr 10.96.0.10 tcp dport 80 dnat to 172.11.0.5:8080;
		add rule ip svc post oifname "tun0" mark and 0x4000 == 0x4000 meta mark set mark xor 0x4000 masquerade fully-random;
		add rule ip svc out meta mark set mark or 0x4000;
		add table ip after; add chain ip after post { type filter hook postrouting priority 120; };
		add rule ip after post oifname "tun0" ip saddr 172.11.3.255 mark and 0x6000 != 0 drop`) // marked no longer
	for what, test := range map[string]struct{ from, src, to, want string }{
		"a port of the node":                   {l.outside, "", "198.18.0.7:30080", "172.11.3.255"},
		"one that shows who asks":              {l.outside, "", "198.18.0.7:30081", "198.18.0.1"},
		"the node":                             {l.node, "", "172.11.0.5:8080", "172.11.0.1"},
		"the node from its gateway":            {l.node, "172.11.0.1", "172.11.0.5:8080", "172.11.0.1"},
		"the node from its other address":      {l.node, "198.18.0.7", "172.11.0.5:8080", "172.11.0.1"},
		"the node by the address of a service": {l.node, "", "10.96.0.10:80", "172.11.0.1"},
	} {
		if got := l.tcp(test.from, test.src, test.to, l.pods, "172.11.0.5:8080"); got != test.want {
			t.Errorf("%s: pods see %q, want %s", what, got, test.want)
		}
	}
}

// A pod that asks itself by a service comes as its node; one whose address differs by a bit is another,
// which others want masqueraded.
func TestAsksItself(t *testing.T) {
	l := newLab(t)
	l.spec.ServiceProxy, l.spec.ServiceNetwork = pipeline.KubeProxy, netip.MustParsePrefix("10.96.0.0/12")
	l.ensure(true)
	l.run(l.node, "nft", `add table ip svc; add chain ip svc pre { type nat hook prerouting priority dstnat; };
		add chain ip svc post { type nat hook postrouting priority srcnat; };
		add rule ip svc pre ip daddr 10.96.0.10 tcp dport 80 meta mark set mark or 0x4000 dnat to 172.11.0.5:8080;
		add rule ip svc pre ip daddr 10.96.0.11 tcp dport 80 dnat to 172.11.0.5:8080;
		add rule ip svc post oifname "tun0" mark and 0x4000 == 0x4000 meta mark set mark xor 0x4000 masquerade fully-random;
		add table ip after; add chain ip after post { type filter hook postrouting priority 120; };
		add rule ip after post oifname "tun0" mark and 0x6000 != 0 drop`) // marked no longer
	const gateway, forwarder = "172.11.0.1", "172.11.3.255"
	for _, service := range []string{"10.96.0.10:80", "10.96.0.11:80"} { // marked by kube-proxy, or not
		if got := l.tcp(l.pods, "172.11.0.5", service, l.pods, "172.11.0.5:8080"); got != gateway {
			t.Errorf("by %s the pod sees itself as %q, want %s", service, got, gateway)
		}
	}
	for bit := range 32 - l.spec.NodeSubnet.Bits() {
		neighbour := []byte{172, 11, 0, 5}
		neighbour[3-bit/8] ^= 1 << (bit % 8)
		from := netip.AddrFrom4([4]byte(neighbour)).String()
		if from == gateway {
			continue
		}
		if !strings.Contains(l.run(l.pods, "ip", "-br", "addr"), from+"/") {
			l.ip(l.pods, "addr add "+from+"/32 dev eth0")
		}
		if got := l.tcp(l.pods, from, "10.96.0.10:80", l.pods, "172.11.0.5:8080"); got != forwarder {
			t.Errorf("%s is seen as %q, want %s", from, got, forwarder)
		}
	}
}

// Pods do not reach pods through the node's DNAT, where their tenant is lost.
func TestNoHairpin(t *testing.T) {
	l := newLab(t)
	l.ensure(true)
	l.run(l.node, "nft", `add table ip svc; add chain ip svc pre { type nat hook prerouting priority dstnat; };
		add rule ip svc pre ip daddr 10.96.0.10 tcp dport 80 dnat to 172.11.0.6:8080`)
	// Two pods in namespaces of their own behind the same device.
	l.run(l.pods, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.eth0.rp_filter=0")
	for i, addr := range []string{"172.11.0.5", "172.11.0.6"} {
		name, port := l.pods+strconv.Itoa(i), "p"+strconv.Itoa(i)
		l.ok(ns.Create(name))
		t.Cleanup(func() { _ = ns.Delete(name) })
		l.ip(l.pods, "addr del "+addr+"/32 dev eth0", "link add "+port+" type veth peer name eth0 netns "+name, "link set "+port+" up",
			"addr add 169.254.0.1/32 dev "+port, "route add "+addr+" dev "+port)
		l.ip(name, "link set eth0 up", "addr add "+addr+"/32 dev eth0", "route add 169.254.0.1 dev eth0", "route add default via 169.254.0.1")
	}
	l.ip(l.pods, "addr add 172.11.0.9/32 dev eth0", "route replace 172.11.0.1 dev eth0", "route replace default via 172.11.0.1")
	client, server := l.pods+"0", l.pods+"1"
	if got := l.tcp(client, "", "198.18.0.1:8080", l.outside, "198.18.0.1:8080"); got != "198.18.0.7" {
		t.Fatalf("the pod does not reach the outside (seen as %q)", got)
	}
	s := l.sniff(server, "eth0")
	if got := l.tcp(client, "", "10.96.0.10:80", server, "172.11.0.6:8080"); got != "" {
		t.Errorf("the pod was reached by %s through the node", got)
	}
	l.run(l.node, "nft", "flush chain ip "+table+" forward")
	l.tcp(client, "", "10.96.0.10:80", server, "172.11.0.6:8080")
	if !s.until(from("172.11.0.5"), from("172.11.0.5")) {
		t.Error("without the rule nothing arrives either: the test proves nothing")
	}
}

// With the userspace datapath the kernel gets a copy of what arrives at the
// switch's own devices. It must not answer.
func TestSwitchDevicesAreDeafForTheNode(t *testing.T) {
	for _, device := range []string{"ovs12345", "uplink0"} {
		t.Run(device, func(t *testing.T) {
			l := newLab(t)
			l.ip(l.node, "link add "+device+" type veth peer name eth1 netns "+l.outside, "link set "+device+" up", "addr add 203.0.113.7/24 dev "+device)
			l.ip(l.outside, "link set eth1 up", "addr add 203.0.113.1/24 dev eth1")
			if got := l.tcp(l.outside, "", "203.0.113.7:8080", l.node, "203.0.113.7:8080"); got != "203.0.113.1" {
				t.Fatalf("without rules the node is not reached either (%q)", got)
			}
			l.ensure(true)
			if got := l.tcp(l.outside, "", "203.0.113.7:8080", l.node, "203.0.113.7:8080"); got != "" {
				t.Errorf("the node answered %s on a device of the switch", got)
			}
		})
	}
}

// While Open vSwitch is away the uplink, be it a bridge of the kernel, has the node's own address, and the node takes
// what comes there for it. It does not while the address is elsewhere, nor does it take what is for another address.
func TestUplinkIsLentTheAddress(t *testing.T) {
	for _, kind := range []string{"device", "bridge"} {
		t.Run(kind, func(t *testing.T) {
			l := newLab(t)
			if kind == "device" {
				l.ip(l.node, "link add uplink0 type veth peer name eth1 netns "+l.outside)
			} else {
				l.ip(l.node, "link add name uplink0 type bridge", "link add port0 type veth peer name eth1 netns "+l.outside, "link set port0 up master uplink0")
				l.spec.SwitchDevices, l.spec.SwitchBridges = []string{"ovs*"}, []string{"uplink0"}
			}
			l.spec.NodeAddress = netip.MustParseAddr("203.0.113.7")
			l.ip(l.node, "link set uplink0 up", "addr add 203.0.113.7/24 dev uplink0", "addr add 203.0.113.8/32 dev uplink0")
			l.ip(l.outside, "link set eth1 up", "addr add 203.0.113.1/24 dev eth1")
			l.ensure(true)
			l.ensure(false)
			reached := func(ip string) bool { return l.tcp(l.outside, "", ip+":8080", l.node, ip+":8080") != "" }
			if !reached("203.0.113.7") {
				t.Error("the node does not take what is for its address on the uplink")
			}
			if reached("203.0.113.8") {
				t.Error("it takes what is for another address")
			}
			l.ip(l.node, "addr del 203.0.113.7/24 dev uplink0", "link add name br-phy type bridge", "link set br-phy up", "addr add 203.0.113.7/24 dev br-phy",
				"route replace 203.0.113.1/32 dev uplink0")
			if reached("203.0.113.7") {
				t.Error("it takes what comes to the uplink while the address is on the switch")
			}
		})
	}
}

// A bridge of the kernel as the uplink: the node does not answer, though the switch,
// which takes what comes to the bridge, is given it, also where br_netfilter asks the
// node's hooks about the bridge's ports.
func TestSwitchBridgeIsDeafForTheNode(t *testing.T) {
	l := newLab(t)
	l.ip(l.node, "link add name host0 type bridge", "link add port0 type veth peer name eth1 netns "+l.outside, "link set port0 up master host0",
		"link set host0 up", "addr add 203.0.113.7/24 dev host0")
	l.ip(l.outside, "link set eth1 up", "addr add 203.0.113.1/24 dev eth1")
	if got := l.tcp(l.outside, "", "203.0.113.7:8080", l.node, "203.0.113.7:8080"); got != "203.0.113.1" {
		t.Fatalf("without rules the node is not reached either (%q)", got)
	}
	l.spec.SwitchBridges = []string{"host0"}
	l.ensure(true)
	received := func() string { return l.run(l.node, "cat", "/sys/class/net/host0/statistics/rx_packets") }
	before := received()
	if got := l.tcp(l.outside, "", "203.0.113.7:8080", l.node, "203.0.113.7:8080"); got != "" {
		t.Errorf("the node answered %s on the switch's uplink", got)
	}
	if received() == before {
		t.Error("nothing came to the bridge's own device: the switch would not see it either")
	}
}

func TestSubnetChanges(t *testing.T) {
	l := newLab(t)
	l.ensure(true)
	l.spec.Gateway, l.spec.NodeSubnet = netip.MustParseAddr("172.11.4.1"), netip.MustParsePrefix("172.11.4.0/22")
	l.ensure(true)
	l.ensure(false)
	d, _, err := l.ns.Describe("tun0")
	l.ok(err)
	if len(d.Addresses) != 1 || d.Addresses[0] != netip.MustParsePrefix("172.11.4.1/32") || d.MAC.String() != "0a:58:ac:0b:04:01" {
		t.Errorf("tun0 has %v and MAC %s", d.Addresses, d.MAC)
	}
}

// What the node sends may be less than what its device takes, while that lasts.
func TestRouteMTU(t *testing.T) {
	l := newLab(t)
	l.ensure(true)
	pod := netip.MustParseAddr("172.11.8.9")
	before, err := l.ns.PathTo(pod)
	l.ok(err)
	for _, mtu := range []int{1300, 1200, 0} {
		l.spec.RouteMTU = mtu
		l.ensure(true)
		l.ensure(false)
		want := mtu
		if mtu == 0 {
			want = before.MTU
		}
		if p, err := l.ns.PathTo(pod); err != nil || p.MTU != want {
			t.Errorf("the way to pods has MTU %d (%v), want %d", p.MTU, err, want)
		}
	}
}

func TestRefusals(t *testing.T) {
	l := newLab(t)
	bad := l.spec
	bad.Gateway = netip.MustParseAddr("172.12.0.1")
	if _, err := l.net.Ensure(context.Background(), bad); err == nil || !strings.Contains(err.Error(), "172.12.0.1") {
		t.Errorf("gateway outside of the subnet: %v", err)
	}
	bad = l.spec
	bad.ServiceProxy = pipeline.OVS
	if _, err := l.net.Ensure(context.Background(), bad); err == nil || !strings.Contains(err.Error(), "service network") {
		t.Errorf("services without a network: %v", err)
	}
	bad = l.spec
	bad.Device = "tun7"
	if _, err := l.net.Ensure(context.Background(), bad); !errors.Is(err, link.ErrNoLink) || !strings.Contains(err.Error(), "tun7") {
		t.Errorf("no such device: %v", err)
	}
	if !strings.Contains(l.rules(l.node), "masquerade") {
		t.Error("rules wait for the device: they must be there first")
	}
}

// BenchmarkEnsure is what a node pays every few seconds where all is well.
func BenchmarkEnsure(b *testing.B) {
	l := newLab(b)
	l.ensure(true)
	for b.Loop() {
		l.ensure(false)
	}
}
