package hostnet

import (
	"context"
	"fmt"
	"net/netip"

	"sigs.k8s.io/knftables"

	"github.com/k8s-ovs/k8s-ovs/pkg/link"
)

const (
	// exitTable is the name of the table where the agent's own packets end.
	exitTable = "k8s-ovs-exit"
	// The names of its counters.
	exitOut, exitTracked, exitBack              = "out", "tracked", "back"
	exitToPods, exitToPodsTracked, exitFromPods = "to-pods", "to-pods-tracked", "from-pods"
	// Discard is the port that packets for the outside go to, and those of the node for pods (RFC 863).
	Discard = 9
	// Sequence is the sequence number, and the acknowledged one, of answers of TCP.
	Sequence = 0x6b386f76
	// last is behind all hooks where others could drop packets.
	last knftables.BaseChainPriority = "2147483646"
)

// Way is the one that the agent's own packets go.
type Way struct {
	// Gateway is the device behind which the pods are.
	Gateway string
	// Probe is an address there that nobody has.
	Probe netip.Addr
}

// Passed are the packets that have come to an end so far.
type Passed struct {
	// Out are those from the probe, before they would leave the node; Tracked are those
	// of them that conntrack knows, in its zone 0.
	Out, Tracked uint64
	// Back are those to the probe, before they would be given to the gateway.
	Back uint64
	// ToPods are those of the node to port [Discard] of the probe, before they would be given to
	// the gateway; ToPodsTracked are those of them that conntrack knows, in its zone 0.
	ToPods, ToPodsTracked uint64
	// FromPods are those from the probe, before the node would take them.
	FromPods uint64
}

// Exit is where packets of the agent's own end that go the way of pods' packets to the
// outside, and of answers to them, and those that go the way of packets between the node and
// its pods: behind all rules of the node, its own and others', and before anything is sent or
// taken. There they are counted. One goroutine may use it at a time.
type Exit struct {
	nft knftables.Interface
	ns  *link.NS
	// way is what the table was made for.
	way Way
}

// NewExit makes an Exit for the node's namespace.
func NewExit(ns *link.NS) (*Exit, error) {
	nft, err := openTable(ns, family, exitTable)
	if err != nil {
		return nil, err
	}
	return &Exit{ns: ns, nft: nft}, nil
}

// Passed reads the counters. It makes the table where it is not there, or for another way.
func (e *Exit) Passed(ctx context.Context, way Way) (p Passed, err error) {
	err = e.ns.Do(func() error {
		if e.way == way {
			counters, err := e.nft.ListCounters(ctx)
			if err != nil && !knftables.IsNotFound(err) {
				return fmt.Errorf("firewall table %s: reading: %w", exitTable, err)
			}
			if len(counters) > 0 {
				p = passed(counters)
				return nil
			}
		}
		// Somebody flushed the node's firewall, or this is the first time.
		if err := e.nft.Run(ctx, exitRules(e.nft, way)); err != nil {
			return fmt.Errorf("firewall table %s: writing: %w", exitTable, err)
		}
		e.way = way
		return nil
	})
	return p, err
}

// Forget has the table made anew by the next look, whatever is there of it: one whose rules somebody flushed has its
// counters still.
func (e *Exit) Forget() { e.way = Way{} }

func passed(counters []*knftables.Counter) (p Passed) {
	counts := map[string]*uint64{
		exitOut: &p.Out, exitTracked: &p.Tracked, exitBack: &p.Back,
		exitToPods: &p.ToPods, exitToPodsTracked: &p.ToPodsTracked, exitFromPods: &p.FromPods,
	}
	for _, c := range counters {
		if count := counts[c.Name]; count != nil {
			*count = *c.Packets
		}
	}
	return p
}

// quotes matches ICMP errors that quote a packet whose IP header has no options.
const quotes = "icmp type { destination-unreachable, time-exceeded, parameter-problem } @th,64,8 0x45"

func exitRules(nft knftables.Interface, way Way) *knftables.Transaction {
	tx := nft.NewTransaction()
	tx.Add(&knftables.Table{})
	tx.Delete(&knftables.Table{})
	tx.Add(&knftables.Table{})
	for _, name := range []string{exitOut, exitTracked, exitBack, exitToPods, exitToPodsTracked, exitFromPods} {
		tx.Add(&knftables.Counter{Name: name})
	}
	for _, c := range exitChains(way) {
		addChain(tx, c, c.purposes())
	}
	return tx
}

func exitChains(way Way) []chain {
	count := func(name string) string { return fmt.Sprintf("counter name %q", name) }
	to, from := "ip daddr "+way.Probe.String(), "ip saddr "+way.Probe.String()
	toGateway := fmt.Sprintf("oifname %q %s", way.Gateway, to)
	out := chain{name: "postrouting", hook: knftables.PostroutingHook, priority: knftables.SNATPriority + "-10", rules: []rule{
		{[]any{from, "udp dport", Discard, "ct zone 0", count(exitTracked)}, "conntrack sees them where it sees answers"},
		{[]any{from, "udp dport", Discard, count(exitOut), "drop"}, "the agent's packets through the node end here"},
		{[]any{from, "drop"}, "what firewalls reply to answers ends here too"},
	}}
	answers := chain{name: "answers", hook: knftables.PostroutingHook, priority: last}
	// A reset, which a firewall replies to what pods answer, begins no connection.
	for _, call := range []string{"udp dport", "tcp flags & (syn | ack | rst) == syn tcp dport"} {
		answers.rules = append(answers.rules,
			rule{[]any{toGateway, call, Discard, "ct zone 0", count(exitToPodsTracked)}, "conntrack sees them where it sees what pods answer"},
			rule{[]any{toGateway, call, Discard, count(exitToPods), "drop"}, "what the agent sends to pods ends here"})
	}
	answers.rules = append(answers.rules, []rule{
		{[]any{toGateway, "tcp dport", Discard, "drop"}, "what firewalls reply to that ends here"},
		{[]any{toGateway, "meta l4proto icmp drop"}, "by an error too"},
		{[]any{toGateway, count(exitBack), "drop"}, "and answers to its packets through the node"},
		{[]any{to, "drop"}, "those that go astray too"},
		// The protocol, the port and the length of a datagram that an ICMP error quotes
		// (RFC 792); no others from these ports are empty (RFC 1035, RFC 9000).
		{[]any{quotes, "@th,136,8 17 @th,224,16 { 53, 443 } @th,256,16 8 drop"}, "nobody outside is told what became of them"},
		// Of a segment it quotes the sequence number; a reset has that which was acknowledged (RFC 9293).
		{[]any{quotes, "@th,136,8 6 @th,224,16 443 @th,256,32", Sequence, "drop"}, "nor of those of TCP"},
		{[]any{"tcp dport 443 tcp flags & rst == rst tcp sequence", Sequence, "drop"}, "by a reset neither"},
	}...)
	in := chain{name: "input", hook: knftables.InputHook, priority: last, rules: []rule{
		{[]any{fmt.Sprintf("iifname %q", way.Gateway), from, count(exitFromPods), "drop"}, "what pods would answer it ends here"},
	}}
	// After the hooks where packets are dropped; out is before sources are translated.
	chains := []chain{out, answers, in}
	for i := range chains {
		chains[i].kind = knftables.FilterType
	}
	return chains
}

// Cleanup removes the table. It is for uninstalling.
func (e *Exit) Cleanup(ctx context.Context) error { return deleteTable(ctx, e.ns, e.nft, exitTable) }
