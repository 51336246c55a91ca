package hostnet

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"

	"github.com/k8s-ovs/k8s-ovs/pkg/link"
)

// openTable is nftables for one table of ours in the node's namespace. All tables are opened by it,
// so that one that somebody put to sleep counts as right with none of them.
func openTable(ns *link.NS, family knftables.Family, name string) (nft knftables.Interface, err error) {
	err = ns.Do(func() (err error) {
		nft, err = knftables.New(family, name)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("nftables cannot be used: %w", err)
	}
	return awake{nft, netfilterFamilies[family], name}, nil
}

// deleteTable removes a table, which need not be there.
func deleteTable(ctx context.Context, ns *link.NS, nft knftables.Interface, name string) error {
	return ns.Do(func() error {
		tx := nft.NewTransaction()
		tx.Add(&knftables.Table{})
		tx.Delete(&knftables.Table{})
		if err := nft.Run(ctx, tx); err != nil {
			return fmt.Errorf("firewall table %s: deleting: %w", name, err)
		}
		return nil
	})
}

// netfilterFamilies are the kernel's numbers of the families that tables of ours have.
var netfilterFamilies = map[knftables.Family]uint8{
	knftables.IPv4Family:   unix.NFPROTO_IPV4,
	knftables.IPv6Family:   unix.NFPROTO_IPV6,
	knftables.BridgeFamily: unix.NFPROTO_BRIDGE,
}

// awake is nftables for a table of which only what is in force counts. With a flag, such as "dormant",
// the kernel passes over all rules of the table, and nft lists them as ever: such a table has none here,
// nor counters, so that its owner makes it anew, without the flag. (The JSON of nft before 1.1 has no
// flags that could be read.)
type awake struct {
	knftables.Interface
	family uint8
	name   string
}

// ListRules are the rules in force.
func (a awake) ListRules(ctx context.Context, chain string) ([]*knftables.Rule, error) {
	if flags, err := a.flags(); err != nil || flags != 0 {
		return nil, err
	}
	return a.Interface.ListRules(ctx, chain)
}

// ListCounters are the counters of rules in force.
func (a awake) ListCounters(ctx context.Context) ([]*knftables.Counter, error) {
	if flags, err := a.flags(); err != nil || flags != 0 {
		return nil, err
	}
	return a.Interface.ListCounters(ctx)
}

// What the kernel calls them (linux/netfilter/nf_tables.h, nfnetlink.h).
const (
	getTable       = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETTABLE
	tableName      = unix.NFTA_TABLE_NAME
	tableFlags     = unix.NFTA_TABLE_FLAGS
	nfgenmsgLength = 4
)

// flags of the table; 0 where there is no table.
func (a awake) flags() (uint32, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return 0, fmt.Errorf("reading its flags: %w", err)
	}
	defer func() { _ = c.Close() }()
	name := netlink.NewAttributeEncoder()
	name.String(tableName, a.name)
	attributes, err := name.Encode()
	if err != nil {
		return 0, err
	}
	replies, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: getTable, Flags: netlink.Request},
		Data:   append([]byte{a.family, unix.NFNETLINK_V0, 0, 0}, attributes...),
	})
	if errors.Is(err, unix.ENOENT) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("reading its flags: %w", err)
	}
	for _, r := range replies {
		if len(r.Data) < nfgenmsgLength {
			continue
		}
		d, err := netlink.NewAttributeDecoder(r.Data[nfgenmsgLength:])
		if err != nil {
			return 0, fmt.Errorf("reading its flags: %w", err)
		}
		d.ByteOrder = binary.BigEndian
		for d.Next() {
			if d.Type() == tableFlags {
				return d.Uint32(), d.Err()
			}
		}
	}
	return 0, errors.New("reading its flags: the kernel named none")
}
