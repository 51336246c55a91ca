package hostnet

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"sigs.k8s.io/knftables"

	"github.com/k8s-ovs/k8s-ovs/pkg/link"
)

const (
	// classTable is the name of the table that says in which class of the uplink
	// packets leave.
	classTable = "k8s-ovs-uplink"
	classMap   = "classes"
)

// Classes give what pods send through the node the priority of their class on the
// uplink. Routing takes any that the bridge gave. One goroutine may use it at a time.
type Classes struct {
	ns  *link.NS
	nft knftables.Interface
	// absent is that there is no table.
	absent bool
}

// NewClasses makes Classes for the node's namespace.
func NewClasses(ns *link.NS) (*Classes, error) {
	nft, err := openTable(ns, family, classTable)
	if err != nil {
		return nil, err
	}
	return &Classes{ns: ns, nft: nft}, nil
}

// Set makes the classes those given, by the pod's address, for what comes from the
// gateway device, as priorities: the class's handle. It writes only what differs.
func (c *Classes) Set(ctx context.Context, device string, want map[netip.Addr]uint32) error {
	return c.run("writing", func() error {
		have, ok, err := c.read(ctx, device)
		if err != nil {
			return err
		}
		tx := c.nft.NewTransaction()
		if !ok {
			begin(tx, device)
		}
		for _, a := range slices.SortedFunc(maps.Keys(have), netip.Addr.Compare) {
			if have[a] != handle(want[a]) {
				tx.Delete(&knftables.Element{Map: classMap, Key: []string{a.String()}})
			}
		}
		for _, a := range slices.SortedFunc(maps.Keys(want), netip.Addr.Compare) {
			if class := handle(want[a]); have[a] != class {
				tx.Add(&knftables.Element{Map: classMap, Key: []string{a.String()}, Value: []string{class}})
			}
		}
		if tx.NumOperations() == 0 {
			return nil
		}
		c.absent = false
		return c.nft.Run(ctx, tx)
	})
}

// Remove deletes the table, where it is not known to be gone.
func (c *Classes) Remove(ctx context.Context) error {
	if c.absent {
		return nil
	}
	return c.run("deleting", func() error {
		tx := c.nft.NewTransaction()
		tx.Add(&knftables.Table{})
		tx.Delete(&knftables.Table{})
		err := c.nft.Run(ctx, tx)
		c.absent = err == nil
		return err
	})
}

func (c *Classes) run(doing string, fn func() error) error {
	if err := c.ns.Do(fn); err != nil {
		return fmt.Errorf("firewall table %s: %s: %w", classTable, doing, err)
	}
	return nil
}

// read is the class of each address; ok is false where the table is not as begin
// makes it.
func (c *Classes) read(ctx context.Context, device string) (have map[netip.Addr]string, ok bool, err error) {
	rules, err := c.nft.ListRules(ctx, "")
	if knftables.IsNotFound(err) || err == nil && (len(rules) != 1 || rules[0].Comment == nil || *rules[0].Comment != comments(classChains(device))["postrouting"][0]) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	elements, err := c.nft.ListElements(ctx, "map", classMap)
	if err != nil {
		return nil, false, err
	}
	have = make(map[netip.Addr]string, len(elements))
	for _, e := range elements {
		a, err := netip.ParseAddr(e.Key[0])
		if err != nil {
			return nil, false, err
		}
		have[a] = e.Value[0]
	}
	return have, true, nil
}

// begin makes the table without any class, whatever it was. The chain is before
// the one that gives packets the node's address.
func begin(tx *knftables.Transaction, device string) {
	tx.Add(&knftables.Table{})
	tx.Delete(&knftables.Table{})
	tx.Add(&knftables.Table{})
	tx.Add(&knftables.Map{Name: classMap, Type: "ipv4_addr : classid"})
	texts := comments(classChains(device))
	for _, c := range classChains(device) {
		tx.Add(&knftables.Chain{Name: c.name, Type: &c.kind, Hook: &c.hook, Priority: &c.priority})
		for i, r := range c.rules {
			tx.Add(&knftables.Rule{Chain: c.name, Rule: knftables.Concat(r.match...), Comment: knftables.PtrTo(texts[c.name][i])})
		}
	}
}

// classChains are the table's.
func classChains(device string) []chain {
	return []chain{{name: "postrouting", kind: knftables.FilterType, hook: knftables.PostroutingHook, priority: knftables.ManglePriority, rules: []rule{
		{[]any{fmt.Sprintf("iifname %q", device), "meta priority set ip saddr map", "@" + classMap}, "class of pods by " + device},
	}}}
}

// handle as nft(8) writes it.
func handle(priority uint32) string { return fmt.Sprintf("%x:%x", priority>>16, priority&0xffff) }
