package desired

import (
	"cmp"
	"fmt"

	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
)

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
	case port == p.Probes:
		return p.Has, fmt.Errorf("UDP port %d is that of the tunnels, so paths cannot be probed there: give every agent another --mtu-probe-port, or 0", port)
	}
	return port, nil
}
