package desired

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
)

// NodeTunnel is the name of the tunnel by which nodes reach each other.
const NodeTunnel = "vxlan0"

// Tunnel is a tunnel port that the bridge is to have.
type Tunnel struct {
	tunnel.Tunnel
	// Ofport is the port number that it asks for, the same on every node and whatever other
	// tunnels there are: flows for one may never become another's.
	Ofport uint32
}

// Tunnels are those that the bridge is to have.
type Tunnels []Tunnel

// NodeTunnels are the tunnels of a node with VTEP address self whose packets to other
// nodes go to UDP port port. It is the only place that knows which there are, and that
// there is one: further ones have the port numbers 3 to 9 (package bridge).
func NodeTunnels(self netip.Addr, port tunnel.Port) Tunnels {
	return Tunnels{{tunnel.Tunnel{Name: NodeTunnel, Type: tunnel.VXLAN, Port: port, Family: tunnel.FamilyOf(self)}, 1}}
}

// UDPPorts are the ports that packets are taken at, in order, each once.
func (t Tunnels) UDPPorts() []tunnel.Port {
	var ports []tunnel.Port
	for _, one := range t {
		ports = append(ports, one.Port)
	}
	slices.Sort(ports)
	return slices.Compact(ports)
}

// Overhead is how much a tunnel adds to a pod's packet, bytes: that which adds most.
func (t Tunnels) Overhead() int {
	most := 0
	for _, one := range t {
		most = max(most, one.Overhead())
	}
	return most
}

// Named is the tunnel of that name; the zero value where there is none.
func (t Tunnels) Named(name string) Tunnel {
	for _, one := range t {
		if one.Name == name {
			return one
		}
	}
	return Tunnel{}
}

// TunnelPort is what is said about the UDP port of this node's tunnels; 0 where nothing is.
type TunnelPort struct {
	// Record is the network configuration's, Flag the agent's own --vxlan-port.
	Record, Flag tunnel.Port
	// Has is the port that the bridge has by now, Pods how many pods are attached to it.
	Has  tunnel.Port
	Pods int
	// Probes is the port where paths are probed.
	Probes tunnel.Port
}

// Wanted is the port that all nodes should have. The configuration rules: a flag may be
// another on each node.
func (p TunnelPort) Wanted() tunnel.Port { return cmp.Or(p.Record, p.Flag, tunnel.VXLANPort) }

// Decide is the port that the node is to have now, and why it is not ready with it; nil
// where it is; 0 where there is none that it can have. A node that has another than its peers reaches none of them, and nobody
// would see why. So a node with pods keeps the port that it has until somebody says
// twice, in the configuration and to this agent, that it is another one; and where two
// ports are said, no new pods start.
func (p TunnelPort) Decide() (port tunnel.Port, why error) {
	port = p.Wanted()
	if p.Has != 0 && p.Pods > 0 && p.Flag != port {
		port = p.Has
	}
	switch {
	case p.Flag != 0 && p.Flag != p.Wanted():
		return port, fmt.Errorf("--vxlan-port %d is not the port of this network, whose configuration has VXLANPort %d: start the agent without it", p.Flag, p.Record)
	case port != p.Wanted() && p.Record == 0:
		return port, fmt.Errorf("the tunnels of this node are at UDP port %d, and %d pods use them, but the network configuration names no VXLANPort, which is %d: write VXLANPort %d into it, or give every agent --vxlan-port %d as before", p.Has, p.Pods, p.Wanted(), p.Has, p.Has)
	case port != p.Wanted():
		return port, fmt.Errorf("the network configuration has VXLANPort %d, but the tunnels of this node are at UDP port %d, and %d pods use them: put %d back, or drain the node", p.Record, p.Has, p.Pods, p.Has)
	case slices.Contains(NodeTunnels(netip.Addr{}, port).UDPPorts(), p.Probes): // whatever the family
		return p.Has, fmt.Errorf("UDP port %d is that of the tunnels, so paths cannot be probed there: give every agent another --mtu-probe-port, or 0", port)
	}
	return port, nil
}
