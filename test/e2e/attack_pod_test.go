package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/test/attacks"
	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/wire"
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
