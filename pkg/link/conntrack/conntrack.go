// Package conntrack reads and changes what the kernel tracks of connections.
//
// It decides nothing, and never executes a program.
package conntrack

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/pkg/link"
)

// family is the family of the connections that are looked at.
const family = unix.AF_INET

// Table is the connection table of a network namespace, for as long as that is open. Its
// methods may be called from several goroutines.
type Table struct{ ns *link.NS }

// In returns the connection table of ns.
func In(ns *link.NS) Table { return Table{ns} }

// Forget removes what the kernel's conntrack remembers of
// connections that any of ips began, so that answers still on their way do not reach
// whoever has the address next. It reads the whole table, which takes the kernel some
// 10 ms also when that is empty: once for all of ips. A kernel without conntrack has
// nothing to forget.
func (t Table) Forget(ips ...netip.Addr) error {
	if len(ips) == 0 {
		return nil
	}
	what := fmt.Sprintf("forget the connections of %s", ips[0])
	if len(ips) > 1 {
		what += fmt.Sprintf(" and %d other addresses", len(ips)-1)
	}
	var nf *netlink.Handle
	err := t.ns.Do(func() (err error) {
		nf, err = netlink.NewHandle(unix.NETLINK_NETFILTER)
		return err
	})
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	defer nf.Close()
	from := begunBy{}
	for _, ip := range ips {
		from[ip] = true
	}
	_, err = nf.ConntrackDeleteFilters(netlink.ConntrackTable, family, from)
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EPROTONOSUPPORT) {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// begunBy matches connections by who began them.
type begunBy map[netip.Addr]bool

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (b begunBy) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	a, ok := netip.AddrFromSlice(flow.Forward.SrcIP)
	return ok && b[a.Unmap()]
}

// Fill is how many connections the kernel tracks in the namespace, and how many
// it has room for, 0 for any number. It fails with [link.ErrNoSysctl] in a kernel without conntrack.
func (t Table) Fill() (used, size uint64, err error) {
	read := func(name string) (v uint64, err error) {
		text, err := t.ns.Sysctl("net/netfilter/" + name)
		if err != nil {
			return 0, err
		}
		return strconv.ParseUint(text, 10, 64)
	}
	if size, err = read("nf_conntrack_max"); err == nil {
		used, err = read("nf_conntrack_count")
	}
	if err != nil {
		return 0, 0, fmt.Errorf("tracked connections: %w", err)
	}
	return used, size, nil
}

// BySource counts the IPv4 connections that the kernel tracks in the
// namespace by who began them, in all zones: of the addresses in from. It reads the
// whole table.
func (t Table) BySource(from netip.Prefix) (map[netip.Addr]uint64, error) {
	var flows []*netlink.ConntrackFlow
	err := t.ns.Do(func() error {
		nf, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		defer nf.Close()
		flows, err = nf.ConntrackTableList(netlink.ConntrackTable, family)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list tracked connections: %w", err)
	}
	counts := map[netip.Addr]uint64{}
	for _, f := range flows {
		if a, ok := netip.AddrFromSlice(f.Forward.SrcIP); ok && from.Contains(a.Unmap()) {
			counts[a.Unmap()]++
		}
	}
	return counts, nil
}
