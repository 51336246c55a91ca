package link

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// mostListed is how many entries of a kind are read in a sandbox. What a sandbox holds is the pod's to make, millions of
// routes if it likes; the kernel lists them all, and each takes some 600 bytes.
var mostListed = 10_000

// ErrTooMany: a sandbox holds more of something than is read.
var ErrTooMany = fmt.Errorf("the sandbox has more than %d, of which the pod made all but a few: delete some, or the pod", mostListed)

// inSandbox lists what the kernel has of a kind, with a socket of its own: closing it is what ends a listing early. [ErrTooMany].
func inSandbox[T any](n *NS, get, kind int, header nl.NetlinkRequestData, parse func(m []byte) (T, bool, error)) (out []T, err error) {
	var socket *nl.NetlinkSocket
	err = n.Do(func() error {
		socket, err = nl.Subscribe(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	defer socket.Close()
	req := nl.NewNetlinkRequest(get, unix.NLM_F_DUMP)
	req.AddData(header)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: socket}}
	seen := 0
	var failed error
	err = req.ExecuteIter(unix.NETLINK_ROUTE, uint16(kind), func(m []byte) bool {
		if seen++; seen > mostListed {
			failed = ErrTooMany
		} else if one, wanted, err := parse(m); err != nil {
			failed = err
		} else if wanted {
			out = append(out, one)
		}
		if failed != nil {
			socket.Close()
		}
		return failed == nil
	})
	if failed != nil {
		return nil, failed
	}
	return out, err
}

// routesInSandbox are those of a family in one table, [unix.RT_TABLE_UNSPEC] for all. Of several next hops they have the devices alone.
func (n *NS) routesInSandbox(family, table int) ([]netlink.Route, error) {
	return inSandbox(n, unix.RTM_GETROUTE, unix.RTM_NEWROUTE, &nl.RtMsg{RtMsg: unix.RtMsg{Family: uint8(family)}}, func(m []byte) (netlink.Route, bool, error) {
		r, err := parseRoute(m)
		wanted := r.Family == family && r.Flags&unix.RTM_F_CLONED == 0 && (table == unix.RT_TABLE_UNSPEC || r.Table == table)
		return r, wanted, err
	})
}

// parseRoute reads struct rtmsg and its attributes (rtnetlink(7)).
func parseRoute(m []byte) (netlink.Route, error) {
	msg := nl.DeserializeRtMsg(m)
	r := netlink.Route{
		Family: int(msg.Family), Table: int(msg.Table), Type: int(msg.Type), Flags: int(msg.Flags),
		Scope: netlink.Scope(msg.Scope), Protocol: netlink.RouteProtocol(msg.Protocol),
	}
	attrs, err := nl.ParseRouteAttr(m[msg.Len():])
	if err != nil {
		return r, err
	}
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.RTA_DST:
			r.Dst = &net.IPNet{IP: a.Value, Mask: net.CIDRMask(int(msg.Dst_len), 8*len(a.Value))}
		case unix.RTA_GATEWAY:
			r.Gw = a.Value
		case unix.RTA_PREFSRC:
			r.Src = a.Value
		case unix.RTA_OIF:
			r.LinkIndex = number(a.Value)
		case unix.RTA_PRIORITY:
			r.Priority = number(a.Value)
		case unix.RTA_TABLE:
			r.Table = number(a.Value)
		case unix.RTA_MULTIPATH:
			r.MultiPath = hops(a.Value)
		case unix.RTA_METRICS:
			metrics, err := nl.ParseRouteAttr(a.Value)
			if err != nil {
				return r, err
			}
			for _, metric := range metrics {
				if metric.Attr.Type == unix.RTAX_MTU {
					r.MTU = number(metric.Value)
				}
			}
		}
	}
	return r, nil
}

// hops are the devices of next hops (struct rtnexthop, rtnetlink(7): its length in bytes, flags, weight, device).
func hops(value []byte) (all []*netlink.NexthopInfo) {
	for len(value) >= unix.SizeofRtNexthop {
		all = append(all, &netlink.NexthopInfo{LinkIndex: number(value[4:])})
		size := (int(binary.NativeEndian.Uint16(value)) + 3) &^ 3
		if size < unix.SizeofRtNexthop || size > len(value) {
			break
		}
		value = value[size:]
	}
	return all
}

// rulesInSandbox are the routing rules of a family: what [NS.LeaveSandbox] looks at, and the kernel needs to find one again.
func (n *NS) rulesInSandbox(family int) ([]netlink.Rule, error) {
	return inSandbox(n, unix.RTM_GETRULE, unix.RTM_NEWRULE, nl.NewIfInfomsg(family), func(m []byte) (netlink.Rule, bool, error) {
		msg := nl.DeserializeRtMsg(m)
		rule := *netlink.NewRule()
		rule.Family, rule.Table, rule.Priority = int(msg.Family), int(msg.Table), 0
		attrs, err := nl.ParseRouteAttr(m[msg.Len():])
		for _, a := range attrs {
			switch a.Attr.Type {
			case nl.FRA_TABLE:
				rule.Table = number(a.Value)
			case nl.FRA_PRIORITY:
				rule.Priority = number(a.Value)
			case nl.FRA_SRC:
				rule.Src = &net.IPNet{IP: a.Value, Mask: net.CIDRMask(int(msg.Src_len), 8*len(a.Value))}
			case nl.FRA_OIFNAME:
				rule.OifName = unix.ByteSliceToString(a.Value)
			}
		}
		return rule, rule.Family == family, err
	})
}

// addressesInSandbox are those of a device.
func (n *NS) addressesInSandbox(index, family int) ([]netip.Prefix, error) {
	return inSandbox(n, unix.RTM_GETADDR, unix.RTM_NEWADDR, nl.NewIfAddrmsg(family), func(m []byte) (p netip.Prefix, ok bool, err error) {
		msg := nl.DeserializeIfAddrmsg(m)
		attrs, err := nl.ParseRouteAttr(m[msg.Len():])
		var own, other netip.Addr // of the device, and of the other end of a line; one where both are the same
		for _, a := range attrs {
			switch a.Attr.Type {
			case unix.IFA_LOCAL:
				own, _ = netip.AddrFromSlice(a.Value)
			case unix.IFA_ADDRESS:
				other, _ = netip.AddrFromSlice(a.Value)
			}
		}
		if !own.IsValid() {
			own = other
		}
		return netip.PrefixFrom(own, int(msg.Prefixlen)), own.IsValid() && int(msg.Index) == index && int(msg.Family) == family, err
	})
}

// neighboursInSandbox are the entries of a device.
func (n *NS) neighboursInSandbox(index, family int) ([]netlink.Neigh, error) {
	header := &netlink.Ndmsg{Family: uint8(family), Index: uint32(index)}
	return inSandbox(n, unix.RTM_GETNEIGH, unix.RTM_NEWNEIGH, header, func(m []byte) (netlink.Neigh, bool, error) {
		e, err := netlink.NeighDeserialize(m)
		if err != nil {
			return netlink.Neigh{}, false, err
		}
		return *e, e.LinkIndex == index && e.Family == family, nil
	})
}

// number is an attribute of 32 bits.
func number(value []byte) int {
	if len(value) < 4 {
		return 0
	}
	return int(binary.NativeEndian.Uint32(value))
}
