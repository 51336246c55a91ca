package hostnet

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"sigs.k8s.io/knftables"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// chain is a chain of the table with its rules: a base chain, unless it has no hook.
type chain struct {
	name     string
	kind     knftables.BaseChainType
	hook     knftables.BaseChainHook
	priority knftables.BaseChainPriority
	rules    []rule
}

// rule is a rule and what it is for. The purpose is part of the rule's comment.
type rule struct {
	match   []any
	purpose string
}

// maxComment bounds a comment: NFTNL_UDATA_COMMENT_MAXLEN of nft is 128 bytes
// with the final zero.
const maxComment = 127

// early is before what others do to packets that they have not seen yet: choose a zone of
// connection tracking, or none. It is after fragments were put together (-400).
const early knftables.BaseChainPriority = "-310"

// late is behind all that translates: what comes in, ipvs with 98 and 99 the last, and what
// goes out (100).
const late knftables.BaseChainPriority = "110"

// beforeOthers is before others that masquerade (kube-proxy, portmap: 100), as the first who
// translates a connection decides.
const beforeOthers knftables.BaseChainPriority = "99"

// masqueradeMarks are the bits by which kube-proxy (--iptables-masquerade-bit) and the plugin
// portmap mark what is to be masqueraded, unless told otherwise.
const masqueradeMarks uint32 = 0x4000 | 0x2000

// unmark is what they do to what they masquerade, so that it is not done to the tunnel's packet as
// well.
var unmark = fmt.Sprintf("meta mark set mark and %#x", ^masqueradeMarks)

// chains are the rules that spec asks for.
func chains(s Spec) []chain {
	dev := func(direction, op string) string { return fmt.Sprintf("%s %s%q", direction, op, s.Device) }
	in, notIn := dev("iifname", ""), dev("iifname", "!= ")
	out, notOut := dev("oifname", ""), dev("oifname", "!= ")

	raw := chain{name: "raw-prerouting", kind: knftables.FilterType, hook: knftables.PreroutingHook, priority: early}
	for _, d := range s.SwitchDevices {
		// AF_PACKET gives the userspace datapath a copy; the original goes on to
		// the node's own stack, which would answer twice, or route it past all flows.
		do := "counter drop"
		if !strings.HasSuffix(d, "*") {
			do = "jump " + uplink
		}
		raw.rules = append(raw.rules, rule{[]any{fmt.Sprintf("iifname %q", d), do}, "only the switch takes packets from " + d})
	}
	for _, d := range s.SwitchBridges {
		raw.rules = append(raw.rules, rule{[]any{fmt.Sprintf("iifname %q", d), "jump", uplinkUntracked}, "the switch has yet to take it, untranslated, from " + d})
	}

	// "ct state" also makes the kernel put fragments together before these hooks,
	// so a second fragment without ports cannot pass.
	forward := chain{name: "forward", kind: knftables.FilterType, hook: knftables.ForwardHook, priority: knftables.FilterPriority, rules: []rule{
		{[]any{in, "ct state { invalid, untracked } counter drop"}, "would leave with the pod's address: NAT does not apply"},
	}}
	but := ""
	if s.ServiceProxy != pipeline.NoServices {
		but = "ct status & dnat == 0" // ports of the node, see postrouting
	}
	forward.rules = append(forward.rules,
		rule{[]any{in, out, but, "counter drop"}, "pod to pod through the node has lost its tenant"},
		rule{[]any{notIn, out, "ct state { new, invalid, untracked } ct status & dnat == 0 counter drop"}, "hosts outside may not route into pods"})

	input := chain{name: "input", kind: knftables.FilterType, hook: knftables.InputHook, priority: knftables.FilterPriority}
	for _, d := range s.SwitchBridges {
		only := "only the switch takes packets from " + d
		input.rules = append(input.rules, rule{[]any{fmt.Sprintf("iifname %q", d), "jump", uplink}, only})
		forward.rules = append(forward.rules, rule{[]any{fmt.Sprintf("iifname %q oifname != %q", d, d), "counter drop"}, only})
	}
	guard := guards(s, in, notIn, notOut)
	raw.rules = append(raw.rules, guard.came...)
	forward.rules = append(guard.pods, forward.rules...)
	input.rules = append(guard.toNode, input.rules...)
	input.rules, forward.rules = append(input.rules, errorsOf(in)), append(forward.rules, errorsOf(in))
	return append(connectionErrors(s), []chain{
		{name: uplink, rules: append(lent(s), rule{[]any{"counter drop"}, "only the switch takes it"})},
		{name: uplinkUntracked, rules: append(lent(s), rule{[]any{"notrack"}, "the switch has yet to take it"})},
		raw,
		{name: "raw-output", kind: knftables.FilterType, hook: knftables.OutputHook, priority: early, rules: guard.made},
		input,
		{name: "tunnels-in", kind: knftables.FilterType, hook: knftables.InputHook, priority: late, rules: guard.in},
		forward,
		{name: "tunnels-out", kind: knftables.FilterType, hook: knftables.PostroutingHook, priority: late, rules: guard.out},
		refusals(s, in),
		hairpin(s),
		postrouting(s, in, out, notOut),
	}...)
}

// uplink and uplinkUntracked are the chains of what comes in by the uplink of the userspace datapath.
const uplink, uplinkUntracked = "uplink", "uplink-untracked"

// lent lets the node take what comes to its own address while the uplink itself has that, and not
// the switch, which is away. Other addresses that the uplink may have do not count: while it is not
// away, it hands what is for them to the node, which would get it twice.
func lent(s Spec) []rule {
	if !s.NodeAddress.Is4() {
		return nil
	}
	return []rule{{[]any{"ip daddr", s.NodeAddress.String(), "fib daddr . iif type local return"}, "lent while Open vSwitch is away"}}
}

// hairpin gives a pod that asks itself by a service the gateway's address: nobody keeps a pod from
// its node, nor from itself.
func hairpin(s Spec) chain {
	c := chain{name: "hairpin"}
	for _, b := range bitsOf(s.NodeSubnet) {
		c.rules = append(c.rules, rule{[]any{differ("ip saddr", "ip daddr", b), "return"}, "another pod"})
	}
	c.rules = append(c.rules, rule{[]any{unmark, "counter snat to", s.Gateway.String()}, "a pod that asks itself"})
	return c
}

// refusals answer pods at once for services that the bridge knows nothing of, or
// no endpoint; before the node's own translation, so that no service gets past the
// bridge.
func refusals(s Spec, in string) chain {
	c := chain{name: "services", kind: knftables.FilterType, hook: knftables.PreroutingHook, priority: knftables.ManglePriority}
	if s.ServiceProxy == pipeline.OVS {
		to := fmt.Sprintf("%s ip daddr %s", in, s.ServiceNetwork)
		c.rules = []rule{
			{[]any{to, "ip protocol tcp counter reject with tcp reset"}, "no such service, or no endpoint"},
			{[]any{to, "counter reject"}, "no such service, or no endpoint"},
		}
	}
	return c
}

// postrouting gives packets the address under which their answers come back.
func postrouting(s Spec, in, out, notOut string) chain {
	c := chain{name: "postrouting", kind: knftables.NATType, hook: knftables.PostroutingHook, priority: beforeOthers, rules: []rule{
		{[]any{"ip saddr", s.NodeSubnet.String(), notOut, "meta l4proto udp counter masquerade to", ":" + s.sourcePorts(), "fully-random"},
			"pods leave with the node's address, from none of its own ports"},
		{[]any{"ip saddr", s.NodeSubnet.String(), notOut, "counter masquerade fully-random"}, "pods leave with the node's address"},
		{[]any{out, "fib saddr type local counter snat to", s.Gateway.String()}, "the node itself is its gateway's address to pods, and none other"},
		{[]any{in, out, "ct status dnat ip saddr", s.NodeSubnet.String(), "ip daddr", s.NodeSubnet.String(), "jump hairpin"}, "perhaps to itself"},
		{[]any{out, "ct status dnat", fmt.Sprintf("meta mark and %#x != 0x0", masqueradeMarks), unmark, "counter snat to", topology.ForwarderOf(s.NodeSubnet).String()},
			"what kube-proxy and portmap want masqueraded is not the node"},
	}}
	if s.ServiceProxy != pipeline.NoServices {
		// Ports of the node are for everybody, so pods use them as the node. What
		// kube-proxy sends on from a service's address keeps the pod's, and its tenant.
		c.rules = append(c.rules, rule{
			[]any{in, out, "ct status dnat ct original ip daddr !=", s.ServiceNetwork.String(), "counter snat to", topology.ForwarderOf(s.NodeSubnet).String()}, "pod to pod through a port of the node",
		})
	}
	return c
}

// comments are what the rules of cs carry, in order, by chain. Each has a mark
// that follows from the text of all rules: a rule of another version, or for another
// spec, or with a wrong neighbour is recognized by it, without reading rules back.
func comments(cs []chain) map[string][]string {
	h := sha256.New()
	for _, c := range cs {
		fmt.Fprintln(h, c.name, c.kind, c.hook, c.priority)
		for _, r := range c.rules {
			fmt.Fprintln(h, knftables.Concat(r.match...))
		}
	}
	mark := fmt.Sprintf("%x", h.Sum(nil)[:6])
	out := map[string][]string{}
	for _, c := range cs {
		out[c.name] = []string{}
		for i, r := range c.rules {
			text := fmt.Sprintf("%s %d: %s", mark, i, r.purpose)
			out[c.name] = append(out[c.name], text[:min(len(text), maxComment)])
		}
	}
	return out
}

// replace is the transaction that makes the table what cs says, whatever it was.
// Connections that are being translated stay: their state is in conntrack.
func replace(tx *knftables.Transaction, cs []chain, counters ...Reason) {
	tx.Add(&knftables.Table{})
	tx.Delete(&knftables.Table{})
	tx.Add(&knftables.Table{})
	for _, r := range counters {
		tx.Add(&knftables.Counter{Name: string(r)})
	}
	texts := comments(cs)
	for _, c := range cs {
		addChain(tx, c, texts[c.name])
	}
}

// addChain adds a chain and its rules, which carry these comments.
func addChain(tx *knftables.Transaction, c chain, comments []string) {
	made := &knftables.Chain{Name: c.name}
	if c.hook != "" {
		made.Type, made.Hook, made.Priority = &c.kind, &c.hook, &c.priority
	}
	tx.Add(made)
	for i, r := range c.rules {
		tx.Add(&knftables.Rule{Chain: c.name, Rule: knftables.Concat(r.match...), Comment: &comments[i]})
	}
}

// purposes are what the rules of a chain are for.
func (c chain) purposes() []string {
	out := make([]string, len(c.rules))
	for i, r := range c.rules {
		out[i] = r.purpose
	}
	return out
}

// validate names what is wrong with a spec.
func (s Spec) validate() error {
	switch {
	case s.Device == "":
		return fmt.Errorf("host network: no gateway device")
	case !s.Gateway.Is4() || !s.NodeSubnet.Addr().Is4() || !s.ClusterNetwork.Addr().Is4():
		return fmt.Errorf("host network: gateway %s, node subnet %s and cluster network %s must be IPv4", s.Gateway, s.NodeSubnet, s.ClusterNetwork)
	case !s.NodeSubnet.Contains(s.Gateway):
		return fmt.Errorf("host network: gateway %s is not in node subnet %s", s.Gateway, s.NodeSubnet)
	case !contains(s.ClusterNetwork, s.NodeSubnet):
		return fmt.Errorf("host network: node subnet %s is not in cluster network %s", s.NodeSubnet, s.ClusterNetwork)
	case s.ServiceProxy != pipeline.NoServices && !s.ServiceNetwork.IsValid():
		return fmt.Errorf("host network: services by %s need a service network", s.ServiceProxy)
	case len(s.TunnelPorts) == 0 || slices.Contains(s.TunnelPorts, 0):
		return fmt.Errorf("host network: a UDP port is missing among those of the tunnels, %d", s.TunnelPorts)
	}
	return nil
}

func contains(outer, inner netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}
