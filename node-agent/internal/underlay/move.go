package underlay

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
)

// rollbackTime bounds what is done after a failure, when the caller's context may
// have ended.
const rollbackTime = 5 * time.Second

// move makes the bridge, makes the device its uplink and moves addresses and
// routes from the one to the other's local port. Each address is on the bridge before
// it leaves the uplink, and each route is replaced, not removed and added. Where
// a step fails all are undone.
func (s *Setup) move(ctx context.Context, ip netip.Addr, uplink link.Link) (u Underlay, changed bool, err error) {
	bridge := s.cfg.Bridge
	config, err := s.ns.ReadConfig(uplink.Name)
	if err != nil {
		return Underlay{}, false, err
	}
	_, existed := s.ovs.Bridge(bridge)
	s.log.Info("moving the node address to a bridge of the userspace datapath", "uplink", uplink.Name, "bridge", bridge, "addresses", config.Addresses)
	defer func() {
		if err != nil {
			err = errors.Join(err, s.rollback(uplink.Name, config, existed))
		}
	}()
	if err := s.makeBridge(ctx, ip, uplink, config); err != nil {
		return Underlay{}, true, err
	}
	if _, err := s.ns.ApplyConfig(bridge, config); err != nil {
		return Underlay{}, true, err
	}
	if err := s.ns.RemoveConfig(uplink.Name, config); err != nil {
		return Underlay{}, true, err
	}
	// A route may have gone with the uplink's address.
	if _, err := s.ns.ApplyConfig(bridge, config); err != nil {
		return Underlay{}, true, err
	}
	if err := s.ns.Quiet(uplink.Name); err != nil {
		return Underlay{}, true, err
	}
	l, ok, err := s.ns.AddressOwner(ip)
	if err != nil || !ok || l.Name != bridge {
		return Underlay{}, true, fmt.Errorf("the node address %s is not on %s after the move: %w", ip, bridge, errors.Join(err, link.ErrNoLink))
	}
	if u, err = s.describe(ip, l, uplink.Name); err != nil {
		return Underlay{}, true, err
	}
	return u, true, nil
}

// makeBridge makes the bridge with the uplink as a port, up to where packets flow.
func (s *Setup) makeBridge(ctx context.Context, ip netip.Addr, uplink link.Link, config link.Config) error {
	bridge := s.cfg.Bridge
	_, err := s.ovs.EnsureBridge(ctx, ovs.BridgeSpec{
		Name:         bridge,
		DatapathType: ovs.DatapathNetdev,
		// It forwards also while no agent runs.
		FailMode: ovs.FailStandalone,
		// The uplink's, so that neighbours' entries for the node stay right.
		MAC:      uplink.MAC,
		LocalMTU: uplink.MTU,
		// Before anything moves: whatever happens, it can be put back.
		ExternalIDs: map[string]string{keyConfig: config.Encode(), keyUplink: uplink.Name, keyVTEP: ip.String()},
	})
	if err != nil {
		return err
	}
	if err := s.awaitLink(ctx, bridge); err != nil {
		return err
	}
	if _, err := s.ovs.EnsurePort(ctx, bridge, ovs.PortSpec{Name: uplink.Name}); err != nil {
		return err
	}
	for _, port := range []string{bridge, uplink.Name} {
		if _, err := s.ovs.WaitOfport(ctx, port); err != nil {
			return err
		}
	}
	_, err = s.ns.SetUp(bridge)
	return err
}

// rollback gives the uplink its configuration back and takes the bridge away, or
// out of its way where it was there before.
func (s *Setup) rollback(uplink string, config link.Config, existed bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), rollbackTime)
	defer cancel()
	bridge := s.cfg.Bridge
	s.log.Warn("moving the node address failed; undoing it", "uplink", uplink, "bridge", bridge)
	// First what matters: it needs no Open vSwitch.
	_, err := s.ns.ApplyConfig(uplink, config)
	errs := []error{err, s.ns.RemoveConfig(bridge, config)}
	if existed {
		errs = append(errs, s.ovs.DeletePort(ctx, bridge, uplink),
			s.ovs.SetExternalIDs(ctx, bridge, map[string]string{keyConfig: "", keyUplink: "", keyVTEP: ""}))
	} else {
		errs = append(errs, s.ovs.DeleteBridge(ctx, bridge))
	}
	errs = append(errs, s.ns.Loud(uplink))
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
	bridge := s.cfg.Bridge
	b, ok := s.ovs.Bridge(bridge)
	if !ok || b.ExternalIDs[keyUplink] == "" {
		return nil
	}
	uplink := b.ExternalIDs[keyUplink]
	saved, ok, err := s.saved(bridge)
	if err != nil {
		return err
	}
	if ok {
		if _, err := s.ns.ApplyConfig(uplink, saved); err != nil {
			return fmt.Errorf("underlay: giving %s its addresses back: %w", uplink, err)
		}
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
	return nil
}
