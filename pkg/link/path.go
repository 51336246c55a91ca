package link

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/pkg/link/internal/dump"
)

// Path is how the node reaches an address now.
type Path struct {
	Link Link
	// Src is the node's address on that way.
	Src netip.Addr
	// Via is the next hop; not valid where the address is on the link.
	Via netip.Addr
	// MTU, bytes: the least of device, route and what path MTU discovery has
	// learned about the address (RFC 1191).
	MTU int
}

// ErrNoRoute: the node's routes lead nowhere for an address, or refuse it.
var ErrNoRoute = errors.New("no route")

// PathTo looks up the way to ip; [ErrNoRoute] where there is none.
func (n *NS) PathTo(ip netip.Addr) (Path, error) {
	return n.pathTo(ip, nil, n.LinkByIndex)
}

// PathOf looks up the way to ip of packets from src that came in by a device: rules of
// routing may send them elsewhere than the node's own. Path's Src is not valid then.
// [ErrNoRoute] where the node would not send them on.
func (n *NS) PathOf(src netip.Addr, device string, ip netip.Addr) (Path, error) {
	return n.pathTo(ip, &netlink.RouteGetOptions{SrcAddr: src.AsSlice(), Iif: device}, n.LinkByIndex)
}

// HopsOf are the next hops of the route that [NS.PathOf] takes one of, each with its device, where the kernel shares
// connections among several; else none. One whose device is down is none, nor one that no other route leads to
// (RTNH_F_ONLINK), as [NS.ProbeNeighbour] would ask another.
func (n *NS) HopsOf(src netip.Addr, device string, ip netip.Addr) ([]Path, error) {
	routes, err := n.nl.RouteGetWithOptions(ip.AsSlice(), &netlink.RouteGetOptions{SrcAddr: src.AsSlice(), Iif: device, FIBMatch: true})
	if err != nil {
		return nil, fmt.Errorf("looking up the next hops towards %s: %w", ip, err)
	}
	var hops []Path
	for _, r := range routes {
		for _, hop := range r.MultiPath {
			l, ok, err := n.LinkByIndex(hop.LinkIndex)
			if err != nil {
				return nil, err
			}
			if via, is := netip.AddrFromSlice(hop.Gw); ok && is && hop.Flags&(unix.RTNH_F_DEAD|unix.RTNH_F_ONLINK) == 0 {
				hops = append(hops, Path{Link: l, Via: via.Unmap(), MTU: l.MTU})
			}
		}
	}
	return hops, nil
}

// PathsTo are the ways of packets from src, an address of the node, to those of ips
// that there is a route to.
func (n *NS) PathsTo(src netip.Addr, ips []netip.Addr) map[netip.Addr]Path {
	type found struct {
		link Link
		ok   bool
		err  error
	}
	seen := map[int]found{}
	known := func(index int) (Link, bool, error) {
		f, ok := seen[index]
		if !ok {
			f.link, f.ok, f.err = n.LinkByIndex(index)
			seen[index] = f
		}
		return f.link, f.ok, f.err
	}
	out := make(map[netip.Addr]Path, len(ips))
	from := &netlink.RouteGetOptions{SrcAddr: src.AsSlice()}
	for _, ip := range ips {
		if p, err := n.pathTo(ip, from, known); err == nil {
			out[ip] = p
		}
	}
	return out
}

func (n *NS) pathTo(ip netip.Addr, options *netlink.RouteGetOptions, byIndex func(int) (Link, bool, error)) (Path, error) {
	routes, err := n.nl.RouteGetWithOptions(ip.AsSlice(), options)
	if slices.ContainsFunc(noRoute, func(no error) bool { return errors.Is(err, no) }) {
		return Path{}, fmt.Errorf("%w to %s: %w", ErrNoRoute, ip, err)
	}
	if err != nil {
		return Path{}, fmt.Errorf("looking up the way to %s: %w", ip, err)
	}
	if len(routes) == 0 {
		return Path{}, fmt.Errorf("%w to %s", ErrNoRoute, ip)
	}
	l, ok, err := byIndex(routes[0].LinkIndex)
	if err != nil || !ok {
		return Path{}, fmt.Errorf("route to %s: its device is gone: %w", ip, errors.Join(err, ErrNoLink))
	}
	r := routeOf(routes[0])
	p := Path{Link: l, Src: r.Src, Via: r.Via, MTU: l.MTU}
	if r.MTU > 0 {
		p.MTU = min(p.MTU, r.MTU)
	}
	return p, nil
}

// noRoute is what the kernel says of an address that it has no route to, or one of type
// unreachable, blackhole or prohibit; EXDEV of a sender whose way back is another
// (fib_props and __fib_validate_source of net/ipv4).
var noRoute = []error{unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EINVAL, unix.EACCES, unix.EXDEV}

// Stack is the device and all in the namespace that its packets leave by: what a
// VLAN is on, the ports of a bond or a bridge, and what these stand on.
func (n *NS) Stack(name string) ([]Link, error) {
	raw, err := n.nl.LinkByName(name)
	if notFound(err) {
		err = ErrNoLink
	}
	if err != nil {
		return nil, fmt.Errorf("network device %s: %w", name, err)
	}
	if parent, ports := standsOn(raw); parent == 0 && !ports {
		return []Link{linkOf(raw)}, nil // most do: no need to list all
	}
	all, err := dump.Whole(n.nl.LinkList)
	if err != nil {
		return nil, fmt.Errorf("listing network devices: %w", err)
	}
	var out []Link
	for _, l := range stack(raw, all) {
		out = append(out, linkOf(l))
	}
	return out, nil
}

// stack is top and what it stands on.
func stack(top netlink.Link, all []netlink.Link) []netlink.Link {
	out := []netlink.Link{top}
	seen := map[int]bool{top.Attrs().Index: true}
	for i := 0; i < len(out); i++ {
		parent, ports := standsOn(out[i])
		for _, l := range all {
			a := l.Attrs()
			if below := a.Index == parent || ports && a.MasterIndex == out[i].Attrs().Index; below && !seen[a.Index] {
				seen[a.Index] = true
				out = append(out, l)
			}
		}
	}
	return out
}

// standsOn is the index of the device that l is on, 0 where it is on none of the
// namespace, and whether its packets leave by the devices that belong to it.
func standsOn(l netlink.Link) (parent int, ports bool) {
	switch l.Type() {
	case "bridge", "bond", "team":
		return 0, true
	case "vlan", "macvlan", "macvtap", "ipvlan", "ipvtap", "macsec":
		if a := l.Attrs(); a.NetNsID < 0 {
			return a.ParentIndex, false
		}
	}
	return 0, false // the parent of a veth is its other end
}
