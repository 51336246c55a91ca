package hostnet

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"sigs.k8s.io/knftables"

	"github.com/k8s-ovs/k8s-ovs/pkg/link"
)

const (
	// tunnelEndTable is the name of the table where the agent's own packets end that go the way of the tunnels'.
	tunnelEndTable = "k8s-ovs-tunnels"
	// endedSet has what came to an end there, and for endedFor: longer than who sent it waits.
	endedSet, endedFor = "ended", 10 * time.Second
	// endedMost bounds the set: twice what is sent in that time.
	endedMost = 4096
)

// Ended is a datagram that came to its end: its addresses and its source port.
type Ended struct {
	From, To netip.Addr
	Port     uint16
}

// TunnelEnd is where datagrams of the agent's own end that go the way of tunnels' packets: those to this node behind
// all rules, its own and others', by which it could be kept from the tunnel, those to other nodes behind all by which it
// could be kept from leaving. One goroutine may use it at a time.
type TunnelEnd struct {
	nft  knftables.Interface
	ns   *link.NS
	mark uint64
	made bool
}

// NewTunnelEnd makes a TunnelEnd for the node's namespace.
func NewTunnelEnd(ns *link.NS) (*TunnelEnd, error) {
	nft, err := openTable(ns, family, tunnelEndTable)
	if err != nil {
		return nil, err
	}
	var random [8]byte
	_, _ = rand.Read(random[1:]) // never fails (crypto/rand)
	return &TunnelEnd{nft: nft, ns: ns, mark: binary.BigEndian.Uint64(random[:])}, nil
}

// Mark is what the datagrams carry, and nothing else does: nobody else knows it. It is 8 bytes, the first of them zero,
// so that it is no header of a tunnel, should one get further than here (RFC 7348, section 5: the flag I is not set).
func (e *TunnelEnd) Mark() []byte { return binary.BigEndian.AppendUint64(nil, e.mark) }

// Ended reads what came to an end lately. It makes the table where it is not there.
func (e *TunnelEnd) Ended(ctx context.Context) (ended []Ended, err error) {
	err = e.ns.Do(func() error {
		if e.made {
			elements, err := e.nft.ListElements(ctx, "set", endedSet)
			if err == nil {
				ended, err = readEnded(elements)
				return err
			}
			if !knftables.IsNotFound(err) {
				return fmt.Errorf("firewall table %s: reading: %w", tunnelEndTable, err)
			}
		}
		// Somebody flushed the node's firewall, or this is the first time.
		if err := e.nft.Run(ctx, e.rules()); err != nil {
			return fmt.Errorf("firewall table %s: writing: %w", tunnelEndTable, err)
		}
		e.made = true
		return nil
	})
	return ended, err
}

// Forget has the table made anew by the next look, whatever is there of it.
func (e *TunnelEnd) Forget() { e.made = false }

func readEnded(elements []*knftables.Element) ([]Ended, error) {
	ended := make([]Ended, 0, len(elements))
	for _, el := range elements {
		if len(el.Key) != 3 {
			return nil, fmt.Errorf("firewall table %s: an element %q", tunnelEndTable, el.Key)
		}
		from, err := netip.ParseAddr(el.Key[0])
		if err != nil {
			return nil, fmt.Errorf("firewall table %s: an element %q: %w", tunnelEndTable, el.Key, err)
		}
		to, err := netip.ParseAddr(el.Key[1])
		if err != nil {
			return nil, fmt.Errorf("firewall table %s: an element %q: %w", tunnelEndTable, el.Key, err)
		}
		port, err := strconv.ParseUint(el.Key[2], 10, 16)
		if err != nil {
			return nil, fmt.Errorf("firewall table %s: an element %q: %w", tunnelEndTable, el.Key, err)
		}
		ended = append(ended, Ended{from, to, uint16(port)})
	}
	return ended, nil
}

func (e *TunnelEnd) rules() *knftables.Transaction {
	tx := e.nft.NewTransaction()
	tx.Add(&knftables.Table{})
	tx.Delete(&knftables.Table{})
	tx.Add(&knftables.Table{})
	size, timeout := uint64(endedMost), endedFor
	tx.Add(&knftables.Set{
		Name: endedSet, Type: "ipv4_addr . ipv4_addr . inet_service", Flags: []knftables.SetFlag{knftables.DynamicFlag, knftables.TimeoutFlag}, Size: &size, Timeout: &timeout,
	})
	mark := fmt.Sprintf("%#016x", e.mark)
	// A datagram's ports, length and checksum are before what it carries (RFC 768).
	marked := []any{"meta l4proto udp @th,64,64", mark, fmt.Sprintf("add @%s { ip saddr . ip daddr . udp sport } drop", endedSet)}
	for _, c := range []chain{
		{name: "input", hook: knftables.InputHook, rules: []rule{{marked, "the agent's datagrams to the tunnel end here"}}},
		{name: "postrouting", hook: knftables.PostroutingHook, rules: []rule{
			{marked, "the agent's datagrams to other nodes end here"},
			// An ICMP error quotes the IP header, here one without options, the datagram's and what follows (RFC 792, RFC 1812).
			{[]any{"icmp type destination-unreachable @th,64,8 0x45 @th,288,64", mark, "drop"}, "nobody is told what became of them"},
		}},
	} {
		c.kind, c.priority = knftables.FilterType, last
		addChain(tx, c, c.purposes())
	}
	return tx
}

// Cleanup removes the table. It is for uninstalling.
func (e *TunnelEnd) Cleanup(ctx context.Context) error {
	return deleteTable(ctx, e.ns, e.nft, tunnelEndTable)
}
