package hostnet

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/fairness"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
)

const (
	// gateTable is the name of the table that holds back pods' new connections.
	gateTable = "k8s-ovs-fair"
	gateMap   = "tenants"
	gateChain = "prerouting"
	gateLeave = "postrouting"
	// beforeSources is before the first who translates the source of a connection, see beforeOthers.
	beforeSources knftables.BaseChainPriority = "95"
	// The names of what a namespace has begin with these.
	gateTenant, gateAsked, gateRefused = "t-", "asked-", "refused-"
	// gateCrowded begins the names of a namespace's chain for where it may make no more, and of its counter.
	gateCrowded = "crowded-"
	// gatePorts and gatePortless are what pods may make no more connections to, of protocols with ports
	// and without.
	gatePorts, gatePortless = "ports", "portless"
)

// Gate bounds the new connections that the pods of each namespace make through the node:
// to the outside, to ports of nodes and, beside kube-proxy, to services. The node's
// connection table is one for all. One goroutine may use it at a time.
type Gate struct {
	ns  *link.NS
	nft knftables.Interface
	// absent is that there is no table.
	absent bool
}

// Passage is what a namespace may.
type Passage struct {
	Allowance fairness.Allowance
	// Addresses are those of its pods here.
	Addresses []netip.Addr
	// Crowded are destinations to which it may make no more connections, in order.
	Crowded []fairness.Destination
}

// Equal compares all of two passages, whatever the order of their addresses.
func (p Passage) Equal(q Passage) bool {
	return p.Allowance == q.Allowance && slices.Equal(p.Crowded, q.Crowded) && slices.Equal(slices.SortedFunc(slices.Values(p.Addresses), netip.Addr.Compare), slices.SortedFunc(slices.Values(q.Addresses), netip.Addr.Compare))
}

// NewGate makes a Gate for the node's namespace.
func NewGate(ns *link.NS) (*Gate, error) {
	nft, err := openTable(ns, family, gateTable)
	if err != nil {
		return nil, err
	}
	return &Gate{ns: ns, nft: nft}, nil
}

// Set makes want, by namespace, what pods behind the gateway device may, and others what
// all pods may together that are of none of them. It writes only what differs.
func (g *Gate) Set(ctx context.Context, device string, others fairness.Allowance, want map[string]Passage) error {
	base := gateChains(device, others)
	return g.run("writing", func() error {
		have, ok, err := g.read(ctx, comments(base))
		if err != nil {
			return err
		}
		tx := g.nft.NewTransaction()
		if !ok {
			have = gateState{}
			beginGate(tx, base)
		}
		g.tenants(tx, have, want)
		g.elements(tx, have, want)
		for _, namespace := range slices.Sorted(maps.Keys(have.rates)) {
			if _, stays := want[namespace]; !stays {
				tx.Delete(&knftables.Chain{Name: gateTenant + namespace})
				tx.Delete(&knftables.Chain{Name: gateCrowded + namespace})
				for _, counter := range []string{gateAsked, gateRefused, gateCrowded} {
					tx.Delete(&knftables.Counter{Name: counter + namespace})
				}
			}
		}
		if tx.NumOperations() == 0 {
			return nil
		}
		g.absent = false
		return g.nft.Run(ctx, tx)
	})
}

// tenants makes the namespaces' chains.
func (g *Gate) tenants(tx *knftables.Transaction, have gateState, want map[string]Passage) {
	for _, namespace := range slices.Sorted(maps.Keys(want)) {
		a := want[namespace].Allowance
		text, there := have.rates[namespace]
		if there && text == limitOver(a) {
			continue
		}
		chain := knftables.Chain{Name: gateTenant + namespace}
		asked, refused := gateAsked+namespace, gateRefused+namespace
		if there {
			tx.Flush(&chain)
		} else {
			tx.Add(&chain)
			tx.Add(&knftables.Counter{Name: asked})
			tx.Add(&knftables.Counter{Name: refused})
			crowded := gateCrowded + namespace
			tx.Add(&knftables.Chain{Name: crowded})
			tx.Add(&knftables.Counter{Name: crowded})
			tx.Add(&knftables.Rule{Chain: crowded, Comment: knftables.PtrTo(hasItsPart), Rule: knftables.Concat(fmt.Sprintf("counter name %q", crowded), "drop")})
		}
		tx.Add(&knftables.Rule{
			Chain: chain.Name, Comment: knftables.PtrTo(limitOver(a)),
			Rule: knftables.Concat(fmt.Sprintf("counter name %q", asked), limitOver(a), fmt.Sprintf("counter name %q", refused), "drop"),
		})
	}
}

// elements makes the pods' addresses those of their namespaces, and says where they may make no more
// connections.
func (g *Gate) elements(tx *knftables.Transaction, have gateState, want map[string]Passage) {
	verdicts := map[gateKey]string{}
	for namespace, p := range want {
		for _, a := range p.Addresses {
			verdicts[gateKey{gateMap, a.String()}] = "goto " + gateTenant + namespace
			for _, d := range p.Crowded {
				verdicts[crowdKey(a, d)] = "goto " + gateCrowded + namespace
			}
		}
	}
	for _, k := range slices.SortedFunc(maps.Keys(have.verdicts), gateKey.compare) {
		if have.verdicts[k] != verdicts[k] {
			tx.Delete(&knftables.Element{Map: k.of, Key: strings.Split(k.key, concatenated)})
		}
	}
	for _, k := range slices.SortedFunc(maps.Keys(verdicts), gateKey.compare) {
		if have.verdicts[k] != verdicts[k] {
			tx.Add(&knftables.Element{Map: k.of, Key: strings.Split(k.key, concatenated), Value: []string{verdicts[k]}})
		}
	}
}

// gateKey is a key of a map of the table.
type gateKey struct{ of, key string }

// concatenated is between the parts of a key.
const concatenated = " . "

func (k gateKey) compare(l gateKey) int {
	return cmp.Or(strings.Compare(k.of, l.of), strings.Compare(k.key, l.key))
}

// protocolNumbers are what keys are written with, by what nft makes of them where it has names. Those of
// others without ports have but one connection between two addresses.
var protocolNumbers = map[string]string{
	"icmp": protocolNumber(unix.IPPROTO_ICMP), "tcp": protocolNumber(unix.IPPROTO_TCP), "udp": protocolNumber(unix.IPPROTO_UDP),
	"sctp": protocolNumber(unix.IPPROTO_SCTP), "dccp": protocolNumber(unix.IPPROTO_DCCP), "udplite": protocolNumber(unix.IPPROTO_UDPLITE),
}

func protocolNumber(p uint8) string { return strconv.Itoa(int(p)) }

// crowdKey is that of a pod's connections to a destination.
func crowdKey(pod netip.Addr, d fairness.Destination) gateKey {
	parts := []string{pod.String(), d.To.Addr().String(), protocolNumber(d.Protocol)}
	if d.To.Port() == 0 {
		return gateKey{gatePortless, strings.Join(parts, concatenated)}
	}
	return gateKey{gatePorts, strings.Join(append(parts, fmt.Sprint(d.To.Port())), concatenated)}
}

// Asked are the new connections that each namespace has asked for so far.
func (g *Gate) Asked(ctx context.Context) (asked map[string]fairness.Asked, err error) {
	asked = map[string]fairness.Asked{}
	err = g.run("reading", func() error {
		counters, err := g.nft.ListCounters(ctx)
		if err != nil && !knftables.IsNotFound(err) {
			return err
		}
		for _, c := range counters {
			for prefix, count := range map[string]func(*fairness.Asked){
				gateAsked:   func(a *fairness.Asked) { a.All = *c.Packets },
				gateRefused: func(a *fairness.Asked) { a.Refused = *c.Packets },
				gateCrowded: func(a *fairness.Asked) { a.Crowded = *c.Packets },
			} {
				if namespace, ok := strings.CutPrefix(c.Name, prefix); ok {
					a := asked[namespace]
					count(&a)
					asked[namespace] = a
				}
			}
		}
		return nil
	})
	return asked, err
}

// Remove deletes the table, where it is not known to be gone.
func (g *Gate) Remove(ctx context.Context) error {
	if g.absent {
		return nil
	}
	return g.run("deleting", func() error {
		tx := g.nft.NewTransaction()
		tx.Add(&knftables.Table{})
		tx.Delete(&knftables.Table{})
		err := g.nft.Run(ctx, tx)
		g.absent = err == nil
		return err
	})
}

func (g *Gate) run(doing string, fn func() error) error {
	if err := g.ns.Do(fn); err != nil {
		return fmt.Errorf("firewall table %s: %s: %w", gateTable, doing, err)
	}
	return nil
}

// gateState is what the table has: what each namespace may, as text, and what its maps say.
type gateState struct {
	rates    map[string]string
	verdicts map[gateKey]string
}

// read is the table's state; ok is false where it is not as beginGate makes it, with these comments by chain.
func (g *Gate) read(ctx context.Context, base map[string][]string) (s gateState, ok bool, err error) {
	rules, err := g.nft.ListRules(ctx, "")
	if knftables.IsNotFound(err) {
		return gateState{}, false, nil
	}
	if err != nil {
		return gateState{}, false, err
	}
	s = gateState{rates: map[string]string{}, verdicts: map[gateKey]string{}}
	crowded, found := map[string]int{}, map[string][]string{}
	for _, r := range rules {
		namespace, tenant := strings.CutPrefix(r.Chain, gateTenant)
		full, crowd := strings.CutPrefix(r.Chain, gateCrowded)
		switch {
		case r.Comment == nil || tenant && s.rates[namespace] != "" || crowd && *r.Comment != hasItsPart:
			return gateState{}, false, nil
		case tenant:
			s.rates[namespace] = *r.Comment
		case crowd:
			crowded[full]++
		default:
			found[r.Chain] = append(found[r.Chain], *r.Comment)
		}
	}
	for namespace := range s.rates {
		if crowded[namespace] != 1 {
			return gateState{}, false, nil
		}
	}
	if !maps.EqualFunc(found, base, slices.Equal) || len(crowded) != len(s.rates) {
		return gateState{}, false, nil
	}
	for _, name := range []string{gateMap, gatePorts, gatePortless} {
		elements, err := g.nft.ListElements(ctx, "map", name)
		if err != nil {
			return gateState{}, false, err
		}
		for _, e := range elements {
			if len(e.Key) > 2 {
				e.Key[2] = cmp.Or(protocolNumbers[e.Key[2]], e.Key[2])
			}
			s.verdicts[gateKey{name, strings.Join(e.Key, concatenated)}] = e.Value[0]
		}
	}
	return s, true, nil
}

// gateRules are those of all pods. A connection that the table of connections has already
// passes: of one that nobody answers each packet is "new". A pod that is new is bounded
// with all others of which that is so.
func gateRules(device string, others fairness.Allowance) []rule {
	fresh := fmt.Sprintf("iifname %q ", device) + unconfirmed
	return []rule{
		{[]any{fresh, "ip saddr vmap", "@" + gateMap}, "new connections of pods by " + device},
		{[]any{fresh, limitOver(others), "drop"}, "others by " + device},
	}
}

// hasItsPart is why a namespace may make no more connections to a destination.
const hasItsPart = "has its part of the ports to there"

// crowdRules refuse new connections of pods to where their namespace has its part of the ports, whoever
// translated them to there.
var crowdRules = []rule{
	{[]any{unconfirmed, "ip saddr . ip daddr . meta l4proto . th dport vmap", "@" + gatePorts}, "connections to crowded ports"},
	{[]any{unconfirmed, "ip saddr . ip daddr . meta l4proto vmap", "@" + gatePortless}, "connections to crowded addresses"},
}

// unconfirmed matches the first packet of a connection.
const unconfirmed = "ct state new ct status & confirmed == 0"

// gateChains are the table's without any namespace. The first is behind connection tracking and before all
// translation, the second before any of sources.
func gateChains(device string, others fairness.Allowance) []chain {
	return []chain{
		{name: gateChain, hook: knftables.PreroutingHook, priority: knftables.ManglePriority + "-5", rules: gateRules(device, others)},
		{name: gateLeave, hook: knftables.PostroutingHook, priority: beforeSources, rules: crowdRules},
	}
}

// beginGate makes the table with these chains, whatever it was.
func beginGate(tx *knftables.Transaction, base []chain) {
	tx.Add(&knftables.Table{})
	tx.Delete(&knftables.Table{})
	tx.Add(&knftables.Table{})
	tx.Add(&knftables.Map{Name: gateMap, Type: "ipv4_addr : verdict"})
	tx.Add(&knftables.Map{Name: gatePorts, Type: "ipv4_addr . ipv4_addr . inet_proto . inet_service : verdict"})
	tx.Add(&knftables.Map{Name: gatePortless, Type: "ipv4_addr . ipv4_addr . inet_proto : verdict"})
	texts := comments(base)
	for _, c := range base {
		tx.Add(&knftables.Chain{Name: c.name, Type: knftables.PtrTo(knftables.FilterType), Hook: &c.hook, Priority: &c.priority})
		for i, r := range c.rules {
			tx.Add(&knftables.Rule{Chain: c.name, Rule: knftables.Concat(r.match...), Comment: knftables.PtrTo(texts[c.name][i])})
		}
	}
}

// limitOver is in the rule and is its comment, so that a rule of another version is recognized.
func limitOver(a fairness.Allowance) string {
	return fmt.Sprintf("limit rate over %d/second burst %d packets", a.Rate, a.Burst)
}
