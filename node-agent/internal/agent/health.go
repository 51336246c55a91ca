package agent

import (
	"context"
	"fmt"
	"net"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/bridge"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/exits"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/underlay"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// health looks at what is not the agent's own, though pods' packets depend on it.
type health struct {
	*picture
	exits exitCheck
	links links
	conn  exits.Switch
	// exit is why pods' packets did not get out of the node last; nil where they did, or
	// where that was not tried yet.
	exit  error
	tried bool
}

// exitCheck is [exits.Check].
type exitCheck interface {
	Outside(ctx context.Context, sw exits.Switch, gw exits.Gateway) error
}

// look finds out why pods do not reach what they should.
func (n *health) look(ctx context.Context, p *pass) error {
	p.unwell = n.unwell(ctx, p.me, p.full)
	return nil
}

// unwell says why pods of this node do not reach what they should though all of the
// agent's own is as it should be; nil where they do. Their network is kept up meanwhile:
// only new pods are better off on another node.
func (n *health) unwell(ctx context.Context, me topology.Node, full bool) error {
	if n.tunnels.why != nil {
		return n.tunnels.why
	}
	under := n.under
	if err := n.uplinkDown(under); err != nil {
		return err
	}
	if !full && n.exit == nil && n.tried {
		return nil
	}
	n.tried = true
	n.exit = n.exits.Outside(ctx, n.conn, exits.Gateway{
		Device: bridge.GatewayPort, MAC: topology.MAC(me.Gateway()), From: net.HardwareAddr(topology.MAC(topology.NextHop)), Subnet: me.Subnet,
	})
	return n.exit
}

// uplinkDown says that the device by which tunnel packets leave cannot send.
func (n *health) uplinkDown(under underlay.Underlay) error {
	name := under.Link
	if under.Uplink != "" {
		name = under.Uplink
	}
	l, ok, err := n.links.Link(name)
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
