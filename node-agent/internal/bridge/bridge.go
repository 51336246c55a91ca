// Package bridge keeps br0 itself as it should be: the bridge, its tunnel ports
// and its gateway port tun0. It never deletes or re-creates a bridge, and
// touches no port that it does not own.
package bridge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
)

// GatewayPort is the name of the port to the node.
const GatewayPort = "tun0"

// keyTunnel is in the external_ids of the tunnel ports that this package has made, or found
// where it was to make them: others' are not its to remove. Its value is the tunnel's type.
const keyTunnel = "k8s-ovs-tunnel"

// keyTunnelPort is there beside it. Its value is the UDP port that was decided on: what the port's options say, anybody may
// change while no agent runs.
const keyTunnelPort = "k8s-ovs-tunnel-port"

// dstPort is the option of a tunnel port with its UDP port (ovs-vswitchd.conf.db(5)).
const dstPort = "dst_port"

// Port numbers that the bridge's own ports ask for, so that flows stay valid
// when ovs-vswitchd starts anew. Pods ask for FirstPodPort and up.
const (
	gatewayOfport = 2
	// FirstPodPort leaves room below for tunnels (see [desired.Tunnel]).
	FirstPodPort = 10
	// maxOfport is the largest number that Open vSwitch gives on request
	// (ofport_request, ovs-vswitchd.conf.db(5)).
	maxOfport = 65279
)

// Switch is the part of Open vSwitch's database that a bridge is made with.
type Switch interface {
	EnsureBridge(ctx context.Context, spec ovs.BridgeSpec) (changed bool, err error)
	EnsurePort(ctx context.Context, bridge string, spec ovs.PortSpec) (changed bool, err error)
	// Bridge is that of the name; ok is false where there is none.
	Bridge(name string) (b ovs.Bridge, ok bool)
	Ports(bridge string) ([]ovs.Port, error)
	// PortsOfType are those of all bridges.
	PortsOfType(kind string) ([]ovs.Port, error)
	// DatapathPorts are the names of those that the datapath of a type has, whatever the database says.
	DatapathPorts(ctx context.Context, datapath string) ([]string, error)
	DeletePort(ctx context.Context, bridge, name string) error
	WaitOfport(ctx context.Context, name string) (uint32, error)
	// Sync waits until ovs-vswitchd has taken the database in.
	Sync(ctx context.Context) error
}

// Spec says what the bridge should be.
type Spec struct {
	// Name of the bridge.
	Name string
	// Datapath is ovs.DatapathSystem or ovs.DatapathNetdev.
	Datapath string
	// VTEP is the node's tunnel address.
	VTEP netip.Addr
	// Gateway is the address of tun0.
	Gateway netip.Addr
	// MTU of tun0 and of the bridge's own device, bytes. Open vSwitch keeps both at
	// it: without, it makes them the least of all ports'.
	MTU int
	// Tunnels are all that it is to have. One that the bridge has from before and that is not
	// among them goes.
	Tunnels desired.Tunnels
	// Pods is what names of pods' ports begin with.
	Pods string
	// TunnelSource is the address that packets of the tunnels of its family are sent from
	// and taken at; not valid: what the way to a peer says, and any of the node's.
	TunnelSource netip.Addr
	// Peer reports whether that is the tunnels' end of another node, Carries whether packets with that number
	// come by tunnels; nil: any.
	Peer    func(netip.Addr) bool
	Carries func(vni uint32) bool
}

// Ensure makes the bridge what spec says and returns its ports' numbers. It
// changes only what differs. refused is why Open vSwitch has no tunnel where there is to be one, as its kernel
// may refuse, or gives its packets to somebody else's: flows then have the number that the tunnel asks for, and pods of
// this node reach each other.
func Ensure(ctx context.Context, sw Switch, spec Spec) (ports desired.Ports, changed bool, refused, err error) {
	steps := []func() (bool, error){
		func() (bool, error) {
			changed, err := sw.EnsureBridge(ctx, spec.bridge())
			if !changed || err != nil {
				return changed, err
			}
			// Spanning tree that is switched off again while ovs-vswitchd 3.1 is switching
			// it on stays on until the next change of the database: this is one.
			return true, sw.Sync(ctx)
		},
		func() (bool, error) { return ensureTunnels(ctx, sw, spec) },
		func() (bool, error) { return sw.EnsurePort(ctx, spec.Name, spec.gateway()) },
	}
	for _, step := range steps {
		c, err := step()
		if err != nil {
			return ports, changed, nil, fmt.Errorf("bridge %s: %w", spec.Name, err)
		}
		changed = changed || c
	}
	ports.Tunnels = make(map[string]uint32, len(spec.Tunnels))
	for _, t := range spec.Tunnels {
		number, err := sw.WaitOfport(ctx, t.Name)
		switch {
		case isRefused(err):
			number, refused = t.Ofport, cmp.Or(refused, noTunnel(spec, t, err))
		case err != nil:
			return ports, changed, nil, fmt.Errorf("bridge %s: %w", spec.Name, err)
		}
		ports.Tunnels[t.Name] = number
	}
	if ports.Gateway, err = sw.WaitOfport(ctx, GatewayPort); err != nil {
		return ports, changed, nil, fmt.Errorf("bridge %s: %w", spec.Name, err)
	}
	rival, err := findRival(sw, spec)
	if err != nil {
		return ports, changed, nil, fmt.Errorf("bridge %s: %w", spec.Name, err)
	}
	return ports, changed, cmp.Or(refused, rival), nil
}

// Refill puts back what the database lost of the bridge and of its own ports, and waits for nobody: ovs-vswitchd comes
// to a database that was away a second later (RECONNECT_DEFAULT_MIN_BACKOFF, lib/reconnect.c of Open vSwitch), and takes down what it
// does not find there.
func Refill(ctx context.Context, sw Switch, spec Spec) error {
	_, err := sw.EnsureBridge(ctx, spec.bridge())
	for _, t := range spec.Tunnels {
		if err == nil {
			_, err = sw.EnsurePort(ctx, spec.Name, tunnelPort(t, spec.TunnelSource))
		}
	}
	if err == nil {
		_, err = sw.EnsurePort(ctx, spec.Name, spec.gateway())
	}
	if err != nil {
		return fmt.Errorf("bridge %s: %w", spec.Name, err)
	}
	return nil
}

// bridge is the bridge itself.
func (s Spec) bridge() ovs.BridgeSpec {
	return ovs.BridgeSpec{
		Name: s.Name, DatapathType: s.Datapath, FailMode: ovs.FailSecure, NoSpanningTree: true,
		Protocols: []string{of.Protocol}, NoFlowLimits: true,
		// Where Open vSwitch has a manager or a controller by TCP, it lets that one's packets, and ARP,
		// through all bridges, before and beside all flows that can be seen.
		OtherConfig:   map[string]string{"disable-in-band": "true"},
		NoControllers: true, Keeps: s.keeps,
		// A fixed address keeps the datapath id, and so the connection, when ports come and go.
		MAC: topology.MAC(s.VTEP), LocalMTU: s.MTU,
		ExternalIDs: map[string]string{"k8s-ovs": "bridge"},
	}
}

// gateway is the port by which packets leave for the node.
func (s Spec) gateway() ovs.PortSpec {
	return ovs.PortSpec{
		Name: GatewayPort, Type: "internal", OfportRequest: gatewayOfport, MAC: topology.MAC(s.Gateway), MTURequest: s.MTU, NotPoliced: true, NoQueue: true,
	}
}

// keeps reports whether the port of that name is the bridge's own or a pod's: others may have copies of packets, as
// ovs-tcpdump makes them.
func (s Spec) keeps(port string) bool {
	return port == s.Name || port == GatewayPort || s.Tunnels.Named(port).Name != "" || s.Pods != "" && strings.HasPrefix(port, s.Pods)
}

// isRefused reports whether err is that Open vSwitch cannot bring a port into the datapath.
func isRefused(err error) bool {
	var refused *ovs.PortError
	return errors.As(err, &refused)
}

// noTunnel says that no packet comes or goes by tunnel t, as Open vSwitch does not have it because of err.
func noTunnel(spec Spec, t desired.Tunnel, err error) error {
	return fmt.Errorf("tunnel %s of bridge %s: no packet comes or goes by it: %w (is another device at UDP port %s? ip -d link show type %s)", t.Name, spec.Name, err, t.Port, t.Type)
}

// ensureTunnels makes the tunnel ports, and removes those of its own that are none any
// more. These go first: a new one may have the UDP port of an old one.
func ensureTunnels(ctx context.Context, sw Switch, spec Spec) (changed bool, err error) {
	ports, err := sw.Ports(spec.Name)
	if err != nil {
		return false, err
	}
	for _, p := range ports {
		if p.ExternalIDs[keyTunnel] == "" || spec.Tunnels.Named(p.Name).Name != "" {
			continue
		}
		if err := sw.DeletePort(ctx, spec.Name, p.Name); err != nil {
			return changed, err
		}
		changed = true
	}
	for _, t := range spec.Tunnels {
		did, err := sw.EnsurePort(ctx, spec.Name, tunnelPort(t, spec.TunnelSource))
		changed = changed || did
		if err != nil {
			return changed, err
		}
	}
	if !changed {
		return false, nil
	}
	// Ports that want the number of another get it as ovs-vswitchd goes on: until then two of
	// them may say the same one.
	return true, sw.Sync(ctx)
}

// tunnelPort is the port of tunnel t, whose packets are sent from source where that is of
// its family.
func tunnelPort(t desired.Tunnel, source netip.Addr) ovs.PortSpec {
	options := map[string]string{"key": "flow", "remote_ip": "flow", dstPort: t.Port.String()}
	if source.IsValid() && tunnel.FamilyOf(source) == t.Family {
		options["local_ip"] = source.String()
	}
	return ovs.PortSpec{
		Name: t.Name, Type: string(t.Type), OfportRequest: t.Ofport, Options: options,
		ExternalIDs: map[string]string{keyTunnel: string(t.Type), keyTunnelPort: t.Port.String()}, NotPoliced: true,
	}
}

// UDPPort is the UDP port that the bridge's tunnel port p has; 0 where it is none.
func UDPPort(p ovs.Port) tunnel.Port {
	port, err := tunnel.ParsePort(p.Options[dstPort])
	if err != nil {
		return tunnel.Type(p.Type).Port() // what Open vSwitch takes then
	}
	return port
}

// PodOfport is the port number that the pod with that address asks for: it
// follows from the address, so it is free when the address is, and the pod's
// flows stay valid when ovs-vswitchd starts anew. 0 where the subnet has more
// addresses than there are numbers.
func PodOfport(subnet netip.Prefix, a netip.Addr) uint32 {
	index := topology.Low32(a) - topology.Low32(subnet.Masked().Addr())
	if index > maxOfport-FirstPodPort {
		return 0
	}
	return FirstPodPort + index
}
