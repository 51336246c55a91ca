package underlay

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
)

// rollbackTime bounds what is done after a failure, when the caller's context may
// have ended.
const rollbackTime = 5 * time.Second

// move makes the bridge where it is not there, makes the owner of the address its
// uplink and moves addresses and routes from the one to the other's local port. Where a
// step fails all are undone.
func (s *Setup) move(ctx context.Context, c scene) (err error) {
	bridge, uplink := s.cfg.Bridge, *c.owner
	if err := s.suitable(uplink); err != nil {
		return err
	}
	config, err := s.ns.ReadWhole(uplink.Name)
	if err != nil {
		return err
	}
	config = movable(config, c.vtep)
	m := memory{Bridge: bridge, VTEP: c.vtep, Uplink: uplink.Name, UplinkMAC: uplink.MAC.String(), Config: config}
	_, existed := s.ovs.Bridge(bridge)
	s.log.Info("moving the node address to a bridge of the userspace datapath", "uplink", uplink.Name, "bridge", bridge, "addresses", config.Addresses)
	defer func() {
		if err != nil {
			err = errors.Join(err, s.rollback(uplink.Name, config, existed))
		}
	}()
	if c.memory != nil && c.memory.Uplink != "" && c.memory.Uplink != uplink.Name {
		if err := s.ovs.DeletePort(ctx, bridge, c.memory.Uplink); err != nil {
			return err
		}
	}
	if err := s.makeBridge(ctx, m, uplink); err != nil {
		return err
	}
	if err := s.transfer(uplink.Name, bridge, config); err != nil {
		return err
	}
	if err := s.complete(c, uplink.Name); err != nil {
		return err
	}
	if err := s.followRA(uplink.Name, bridge); err != nil {
		return err
	}
	if err := s.ns.Quiet(uplink.Name); err != nil {
		return err
	}
	if was := c.memory; was != nil && was.VTEP != c.vtep {
		if err := s.ns.RemoveConfig(bridge, link.Config{Addresses: slices.DeleteFunc(slices.Clone(was.Config.Addresses), func(p netip.Prefix) bool { return p.Addr() != was.VTEP })}); err != nil {
			return err
		}
	}
	if l, ok, err := s.ns.AddressOwner(c.vtep); err != nil || !ok || l.Name != bridge {
		return fmt.Errorf("the node address %s is not on %s after the move: %w", c.vtep, bridge, errors.Join(err, link.ErrNoLink))
	}
	return s.observe(ctx, m)
}

// complete gives the bridge the routes that went with its local port, where the machine
// has only given the uplink its address: those to destinations that it has no way to.
func (s *Setup) complete(c scene, uplink string) error {
	m := c.memory
	if m == nil || m.Uplink != uplink || m.VTEP != c.vtep || m.Device == c.device {
		return nil
	}
	have, err := s.ns.ReadWhole(m.Bridge)
	if err != nil {
		return err
	}
	_, _, leads, err := s.ns.DefaultRoute()
	if err != nil {
		return err
	}
	routes := slices.DeleteFunc(slices.Clone(m.Config.Routes), func(r link.Route) bool {
		return leads && r.Dst.Bits() == 0 || slices.ContainsFunc(have.Routes, func(h link.Route) bool { return h.Dst == r.Dst })
	})
	_, err = s.ns.RestoreConfig(m.Bridge, link.Config{Routes: routes})
	return err
}

// movable is what of an uplink's configuration moves: all but further IPv4 addresses of
// one host each. These work where they are, and daemons that come and go with them
// (VRRP) find them there.
func movable(c link.Config, vtep netip.Addr) link.Config {
	c.Addresses = slices.DeleteFunc(slices.Clone(c.Addresses), func(p netip.Prefix) bool { return p.IsSingleIP() && p.Addr() != vtep })
	return c
}

// followRA has the bridge listen to router advertisements as the uplink did: addresses
// and routes that they gave are renewed there.
func (s *Setup) followRA(uplink, bridge string) error {
	value, err := s.ns.Sysctl("net/ipv6/conf/" + uplink + "/accept_ra")
	if err == nil {
		_, err = s.ns.EnsureSysctl("net/ipv6/conf/"+bridge+"/accept_ra", value)
	}
	if errors.Is(err, link.ErrNoSysctl) {
		return nil // no IPv6 in this kernel
	}
	return err
}

// makeBridge makes the bridge with the uplink as a port, up to where packets flow.
func (s *Setup) makeBridge(ctx context.Context, m memory, uplink link.Link) error {
	mac, err := s.macOf(m.Bridge, uplink)
	if err != nil {
		return err
	}
	// Before anything moves: whatever happens, it can be put back.
	m.Uplink, m.UplinkMAC = uplink.Name, uplink.MAC.String()
	ids := m.ids()
	if mac != nil {
		ids[keyMAC] = mac.String()
	}
	_, err = s.ovs.EnsureBridge(ctx, ovs.BridgeSpec{
		Name:         m.Bridge,
		DatapathType: ovs.DatapathNetdev,
		// It forwards also while no agent runs.
		FailMode: ovs.FailStandalone,
		// The uplink's, so that neighbours' entries for the node stay right.
		MAC:         mac,
		LocalMTU:    uplink.MTU,
		ExternalIDs: ids,
	})
	if err != nil {
		return err
	}
	s.record.set(&m)
	if err := s.awaitLink(ctx, m.Bridge); err != nil {
		return err
	}
	if _, err := s.ovs.EnsurePort(ctx, m.Bridge, ovs.PortSpec{Name: uplink.Name}); err != nil {
		return err
	}
	for _, port := range []string{m.Bridge, uplink.Name} {
		if _, err := s.ovs.WaitOfport(ctx, port); err != nil {
			return err
		}
	}
	if _, err := s.merging.stop(uplink.Name); err != nil {
		return err
	}
	// One that starts knows the ports' numbers before it is done with them: see restore.
	if err := s.ovs.Sync(ctx); err != nil {
		return err
	}
	_, err = s.ns.SetUp(m.Bridge)
	return err
}

// rollback gives the uplink its configuration back and takes the bridge away, or
// out of its way where it was there before.
func (s *Setup) rollback(uplink string, config link.Config, existed bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), rollbackTime)
	defer cancel()
	bridge := s.cfg.Bridge
	s.record.set(nil)
	s.log.Warn("moving the node address failed; undoing it", "uplink", uplink, "bridge", bridge)
	// First what matters: it needs no Open vSwitch.
	_, err := s.ns.ApplyConfig(uplink, config)
	errs := []error{err, s.ns.RemoveConfig(bridge, config)}
	if existed {
		errs = append(errs, s.ovs.DeletePort(ctx, bridge, uplink),
			s.ovs.SetExternalIDs(ctx, bridge, noIDs()))
	} else {
		errs = append(errs, s.ovs.DeleteBridge(ctx, bridge))
	}
	errs = append(errs, s.ns.Loud(uplink))
	s.merging.resume(nil)
	// Routes go with the addresses of the bridge.
	_, err = s.ns.ApplyConfig(uplink, config)
	if err := errors.Join(append(errs, err)...); err != nil {
		return fmt.Errorf("undoing the move of the node address: %w", err)
	}
	return nil
}

// Remove gives the uplink back what it would have without the bridge that this package made, and
// deletes that. A bridge that somebody else made stays as it is. It is for uninstalling.
func (s *Setup) Remove(ctx context.Context) error {
	s.turn.Lock()
	defer s.turn.Unlock()
	m, row, err := s.remembered()
	if err != nil {
		return fmt.Errorf("underlay: %w", err)
	}
	made := m
	if m == nil || m.Uplink == "" {
		made = s.left(m)
	}
	if m != nil && m.Uplink == "" && row {
		err = s.ovs.SetExternalIDs(ctx, m.Bridge, noIDs())
	}
	if made != nil {
		err = errors.Join(err, s.giveBack(ctx, *made))
	}
	if err != nil {
		return fmt.Errorf("underlay: %w", err)
	}
	s.merging.resume(nil)
	s.record.set(nil)
	return nil
}

// left is the bridge that this package made, where it has nothing to do with the node's address any
// more: given is the memory of the one that has; nil where there is none.
func (s *Setup) left(given *memory) *memory {
	b, ok := s.ovs.Bridge(s.cfg.Bridge)
	if !ok || b.ExternalIDs[keyUplink] == "" {
		return nil
	}
	m := &memory{Bridge: b.Name, Uplink: b.ExternalIDs[keyUplink]}
	if given != nil {
		m.VTEP = given.VTEP
	}
	return m
}

// giveBack is [Setup.Remove] of one bridge. Its record in the database may be gone.
func (s *Setup) giveBack(ctx context.Context, m memory) error {
	uplink, err := findUplink(s.ns, m)
	if err != nil {
		return err
	}
	c, err := absent(s.ns, m, uplink)
	if err != nil {
		return err
	}
	now, due, err := s.due(m, c)
	if err != nil {
		return err
	}
	if uplink == nil && len(due.Addresses) > 0 {
		return fmt.Errorf("bridge %s stays, since its uplink %s is gone and no device can have the node address %s in its place; give it to one (ip address add %s/LENGTH dev DEVICE), or delete the bridge (ovs-vsctl del-br %s)", m.Bridge, m.Uplink, m.VTEP, m.VTEP, m.Bridge)
	}
	// First what matters: it needs no Open vSwitch.
	if uplink != nil {
		if _, err := s.ns.ApplyConfig(uplink.Name, link.Config{Addresses: now.Addresses, Routes: now.Routes}); err != nil {
			return fmt.Errorf("giving %s its addresses back: %w", uplink.Name, err)
		}
	}
	if ports, _ := s.ovs.Ports(m.Bridge); c.elsewhere && len(ports) > 2 {
		s.log.Warn("the bridge that was made for the uplink stays, since somebody gave it other ports and the node's address to another device: it may be what leads outside; delete it when it is not (ovs-vsctl del-br BRIDGE)", "bridge", m.Bridge)
		return s.ovs.SetExternalIDs(ctx, m.Bridge, noIDs())
	}
	if err := s.ovs.DeleteBridge(ctx, m.Bridge); err != nil {
		return err
	}
	if err := s.ns.RemoveConfig(m.Bridge, now); err != nil || uplink == nil {
		return err
	}
	if err := s.ns.Loud(uplink.Name); err != nil {
		return err
	}
	leftOut, err := s.ns.RestoreConfig(uplink.Name, due)
	if err != nil {
		return fmt.Errorf("giving %s its routes back: %w", uplink.Name, err)
	}
	if len(leftOut) > 0 {
		s.log.Warn("the uplink has not all that the bridge had, since the machine has other ways by now", "uplink", uplink.Name, "leftOut", strings.Join(leftOut, "; "))
	}
	return nil
}

// due is what of the memory the bridge has now, and what of it the uplink is to have: the same, where
// the bridge stands or somebody has decided what becomes of it since; all, where it went with the
// local port and nobody put it back yet.
func (s *Setup) due(m memory, c absence) (now, due link.Config, err error) {
	if c.local != nil {
		whole, err := s.ns.ReadWhole(m.Bridge)
		if err != nil {
			return now, due, err
		}
		now = withoutStaying(kept(m.Config, whole, m.VTEP), whole)
	}
	stands := c.local != nil && (has(*c.local, m.VTEP) || m.Device == s.incarnation(*c.local))
	if stands || m.Lent || c.elsewhere || c.reconfigured(m) {
		return now, now, nil
	}
	return now, m.Config, nil
}
