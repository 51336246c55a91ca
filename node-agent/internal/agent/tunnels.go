package agent

import (
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

// tunnels are this node's end of them, as last decided. They belong to the loop's goroutine.
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

// decide chooses the port.
func (t *tunnels) decide(p desired.TunnelPort) {
	t.port, t.why = p.Decide()
	t.moving = p.Has != 0 && t.port != p.Has
	for _, spoken := range []tunnel.Port{p.Wanted(), p.Flag, p.Has} {
		if spoken != 0 && !slices.Contains(t.others, spoken) {
			t.others = append(t.others, spoken)
		}
	}
}

// guarded are the ports besides its own that pods may not send tunnel packets to.
func (t *tunnels) guarded() []tunnel.Port {
	return slices.DeleteFunc(slices.Clone(t.others), func(p tunnel.Port) bool { return p == t.port })
}

// tunnelPorts are the UDP ports at which nodes take packets of other nodes' pods, and
// probes.
func (n *node) tunnelPorts() []uint16 {
	ports := []uint16{uint16(n.tunnels.port)}
	for _, p := range n.tunnels.guarded() {
		ports = append(ports, uint16(p))
	}
	if n.cfg.MTUProbePort != 0 {
		ports = append(ports, n.cfg.MTUProbePort)
	}
	return ports
}

// decideTunnels chooses the UDP port of the node's tunnels, by the records, the flags and
// the port that they have: at first that is the bridge's, which an agent before this one
// chose; later whatever this one chose, whoever changes the bridge.
func (n *node) decideTunnels(ctx context.Context) error {
	p := desired.TunnelPort{Record: n.records.Config.VXLANPort, Flag: n.cfg.VXLANPort, Probes: tunnel.Port(n.cfg.MTUProbePort)}
	ports, err := n.ovs.Ports(n.cfg.Bridge)
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
	if n.tunnels.port != 0 {
		p.Has = n.tunnels.port
	}
	before := n.tunnels.port
	n.tunnels.decide(p)
	if n.tunnels.port != before {
		n.log.Info("the UDP port of the tunnels", "port", n.tunnels.port, "was", p.Has, "configuration", p.Record)
	}
	if n.tunnels.port == 0 {
		return n.tunnels.why
	}
	return n.table.SetVXLANPort(ctx, uint16(n.tunnels.port))
}
