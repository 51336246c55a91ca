package hostnet

import (
	"context"
	"fmt"

	"sigs.k8s.io/knftables"
)

// Reason is why the firewall drops a packet that nobody sends by mistake. It is the
// name of its counter in the table.
type Reason string

// The reasons that are counted; what else the firewall drops it counts rule by rule.
const (
	// ForgedTunnel is a packet to the port of tunnels that no node made.
	ForgedTunnel Reason = "forged-tunnel"
	// ForgedProbe is one to the port of probes.
	ForgedProbe Reason = "forged-probe"
	// ForgedError is an ICMP error of a pod about a packet that did not come to it.
	ForgedError Reason = "forged-error"
)

// Reasons are all of them.
func Reasons() []Reason { return []Reason{ForgedTunnel, ForgedProbe, ForgedError} }

// Dropped is how many packets were dropped since it was last asked, by reason. Where
// there is no table there are none.
func (n *Net) Dropped(ctx context.Context) (map[Reason]uint64, error) {
	var counters []*knftables.Counter
	err := n.ns.Do(func() (err error) { counters, err = n.nft.ListCounters(ctx); return err })
	if knftables.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("firewall table %s: counters: %w", table, err)
	}
	dropped, now := map[Reason]uint64{}, map[Reason]uint64{}
	for _, c := range counters {
		r := Reason(c.Name)
		now[r] = *c.Packets
		dropped[r] = now[r]
		if last := n.counted[r]; last <= now[r] { // else somebody has reset it
			dropped[r] -= last
		}
	}
	n.counted = now
	return dropped, nil
}
