package bridge

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
)

// Devices are those of the node; [link.NS] has them.
type Devices interface {
	Link(name string) (l link.Link, ok bool, err error)
	SetUp(name string) (changed bool, err error)
	SetMTU(name string, mtu int) (changed bool, err error)
	SetTxQueue(name string, length int) (changed bool, err error)
	// Links are all there are.
	Links() ([]link.Link, error)
	// ExternalVXLAN is the device that takes VXLAN packets of every number at a UDP port, whatever it is called.
	ExternalVXLAN(port uint16) (l link.Link, ok bool, err error)
	Rename(l link.Link, name string) error
}

// EnsureBackers makes sure that the datapath has behind each tunnel port of spec what its packets come and go by,
// and says what it had to mend. In userspace that is a port of the datapath; in the kernel it is a device too: that
// it is there, up, carries packets, and has the MTU that Open vSwitch made it with. Open vSwitch itself makes these devices and never looks at them again: it passes over all
// news of them (process_dpif_port_change, ofproto/ofproto-dpif.c), and says of the ports that they are up
// (netdev_vport_update_flags, lib/netdev-vport.c). The ports are in the database, as [Ensure] leaves them; one that
// Open vSwitch refused because it could not have its device is tried anew.
func EnsureBackers(ctx context.Context, sw Switch, devices Devices, spec Spec) (mended []string, err error) {
	for _, t := range spec.Tunnels {
		var did []string
		if spec.Datapath == ovs.DatapathNetdev {
			did, err = ensureListed(ctx, sw, spec, t)
		} else {
			did, err = ensureBacker(ctx, sw, devices, spec, t)
		}
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

// ensureListed makes sure that the userspace datapath has the port of a tunnel. Somebody may have taken it out
// (ovs-appctl dpctl/del-if): of its other ports Open vSwitch sees that, and puts them back.
func ensureListed(ctx context.Context, sw Switch, spec Spec, t desired.Tunnel) (mended []string, err error) {
	port := t.KernelDevice()
	there, err := listed(ctx, sw, spec, port)
	if err != nil || there {
		return nil, err
	}
	if err := sw.Sync(ctx); err != nil { // an ovs-vswitchd that has just started may be about to make it
		return nil, err
	}
	if there, err = listed(ctx, sw, spec, port); err != nil || there {
		return nil, err
	}
	if err := remake(ctx, sw, spec.Name, tunnelPort(t, spec.TunnelSource)); isRefused(err) {
		return nil, noTunnel(spec, t, err)
	} else if err != nil {
		return nil, err
	}
	return []string{port + " was not in the datapath"}, nil
}

func listed(ctx context.Context, sw Switch, spec Spec, port string) (bool, error) {
	names, err := sw.DatapathPorts(ctx, spec.Datapath)
	return slices.Contains(names, port), err
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
		if l, err = backAnew(ctx, sw, devices, spec, t); err != nil {
			return nil, err
		}
		mended = append(mended, device+" was gone")
	}
	if !l.Up {
		if _, err := devices.SetUp(device); err != nil {
			return mended, err
		}
		if l, _, err = backer(devices, device); err != nil {
			return mended, err
		}
		mended = append(mended, device+" was down")
	}
	if !l.Carrier { // ip link set DEVICE protodown on
		if l, err = backAnew(ctx, sw, devices, spec, t); err != nil {
			return mended, err
		}
		mended = append(mended, device+" had no carrier")
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

// backAnew has ovs-vswitchd make the device of tunnel t anew, which it does where no port needed it before.
func backAnew(ctx context.Context, sw Switch, devices Devices, spec Spec, t desired.Tunnel) (link.Link, error) {
	if err := remake(ctx, sw, spec.Name, tunnelPort(t, spec.TunnelSource)); isRefused(err) {
		return link.Link{}, noTunnel(spec, t, err)
	} else if err != nil {
		return link.Link{}, err
	}
	l, there, err := backer(devices, t.KernelDevice())
	if err == nil && !there {
		err = fmt.Errorf("the kernel has no device %s in Open vSwitch's datapath, and ovs-vswitchd does not make it: no packet comes or goes by the tunnel; its log says why (is another VXLAN device at UDP port %s? ip -d link show type vxlan)", t.KernelDevice(), t.Port)
	}
	return l, err
}

// remake has ovs-vswitchd make a port of the bridge's own, and its device, anew. The port keeps its number, which
// it asks for.
func remake(ctx context.Context, sw Switch, bridge string, port ovs.PortSpec) error {
	if err := sw.DeletePort(ctx, bridge, port.Name); err != nil {
		return err
	}
	if err := sw.Sync(ctx); err != nil {
		return err
	}
	if _, err := sw.EnsurePort(ctx, bridge, port); err != nil {
		return err
	}
	if err := sw.Sync(ctx); err != nil {
		return err
	}
	got, err := sw.WaitOfport(ctx, port.Name)
	if err == nil && got != port.OfportRequest {
		err = fmt.Errorf("it was made anew with the number %d, and flows have %d: the next look at the bridge tells them", got, port.OfportRequest)
	}
	return err
}

// EnsureGateway makes sure that the gateway port of spec has its device, and that this carries packets, and says what
// it had to mend; nothing where that was nothing. Somebody may have deleted it or moved it to another network
// namespace: ovs-vswitchd does not look, and goes on with a port that nobody hears. One that somebody has only given
// another name stays: who keeps the node's side gives it its own back.
func EnsureGateway(ctx context.Context, sw Switch, devices Devices, spec Spec) (mended string, err error) {
	if mended, err = ensureGateway(ctx, sw, devices, spec); err != nil {
		return "", fmt.Errorf("gateway port %s of bridge %s: %w", GatewayPort, spec.Name, err)
	}
	return mended, nil
}

func ensureGateway(ctx context.Context, sw Switch, devices Devices, spec Spec) (mended string, err error) {
	l, lost, err := lostGateway(devices, spec)
	if err != nil {
		return "", err
	}
	if lost != "" {
		// An ovs-vswitchd that has just started may be about to make it, or to serve it.
		if err := sw.Sync(ctx); err != nil {
			return "", err
		}
		if l, lost, err = lostGateway(devices, spec); err != nil {
			return "", err
		}
	}
	if lost != "" {
		return lost, remake(ctx, sw, spec.Name, spec.gateway())
	}
	// What ovs-vswitchd reads the node's packets from has as much room as the queue.
	if l.Type == tap && l.TxQueue == 0 {
		if _, err := devices.SetTxQueue(GatewayPort, link.DefaultTxQueue); err != nil {
			return "", err
		}
		return GatewayPort + " had a queue of length 0", nil
	}
	return "", nil
}

// tap is the type of the userspace datapath's devices.
const tap = "tuntap"

// lostGateway is the gateway's device, and what makes it one by which no packet comes or goes whatever it is
// configured to be; empty where nothing does.
func lostGateway(devices Devices, spec Spec) (l link.Link, lost string, err error) {
	l, there, err := devices.Link(GatewayPort)
	if err != nil || there && (!l.Up || l.Carrier) {
		return l, "", err
	}
	if there {
		return l, GatewayPort + " had no carrier", nil
	}
	all, err := devices.Links()
	mac := topology.MAC(spec.Gateway)
	if err != nil || slices.ContainsFunc(all, func(l link.Link) bool { return bytes.Equal(l.MAC, mac) }) {
		return l, "", err
	}
	return l, GatewayPort + " was gone", nil
}
