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
	exitTable   = "k8s-ovs-exit"
	exitCounter = "passed"
)

// Exit is where packets of the agent's own end that go the way of pods' packets to the
// outside: behind all rules of the node, its own and others', and before anything is
// sent. There they are counted. One goroutine may use it at a time.
type Exit struct {
	nft knftables.Interface
	ns  *link.NS
	// probe is the source that the table was made for.
	probe netip.Addr
}

// NewExit makes an Exit for the node's namespace.
func NewExit(ns *link.NS) (*Exit, error) {
	e := &Exit{ns: ns}
	err := ns.Do(func() (err error) {
		e.nft, err = knftables.New(knftables.IPv4Family, exitTable)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("nftables cannot be used: %w", err)
	}
	return e, nil
}

// Passed is how many packets from probe, an address that nobody has, have come here. It
// makes the table where it is not there, or for another address.
func (e *Exit) Passed(ctx context.Context, probe netip.Addr) (n uint64, err error) {
	err = e.ns.Do(func() error {
		if e.probe == probe {
			counters, err := e.nft.ListCounters(ctx)
			if err != nil && !knftables.IsNotFound(err) {
				return fmt.Errorf("firewall table %s: reading: %w", exitTable, err)
			}
			for _, c := range counters {
				if c.Name == exitCounter && c.Packets != nil {
					n = *c.Packets
					return nil
				}
			}
		}
		// Somebody flushed the node's firewall, or this is the first time.
		if err := e.nft.Run(ctx, exitRules(e.nft, probe)); err != nil {
			return fmt.Errorf("firewall table %s: writing: %w", exitTable, err)
		}
		e.probe = probe
		return nil
	})
	return n, err
}

func exitRules(nft knftables.Interface, probe netip.Addr) *knftables.Transaction {
	tx := nft.NewTransaction()
	tx.Add(&knftables.Table{})
	tx.Delete(&knftables.Table{})
	tx.Add(&knftables.Table{})
	tx.Add(&knftables.Counter{Name: exitCounter})
	tx.Add(&knftables.Chain{
		Name: "postrouting", Type: knftables.PtrTo(knftables.FilterType), Hook: knftables.PtrTo(knftables.PostroutingHook),
		// After the hooks where packets are dropped, before sources are translated.
		Priority: knftables.PtrTo(knftables.SNATPriority + "-10"),
	})
	tx.Add(&knftables.Rule{
		Chain: "postrouting", Rule: knftables.Concat("ip saddr", probe.String(), "counter name", fmt.Sprintf("%q", exitCounter), "drop"),
		Comment: knftables.PtrTo("the agent's packets through the node end here"),
	})
	return tx
}

// Cleanup removes the table. It is for uninstalling.
func (e *Exit) Cleanup(ctx context.Context) error {
	return e.ns.Do(func() error {
		tx := e.nft.NewTransaction()
		tx.Add(&knftables.Table{})
		tx.Delete(&knftables.Table{})
		if err := e.nft.Run(ctx, tx); err != nil {
			return fmt.Errorf("firewall table %s: deleting: %w", exitTable, err)
		}
		return nil
	})
}
