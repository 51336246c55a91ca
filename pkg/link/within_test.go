package link

import (
	"cmp"
	"net/netip"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
)

// TestParts: what the kernel prefers to a route to the whole network is found, whoever made it, and nothing else.
func TestParts(t *testing.T) {
	n := space(t)
	for _, command := range []string{
		"link add v0 type veth peer name v1", "link set v0 up", "link set v1 up",
		"link add v2 type veth peer name v3", "link set v2 up", "link set v3 up",
		"route add 10.0.0.0/8 dev v0", "route add 10.1.0.0/16 dev v0 metric 7", "route add default dev v0", // wider, or the network itself
		"route add 192.0.2.0/24 dev v2",            // elsewhere
		"route add 10.1.200.0/24 dev v2 table 100", // nobody is led there
		"addr add 10.1.2.1/24 dev v2",              // what Docker and libvirt do
		"route add 10.1.4.0/22 dev v2 metric 4000", // what WireGuard does; the metric does not matter
		"route add blackhole 10.1.8.0/22",          // and what packets end in
		"route add 10.1.16.0/22 nexthop dev v0 nexthop dev v2",
	} {
		ip(t, n, command)
	}
	got := must(n.Parts(netip.MustParsePrefix("10.1.0.0/16")))(t)
	slices.SortFunc(got, func(a, b Part) int { return cmp.Or(a.Dst.Addr().Compare(b.Dst.Addr()), b.Dst.Bits()-a.Dst.Bits()) })
	p := netip.MustParsePrefix
	want := []Part{
		{p("10.1.2.0/24"), "v2", false}, {p("10.1.2.1/32"), "v2", true}, {p("10.1.4.0/22"), "v2", false}, {p("10.1.8.0/22"), "", false}, {p("10.1.16.0/22"), "v0", false},
	}
	if diff := gocmp.Diff(want, got, gocmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestRuled: rules that can lead packets past the main table are seen; the kernel's own are none of them.
func TestRuled(t *testing.T) {
	n := space(t)
	for _, step := range []struct {
		command string
		want    bool
	}{
		{"rule list", false},
		{"rule add priority 9 lookup main", false}, // what wg-quick and others add
		{"rule add to 10.1.4.0/22 priority 10 lookup 100", true}, {"rule del priority 10", false},
		{"rule add priority 10 blackhole", true}, {"rule del priority 10", false},
		{"rule add iif lo priority 10 lookup default", true}, {"rule del priority 10", false},
		{"rule add priority 10 lookup default", true}, {"rule del priority 10", false},
		{"rule del priority 32766", false},
	} {
		ip(t, n, step.command)
		if got := must(n.Ruled())(t); got != step.want {
			t.Errorf("after ip %s: %t", step.command, got)
		}
	}
}
