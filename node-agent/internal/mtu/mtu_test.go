package mtu

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCapacity(t *testing.T) {
	vtep, b, c := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3")
	for name, tc := range map[string]struct {
		node Node
		want Capacity
	}{
		"ethernet": {Node{VTEP: vtep, Link: "eth0", LinkMTU: 1500}, Capacity{Carries: 1450, Limit: "eth0"}},
		"GCP":      {Node{VTEP: vtep, Link: "ens4", LinkMTU: 1460}, Capacity{Carries: 1410, Limit: "ens4"}},
		"jumbo, one route less": {
			Node{VTEP: vtep, Link: "eth0", LinkMTU: 9000, Paths: []Path{{Peer: b, Link: "eth0", MTU: 9000}, {Peer: c, Link: "eth1", MTU: 1500}}},
			Capacity{Carries: 1450, Limit: "the route to 192.0.2.3 by eth1", Paths: map[netip.Addr]int{b: 8950, c: 1450}},
		},
		"configured less": {Node{VTEP: vtep, Link: "eth0", LinkMTU: 1500, Configured: 1400}, Capacity{Carries: 1400, Limit: "--mtu"}},
		"configured more": {Node{VTEP: vtep, Link: "eth0", LinkMTU: 1500, Configured: 1500}, Capacity{Carries: 1450, Limit: "eth0", Clamped: true}},
		"configured just": {Node{VTEP: vtep, Link: "eth0", LinkMTU: 1500, Configured: 1450}, Capacity{Carries: 1450, Limit: "eth0"}},
		"black hole": {
			Node{VTEP: vtep, Link: "eth0", LinkMTU: 1500, Policy: Clamp, Paths: []Path{{Peer: b, MTU: 1500, Measured: 1400}, {Peer: c, MTU: 1500, Measured: 1500}}},
			Capacity{Carries: 1350, Limit: "the path to 192.0.2.2 (black hole)", Paths: map[netip.Addr]int{b: 1350, c: 1450}, BlackHoles: []netip.Addr{b}},
		},
		"black hole reported": {
			Node{VTEP: vtep, Link: "eth0", LinkMTU: 1500, Policy: Report, Paths: []Path{{Peer: b, MTU: 1500, Measured: 1400}}},
			Capacity{Carries: 1450, Limit: "eth0", Paths: map[netip.Addr]int{b: 1350}, BlackHoles: []netip.Addr{b}},
		},
		"loopback": {
			Node{VTEP: vtep, Paths: []Path{{Peer: b, Link: "eth1", MTU: 1500}}},
			Capacity{Carries: 1450, Limit: "the route to 192.0.2.2 by eth1", Paths: map[netip.Addr]int{b: 1450}},
		},
		"over IPv6": {Node{VTEP: netip.MustParseAddr("2001:db8::1"), Link: "eth0", LinkMTU: 1500}, Capacity{Carries: 1430, Limit: "eth0"}},
		"nothing":   {Node{VTEP: vtep}, Capacity{}},
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
	n := Node{VTEP: netip.MustParseAddr("192.0.2.1"), Link: "eth0", LinkMTU: 1500, Policy: Report, Configured: 1400, Paths: []Path{{Peer: b, MTU: 1500, Measured: 1300}, {Peer: c, MTU: 9000}}}
	if d := cmp.Diff(map[netip.Addr]int{b: 1250}, n.Capacity().Narrow(1400), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Errorf("narrow (-want +got):\n%s", d)
	}
	for i, want := range []int{1450, 1450} {
		if got := n.Needs(n.Paths[i]); got != want {
			t.Errorf("path %d needs %d, want %d", i, got, want)
		}
	}
}
