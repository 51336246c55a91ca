package agent

import (
	"context"
	"fmt"
	"net"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/bridge"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/exits"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/underlay"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// unwell says why pods of this node do not reach what they should though all of the
// agent's own is as it should be; nil where they do. Their network is kept up meanwhile:
// only new pods are better off on another node.
func (n *node) unwell(ctx context.Context, me topology.Node, full bool) error {
	under := n.under
	if err := n.uplinkDown(under); err != nil {
		return err
	}
	if !full && n.exit == nil && n.tried {
		return nil
	}
	n.tried = true
	n.exit = n.exits.Outside(ctx, gatewayPort{n.conn.conn}, exits.Gateway{
		Device: bridge.GatewayPort, MAC: topology.MAC(me.Gateway()), From: net.HardwareAddr(topology.MAC(topology.NextHop)), Subnet: me.Subnet,
	})
	return n.exit
}

// uplinkDown says that the device by which tunnel packets leave cannot send.
func (n *node) uplinkDown(under underlay.Underlay) error {
	name := under.Link
	if under.Uplink != "" {
		name = under.Uplink
	}
	l, ok, err := n.host.Link(name)
	switch {
	case err != nil:
		return err
	case !ok:
		return fmt.Errorf("the uplink %s is gone: pods reach no other node", name)
	case l.Loopback:
		return nil // routes say by which device
	case !l.Up:
		return fmt.Errorf("the uplink %s is down: pods reach no other node; set it up (ip link set %s up)", name, name)
	case !l.Carrier:
		return fmt.Errorf("the uplink %s has no carrier: pods reach no other node; look at its cable, its switch port, or what it is made of", name)
	}
	return nil
}

// outside is the device by which answers from outside come in to be routed to pods; the
// node's address may be on one that none come by.
func (n *node) outside(under underlay.Underlay) string {
	if l, ok, err := n.host.Link(under.Link); err != nil || !ok || l.Loopback {
		return ""
	}
	return under.Link
}

// gatewayPort sends frames out of the bridge's gateway port, past all flows.
type gatewayPort struct{ conn *of.Conn }

// Send implements exits.Switch.
func (g gatewayPort) Send(ctx context.Context, frame []byte) error {
	ports, err := g.conn.Ports(ctx)
	if err != nil {
		return err
	}
	for _, p := range ports {
		if p.Name == bridge.GatewayPort {
			return g.conn.PacketOut(ctx, frame, of.Output(p.Port))
		}
	}
	return fmt.Errorf("the bridge has no port %s", bridge.GatewayPort)
}
