package e2e

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/test/attacks"
	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/wire"
)

// TestAttackNodeVNI: a node's packets are held to its own pods' addresses and to the
// VNI that they carry, which it chooses itself: the tunnel proves no more than an address.
func TestAttackNodeVNI(t *testing.T) {
	l := up(t, netlab.Options{})
	l.pods(map[string][]string{"n1": {"blue/a", "blue/b"}, "n2": {"red/c", "blue/c"}})
	e := l.listen()
	stolen, n1 := ns.Path(l.Name()+"-n2"), l.vtep("n1")
	send := func(vni uint32, from, mark string) (int, int) {
		f := forgery{mark: mark + ";"}
		l.vxlanFrom(stolen, n1, vni, l.get(from), l.get("blue/a"), f.mark)
		l.vxlanFrom(stolen, n1, l.netID("blue"), l.get("blue/c"), l.get("blue/a"), "honest after "+mark)
		if _, err := e.ports["blue/a"].WaitFor("honest after "+mark, patience); err != nil {
			t.Fatalf("what a peer sends does not arrive, so this test sees nothing: %v", err)
		}
		return 1, e.delivered([]forgery{f})
	}
	l.attack(attacks.Node, "a VNI that nobody has", func() (int, int) { return send(l.netID("blue")+1, "blue/c", "no VNI") })
	l.attack(attacks.Node, "inner source of another node's pod", func() (int, int) { return send(l.netID("blue"), "blue/b", "no source") })
	const why = "nodes trust each other, and packets between them are not signed"
	l.attackNotHeld(attacks.Node, "another tenant's VNI", why, func() (int, int) { return send(l.netID("blue"), "red/c", "tenant's VNI") })
	l.attackNotHeld(attacks.Node, "the global VNI", why, func() (int, int) { return send(0, "red/c", "global VNI") })
}

// TestAttackNodeInner: what a stolen node puts into its tunnels is held to its own pods'
// addresses, and comes to pods and to nobody else.
func TestAttackNodeInner(t *testing.T) {
	o := upOdd(t)
	stolen, n1 := ns.Path(o.Name()+"-n2"), o.vtep("n1")
	outside := o.open(ns.Path(o.UnderlayNetns()), "n1") // what n1 sends into the underlay
	a, b := o.get("blue/a"), o.get("blue/b")
	ip := func(to netip.Addr, mark string) []byte {
		return wire.Ethernet(o.mac("blue/a"), o.mac("blue/b"), wire.TypeIPv4, wire.IPv4(b.IP, to, wire.ProtoUDP, wire.UDP(1000, 9, []byte(mark))))
	}
	c, err := ns.ListenUDP(stolen, ":0")
	o.must(err)
	defer func() { _ = c.Close() }()
	send := func(inner []byte) {
		_, err := c.WriteToUDPAddrPort(wire.VXLAN(o.netID("blue"), inner), netip.AddrPortFrom(n1, wire.VXLANPort))
		o.must(err)
	}
	for name, inner := range map[string]func(mark string) []byte{
		"ARP for the gateway": func(mark string) []byte {
			return wire.Ethernet(wire.Broadcast, o.mac("blue/b"), wire.TypeARP, wire.ARP(wire.ARPReply, o.mac("blue/b"), a.Gateway, o.mac("blue/a"), a.IP, []byte(mark)))
		},
		"a packet for the outside":  func(mark string) []byte { return ip(netlab.Outside, mark) },
		"a packet for the node":     func(mark string) []byte { return ip(n1, mark) },
		"a packet for a third node": func(mark string) []byte { return ip(netip.MustParseAddr("198.18.0.250"), mark) },
		"a packet for its own pod":  func(mark string) []byte { return ip(o.get("red/b").IP, mark) },
		"a broadcast":               func(mark string) []byte { return ip(netip.MustParseAddr("255.255.255.255"), mark) },
		"a multicast":               func(mark string) []byte { return ip(netip.MustParseAddr("224.0.0.1"), mark) },
		"a packet for loopback":     func(mark string) []byte { return ip(netip.MustParseAddr("127.0.0.1"), mark) },
		"a packet from loopback": func(mark string) []byte {
			return wire.Ethernet(o.mac("blue/a"), o.mac("blue/b"), wire.TypeIPv4, wire.IPv4(netip.MustParseAddr("127.0.0.1"), a.IP, wire.ProtoUDP, wire.UDP(1000, 9, []byte(mark))))
		},
	} {
		o.attack(attacks.Node, "in its tunnel, "+name, func() (int, int) {
			f := forgery{mark: "in its tunnel, " + name + ";"}
			send(inner(f.mark))
			send(ip(a.IP, "honest after "+f.mark))
			if _, err := o.ears.ports["blue/a"].WaitFor("honest after "+f.mark, patience); err != nil {
				t.Fatalf("what a peer sends does not arrive, so this test sees nothing: %v", err)
			}
			delivered := 0
			for _, frames := range [][][]byte{o.ears.ports["blue/a"].Frames(), o.ears.ports["red/a"].Frames(), o.ears.ports["red/b"].Frames(), outside.Frames()} {
				for _, frame := range frames {
					if bytes.Contains(frame, []byte(f.mark)) && !bytes.Contains(frame, []byte("honest after ")) {
						t.Logf("%q: %x", f.mark, frame[:min(len(frame), 60)])
						delivered = 1
					}
				}
			}
			return 1, delivered
		})
	}
}
