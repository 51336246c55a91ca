package e2e

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/test/attacks"
	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/wire"
	"github.com/k8s-ovs/k8s-ovs/test/ovstest"
)

// TestAttackPodFrames: a pod that may build its own frames reaches nobody with
// what is not its own.
func TestAttackPodFrames(t *testing.T) {
	l := up(t, netlab.Options{})
	l.pods(map[string][]string{"n1": {"red/a", "red/b", "blue/a"}, "n2": {"red/c", "blue/c"}})
	e := l.listen()
	from := l.get("red/a")
	me, gateway := l.mac("red/a"), l.gatewayMAC("red/a")
	e.fence("red/a", "red/b", "red/c")

	stranger := net.HardwareAddr{2, 0xba, 0xd0, 0, 0, 1}
	forged := map[string][]forgery{} // by kind
	for _, target := range []string{"red/b", "red/c", "blue/a", "blue/c"} {
		to := l.get(target)
		add := func(kind string, frame func(mark string) []byte) {
			mark := fmt.Sprintf("forged %s to %s;", kind, target)
			forged[kind] = append(forged[kind], forgery{mark: mark, frames: [][]byte{frame(mark)}})
		}
		addIP := func(kind string, dst, src net.HardwareAddr, source netip.Addr) {
			add(kind, func(mark string) []byte {
				return wire.Ethernet(dst, src, wire.TypeIPv4, wire.IPv4(source, to.IP, wire.ProtoUDP, wire.UDP(1000, 9, []byte(mark))))
			})
		}
		addIP("source MAC", gateway, stranger, from.IP)
		addIP("source MAC, straight", l.mac(target), stranger, from.IP)
		addIP("source IP of red/b", gateway, me, l.get("red/b").IP)
		addIP("source IP of blue/a", gateway, me, l.get("blue/a").IP)
		addIP("source IP of blue/c", gateway, me, l.get("blue/c").IP)
		addIP("source IP of the gateway", gateway, me, from.Gateway)
		addIP("source IP of a node", gateway, me, netip.MustParseAddr("198.18.0.2"))
		addIP("source IP of nobody", gateway, me, netip.MustParseAddr("203.0.113.77"))
		addIP("source MAC and IP of blue/a", gateway, l.mac("blue/a"), l.get("blue/a").IP)
		for kind, arp := range map[string][]byte{
			"gratuitous ARP for the gateway": wire.ARP(wire.ARPReply, me, from.Gateway, wire.Broadcast, from.Gateway, nil),
			"ARP reply as blue/a":            wire.ARP(wire.ARPReply, me, l.get("blue/a").IP, l.mac(target), to.IP, nil),
			"ARP request as red/b":           wire.ARP(wire.ARPRequest, me, l.get("red/b").IP, make([]byte, 6), to.IP, nil),
			"ARP with a false MAC":           wire.ARP(wire.ARPRequest, stranger, from.IP, make([]byte, 6), to.IP, nil),
		} {
			for cast, dst := range map[string]net.HardwareAddr{"broadcast": wire.Broadcast, "unicast": l.mac(target)} {
				add(kind+", "+cast, func(mark string) []byte {
					return wire.Ethernet(dst, me, wire.TypeARP, append(slices.Clip(arp), mark...))
				})
			}
		}
	}
	for kind, f := range forged {
		l.attack(attacks.Pod, "forged "+kind, func() (int, int) { return e.send("red/a", f, "red/b", "red/c") })
	}
	// Nor is anything of it remembered: all is as before.
	l.requireMatrix("after forging", tenants{"red": "r", "blue": "b"}.allowed)
}

// TestAttackPodVXLAN: VXLAN made by a pod gets nowhere: to the peer's address and
// to the own node's, whole and in fragments, straight and through a service's
// address translation, with the victim's netID and the global one.
func TestAttackPodVXLAN(t *testing.T) {
	l := up(t, netlab.Options{})
	l.pods(map[string][]string{"n1": {"red/a", "red/b", "blue/a"}, "n2": {"red/c", "blue/c"}})
	e := l.listen()
	from := l.get("red/a")
	me, gateway := l.mac("red/a"), l.gatewayMAC("red/a")
	service := netip.MustParseAddr("10.96.0.99")
	for _, node := range []string{"n1", "n2"} {
		// A service whose endpoint is a node's VXLAN port (ancestors' failure 1).
		l.node(node, "nft", "add table ip lab; "+
			"add chain ip lab pre { type nat hook prerouting priority dstnat; }; "+
			"add rule ip lab pre ip daddr 10.96.0.99 udp dport 53 dnat to 198.18.0.2:4789; "+
			"add rule ip lab pre ip daddr 10.96.0.99 udp dport 54 dnat to 198.18.0.1:4789")
	}
	forged := map[string][]forgery{} // by destination and kind
	for _, victim := range []string{"blue/a", "blue/c", "red/b", "red/c"} {
		to := l.get(victim)
		// The inner frame comes from a pod of the other node than the victim's.
		partner := map[string]string{"blue/a": "blue/c", "blue/c": "blue/a", "red/b": "red/c", "red/c": "red/b"}[victim]
		for _, vni := range []uint32{0, l.netID(to.Namespace)} {
			for name, dst := range map[string]netip.AddrPort{
				"its own node":              netip.MustParseAddrPort("198.18.0.1:4789"),
				"a peer":                    netip.MustParseAddrPort("198.18.0.2:4789"),
				"the gateway":               netip.AddrPortFrom(from.Gateway, 4789),
				"a peer behind a service":   netip.AddrPortFrom(service, 53),
				"its node behind a service": netip.AddrPortFrom(service, 54),
				"the victim's gateway":      netip.AddrPortFrom(to.Gateway, 4789),
			} {
				add := func(kind string, frames func(udp []byte) [][]byte) {
					kind = "VXLAN to " + name + kind
					mark := fmt.Sprintf("%s: VNI %d for %s;", kind, vni, victim)
					inner := wire.Ethernet(l.mac(victim), l.mac(partner), wire.TypeIPv4,
						wire.IPv4(l.get(partner).IP, to.IP, wire.ProtoUDP, wire.UDP(1000, 9, []byte(mark))))
					forged[kind] = append(forged[kind], forgery{mark: mark, frames: frames(wire.UDP(50000, dst.Port(), wire.VXLAN(vni, inner)))})
				}
				ethernet := func(packet []byte) []byte { return wire.Ethernet(gateway, me, wire.TypeIPv4, packet) }
				add("", func(udp []byte) [][]byte {
					return [][]byte{ethernet(wire.IPv4(from.IP, dst.Addr(), wire.ProtoUDP, udp))}
				})
				add(", in fragments", func(udp []byte) [][]byte {
					broken := wire.Fragments(from.IP, dst.Addr(), wire.ProtoUDP, udp, 24)
					return [][]byte{ethernet(broken[0]), ethernet(broken[1])}
				})
				add(", with a peer's address", func(udp []byte) [][]byte {
					return [][]byte{ethernet(wire.IPv4(netip.MustParseAddr("198.18.0.2"), dst.Addr(), wire.ProtoUDP, udp))}
				})
			}
		}
	}
	for kind, f := range forged {
		l.attack(attacks.Pod, kind, func() (int, int) { return e.send("red/a", f, "red/b", "red/c") })
	}
	l.requireMatrix("after forging", tenants{"red": "r", "blue": "b"}.allowed)
}

// TestAttackPodEncapsulations: nothing that a pod puts into something else is taken
// apart by a node, however it is addressed.
func TestAttackPodEncapsulations(t *testing.T) {
	o := upOdd(t)
	me, gateway, from := o.mac("red/a"), o.gatewayMAC("red/a"), o.get("red/a").IP
	o.ears.fence("red/a", "red/b")
	for where, to := range map[string]string{
		"its node": "198.18.0.1", "a peer": "198.18.0.2", "the underlay's broadcast address": "198.18.0.255",
		"everybody": "255.255.255.255", "all hosts by multicast": "224.0.0.1", "its gateway": o.get("red/a").Gateway.String(),
	} {
		var forged []forgery
		marks := map[string]string{}
		for kind, build := range o.encapsulations(func(kind string) []byte {
			marks[kind] = fmt.Sprintf("pod's %s to %s;", kind, where)
			return o.inner(marks[kind])
		}) {
			proto, payload := build()
			packet := wire.IPv4(from, netip.MustParseAddr(to), proto, payload)
			forged = append(forged, forgery{mark: marks[kind], victim: "blue/a", frames: [][]byte{
				wire.Ethernet(gateway, me, wire.TypeIPv4, packet), wire.Ethernet(wire.Broadcast, me, wire.TypeIPv4, packet),
			}})
		}
		o.attack(attacks.Pod, "encapsulations to "+where, func() (int, int) { return o.ears.send("red/a", forged, "red/b") })
	}
}

// TestAttackPodOddFrames: VLAN tags, source routes and fragments that overlap get a pod
// no further than its plain frames.
func TestAttackPodOddFrames(t *testing.T) {
	o := upOdd(t)
	me, gateway, from := o.mac("red/a"), o.gatewayMAC("red/a"), o.get("red/a")
	o.ears.fence("red/a", "red/b")
	ip := func(p []byte) []byte { return wire.Ethernet(gateway, me, wire.TypeIPv4, p) }
	vni := o.netID("blue")
	var tagged, routed, overlapping []forgery
	for _, victim := range []string{"blue/a", "blue/b", "red/b"} {
		to := o.get(victim).IP
		plain := func(mark string) []byte { return wire.UDP(1000, 9, []byte(mark)) }
		for _, vid := range []uint16{0, 1, 4094} {
			mark := fmt.Sprintf("VLAN %d to %s;", vid, victim)
			frame := wire.Tag(ip(wire.IPv4(from.IP, to, wire.ProtoUDP, plain(mark))), vid)
			tagged = append(tagged, forgery{mark: mark, frames: [][]byte{frame}},
				forgery{mark: "twice " + mark, frames: [][]byte{wire.Tag(wire.Tag(ip(wire.IPv4(from.IP, to, wire.ProtoUDP, plain("twice "+mark))), vid), 7)}})
		}
		if victim == "red/b" {
			continue // what follows would be its own tenant's
		}
		for _, by := range []netip.Addr{from.Gateway, o.vtep("n1"), o.vtep("n2"), o.get("red/b").IP} {
			mark := fmt.Sprintf("routed by %s to %s;", by, victim)
			routed = append(routed, forgery{mark: mark, frames: [][]byte{ip(wire.SourceRouted(from.IP, by, to, wire.ProtoUDP, plain(mark)))}, victim: victim})
		}
	}
	for _, node := range []string{"n1", "n2"} {
		// The first piece says that it is for an honest port; the next ones begin anew.
		for i, pieces := range [][3]int{{0, 8, 0}, {0, 16, 0}, {0, 32, 8}, {8, 8, 0}} {
			mark := fmt.Sprintf("overlapping no. %d to %s;", i, node)
			udp := func(port uint16) []byte { return wire.UDP(50000, port, wire.VXLAN(vni, o.inner(mark))) }
			honest, tunnel := udp(53), udp(wire.VXLANPort)
			overlapping = append(overlapping, forgery{mark: mark, victim: "blue/a", frames: [][]byte{
				ip(wire.Fragment(from.IP, o.vtep(node), wire.ProtoUDP, honest[pieces[0]:pieces[0]+pieces[1]], pieces[0], true)),
				ip(wire.Fragment(from.IP, o.vtep(node), wire.ProtoUDP, tunnel[pieces[2]:], pieces[2], false)),
				ip(wire.Fragment(from.IP, o.vtep(node), wire.ProtoUDP, tunnel[:8], 0, true)),
			}})
		}
	}
	o.attack(attacks.Pod, "frames with VLAN tags", func() (int, int) { return o.ears.send("red/a", tagged, "red/b") })
	o.attack(attacks.Pod, "source routes to another tenant", func() (int, int) { return o.ears.send("red/a", routed, "red/b") })
	o.attack(attacks.Pod, "overlapping fragments with another port", func() (int, int) { return o.ears.send("red/a", overlapping, "red/b") })
}

// TestAttackPodNode: what a pod tells its node about routes is not believed, and what
// the agent keeps to the node itself is not reached.
func TestAttackPodNode(t *testing.T) {
	o := upOdd(t)
	me, gateway, from := o.mac("red/a"), o.gatewayMAC("red/a"), o.get("red/a")
	o.ears.fence("red/a", "red/b")
	outside := netip.MustParseAddr("203.0.113.1")
	route := func() string { return o.node("n1", "ip", "route", "get", outside.String()) }
	before := route()
	o.attack(attacks.Pod, "ICMP redirects of the node", func() (tried, moved int) {
		about := wire.IPv4(o.vtep("n1"), outside, wire.ProtoUDP, wire.UDP(1, 2, nil))
		for _, source := range []netip.Addr{from.IP, from.Gateway, netip.MustParseAddr("198.18.0.254")} {
			for _, to := range []netip.Addr{o.vtep("n1"), from.Gateway} {
				o.must(o.ears.ports["red/a"].Send(wire.Ethernet(gateway, me, wire.TypeIPv4,
					wire.IPv4(source, to, wire.ProtoICMP, wire.Redirect(from.IP, about)))))
				tried++
			}
		}
		o.ears.fence("red/a", "red/b")
		o.reachesNode()
		if after := route(); after != before {
			t.Logf("the way to %s was %q and is %q", outside, before, after)
			moved = 1
		}
		return tried, moved
	})
	o.attack(attacks.Pod, "what listens at the node's loopback address", func() (tried, heard int) {
		at, err := ns.ListenUDP(ns.Path(o.Name()+"-n1"), "127.0.0.1:7777")
		o.must(err)
		defer func() { _ = at.Close() }()
		o.node("n1", "sh", "-c", "echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet") // as kube-proxy does
		for _, to := range []string{"127.0.0.1", "127.1.2.3"} {
			o.must(o.ears.ports["red/a"].Send(wire.Ethernet(gateway, me, wire.TypeIPv4,
				wire.IPv4(from.IP, netip.MustParseAddr(to), wire.ProtoUDP, wire.UDP(50000, 7777, []byte("loopback"))))))
			tried++
		}
		o.ears.fence("red/a", "red/b")
		o.reachesNode()
		_ = at.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if _, err := at.Read(make([]byte, 100)); err == nil {
			heard = 1
		}
		return tried, heard
	})
	o.attack(attacks.Pod, "probes of nodes", func() (tried, answered int) {
		probe := append([]byte("kovp\x01\x00\x05\xdc 8 bytes"), make([]byte, 100)...)
		for _, to := range []netip.Addr{o.vtep("n1"), o.vtep("n2"), from.Gateway} {
			for _, sport := range []uint16{50000, 4790} {
				o.must(o.ears.ports["red/a"].Send(wire.Ethernet(gateway, me, wire.TypeIPv4, wire.IPv4(from.IP, to, wire.ProtoUDP, wire.UDP(sport, 4790, probe)))))
				tried++
			}
		}
		o.reachesNode()
		o.ears.fence("red/a", "red/b")
		o.ears.fence("red/b", "red/a")
		for _, f := range o.ears.ports["red/a"].Frames() {
			// Not what a node says of a port that it has closed.
			if bytes.Contains(f, []byte("kovp")) && f[23] == wire.ProtoUDP {
				answered++
			}
		}
		return tried, answered
	})
}

// TestAttackPodErrors: what a pod says of packets that came to another tenant's pod gets nowhere. A server
// outside would believe it, as all pods leave with the node's address; so would the node.
func TestAttackPodErrors(t *testing.T) {
	o := upOdd(t)
	me, gateway, from, victim := o.mac("red/a"), o.gatewayMAC("red/a"), o.get("red/a"), o.get("blue/a")
	o.ears.fence("red/a", "red/b")
	server := netip.AddrPortFrom(netlab.Outside, 443)
	o.answersQuestions(server)
	outside := o.open(ns.Path(o.UnderlayNetns()), "n1")
	about := func(port uint16) []byte {
		return wire.IPv4(server.Addr(), victim.IP, wire.ProtoUDP, wire.UDP(server.Port(), port, []byte(question)))
	}
	var c net.Conn
	o.must(ns.DoPath(victim.Sandbox(), func() (err error) { c, err = net.Dial("udp4", server.String()); return err }))
	defer func() { _ = c.Close() }()
	_, err := c.Write([]byte(question))
	o.must(err)
	_ = c.SetReadDeadline(time.Now().Add(patience))
	_, err = c.Read(make([]byte, 100))
	o.must(err)
	port := netip.MustParseAddrPort(c.LocalAddr().String()).Port()
	o.attack(attacks.Pod, "ICMP errors to the outside about another tenant's connection", func() (tried, told int) {
		for _, to := range []netip.Addr{server.Addr(), o.vtep("n1"), from.Gateway} {
			for code := range uint8(4) {
				o.must(o.ears.ports["red/a"].Send(wire.Ethernet(gateway, me, wire.TypeIPv4, wire.IPv4(from.IP, to, wire.ProtoICMP, wire.Unreachable(code, about(port))))))
				tried++
			}
		}
		o.reachesNode()
		o.reachesOutside("red/a")
		for _, f := range outside.Frames() {
			if len(f) > 35 && f[23] == wire.ProtoICMP && f[34] == 3 {
				told++
			}
		}
		return tried, told
	})
	o.eventually("what was dropped is counted", 30*time.Second, func() error {
		if o.metric("n1", `k8s_ovs_drops_total{reason="forged-error"}`) == 0 {
			return fmt.Errorf("none is counted")
		}
		return nil
	})
}

// reachesOutside waits until the outside has taken what a pod sent it before: it answers a ping.
func (o *odd) reachesOutside(pod string) {
	o.t.Helper()
	if out, err := o.PodExec(o.t.Context(), o.get(pod), "ping", "-c1", "-W5", netlab.Outside.String()); err != nil {
		o.t.Fatalf("%s does not reach the outside: %v\n%s", pod, err, out)
	}
}

// reachesNode waits until n1 has taken what red/a sent it before: it answers a ping.
func (o *odd) reachesNode() {
	o.t.Helper()
	if out, err := o.PodExec(o.t.Context(), o.get("red/a"), "ping", "-c1", "-W5", o.vtep("n1").String()); err != nil {
		o.t.Fatalf("red/a does not reach its node: %v\n%s", err, out)
	}
}

// TestAttackPodReflection: an answer that a trusted process gives a pod is no tunnel
// packet, though the pod chose its own port so that it would be, and the node's translation keeps it.
func TestAttackPodReflection(t *testing.T) {
	o := upOdd(t)
	// As a service's proxy does that does not choose ports at random.
	o.node("n1", "nft", "add table ip lab; add chain ip lab post { type nat hook postrouting priority 90; }; add rule ip lab post udp dport { 7777, 7778 } masquerade")
	for _, port := range []string{"7777", "7778"} {
		at, err := ns.ListenUDP(ns.Path(o.Name()+"-n2"), o.vtep("n2").String()+":"+port)
		o.must(err)
		defer func() { _ = at.Close() }()
		go func() {
			buf := make([]byte, 9000)
			for {
				n, from, err := at.ReadFromUDPAddrPort(buf)
				if err != nil {
					return
				}
				_, _ = at.WriteToUDPAddrPort(buf[:n], from)
			}
		}()
	}
	me, gateway, from := o.mac("red/a"), o.gatewayMAC("red/a"), o.get("red/a")
	red := o.ears.ports["red/a"]
	send := func(sport, dport uint16, payload []byte) {
		o.must(o.ears.ports["red/a"].Send(wire.Ethernet(gateway, me, wire.TypeIPv4, wire.IPv4(from.IP, o.vtep("n2"), wire.ProtoUDP, wire.UDP(sport, dport, payload)))))
	}
	o.attack(attacks.Pod, "answers of a trusted process to the port of tunnels", func() (int, int) {
		var forged []forgery
		for _, vni := range []uint32{0, o.netID("blue")} {
			f := forgery{mark: fmt.Sprintf("reflected with VNI %d;", vni), victim: "blue/a"}
			send(wire.VXLANPort, 7777, wire.VXLAN(vni, o.inner(f.mark)))
			forged = append(forged, f)
		}
		send(50000, 7778, []byte("honest echo"))
		if _, err := red.WaitFor("honest echo", patience); err != nil {
			t.Fatalf("no honest answer arrives, so this test shows nothing: %v", err)
		}
		o.ears.fence("red/b", "red/a")
		return len(forged), o.ears.delivered(forged)
	})
}

// TestAttackPodIPv6: a pod is no router to its node, and nobody whom it answers, also when its host
// end has got IPv6 while the agent is away: every `sysctl --system` may give it that. With the kernel's
// datapath the switch takes what pods send before the node's IPv6 could.
func TestAttackPodIPv6(t *testing.T) {
	if ovstest.Datapath() != "netdev" {
		t.Skip("only on the userspace datapath does the node's IPv6 see what pods send; `make test` runs it")
	}
	o := upOdd(t)
	for _, pod := range []string{"red/a", "blue/a"} { // so that the node has no other IPv6 of pods to drop
		_, err := o.PodExec(t.Context(), o.get(pod), "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
		o.must(err)
	}
	dropped := func() (n int) {
		chain := o.node("n1", "nft", "list", "chain", "ip6", "k8s-ovs", "raw-prerouting")
		_, counter, _ := strings.Cut(chain, "counter packets ")
		_, err := fmt.Sscan(counter, &n)
		if err != nil {
			t.Fatalf("no counter in %s: %v", chain, err)
		}
		return n
	}
	me, from := o.mac("red/a"), netip.MustParseAddr("fe80::5")
	hostIf := o.get("red/a").HostInterface
	o.must(o.Agent("n1").Kill())
	o.node("n1", "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
	o.node("n1", "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=0")
	o.eventually("the host end has IPv6", patience, func() error {
		if out := o.node("n1", "ip", "-6", "addr", "show", "dev", hostIf, "scope", "link", "-tentative"); !strings.Contains(out, "fe80::") {
			return fmt.Errorf("no address: %q", out)
		}
		return nil
	})
	o.attack(attacks.Pod, "router advertisements and echo requests by IPv6, the node's IPv6 switched on", func() (tried, delivered int) {
		const mark = "by IPv6, to whoever answers"
		before := dropped()
		for _, message := range [][]byte{wire.RouterAdvertisement(netip.MustParsePrefix("2001:db8::/64")), wire.EchoV6(mark)} {
			o.must(o.ears.ports["red/a"].Send(wire.Ethernet(wire.AllNodesMAC, me, wire.TypeIPv6, wire.ICMPv6(from, wire.AllNodes, message))))
			tried++
		}
		o.eventually("the node has dropped them", patience, func() error {
			if n := dropped() - before; n < tried {
				return fmt.Errorf("%d of %d dropped", n, tried)
			}
			return nil
		})
		o.ears.fence("red/a", "red/b")
		if routes := o.node("n1", "ip", "-6", "route", "show", "default"); routes != "" {
			t.Logf("the node believes the pod: %s", routes)
			delivered++
		}
		for name, p := range o.ears.ports {
			if p.Saw(mark) {
				t.Logf("%s has heard of it", name)
				delivered++
			}
		}
		return tried, min(delivered, tried)
	})
}

// TestAttackPodInBand: an Open vSwitch that somebody manages over TCP (ovs-vsctl set-manager), or whose controller is reached
// so, lets packets that have that one's address, and ARP for it, through bridges beside their flows, but not through br0: a
// pod that takes the address reaches nobody by it.
func TestAttackPodInBand(t *testing.T) {
	l := up(t, netlab.Options{})
	l.pods(map[string][]string{"n1": {"red/a", "red/b", "blue/a"}, "n2": {"blue/c"}})
	e := l.listen()
	me, manager := l.mac("red/a"), netip.MustParseAddrPort("10.0.0.5:6640")
	_, err := l.OVS("n1").VSCtl(t.Context(), "set-manager", "tcp:"+manager.String())
	l.must(err)
	e.fence("red/a", "red/b")
	var forged []forgery
	for _, target := range []string{"blue/a", "blue/c"} {
		to := l.get(target)
		for kind, packet := range map[string]func(mark []byte) (uint16, []byte){
			"TCP of the manager": func(mark []byte) (uint16, []byte) {
				return wire.TypeIPv4, wire.IPv4(manager.Addr(), to.IP, wire.ProtoTCP, wire.TCP(manager.Port(), 80, mark))
			},
			"TCP to the manager": func(mark []byte) (uint16, []byte) {
				return wire.TypeIPv4, wire.IPv4(to.IP, manager.Addr(), wire.ProtoTCP, wire.TCP(80, manager.Port(), mark))
			},
			"ARP of the manager": func(mark []byte) (uint16, []byte) {
				return wire.TypeARP, append(wire.ARP(wire.ARPRequest, me, manager.Addr(), make([]byte, 6), to.IP, nil), mark...)
			},
		} {
			for cast, dst := range map[string]net.HardwareAddr{"broadcast": wire.Broadcast, "unicast": l.mac(target)} {
				f := forgery{mark: fmt.Sprintf("%s to %s, %s;", kind, target, cast)}
				ethertype, payload := packet([]byte(f.mark))
				f.frames = [][]byte{wire.Ethernet(dst, me, ethertype, payload)}
				forged = append(forged, f)
			}
		}
	}
	l.attack(attacks.Pod, "to pass for a manager of Open vSwitch", func() (int, int) { return e.send("red/a", forged, "red/b") })
}
