package underlay

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
)

// netdev makes sure that the address is on the local port of a bridge of the
// userspace datapath. In turn: a bridge remembers the address; it is on a bridge
// already; it is on a device that can become the uplink.
func (s *Setup) netdev(ctx context.Context, ip netip.Addr) (Underlay, bool, error) {
	bridges, err := s.ovs.Bridges()
	if err != nil {
		return Underlay{}, false, err
	}
	for _, b := range bridges {
		saved, ok, err := s.saved(b.Name)
		if err != nil {
			return Underlay{}, false, err
		}
		if ok && hasAddress(saved, ip) {
			return s.keep(ctx, b, ip, saved)
		}
	}
	owner, ok, err := s.ns.AddressOwner(ip)
	if err != nil {
		return Underlay{}, false, err
	}
	if !ok {
		return Underlay{}, false, fmt.Errorf("no network device has the node address %s; give the address of this node with --node-ip", ip)
	}
	if i := slices.IndexFunc(bridges, func(b ovs.Bridge) bool { return b.Name == owner.Name }); i >= 0 {
		return s.adopt(ctx, bridges[i], ip, owner)
	}
	if err := s.suitable(owner); err != nil {
		return Underlay{}, false, err
	}
	return s.move(ctx, ip, owner)
}

// adopt uses a bridge that somebody else made, and remembers what its local port has.
func (s *Setup) adopt(ctx context.Context, b ovs.Bridge, ip netip.Addr, l link.Link) (Underlay, bool, error) {
	if b.DatapathType != ovs.DatapathNetdev {
		return Underlay{}, false, fmt.Errorf("the node address %s is on bridge %s of datapath type %q, but tunnels of the userspace datapath need one of type netdev", ip, b.Name, b.DatapathType)
	}
	if err := s.remember(ctx, b.Name, ip); err != nil {
		return Underlay{}, false, err
	}
	u, err := s.describe(ip, l, "")
	return u, false, err
}

// keep checks a bridge that remembers the address, and puts back what is missing.
func (s *Setup) keep(ctx context.Context, b ovs.Bridge, ip netip.Addr, saved link.Config) (Underlay, bool, error) {
	uplink := b.ExternalIDs[keyUplink]
	changed, err := s.restore(ctx, b.Name, ip, uplink != "", saved)
	if err != nil {
		return Underlay{}, changed, err
	}
	var l link.Link
	if uplink != "" {
		freed, err := s.freeUplink(ctx, b.Name, uplink, saved)
		changed = changed || freed
		if err != nil {
			return Underlay{}, changed, err
		}
	}
	if err := s.remember(ctx, b.Name, ip); err != nil {
		return Underlay{}, changed, err
	}
	if l, _, err = s.ns.Link(b.Name); err != nil { // its MTU may be another now
		return Underlay{}, changed, err
	}
	u, err := s.describe(ip, l, uplink)
	return u, changed, err
}

// restore puts addresses and routes back on the bridge's local port. On a bridge
// of somebody else that is done only when the node's address is gone: what else is
// missing may be missing on purpose.
func (s *Setup) restore(ctx context.Context, bridge string, ip netip.Addr, own bool, saved link.Config) (bool, error) {
	if err := s.awaitLink(ctx, bridge); err != nil {
		return false, err
	}
	l, ok, err := s.ns.Describe(bridge)
	if err != nil || !ok {
		return false, fmt.Errorf("local port of bridge %s: %w", bridge, errors.Join(err, link.ErrNoLink))
	}
	has := slices.ContainsFunc(l.Addresses, func(p netip.Prefix) bool { return p.Addr() == ip })
	if has && !own {
		return false, nil
	}
	changed, err := s.ns.ApplyConfig(bridge, saved)
	if err != nil {
		return changed, fmt.Errorf("restoring bridge %s: %w", bridge, err)
	}
	if changed {
		s.log.Info("addresses and routes of the underlay restored", "bridge", bridge, "addresses", saved.Addresses)
	}
	return changed, nil
}

// freeUplink sees that the uplink is a port of the bridge, that the bridge has its
// MTU, and that it has none of the bridge's addresses: the node's start scripts put
// them there again.
func (s *Setup) freeUplink(ctx context.Context, bridge, uplink string, saved link.Config) (bool, error) {
	exists, err := s.ns.LinkExists(uplink)
	if err != nil || !exists {
		return false, err
	}
	changed, err := s.ovs.EnsurePort(ctx, bridge, ovs.PortSpec{Name: uplink})
	if err != nil {
		return changed, err
	}
	_, mtu, err := s.Narrowest(Underlay{Link: bridge, Uplink: uplink})
	if err != nil {
		return changed, err
	}
	did, err := s.ovs.EnsureBridge(ctx, ovs.BridgeSpec{Name: bridge, FailMode: ovs.FailStandalone, LocalMTU: mtu})
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
	have, err := s.ns.ReadConfig(uplink)
	if err != nil {
		return changed, err
	}
	double := link.Config{}
	for _, a := range have.Addresses {
		if slices.Contains(saved.Addresses, a) {
			double.Addresses = append(double.Addresses, a)
		}
	}
	if len(double.Addresses) > 0 {
		changed = true
		if err := s.ns.RemoveConfig(uplink, double); err != nil {
			return changed, err
		}
		s.log.Info("address removed from the uplink: the bridge has it", "uplink", uplink, "bridge", bridge, "addresses", double.Addresses)
	}
	return changed, s.ns.Quiet(uplink)
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
	return nil
}

// remember keeps the local port's configuration in the bridge's external_ids.
// One without the node's address is not worth it: ovs-vswitchd has just gone away.
func (s *Setup) remember(ctx context.Context, bridge string, ip netip.Addr) error {
	c, err := s.ns.ReadConfig(bridge)
	if err != nil || !hasAddress(c, ip) {
		return err
	}
	return s.ovs.SetExternalIDs(ctx, bridge, map[string]string{keyConfig: c.Encode(), keyVTEP: ip.String()})
}

// saved is the configuration that a bridge remembers.
func (s *Setup) saved(bridge string) (c link.Config, ok bool, err error) {
	b, ok := s.ovs.Bridge(bridge)
	if !ok || b.ExternalIDs[keyConfig] == "" {
		return link.Config{}, false, nil
	}
	c, err = link.DecodeConfig(b.ExternalIDs[keyConfig])
	if err != nil {
		return link.Config{}, false, fmt.Errorf("bridge %s, external_ids:%s: %w; remove it (ovs-vsctl remove bridge %s external_ids %s)", bridge, keyConfig, err, bridge, keyConfig)
	}
	return c, true, nil
}

// awaitLink waits until ovs-vswitchd has made the bridge's local port.
func (s *Setup) awaitLink(ctx context.Context, bridge string) error {
	watch, cancel := context.WithCancel(ctx)
	defer cancel()
	events, err := s.ns.Subscribe(watch)
	if err != nil {
		return err
	}
	// The events are the signal; the ticker is for those lost with a closed channel.
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		if ok, err := s.ns.LinkExists(bridge); ok || err != nil {
			return err
		}
		select {
		case _, open := <-events:
			if !open {
				events = nil
			}
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("ovs-vswitchd has not made the local port of bridge %s: %w; is it running?", bridge, ctx.Err())
		}
	}
}

func hasAddress(c link.Config, ip netip.Addr) bool {
	return slices.ContainsFunc(c.Addresses, func(p netip.Prefix) bool { return p.Addr() == ip })
}
