package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/k8s-ovs/k8s-ovs/pkg/service"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// Input is what the policies come to on one node follows from.
type Input struct {
	Policies []Policy
	// Subjects are the pods of the node. Others are only peers.
	Subjects []Pod
	// Members are what is known of a set of [Policy.Sets]; who is not known yet is not
	// allowed anything.
	Members func(Set) []Member
	// Network is the cluster network, Nodes are all that have a subnet, Own is this one.
	Network netip.Prefix
	Nodes   []topology.Node
	Own     topology.Node
}

// Compiled is what policies come to on one node: what its flows are made of, and what
// [Compiled.Verdict] asks. Lists are sorted, and without doubles.
type Compiled struct {
	Ingress, Egress Table
	// Own are this node's addresses, which NetworkPolicy cannot cut its pods from.
	Own []netip.Addr
	// Network is the cluster network, and NodeAddresses are those in it that are nodes': the
	// first of a subnet, by which a node reaches pods, and the last, by which it forwards
	// what it masquerades. All others may be pods'.
	Network       netip.Prefix
	NodeAddresses []netip.Addr
}

// Table is one direction.
type Table struct {
	// Isolated are the subjects that may do only what is allowed.
	Isolated []netip.Addr
	Allows   []Allow
}

// Allow lets every one of some subjects and every one of some peers meet on some ports.
type Allow struct {
	// Name says which peers and ports these are. It stays the same while the members of sets,
	// and the subjects, change; no other of a direction has it.
	Name     string
	Subjects []netip.Addr
	Peers    Peers
	// AnyPort is every protocol and port; else those of Ports.
	AnyPort bool
	Ports   []PortRange
	// Policies say so.
	Policies []Key
}

// Peers are addresses.
type Peers struct {
	// Any is all, Pods is all pods; Prefixes are others besides.
	Any, Pods bool
	Prefixes  []netip.Prefix
}

// PortRange is ports of a protocol, First to Last.
type PortRange struct {
	Protocol    service.Protocol
	First, Last uint16
}

// Compile is what the policies come to. It takes time by the size of what it is given.
func Compile(in Input) Compiled {
	c := compiler{in, map[string][]netip.Prefix{}, map[string]Peers{}}
	ingress, egress := newTables(), newTables()
	for _, p := range in.Policies {
		subjects := p.subjects(in.Subjects)
		if len(subjects) == 0 {
			continue
		}
		ingress.isolate(p.Ingress, subjects)
		for _, r := range p.Ingress.Rules {
			c.ingress(ingress, p.Key, subjects, r)
		}
		egress.isolate(p.Egress, subjects)
		for _, r := range p.Egress.Rules {
			c.egress(egress, p.Key, subjects, r)
		}
	}
	out := Compiled{Ingress: ingress.table(), Egress: egress.table(), Network: in.Network, Own: ownAddresses(in.Own)}
	for _, n := range in.Nodes {
		out.NodeAddresses = append(out.NodeAddresses, inNetwork(n)...)
	}
	out.NodeAddresses = sorted(out.NodeAddresses, netip.Addr.Compare)
	return out
}

// subjects are those of pods that the policy is about. What cannot be read is about all of
// its namespace, and so closes.
func (p Policy) subjects(pods []Pod) []Pod {
	match, err := p.Subject.matcher()
	var out []Pod
	for _, pod := range pods {
		if pod.Namespace == p.Namespace && (err != nil || match.Matches(labels.Set(pod.Labels))) {
			out = append(out, pod)
		}
	}
	return out
}

// ownAddresses are those of a node that its pods can always reach, and that can always
// reach them.
func ownAddresses(n topology.Node) []netip.Addr {
	if !n.Ready() {
		return nil
	}
	return sorted([]netip.Addr{n.HostIP, n.Gateway()}, netip.Addr.Compare)
}

// inNetwork are the addresses of a node in the cluster network: the first and the last of
// its subnet, which no pod ever has.
func inNetwork(n topology.Node) []netip.Addr {
	if !n.Ready() {
		return nil
	}
	last := n.Subnet.Masked().Addr().As4()
	for bit := n.Subnet.Bits(); bit < 32; bit++ {
		last[bit/8] |= 0x80 >> (bit % 8)
	}
	return []netip.Addr{n.Gateway(), netip.AddrFrom4(last)}
}

// compiler puts members and addresses in the places of sets and blocks, each once however
// many rules name it.
type compiler struct {
	Input
	blocks map[string][]netip.Prefix
	known  map[string]Peers
}

// ingress adds what a rule allows to reach its subjects. A named port is the subject's.
func (c *compiler) ingress(t *tables, by Key, subjects []Pod, r Rule) {
	name, peers := c.peers(r)
	if r.AnyPort {
		t.allow(Allow{name, addresses(subjects), peers, true, nil, []Key{by}})
		return
	}
	t.allow(Allow{name, addresses(subjects), peers, false, numbered(r.Ports), []Key{by}})
	for _, port := range r.Ports {
		if port.Name == "" {
			continue
		}
		byNumber := map[uint16][]netip.Addr{}
		for _, s := range subjects {
			for _, n := range s.numbers(port) {
				byNumber[n] = append(byNumber[n], s.Address)
			}
		}
		for n, these := range byNumber {
			t.allow(Allow{name, these, peers, false, []PortRange{{port.Protocol, n, n}}, []Key{by}})
		}
	}
}

// egress adds what a rule allows its subjects to reach. A named port is the peer's.
func (c *compiler) egress(t *tables, by Key, subjects []Pod, r Rule) {
	name, peers := c.peers(r)
	from := addresses(subjects)
	if r.AnyPort {
		t.allow(Allow{name, from, peers, true, nil, []Key{by}})
		return
	}
	t.allow(Allow{name, from, peers, false, numbered(r.Ports), []Key{by}})
	for _, port := range r.Ports {
		if port.Name == "" {
			continue
		}
		byNumber := map[uint16][]netip.Prefix{}
		for _, m := range c.named(r, port) {
			for _, n := range m.numbers(port) {
				byNumber[n] = append(byNumber[n], host(m.Address))
			}
		}
		for n, prefixes := range byNumber {
			these := Peers{Prefixes: sorted(prefixes, comparePrefixes)}
			t.allow(Allow{name + " with " + port.Name, from, these, false, []PortRange{{port.Protocol, n, n}}, []Key{by}})
		}
	}
}

// named are the peers of a rule that may have a port of that name.
func (c *compiler) named(r Rule, port Port) []Member {
	var out []Member
	all := func(chosen func(netip.Addr) bool) {
		for _, m := range c.Members(Set{PortName: port.Name}) {
			if chosen(m.Address) {
				out = append(out, m)
			}
		}
	}
	if r.AnyPeer {
		all(func(netip.Addr) bool { return true })
	}
	for _, p := range r.Peers {
		switch {
		case p.Set == nil:
			all(func(a netip.Addr) bool {
				return slices.ContainsFunc(c.block(p), func(b netip.Prefix) bool { return b.Contains(a) })
			})
		case p.Set.AllPods():
			all(func(netip.Addr) bool { return true })
		default:
			out = append(out, c.Members(*p.Set)...)
		}
	}
	return out
}

// numbered are the ports that have no name.
func numbered(ports []Port) []PortRange {
	var out []PortRange
	for _, p := range ports {
		if p.Name == "" {
			out = append(out, PortRange{p.Protocol, p.First, p.Last})
		}
	}
	return sorted(out, comparePorts)
}

// peers are those of a rule, and a name for them: rules that name the same have the same.
func (c *compiler) peers(r Rule) (name string, peers Peers) {
	name = r.peersName()
	if known, ok := c.known[name]; ok {
		return name, known
	}
	if r.AnyPeer {
		peers.Any = true
	}
	for _, p := range r.Peers {
		switch {
		case p.Set == nil:
			peers.Prefixes = append(peers.Prefixes, c.block(p)...)
		case p.Set.AllPods():
			peers.Pods = true
		default:
			for _, m := range c.Members(*p.Set) {
				peers.Prefixes = append(peers.Prefixes, host(m.Address))
			}
		}
	}
	peers.Prefixes = sorted(peers.Prefixes, comparePrefixes)
	c.known[name] = peers
	return name, peers
}

// peersName is the same for the same peers, in whatever order.
func (r Rule) peersName() string {
	if r.AnyPeer {
		return "any"
	}
	var names []string
	for _, p := range r.Peers {
		names = append(names, p.String())
	}
	slices.Sort(names)
	return strings.Join(slices.Compact(names), " ")
}

// block are the addresses of a block without those excepted. A node sends to pods from an
// address of the cluster network, which therefore counts as the node's own: it is in a block
// that has either, unless the node's own is excepted. The overlay is IPv4; IPv6 is nobody's.
func (c *compiler) block(p Peer) []netip.Prefix {
	if known, ok := c.blocks[p.String()]; ok {
		return known
	}
	var out []netip.Prefix
	if p.Block.Addr().Is4() {
		out = []netip.Prefix{p.Block}
	}
	for _, e := range p.Except {
		out = without(out, e)
	}
	for _, n := range c.Nodes {
		for _, a := range inNetwork(n) {
			switch {
			case contains(out, n.HostIP):
				if !contains(out, a) {
					out = append(out, host(a))
				}
			case contains(p.Except, n.HostIP):
				out = without(out, host(a))
			}
		}
	}
	c.blocks[p.String()] = out
	return out
}

// without are the addresses of list that e has not.
func without(list []netip.Prefix, e netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range list {
		switch {
		case !p.Overlaps(e):
			out = append(out, p)
		case e.Bits() > p.Bits():
			out = append(out, without(halves(p), e)...)
		}
	}
	return out
}

// halves are the two parts of an IPv4 prefix shorter than 32 bits.
func halves(p netip.Prefix) []netip.Prefix {
	low, bits := p.Masked().Addr(), p.Bits()
	high := low.As4()
	high[bits/8] |= 0x80 >> (bits % 8)
	return []netip.Prefix{netip.PrefixFrom(low, bits+1), netip.PrefixFrom(netip.AddrFrom4(high), bits+1)}
}

func contains(list []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func addresses(pods []Pod) []netip.Addr {
	var out []netip.Addr
	for _, p := range pods {
		out = append(out, p.Address)
	}
	return out
}

// tables gathers one direction. Rules that have the same peers and ports are one.
type tables struct {
	isolated map[netip.Addr]bool
	allows   map[string]*Allow
}

func newTables() *tables {
	return &tables{isolated: map[netip.Addr]bool{}, allows: map[string]*Allow{}}
}

func (t *tables) isolate(s Side, subjects []Pod) {
	for _, p := range subjects {
		if s.Isolates {
			t.isolated[p.Address] = true
		}
	}
}

// allow adds one, of which only the peers have a name yet.
func (t *tables) allow(a Allow) {
	nobody := !a.Peers.Any && !a.Peers.Pods && len(a.Peers.Prefixes) == 0
	if nobody || !a.AnyPort && len(a.Ports) == 0 {
		return
	}
	a.Name = fmt.Sprint(a.Name, " on ", a.Ports)
	if same := t.allows[a.Name]; same != nil {
		same.Subjects = append(same.Subjects, a.Subjects...)
		same.Policies = append(same.Policies, a.Policies...)
		return
	}
	t.allows[a.Name] = &a
}

// table is the whole, in an order that follows from what is in it.
func (t *tables) table() Table {
	out := Table{Isolated: slices.SortedFunc(maps.Keys(t.isolated), netip.Addr.Compare)}
	for _, key := range slices.Sorted(maps.Keys(t.allows)) {
		a := *t.allows[key]
		a.Subjects = sorted(a.Subjects, netip.Addr.Compare)
		a.Policies = sorted(a.Policies, Key.Compare)
		out.Allows = append(out.Allows, a)
	}
	return out
}
