package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/wire"
)

// patience is how long a frame that must arrive may take on a busy machine.
const patience = 10 * time.Second

// ears listen on the links of all pods.
type ears struct {
	l     *lab
	ports map[string]*wire.Port // by pod
}

func (l *lab) listen() *ears {
	l.t.Helper()
	e := &ears{l, map[string]*wire.Port{}}
	pods, err := l.Pods()
	l.must(err)
	for _, p := range pods {
		e.ports[p.String()] = l.open(p.Sandbox(), "eth0")
	}
	return e
}

// open opens a link for raw frames until the test's end.
func (l *lab) open(sandbox, link string) *wire.Port {
	l.t.Helper()
	p, err := wire.Open(sandbox, link)
	l.must(err)
	l.t.Cleanup(func() { _ = p.Close() })
	return p
}

// mac is a pod's hardware address.
func (l *lab) mac(name string) net.HardwareAddr {
	l.t.Helper()
	m, err := net.ParseMAC(l.get(name).MAC)
	l.must(err)
	return m
}

// gatewayMAC is what a pod must address to get anywhere: its neighbour entry.
func (l *lab) gatewayMAC(name string) net.HardwareAddr {
	l.t.Helper()
	out, err := l.PodExec(l.t.Context(), l.get(name), "ip", "-4", "neigh", "show", "dev", "eth0")
	l.must(err)
	f := strings.Fields(out)
	for i, w := range f {
		if w == "lladdr" {
			m, err := net.ParseMAC(f[i+1])
			l.must(err)
			return m
		}
	}
	l.t.Fatalf("%s has no neighbour: %q", name, out)
	return nil
}

// fence sends an honest datagram from one pod to others of its tenant and
// waits until they have it: all that was sent before has been delivered or dropped
// by then, since the switch keeps a port's packets in order.
func (e *ears) fence(from string, to ...string) {
	e.l.t.Helper()
	mark := fmt.Sprintf("honest-%d", time.Now().UnixNano())
	a := e.l.get(from)
	for _, name := range to {
		b := e.l.get(name)
		frame := wire.Ethernet(e.l.gatewayMAC(from), e.l.mac(from), wire.TypeIPv4,
			wire.IPv4(a.IP, b.IP, wire.ProtoUDP, wire.UDP(1000, 9, []byte(mark))))
		e.l.must(e.ports[from].Send(frame))
	}
	for _, name := range to {
		if _, err := e.ports[name].WaitFor(mark, patience); err != nil {
			e.l.t.Fatalf("an honest datagram from %s does not reach %s: %v", from, name, err)
		}
	}
}

// nobodyHears fails the test for each pod that a marked frame has reached.
func (e *ears) nobodyHears(mark string) {
	e.l.t.Helper()
	for name, p := range e.ports {
		if p.Saw(mark) {
			e.l.t.Errorf("%s: reached %s", mark, name)
		}
	}
}

// TestForgedFrames: a pod that may build its own frames reaches nobody with
// what is not its own.
func TestForgedFrames(t *testing.T) {
	l := up(t, netlab.Options{})
	l.pods(map[string][]string{"n1": {"red/a", "red/b", "blue/a"}, "n2": {"red/c", "blue/c"}})
	e := l.listen()
	from := l.get("red/a")
	me, gateway := l.mac("red/a"), l.gatewayMAC("red/a")
	e.fence("red/a", "red/b", "red/c")

	stranger := net.HardwareAddr{2, 0xba, 0xd0, 0, 0, 1}
	frames := map[string][]byte{}
	for _, target := range []string{"red/b", "red/c", "blue/a", "blue/c"} {
		to := l.get(target)
		ip := func(src netip.Addr, mark string) []byte {
			return wire.IPv4(src, to.IP, wire.ProtoUDP, wire.UDP(1000, 9, []byte(mark)))
		}
		add := func(kind string, dst, src net.HardwareAddr, source netip.Addr) {
			mark := fmt.Sprintf("forged %s to %s", kind, target)
			frames[mark] = wire.Ethernet(dst, src, wire.TypeIPv4, ip(source, mark))
		}
		add("source MAC", gateway, stranger, from.IP)
		add("source MAC, straight", l.mac(target), stranger, from.IP)
		add("source IP of red/b", gateway, me, l.get("red/b").IP)
		add("source IP of blue/a", gateway, me, l.get("blue/a").IP)
		add("source IP of blue/c", gateway, me, l.get("blue/c").IP)
		add("source IP of the gateway", gateway, me, from.Gateway)
		add("source IP of a node", gateway, me, netip.MustParseAddr("198.18.0.2"))
		add("source IP of nobody", gateway, me, netip.MustParseAddr("203.0.113.77"))
		add("source MAC and IP of blue/a", gateway, l.mac("blue/a"), l.get("blue/a").IP)
		for kind, arp := range map[string][]byte{
			"gratuitous ARP for the gateway": wire.ARP(wire.ARPReply, me, from.Gateway, wire.Broadcast, from.Gateway, nil),
			"ARP reply as blue/a":            wire.ARP(wire.ARPReply, me, l.get("blue/a").IP, l.mac(target), to.IP, nil),
			"ARP request as red/b":           wire.ARP(wire.ARPRequest, me, l.get("red/b").IP, make([]byte, 6), to.IP, nil),
			"ARP with a false MAC":           wire.ARP(wire.ARPRequest, stranger, from.IP, make([]byte, 6), to.IP, nil),
		} {
			mark := fmt.Sprintf("forged %s to %s", kind, target)
			padded := append(arp, mark...)
			frames[mark] = wire.Ethernet(wire.Broadcast, me, wire.TypeARP, padded)
			frames[mark+" (unicast)"] = wire.Ethernet(l.mac(target), me, wire.TypeARP, append(arp, mark+" (unicast)"...))
		}
	}
	for _, f := range frames {
		l.must(e.ports["red/a"].Send(f))
	}
	e.fence("red/a", "red/b", "red/c")
	for mark := range frames {
		e.nobodyHears(mark)
	}
	// Nor is anything of it remembered: all is as before.
	l.requireMatrix("after forging", tenants{"red": "r", "blue": "b"}.allowed)
}

// netID is the number under which a namespace travels, read from its record.
func (l *lab) netID(namespace string) uint32 {
	l.t.Helper()
	r := l.record(namespace)
	if r.Effective == nil {
		l.t.Fatalf("namespace %s has no confirmed netID: %+v", namespace, r)
	}
	return *r.Effective
}

// TestForgedVXLAN: VXLAN made by a pod gets nowhere: to the peer's address and
// to the own node's, whole and in fragments, straight and through a service's
// address translation, with the victim's netID and the global one.
func TestForgedVXLAN(t *testing.T) {
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
	frames := map[string][][]byte{}
	for _, victim := range []string{"blue/a", "blue/c", "red/b", "red/c"} {
		to := l.get(victim)
		// The inner frame comes from a pod of the other node than the victim's.
		partner := map[string]string{"blue/a": "blue/c", "blue/c": "blue/a", "red/b": "red/c", "red/c": "red/b"}[victim]
		for _, vni := range []uint32{0, l.netID(to.Namespace)} {
			for name, dst := range map[string]netip.AddrPort{
				"n1":                   netip.MustParseAddrPort("198.18.0.1:4789"),
				"n2":                   netip.MustParseAddrPort("198.18.0.2:4789"),
				"the gateway":          netip.AddrPortFrom(from.Gateway, 4789),
				"n2 behind a service":  netip.AddrPortFrom(service, 53),
				"n1 behind a service":  netip.AddrPortFrom(service, 54),
				"the victim's gateway": netip.AddrPortFrom(to.Gateway, 4789),
			} {
				mark := fmt.Sprintf("VXLAN %d to %s for %s", vni, name, victim)
				udp := func(mark string) []byte {
					inner := wire.Ethernet(l.mac(victim), l.mac(partner), wire.TypeIPv4,
						wire.IPv4(l.get(partner).IP, to.IP, wire.ProtoUDP, wire.UDP(1000, 9, []byte(mark))))
					return wire.UDP(50000, dst.Port(), wire.VXLAN(vni, inner))
				}
				frames[mark] = [][]byte{wire.Ethernet(gateway, me, wire.TypeIPv4, wire.IPv4(from.IP, dst.Addr(), wire.ProtoUDP, udp(mark)))}
				broken := wire.Fragments(from.IP, dst.Addr(), wire.ProtoUDP, udp(mark+", in pieces"), 24)
				frames[mark+", in pieces"] = [][]byte{
					wire.Ethernet(gateway, me, wire.TypeIPv4, broken[0]),
					wire.Ethernet(gateway, me, wire.TypeIPv4, broken[1]),
				}
				asPeer := wire.IPv4(netip.MustParseAddr("198.18.0.2"), dst.Addr(), wire.ProtoUDP, udp(mark+", as n2"))
				frames[mark+", as n2"] = [][]byte{wire.Ethernet(gateway, me, wire.TypeIPv4, asPeer)}
			}
		}
	}
	for _, fs := range frames {
		for _, f := range fs {
			l.must(e.ports["red/a"].Send(f))
		}
	}
	e.fence("red/a", "red/b", "red/c")
	for mark := range frames {
		e.nobodyHears(mark)
	}
	l.requireMatrix("after forging", tenants{"red": "r", "blue": "b"}.allowed)
}

// node runs a command in a node.
func (l *lab) node(node string, args ...string) string {
	l.t.Helper()
	out, err := l.NodeExec(l.t.Context(), node, args...)
	l.must(err)
	return out
}

// vxlanFrom sends one VXLAN packet to a node from a host in the underlay, with
// an inner datagram between two pods.
func (l *lab) vxlanFrom(sandbox string, to netip.Addr, vni uint32, from, victim netlab.Pod, mark string) {
	l.t.Helper()
	macOf := func(p netlab.Pod) net.HardwareAddr {
		m, err := net.ParseMAC(p.MAC)
		l.must(err)
		return m
	}
	inner := wire.Ethernet(macOf(victim), macOf(from), wire.TypeIPv4,
		wire.IPv4(from.IP, victim.IP, wire.ProtoUDP, wire.UDP(1000, 9, []byte(mark))))
	c, err := ns.ListenUDP(sandbox, ":0")
	l.must(err)
	defer func() { _ = c.Close() }()
	_, err = c.WriteToUDPAddrPort(wire.VXLAN(vni, inner), netip.AddrPortFrom(to, wire.VXLANPort))
	l.must(err)
}

// TestStrangerInUnderlay: VXLAN from a host that is no node is dropped,
// whatever netID it carries. A node's own, sent the same way, shows that the test
// would see it.
func TestStrangerInUnderlay(t *testing.T) {
	l := up(t, netlab.Options{})
	l.pods(map[string][]string{"n1": {"blue/a"}, "n2": {"blue/c"}})
	e := l.listen()
	stranger, err := l.NewStranger(t.Context(), "stranger", netip.MustParseAddr("198.18.0.240"))
	l.must(err)
	victim, partner := l.get("blue/a"), l.get("blue/c")
	vni := l.netID("blue")
	n1, n2 := l.vtep("n1"), ns.Path(l.Name()+"-n2")

	var marks []string
	for i, v := range []uint32{vni, 0, 1} {
		mark := fmt.Sprintf("stranger's no. %d", i)
		l.vxlanFrom(ns.Path(stranger), n1, v, partner, victim, mark)
		marks = append(marks, mark)
	}
	l.vxlanFrom(n2, n1, vni, partner, victim, "the peer's")
	if _, err := e.ports["blue/a"].WaitFor("the peer's", patience); err != nil {
		t.Fatalf("what a peer sends does not arrive, so this test sees nothing: %v", err)
	}
	// The peer's own packets are held to its tenants as well.
	l.vxlanFrom(n2, n1, vni+1, partner, victim, "the peer's with another netID")
	l.vxlanFrom(n2, n1, vni, partner, victim, "the peer's second")
	if _, err := e.ports["blue/a"].WaitFor("the peer's second", patience); err != nil {
		t.Fatal(err)
	}
	for _, mark := range append(marks, "the peer's with another netID") {
		e.nobodyHears(mark)
	}
}

func (l *lab) vtep(node string) netip.Addr {
	l.t.Helper()
	n, err := l.Node(node)
	l.must(err)
	return n.VTEP
}

// TestReusedAddress: an address that another tenant gets right after DEL
// reaches the new pod only, from the first packet on.
func TestReusedAddress(t *testing.T) {
	l := up(t, netlab.Options{HostSubnetLength: 3}) // five pods a node
	l.pods(map[string][]string{
		"n1": {"red/a", "red/b", "red/c", "red/d", "red/e"},
		"n2": {"red/f", "blue/f"},
	})
	rule := tenants{"red": "r", "blue": "b"}
	l.requireMatrix("at first", rule.allowed)
	if _, err := l.AddPod(t.Context(), "n1", "red", "toomany", netlab.PodOptions{}); err == nil || !strings.Contains(err.Error(), "address") {
		t.Errorf("a sixth pod on a node with five addresses: %v, want an error about addresses", err)
	}
	for _, name := range []string{"red/c", "red/a"} {
		old := l.get(name)
		l.must(l.DelPod(t.Context(), old))
		fresh := l.pod("n1", "blue/instead-of-"+old.Name)
		if fresh.IP != old.IP {
			t.Fatalf("the new pod has %s, not the freed %s: the test tests nothing", fresh.IP, old.IP)
		}
		r := l.matrix()
		if err := r.Check(rule.allowed); err != nil {
			t.Errorf("address of %s reused: %v\n%s", name, err, table(r))
		}
		if err := r.FirstTryOnly(); err != nil {
			t.Errorf("address of %s reused: first packets were lost: %v", name, err)
		}
	}
}
