package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/k8s-ovs/k8s-ovs/pkg/service"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// Input is what the meaning of policies on one node follows from, besides the policies.
type Input struct {
	// Subjects are the pods of the node. Others are only peers. Their ports do not count:
	// those of a set of [Policy.Sets] do.
	Subjects []Pod
	// Members are what is known of a set of [Policy.Sets] or [ClusterPolicy.Sets], and
	// whether that is all of it. Who is not known yet is not allowed anything, and what a
	// ClusterNetworkPolicy denies to some of them it denies to all whom the set may have.
	Members func(Set) (members []Member, whole bool)
	// Selects says whether the subject of a ClusterNetworkPolicy has pods of a namespace.
	// It may be nil where there are none.
	Selects func(p ClusterPolicy, namespace string) bool
	// Doubt says that nobody knows whether a ClusterNetworkPolicy is about a pod: then it
	// accepts nothing of it, and denies what it would deny or pass. It may be nil for never.
	Doubt func(p ClusterPolicy, pod Pod) bool
	// NoSCTPPorts says that the node's datapath does not know ports of SCTP, and matches nothing
	// by them: what a ClusterNetworkPolicy denies by some it denies for all of SCTP.
	NoSCTPPorts bool
	// Network is the cluster network, Nodes are all that have a subnet, Own is this one.
	Network netip.Prefix
	Nodes   []topology.Node
	Own     topology.Node
}

// Compiled is what policies come to on one node: what its flows are made of, and what
// [Compiled.Verdict] asks. Lists are sorted, and without doubles.
//
// What several NetworkPolicies come to is what each comes to alone, together: whoever keeps
// that needs to compile a policy only when it, its subjects or its sets have changed. Of
// ClusterNetworkPolicies that is not so, since levels are an order among all of them.
type Compiled struct {
	Ingress, Egress Table
	// Own are this node's addresses, which NetworkPolicy cannot cut its pods from.
	Own []netip.Addr
	// Network is the cluster network, and NodeAddresses are those in it that are nodes': the
	// first of a subnet, by which a node reaches pods, and the last, by which it forwards
	// what it masquerades. All others may be pods'.
	Network       netip.Prefix
	NodeAddresses []netip.Addr
	// TooLarge are the NetworkPolicies that come to more than one may ([OfPolicy], [MostFlows]).
	// They isolate, and allow nothing.
	TooLarge []Key
}

// Table is one direction.
type Table struct {
	// Isolated are the subjects that may do only what is allowed.
	Isolated []netip.Addr
	Allows   []Allow
	// Admin and Baseline are what ClusterNetworkPolicies say in these tiers, before and
	// after NetworkPolicies: in the order of their levels.
	Admin, Baseline []Decision
}

// Allow lets every one of some subjects and every one of some peers meet on some ports.
type Allow struct {
	// Name is the same for the same peers and ports, and does not change when pods come and
	// go: peers are named by what chooses them. No other of its list has it.
	Name     string
	Subjects []netip.Addr
	Peers    Peers
	// AnyPort is every protocol and port; else those of Ports.
	AnyPort bool
	Ports   []PortRange
	// Policies say so.
	Policies []Key
}

// Decision is what becomes of packets that an [Allow] would allow. Of those that have a
// packet, the one with the lowest level decides.
type Decision struct {
	// Level counts from 0. All decisions of one level have the same action, so that there
	// is no order among them. With the level, Name is no other's.
	Level  int
	Action Action
	Allow
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

// Compiler puts addresses in the places of sets and blocks, each once however many rules
// name it. It serves one pass: what it was given must not change meanwhile.
type Compiler struct {
	in     Input
	place  Compiled // without rules
	blocks map[string][]netip.Prefix
	known  map[string]Peers
}

// NewCompiler takes what the meaning of policies follows from.
func NewCompiler(in Input) *Compiler {
	c := &Compiler{in, Compiled{Network: in.Network, Own: ownAddresses(in.Own)}, map[string][]netip.Prefix{}, map[string]Peers{}}
	for _, n := range in.Nodes {
		c.place.NodeAddresses = append(c.place.NodeAddresses, inNetwork(n)...)
	}
	c.place.NodeAddresses = sorted(c.place.NodeAddresses, netip.Addr.Compare)
	return c
}

// Compile is what policies come to. It takes time by the size of what they are about. Of
// ClusterNetworkPolicies it needs all at once, or none.
func (c *Compiler) Compile(policies []Policy, cluster []ClusterPolicy) Compiled {
	out := c.place
	ingress, egress := newTables(), newTables()
	for _, p := range policies {
		subjects := p.subjects(c.in.Subjects)
		if len(subjects) == 0 {
			continue
		}
		ingress.isolate(p.Ingress, subjects)
		egress.isolate(p.Egress, subjects)
		in, eg, fits := c.rules(p, subjects)
		if !fits {
			out.TooLarge = append(out.TooLarge, p.Key)
			continue
		}
		ingress.take(in)
		egress.take(eg)
	}
	out.Ingress, out.Egress = ingress.table(), egress.table()
	c.cluster(&out, cluster)
	return out
}

// subjects are those of pods that the policy is about.
func (p Policy) subjects(pods []Pod) []Pod {
	matches := p.Subject.Matcher()
	var out []Pod
	for _, pod := range pods {
		if pod.Namespace == p.Namespace && matches(pod.Labels) {
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

// inNetwork are the addresses of a node in the cluster network, which no pod ever has. Policies
// are about those of IPv4.
func inNetwork(n topology.Node) []netip.Addr {
	return slices.DeleteFunc(slices.Concat(n.Gateways(), n.Forwarders()), func(a netip.Addr) bool { return !a.Is4() })
}

// adder takes an Allow without its name, and that of its peers.
type adder func(peers string, a Allow)

// ingress adds what a rule says of reaching its subjects, which are those of all that are
// on this node. A named port is the subject's.
func (c *Compiler) ingress(add adder, by Key, all Set, subjects []Pod, r Rule) {
	name, peers := c.peers(r)
	to := addresses(subjects)
	if r.AnyPort {
		add(name, Allow{Subjects: to, Peers: peers, AnyPort: true, Policies: []Key{by}})
		return
	}
	add(name, Allow{Subjects: to, Peers: peers, Ports: numbered(r.Ports), Policies: []Key{by}})
	here := map[netip.Addr]bool{}
	if slices.ContainsFunc(r.Ports, func(p Port) bool { return p.Name != "" }) {
		for _, a := range to {
			here[a] = true
		}
	}
	for _, port := range r.Ports {
		if port.Name == "" {
			continue
		}
		byNumber := map[uint16][]netip.Addr{}
		members, _ := c.in.Members(all.with(port.Name))
		for _, m := range members {
			if !here[m.Address] {
				continue
			}
			for _, n := range m.numbers(port) {
				byNumber[n] = append(byNumber[n], m.Address)
			}
		}
		for n, these := range byNumber {
			add(name, Allow{Subjects: these, Peers: peers, Ports: []PortRange{{port.Protocol, n, n}}, Policies: []Key{by}})
		}
	}
}

// egress adds what a rule says of what its subjects reach. A named port is the peer's.
func (c *Compiler) egress(add adder, by Key, subjects []Pod, r Rule) {
	name, peers := c.peers(r)
	from := addresses(subjects)
	if r.AnyPort {
		add(name, Allow{Subjects: from, Peers: peers, AnyPort: true, Policies: []Key{by}})
		return
	}
	add(name, Allow{Subjects: from, Peers: peers, Ports: numbered(r.Ports), Policies: []Key{by}})
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
			add(name+" with "+port.Name, Allow{Subjects: from, Peers: these, Ports: []PortRange{{port.Protocol, n, n}}, Policies: []Key{by}})
		}
	}
}

// named are the peers of a rule that may have a port of that name.
func (c *Compiler) named(r Rule, port Port) []Member {
	var out []Member
	all := func(chosen func(netip.Addr) bool) {
		members, _ := c.in.Members(Set{}.with(port.Name))
		for _, m := range members {
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
			block := c.block(p)
			all(func(a netip.Addr) bool { return anyHas(block, a) })
		case p.Set.AllPods():
			all(func(netip.Addr) bool { return true })
		default:
			members, _ := c.in.Members(*p.Set)
			out = append(out, members...)
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
func (c *Compiler) peers(r Rule) (name string, peers Peers) {
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
			peers.Prefixes = append(peers.Prefixes, c.members(*p.Set)...)
		}
	}
	peers.Prefixes = sorted(peers.Prefixes, comparePrefixes)
	c.known[name] = peers
	return name, peers
}

// members are the addresses of a set; of a node's they are all, as in a block.
func (c *Compiler) members(s Set) []netip.Prefix {
	var out []netip.Prefix
	members, _ := c.in.Members(s)
	for _, m := range members {
		out = append(out, host(m.Address))
	}
	if !s.OfNodes {
		return out
	}
	are := map[netip.Addr]bool{}
	for _, m := range members {
		are[m.Address] = true
	}
	for _, n := range c.in.Nodes {
		if are[n.HostIP] {
			for _, a := range inNetwork(n) {
				out = append(out, host(a))
			}
		}
	}
	return out
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

// allow adds one.
func (t *tables) allow(peers string, a Allow) {
	if a.empty() {
		return
	}
	a.Name = a.name(peers)
	if same := t.allows[a.Name]; same != nil {
		same.join(a)
		return
	}
	t.allows[a.Name] = &a
}

// take takes in what another one has gathered.
func (t *tables) take(from *tables) {
	for name, a := range from.allows {
		if same := t.allows[name]; same != nil {
			same.join(*a)
		} else {
			t.allows[name] = a
		}
	}
}

// name is that of an Allow whose peers have a name.
func (a Allow) name(peers string) string { return fmt.Sprint(peers, " on ", a.Ports) }

// empty reports whether no packet can be meant.
func (a Allow) empty() bool {
	nobody := !a.Peers.Any && !a.Peers.Pods && len(a.Peers.Prefixes) == 0
	return nobody || !a.AnyPort && len(a.Ports) == 0
}

// join takes in another one with the same peers and ports.
func (a *Allow) join(b Allow) {
	a.Subjects = append(a.Subjects, b.Subjects...)
	a.Policies = append(a.Policies, b.Policies...)
}

// inOrder is the Allow as it leaves the compiler.
func (a Allow) inOrder() Allow {
	a.Subjects = sorted(a.Subjects, netip.Addr.Compare)
	a.Policies = sorted(a.Policies, Key.Compare)
	return a
}

// table is the whole, in an order that follows from what is in it.
func (t *tables) table() Table {
	out := Table{Isolated: slices.SortedFunc(maps.Keys(t.isolated), netip.Addr.Compare)}
	for _, name := range slices.Sorted(maps.Keys(t.allows)) {
		out.Allows = append(out.Allows, t.allows[name].inOrder())
	}
	return out
}
