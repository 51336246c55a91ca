package e2e

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/test/attacks"
	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/wire"
)

// TestAttackUnderlayVXLAN: VXLAN from a host that is no node is dropped,
// whatever netID it carries. A node's own, sent the same way, shows that the test
// would see it.
func TestAttackUnderlayVXLAN(t *testing.T) {
	l := up(t, netlab.Options{})
	l.pods(map[string][]string{"n1": {"blue/a"}, "n2": {"blue/c"}})
	e := l.listen()
	stranger, err := l.NewStranger(t.Context(), "stranger", netip.MustParseAddr("198.18.0.240"))
	l.must(err)
	victim, partner := l.get("blue/a"), l.get("blue/c")
	vni := l.netID("blue")
	n1, n2 := l.vtep("n1"), ns.Path(l.Name()+"-n2")
	l.attack(attacks.Underlay, "VXLAN with a tenant's, the global and any VNI", func() (int, int) {
		var forged []forgery
		for i, v := range []uint32{vni, 0, 1} {
			f := forgery{mark: fmt.Sprintf("stranger's no. %d;", i)}
			l.vxlanFrom(ns.Path(stranger), n1, v, partner, victim, f.mark)
			forged = append(forged, f)
		}
		l.vxlanFrom(n2, n1, vni, partner, victim, "the peer's")
		if _, err := e.ports["blue/a"].WaitFor("the peer's", patience); err != nil {
			t.Fatalf("what a peer sends does not arrive, so this test sees nothing: %v", err)
		}
		return len(forged), e.delivered(forged)
	})
}

// TestAttackUnderlayRoutes: a host that is no node does not reach pods by routing to
// them through a node.
func TestAttackUnderlayRoutes(t *testing.T) {
	l := up(t, netlab.Options{})
	l.pods(map[string][]string{"n1": {"red/a"}, "n2": {"red/b", "blue/b"}})
	pods, err := l.Pods()
	l.must(err)
	probeTCP(t, l, pods) // what the host may not, a node may
	l.outsideCannotEnter(pods)
}

// TestAttackUnderlayEncapsulations: a host in the underlay that is no node is not
// believed, whatever it puts frames into and whomever it addresses. With a node's address
// as its own it is: underlays must not let it.
func TestAttackUnderlayEncapsulations(t *testing.T) {
	o := upOdd(t)
	address := netip.MustParseAddr("198.18.0.240")
	stranger, err := o.NewStranger(t.Context(), "stranger", address)
	o.must(err)
	link := o.open(ns.Path(stranger), "eth0")
	n1 := o.linkMAC("n2", "198.18.0.1")
	me := net.HardwareAddr{2, 0, 198, 18, 0, 240}
	seen := func(forged []forgery, frames ...[]byte) (int, int) {
		for _, f := range frames {
			o.must(link.Send(f))
		}
		o.must(link.Send(wire.Ethernet(n1, me, wire.TypeIPv4, wire.IPv4(address, o.vtep("n1"), wire.ProtoICMP, []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0}))))
		o.eventually("n1 answers the host", patience, func() error {
			for _, f := range link.Frames() {
				if len(f) > 34 && f[23] == wire.ProtoICMP && f[34] == 0 && bytes.Equal(f[26:30], []byte{198, 18, 0, 1}) {
					return nil
				}
			}
			return fmt.Errorf("%d frames", len(link.Frames()))
		})
		o.ears.fence("red/b", "red/a")
		return len(forged), o.ears.delivered(forged)
	}
	for where, to := range map[string]struct {
		address string
		mac     net.HardwareAddr
	}{
		"a node": {"198.18.0.1", n1}, "a node by broadcast": {"198.18.0.1", wire.Broadcast},
		"the underlay's broadcast address": {"198.18.0.255", wire.Broadcast}, "everybody": {"255.255.255.255", wire.Broadcast},
		"all hosts by multicast": {"224.0.0.1", net.HardwareAddr{1, 0, 0x5e, 0, 0, 1}},
	} {
		var forged []forgery
		var frames [][]byte
		marks := map[string]string{}
		for kind, build := range o.encapsulations(func(kind string) []byte {
			marks[kind] = fmt.Sprintf("host's %s to %s;", kind, where)
			return o.inner(marks[kind])
		}) {
			proto, payload := build()
			frames = append(frames, wire.Ethernet(to.mac, me, wire.TypeIPv4, wire.IPv4(address, netip.MustParseAddr(to.address), proto, payload)))
			forged = append(forged, forgery{mark: marks[kind]})
		}
		o.attack(attacks.Underlay, "encapsulations to "+where, func() (int, int) { return seen(forged, frames...) })
	}
	const why = "packets between nodes are not signed: the underlay must not let hosts take nodes' addresses"
	o.attackNotHeld(attacks.Underlay, "VXLAN with a node's address as its source", why, func() (int, int) {
		f := forgery{mark: "host's VXLAN as n2;", victim: "blue/a"}
		return seen([]forgery{f}, wire.Ethernet(n1, me, wire.TypeIPv4,
			wire.IPv4(o.vtep("n2"), o.vtep("n1"), wire.ProtoUDP, wire.UDP(50000, wire.VXLANPort, wire.VXLAN(o.netID("blue"), o.inner(f.mark))))))
	})
}

// linkMAC is the hardware address that a node knows of another one.
func (l *lab) linkMAC(node, neighbour string) net.HardwareAddr {
	l.t.Helper()
	var m net.HardwareAddr
	l.eventually("the hardware address of "+neighbour, patience, func() error {
		_, _ = l.NodeExec(l.t.Context(), node, "ping", "-c1", "-W1", neighbour)
		f := strings.Fields(l.node(node, "ip", "-4", "neigh", "show", neighbour))
		for i, w := range f {
			if w == "lladdr" {
				var err error
				m, err = net.ParseMAC(f[i+1])
				return err
			}
		}
		return fmt.Errorf("unknown: %q", f)
	})
	return m
}
