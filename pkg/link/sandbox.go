package link

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/pkg/faultpoint"
	"github.com/k8s-ovs/k8s-ovs/pkg/link/internal/dump"
)

// SandboxSpec is what a pod's network device should be, inside its sandbox.
type SandboxSpec struct {
	// Name of the device, such as "eth0".
	Name string
	// MAC of the device.
	MAC net.HardwareAddr
	// MTU of the device, bytes: what it takes.
	MTU int
	// RouteMTU, bytes, is what the pod sends at most; 0 is the device's. A larger
	// one than the device's counts as that.
	RouteMTU int
	// Address of the pod; it gets it as a /32.
	Address netip.Addr
	// Gateway is on the link and the way to all else.
	Gateway netip.Addr
	// GatewayMAC is set as the gateway's permanent neighbour entry.
	GatewayMAC net.HardwareAddr
	// OffloadsOff turns transmit checksum and segmentation offload off, which the
	// userspace datapath needs: it reads what the pod hands to the device, and nobody
	// fills in checksums or cuts segments afterwards.
	OffloadsOff bool
}

// loopbackIndex is the index of lo in every namespace (LOOPBACK_IFINDEX of the
// kernel's include/net/flow.h).
const loopbackIndex = 1

// ConfigureSandbox makes the device what spec says: loopback up, MAC, MTU,
// offloads, address, routes, neighbour. It may be repeated, and completes what was
// left half done. It returns the device. [ErrNoLink] where there is none.
func (n *NS) ConfigureSandbox(spec SandboxSpec) (Link, error) {
	fail := func(err error) (Link, error) {
		return Link{}, fmt.Errorf("sandbox %s, %s: %w", n.path, spec.Name, err)
	}
	l, ok, err := n.Link(spec.Name)
	if err != nil {
		return fail(err)
	}
	if !ok {
		return fail(ErrNoLink)
	}
	if err := n.nl.LinkSetUp(byIndex(Link{Index: loopbackIndex, Name: "lo"})); err != nil {
		return fail(fmt.Errorf("setting loopback up: %w", err))
	}
	dev := byIndex(l)
	if !bytes.Equal(l.MAC, spec.MAC) {
		if err := n.nl.LinkSetHardwareAddr(dev, spec.MAC); err != nil {
			return fail(fmt.Errorf("setting hardware address %s: %w", spec.MAC, err))
		}
	}
	if l.MTU != spec.MTU {
		if err := n.nl.LinkSetMTU(dev, spec.MTU); err != nil {
			return fail(fmt.Errorf("setting MTU %d: %w", spec.MTU, err))
		}
	}
	if spec.OffloadsOff {
		if err := n.SetOffloads(spec.Name, false); err != nil {
			return fail(err)
		}
	}
	if !l.Up {
		if err := n.nl.LinkSetUp(dev); err != nil {
			return fail(fmt.Errorf("setting up: %w", err))
		}
	}
	if err := n.nl.AddrReplace(dev, &netlink.Addr{IPNet: ipNet(host(spec.Address))}); err != nil {
		return fail(fmt.Errorf("adding address %s: %w", spec.Address, err))
	}
	faultpoint.Here("sandbox", "address")
	if err := n.routeSandbox(l, spec); err != nil {
		return fail(err)
	}
	if err := n.setNeighbour(l.Index, spec.Gateway, spec.GatewayMAC); err != nil {
		return fail(fmt.Errorf("neighbour entry of gateway %s: %w", spec.Gateway, err))
	}
	l.MAC, l.MTU, l.Up, l.Addresses = spec.MAC, spec.MTU, true, []netip.Prefix{host(spec.Address)}
	return l, nil
}

// routes in the order in which the kernel accepts them: the gateway is reached
// before it is used.
func (s SandboxSpec) routes() []Route {
	return []Route{
		{Dst: host(s.Gateway), Protocol: unix.RTPROT_STATIC, MTU: s.routeMTU()},
		{Dst: netip.PrefixFrom(netip.IPv4Unspecified(), 0), Via: s.Gateway, Protocol: unix.RTPROT_STATIC, MTU: s.routeMTU()},
	}
}

// apartTable is the routing table of a device whose routes stand apart: a number that
// follows from the device and that nobody else uses by custom.
func apartTable(index int) int { return 77_000 + index }

// apartPriority is that of the rules that lead to such tables: before main (32766).
const apartPriority = 7700

// Apart reports whether the routes of spec stand apart, in a table that only packets
// from its address or bound to its device use: another device of the sandbox has the
// default route. The first one keeps it, whoever made it, and each address answers by its
// own device.
func (n *NS) Apart(spec SandboxSpec) (bool, error) {
	l, err := n.Existing(spec.Name)
	if err != nil {
		return false, fmt.Errorf("sandbox %s: %w", n.path, err)
	}
	return n.apart(l.Index)
}

func (n *NS) apart(index int) (bool, error) {
	all, err := n.mainTable()
	if err != nil {
		return false, err
	}
	own, other := false, false
	for _, raw := range all {
		if r := routeOf(raw); raw.Type == unix.RTN_UNICAST && r.Dst.Bits() == 0 {
			own = own || raw.LinkIndex == index && r.Metric == 0
			other = other || raw.LinkIndex != index
		}
	}
	return other && !own, nil
}

// otherDefault reports whether another device has a default route beside the device's own,
// of the same metric: the kernel takes either.
func (n *NS) otherDefault(index int) (bool, error) {
	all, err := n.mainTable()
	if err != nil {
		return false, err
	}
	own, other := false, false
	for _, raw := range all {
		if r := routeOf(raw); raw.Type == unix.RTN_UNICAST && r.Dst.Bits() == 0 && r.Metric == 0 {
			own = own || raw.LinkIndex == index
			other = other || raw.LinkIndex != index
		}
	}
	return own && other, nil
}

// routeSandbox makes the routes of spec.
func (n *NS) routeSandbox(l Link, spec SandboxSpec) error {
	apart, err := n.apart(l.Index)
	if err != nil {
		return err
	}
	for _, r := range spec.routes() {
		if apart {
			r.Table = apartTable(l.Index)
		}
		if err := n.nl.RouteReplace(r.raw(l.Index)); err != nil {
			return fmt.Errorf("adding route to %s: %w", r.Dst, err)
		}
		faultpoint.Here("sandbox", "route")
	}
	if !apart {
		return nil
	}
	for _, r := range apartRules(spec.Name, spec.Address, apartTable(l.Index)) {
		if err := n.nl.RuleAdd(r); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("adding a rule that leads to table %d: %w", r.Table, err)
		}
	}
	return nil
}

// apartRules lead to a table what is sent from the address, and what is sent by the device
// whatever its address: by programs that bind to the device, and by the kernel itself when
// it looks whether the gateway of a route through the device is there.
func apartRules(name string, address netip.Addr, table int) []*netlink.Rule {
	from, by := netlink.NewRule(), netlink.NewRule()
	from.Src, by.OifName = ipNet(host(address)), name
	for _, r := range []*netlink.Rule{from, by} {
		r.Family, r.Priority, r.Table = familyOf(address), apartPriority, table
	}
	return []*netlink.Rule{from, by}
}

// LeaveSandbox removes what of a device that goes the kernel leaves behind: the rules
// that lead to its routes. Another device may have its name by now: a rule for the name is
// that one's where its table is the one of another address.
func (n *NS) LeaveSandbox(name string, address netip.Addr) error {
	rules, err := dump.Whole(func() ([]netlink.Rule, error) { return n.rulesInSandbox(familyOf(address)) })
	if err != nil {
		return fmt.Errorf("sandbox %s: listing rules: %w", n.path, err)
	}
	others := map[int]bool{}
	for _, r := range rules {
		if src, from := prefixOf(r.Src); r.Priority == apartPriority && from && src != host(address) {
			others[r.Table] = true
		}
	}
	for _, r := range rules {
		src, from := prefixOf(r.Src)
		ours := from && src == host(address) || r.OifName == name && !others[r.Table]
		if r.Priority != apartPriority || !ours {
			continue
		}
		if err := n.nl.RuleDel(&r); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("sandbox %s: removing the rule that leads to table %d: %w", n.path, r.Table, err)
		}
	}
	return nil
}

// routeMTU is what the routes say: nothing where it is the device's.
func (s SandboxSpec) routeMTU() int {
	if s.RouteMTU >= s.MTU {
		return 0
	}
	return s.RouteMTU
}

// SetPairMTU brings MTU and RouteMTU of spec to a running pod, whose pair has the
// end hostName in n, and reports whether there was something to do. What the pod
// sends is never more than what the other end takes: to shrink, routes come first,
// then the pod's end, then the host's; to grow, the other way round. Its
// connections go on with the new size. Routes that the pod has no more are not put back.
func (n *NS) SetPairMTU(hostName string, sandbox *NS, spec SandboxSpec) (changed bool, err error) {
	inside, err := sandbox.Existing(spec.Name)
	if err != nil {
		return false, fmt.Errorf("sandbox %s: %w", sandbox.path, err)
	}
	pod := func() (bool, error) { return sandbox.SetMTU(spec.Name, spec.MTU) }
	node := func() (bool, error) { return n.SetMTU(hostName, spec.MTU) }
	routes := func() (bool, error) { return sandbox.setRouteMTU(inside.Index, spec, spec.routeMTU()) }
	steps := []func() (bool, error){node, pod, routes}
	if spec.MTU < inside.MTU {
		smaller := func() (bool, error) {
			return sandbox.setRouteMTU(inside.Index, spec, cmp.Or(spec.routeMTU(), spec.MTU))
		}
		steps = []func() (bool, error){smaller, pod, node, routes}
	}
	for _, step := range steps {
		did, err := step()
		if err != nil {
			return changed, fmt.Errorf("sandbox %s: %w", sandbox.path, err)
		}
		changed = changed || did
	}
	return changed, nil
}

// setRouteMTU gives those of spec's routes that are there the MTU. A route that is
// replaced also forgets what it had learned of smaller ones (RFC 1191).
func (n *NS) setRouteMTU(index int, spec SandboxSpec, mtu int) (changed bool, err error) {
	have, err := n.sandboxRoutes(index)
	if err != nil {
		return false, err
	}
	for _, r := range have {
		ours := slices.ContainsFunc(spec.routes(), func(o Route) bool { return o.Dst == r.Dst && o.Via == r.Via })
		if !ours || r.MTU == mtu {
			continue
		}
		r.MTU = mtu
		if err := n.putRoute(index, r); err != nil {
			return changed, fmt.Errorf("setting the MTU of the route to %s to %d: %w", r.Dst, mtu, err)
		}
		changed = true
	}
	return changed, nil
}

// putRoute makes r the device's route to its destination. To replace, the kernel takes the
// first route to the destination with that metric, whosever it is: where another device has
// one too, r is added, and then what the device had is removed.
func (n *NS) putRoute(index int, r Route) error {
	table := cmp.Or(r.Table, unix.RT_TABLE_MAIN)
	all, err := n.table(r.family(), table)
	if err != nil {
		return err
	}
	var own []Route
	shared := false
	for _, raw := range all {
		old := routeOf(raw)
		if old.Dst != r.Dst || old.Metric != r.Metric || raw.Type != unix.RTN_UNICAST {
			continue
		}
		if raw.LinkIndex != index {
			shared = true
			continue
		}
		old.Table = table
		own = append(own, old)
	}
	if !shared {
		return n.nl.RouteReplace(r.raw(index))
	}
	same := func(o Route) bool { return o.Via == r.Via && o.MTU == r.MTU }
	if !slices.ContainsFunc(own, same) {
		if err := n.nl.RouteAppend(r.raw(index)); err != nil {
			return err
		}
	}
	for _, old := range own {
		if same(old) {
			continue
		}
		if err := n.nl.RouteDel(old.raw(index)); err != nil {
			return err
		}
	}
	return nil
}

// sandboxRoutes are the device's in main and in its own table.
func (n *NS) sandboxRoutes(index int) ([]Route, error) {
	have, err := n.routes(index)
	if err != nil {
		return nil, err
	}
	own, err := n.table(podFamily, apartTable(index))
	return append(have, through(index, own)...), err
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// CheckSandbox compares the device with spec and names each difference; none
// where all is as it should be. What others have added to it is no difference,
// except a second address.
func (n *NS) CheckSandbox(spec SandboxSpec) (differences []string, err error) {
	add := func(format string, args ...any) {
		differences = append(differences, fmt.Sprintf(format, args...))
	}
	l, ok, err := n.Describe(spec.Name)
	if err != nil {
		return nil, fmt.Errorf("sandbox %s: %w", n.path, err)
	}
	if !ok {
		add("device %s is missing", spec.Name)
		return differences, nil
	}
	if l.Type != "veth" {
		add("%s is of type %s, not veth", spec.Name, l.Type)
	}
	if !l.Up {
		add("%s is down", spec.Name)
	}
	if !bytes.Equal(l.MAC, spec.MAC) {
		add("%s has hardware address %s, not %s", spec.Name, l.MAC, spec.MAC)
	}
	if l.MTU != spec.MTU {
		add("%s has MTU %d, not %d", spec.Name, l.MTU, spec.MTU)
	}
	if want := host(spec.Address); len(l.Addresses) != 1 || l.Addresses[0] != want {
		add("%s has addresses %v, not %s alone", spec.Name, l.Addresses, want)
	}
	if err := n.checkRoutes(l, spec, add); err != nil {
		return nil, fmt.Errorf("sandbox %s: %w", n.path, err)
	}
	return differences, nil
}

func (n *NS) checkRoutes(l Link, spec SandboxSpec, add func(string, ...any)) error {
	routes, err := n.sandboxRoutes(l.Index)
	if err != nil {
		return err
	}
	for _, want := range spec.routes() {
		i := slices.IndexFunc(routes, func(r Route) bool { return r.Dst == want.Dst && r.Via == want.Via })
		switch {
		case i < 0:
			add("the route to %s through %s is missing", want.Dst, spec.Name)
		case routes[i].MTU != want.MTU:
			add("the route to %s through %s has MTU %d, not %d (0: the device's)", want.Dst, spec.Name, routes[i].MTU, want.MTU)
		}
	}
	other, err := n.otherDefault(l.Index)
	if err != nil {
		return err
	}
	if other {
		add("another device has a default route beside that through %s: packets go by either of them", spec.Name)
	}
	mac, err := n.neighbour(l.Index, spec.Gateway)
	if err != nil {
		return err
	}
	if !bytes.Equal(mac, spec.GatewayMAC) {
		add("the permanent neighbour entry of gateway %s is missing or wrong", spec.Gateway)
	}
	if !spec.OffloadsOff {
		return nil
	}
	on, err := n.offloads(spec.Name)
	if err != nil {
		return err
	}
	if on {
		add("%s has transmit checksum or segmentation offload on, which the userspace datapath cannot take", spec.Name)
	}
	return nil
}
