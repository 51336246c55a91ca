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
	// Before anything moves: whatever happens, it can be put back.
	ids := map[string]string{keyConfig: m.Config.Encode(), keyUplink: uplink.Name, keyVTEP: m.VTEP.String(), keyDevice: m.Device}
	mac, err := s.macOf(m.Bridge, uplink)
	if err != nil {
		return err
	}
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
	s.saveCopy(m)
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
	s.forget()
	s.log.Warn("moving the node address failed; undoing it", "uplink", uplink, "bridge", bridge)
	// First what matters: it needs no Open vSwitch.
	_, err := s.ns.ApplyConfig(uplink, config)
	errs := []error{err, s.ns.RemoveConfig(bridge, config)}
	if existed {
		errs = append(errs, s.ovs.DeletePort(ctx, bridge, uplink),
			s.ovs.SetExternalIDs(ctx, bridge, map[string]string{keyConfig: "", keyUplink: "", keyVTEP: "", keyDevice: "", keyMAC: ""}))
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

// Remove gives the uplink its addresses and routes back and deletes the bridge, if
// this package made it. It is for uninstalling.
func (s *Setup) Remove(ctx context.Context) error {
	s.turn.Lock()
	defer s.turn.Unlock()
	bridge := s.cfg.Bridge
	b, ok := s.ovs.Bridge(bridge)
	if !ok || b.ExternalIDs[keyUplink] == "" {
		return nil
	}
	uplink := b.ExternalIDs[keyUplink]
	saved, err := link.DecodeConfig(b.ExternalIDs[keyConfig])
	if err != nil {
		return fmt.Errorf("underlay: %w", err)
	}
	if _, err := s.ns.ApplyConfig(uplink, link.Config{Addresses: saved.Addresses, Routes: saved.Routes}); err != nil {
		return fmt.Errorf("underlay: giving %s its addresses back: %w", uplink, err)
	}
	if err := s.ovs.DeleteBridge(ctx, bridge); err != nil {
		return fmt.Errorf("underlay: %w", err)
	}
	if err := s.ns.RemoveConfig(bridge, saved); err != nil {
		return fmt.Errorf("underlay: %w", err)
	}
	if err := s.ns.Loud(uplink); err != nil {
		return fmt.Errorf("underlay: %w", err)
	}
	if _, err := s.ns.ApplyConfig(uplink, saved); err != nil {
		return fmt.Errorf("underlay: giving %s its routes back: %w", uplink, err)
	}
	s.merging.resume(nil)
	s.forget()
	return nil
}
