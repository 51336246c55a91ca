package link

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Route is an IPv4 route of the main table through one device.
type Route struct {
	// Dst is 0.0.0.0/0 for the default route.
	Dst netip.Prefix
	// Via is the next hop; not valid for what is on the link.
	Via netip.Addr
	// OnLink says that Via is on the link though no address says so.
	OnLink bool
	// Src is the address preferred for what goes that way; not valid for none.
	Src netip.Addr
	// MTU, bytes, of the route; 0 for the device's.
	MTU int
	// Metric of the route; the lower is preferred.
	Metric int
	// Protocol says who made it (rtnetlink(7), rtm_protocol); 0 writes "static".
	Protocol int
}

// Scope link is what a route without next hop has (rtnetlink(7), rtm_scope).
func (r Route) scope() netlink.Scope {
	if r.Via.IsValid() {
		return netlink.SCOPE_UNIVERSE
	}
	return netlink.SCOPE_LINK
}

func (r Route) raw(index int) *netlink.Route {
	raw := &netlink.Route{
		LinkIndex: index, Family: unix.AF_INET, Scope: r.scope(), Dst: ipNet(r.Dst), MTU: r.MTU,
		Priority: r.Metric, Protocol: netlink.RouteProtocol(r.Protocol), Table: unix.RT_TABLE_MAIN,
	}
	if r.Protocol == 0 {
		raw.Protocol = unix.RTPROT_STATIC
	}
	if r.Via.IsValid() {
		raw.Gw = r.Via.AsSlice()
	}
	if r.Src.IsValid() {
		raw.Src = r.Src.AsSlice()
	}
	if r.OnLink {
		raw.Flags = int(netlink.FLAG_ONLINK)
	}
	return raw
}

func routeOf(raw netlink.Route) Route {
	r := Route{
		OnLink: raw.Flags&int(netlink.FLAG_ONLINK) != 0, MTU: raw.MTU, Metric: raw.Priority, Protocol: int(raw.Protocol),
	}
	r.Dst, _ = prefixOf(raw.Dst)
	if !r.Dst.IsValid() {
		r.Dst = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	if a, ok := netip.AddrFromSlice(raw.Gw); ok {
		r.Via = a.Unmap()
	}
	if a, ok := netip.AddrFromSlice(raw.Src); ok {
		r.Src = a.Unmap()
	}
	return r
}

// EnsureRoute adds the route through the device, or replaces the one of the same
// destination and metric, and reports whether there was something to do.
func (n *NS) EnsureRoute(name string, want Route) (changed bool, err error) {
	l, err := n.must(name)
	if err != nil {
		return false, err
	}
	have, err := n.routes(l.Index)
	if err != nil {
		return false, err
	}
	if want.Protocol == 0 {
		want.Protocol = unix.RTPROT_STATIC
	}
	if slices.Contains(have, want) {
		return false, nil
	}
	if err := n.nl.RouteReplace(want.raw(l.Index)); err != nil {
		return false, fmt.Errorf("route to %s through %s: %w", want.Dst, name, err)
	}
	return true, nil
}

// DeleteRoute removes the route through the device; one that is not there is no error.
func (n *NS) DeleteRoute(name string, r Route) error {
	l, ok, err := n.Link(name)
	if err != nil || !ok {
		return err
	}
	if err := n.nl.RouteDel(r.raw(l.Index)); err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("removing route to %s through %s: %w", r.Dst, name, err)
	}
	return nil
}

// routes are the main table's unicast routes through one device.
func (n *NS) routes(index int) ([]Route, error) {
	all, err := n.mainTable()
	if err != nil {
		return nil, err
	}
	var out []Route
	for _, raw := range all {
		if raw.LinkIndex == index && raw.Type == unix.RTN_UNICAST {
			out = append(out, routeOf(raw))
		}
	}
	return out, nil
}

func (n *NS) mainTable() ([]netlink.Route, error) {
	all, err := retryDump(func() ([]netlink.Route, error) {
		return n.nl.RouteListFiltered(unix.AF_INET, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("listing routes: %w", err)
	}
	return all, nil
}

// DefaultRoute is the device of the preferred default route and the address that
// the node uses there; ok is false where there is none.
func (n *NS) DefaultRoute() (l Link, src netip.Addr, ok bool, err error) {
	all, err := n.mainTable()
	if err != nil {
		return Link{}, netip.Addr{}, false, err
	}
	var best *netlink.Route
	for i, raw := range all {
		isDefault := raw.Dst == nil || raw.Dst.IP.IsUnspecified()
		if isDefault && raw.Type == unix.RTN_UNICAST && raw.LinkIndex != 0 && (best == nil || raw.Priority < best.Priority) {
			best = &all[i]
		}
	}
	if best == nil {
		return Link{}, netip.Addr{}, false, nil
	}
	l, ok, err = n.LinkByIndex(best.LinkIndex)
	if err != nil || !ok {
		return Link{}, netip.Addr{}, false, err
	}
	if l.Addresses, err = n.addresses(l.Index); err != nil {
		return Link{}, netip.Addr{}, false, err
	}
	if src = routeOf(*best).Src; !src.IsValid() && len(l.Addresses) > 0 {
		src = l.Addresses[0].Addr()
	}
	return l, src, true, nil
}
