package ovs

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
)

// TunnelRoute is a way that ovs-vswitchd was told for tunnel packets of the userspace
// datapath, beside those that it reads from the kernel (ovs/route/add of
// ovs-vswitchd(8)). Its own it forgets and reads anew whenever a device of the node
// changes, and what it translates in that moment is dropped; one that it was told stays.
type TunnelRoute struct {
	Dst netip.Prefix
	// Device is the bridge whose local port it leaves by.
	Device string
	// Via is the next hop; not valid where Dst is on the link.
	Via netip.Addr
	// Src is the address that ovs-vswitchd chose on Device.
	Src netip.Addr
}

// TunnelRoutes are those that ovs-vswitchd was told, without those that are only for
// marked packets. It forgets them when it ends.
func (c *Client) TunnelRoutes(ctx context.Context) ([]TunnelRoute, error) {
	out, err := c.control(ctx, "ovs/route/show")
	if err != nil {
		return nil, fmt.Errorf("tunnel routes: %w", err)
	}
	var routes []TunnelRoute
	for line := range strings.Lines(out) {
		if r, ok := parseTunnelRoute(line); ok {
			routes = append(routes, r)
		}
	}
	return routes, nil
}

// parseTunnelRoute reads a line such as "User: 192.0.2.7/32 dev br-phy GW 192.0.2.1 SRC 192.0.2.5".
func parseTunnelRoute(line string) (TunnelRoute, bool) {
	kind, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
	words := strings.Fields(rest)
	if kind != "User" || len(words) == 0 {
		return TunnelRoute{}, false
	}
	dst, err := netip.ParsePrefix(words[0])
	if err != nil {
		return TunnelRoute{}, false
	}
	r := TunnelRoute{Dst: dst}
	for i := 1; i+1 < len(words); i++ {
		switch words[i] {
		case "dev":
			r.Device = words[i+1]
		case "GW":
			r.Via, _ = netip.ParseAddr(words[i+1])
		case "SRC":
			r.Src, _ = netip.ParseAddr(words[i+1])
		case "MARK":
			return TunnelRoute{}, false
		}
	}
	return r, r.Device != ""
}

// SetTunnelRoute tells ovs-vswitchd a way, in place of one with the same Dst. It
// chooses Src, and fails where Device has no address that fits.
func (c *Client) SetTunnelRoute(ctx context.Context, r TunnelRoute) error {
	args := []string{r.Dst.String(), r.Device}
	if r.Via.IsValid() {
		args = append(args, r.Via.String())
	}
	if _, err := c.control(ctx, "ovs/route/add", args...); err != nil {
		return fmt.Errorf("tunnel route to %s by %s: %w", r.Dst, r.Device, err)
	}
	return nil
}

// DeleteTunnelRoute has ovs-vswitchd forget a way that it was told.
func (c *Client) DeleteTunnelRoute(ctx context.Context, dst netip.Prefix) error {
	if _, err := c.control(ctx, "ovs/route/del", dst.String()); err != nil {
		return fmt.Errorf("deleting the tunnel route to %s: %w", dst, err)
	}
	return nil
}

// TunnelListeners are the addresses at which the userspace datapath takes tunnel packets
// at UDP port (tnl/ports/show of ovs-vswitchd(8)). ovs-vswitchd forgets one with the
// device's address, and looks for it again only when it is told a way.
func (c *Client) TunnelListeners(ctx context.Context, port uint16) ([]netip.Addr, error) {
	out, err := c.control(ctx, "tnl/ports/show", "-v")
	if err != nil {
		return nil, fmt.Errorf("tunnel ports: %w", err)
	}
	var addrs []netip.Addr
	for line := range strings.Lines(out) {
		if a, ok := parseTunnelListener(line, port); ok {
			addrs = append(addrs, a)
		}
	}
	return addrs, nil
}

// listener is such as "vxlan_sys_4789 (4) : eth(dst=..),eth_type(0x0800),ipv4(dst=192.0.2.1,proto=17,frag=no),udp(dst=4789)".
var listener = regexp.MustCompile(`\bipv[46]\((?:[^)]*,)?dst=([0-9a-fA-F.:]+)[,)].*\budp\(dst=([0-9]+)\)`)

func parseTunnelListener(line string, port uint16) (netip.Addr, bool) {
	m := listener.FindStringSubmatch(line)
	if m == nil || m[2] != strconv.Itoa(int(port)) {
		return netip.Addr{}, false
	}
	a, err := netip.ParseAddr(m[1])
	return a, err == nil
}
