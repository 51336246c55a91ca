package policy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/k8s-ovs/k8s-ovs/pkg/service"
)

// judgeReach checks that a packet whose end is past the switch is reached as its Verdict says; others
// are reached whatever that is.
func judgeReach(t *testing.T, c Compiled, p Packet) {
	t.Helper()
	_, isolates := slices.BinarySearchFunc(c.Egress.Isolated, p.Src, netip.Addr.Compare)
	reaches, _ := c.Outside().Reaches(map[netip.Addr]bool{p.Src: isolates})
	reach := reaches[p.Src]
	judged := !c.Network.Contains(p.Dst) || slices.Contains(c.Own, p.Dst)
	want := !judged || c.may(c.Egress, p.Src, p.Dst, p)
	if got := reach.Lets(p); got != want {
		t.Errorf("%v>%v %d %d is reached: %t, want %t; %+v", p.Src, p.Dst, p.Protocol, p.DstPort, got, want, reach)
	}
	if reach.All() && !want {
		t.Errorf("%v reaches everything, but not %v", p.Src, p.Dst)
	}
}

// TestReach: what random policies let pods reach, at the edges of all that they name, is their verdict.
func TestReach(t *testing.T) {
	reached := map[bool]int{}
	for seed := range uint64(800) {
		random := rand.New(rand.NewPCG(seed, 0))
		c := NewCompiler(input(func(s Set) ([]Member, bool) {
			if s.OfNodes {
				return []Member{{Address: nodes[1].HostIP}}, true
			}
			return []Member{{Address: addr(who["till"]), Ports: []NamedPort{{"http", service.TCP, 80}}}}, true
		})).Compile(randomBlocks(random), randomClusterBlocks(random))
		isolated := map[netip.Addr]bool{}
		for _, p := range pods {
			_, isolated[p.Address] = slices.BinarySearchFunc(c.Egress.Isolated, p.Address, netip.Addr.Compare)
		}
		reaches, _ := c.Outside().Reaches(isolated)
		for range 60 {
			p := Packet{Src: pods[random.IntN(len(pods))].Address, Dst: edgeAddress(random), Protocol: []uint8{1, 6, 6, 17, 132, 47}[random.IntN(6)], DstPort: []uint16{0, 1, 52, 53, 54, 79, 80, 81, 90, 91, 65534, 65535}[random.IntN(12)]}
			want := !(c.Network.Contains(p.Dst) && !slices.Contains(c.Own, p.Dst)) && !c.may(c.Egress, p.Src, p.Dst, p)
			got := !reaches[p.Src].Lets(p)
			if got != want {
				t.Fatalf("seed %d: %+v is denied: %t, want %t; %+v", seed, p, got, want, reaches[p.Src])
			}
			reached[got]++
		}
		for s, r := range reaches {
			checkCovers(t, seed, s, r)
		}
	}
	if reached[true] < 5000 || reached[false] < 5000 {
		t.Errorf("too few were denied, or let through: %v", reached)
	}
}

// checkCovers checks that a Reach is all of IPv4, in order, and no neighbours are the same.
func checkCovers(t *testing.T, seed uint64, s netip.Addr, r Reach) {
	t.Helper()
	next := netip.IPv4Unspecified()
	for i, span := range r {
		if span.First != next || span.Last.Less(span.First) || i > 0 && r[i-1].Ports.equal(span.Ports) {
			t.Fatalf("seed %d: %v: span %d is %+v behind %+v", seed, s, i, span, r[:i])
		}
		next = span.Last.Next()
	}
	if r[len(r)-1].Last != netip.MustParseAddr("255.255.255.255") {
		t.Fatalf("seed %d: %v: it ends with %v", seed, s, r[len(r)-1].Last)
	}
}

// blocks meet at their edges, and with nodes.
var blocks = []string{"0.0.0.0/0", "198.18.0.0/24", "198.18.0.1/32", "198.18.0.2/32", "203.0.113.0/24", "203.0.113.9/32", "203.0.113.128/25", "255.255.255.255/32", "172.11.0.1/32", "172.0.0.0/8", "128.0.0.0/1"}

func edgeAddress(random *rand.Rand) netip.Addr {
	p := netip.MustParsePrefix(blocks[random.IntN(len(blocks))])
	first := numberOf(p.Addr())
	last := first + 1<<(32-p.Bits()) - 1
	return addressOf([]uint64{first - 1, first, (first + last) / 2, last, last + 1}[random.IntN(5)])
}

func randomBlocks(random *rand.Rand) (out []Policy) {
	for i := range random.IntN(4) {
		p := Policy{Key: Key{"shop", fmt.Sprint("p", i)}, Subject: []Selector{"", "app=web", "app=db"}[random.IntN(3)]}
		p.Egress.Isolates = true
		for range random.IntN(4) {
			p.Egress.Rules = append(p.Egress.Rules, withBlocks(random))
		}
		out = append(out, p)
	}
	return out
}

func randomClusterBlocks(random *rand.Rand) (out []ClusterPolicy) {
	for i := range random.IntN(4) {
		p := ClusterPolicy{Name: fmt.Sprint("c", i), Baseline: random.IntN(2) == 0, Priority: random.Int32N(4)}
		p.Subject = []Set{{}, {Namespaces: "team=a"}, {Pods: "app=web"}}[random.IntN(3)]
		for range random.IntN(4) {
			p.Egress = append(p.Egress, ClusterRule{Action(random.IntN(3)), withBlocks(random)})
		}
		out = append(out, p)
	}
	return out
}

// withBlocks is a random rule about blocks besides.
func withBlocks(random *rand.Rand) Rule {
	r := randomRule(random)
	if r.AnyPeer = r.AnyPeer && random.IntN(3) == 0; r.AnyPeer {
		r.Peers = nil
	}
	for range random.IntN(3) {
		p := Peer{Block: netip.MustParsePrefix(blocks[random.IntN(len(blocks))])}
		if random.IntN(2) == 0 {
			p.Except = []netip.Prefix{netip.MustParsePrefix(blocks[random.IntN(len(blocks))])}
		}
		if !r.AnyPeer {
			r.Peers = append(r.Peers, p)
		}
	}
	if !r.AnyPort {
		r.Ports = append(r.Ports, Port{Protocol: service.TCP, First: 80, Last: 90})
	}
	return r
}

// TestOutside: what policies say of pods only is nothing that the way past the switch follows from.
func TestOutside(t *testing.T) {
	const inside = `{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}}, {ipBlock: {cidr: 172.11.7.0/24}}]}]}`
	c := compile(t, inside).Outside()
	if len(c.Egress.Allows) > 0 {
		t.Errorf("allows %+v", c.Egress.Allows)
	}
	c = compile(t, `{podSelector: {}, policyTypes: [Egress], egress: [{to: [{podSelector: {}}, {ipBlock: {cidr: 203.0.113.0/24}}], ports: [{port: 443, endPort: 445}]}]}`).Outside()
	web := addr(who["web"])
	reaches, _ := c.Reaches(map[netip.Addr]bool{web: true})
	got := reaches[web]
	span := func(first, last string, ports Ports) Span {
		return Span{netip.MustParseAddr(first), netip.MustParseAddr(last), ports}
	}
	want := Reach{
		span("0.0.0.0", "172.10.255.255", Ports{}),
		span("172.11.0.0", "172.11.255.255", everyPort()),
		span("172.12.0.0", "198.18.0.0", Ports{}),
		span("198.18.0.1", "198.18.0.1", everyPort()),
		span("198.18.0.2", "203.0.112.255", Ports{}),
		span("203.0.113.0", "203.0.113.255", Ports{Ranges: []PortRange{{service.TCP, 443, 445}}}),
		span("203.0.114.0", "255.255.255.255", Ports{}),
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// BenchmarkReaches is 10,000 rules about blocks for 250 pods, of which each tenth is selected alike.
func BenchmarkReaches(b *testing.B) {
	c := Compiled{Network: netip.MustParsePrefix("172.11.0.0/16"), Own: []netip.Addr{netip.MustParseAddr("172.11.0.1"), netip.MustParseAddr("198.18.0.1")}}
	isolated := map[netip.Addr]bool{}
	for i := range 10000 {
		a := Allow{Name: fmt.Sprint(i), Peers: Peers{Prefixes: []netip.Prefix{netip.PrefixFrom(addressOf(uint64(i)<<12), 24)}}, Ports: []PortRange{{service.TCP, uint16(i % 100), uint16(i % 100)}}}
		for j := i % 10; j < 250; j += 10 {
			s := addressOf(172<<24 | 11<<16 | uint64(j+2))
			a.Subjects, isolated[s] = append(a.Subjects, s), true
		}
		c.Egress.Allows = append(c.Egress.Allows, a)
	}
	for b.Loop() {
		c.Reaches(isolated)
	}
}
