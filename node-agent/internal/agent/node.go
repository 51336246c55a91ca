package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/attach"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/bridge"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/flowtable"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/hostnet"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/records"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/underlay"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/pkg/version"
)

const (
	// resyncEvery is how often actual is read back though nothing happened.
	resyncEvery = 5 * time.Second
	// stepTimeout bounds one pass of the loop.
	stepTimeout = 10 * time.Second
	// etcdPatience is how long a starting agent waits for etcd before it goes on
	// with the records on disk, which may know a peer that is none any more. The
	// pods that are attached do not wait: their flows are in the switch.
	etcdPatience = 3 * time.Second
	// staleAtMost is how long the datapath may go on with what it cached, with
	// room: Open vSwitch compares all of it at least every 500 ms (max-revalidator,
	// ovs-vswitchd.conf.db(5)).
	staleAtMost = time.Second
	// nudgeEvery is the pause before asking for another round.
	nudgeEvery = 5 * time.Millisecond
	// calm is how long changes that others make to Open vSwitch or to the node's
	// devices may wait while all is well: most of them are this agent's own.
	calm = time.Second
	// warmEvery is how often peers are looked up anew: well within the 15 minutes
	// after which Open vSwitch forgets one (tnl/neigh/aging, ovs-vswitchd(8)).
	warmEvery = 5 * time.Minute
	// vxlanOverhead is what VXLAN over IPv4 adds to a packet, bytes: outer
	// IPv4 (20), UDP (8) and VXLAN (8) headers and the inner Ethernet one (14); RFC 7348,
	// section 5.
	vxlanOverhead = 50
)

// node is the agent of one node. Its fields belong to the loop's goroutine,
// but for those below mu.
type node struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	host    *link.NS
	store   *store.Store
	bootID  string

	ovs      *ovs.Client
	datapath string
	underlay *underlay.Setup
	hostnet  *hostnet.Net
	self     netip.Addr
	tenants  *tenants
	conn     *connection
	file     records.File
	status   *store.StatusPublisher

	// records are the newest ones held, copied those found on disk; applied is
	// the revision in the flows.
	records  *topology.Snapshot
	copied   *topology.Snapshot
	fromEtcd bool
	applied  int64
	// started is the subnet that the node was set up with.
	started netip.Prefix
	asked   time.Time
	// warmed are the peers whose hardware addresses the datapath has seen since.
	warmed   map[netip.Addr]time.Time
	problems []desired.Problem

	mu sync.Mutex
	// table and attacher are set once, before the loop.
	table    *flowtable.Table
	attacher *attach.Attacher
	notReady error
	mtu      int
}

func newNode(cfg Config, log *slog.Logger, m *metrics, host *link.NS, st *store.Store, bootID string) (*node, error) {
	firewall, err := hostnet.New(host)
	if err != nil {
		return nil, err
	}
	return &node{
		cfg: cfg, log: log, metrics: m, host: host, store: st, bootID: bootID,
		tenants: newTenants(st, log), conn: newConnection(log), file: records.NewFile(cfg.StateDir),
		hostnet: firewall, notReady: errors.New("the agent is starting"),
	}, nil
}

// setSelf fixes the node's tunnel address, and with it all that hangs on it.
func (n *node) setSelf(vtep netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.self = vtep
	start := time.Now()
	n.table = flowtable.New(vtep, n.cfg.VXLANPort, n.metrics, func() float64 { return time.Since(start).Seconds() })
	n.attacher = attach.New(attach.Netlink{Host: n.host}, switchPorts{n.ovs, n.conn.ports}, n.table, n.tenants, n.log)
}

// Ready is nil when pods can be attached, else what is missing.
func (n *node) Ready() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.notReady
}

func (n *node) setReady(why error) {
	n.mu.Lock()
	was := n.notReady
	n.notReady = why
	attacher := n.attacher
	n.mu.Unlock()
	if attacher != nil {
		attacher.SetReady(why)
	}
	if why == nil {
		n.metrics.ready.Set(1)
	} else {
		n.metrics.ready.Set(0)
	}
	if (was == nil) != (why == nil) {
		if why == nil {
			n.log.Info("ready: pods can be attached", "node", n.cfg.NodeName, "subnet", n.started)
		} else {
			n.log.Warn("not ready: pods cannot be attached", "node", n.cfg.NodeName, "error", why)
		}
	}
}

// loop brings the node to what the records say, again and again.
func (n *node) loop(ctx context.Context) error {
	defer n.conn.close()
	defer func() {
		if n.status != nil {
			n.status.Close()
		}
	}()
	n.loadCopy()
	patience := time.NewTimer(etcdPatience)
	defer patience.Stop()
	snapshots := n.store.Watch(ctx)
	links, err := n.host.Subscribe(ctx)
	if err != nil {
		return err
	}
	resync := time.NewTicker(resyncEvery)
	defer resync.Stop()
	pause := newPause()
	// again fires at once at first, then after a pass that failed, and a while
	// after somebody changed something.
	again := time.NewTimer(0)
	defer again.Stop()
	calming := false
	for {
		full, changed := false, false
		select {
		case <-ctx.Done():
			return ctx.Err()
		case s, open := <-snapshots:
			if !open {
				return ctx.Err()
			}
			n.hold(s)
			if n.started.IsValid() && n.conn.alive() {
				// The quick way, also while something else is amiss: flows can be changed.
				if err := n.apply(ctx); err == nil && n.Ready() == nil {
					continue
				}
			}
		case <-n.conn.lost:
			n.table.Disconnect()
			n.setReady(errors.New("ovs-vswitchd is away"))
		case <-n.ovs.Changes():
			changed = true
		case _, open := <-links:
			if !open {
				return errors.New("the kernel's network events cannot be read any more")
			}
			changed = true
		case <-patience.C:
			if n.records == nil && n.copied != nil {
				n.log.Warn("etcd does not answer: going on with the copy of the records on disk", "revision", n.copied.Revision)
				n.records = n.copied
			}
		case <-resync.C:
			full = true
		case <-again.C:
			calming = false
		}
		if changed && n.Ready() == nil {
			if !calming {
				calming = true
				again.Reset(calm)
			}
			continue
		}
		if err := n.pass(ctx, full); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			n.log.Debug("the node is not what it should be yet", "error", err)
			n.setReady(err)
			n.publish()
			calming = false
			again.Reset(pause.take())
			continue
		}
		pause.reset()
	}
}

// loadCopy takes the records from disk, for a start while etcd is away.
func (n *node) loadCopy() {
	s, ok, err := n.file.Load()
	if err != nil {
		n.log.Warn("starting without the copy of the records", "error", err)
		return
	}
	if ok {
		n.copied = &s
	}
}

// hold makes s the newest records.
func (n *node) hold(s topology.Snapshot) {
	if before := cmp.Or(n.records, n.copied); before != nil {
		s = records.Carry(*before, s)
	}
	n.records, n.fromEtcd = &s, true
}

// pass brings everything to what it should be, in the order in which it hangs
// together. Each step reads first and changes only what differs.
func (n *node) pass(ctx context.Context, full bool) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	if !n.ovs.Connected() {
		return fmt.Errorf("the database of Open vSwitch at %s does not answer (is ovsdb-server running?)", n.cfg.OVSDB)
	}
	me, err := n.place(ctx)
	if err != nil {
		return err
	}
	if err := n.setUp(ctx, me); err != nil {
		return err
	}
	if !n.conn.alive() {
		n.table.Disconnect()
		conn, err := n.conn.dial(ctx, n.ovs.MgmtSocket(n.cfg.Bridge))
		if err != nil {
			return err
		}
		n.metrics.reconnects.Inc()
		n.warmed = nil
		if err := n.table.Connect(ctx, conn); err != nil {
			return err
		}
	}
	if err := n.apply(ctx); err != nil {
		return err
	}
	mended, err := n.attacher.Repair(ctx)
	n.metrics.portRepairs.Add(float64(mended))
	if err != nil {
		return err
	}
	if full {
		if err := n.table.Resync(ctx); err != nil {
			return err
		}
	}
	n.warm()
	n.observe()
	n.setReady(nil)
	n.publish()
	return nil
}

// place is this node's record; it asks for one where there is none.
func (n *node) place(ctx context.Context) (topology.Node, error) {
	if n.records == nil {
		return topology.Node{}, fmt.Errorf("no records yet from etcd at %v", n.cfg.Etcd.Endpoints)
	}
	me, ok := n.records.Nodes[n.self]
	if n.fromEtcd && (!ok || me.Host != n.cfg.NodeName) && time.Since(n.asked) > time.Second {
		n.asked = time.Now()
		if err := n.store.EnsureNode(ctx, n.cfg.NodeName, n.self); err != nil {
			return topology.Node{}, err
		}
	}
	// The copy on disk may be from before this node got its address; the
	// subnet of who had it then is not this node's, and its own pods are not gone.
	if ok && me.Host != n.cfg.NodeName {
		return topology.Node{}, fmt.Errorf("node address %s is still %s's in the records, not %s's", n.self, me.Host, n.cfg.NodeName)
	}
	if !ok || !me.Ready() {
		why := "the controller has not given it one"
		if me.Status != nil {
			why = me.Status.Message
		}
		if _, broken := n.records.Invalid["subnets/"+n.self.String()]; broken {
			why = n.records.Invalid["subnets/"+n.self.String()]
		}
		return topology.Node{}, fmt.Errorf("node %s (%s) has no subnet: %s", n.cfg.NodeName, n.self, why)
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

// setUp makes underlay, bridge, host side and attachments what they should be.
func (n *node) setUp(ctx context.Context, me topology.Node) error {
	under, movedUnder, err := n.underlay.Ensure(ctx)
	if err != nil {
		return err
	}
	if under.VTEP != n.self {
		return fmt.Errorf("the node's address changed from %s to %s: restart the agent", n.self, under.VTEP)
	}
	mtu := n.podMTU(under.MTU)
	ports, _, err := bridge.Ensure(ctx, n.ovs, bridge.Spec{
		Name: n.cfg.Bridge, Datapath: n.datapath, VTEP: n.self, Gateway: me.Gateway(), MTU: mtu, VXLANPort: n.cfg.VXLANPort,
	})
	if err != nil {
		return err
	}
	movedHost, err := n.hostnet.Ensure(ctx, hostnet.Spec{
		Device: bridge.GatewayPort, Gateway: me.Gateway(), NodeSubnet: me.Subnet, ClusterNetwork: n.records.Config.Network,
		VXLANPort: n.cfg.VXLANPort, SwitchDevices: n.switchDevices(under),
	})
	if err != nil {
		return err
	}
	if (movedUnder || movedHost) && n.started.IsValid() {
		n.metrics.hostRepairs.Inc()
		n.log.Info("the host's side was put right", "underlay", movedUnder, "host", movedHost)
	}
	if !n.started.IsValid() {
		attached, err := n.attacher.Start(ctx, attach.Node{
			Bridge: n.cfg.Bridge, Subnet: me.Subnet, Gateway: me.Gateway(), MTU: mtu, Datapath: n.datapath,
		}, n.cfg.StateDir, n.bootID)
		if err != nil {
			return err
		}
		n.table.Load(attached)
		n.started = me.Subnet
	}
	n.attacher.SetMTU(mtu)
	return n.table.SetPorts(ctx, ports)
}

// switchDevices are those whose packets only the switch may take. The kernel
// datapath takes them before the node's stack sees them.
func (n *node) switchDevices(u underlay.Underlay) []string {
	if n.datapath != ovs.DatapathNetdev {
		return nil
	}
	devices := []string{attach.HostIfPrefix + "*"}
	if u.Uplink != "" {
		devices = append(devices, u.Uplink)
	}
	return devices
}

// podMTU is what fits through the tunnels, or less where configured.
func (n *node) podMTU(underlay int) int {
	mtu := underlay - vxlanOverhead
	if n.cfg.MTU > 0 && n.cfg.MTU <= mtu {
		mtu = n.cfg.MTU
	}
	n.mu.Lock()
	was := n.mtu
	n.mtu = mtu
	n.mu.Unlock()
	if was != mtu {
		n.metrics.mtu.Set(float64(mtu))
		n.log.Info("MTU of pods", "mtu", mtu, "underlay", underlay)
		if n.cfg.MTU > mtu {
			n.log.Warn("--mtu is more than the underlay carries: clamped", "configured", n.cfg.MTU, "mtu", mtu, "underlay", underlay)
		}
	}
	return mtu
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
	n.tenants.applied(s)
	n.warm()
	n.reportProblems(problems)
	n.metrics.revision.Set(float64(s.Revision))
	n.publish()
	if n.fromEtcd {
		if err := n.file.Save(s); err != nil {
			n.log.Error("the copy of the records is out of date: a start without etcd would use the old one", "error", err)
		}
		n.adopt(ctx, s)
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
// somebody deleted it. Without one their pods are cut off.
func (n *node) adopt(ctx context.Context, s topology.Snapshot) {
	if s.Config.Single() {
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
		if err := n.store.EnsureNamespace(ctx, namespace); err != nil {
			n.log.Error("asking for a namespace's record", "tenant", namespace, "error", err)
		}
	}
}

func (n *node) reportProblems(problems []desired.Problem) {
	for _, p := range problems {
		if !contains(n.problems, p) {
			n.log.Error("a record is left out", "record", p.Record, "error", p.Why)
		}
	}
	n.problems = problems
	n.metrics.problems.Set(float64(len(problems)))
}

func contains(list []desired.Problem, p desired.Problem) bool {
	for _, q := range list {
		if p == q {
			return true
		}
	}
	return false
}

// warm lets the userspace datapath see the hardware address of the way to each
// peer, so that a tunnel's first packet is not lost on looking it up.
func (n *node) warm() {
	if n.datapath != ovs.DatapathNetdev {
		return
	}
	peers := n.table.Peers()
	next := make(map[netip.Addr]time.Time, len(peers))
	for _, p := range peers {
		at, ok := n.warmed[p.VTEP]
		if !ok || time.Since(at) > warmEvery {
			if err := n.host.ProbeNeighbour(p.VTEP); err != nil {
				n.log.Debug("a peer cannot be looked up", "node", p.VTEP, "error", err)
				continue
			}
			at = time.Now()
		}
		next[p.VTEP] = at
	}
	n.warmed = next
}

func (n *node) observe() {
	n.metrics.pods.Set(float64(len(n.attacher.List())))
	n.metrics.flows.Set(float64(n.table.Size()))
	n.metrics.peers.Set(float64(len(n.table.Peers())))
}

// publish writes what this node has applied where operators see it.
func (n *node) publish() {
	if !n.fromEtcd || n.records == nil {
		return
	}
	if n.status == nil {
		n.status = n.store.StatusPublisher(n.records.Config.Name, 0)
	}
	st := topology.NodeStatus{
		Host: n.cfg.NodeName, HostIP: n.self, Revision: n.applied, Version: version.String(), Datapath: n.datapath,
	}
	st.Pods = len(n.attacher.List())
	n.mu.Lock()
	st.MTU = n.mtu
	if n.notReady != nil {
		st.Message = n.notReady.Error()
	}
	n.mu.Unlock()
	n.status.Set(st)
}

// State is what /debug/state shows.
func (n *node) State() any {
	n.mu.Lock()
	table, attacher, why := n.table, n.attacher, n.notReady
	n.mu.Unlock()
	state := map[string]any{"version": version.String(), "node": n.cfg.NodeName}
	if why != nil {
		state["notReady"] = why.Error()
	}
	if attacher != nil {
		state["attachments"], state["flows"] = attacher.List(), table.Dump()
	}
	return state
}
