package underlay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
)

const (
	// hardwareAddress is the bridge's MAC in its other_config (ovs-vswitchd.conf.db(5)).
	hardwareAddress = "hwaddr"
	// keyMAC holds the MAC that the bridge was given of its uplink, in its external_ids: it says of the
	// one beside it, in the same row, whose it is, and changes with it. A bridge of an
	// older release has it not: it was given that of the uplink as it was then.
	keyMAC = "k8s-ovs-mac"
)

// followMAC gives the bridge the uplink's MAC, now that the uplink has another one (a driver that was
// loaded anew, a virtual machine that was moved, a bond that fails over): switches and hypervisors
// that know the wire's devices drop what others send. One that somebody has set himself stays.
func (s *Setup) followMAC(ctx context.Context, m memory, uplink link.Link) (changed bool, err error) {
	b, ok := s.ovs.Bridge(m.Bridge)
	has, _ := net.ParseMAC(b.OtherConfig[hardwareAddress])
	given, _ := net.ParseMAC(b.ExternalIDs[keyMAC])
	was, _ := net.ParseMAC(m.UplinkMAC)
	if !ok || len(has) == 0 || len(uplink.MAC) == 0 || !bytes.Equal(has, given) && !bytes.Equal(has, was) {
		return false, nil
	}
	if known, err := s.still(uplink, has); known || err != nil {
		return false, errors.Join(err, s.ovs.SetExternalIDs(ctx, m.Bridge, map[string]string{keyMAC: has.String()}))
	}
	s.log.Info("the uplink has another hardware address: the bridge that has the node's address follows", "bridge", m.Bridge, "uplink", uplink.Name, "was", has, "now", uplink.MAC)
	before, err := s.ns.ReadWhole(m.Bridge)
	if err != nil {
		return false, err
	}
	if err := s.announce(m.Bridge); err != nil {
		return true, err
	}
	// First the device: the kernel changes it as it stands. ovs-vswitchd would set it down for that, which
	// takes routes away; it does so only where it finds it otherwise.
	if _, err := s.ns.SetMAC(m.Bridge, uplink.MAC); err != nil {
		return true, err
	}
	if _, err := s.ovs.EnsureBridge(ctx, ovs.BridgeSpec{Name: m.Bridge, MAC: uplink.MAC, ExternalIDs: map[string]string{keyMAC: uplink.MAC.String()}}); err != nil {
		return true, err
	}
	if err := s.ovs.Sync(ctx); err != nil {
		return true, err
	}
	// It may not have heard of the change before it made it.
	if _, err := s.ns.RestoreConfig(m.Bridge, before); err != nil {
		return true, fmt.Errorf("bridge %s, whose hardware address has changed: %w", m.Bridge, err)
	}
	return true, nil
}

// macOf is the MAC that a bridge is to be given when the uplink becomes its port; nil where somebody
// has given it another.
func (s *Setup) macOf(bridge string, uplink link.Link) (net.HardwareAddr, error) {
	b, _ := s.ovs.Bridge(bridge)
	has, _ := net.ParseMAC(b.OtherConfig[hardwareAddress])
	given, _ := net.ParseMAC(b.ExternalIDs[keyMAC])
	if len(has) == 0 {
		return uplink.MAC, nil
	}
	var was net.HardwareAddr
	if m := s.record.get(); m != nil && m.Bridge == bridge {
		was, _ = net.ParseMAC(m.UplinkMAC)
	}
	if !bytes.Equal(has, given) && !bytes.Equal(has, was) {
		return nil, nil
	}
	if known, err := s.still(uplink, has); known || err != nil {
		return has, err
	}
	return uplink.MAC, nil
}

// still reports whether the wire knows a MAC as the uplink's. A bridge of the kernel has the least of
// its ports', so its own changes with those of containers that come and go, while the way outside
// is the same.
func (s *Setup) still(uplink link.Link, mac net.HardwareAddr) (bool, error) {
	if uplink.Type != "bridge" {
		return bytes.Equal(uplink.MAC, mac), nil
	}
	stack, err := s.ns.Stack(uplink.Name)
	return slices.ContainsFunc(stack, func(l link.Link) bool { return bytes.Equal(l.MAC, mac) }), err
}

// announce has the kernel tell the network of a device's addresses whenever its hardware address
// changes, so that neighbours do not send to the former one until they ask again.
func (s *Setup) announce(device string) error {
	for _, key := range []string{"net/ipv4/conf/" + device + "/arp_notify", "net/ipv6/conf/" + device + "/ndisc_notify"} {
		if _, err := s.ns.EnsureSysctl(key, "1"); err != nil && !errors.Is(err, link.ErrNoSysctl) {
			return err
		}
	}
	return nil
}
