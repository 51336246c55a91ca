package desired

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
)

const (
	// NodeTunnel is the name of the tunnel by which nodes reach each other.
	NodeTunnel = "vxlan0"
	// nodeType is the type that this release makes it. An agent of another release may have made another.
	nodeType = tunnel.VXLAN
	// NodeOfport is its port number, by which it is found whatever its name and type were in another release.
	NodeOfport = 1
)

// Tunnel is a tunnel port that the bridge is to have.
type Tunnel struct {
	tunnel.Tunnel
	// Ofport is the port number that it asks for, the same on every node and whatever other
	// tunnels there are: flows for one may never become another's.
	Ofport uint32
}

// Tunnels are those that the bridge is to have.
type Tunnels []Tunnel

// NodeTunnels are the tunnels of a node with VTEP address self that reaches other nodes by as, which
// [TunnelPort.Decide] chooses. It is the only place that knows which tunnels there are, and that there is one:
// further ones have the port numbers 3 to 9 (package bridge). Which of them leads to a node [tunnelTo] says.
func NodeTunnels(self netip.Addr, as tunnel.Encap) Tunnels {
	return Tunnels{{tunnel.Tunnel{Name: NodeTunnel, Type: as.Type, Port: as.Port, Family: tunnel.FamilyOf(self)}, NodeOfport}}
}

// tunnelTo is the name of the tunnel that leads to the node n.
func tunnelTo(topology.Node) string { return NodeTunnel }

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

// TunnelPort is what is said about the UDP port of this node's tunnels, and their type; 0 and empty where nothing is.
type TunnelPort struct {
	// Record is the network configuration's, Flag the agent's own --vxlan-port.
	Record, Flag tunnel.Port
	// Has and HasType are what the bridge has by now, Pods how many pods are attached to it. HasType is empty
	// where the bridge has none, or none that a release marked with its type.
	Has     tunnel.Port
	HasType tunnel.Type
	Pods    int
	// Probes is the port where paths are probed.
	Probes tunnel.Port
}

// Wanted is the port that all nodes should have. The configuration rules: a flag may be
// another on each node.
func (p TunnelPort) Wanted() tunnel.Port { return cmp.Or(p.Record, p.Flag, nodeType.Port()) }

// Decide is how the node is to reach others now, and why it is not ready with it; nil
// where it is; the zero value where there is no way that it can have. A node that has another than its peers reaches none of them, and nobody
// would see why. So a node with pods keeps the port that it has until somebody says
// twice, in the configuration and to this agent, that it is another one; and where two
// ports are said, no new pods start. The type that it has, which only another release of the agent makes another, a
// node with pods keeps in any case.
func (p TunnelPort) Decide() (as tunnel.Encap, why error) { return p.decide(nodeType) }

// decide is [TunnelPort.Decide] of a release that makes tunnels of the type makes.
func (p TunnelPort) decide(makes tunnel.Type) (as tunnel.Encap, why error) {
	as = tunnel.Encap{Type: makes, Port: p.Wanted()}
	used := p.Has != 0 && p.Pods > 0
	if used && p.Flag != as.Port {
		as.Port = p.Has
	}
	if used {
		as.Type = cmp.Or(p.HasType, makes)
	}
	switch {
	case as.Type != makes && !as.Type.Known():
		return tunnel.Encap{}, fmt.Errorf("the tunnels of this node are of the type %s, which this release does not know, and %d pods use them: run the release that made them, or drain the node", as.Type, p.Pods)
	case p.Flag != 0 && p.Flag != p.Wanted():
		return as, fmt.Errorf("--vxlan-port %d is not the port of this network, whose configuration has VXLANPort %d: start the agent without it", p.Flag, p.Record)
	case as.Port != p.Wanted() && p.Record == 0:
		return as, fmt.Errorf("the tunnels of this node are at UDP port %d, and %d pods use them, but the network configuration names no VXLANPort, which is %d: write VXLANPort %d into it, or give every agent --vxlan-port %d as before", p.Has, p.Pods, p.Wanted(), p.Has, p.Has)
	case as.Port != p.Wanted():
		return as, fmt.Errorf("the network configuration has VXLANPort %d, but the tunnels of this node are at UDP port %d, and %d pods use them: put %d back, or drain the node", p.Record, p.Has, p.Pods, p.Has)
	case slices.Contains(NodeTunnels(netip.Addr{}, as).UDPPorts(), p.Probes): // whatever the family
		return p.has(), fmt.Errorf("UDP port %d is that of the tunnels, so paths cannot be probed there: give every agent another --mtu-probe-port, or 0", as.Port)
	case as.Type != makes:
		return as, fmt.Errorf("the tunnels of this node are of the type %s, and %d pods use them, but this release makes them %s: drain the node", as.Type, p.Pods, makes)
	}
	return as, nil
}

// has is what the bridge has; the zero value where that is nothing.
func (p TunnelPort) has() tunnel.Encap {
	if p.Has == 0 {
		return tunnel.Encap{}
	}
	return tunnel.Encap{Type: cmp.Or(p.HasType, nodeType), Port: p.Has}
}
