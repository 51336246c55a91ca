package policy

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/service"
)

// TestExtent: what a policy counts for.
func TestExtent(t *testing.T) {
	web, db := Set{Namespace: "shop", Pods: "app=web"}, Set{Namespaces: "team=a"}
	tcp := func(first, last uint16) Port { return Port{Protocol: service.TCP, First: first, Last: last} }
	block := Peer{Block: netip.MustParsePrefix("10.0.0.0/8"), Except: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("172.16.0.0/12")}}
	p := Policy{Key: Key{Namespace: "shop", Name: "p"}, Ingress: Side{Isolates: true, Rules: []Rule{
		{Peers: []Peer{{Set: &web}, {Set: &db}, block}, Ports: []Port{tcp(0, maxPort), tcp(1, maxPort-1), {Name: "http"}, {Name: "dns"}}},
		{AnyPeer: true, AnyPort: true},
	}}, Egress: Side{Isolates: true, Rules: []Rule{
		{AnyPeer: true, Ports: []Port{tcp(80, 80), {Name: "sql"}}},
		{Peers: []Peer{{Set: &web}}, AnyPort: true},
	}}}
	e := p.Extent()
	if len(e.Sets) != 5 { // web, db, the subjects with http and with dns, all with sql
		t.Errorf("sets: %v", e.Sets)
	}
	e.Sets = nil
	if diff := cmp.Diff(Extent{Peers: 1 + 1 + 8 + 1, Ports: 1 + 30 + 1 + 1 + 1, Names: 2*3 + 1}, e); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	c := ClusterPolicy{Name: "c", Ingress: []ClusterRule{{Deny, p.Ingress.Rules[0]}}}.Extent()
	c.Sets = nil
	if diff := cmp.Diff(Extent{Peers: 10, Ports: 31, Names: 6}, c); diff != "" {
		t.Errorf("ClusterNetworkPolicy (-want +got):\n%s", diff)
	}
}

// TestExtentOfBlocks: a block counts as many prefixes as it comes to.
func TestExtentOfBlocks(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 0))
	for range 300 {
		prefix := func(bits int) netip.Prefix {
			return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(random.IntN(2)), byte(random.IntN(256)), byte(random.IntN(256))}), bits).Masked()
		}
		p := Peer{Block: prefix(8 + random.IntN(10))}
		for range random.IntN(12) {
			p.Except = append(p.Except, prefix(8+random.IntN(25)))
		}
		want := max(1+len(p.Except), len(NewCompiler(Input{}).block(p)))
		if got := p.extent(); got != want {
			t.Fatalf("%v counts %d, comes to %d", p, got, want)
		}
	}
}

// TestExtentOfManyExcepts: what is left of a block is counted without making it.
func TestExtentOfManyExcepts(t *testing.T) {
	p := Peer{Block: netip.MustParsePrefix("0.0.0.0/0")}
	for i := range 30000 {
		n := uint32(i) * 2654435761
		p.Except = append(p.Except, netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}), 32))
	}
	if got := p.extent(); got < 400_000 {
		t.Errorf("30,000 scattered excepts leave %d prefixes", got)
	}
}

// TestMatches: a range counts as many masks as cover it, and no number twice.
func TestMatches(t *testing.T) {
	for r, want := range map[[2]int]int{{80, 80}: 1, {0, maxPort}: 1, {1, maxPort - 1}: 30, {80, 90}: 3, {1024, maxPort}: 6} {
		if got := matches([]PortRange{{First: uint16(r[0]), Last: uint16(r[1])}}); got != want {
			t.Errorf("%v comes to %d masks, want %d", r, got, want)
		}
	}
}
