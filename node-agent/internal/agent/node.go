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
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/exits"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/fairness"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/flowtable"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/hostnet"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/identity"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/records"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/services"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/shaping"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/underlay"
	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
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
	// lookEvery is how often at most the MTU of the underlay is looked at because
	// something changed; a pass does so too.
	lookEvery = 50 * time.Millisecond
	// warmEvery is how often peers are looked up anew: well within the 15 minutes
	// after which Open vSwitch forgets one (tnl/neigh/aging, ovs-vswitchd(8)).
	warmEvery = 5 * time.Minute
)

// errStarting is why nothing is served at first.
var errStarting = errors.New("the agent is starting")

// node is the agent of one node. Its fields belong to the loop's goroutine,
// but for those below mu.
type node struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	host    *link.NS
	// api is nil outside of Kubernetes.
	api    apiServer
	conf   *configuration
	bootID string
	store  *store.Store
	// identity is the bundle that the node reaches etcd with; nil where it has none of
	// its own.
	identity        *identity.File
	identityMetrics *identity.Metrics
	// asking is nil in Kubernetes, where records follow the API server.
	asking *asking

	// front answers the CNI, and detaches through ports.
	front    *front
	ports    *latePorts
	ovs      *ovs.Client
	datapath string
	underlay *underlay.Setup
	hostnet  *hostnet.Net
	exits    *exits.Check
	gate     *hostnet.Gate // belongs to allot's goroutine
	sharing  *sharing
	self     netip.Addr
	tenants  *tenants
	limiter  *limiter
	// agreement is there when the loop runs.
	agreement *agreement
	routes    tunnelRoutes
	conn      *connection
	file      records.File
	status    *store.StatusPublisher

	// records are the newest ones held, copied those found on disk; applied is
	// the revision in the flows.
	records  *topology.Snapshot
	copied   *topology.Snapshot
	fromEtcd bool
	applied  int64
	// started is the subnet that the node was set up with.
	started netip.Prefix
	// warmed are the peers whose hardware addresses the datapath has seen since.
	warmed map[netip.Addr]time.Time
	// noRoom is what makeRoom last complained about.
	noRoom   string
	problems []desired.Problem
	// exit is why pods' packets did not get out of the node last; nil where they did, or
	// where that was not tried yet.
	exit  error
	tried bool
	// connected is that the flow table is connected to the switch.
	connected bool
	services  serviceFeed

	mu sync.Mutex
	// table and attacher are set once, before the loop.
	table    *flowtable.Table
	attacher *attach.Attacher
	notReady error
	mtu      int
	// noServices says why pods do not have the services that they should.
	noServices error
}

func newNode(cfg Config, log *slog.Logger, m *metrics, host *link.NS, api apiServer, conf *configuration, bootID string) (*node, error) {
	firewall, err := hostnet.New(host)
	if err != nil {
		return nil, err
	}
	gate, err := hostnet.NewGate(host)
	if err != nil {
		return nil, err
	}
	sharing, err := newSharing(host, cfg.UplinkRate, log)
	if err != nil {
		return nil, err
	}
	exit, err := hostnet.NewExit(host)
	if err != nil {
		return nil, err
	}
	n := &node{
		exits: exits.New(host, exit),
		cfg:   cfg, log: log, metrics: m, host: host, api: api, conf: conf, bootID: bootID, conn: newConnection(log),
		limiter: newLimiter(api, cfg, log), file: records.NewFile(cfg.StateDir), hostnet: firewall, gate: gate, sharing: sharing, notReady: errStarting, ports: &latePorts{},
	}
	n.front = &front{
		bare: attach.NewBare(attach.Netlink{Host: host, Shaper: shaping.New(host, log)}, n.ports, cfg.Bridge, log), why: n.Ready,
	}
	if api != nil {
		n.noServices = errNoServices
	}
	return n, nil
}

// openStore opens the records in etcd, once it is known where that is, and who the node
// is. What is returned ends when it has to be opened anew.
func (n *node) openStore(ctx context.Context) (follow func(context.Context) error, err error) {
	etcd := n.cfg.Etcd
	follow = func(context.Context) error { return nil }
	if n.api == nil {
		if err := n.takeIdentity(&etcd); err != nil {
			return nil, err
		}
	}
	if len(etcd.Endpoints) == 0 {
		a := newAccess(ctx, n.api, n.cfg.Cluster.EtcdSecret, n.cfg.NodeName, n.cfg.StateDir, n.identityMetrics, n.log)
		used, err := a.first(ctx, etcd, n.setReady)
		if err != nil {
			return nil, err
		}
		if etcd = used.etcd; used.bundle != nil {
			n.identity = &a.file
		}
		follow = func(ctx context.Context) error { return a.follow(ctx, used) }
	}
	if n.store, err = store.Open(etcd.Config(n.log)); err != nil {
		return nil, err
	}
	var ask Asker
	if n.api == nil {
		n.asking = newAsking(n.cfg.NodeName, n.store.PutRequest, n.log)
		ask = n.asking
	}
	n.tenants = newTenants(ask, n.log)
	return follow, nil
}

// setSelf fixes the node's tunnel address, and with it all that hangs on it.
func (n *node) setSelf(vtep netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.self = vtep
	if n.asking != nil {
		n.asking.setSelf(vtep)
	}
	start := time.Now()
	n.table = flowtable.New(vtep, n.cfg.VXLANPort, n.metrics, func() float64 { return time.Since(start).Seconds() })
	n.table.SetServiceProxy(n.cfg.Cluster.ServiceProxy)
	if n.cfg.ServiceConnections == fairness.Off {
		n.table.Unlimited()
	}
	if n.api != nil {
		said := leftOutSayer{api: n.api, self: vtep, peers: n.table.Peers, log: n.log}
		n.services.table = services.New(services.Config{
			Base: n.table, Public: n.cfg.Cluster.PublicServices, TunnelPorts: n.cfg.tunnelPorts(), LeftOut: said.say, Repaired: n.metrics.ServicesRepaired, Logger: n.log,
		})
	}
	n.attacher = attach.New(n.front.bare, n.table, n.tenants, n.limiter)
	n.attacher.SetMaxPods(n.cfg.MaxPods)
	n.attacher.SetObserver(n.metrics)
	n.attacher.SetReady(n.notReady)
	n.front.open(n.attacher)
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
		n.tellReady(why)
	}
}

// tellReady tells people about the Node. Its UID in Events is its name, as kubelet has it.
func (n *node) tellReady(why error) {
	if n.api == nil {
		return
	}
	ref := kube.ObjectRef{Kind: "Node", Name: n.cfg.NodeName, UID: n.cfg.NodeName}
	if why != nil {
		n.api.Event(ref, true, "NetworkNotReady", why.Error())
		return
	}
	n.api.Event(ref, false, "NetworkReady", "pods can be attached")
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
	return n.started.IsValid() && n.conn.alive() && !n.newPeers() && n.apply(ctx) == nil && n.Ready() == nil
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
		Subnet: n.started,
	}
	st.Identity, st.Issuer = n.who()
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
