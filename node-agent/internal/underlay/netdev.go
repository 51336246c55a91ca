package underlay

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
)

// maxSteps bounds how many steps one call takes: the bridge is rebuilt, waited for, its local
// port configured, and all found as it should be.
const maxSteps = 5

// netdev makes sure that the address is on the local port of a bridge of the
// userspace datapath.
func (s *Setup) netdev(ctx context.Context, ip netip.Addr) (u Underlay, changed bool, err error) {
	s.turn.Lock()
	defer s.turn.Unlock()
	remade := false
	for range maxSteps {
		c, err := s.look(ip)
		if err != nil {
			return Underlay{}, changed, err
		}
		v := c.decide()
		if c.waits(v.step) {
			did, err := s.serve(ctx, *c.memory)
			changed, remade = changed || did, remade || did
			if err != nil {
				return Underlay{}, changed, err
			}
			continue // the uplink may have been lent the addresses meanwhile
		}
		did := true
		switch v.step {
		case refuse:
			return Underlay{}, changed, errors.New(v.why)
		case adopt:
			u, err := s.adopt(ctx, c)
			return u, changed, err
		case stay:
			u, did, err := s.stay(ctx, c)
			if err == nil && remade {
				err = s.lookAgain(ctx)
			}
			return u, changed || did, err
		case rebuild:
			err = s.rebuild(ctx, *c.memory)
		case restore:
			did, err = s.restore(ctx, c)
		case move:
			err = s.move(ctx, c)
		}
		changed = changed || did
		if err != nil {
			return Underlay{}, changed, err
		}
	}
	return Underlay{}, changed, fmt.Errorf("the node address %s is on another device each time it is looked at: somebody moves it", ip)
}

// look reads the scene.
func (s *Setup) look(ip netip.Addr) (c scene, err error) {
	c.vtep = ip
	if c.memory, c.row, err = s.recall(ip); err != nil {
		return scene{}, err
	}
	bridge := s.cfg.Bridge
	if c.memory != nil {
		bridge = c.memory.Bridge
	}
	local, ok, err := s.ns.Describe(bridge)
	if err != nil {
		return scene{}, err
	}
	if ok {
		c.local, c.device = &local, s.incarnation(local)
	}
	if c.memory != nil && c.memory.Uplink != "" {
		if c.uplink, err = findUplink(s.ns, *c.memory); err != nil {
			return scene{}, err
		}
	}
	if ok && has(local, ip) {
		c.owner = &local
	} else if owner, owned, err := s.ns.AddressOwner(ip); err != nil {
		return scene{}, err
	} else if owned {
		c.owner = &owner
	}
	if c.owner != nil {
		_, isBridge := s.ovs.Bridge(c.owner.Name)
		c.given = isBridge && (c.memory == nil || !c.memory.own(c.owner.Name))
	}
	return c, nil
}

// findUplink is the remembered uplink as the machine has it now: renamed, or made a port
// of a bond or a bridge of the kernel, which then is the way outside. nil: it is gone.
func findUplink(ns *link.NS, m memory) (*link.Link, error) {
	l, ok, err := ns.Link(m.Uplink)
	if err != nil {
		return nil, err
	}
	if !ok {
		links, err := ns.Links()
		if err != nil {
			return nil, err
		}
		links = slices.DeleteFunc(links, func(o link.Link) bool {
			return m.UplinkMAC == "" || o.MAC.String() != m.UplinkMAC || o.Name == m.Bridge || o.Type == "tuntap" || o.Type == "openvswitch"
		})
		if len(links) == 0 {
			return nil, nil
		}
		l = links[0] // a bond and its ports share a MAC; all lead to the bond
	}
	for l.Master != 0 {
		above, ok, err := ns.LinkByIndex(l.Master)
		if err != nil || !ok || above.Type == "openvswitch" {
			return &l, err
		}
		l = above
	}
	return &l, nil
}

// adopt uses a bridge that somebody else made, and remembers what its local port has. One that this
// package made before somebody gave the address to his own, and has again, is this package's again.
func (s *Setup) adopt(ctx context.Context, c scene) (Underlay, error) {
	b, ok := s.ovs.Bridge(c.owner.Name)
	if !ok || b.DatapathType != ovs.DatapathNetdev {
		return Underlay{}, fmt.Errorf("the node address %s is on bridge %s of datapath type %q, but tunnels of the userspace datapath need one of type netdev", c.vtep, b.Name, b.DatapathType)
	}
	m := memory{Bridge: b.Name, VTEP: c.vtep, Uplink: b.ExternalIDs[keyUplink]}
	if c.memory != nil && c.memory.Bridge == b.Name {
		m = *c.memory
		m.VTEP = c.vtep
	} else {
		whole, err := s.ns.ReadWhole(b.Name)
		if err != nil {
			return Underlay{}, err
		}
		m.Config = whole
	}
	if err := s.observe(ctx, m); err != nil {
		return Underlay{}, err
	}
	stack, err := s.stackOf(b.Name)
	if err != nil {
		return Underlay{}, err
	}
	s.merging.observe(stack)
	if err := s.leaveBridge(ctx, b.Name, stack); err != nil {
		return Underlay{}, err
	}
	return s.describe(c.vtep, *c.owner, m.Uplink)
}

// leaveBridge is what becomes of the bridge that this package made when the address is on another
// one: it has nothing of the node's any more, and stays until [Setup.Remove], as it may be what
// leads outside. Features are off on ports of either: ovs-vswitchd serves both.
func (s *Setup) leaveBridge(ctx context.Context, given string, stack []link.Link) error {
	b, ok := s.ovs.Bridge(s.cfg.Bridge)
	if ok && b.Name != given && b.ExternalIDs[keyUplink] != "" {
		ports, err := s.stackOf(b.Name)
		if err != nil {
			return err
		}
		stack = append(stack, ports...)
		// An older agent reads these, and takes what is missing for damage.
		if err := s.ovs.SetExternalIDs(ctx, b.Name, map[string]string{keyConfig: link.Config{}.Encode(), keyVTEP: "", keyDevice: ""}); err != nil {
			return err
		}
	}
	s.merging.resume(stack)
	return nil
}

// stackOf is the local port of a bridge, its network devices and what they stand on.
func (s *Setup) stackOf(bridge string) (all []link.Link, err error) {
	devices, err := s.withPorts(bridge)
	if err != nil {
		return nil, err
	}
	for _, device := range devices {
		stack, err := s.ns.Stack(device)
		if err != nil && !errors.Is(err, link.ErrNoLink) {
			return nil, err
		}
		all = append(all, stack...)
	}
	return all, nil
}

// stay sees that the uplink is a port of the bridge and has nothing that belongs there,
// and takes in what somebody changed.
func (s *Setup) stay(ctx context.Context, c scene) (Underlay, bool, error) {
	m := *c.memory
	if !c.local.Up {
		return Underlay{}, false, fmt.Errorf("%s, which has the node address %s, is down: set it up (ip link set %s up)", m.Bridge, c.vtep, m.Bridge)
	}
	changed, err := s.ensureUplink(ctx, &m, *c.uplink)
	if err != nil {
		return Underlay{}, changed, err
	}
	if c.local.TxQueue == 0 { // ovs-vswitchd reads what leaves from what is as long
		if _, err := s.ns.SetTxQueue(m.Bridge, link.DefaultTxQueue); err != nil {
			return Underlay{}, changed, err
		}
		changed = true
	}
	took, err := s.take(&m, c.vtep)
	changed = changed || took
	if err != nil {
		return Underlay{}, changed, err
	}
	if err := s.observe(ctx, m); err != nil {
		return Underlay{}, changed, err
	}
	l, ok, err := s.ns.Link(m.Bridge) // its MTU may be another now
	if err != nil || !ok {
		return Underlay{}, changed, fmt.Errorf("local port of bridge %s: %w", m.Bridge, errors.Join(err, link.ErrNoLink))
	}
	u, err := s.describe(c.vtep, l, m.Uplink)
	return u, changed, err
}

// ensureUplink sees that the uplink, under the name that it has now, is the port of the
// bridge by which it leads outside, that the bridge has its MTU, and that the kernel
// leaves the uplink alone.
func (s *Setup) ensureUplink(ctx context.Context, m *memory, uplink link.Link) (changed bool, err error) {
	if uplink.Name != m.Uplink {
		s.log.Info("the uplink is another device now: following", "bridge", m.Bridge, "was", m.Uplink, "uplink", uplink.Name)
		if err := s.ovs.DeletePort(ctx, m.Bridge, m.Uplink); err != nil {
			return true, err
		}
		if err := s.ns.Loud(m.Uplink); err != nil {
			return true, err
		}
		changed = true
	}
	did, err := s.followMAC(ctx, *m, uplink)
	changed = changed || did
	if err != nil {
		return changed, err
	}
	m.Uplink, m.UplinkMAC = uplink.Name, uplink.MAC.String()
	did, err = s.ovs.EnsurePort(ctx, m.Bridge, ovs.PortSpec{Name: m.Uplink})
	changed = changed || did
	if err != nil {
		return changed, err
	}
	_, mtu, err := s.Narrowest(Underlay{Link: m.Bridge, Uplink: m.Uplink})
	if err != nil {
		return changed, err
	}
	ports, err := s.ovs.Ports(m.Bridge)
	if err != nil {
		return changed, err
	}
	did, err = s.ovs.EnsureBridge(ctx, ovs.BridgeSpec{
		Name: m.Bridge, DatapathType: ovs.DatapathNetdev, FailMode: ovs.FailStandalone, LocalMTU: mtu,
		// With one way outside there is no loop, and whatever waits for a spanning tree waits for
		// nothing. A bridge that somebody has given another way may need one.
		NoSpanningTree: len(ports) <= 2,
	})
	changed = changed || did
	if err != nil {
		return changed, err
	}
	if did {
		// ovs-vswitchd sets the device's MTU; it is read next.
		if err := s.ovs.Sync(ctx); err != nil {
			return changed, err
		}
	}
	did, err = s.merging.stop(m.Uplink)
	changed = changed || did
	if err != nil {
		return changed, err
	}
	return changed, s.ns.Quiet(m.Uplink)
}

// take moves to the bridge what the machine's own configuration (start scripts, a lease
// that was renewed) puts on the uplink as if there were no bridge: the node's addresses,
// and the routes with a next hop, which replace those of the bridge with the same
// destination. Addresses that were never moved stay where somebody keeps them.
func (s *Setup) take(m *memory, vtep netip.Addr) (bool, error) {
	have, err := s.ns.ReadWhole(m.Uplink)
	if err != nil {
		return false, err
	}
	ours := kept(m.Config, have, vtep)
	hops := func(r link.Route) bool { return !r.Via.IsValid() }
	ours.Routes, ours.Beyond.Routes = slices.DeleteFunc(slices.Clone(have.Routes), hops), slices.DeleteFunc(slices.Clone(have.Beyond.Routes), hops)
	if ours.Empty() {
		return false, nil
	}
	s.log.Info("taking from the uplink what belongs to its bridge", "uplink", m.Uplink, "bridge", m.Bridge, "addresses", ours.Addresses, "routes", len(ours.Routes)+len(ours.Beyond.Routes))
	return true, s.transfer(m.Uplink, m.Bridge, ours)
}

// transfer moves c from one device to the other. Each address is on the bridge before
// it leaves the uplink, and each route is replaced, not removed and added.
func (s *Setup) transfer(from, to string, c link.Config) error {
	before, err := s.ns.ReadWhole(to)
	if err != nil {
		return err
	}
	if _, err := s.ns.ApplyConfig(to, c); err != nil {
		return err
	}
	if err := s.ns.RemoveConfig(from, c); err != nil {
		return err
	}
	// A route may have gone with the uplink's address.
	if _, err := s.ns.ApplyConfig(to, c); err != nil {
		return err
	}
	return s.ns.RemoveConfig(to, superseded(before, c))
}

// superseded are the routes of a device in whose place there are other ones in c.
func superseded(before, c link.Config) (old link.Config) {
	replaced := func(by []link.Route) func(link.Route) bool {
		return func(r link.Route) bool {
			same := func(n link.Route) bool { return n.Dst == r.Dst && n.Table == r.Table }
			return slices.ContainsFunc(by, same) && !slices.Contains(by, r)
		}
	}
	keep := func(of []link.Route, by []link.Route) (out []link.Route) {
		for _, r := range of {
			if replaced(by)(r) {
				out = append(out, r)
			}
		}
		return out
	}
	old.Routes, old.Beyond.Routes = keep(before.Routes, c.Routes), keep(before.Beyond.Routes, c.Beyond.Routes)
	return old
}

// restore gives a local port that was made anew what went with the old one.
func (s *Setup) restore(ctx context.Context, c scene) (changed bool, err error) {
	m := *c.memory
	if m.Uplink != "" {
		if _, err := s.ensureUplink(ctx, &m, *c.uplink); err != nil {
			return true, err
		}
	}
	if _, err := s.ns.RestoreConfig(m.Bridge, m.Config); err != nil {
		return true, fmt.Errorf("restoring bridge %s: %w", m.Bridge, err)
	}
	// ovs-vswitchd gives a device that it has made its hardware address a moment later, and sets
	// it down for that, which takes routes away.
	if err := s.ovs.Sync(ctx); err != nil {
		return true, err
	}
	leftOut, err := s.ns.RestoreConfig(m.Bridge, m.Config)
	if err != nil {
		return true, fmt.Errorf("restoring bridge %s: %w", m.Bridge, err)
	}
	s.log.Info("addresses and routes of the underlay restored", "bridge", m.Bridge, "addresses", m.Config.Addresses)
	if text := strings.Join(leftOut, "; "); text != "" && text != s.said {
		s.said = text
		s.log.Warn("not all of the underlay is as it was, since the machine has other ways by now", "bridge", m.Bridge, "leftOut", text)
	}
	return true, s.observe(ctx, m)
}

// rebuild makes the bridge, whose record is lost, as it was.
func (s *Setup) rebuild(ctx context.Context, m memory) error {
	uplink, err := findUplink(s.ns, m)
	if err != nil || uplink == nil {
		return fmt.Errorf("uplink %s of bridge %s: %w", m.Uplink, m.Bridge, errors.Join(err, link.ErrNoLink))
	}
	s.log.Warn("the record of the bridge that has the node address is lost: making it anew", "bridge", m.Bridge, "uplink", uplink.Name)
	return s.makeBridge(ctx, m, *uplink)
}

// suitable says why a device cannot become an uplink.
func (s *Setup) suitable(l link.Link) error {
	wayOut := "put the node address on an Open vSwitch bridge of datapath type netdev yourself, or name another with --node-ip"
	if l.Loopback {
		return fmt.Errorf("the node address is on loopback %s, which cannot be an uplink; %s", l.Name, wayOut)
	}
	if l.Master != 0 {
		master := fmt.Sprintf("device %d", l.Master)
		if m, ok, err := s.ns.LinkByIndex(l.Master); err == nil && ok {
			master = fmt.Sprintf("%s %s", m.Type, m.Name)
		}
		return fmt.Errorf("%s has the node address but belongs to %s; %s", l.Name, master, wayOut)
	}
	if p, ok := s.ovs.Port(l.Name); ok && p.Bridge != s.cfg.Bridge {
		return fmt.Errorf("%s has the node address but is a port of Open vSwitch bridge %s, whose local port should have it; %s", l.Name, p.Bridge, wayOut)
	}
	switch l.Type {
	case "openvswitch", "vxlan", "ipip", "gre", "wireguard", "ipvlan", "macvlan":
		return fmt.Errorf("%s has the node address but is a %s, which cannot be a port of an Open vSwitch bridge; %s", l.Name, l.Type, wayOut)
	}
	ties, err := s.ns.Entangled(l.Name)
	if err != nil {
		return err
	}
	if len(ties) > 0 {
		return fmt.Errorf("%s has the node address but its configuration cannot be moved to a bridge: %s; %s", l.Name, strings.Join(ties, ", "), wayOut)
	}
	return nil
}
