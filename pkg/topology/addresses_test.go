package topology

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestMAC(t *testing.T) {
	for address, want := range map[string]string{
		"172.11.0.5": "0a:58:ac:0b:00:05", "fd00:1:2:3::ac0b:5": "0a:58:ac:0b:00:05", "fd00::1": "0a:58:00:00:00:01",
	} {
		if got := MAC(netip.MustParseAddr(address)).String(); got != want {
			t.Errorf("MAC of %s is %s, want %s", address, got, want)
		}
	}
}

// An IPv6 address that belongs to an IPv4 address is in the subnet, is no other's, and has
// the same MAC.
func TestTwin(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	subnet := netip.MustParsePrefix("fd00:1:2:3::/64")
	seen := map[netip.Addr]netip.Addr{}
	for range 10_000 {
		ip := WithLow32(netip.MustParseAddr("0.0.0.0"), rnd.Uint32())
		twin := Twin(subnet, ip)
		if other, had := seen[twin]; had && other != ip || !ip.Is4() || !twin.Is6() || twin.Is4In6() || !subnet.Contains(twin) {
			t.Fatalf("%s has %s, as has %s", ip, twin, other)
		}
		seen[twin] = ip
		if diff := cmp.Diff(MAC(ip), MAC(twin)); diff != "" {
			t.Fatalf("MACs of %s and %s:\n%s", ip, twin, diff)
		}
	}
}

func TestIPv4(t *testing.T) {
	four, six := netip.MustParseAddr("172.11.0.5"), netip.MustParseAddr("fd00::5")
	for want, list := range map[netip.Addr][]netip.Addr{four: {six, four}, {}: {six}} {
		if got := IPv4(list); got != want {
			t.Errorf("of %v: %s, want %s", list, got, want)
		}
	}
}

func TestListed(t *testing.T) {
	for name, tc := range map[string]struct {
		first string
		list  []string
		want  []string
		wrong bool
	}{
		"none": {}, "one, as before the list": {first: "a", want: []string{"a"}}, "two": {"a", []string{"a", "b"}, []string{"a", "b"}, false},
		"the first was changed": {"c", []string{"a", "b"}, nil, true}, "a list of nobody": {"", []string{"a"}, nil, true},
	} {
		got, err := Unlisted(tc.first, tc.list)
		if diff := cmp.Diff(tc.want, got); diff != "" || (err != nil) != tc.wrong {
			t.Errorf("%s: %v\n%s", name, err, diff)
		}
		if diff := cmp.Diff(tc.list, Listed(got)); diff != "" && !tc.wrong {
			t.Errorf("%s, written again:\n%s", name, diff)
		}
	}
}
