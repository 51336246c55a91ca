package agent

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/attach"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/bridge"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
)

// tunnels are this node's end of those to other nodes, as last decided.
type tunnels struct {
	// as is how they encapsulate; the zero value before that is decided.
	as tunnel.Encap
	// moving is that the bridge has yet to get the UDP port of a tunnel, of these or others.
	moving bool
	// others are the ports that other nodes' may have meanwhile: all that were spoken of
	// since the agent started.
	others []tunnel.Port
	// why the node is not ready with that port; nil where it is.
	why error
}

// decide chooses how they encapsulate. The bridge may still have another port than was decided last, where
// the pass that did so failed.
func (t *tunnels) decide(p desired.TunnelPort) {
	onBridge := p.Has
	p.Has, p.HasType = cmp.Or(t.as.Port, p.Has), cmp.Or(t.as.Type, p.HasType)
	t.as, t.why = p.Decide()
	for _, spoken := range []tunnel.Port{p.Wanted(), p.Flag, p.Has, onBridge} {
		if spoken != 0 && !slices.Contains(t.others, spoken) {
			t.others = append(t.others, spoken)
		}
	}
}

// tunnelList are all tunnels of the node: none before it is decided how it reaches other nodes.
func (p *picture) tunnelList() desired.Tunnels {
	if p.tunnels.as.Port == 0 {
		return nil
	}
	return desired.NodeTunnels(p.self, p.tunnels.as)
}

// moves reports whether a bridge whose tunnel ports, by name, have those UDP ports is about to
// get another one. One that is not made yet, with no tunnel to other nodes, is just being made, and nothing comes by it.
func (p *picture) moves(made bool, has map[string]tunnel.Port) bool {
	return made && slices.ContainsFunc(p.tunnelList(), func(t desired.Tunnel) bool { return has[t.Name] != t.Port })
}

// guarded are the ports besides the node's own that pods may not send tunnel packets to.
func (p *picture) guarded() []tunnel.Port {
	own := p.tunnelList().UDPPorts()
	return slices.DeleteFunc(slices.Clone(p.tunnels.others), func(other tunnel.Port) bool { return slices.Contains(own, other) })
}

// otherEnd is the end of the tunnels at another node; not valid where none is known.
func (p *picture) otherEnd() netip.AddrPort {
	if p.records == nil || p.tunnels.as.Port == 0 {
		return netip.AddrPort{}
	}
	least := netip.Addr{}
	for at := range p.records.Nodes {
		if at != p.self && (!least.IsValid() || at.Less(least)) {
			least = at
		}
	}
	if !least.IsValid() {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(least, uint16(p.tunnels.as.Port))
}

// isPeer reports whether that is the end of the tunnels at another node.
func (p *picture) isPeer(a netip.Addr) bool {
	if p.records == nil {
		return false
	}
	_, ok := p.records.Nodes[a]
	return ok && a != p.self
}

// carries reports whether packets of pods have that number in tunnels: every tenant its own.
func (p *picture) carries(vni uint32) bool {
	if vni == uint32(netid.Global) || p.records == nil {
		return true
	}
	for _, n := range p.records.Namespaces {
		if n.Effective != nil && uint32(*n.Effective) == vni {
			return true
		}
	}
	return false
}

// takenPorts says at which UDP ports nodes take packets of other nodes' pods, and
// probes at port probes; 0 for none. It is asked by the loop's goroutine.
func (p *picture) takenPorts(probes uint16) func() []uint16 {
	return func() []uint16 {
		var ports []uint16
		for _, t := range slices.Concat(p.guarded(), p.tunnelList().UDPPorts()) {
			ports = append(ports, uint16(t))
		}
		if probes != 0 {
			ports = append(ports, probes)
		}
		return ports
	}
}

// decideTunnels chooses the type and the UDP port of the node's tunnels, by the records, the flags and
// what they have: at first that is the bridge's, which an agent before this one
// chose; later whatever this one chose, whoever changes the bridge.
func (n *hostSide) decideTunnels(ctx context.Context, _ *pass) error {
	p := desired.TunnelPort{Record: n.records.Config.VXLANPort, Flag: n.settings.tunnelPort, Probes: tunnel.Port(n.settings.probePort)}
	ports, err := n.database.Ports(n.settings.bridge)
	if err != nil && !errors.Is(err, ovs.ErrNoBridge) {
		return err
	}
	has := map[string]tunnel.Port{}
	for _, port := range ports {
		switch at := bridge.UDPPort(port); {
		case at != 0:
			has[port.Name] = at
		case strings.HasPrefix(port.Name, attach.HostIfPrefix):
			p.Pods++
		}
	}
	before, made := n.tunnels.as, bridge.NodeEncap(ports, p.Wanted())
	p.Has, p.HasType = made.Port, made.Type
	n.tunnels.decide(p)
	n.tunnels.moving = n.moves(made.Port != 0, has)
	if n.tunnels.as != before {
		n.log.Info("the UDP port of the tunnels", "port", n.tunnels.as.Port, "type", n.tunnels.as.Type, "bridge", p.Has, "configuration", p.Record)
	}
	if n.tunnels.as.Port == 0 {
		return n.tunnels.why
	}
	return n.table.SetUDPPorts(ctx, n.tunnelList().UDPPorts())
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
	if errors.Is(err, link.ErrNoLink) {
		return nil // rules come first; the gateway's device is made anew later
	}
	return err
}
