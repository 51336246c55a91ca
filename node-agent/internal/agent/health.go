package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/bridge"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/exits"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/podroutes"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/underlay"
	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// health looks at what is not the agent's own, though pods' packets depend on it.
type health struct {
	*picture
	exits exitCheck
	way   wayOut
	// database is asked whether what is told it lasts.
	database interface {
		Writable(ctx context.Context) error
	}
	links links
	conn  exits.Switch
	// routes are the node's, astray why they do not lead to pods; nil where they do, or before routed.
	routes routes
	astray error
	routed bool
	// exit is why the node was not ready for pods' packets last, which did not get out of it;
	// nil where they did, or where that was not tried yet.
	exit  error
	tried bool
}

// exitCheck is [exits.Check].
type exitCheck interface {
	Outside(ctx context.Context, sw exits.Switch, gw exits.Gateway) error
}

// routes are [podroutes.Check] of the node's.
type routes interface {
	Check(pods podroutes.Pods) error
}

// hostRoutes are the routes of the node's namespace.
type hostRoutes struct{ host podroutes.Host }

// Check implements routes.
func (r hostRoutes) Check(pods podroutes.Pods) error { return podroutes.Check(r.host, pods) }

// look finds out why pods do not reach what they should, where no step before has.
func (n *health) look(ctx context.Context, p *pass) error {
	if p.unwell == nil {
		p.unwell = n.unwell(ctx, p)
	}
	return nil
}

// unwell says why pods of this node do not reach what they should though all of the
// agent's own is as it should be; nil where they do. Their network is kept up meanwhile:
// only new pods are better off on another node.
func (n *health) unwell(ctx context.Context, p *pass) error {
	if n.tunnels.why != nil {
		return n.tunnels.why
	}
	if err := n.database.Writable(ctx); err != nil {
		return err
	}
	under := n.under
	if err := n.uplinkDown(under); err != nil {
		return err
	}
	if p.full || n.astray != nil || !n.routed {
		n.routed, n.astray = true, n.lookAtRoutes(p)
	}
	if n.astray != nil {
		return n.astray
	}
	if !p.full && n.exit == nil && n.tried || n.way.policy == exits.Off {
		return nil
	}
	n.tried = true
	gateway := exits.Gateway{
		Device: bridge.GatewayPort, MAC: topology.MAC(p.me.Gateway()), From: net.HardwareAddr(topology.MAC(topology.NextHop)), Subnet: p.me.Subnet,
	}
	var why error
	p.beside(func() { why = n.exits.Outside(ctx, n.conn, gateway) })
	n.exit = n.way.judge(why)
	return n.exit
}

// lookAtRoutes says what leads packets for pods elsewhere than to the bridge.
func (n *health) lookAtRoutes(p *pass) (why error) {
	pods := podroutes.Pods{Device: bridge.GatewayPort, Network: n.records.Config.Network, Own: p.me.Subnet, Beyond: exits.Beyond}
	for ip, node := range n.records.Nodes {
		if ip != n.self && node.Ready() && node.Validate(n.records.Config) == nil {
			pods.Subnets = append(pods.Subnets, node.Subnet)
		}
	}
	// In their order: what is said does not change from look to look.
	slices.SortFunc(pods.Subnets, netip.Prefix.Compare)
	if l, ok, err := n.links.Link(n.under.Link); err == nil && ok && !l.Loopback {
		pods.Outside = l.Name
	}
	p.beside(func() { why = n.routes.Check(pods) })
	return why
}

// wayOut is what becomes of a way to the outside that is closed, as [exits.Check] sees it.
type wayOut struct {
	policy exits.Policy
	node   string
	closed prometheus.Gauge
	// events is nil outside of Kubernetes.
	events  eventSink
	log     *slog.Logger
	trouble backoff.Trouble
}

// judge is why the node is not ready, with the way to say that the check is wrong; nil where it
// is only to be told.
func (w *wayOut) judge(why error) error {
	if why == nil {
		w.closed.Set(0)
		if w.trouble.Over() {
			w.log.Info("pods reach the outside again", "node", w.node)
		}
		return nil
	}
	w.closed.Set(1)
	if w.policy != exits.Warn {
		return fmt.Errorf("%w; where pods do get out, the agent's flag --exit-check=warn keeps the node ready", why)
	}
	if !w.trouble.News(why) {
		return nil
	}
	w.log.Warn("pods may not reach the outside", "node", w.node, "error", why)
	if w.events != nil {
		w.events.Event(kube.ObjectRef{Kind: "Node", Name: w.node, UID: w.node}, true, "OutsideClosed", why.Error())
	}
	return nil
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
