package link

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
)

func names(links []Link) string {
	var out []string
	for _, l := range links {
		out = append(out, l.Name)
	}
	return strings.Join(out, " ")
}

// What needs modules that not every kernel has.
func TestStackOfManyKinds(t *testing.T) {
	attrs := func(name string, index, parent, master, netns int) netlink.LinkAttrs {
		return netlink.LinkAttrs{Name: name, Index: index, ParentIndex: parent, MasterIndex: master, NetNsID: netns}
	}
	all := []netlink.Link{
		&netlink.Device{LinkAttrs: attrs("eth0", 1, 0, 10, -1)},
		&netlink.Device{LinkAttrs: attrs("eth1", 2, 0, 10, -1)},
		&netlink.Device{LinkAttrs: attrs("eth2", 3, 0, 0, -1)},
		&netlink.Bond{LinkAttrs: attrs("bond0", 10, 0, 0, -1)},
		&netlink.Vlan{LinkAttrs: attrs("bond0.7", 11, 10, 12, -1)},
		&netlink.Bridge{LinkAttrs: attrs("br7", 12, 0, 0, -1)},
		&netlink.Veth{LinkAttrs: attrs("veth0", 13, 14, 12, -1)},
		&netlink.Veth{LinkAttrs: attrs("veth1", 14, 13, 0, -1)},
		&netlink.Macvlan{LinkAttrs: attrs("mac0", 15, 3, 0, -1)},
		&netlink.Macvlan{LinkAttrs: attrs("mac1", 16, 3, 0, 0)}, // on a device of another namespace
		&netlink.GenericLink{LinkAttrs: attrs("sec0", 17, 11, 0, -1), LinkType: "macsec"},
	}
	for top, want := range map[string]string{
		"eth0": "eth0", "bond0": "bond0 eth0 eth1", "bond0.7": "bond0.7 bond0 eth0 eth1",
		"br7": "br7 bond0.7 veth0 bond0 eth0 eth1", "veth0": "veth0", "mac0": "mac0 eth2", "mac1": "mac1",
		"sec0": "sec0 bond0.7 bond0 eth0 eth1",
	} {
		for _, l := range all {
			if l.Attrs().Name != top {
				continue
			}
			var got []Link
			for _, s := range stack(l, all) {
				got = append(got, linkOf(s))
			}
			if names(got) != want {
				t.Errorf("%s stands on %s, want %s", top, names(got), want)
			}
		}
	}
}

func TestStack(t *testing.T) {
	n := space(t)
	ip(t, n, "link add v0 type veth peer name v1")
	ip(t, n, "link add name br type bridge")
	ip(t, n, "link set v0 master br")
	ip(t, n, "link add name mac link br type macvlan")
	for top, want := range map[string]string{"lo": "lo", "v1": "v1", "br": "br v0", "mac": "mac br v0"} {
		if got := names(must(n.Stack(top))(t)); got != want {
			t.Errorf("%s stands on %s, want %s", top, got, want)
		}
	}
	if _, err := n.Stack("none"); !errors.Is(err, ErrNoLink) {
		t.Errorf("no such device: %v", err)
	}
}

func TestPathsTo(t *testing.T) {
	n := space(t)
	ip(t, n, "link add v0 mtu 9000 type veth peer name v1")
	ip(t, n, "link set v0 up")
	ip(t, n, "link set v1 up")
	ip(t, n, "addr add 192.0.2.1/24 dev v0")
	ip(t, n, "route add 198.51.100.0/24 via 192.0.2.8 mtu 1300")
	// For packets from that address only.
	ip(t, n, "addr add 192.0.2.77/32 dev v0")
	ip(t, n, "rule add from 192.0.2.77 table 77")
	ip(t, n, "route add 198.51.100.0/24 via 192.0.2.9 mtu 1400 table 77")
	near, far, none := netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("203.0.113.1")
	got := map[netip.Addr]int{}
	for peer, p := range n.PathsTo(netip.MustParseAddr("192.0.2.77"), []netip.Addr{near, far, none}) {
		got[peer] = p.MTU
		if p.Link.Name != "v0" {
			t.Errorf("%s by %s", peer, p.Link.Name)
		}
	}
	if d := cmp.Diff(map[netip.Addr]int{near: 9000, far: 1400}, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Errorf("MTUs (-want +got):\n%s", d)
	}
}

func BenchmarkPathsTo(b *testing.B) {
	n := space(b)
	ip(b, n, "link set lo up")
	ip(b, n, "route add default dev lo")
	peers := make([]netip.Addr, 1000)
	for i := range peers {
		peers[i] = netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)})
	}
	for b.Loop() {
		n.PathsTo(netip.MustParseAddr("127.0.0.1"), peers)
	}
}

func TestPathOf(t *testing.T) {
	n := space(t)
	for _, c := range []string{
		"link add eth0 type ifb", "link add eth1 type ifb", "link add pods type ifb", "link set eth0 up", "link set eth1 up", "link set pods up",
		"addr add 198.18.0.7/24 dev eth0", "addr add 198.19.0.7/24 dev eth1", "addr add 172.11.0.1/24 dev pods",
	} {
		ip(t, n, c)
	}
	if _, err := n.EnsureSysctl("net/ipv4/ip_forward", "1"); err != nil {
		t.Fatal(err)
	}
	pod, outside := netip.MustParseAddr("172.11.0.9"), netip.MustParseAddr("203.0.113.1")
	want := func(when, device, via string, no bool) {
		t.Helper()
		p, err := n.PathOf(pod, "pods", outside)
		if errors.Is(err, ErrNoRoute) != no || !no && (err != nil || p.Link.Name != device || p.Via.String() != via) {
			t.Errorf("%s: by %s via %s (%v), want by %s via %s", when, p.Link.Name, p.Via, err, device, via)
		}
	}
	want("no routes", "", "", true)
	if _, err := n.PathTo(outside); !errors.Is(err, ErrNoRoute) {
		t.Errorf("the node's own: %v", err)
	}
	ip(t, n, "route add default via 198.18.0.1")
	want("a default route", "eth0", "198.18.0.1", false)
	ip(t, n, "route add default via 198.19.0.1 table 100")
	ip(t, n, "rule add iif pods lookup 100")
	want("a rule for pods", "eth1", "198.19.0.1", false)
	hops := func(when, want string) {
		t.Helper()
		var got []string
		for _, p := range must(n.HopsOf(pod, "pods", outside))(t) {
			got = append(got, p.Link.Name+" "+p.Via.String())
		}
		if got := strings.Join(got, ", "); got != want {
			t.Errorf("%s: next hops %q, want %q", when, got, want)
		}
	}
	hops("one router", "")
	ip(t, n, "route replace default table 100 nexthop via 198.19.0.1 nexthop via 198.18.0.1 weight 2")
	hops("two", "eth1 198.19.0.1, eth0 198.18.0.1")
	ip(t, n, "route replace default table 100 nexthop via 198.19.0.1 nexthop via 192.0.2.1 dev eth0 onlink nexthop via 198.18.0.1")
	hops("one that is no neighbour", "eth1 198.19.0.1, eth0 198.18.0.1")
	ip(t, n, "link set eth0 down")
	hops("one by a device that is down", "eth1 198.19.0.1")
	ip(t, n, "rule add iif pods priority 50 blackhole")
	want("a rule against pods", "", "", true)
}
