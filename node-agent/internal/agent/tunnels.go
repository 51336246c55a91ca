package agent

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/attach"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/bridge"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
)

// tunnels are this node's end of them, as last decided.
type tunnels struct {
	// port is the UDP port that they have; moving says that the bridge has another yet.
	port   tunnel.Port
	moving bool
	// others are the ports that other nodes' may have meanwhile: all that were spoken of
	// since the agent started.
	others []tunnel.Port
	// why the node is not ready with that port; nil where it is.
	why error
}

// decide chooses the port. The bridge may still have another than was decided last, where
// the pass that did so failed.
func (t *tunnels) decide(p desired.TunnelPort) {
	onBridge := p.Has
	p.Has = cmp.Or(t.port, p.Has)
	t.port, t.why = p.Decide()
	t.moving = onBridge != 0 && t.port != onBridge
	for _, spoken := range []tunnel.Port{p.Wanted(), p.Flag, p.Has, onBridge} {
		if spoken != 0 && !slices.Contains(t.others, spoken) {
			t.others = append(t.others, spoken)
		}
	}
}

// guarded are the ports besides its own that pods may not send tunnel packets to.
func (t *tunnels) guarded() []tunnel.Port {
	return slices.DeleteFunc(slices.Clone(t.others), func(p tunnel.Port) bool { return p == t.port })
}

// takenPorts says at which UDP ports nodes take packets of other nodes' pods, and
// probes at port probes; 0 for none. It is asked by the loop's goroutine.
func (p *picture) takenPorts(probes uint16) func() []uint16 {
	return func() []uint16 {
		var ports []uint16
		for _, t := range append(p.tunnels.guarded(), p.tunnels.port, tunnel.Port(probes)) {
			if t != 0 {
				ports = append(ports, uint16(t))
			}
		}
		return ports
	}
}

// decideTunnels chooses the UDP port of the node's tunnels, by the records, the flags and
// the port that they have: at first that is the bridge's, which an agent before this one
// chose; later whatever this one chose, whoever changes the bridge.
func (n *hostSide) decideTunnels(ctx context.Context, _ *pass) error {
	p := desired.TunnelPort{Record: n.records.Config.VXLANPort, Flag: n.settings.tunnelPort, Probes: tunnel.Port(n.settings.probePort)}
	ports, err := n.database.Ports(n.settings.bridge)
	if err != nil && !errors.Is(err, ovs.ErrNoBridge) {
		return err
	}
	for _, port := range ports {
		switch {
		case port.Name == bridge.TunnelPort:
			p.Has = bridge.VXLANPort(port)
		case strings.HasPrefix(port.Name, attach.HostIfPrefix):
			p.Pods++
		}
	}
	before := n.tunnels.port
	n.tunnels.decide(p)
	if n.tunnels.port != before {
		n.log.Info("the UDP port of the tunnels", "port", n.tunnels.port, "bridge", p.Has, "configuration", p.Record)
	}
	if n.tunnels.port == 0 {
		return n.tunnels.why
	}
	return n.table.SetVXLANPort(ctx, uint16(n.tunnels.port))
}

// guardMove has the firewall know the port that the bridge is about to get: pods may not send
// to it before it is one of tunnels.
func (n *hostSide) guardMove(ctx context.Context, p *pass) error {
	if !n.tunnels.moving {
		return nil
	}
	spec, err := n.hostSpec(p)
	if err != nil {
		return err
	}
	_, err = n.net.Ensure(ctx, spec)
	return err
}
