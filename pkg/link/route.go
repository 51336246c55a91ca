package link

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/pkg/link/internal/dump"
)

// Route is a route through one device.
type Route struct {
	// Dst is 0.0.0.0/0 or ::/0 for the default route; its family is the route's.
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
	// Table of the route; 0 is main.
	Table int `json:",omitempty"`
}

func (r Route) family() int { return familyOf(r.Dst.Addr()) }

// Scope link is what a route without next hop has (rtnetlink(7), rtm_scope).
func (r Route) scope() netlink.Scope {
	if r.Via.IsValid() {
		return netlink.SCOPE_UNIVERSE
	}
	return netlink.SCOPE_LINK
}

func (r Route) raw(index int) *netlink.Route {
	raw := &netlink.Route{
		LinkIndex: index, Family: r.family(), Scope: r.scope(), Dst: ipNet(r.Dst), MTU: r.MTU,
		Priority: r.Metric, Protocol: netlink.RouteProtocol(r.Protocol), Table: cmp.Or(r.Table, unix.RT_TABLE_MAIN),
	}
	if r.family() == unix.AF_INET6 {
		raw.Scope = netlink.SCOPE_UNIVERSE // IPv6 knows no other
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
		if raw.Family == unix.AF_INET6 {
			r.Dst = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
	}
	if raw.Table != unix.RT_TABLE_MAIN {
		r.Table = raw.Table
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
	l, err := n.Existing(name)
	if err != nil {
		return false, err
	}
	have, err := n.routesLike(l.Index, want)
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

// addRoute adds the route through the device unless there is one of the same
// destination and metric, through whichever device, and reports whether it did.
func (n *NS) addRoute(name string, r Route) (added bool, err error) {
	l, err := n.Existing(name)
	if err != nil {
		return false, err
	}
	if have, err := n.routesLike(l.Index, r); err != nil || slices.Contains(have, r) {
		return err == nil, err
	}
	switch err := n.nl.RouteAdd(r.raw(l.Index)); {
	case errors.Is(err, unix.EEXIST):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("route to %s through %s: %w", r.Dst, name, err)
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

// routes are IPv4's main table's unicast routes through one device.
func (n *NS) routes(index int) ([]Route, error) {
	all, err := n.mainTable()
	return through(index, all), err
}

// routesBeyond are those of IPv6, and of other tables than main; without the kernel's
// own tables, which follow from addresses.
func (n *NS) routesBeyond(index int) ([]Route, error) {
	var out []Route
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		all, err := n.table(family, unix.RT_TABLE_UNSPEC)
		if err != nil {
			return nil, err
		}
		all = slices.DeleteFunc(all, func(raw netlink.Route) bool {
			return raw.Table == unix.RT_TABLE_LOCAL || family == unix.AF_INET && raw.Table == unix.RT_TABLE_MAIN ||
				raw.Dst != nil && raw.Dst.IP.IsLinkLocalUnicast() || raw.Dst != nil && raw.Dst.IP.IsMulticast()
		})
		out = append(out, through(index, all)...)
	}
	return out, nil
}

// routesLike are the unicast routes through one device in r's table.
func (n *NS) routesLike(index int, r Route) ([]Route, error) {
	all, err := n.table(r.family(), cmp.Or(r.Table, unix.RT_TABLE_MAIN))
	return through(index, all), err
}

func through(index int, all []netlink.Route) []Route {
	var out []Route
	for _, raw := range all {
		if raw.LinkIndex == index && raw.Type == unix.RTN_UNICAST {
			out = append(out, routeOf(raw))
		}
	}
	return out
}

func (n *NS) mainTable() ([]netlink.Route, error) { return n.table(unix.AF_INET, unix.RT_TABLE_MAIN) }

func (n *NS) table(family, table int) ([]netlink.Route, error) {
	list := func() ([]netlink.Route, error) { return n.routesInSandbox(family, table) }
	if n.home {
		list = func() ([]netlink.Route, error) {
			return n.nl.RouteListFiltered(family, &netlink.Route{Table: table}, netlink.RT_FILTER_TABLE)
		}
	}
	all, err := dump.Whole(list)
	if err != nil {
		return nil, fmt.Errorf("listing routes: %w", err)
	}
	return all, nil
}

// Entangled says what ties the device to others so that its configuration cannot be
// moved: routes over several devices, and rules that name it. Empty where nothing does.
func (n *NS) Entangled(name string) ([]string, error) {
	l, err := n.Existing(name)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		all, err := n.table(family, unix.RT_TABLE_UNSPEC)
		if err != nil {
			return nil, err
		}
		for _, raw := range all {
			if slices.ContainsFunc(raw.MultiPath, func(hop *netlink.NexthopInfo) bool { return hop.LinkIndex == l.Index }) {
				out = append(out, fmt.Sprintf("the route to %s goes over several devices", routeOf(raw).Dst))
			}
		}
		rules, err := dump.Whole(func() ([]netlink.Rule, error) { return n.nl.RuleList(family) })
		if err != nil {
			return nil, fmt.Errorf("listing routing rules: %w", err)
		}
		for _, r := range rules {
			if r.IifName == name || r.OifName == name {
				out = append(out, fmt.Sprintf("routing rule %d names it", r.Priority))
			}
		}
	}
	return out, nil
}

// DefaultRoute is the device of the preferred default route and the address that
// the node uses there; ok is false where there is none.
func (n *NS) DefaultRoute() (l Link, src netip.Addr, ok bool, err error) {
	best, err := n.defaultRoute()
	if err != nil || best == nil {
		return Link{}, netip.Addr{}, false, err
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

// defaultRoute is the preferred one; nil where there is none.
func (n *NS) defaultRoute() (best *netlink.Route, err error) {
	all, err := n.mainTable()
	if err != nil {
		return nil, err
	}
	for i, raw := range all {
		isDefault := raw.Dst == nil || raw.Dst.IP.IsUnspecified()
		if isDefault && raw.Type == unix.RTN_UNICAST && raw.LinkIndex != 0 && (best == nil || raw.Priority < best.Priority) {
			best = &all[i]
		}
	}
	return best, nil
}
