package policy

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// plainBlock is what a block means, prefix by prefix: each exception cuts what it overlaps in halves.
func plainBlock(nodes []topology.Node, p Peer) []netip.Prefix {
	var out []netip.Prefix
	if p.Block.Addr().Is4() {
		out = []netip.Prefix{p.Block}
	}
	for _, e := range p.Except {
		out = plainWithout(out, e)
	}
	var more []netip.Prefix
	for _, n := range nodes {
		for _, a := range inNetwork(n) {
			switch {
			case contains(out, n.HostIP):
				if !contains(out, a) {
					more = append(more, host(a))
				}
			case contains(p.Except, n.HostIP):
				out = plainWithout(out, host(a))
			}
		}
	}
	return sorted(append(out, more...), comparePrefixes)
}

func plainWithout(list []netip.Prefix, e netip.Prefix) (out []netip.Prefix) {
	for _, p := range list {
		switch {
		case !p.Overlaps(e):
			out = append(out, p)
		case e.Bits() > p.Bits():
			low, high := p.Masked().Addr(), p.Masked().Addr().As4()
			high[p.Bits()/8] |= 0x80 >> (p.Bits() % 8)
			halves := []netip.Prefix{netip.PrefixFrom(low, p.Bits()+1), netip.PrefixFrom(netip.AddrFrom4(high), p.Bits()+1)}
			out = append(out, plainWithout(halves, e)...)
		}
	}
	return out
}

var samePrefix = cmpopts.EquateComparable(netip.Prefix{})

// TestBlockIsPlain: what random blocks come to is what each exception leaves.
func TestBlockIsPlain(t *testing.T) {
	in := input(nil)
	near := []string{"0.0.0.0/0", "172.11.0.0/16", "198.18.0.0/24", "255.255.255.0/24", "0.0.0.0/24"}
	random := rand.New(rand.NewPCG(1, 2))
	prefix := func(within netip.Prefix) netip.Prefix {
		n := numberOf(within.Addr()) + random.Uint64N(1<<(32-within.Bits()))
		bits := within.Bits() + random.IntN(33-within.Bits())
		return netip.PrefixFrom(addressOf(n), bits).Masked()
	}
	for i := range 3000 {
		p := Peer{Block: netip.MustParsePrefix(near[random.IntN(len(near))])}
		if random.IntN(3) == 0 {
			p.Block = prefix(p.Block)
		}
		for range random.IntN(12) {
			switch random.IntN(8) {
			case 0:
				p.Except = append(p.Except, prefix(netip.MustParsePrefix(near[random.IntN(len(near))])))
			case 1:
				p.Except = append(p.Except, host(in.Nodes[random.IntN(len(in.Nodes))].HostIP))
			case 2:
				p.Except = append(p.Except, netip.MustParsePrefix("fd00::/8"))
			default:
				p.Except = append(p.Except, prefix(p.Block))
			}
		}
		c := NewCompiler(in)
		want, got := plainBlock(in.Nodes, p), c.block(p)
		if diff := cmp.Diff(want, got, samePrefix, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("%d: %v (-want +got):\n%s", i, p, diff)
		}
		for range 20 {
			a := prefix(p.Block).Addr()
			if anyHas(got, a) != contains(want, a) {
				t.Fatalf("%d: %v: %v is in it: %t", i, p, a, !contains(want, a))
			}
		}
	}
}

// scattered are exceptions, each far from all others.
func scattered(n int) (out []netip.Prefix) {
	for i := range uint32(n) {
		out = append(out, host(netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, i*2654435761)))))
	}
	return out
}

// largePolicy allows web to send to all but so many addresses.
func largePolicy(name string, except int) Policy {
	all := Peer{Block: netip.MustParsePrefix("0.0.0.0/0"), Except: scattered(except)}
	return Policy{Key: Key{"shop", name}, Subject: "app=web", Egress: Side{Isolates: true, Rules: []Rule{{Peers: []Peer{all}, AnyPort: true}}}}
}

// TestTooLarge: a policy that comes to more than one may isolates and allows nothing, and others go on.
func TestTooLarge(t *testing.T) {
	const each = 1 << 14
	in := input(func(Set) ([]Member, bool) { return membersFrom(1<<24, each), true })
	small := largePolicy("small", 100)
	rules := func(n int, r func(i int) Rule) Policy {
		p := Policy{Key: Key{"shop", "large"}, Subject: "app=web", Egress: Side{Isolates: true}}
		for i := range n {
			p.Egress.Rules = append(p.Egress.Rules, r(i))
		}
		return p
	}
	port := func(i int) []Port { return []Port{{Protocol: 6, First: uint16(i + 1), Last: uint16(i + 1)}} }
	set := Set{Namespaces: "team=a"}
	for name, test := range map[string]struct {
		policy Policy
		large  bool
	}{
		"exceptions":         {largePolicy("large", 30000), true},
		"ranges of ports":    {rules(MostWritten/30+1, func(int) Rule { return Rule{AnyPeer: true, Ports: []Port{{Protocol: 6, First: 1, Last: 65534}}} }), true},
		"as many as may be":  {rules(MostWritten/30, func(int) Rule { return Rule{AnyPeer: true, Ports: []Port{{Protocol: 6, First: 1, Last: 65534}}} }), false},
		"members, each rule": {rules(MostFlows/each, func(i int) Rule { return Rule{Peers: []Peer{{Set: &set}}, Ports: port(i)} }), true},
		"members":            {rules(MostFlows/each-1, func(i int) Rule { return Rule{Peers: []Peer{{Set: &set}}, Ports: port(i)} }), false},
	} {
		c := NewCompiler(in).Compile([]Policy{test.policy, small}, nil)
		if got := slices.Contains(c.TooLarge, test.policy.Key); got != test.large || len(c.TooLarge) > 1 {
			t.Errorf("%s: too large: %v", name, c.TooLarge)
		}
		if len(c.Egress.Isolated) != 1 {
			t.Errorf("%s: %v are isolated", name, c.Egress.Isolated)
		}
		by := map[Key]bool{}
		for _, a := range c.Egress.Allows {
			for _, p := range a.Policies {
				by[p] = true
			}
		}
		if !by[small.Key] || by[test.policy.Key] == test.large {
			t.Errorf("%s: these allow something: %v", name, by)
		}
	}
}

// membersFrom are so many, from an address on.
func membersFrom(first uint64, n int) (out []Member) {
	for i := range n {
		out = append(out, Member{Address: addressOf(first + uint64(i))})
	}
	return out
}

// TestAdmittedFits: what the leader has in force no node closes, in a cluster of 10,000 pods and 1,000
// nodes with 250 pods of the policy.
func TestAdmittedFits(t *testing.T) {
	all := membersFrom(numberOf(netip.MustParseAddr("172.16.0.0")), 10_000)
	in := Input{Network: netip.MustParsePrefix("172.16.0.0/12"), Members: func(Set) ([]Member, bool) { return all, true }}
	for i := range 1000 {
		n := topology.Node{Host: fmt.Sprint(i), HostIP: addressOf(numberOf(netip.MustParseAddr("198.18.0.1")) + uint64(i))}
		n.Subnet = netip.PrefixFrom(addressOf(numberOf(netip.MustParseAddr("172.20.0.0"))+uint64(i)<<8), 24)
		in.Nodes = append(in.Nodes, n)
	}
	for i := range 250 {
		in.Subjects = append(in.Subjects, Pod{Key: Key{"shop", fmt.Sprint(i)}, Labels: map[string]string{"app": "web"}, Member: all[i]})
	}
	rules := func(n int, r func(i int) Rule) Policy {
		p := Policy{Key: Key{"shop", "p"}, Subject: "app=web", Ingress: Side{Isolates: true}}
		for i := range n {
			r := r(i)
			r.Ports = append(r.Ports, Port{Protocol: 6, First: uint16(i + 1), Last: uint16(i + 1)})
			p.Ingress.Rules = append(p.Ingress.Rules, r)
		}
		return p
	}
	alone := func(i int) Peer { return Peer{Block: host(addressOf(1<<24 + uint64(i)))} }
	set := func(i int) Peer { return Peer{Set: &Set{Namespace: "shop", Pods: Selector(fmt.Sprint("app=", i))}} }
	nodes := Peer{Block: netip.MustParsePrefix("198.18.0.0/15")}
	for name, p := range map[string]Policy{
		"the nodes' network in 9 rules":             rules(9, func(int) Rule { return Rule{Peers: []Peer{nodes}} }),
		"2,100 rules of a block":                    rules(2100, func(i int) Rule { return Rule{Peers: []Peer{alone(i)}} }),
		"27 rules for all pods, by one selector":    rules(27, func(int) Rule { return Rule{Peers: []Peer{set(0)}} }),
		"as many rules, blocks and ports as may be": rules(MostWritten, func(i int) Rule { return Rule{Peers: []Peer{alone(i)}} }),
		"and as many sets of all pods": rules(MostWritten, func(i int) Rule {
			if i < OfPolicy.Sets {
				return Rule{Peers: []Peer{set(i)}}
			}
			return Rule{Peers: []Peer{alone(i)}}
		}),
	} {
		if e := p.Extent(); OfPolicy.Exceeded(len(e.Sets), e) != "" {
			t.Fatalf("%s: the leader closes it", name)
		}
		read := FromRecord(p.Key, p.Record())
		if c := NewCompiler(in).Compile([]Policy{read}, nil); len(c.TooLarge) > 0 || len(c.Ingress.Allows) != len(p.Ingress.Rules) {
			t.Errorf("%s: a node closes it: %v; %d rules", name, c.TooLarge, len(c.Ingress.Allows))
		}
	}
}

// TestReachBounded: where one pod's way past the switch would come to too much, or all pods' together
// do, those that need most are closed, and the others go on.
func TestReachBounded(t *testing.T) {
	in := input(nil)
	compiled := NewCompiler(in).Compile(nil, nil)
	isolated := map[netip.Addr]bool{}
	pod := func(i int) netip.Addr { return addressOf(numberOf(netip.MustParseAddr("172.11.0.2")) + uint64(i)) }
	allow := func(i int, prefixes []netip.Prefix, anys int) {
		isolated[pod(i)] = true
		a := Allow{Name: fmt.Sprint(i), Subjects: []netip.Addr{pod(i)}, AnyPort: true, Peers: Peers{Prefixes: sorted(prefixes, comparePrefixes)}}
		compiled.Egress.Allows = append(compiled.Egress.Allows, a)
		for n := range anys {
			a := Allow{Name: fmt.Sprint(i, n), Subjects: []netip.Addr{pod(i)}, Peers: Peers{Any: true}, Ports: []PortRange{{6, uint16(2 * n), uint16(2 * n)}}}
			compiled.Egress.Allows = append(compiled.Egress.Allows, a)
		}
	}
	want := []netip.Addr{pod(0), pod(1), pod(3)}
	allow(0, scattered(MostReach), 0)
	allow(1, scattered(2), 20000) // each of many rules is about each address
	allow(2, scattered(10), 50)
	allow(3, nil, 200) // each of its blocks has other ports, and these besides
	for n, p := range scattered(300) {
		compiled.Egress.Allows = append(compiled.Egress.Allows, Allow{Name: p.String(), Subjects: []netip.Addr{pod(3)}, Ports: []PortRange{{6, uint16(1000 + 2*n), uint16(1000 + 2*n)}}, Peers: Peers{Prefixes: []netip.Prefix{p}}})
	}
	const each = 7000 // twice as many spans
	fit := 0
	for i := 4; i < 30; i++ {
		allow(i, scattered(each+i), 0)
		if fit += 2 * (each + i); fit > MostReachOfNode-1000 {
			want = append(want, pod(i))
		}
	}
	reaches, closed := compiled.Reaches(isolated)
	if diff := cmp.Diff(want, closed, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("these are closed (-want +got):\n%s", diff)
	}
	for a := range isolated {
		there := scattered(3)[2].Addr()
		open := !slices.Contains(closed, a)
		if got := reaches[a].Lets(Packet{Src: a, Dst: there, Protocol: 6, DstPort: 443}); a != pod(1) && a != pod(3) && got != open {
			t.Errorf("%v reaches what a policy allows: %t, want %t", a, got, open)
		}
		if !reaches[a].Lets(Packet{Src: a, Dst: in.Own.HostIP, Protocol: 6, DstPort: 443}) {
			t.Errorf("%v does not reach its node", a)
		}
	}
}

// BenchmarkBlock is 30,000 exceptions far from each other.
func BenchmarkBlock(b *testing.B) {
	in := input(nil)
	p := Peer{Block: netip.MustParsePrefix("0.0.0.0/0"), Except: scattered(30000)}
	b.Run("counted", func(b *testing.B) {
		for b.Loop() {
			p.extent()
		}
	})
	b.Run("made", func(b *testing.B) {
		for b.Loop() {
			NewCompiler(in).block(p)
		}
	})
	b.Run("plain, of 1,000", func(b *testing.B) {
		some := Peer{Block: p.Block, Except: p.Except[:1000]}
		for b.Loop() {
			plainBlock(in.Nodes, some)
		}
	})
}

// BenchmarkNamedPorts is as many names of ports as one policy may look up at its pods, at 10,000 members of which
// 100 are subjects here.
func BenchmarkNamedPorts(b *testing.B) {
	all := membersFrom(1<<24, 10_000)
	p := Policy{Key: Key{"shop", "p"}, Ingress: Side{Isolates: true, Rules: []Rule{{AnyPeer: true}}}}
	in := input(func(Set) ([]Member, bool) { return all, true })
	in.Subjects = nil
	for _, m := range all[:100] {
		in.Subjects = append(in.Subjects, Pod{Key: p.Key, Member: m})
	}
	for i := range OfPolicy.Sets {
		p.Ingress.Rules[0].Ports = append(p.Ingress.Rules[0].Ports, Port{Protocol: 6, Name: fmt.Sprint("p", i)})
	}
	for b.Loop() {
		if c := NewCompiler(in).Compile([]Policy{p}, nil); len(c.TooLarge) > 0 {
			b.Fatal("it is too large")
		}
	}
}

// TestNodesOwn: policies know a node by the addresses that topology says it has in IPv4, with a second subnet or without.
func TestNodesOwn(t *testing.T) {
	n := topology.Node{HostIP: netip.MustParseAddr("198.18.0.1"), Subnet: netip.MustParsePrefix("172.11.4.0/22")}
	want := []netip.Addr{n.Gateways()[0], n.Forwarders()[0]}
	both := n
	both.Subnets = []netip.Prefix{n.Subnet, netip.MustParsePrefix("fd00:1:2:3::/64")}
	for _, n := range []topology.Node{n, both} {
		if got := inNetwork(n); !slices.Equal(got, want) {
			t.Errorf("subnets %v: %v, want %v", n.PodSubnets(), got, want)
		}
	}
	if got := inNetwork(topology.Node{}); len(got) > 0 {
		t.Errorf("without a subnet: %v", got)
	}
}
