package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/bridge"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/exits"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/podroutes"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/tunnelprobe"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/underlay"
	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
)

// health looks at what is not the agent's own, though pods' packets depend on it.
type health struct {
	*picture
	exits exitCheck
	way   checked
	mesh  mesh
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
	// heard is the index of the device with the node's address, once that has looked up neighbours.
	heard int
	// exit is why the node was not ready for pods' packets last, which did not get out of it;
	// nil where they did, or where that was not tried yet.
	exit  error
	tried bool
}

// mesh is the ways to other nodes, as the check of them sees them.
type mesh struct {
	checked
	nodes nodesCheck
	// through is the way that nothing of this node's alone tells of.
	through throughCheck
	// relearn has the datapath look up anew where other nodes are; nil where it asks the kernel. learns is when, and the pauses
	// in between.
	relearn func(ctx context.Context) error
	learns  struct {
		next   time.Time
		pauses backoff.Pauses
	}
	kept prometheus.Gauge
	// routes is that tunnels' packets do not take the way of the node's own, which then says nothing of theirs.
	routes bool
	// why there was no way to any other node last; nil where there was one, or where that was not tried yet.
	why   error
	tried bool
}

// exitCheck is [exits.Check].
type exitCheck interface {
	Outside(ctx context.Context, sw exits.Switch, gw exits.Gateway) error
}

// nodesCheck is [exits.Nodes].
type nodesCheck interface {
	Reach(ctx context.Context, self netip.Addr, peers exits.Peers, routes bool) error
	Kept() int
}

// throughCheck is [tunnelprobe.Prober].
type throughCheck interface {
	SetNodes(subnet netip.Prefix, tunnels tunnel.Port, nodes []tunnelprobe.Node)
	Reach() error
	Changed() <-chan struct{}
	Why() string
	Kept() int
}

// nobodyAsked is where nodes do not ask each other.
type nobodyAsked struct{}

func (nobodyAsked) SetNodes(netip.Prefix, tunnel.Port, []tunnelprobe.Node) {}
func (nobodyAsked) Reach() error                                           { return nil }
func (nobodyAsked) Changed() <-chan struct{}                               { return nil }
func (nobodyAsked) Why() string                                            { return "" }
func (nobodyAsked) Kept() int                                              { return 0 }

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
	if err := n.lookAtNodes(ctx, p); err != nil {
		return err
	}
	if !p.full && n.exit == nil && n.tried || n.way.policy == exits.Off {
		return nil
	}
	n.tried = true
	gateway := exits.Gateway{
		Device: bridge.GatewayPort, MAC: topology.MAC(p.me.Gateway()), From: net.HardwareAddr(topology.MAC(topology.NextHop)), Address: p.me.Gateway(), Subnet: p.me.Subnet,
	}
	var why error
	p.beside(func() { why = n.exits.Outside(ctx, n.conn, gateway) })
	n.exit = n.way.judge(why)
	return n.exit
}

// lookAtNodes says what keeps tunnels' packets of all other nodes back.
func (n *health) lookAtNodes(ctx context.Context, p *pass) error {
	m := &n.mesh
	if !p.full && m.why == nil && m.tried {
		return nil
	}
	m.tried = true
	peers, answering := exits.Peers{}, []tunnelprobe.Node{}
	for _, end := range desired.Ends(*n.records, n.self) {
		if node := n.records.Nodes[end.VTEP]; node.Ready() {
			peers[end.VTEP] = n.tunnels.as.Port
			answering = append(answering, tunnelprobe.Node{Tunnel: end.VTEP, Overlay: node.Gateway()})
		}
	}
	m.through.SetNodes(p.me.Subnet, n.tunnels.as.Port, answering)
	if m.policy == exits.Off {
		return nil
	}
	var why error
	p.beside(func() { why = m.nodes.Reach(ctx, n.self, peers, m.routes) })
	if why == nil {
		why = m.through.Reach()
		m.lookUp(ctx, why)
	}
	// Who is kept back here does not answer either.
	m.kept.Set(float64(max(m.nodes.Kept(), m.through.Kept())))
	m.why = m.judge(why)
	return m.why
}

// firstRelearn and lastRelearn bound the pauses between two times that the datapath looks up where other nodes are.
const firstRelearn, lastRelearn = 30 * time.Second, 10 * time.Minute

// lookUp has the datapath look up anew where other nodes are, if none answers.
func (m *mesh) lookUp(ctx context.Context, silence error) {
	if silence == nil {
		m.learns.next = time.Time{}
		return
	}
	if m.relearn == nil || time.Now().Before(m.learns.next) {
		return
	}
	if m.learns.next.IsZero() {
		m.learns.pauses = backoff.Pauses{First: firstRelearn, Last: lastRelearn}
	}
	m.learns.next = time.Now().Add(m.learns.pauses.Next())
	if err := m.relearn(ctx); err != nil {
		m.log.Warn("Open vSwitch does not look up anew where other nodes are", "error", err)
	}
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

// checked is what becomes of a way that is closed, as a check sees it, which may be misled.
type checked struct {
	policy exits.Policy
	// flag is the agent's that says so, unless is what people see where the check is misled; open and shut are what the log
	// says, event is the reason of the Event.
	flag, unless, open, shut string
	event                    kube.EventReason
	node                     string
	closed                   prometheus.Gauge
	// events is nil outside of Kubernetes.
	events  eventSink
	log     *slog.Logger
	trouble backoff.Trouble
}

// judge is why the node is not ready, with the way to say that the check is wrong; nil where it
// is only to be told.
func (w *checked) judge(why error) error {
	if why == nil {
		w.closed.Set(0)
		if w.trouble.Over() {
			w.log.Info(w.open, "node", w.node)
		}
		return nil
	}
	w.closed.Set(1)
	if w.policy != exits.Warn {
		return fmt.Errorf("%w; where %s, the agent's flag --%s=warn keeps the node ready", why, w.unless, w.flag)
	}
	if !w.trouble.News(why) {
		return nil
	}
	w.log.Warn(w.shut, "node", w.node, "error", why)
	if w.events != nil {
		w.events.Event(kube.ObjectRef{Kind: "Node", Name: w.node, UID: w.node}, true, w.event, why.Error())
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
	case l.Master != 0 && under.Uplink == "":
		return n.enslaved(l)
	}
	return n.deaf(under.Link)
}

// deaf says that the device with the node's address looks up no neighbours any more. Some never do, by their driver.
func (n *health) deaf(device string) error {
	l, ok, err := n.links.Link(device)
	if err != nil || !ok {
		return err
	}
	if !l.Deaf {
		n.heard = l.Index
	}
	if !l.Deaf || n.heard != l.Index {
		return nil
	}
	return fmt.Errorf("the device %[1]s, which has the node's address, does not look up the hardware addresses of others (NOARP): pods reach no other node and nothing outside; have it do so (ip link set %[1]s arp on)", device)
}

// enslaved says that the device with the node's address is a port of another one, which then takes what comes in by it.
func (n *health) enslaved(l link.Link) error {
	master, ok, err := n.links.LinkByIndex(l.Master)
	if err != nil || !ok {
		return err
	}
	const lost = "the device %[1]s, which has the node's address, is a port of %[2]s, which takes what comes in by it: pods reach no other node; "
	switch master.Type {
	case "bridge", "bond", "team":
		return fmt.Errorf(lost+"give the address and its routes to %[2]s, or take %[1]s out (ip link set %[1]s nomaster)", l.Name, master.Name)
	case "openvswitch":
		return fmt.Errorf(lost+"give the address and its routes to that bridge (ovs-vsctl port-to-br %[1]s), or take %[1]s out (ovs-vsctl del-port %[1]s)", l.Name, "a bridge of Open vSwitch")
	}
	return nil // a VRF is a set of routes only
}
