package policy

import (
	"cmp"
	"encoding/binary"
	"math"
	"net/netip"
	"slices"

	"github.com/k8s-ovs/k8s-ovs/pkg/service"
)

// Reach is what a pod may reach past the switch: by whatever address it asks, this is where its
// packets end. It covers all of IPv4, in order; neighbours differ.
type Reach []Span

// Span is addresses, First to Last, and what may be reached there.
type Span struct {
	First, Last netip.Addr
	Ports       Ports
}

// Ports are some of what an address has.
type Ports struct {
	// Ranges are ports of TCP, UDP and SCTP, in order and apart from each other.
	Ranges []PortRange
	// Others are all other protocols.
	Others bool
}

// withPorts are the protocols whose ports policies know, in order.
var withPorts = []service.Protocol{service.TCP, service.UDP, service.SCTP}

// All reports whether that is everything.
func (p Ports) All() bool {
	return p.Others && len(p.Ranges) == len(withPorts) && !slices.ContainsFunc(p.Ranges, func(r PortRange) bool { return r.First != 0 || r.Last != maxPort })
}

// None reports whether that is nothing.
func (p Ports) None() bool { return !p.Others && len(p.Ranges) == 0 }

func (p Ports) equal(q Ports) bool { return p.Others == q.Others && slices.Equal(p.Ranges, q.Ranges) }

// All reports whether a pod may reach everything.
func (r Reach) All() bool { return len(r) == 1 && r[0].Ports.All() }

// Lets reports whether a packet of the pod comes to where it ends.
func (r Reach) Lets(p Packet) bool {
	return slices.ContainsFunc(r, func(s Span) bool {
		return s.First.Compare(p.Dst) <= 0 && p.Dst.Compare(s.Last) <= 0 && s.Ports.has(p)
	})
}

func (p Ports) has(packet Packet) bool {
	if !slices.Contains(withPorts, service.Protocol(packet.Protocol)) {
		return p.Others
	}
	return Allow{Ports: p.Ranges}.has(packet)
}

// Outside is what c says of what pods send to addresses that are no pods', and no more. Two that say
// the same of that are equal.
func (c Compiled) Outside() Compiled {
	out := Compiled{Own: c.Own, Network: c.Network}
	for _, a := range c.Egress.Allows {
		if a, any := c.outside(a); any {
			out.Egress.Allows = append(out.Egress.Allows, a)
		}
	}
	out.Egress.Admin, out.Egress.Baseline = c.decisionsOutside(c.Egress.Admin), c.decisionsOutside(c.Egress.Baseline)
	return out
}

func (c Compiled) decisionsOutside(all []Decision) (out []Decision) {
	for _, d := range all {
		if a, any := c.outside(d.Allow); any {
			out = append(out, Decision{d.Level, d.Action, a})
		}
	}
	return out
}

// outside is a with those peers that are no pods; any is that there are some.
func (c Compiled) outside(a Allow) (_ Allow, any bool) {
	inside := func(p netip.Prefix) bool {
		return c.Network.Bits() <= p.Bits() && c.Network.Contains(p.Addr()) && !slices.ContainsFunc(c.Own, p.Contains)
	}
	a.Peers = Peers{Any: a.Peers.Any, Prefixes: slices.DeleteFunc(slices.Clone(a.Peers.Prefixes), inside)}
	return a, a.Peers.Any || len(a.Peers.Prefixes) > 0
}

// Reaches is what some subjects may reach past the switch, with whether NetworkPolicies isolate what
// each sends. It is what [Compiled.Verdict] says of it, but for addresses that may be pods': what
// goes there comes to the switch once more, and is judged there. Subjects of which policies say the
// same share one Reach. Of those in closed it would be more than the bounds ([MostReach],
// [MostReachOfNode]), or too much work to find out: they reach their own node, and nothing else past the
// switch. The same pods are closed whenever c says the same.
func (c Compiled) Reaches(isolated map[netip.Addr]bool) (reaches map[netip.Addr]Reach, closed []netip.Addr) {
	return c.reaches(isolated, mostStepsOfNode)
}

func (c Compiled) reaches(isolated map[netip.Addr]bool, most steps) (reaches map[netip.Addr]Reach, closed []netip.Addr) {
	rules := c.rulesOutside()
	classes := classesOf(rules, isolated)
	c.size(classes, rules, most)
	bound(classes)
	reaches, own := map[netip.Addr]Reach{}, c.closed()
	for _, k := range classes {
		reach := k.Reach
		if reach == nil {
			reach, closed = own, append(closed, k.pods...)
		}
		for _, s := range k.pods {
			reaches[s] = reach
		}
	}
	return reaches, sorted(closed, netip.Addr.Compare)
}

// The tiers, in the order in which they are asked.
const (
	adminTier = iota
	networkTier
	baselineTier
)

// outsideRule is one decision about what subjects send.
type outsideRule struct {
	tier   int
	action Action
	Allow
	subjects []netip.Addr
}

// rulesOutside are all of them, in the order in which they are asked.
func (c Compiled) rulesOutside() (out []outsideRule) {
	for _, d := range c.Egress.Admin {
		out = append(out, outsideRule{adminTier, d.Action, d.Allow, d.Subjects})
	}
	for _, a := range c.Egress.Allows {
		out = append(out, outsideRule{networkTier, Accept, a, a.Subjects})
	}
	for _, d := range c.Egress.Baseline {
		out = append(out, outsideRule{baselineTier, d.Action, d.Allow, d.Subjects})
	}
	return out
}

// last is what counts behind all rules: what is isolated reaches its own node, and others reach all.
func (c Compiled) last(isolated bool) []outsideRule {
	everything := Allow{Peers: Peers{Any: true}, AnyPort: true}
	if !isolated {
		return []outsideRule{{tier: baselineTier, action: Accept, Allow: everything}}
	}
	own := Allow{AnyPort: true}
	for _, a := range c.Own {
		own.Peers.Prefixes = append(own.Peers.Prefixes, host(a))
	}
	return []outsideRule{{tier: networkTier, action: Accept, Allow: own}, {tier: networkTier, action: Deny, Allow: everything}}
}

// edge is where some rule begins to be about addresses, or ends; at is an address as a number, up
// to one behind the last.
type edge struct {
	at   uint64
	rule int // -1 for none
	by   int
}

// reach is what rules say, address by address; without a Reach where that is more than [MostReach], or
// takes more steps than are left.
func (c Compiled) reach(rules []outsideRule, left *steps) sized {
	if !left.take(workOfEdges(rules)) {
		return sized{}
	}
	edges := c.edges(rules)
	var out Reach
	cost := 0
	known := map[string]Ports{}
	count := make([]int, len(rules))
	var active []int // the rules that are about the addresses from at on, in order
	var key []byte
	for i := 0; i < len(edges); {
		at := edges[i].at
		for ; i < len(edges) && edges[i].at == at; i++ {
			if e := edges[i]; e.rule >= 0 {
				active = toggle(active, count, e)
			}
		}
		if at > math.MaxUint32 {
			break
		}
		last := edges[i].at - 1 // all rules have an end
		if !left.take(len(active)) || cost > MostReach {
			return sized{}
		}
		ports := everyPort()
		if first := addressOf(at); !c.Network.Contains(first) || slices.Contains(c.Own, first) {
			key = keyOf(key[:0], active)
			var ok bool
			if ports, ok = known[string(key)]; !ok {
				if !left.take(workOf(rules, active)) {
					return sized{}
				}
				ports = portsOf(rules, active)
				known[string(key)] = ports
				cost += costOfPorts + len(ports.Ranges)
			}
		}
		if n := len(out); n > 0 && out[n-1].Ports.equal(ports) {
			out[n-1].Last = addressOf(last)
			continue
		}
		out, cost = append(out, Span{addressOf(at), addressOf(last), ports}), cost+costOfSpan
	}
	if cost > MostReach {
		return sized{}
	}
	return sized{out, cost}
}

// toggle is active where a rule counts once more, or less.
func toggle(active, count []int, e edge) []int {
	before := count[e.rule] > 0
	count[e.rule] += e.by
	i, _ := slices.BinarySearch(active, e.rule)
	switch now := count[e.rule] > 0; {
	case now && !before:
		return slices.Insert(active, i, e.rule)
	case before && !now:
		return slices.Delete(active, i, i+1)
	}
	return active
}

// edges are those of all rules, of the cluster network and of the node's own addresses, in order.
func (c Compiled) edges(rules []outsideRule) []edge {
	var out []edge
	add := func(p netip.Prefix, rule int) {
		first := numberOf(p.Masked().Addr())
		out = append(out, edge{first, rule, 1}, edge{first + 1<<(32-p.Bits()), rule, -1})
	}
	everywhere := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	add(everywhere, -1)
	add(c.Network, -1)
	for _, a := range c.Own {
		add(host(a), -1)
	}
	for i, r := range rules {
		if r.Peers.Any {
			add(everywhere, i)
			continue
		}
		for _, p := range r.Peers.Prefixes {
			add(p, i)
		}
	}
	slices.SortFunc(out, func(a, b edge) int { return cmp.Compare(a.at, b.at) })
	return out
}

// portsOf is what the active ones of rules let through.
func portsOf(rules []outsideRule, active []int) Ports {
	var out Ports
	for _, protocol := range withPorts {
		firsts := []int{0}
		for _, i := range active {
			for _, r := range rules[i].Ports {
				if r.Protocol == protocol {
					firsts = append(firsts, int(r.First), int(r.Last)+1)
				}
			}
		}
		firsts = sorted(firsts, cmp.Compare[int])
		for i, first := range firsts {
			last := maxPort
			if i+1 < len(firsts) {
				last = firsts[i+1] - 1
			}
			if first > maxPort || !lets(rules, active, Packet{Protocol: uint8(protocol), DstPort: uint16(first)}) {
				continue
			}
			if n := len(out.Ranges); n > 0 && out.Ranges[n-1].Protocol == protocol && int(out.Ranges[n-1].Last)+1 == first {
				out.Ranges[n-1].Last = uint16(last)
				continue
			}
			out.Ranges = append(out.Ranges, PortRange{protocol, uint16(first), uint16(last)})
		}
	}
	out.Others = lets(rules, active, Packet{})
	return out
}

// lets reports whether the active ones of rules let a packet through, by its protocol and port.
func lets(rules []outsideRule, active []int, p Packet) bool {
	tier := adminTier
	for _, i := range active {
		r := rules[i]
		if r.tier < tier || !r.has(p) {
			continue
		}
		if r.action != Pass {
			return r.action == Accept
		}
		tier = r.tier + 1 // the rest of its tier is not asked
	}
	return true
}

func everyPort() Ports {
	out := Ports{Others: true}
	for _, p := range withPorts {
		out.Ranges = append(out.Ranges, PortRange{p, 0, maxPort})
	}
	return out
}

func numberOf(a netip.Addr) uint64 {
	four := a.As4()
	return uint64(binary.BigEndian.Uint32(four[:]))
}

func addressOf(n uint64) netip.Addr {
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, uint32(n))))
}
