package mtu

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// vxlan is what VXLAN over IPv4 adds, bytes.
const vxlan = 50

func TestCapacity(t *testing.T) {
	b, c := netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3")
	for name, tc := range map[string]struct {
		node Node
		want Capacity
	}{
		"ethernet": {Node{Overhead: vxlan, Link: "eth0", LinkMTU: 1500}, Capacity{Carries: 1450, Limit: "eth0"}},
		"GCP":      {Node{Overhead: vxlan, Link: "ens4", LinkMTU: 1460}, Capacity{Carries: 1410, Limit: "ens4"}},
		"jumbo, one route less": {
			Node{Overhead: vxlan, Link: "eth0", LinkMTU: 9000, Paths: []Path{{Overhead: vxlan, Peer: b, Link: "eth0", MTU: 9000}, {Overhead: vxlan, Peer: c, Link: "eth1", MTU: 1500}}},
			Capacity{Carries: 1450, Limit: "the route to 192.0.2.3 by eth1", Paths: map[netip.Addr]int{b: 8950, c: 1450}},
		},
		"configured less": {Node{Overhead: vxlan, Link: "eth0", LinkMTU: 1500, Configured: 1400}, Capacity{Carries: 1400, Limit: "--mtu"}},
		"configured more": {Node{Overhead: vxlan, Link: "eth0", LinkMTU: 1500, Configured: 1500}, Capacity{Carries: 1450, Limit: "eth0", Clamped: true}},
		"configured just": {Node{Overhead: vxlan, Link: "eth0", LinkMTU: 1500, Configured: 1450}, Capacity{Carries: 1450, Limit: "eth0"}},
		"black hole": {
			Node{Overhead: vxlan, Link: "eth0", LinkMTU: 1500, Policy: Clamp, Paths: []Path{{Overhead: vxlan, Peer: b, MTU: 1500, Measured: 1400}, {Overhead: vxlan, Peer: c, MTU: 1500, Measured: 1500}}},
			Capacity{Carries: 1350, Limit: "the path to 192.0.2.2 (black hole)", Paths: map[netip.Addr]int{b: 1350, c: 1450}, BlackHoles: []netip.Addr{b}},
		},
		"black hole reported": {
			Node{Overhead: vxlan, Link: "eth0", LinkMTU: 1500, Policy: Report, Paths: []Path{{Overhead: vxlan, Peer: b, MTU: 1500, Measured: 1400}}},
			Capacity{Carries: 1450, Limit: "eth0", Paths: map[netip.Addr]int{b: 1350}, BlackHoles: []netip.Addr{b}},
		},
		"loopback": {
			Node{Overhead: vxlan, Paths: []Path{{Overhead: vxlan, Peer: b, Link: "eth1", MTU: 1500}}},
			Capacity{Carries: 1450, Limit: "the route to 192.0.2.2 by eth1", Paths: map[netip.Addr]int{b: 1450}},
		},
		"two tunnels": {
			Node{Overhead: 70, Link: "eth0", LinkMTU: 1500, Paths: []Path{{Overhead: vxlan, Peer: b, MTU: 1450}, {Overhead: 70, Peer: c, MTU: 1500}}},
			Capacity{Carries: 1400, Limit: "the route to 192.0.2.2 by ", Paths: map[netip.Addr]int{b: 1400, c: 1430}},
		},
		"two tunnels to one peer": {
			Node{Overhead: 70, Link: "eth0", LinkMTU: 1500, Policy: Report, Paths: []Path{
				{Overhead: 70, Peer: b, MTU: 1500, Measured: 1400}, {Overhead: vxlan, Peer: b, MTU: 1500, Measured: 1400}, {Overhead: vxlan, Peer: c, MTU: 1500}, {Overhead: 70, Peer: c, MTU: 1500},
			}},
			Capacity{Carries: 1430, Limit: "eth0", Paths: map[netip.Addr]int{b: 1330, c: 1430}, BlackHoles: []netip.Addr{b}},
		},
		"over IPv6": {Node{Overhead: 70, Link: "eth0", LinkMTU: 1500}, Capacity{Carries: 1430, Limit: "eth0"}},
		"nothing":   {Node{Overhead: vxlan}, Capacity{}},
	} {
		t.Run(name, func(t *testing.T) {
			if tc.want.Paths == nil {
				tc.want.Paths = map[netip.Addr]int{}
			}
			got := tc.node.Capacity()
			if d := cmp.Diff(tc.want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
				t.Errorf("capacity (-want +got):\n%s", d)
			}
		})
	}
}

func TestNarrowAndNeeds(t *testing.T) {
	b, c := netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3")
	n := Node{Overhead: vxlan, Link: "eth0", LinkMTU: 1500, Policy: Report, Configured: 1400, Paths: []Path{{Overhead: vxlan, Peer: b, MTU: 1500, Measured: 1300}, {Overhead: vxlan, Peer: c, MTU: 9000}}}
	if d := cmp.Diff(map[netip.Addr]int{b: 1250}, n.Capacity().Narrow(1400), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Errorf("narrow (-want +got):\n%s", d)
	}
	n.Paths = append(n.Paths, Path{Overhead: 70, Peer: c, MTU: 1480})
	for i, want := range []int{1450, 1450, 1470} {
		if got := n.Needs(n.Paths[i]); got != want {
			t.Errorf("path %d needs %d, want %d", i, got, want)
		}
	}
}
