package bridge

import (
	"context"
	"fmt"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
)

// Devices are those of the node; [link.NS] has them.
type Devices interface {
	Link(name string) (l link.Link, ok bool, err error)
	SetUp(name string) (changed bool, err error)
	SetMTU(name string, mtu int) (changed bool, err error)
	// ExternalVXLAN is the device that takes VXLAN packets of every number at a UDP port, whatever it is called.
	ExternalVXLAN(port uint16) (l link.Link, ok bool, err error)
	Rename(l link.Link, name string) error
}

// EnsureBackers makes sure that the kernel datapath has behind each tunnel port of spec the device that its
// packets come and go by: that it is there, up, and has the MTU that Open vSwitch made it with. It says what
// it had to mend. Open vSwitch itself makes these devices and never looks at them again: it passes over all
// news of them (process_dpif_port_change, ofproto/ofproto-dpif.c), and says of the ports that they are up
// (netdev_vport_update_flags, lib/netdev-vport.c). The ports are in the database, as [Ensure] leaves them; one that
// Open vSwitch refused because it could not have its device is tried anew.
func EnsureBackers(ctx context.Context, sw Switch, devices Devices, spec Spec) (mended []string, err error) {
	for _, t := range spec.Tunnels {
		did, err := ensureBacker(ctx, sw, devices, spec, t)
		mended = append(mended, did...)
		if isRefused(err) {
			return mended, err // it says of which tunnel
		}
		if err != nil {
			return mended, fmt.Errorf("tunnel %s of bridge %s: %w", t.Name, spec.Name, err)
		}
	}
	return mended, nil
}

func ensureBacker(ctx context.Context, sw Switch, devices Devices, spec Spec, t desired.Tunnel) (mended []string, err error) {
	device := t.KernelDevice()
	l, there, err := backer(devices, device)
	if err != nil {
		return nil, err
	}
	if !there {
		// Under another name it is in the datapath still, and keeps a new one from the UDP port.
		if l, there, err = devices.ExternalVXLAN(uint16(t.Port)); err != nil {
			return nil, err
		}
		if there = there && l.Master != 0; there {
			if err := devices.Rename(l, device); err != nil {
				return nil, err
			}
			mended = append(mended, device+" was called "+l.Name)
			if _, err := devices.SetUp(device); err != nil { // it may be down for that
				return mended, err
			}
		}
	}
	if !there {
		// An ovs-vswitchd that has just started may be about to make it.
		if err := sw.Sync(ctx); err != nil {
			return nil, err
		}
		if l, there, err = backer(devices, device); err != nil {
			return nil, err
		}
	}
	if !there {
		if err := remake(ctx, sw, spec, t); isRefused(err) {
			return nil, noTunnel(spec, t, err)
		} else if err != nil {
			return nil, err
		}
		if l, there, err = backer(devices, device); err != nil {
			return nil, err
		}
		if !there {
			return nil, fmt.Errorf("the kernel has no device %s in Open vSwitch's datapath, and ovs-vswitchd does not make it: no packet comes or goes by the tunnel; its log says why (is another VXLAN device at UDP port %s? ip -d link show type vxlan)", device, t.Port)
		}
		mended = append(mended, device+" was gone")
	}
	if !l.Up {
		if _, err := devices.SetUp(device); err != nil {
			return mended, err
		}
		mended = append(mended, device+" was down")
	}
	if l.MTU < tunnel.KernelDeviceMTU {
		if _, err := devices.SetMTU(device, tunnel.KernelDeviceMTU); err != nil {
			return mended, err
		}
		mended = append(mended, fmt.Sprintf("%s had an MTU of %d", device, l.MTU))
	}
	return mended, nil
}

// backer is the device where it is one of a datapath, whose master it then has.
func backer(devices Devices, name string) (l link.Link, ok bool, err error) {
	l, ok, err = devices.Link(name)
	return l, ok && l.Master != 0, err
}

// remake has ovs-vswitchd make the device of tunnel t anew, which it does where no port needed it before. The
// port keeps its number, which it asks for.
func remake(ctx context.Context, sw Switch, spec Spec, t desired.Tunnel) error {
	if err := sw.DeletePort(ctx, spec.Name, t.Name); err != nil {
		return err
	}
	if err := sw.Sync(ctx); err != nil {
		return err
	}
	if _, err := sw.EnsurePort(ctx, spec.Name, tunnelPort(t, spec.TunnelSource)); err != nil {
		return err
	}
	if err := sw.Sync(ctx); err != nil {
		return err
	}
	got, err := sw.WaitOfport(ctx, t.Name)
	if err == nil && got != t.Ofport {
		err = fmt.Errorf("it was made anew with the number %d, and flows have %d: the next look at the bridge tells them", got, t.Ofport)
	}
	return err
}
