package hostnet

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"sigs.k8s.io/knftables"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/fairness"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
)

const (
	// gateTable is the name of the table that holds back pods' new connections.
	gateTable = "k8s-ovs-fair"
	gateMap   = "tenants"
	gateChain = "prerouting"
	// The names of what a namespace has begin with these.
	gateTenant, gateAsked, gateRefused = "t-", "asked-", "refused-"
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
}

// Equal compares all of two passages, whatever the order of their addresses.
func (p Passage) Equal(q Passage) bool {
	return p.Allowance == q.Allowance && slices.Equal(slices.SortedFunc(slices.Values(p.Addresses), netip.Addr.Compare), slices.SortedFunc(slices.Values(q.Addresses), netip.Addr.Compare))
}

// NewGate makes a Gate for the node's namespace.
func NewGate(ns *link.NS) (*Gate, error) {
	g := &Gate{ns: ns}
	err := ns.Do(func() (err error) {
		g.nft, err = knftables.New(family, gateTable)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("nftables cannot be used: %w", err)
	}
	return g, nil
}

// Set makes want, by namespace, what pods behind the gateway device may, and others what
// all pods may together that are of none of them. It writes only what differs.
func (g *Gate) Set(ctx context.Context, device string, others fairness.Allowance, want map[string]Passage) error {
	base := gateRules(device, others)
	return g.run("writing", func() error {
		have, ok, err := g.read(ctx, base)
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
				tx.Delete(&knftables.Counter{Name: gateAsked + namespace})
				tx.Delete(&knftables.Counter{Name: gateRefused + namespace})
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
		if there && text == rateText(a) {
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
		}
		tx.Add(&knftables.Rule{
			Chain: chain.Name, Comment: knftables.PtrTo(rateText(a)),
			Rule: knftables.Concat(fmt.Sprintf("counter name %q", asked), limitOver(a), fmt.Sprintf("counter name %q", refused), "drop"),
		})
	}
}

// elements makes the pods' addresses those of their namespaces.
func (g *Gate) elements(tx *knftables.Transaction, have gateState, want map[string]Passage) {
	owners := map[netip.Addr]string{}
	for namespace, p := range want {
		for _, a := range p.Addresses {
			owners[a] = "goto " + gateTenant + namespace
		}
	}
	for _, a := range slices.SortedFunc(maps.Keys(have.owners), netip.Addr.Compare) {
		if have.owners[a] != owners[a] {
			tx.Delete(&knftables.Element{Map: gateMap, Key: []string{a.String()}})
		}
	}
	for _, a := range slices.SortedFunc(maps.Keys(owners), netip.Addr.Compare) {
		if have.owners[a] != owners[a] {
			tx.Add(&knftables.Element{Map: gateMap, Key: []string{a.String()}, Value: []string{owners[a]}})
		}
	}
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
			if namespace, ok := strings.CutPrefix(c.Name, gateAsked); ok {
				a := asked[namespace]
				a.All = *c.Packets
				asked[namespace] = a
			}
			if namespace, ok := strings.CutPrefix(c.Name, gateRefused); ok {
				a := asked[namespace]
				a.Refused = *c.Packets
				asked[namespace] = a
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

// gateState is what the table has: what each namespace may, as text, and whose each
// address is.
type gateState struct {
	rates  map[string]string
	owners map[netip.Addr]string
}

// read is the table's state; ok is false where it is not as beginGate makes it.
func (g *Gate) read(ctx context.Context, base []rule) (s gateState, ok bool, err error) {
	rules, err := g.nft.ListRules(ctx, "")
	if knftables.IsNotFound(err) {
		return gateState{}, false, nil
	}
	if err != nil {
		return gateState{}, false, err
	}
	s = gateState{rates: map[string]string{}, owners: map[netip.Addr]string{}}
	for _, r := range rules {
		namespace, tenant := strings.CutPrefix(r.Chain, gateTenant)
		switch {
		case r.Comment == nil || tenant && s.rates[namespace] != "":
			return gateState{}, false, nil
		case tenant:
			s.rates[namespace] = *r.Comment
		case len(base) == 0 || *r.Comment != base[0].purpose:
			return gateState{}, false, nil
		default:
			base = base[1:]
		}
	}
	if len(base) > 0 {
		return gateState{}, false, nil
	}
	elements, err := g.nft.ListElements(ctx, "map", gateMap)
	if err != nil {
		return gateState{}, false, err
	}
	for _, e := range elements {
		a, err := netip.ParseAddr(e.Key[0])
		if err != nil {
			return gateState{}, false, err
		}
		s.owners[a] = e.Value[0]
	}
	return s, true, nil
}

// gateRules are those of all pods. A connection that the table of connections has already
// passes: of one that nobody answers each packet is "new". A pod that is new is bounded
// with all others of which that is so.
func gateRules(device string, others fairness.Allowance) []rule {
	fresh := fmt.Sprintf("iifname %q ct state new ct status & confirmed == 0", device)
	return []rule{
		{[]any{fresh, "ip saddr vmap", "@" + gateMap}, "new connections of pods by " + device},
		{[]any{fresh, limitOver(others), "drop"}, fmt.Sprintf("others by %s: %s", device, rateText(others))},
	}
}

// beginGate makes the table without any namespace, whatever it was. Its chain is behind
// connection tracking and before all translation.
func beginGate(tx *knftables.Transaction, base []rule) {
	tx.Add(&knftables.Table{})
	tx.Delete(&knftables.Table{})
	tx.Add(&knftables.Table{})
	tx.Add(&knftables.Map{Name: gateMap, Type: "ipv4_addr : verdict"})
	tx.Add(&knftables.Chain{
		Name: gateChain, Type: knftables.PtrTo(knftables.FilterType), Hook: knftables.PtrTo(knftables.PreroutingHook),
		Priority: knftables.PtrTo(knftables.ManglePriority + "-5"),
	})
	for _, r := range base {
		tx.Add(&knftables.Rule{Chain: gateChain, Rule: knftables.Concat(r.match...), Comment: knftables.PtrTo(r.purpose)})
	}
}

func limitOver(a fairness.Allowance) string {
	return fmt.Sprintf("limit rate over %d/second burst %d packets", a.Rate, a.Burst)
}

func rateText(a fairness.Allowance) string {
	return fmt.Sprintf("%d a second, %d at once", a.Rate, a.Burst)
}
