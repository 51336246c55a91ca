package agent

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/answers"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/attach"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/bridge"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/hostnet"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/underlay"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// pass brings everything to what it should be, in the order in which it hangs
// together. Each step reads first and changes only what differs.
func (n *node) pass(ctx context.Context, full bool) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	if full {
		n.peers.Forget()
	}
	if !n.ovs.Connected() {
		return fmt.Errorf("the database of Open vSwitch at %s does not answer (is ovsdb-server running?)", n.cfg.OVSDB)
	}
	me, err := n.place()
	if err != nil {
		return err
	}
	if err := n.setUp(ctx, me); err != nil {
		return err
	}
	if err := n.connect(ctx); err != nil {
		return err
	}
	n.makeRoom(ctx)
	if err := n.apply(ctx); err != nil {
		return err
	}
	mended, err := n.attacher.Repair(ctx, full)
	n.metrics.portRepairs.Add(float64(mended))
	if err != nil {
		return err
	}
	if full {
		if err := n.table.Resync(ctx); err != nil {
			return err
		}
		dropped, err := n.hostnet.Dropped(ctx)
		if err != nil {
			return err
		}
		n.metrics.firewallDropped(dropped)
		if err := n.unblock(ctx); err != nil {
			return err
		}
	}
	n.warm()
	n.observe()
	why := n.unwell(ctx, me, full)
	n.setReady(why)
	n.publish()
	n.resyncServices(ctx, full)
	if why == nil && n.servicesReady() == nil {
		n.conf.Ensure()
	}
	return nil
}

// makeRoom gives packets room while they wait for ovs-vswitchd.
func (n *node) makeRoom(ctx context.Context) {
	if n.datapath == ovs.DatapathNetdev {
		n.room.Make(ctx, n.under.Uplink)
	}
}

// unblock lets ports have all packets that somebody kept from them past the flows.
func (n *node) unblock(ctx context.Context) error {
	ports, err := bridge.Unblock(ctx, n.conn.conn, attach.HostIfPrefix)
	if len(ports) > 0 {
		n.metrics.portRepairs.Add(float64(len(ports)))
		n.log.Warn("somebody had kept ports of the bridge from their packets (ovs-ofctl mod-port): put right", "ports", ports)
	}
	return err
}

// connect connects the flow table to the switch, where it is not. That of the
// services follows when the node is as it should be.
func (n *node) connect(ctx context.Context) error {
	if !n.conn.alive() {
		n.disconnect()
		if err := n.conn.dial(ctx, n.ovs.MgmtSocket(n.cfg.Bridge), n.answerTooLarge); err != nil {
			return err
		}
		n.metrics.reconnects.Inc()
		n.peers.Cool()
	}
	if n.connected {
		return nil
	}
	err := n.table.Connect(ctx, n.conn.conn)
	n.connected = err == nil
	return err
}

func (n *node) answerTooLarge(conn *of.Conn, in of.PacketIn) {
	answers.TooLarge{Table: n.table, Timeout: stepTimeout, Told: n.metrics.tooLarge, Logger: n.log}.Answer(conn, in)
}

// disconnect says that the switch is gone.
func (n *node) disconnect() {
	n.peers.Forget()
	n.table.Disconnect()
	n.connected = false
	n.disconnectServices()
}

// place is this node's record; outside of Kubernetes, where the controller makes
// one for every Node, it asks for one where there is none.
func (n *node) place() (topology.Node, error) {
	if n.records == nil {
		return topology.Node{}, fmt.Errorf("no records yet from etcd at %v", n.store.Endpoints())
	}
	if err := n.identity.LockedOut(n.store.Healthy(), n.self); err != nil {
		return topology.Node{}, err
	}
	me, ok := n.records.Nodes[n.self]
	if n.asking != nil && n.fromEtcd {
		// One that has an identity got it together with its record: it was removed.
		n.asking.Subnet(!n.identity.Exists() && (!ok || me.Host != n.cfg.NodeName) || ok && me.Host == n.cfg.NodeName && !me.Ready() && !me.Assign && me.Status == nil)
	}
	// The copy on disk may be from before this node got its address; the
	// subnet of who had it then is not this node's, and its own pods are not gone.
	if ok && me.Host != n.cfg.NodeName {
		return topology.Node{}, fmt.Errorf("node address %s is still %s's in the records, not %s's", n.self, me.Host, n.cfg.NodeName)
	}
	if !ok || !me.Ready() {
		return topology.Node{}, fmt.Errorf("node %s (%s) has no subnet: %s", n.cfg.NodeName, n.self, n.noSubnet(me))
	}
	if err := me.Validate(n.records.Config); err != nil {
		return topology.Node{}, err
	}
	if n.started.IsValid() && n.started != me.Subnet {
		if pods := len(n.attacher.List()); pods > 0 {
			return topology.Node{}, fmt.Errorf("the record gives node %s subnet %s, but %d pods have addresses of %s: drain the node, or put the record back", n.cfg.NodeName, me.Subnet, pods, n.started)
		}
		n.started = netip.Prefix{}
	}
	return me, nil
}

// noSubnet says why the node has no subnet; me is its record, if there is one.
func (n *node) noSubnet(me topology.Node) string {
	if why, broken := n.records.Invalid["subnets/"+n.self.String()]; broken {
		return why
	}
	if me.Status != nil {
		return me.Status.Message
	}
	for ip, other := range n.records.Nodes {
		if n.api != nil && other.Host == n.cfg.NodeName && ip != n.self {
			return fmt.Sprintf("its record is for %s, the Node's InternalIP: give the agent that address with --node-ip", ip)
		}
	}
	if n.identity.Exists() && n.api == nil && !me.HostIP.IsValid() {
		return fmt.Sprintf("it has no record: it was removed. Make a new bundle with `k8s-ovs-controller bundle node %s --node-ip %s`", n.cfg.NodeName, n.self)
	}
	return "the controller has not given it one"
}

// setUp makes underlay, bridge, host side and attachments what they should be.
func (n *node) setUp(ctx context.Context, me topology.Node) error {
	under, movedUnder, err := n.underlay.Ensure(ctx)
	if err != nil {
		return err
	}
	if under.VTEP != n.self {
		return fmt.Errorf("the node's address changed from %s to %s: restart the agent", n.self, under.VTEP)
	}
	n.sharing.Ensure(ctx, n.datapath, under.Link, n.attacher, n.started.IsValid(), n.records.NetID)
	n.under = under
	set, err := n.mtu.Want(under, n.records, n.fromEtcd)
	if err != nil {
		return err
	}
	routeMTU := 0
	if set.Sends < set.Receives {
		routeMTU = set.Sends
	}
	ports, _, err := bridge.Ensure(ctx, n.ovs, bridge.Spec{
		Name: n.cfg.Bridge, Datapath: n.datapath, VTEP: n.self, Gateway: me.Gateway(), MTU: set.Receives, VXLANPort: n.cfg.VXLANPort,
		TunnelSource: n.peers.Route(ctx, under.Link, n.mtu.Ways()),
	})
	if err != nil {
		return err
	}
	mended, err := n.peers.Listen(ctx, under.Link)
	if err != nil {
		return err
	}
	if mended {
		n.metrics.hostRepairs.Inc()
	}
	devices, bridges, err := n.switchDevices(under)
	if err != nil {
		return err
	}
	movedHost, err := n.hostnet.Ensure(ctx, hostnet.Spec{
		Device: bridge.GatewayPort, Gateway: me.Gateway(), NodeSubnet: me.Subnet, ClusterNetwork: n.records.Config.Network, RouteMTU: routeMTU,
		ServiceProxy: n.cfg.Cluster.ServiceProxy, ServiceNetwork: n.records.Config.ServiceNetwork,
		Outside:   n.outside(under),
		VXLANPort: n.cfg.VXLANPort, ProbePort: n.cfg.MTUProbePort, SwitchDevices: devices, SwitchBridges: bridges,
	})
	if err != nil {
		return err
	}
	if (movedUnder || movedHost) && n.started.IsValid() && set == n.mtu.Has() {
		n.metrics.hostRepairs.Inc()
		n.log.Info("the host's side was put right", "underlay", movedUnder, "host", movedHost)
	}
	if !n.started.IsValid() {
		attached, err := n.attacher.Start(ctx, attach.Node{
			Bridge: n.cfg.Bridge, Subnet: me.Subnet, Gateway: me.Gateway(), MTU: attach.MTU{Device: set.Receives, Route: set.Sends}, Datapath: n.datapath,
		}, n.cfg.StateDir, n.bootID)
		if err != nil {
			return err
		}
		n.table.Load(attached)
		n.started = me.Subnet
	}
	n.mtu.TellFailed(set, n.attacher.SetMTU(ctx, attach.MTU{Device: set.Receives, Route: set.Sends}))
	narrow := n.mtu.Done(set)
	n.mu.Lock()
	n.podMTU = set.Sends
	n.mu.Unlock()
	if err := n.table.SetPathMTUs(ctx, narrow); err != nil {
		return err
	}
	return n.table.SetPorts(ctx, ports)
}

// switchDevices are those whose packets only the switch may take. The kernel
// datapath takes them before the node's stack sees them.
func (n *node) switchDevices(u underlay.Underlay) (devices, bridges []string, err error) {
	if n.datapath != ovs.DatapathNetdev {
		return nil, nil, nil
	}
	devices = []string{attach.HostIfPrefix + "*"}
	if u.Uplink == "" {
		return devices, nil, nil
	}
	uplink, _, err := n.host.Link(u.Uplink)
	if uplink.Type == "bridge" {
		return devices, []string{u.Uplink}, err
	}
	return append(devices, u.Uplink), nil, err
}

// apply brings the newest records into the flows, and tells who waits for them.
func (n *node) apply(ctx context.Context) error {
	s := *n.records
	if n.applied == s.Revision && n.applied != 0 {
		return nil
	}
	if me, ok := s.Nodes[n.self]; ok && me.Ready() && me.Subnet != n.started {
		return fmt.Errorf("node %s moves from subnet %s to %s", n.cfg.NodeName, n.started, me.Subnet)
	}
	problems, changed, err := n.table.SetRecords(ctx, s)
	if err != nil {
		return err
	}
	if changed {
		n.settle(ctx)
	}
	n.applied = s.Revision
	n.tenants.Applied(s)
	if n.asking != nil {
		n.asking.Applied(s)
	}
	n.warm()
	n.reportProblems(problems)
	n.metrics.revision.Set(float64(s.Revision))
	n.publish()
	if n.fromEtcd {
		n.copies.Keep(s)
		n.adopt(s)
	}
	return nil
}

// settle returns when no packet is forwarded any more by what the datapath
// cached before the last commit. Each round of Open vSwitch's comparison may have
// begun before it, so it takes two. Only then the change is published as applied.
func (n *node) settle(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, staleAtMost)
	defer cancel()
	for range 2 {
		compared := make(chan error, 1)
		go func() { compared <- n.ovs.WaitRevalidated(ctx) }()
		for waiting := true; waiting; {
			err := n.table.Nudge(ctx)
			if err == nil {
				select {
				case err = <-compared:
					waiting = false
				case <-time.After(nudgeEvery):
				}
			}
			if err != nil {
				n.log.Warn("cannot see when the datapath follows the flows: giving it the time it may take", "error", err, "wait", staleAtMost)
				<-ctx.Done()
				return
			}
		}
	}
}

// adopt asks for records of namespaces that have pods here and no record:
// somebody deleted it. Without one their pods are cut off. In Kubernetes that is
// the controller's to mend.
func (n *node) adopt(s topology.Snapshot) {
	if s.Config.Single() || n.asking == nil {
		return
	}
	missing := map[string]bool{}
	for _, at := range n.attacher.List() {
		if _, ok := s.Namespaces[at.Namespace]; !ok {
			missing[at.Namespace] = true
		}
	}
	for namespace := range missing {
		n.log.Warn("a namespace with pods on this node has no record: asking for a new one", "tenant", namespace)
		n.asking.Namespace(namespace)
	}
}

func (n *node) reportProblems(problems []desired.Problem) {
	for _, p := range problems {
		if !slices.Contains(n.problems, p) {
			n.log.Error("a record is left out", "record", p.Record, "error", p.Why)
		}
	}
	n.problems = problems
	n.metrics.problems.Set(float64(len(problems)))
}

func (n *node) warm() { n.peers.Warm(n.table.Peers()) }

func (n *node) observe() {
	n.metrics.pods.Set(float64(len(n.attacher.List())))
	n.metrics.flows.Set(float64(n.table.Size()))
	n.metrics.peers.Set(float64(len(n.table.Peers())))
}
