package agent

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/attach"
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
			if n.follow(ctx, s) {
				continue
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
			n.useCopy()
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

// useCopy goes on with the records on disk, where etcd has given none.
func (n *node) useCopy() {
	if n.records == nil && n.copied != nil {
		n.log.Warn("etcd does not answer: going on with the copy of the records on disk", "revision", n.copied.Revision)
		n.records = n.copied
	}
}

// follow takes in new records and brings them into the flows the quick way, also
// while something else is amiss: flows can be changed. It reports whether that was
// all there was to do.
func (n *node) follow(ctx context.Context, s topology.Snapshot) bool {
	n.hold(s)
	return n.started.IsValid() && n.conn.alive() && n.apply(ctx) == nil && n.Ready() == nil
}

// hold makes s the newest records.
func (n *node) hold(s topology.Snapshot) {
	if before := cmp.Or(n.records, n.copied); before != nil {
		s = records.Carry(*before, s)
	}
	n.records, n.fromEtcd = &s, true
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
