package agent

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/answers"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/asking"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/attach"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/bridge"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/etcdaccess"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/exits"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/fairness"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/flowcache"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/flowstore"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/front"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/hostnet"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/leftout"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/namesakes"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/nodeflows"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/nodemtu"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/packetsock"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pathprobe"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/peers"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/podlimits"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/policies"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/records"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/services"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/shaping"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/sharing"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/switchports"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/tenants"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/tunnelprobe"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/underlay"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/link/tc"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
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
	// with the records on disk, which may name a peer that has left the network. The
	// pods that are attached do not wait: their flows are in the switch.
	etcdPatience = 3 * time.Second
	// staleAtMost is how long the datapath may go on with what it cached, with
	// room: Open vSwitch compares all of it at least every 500 ms (max-revalidator,
	// ovs-vswitchd.conf.db(5)).
	staleAtMost = time.Second
	// ownRound is how long the comparison that a commit brings about by itself may take, before
	// another is brought about. Two begin 5 ms apart at least (ofproto/ofproto-dpif-upcall.c), so
	// less than that is no time lost, and each costs ovs-vswitchd a millisecond or two.
	ownRound = 2 * time.Millisecond
	// calm is how long changes that others make to Open vSwitch or to the node's
	// devices may wait while all is well: most of them are this agent's own.
	calm = time.Second
	// lookEvery is how often at most the MTU of the underlay is looked at because
	// something changed; a pass does so too.
	lookEvery = 50 * time.Millisecond
	// firstPause and lastPause bound the pause after a pass that failed.
	firstPause, lastPause = 20 * time.Millisecond, 2 * time.Second
)

// errStarting is why nothing is served at first.
var errStarting = errors.New("the agent is starting")

// node is the agent of one node: what its parts are made of, in the order in which the
// node comes to know itself. What the parts do is theirs.
type node struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	bootID  string
	host    *link.NS
	// api is nil outside of Kubernetes.
	api      apiServer
	runtime  runtimeSide
	ready    *readiness
	firewall firewall
	sharing  *sharing.Sharing
	limiter  *podlimits.Limiter
	// front answers the CNI.
	front *front.Front
	etcd  etcdSide
	ovs   ovsSide
	// parts are there once the node knows its address; then they do not change.
	parts atomic.Pointer[parts]
}

// firewall is the agent's tables of nftables.
type firewall struct {
	net  *hostnet.Net
	gate *hostnet.Gate // belongs to the allotment's goroutine
	exit *hostnet.Exit
	end  *hostnet.TunnelEnd
	// judge belongs to the table of policies; what it dropped is counted by the loop.
	judge *hostnet.Judge
}

// etcdSide is how the node reaches the records.
type etcdSide struct {
	store *store.Store
	// identity is the one that the node reaches etcd with.
	identity etcdaccess.Own
	// asking is nil in Kubernetes, where records follow the API server.
	asking  *asking.Asking
	tenants *tenants.Tenants
}

// ovsSide is how the node reaches Open vSwitch.
type ovsSide struct {
	client   *ovs.Client
	datapath string
	ports    *switchports.Late
	events   *switchports.Events
	// bare detaches pods through the ports.
	bare attach.Bare
	// lender keeps the node reachable while Open vSwitch is away.
	lender *underlay.Lender
}

// parts are made when the node knows its address.
type parts struct {
	self     netip.Addr
	flows    *flowstore.Store
	table    *nodeflows.Table
	attacher *attach.Attacher
	underlay *underlay.Setup
	services *serviceFeed
	// policies is nil outside of Kubernetes.
	policies *policies.Table
	// drops logs what they deny; nil where that is not wanted.
	drops *policies.DropLog
	// namesakes is nil outside of Kubernetes.
	namesakes *namesakes.Namesakes
	conn      *connection
	picture   *picture
	loop      *loop
	cache     *flowcache.Watch
	// paths and through are nil where nodes do not ask each other.
	paths   *pathprobe.Prober
	through *tunnelprobe.Prober
}

func newNode(cfg Config, log *slog.Logger, m *metrics, host *link.NS, api apiServer, runtime runtimeSide, bootID string) (*node, error) {
	n := &node{
		cfg: cfg, log: log, metrics: m, bootID: bootID, host: host, api: api, runtime: runtime,
		ready:   &readiness{node: cfg.NodeName, gauge: m.ready, log: log, why: errStarting},
		limiter: podlimits.New(api, cfg.NodeName, cfg.BandwidthPolicy, log),
		ovs:     ovsSide{ports: &switchports.Late{}, events: switchports.NewEvents()},
	}
	if api != nil {
		n.ready.events = api
	}
	if err := n.openFirewall(); err != nil {
		return nil, err
	}
	n.ovs.bare = attach.NewBare(attach.Netlink{Host: host, Shaper: shaping.New(host, log)}, n.ovs.ports, cfg.Bridge, cfg.StateDir, log)
	n.ovs.lender = underlay.NewLender(n.underlayConfig(), host)
	n.front = front.New(n.ovs.bare, n.ready.is)
	return n, nil
}

// openFirewall makes what has a table of the node's firewall. Each asks the program nft what that can do, which takes
// as long as two of its starts: none waits for another.
func (n *node) openFirewall() error {
	var tables errgroup.Group
	tables.Go(func() (err error) { n.firewall.net, err = hostnet.New(n.host, hostnet.WithLog(n.log)); return err })
	tables.Go(func() (err error) { n.firewall.gate, err = hostnet.NewGate(n.host); return err })
	tables.Go(func() (err error) { n.firewall.exit, err = hostnet.NewExit(n.host); return err })
	tables.Go(func() (err error) { n.firewall.end, err = hostnet.NewTunnelEnd(n.host); return err })
	tables.Go(func() (err error) { n.firewall.judge, err = hostnet.NewJudge(n.host); return err })
	tables.Go(func() (err error) {
		n.sharing, err = sharing.New(n.host, n.cfg.UplinkRate, n.metrics.sharing, n.log)
		return err
	})
	return tables.Wait()
}

// openStore opens the records in etcd, once it is known where that is, and who the node
// is. What is returned ends when it has to be opened anew.
func (n *node) openStore(ctx context.Context) (follow func(context.Context) error, err error) {
	etcd := n.cfg.Etcd
	follow = func(context.Context) error { return nil }
	if n.api == nil && n.cfg.ownIdentity {
		if n.etcd.identity, err = etcdaccess.Take(&etcd, n.cfg.bundle, n.cfg.NodeName, n.cfg.StateDir, n.log); err != nil {
			return nil, err
		}
	}
	if len(etcd.Endpoints) == 0 {
		a := etcdaccess.New(ctx, n.api, etcdaccess.Config{
			Ref: n.cfg.Cluster.EtcdSecret, Node: n.cfg.NodeName, StateDir: n.cfg.StateDir, Patience: etcdPatience, Metrics: n.metrics.identity, Logger: n.log,
		})
		used, err := a.First(ctx, etcd, n.ready.set)
		if err != nil {
			return nil, err
		}
		if etcd = used.Etcd; used.Own() {
			n.etcd.identity = a.InCluster()
		}
		follow = func(ctx context.Context) error { return a.Follow(ctx, used) }
	}
	if n.etcd.store, err = store.Open(etcd.Config(n.log)); err != nil {
		return nil, err
	}
	var ask tenants.Asker
	if n.api == nil {
		n.etcd.asking = asking.New(n.cfg.NodeName, n.etcd.store.PutRequest, n.log)
		ask = n.etcd.asking
	}
	n.etcd.tenants = tenants.New(ask, n.log)
	return follow, nil
}

// setSelf fixes the node's tunnel address, and makes all that hangs on it.
func (n *node) setSelf(vtep netip.Addr, under *underlay.Setup) {
	if n.etcd.asking != nil {
		n.etcd.asking.SetSelf(vtep)
	}
	p := &parts{
		self: vtep, underlay: under, picture: &picture{name: n.cfg.NodeName, self: vtep},
		flows: flowstore.New(flowstore.Config{Areas: append([]flowstore.Area{nodeflows.Area()}, clusterAreas()...), Observer: n.metrics, Watched: pipeline.Written(), Logger: n.log}),
	}
	p.table = nodeflows.New(vtep, nil, p.flows, n.metrics)
	p.table.SetServiceProxy(n.cfg.Cluster.ServiceProxy)
	if n.cfg.ServiceConnections == fairness.Off {
		p.table.Unlimited()
	}
	answer := answers.TooLarge{Table: p.table, Timeout: stepTimeout, Told: n.metrics.tooLarge, Logger: n.log}
	p.conn = newConnection(n.ovs.events, func() string { return n.ovs.client.MgmtSocket(n.cfg.Bridge) }, func(conn *of.Conn, in of.PacketIn) {
		if d, denied := pipeline.ReadDenied(in); !denied {
			answer.Answer(conn, in)
		} else if p.drops != nil {
			p.drops.Take(d)
		}
	}, n.log)
	p.services = newServiceFeed(n.serviceTable(p), n.ready.is, n.metrics, n.log)
	p.attacher = attach.New(n.ovs.bare, p.table, n.etcd.tenants, n.limiter)
	p.attacher.SetMaxPods(n.cfg.MaxPods)
	p.attacher.SetObserver(n.metrics)
	p.cache = n.flowCache(p)
	p.loop = n.newLoop(p, n.newPolicies(p))
	n.parts.Store(p)
	n.ready.open(p.attacher)
	n.front.Open(p.attacher)
}

// clusterAreas are the flows that a node has in Kubernetes only.
func clusterAreas() []flowstore.Area { return []flowstore.Area{services.Area(), policies.Area()} }

// serviceTable is nil outside of Kubernetes.
func (n *node) serviceTable(p *parts) serviceTable {
	if n.api == nil {
		return nil
	}
	said := leftout.Sayer{Events: n.api, Self: p.self, Peers: p.table.Peers, Logger: n.log}
	return services.New(services.Config{
		Base: p.table, Store: p.flows, Tracker: p.flows,
		Public: n.cfg.Cluster.PublicServices, TunnelPorts: p.picture.takenPorts(n.cfg.MTUProbePort), LeftOut: said.Say, Logger: n.log,
	})
}

// newPolicies makes the table of policies, where there is an API server, and what brings it
// along.
func (n *node) newPolicies(p *parts) *policySide {
	if n.api == nil {
		return &policySide{}
	}
	pods := &podsRecord{}
	p.policies = policies.New(policies.Config{
		Host: n.cfg.NodeName, HostIP: p.self, Store: p.flows, Pods: p.table, Attached: p.attacher, Publish: pods.set,
		Outside: n.firewall.judge, NodeServes: n.cfg.Cluster.ServiceProxy == pipeline.KubeProxy,
		Metrics: n.metrics.policies, Logger: n.log,
	})
	pods.open = func(network string) podsPublisher {
		return n.etcd.store.PodsPublisher(network, 0, p.policies.Published)
	}
	if n.cfg.Cluster.LogPolicyDrops {
		p.table.TellDenied()
		p.drops = policies.NewDropLog(p.policies, n.denied(p.table))
	}
	p.attacher.SetPolicies(p.policies)
	n.limiter.SetHearer(p.policies)
	p.namesakes = namesakes.New(n.api, n.cfg.NodeName, p.attacher, n.log)
	return &policySide{picture: p.picture, table: p.policies, pods: pods, file: n.policyCopy(), loses: n.ovs.datapath == ovs.DatapathNetdev, log: n.log}
}

// newLoop wires the rooms of the loop.
func (n *node) newLoop(p *parts, policy *policySide) *loop {
	m, log := n.metrics, n.log
	others := peers.New(peers.Config{
		Datapath: n.ovs.datapath, Self: p.self, Routes: underlay.NewRoutes(n.ovs.client), Host: n.host, Logger: log,
	})
	nodes := exits.NewNodes(exits.NodeIn(n.host), n.firewall.end, log)
	n.newProbers(p)
	var through throughCheck = nobodyAsked{}
	if p.through != nil {
		through = p.through
	}
	status := &ownStatus{
		picture: p.picture, readiness: n.ready, identity: n.etcd.identity, datapath: n.ovs.datapath, attached: p.attacher,
		open:  func(network string) statusRecord { return n.etcd.store.StatusPublisher(network, 0) },
		warns: func() string { return cmp.Or(p.cache.Why(), nodes.Why(), through.Why()) },
	}
	r := &rooms{
		record: &ownRecord{picture: p.picture, etcd: n.etcd.store, identity: n.etcd.identity, inCluster: n.api != nil, attached: p.attacher},
		host: &hostSide{
			picture: p.picture, settings: n.settings(), attacher: p.attacher, table: p.table, ready: n.ready, metrics: m, log: log,
			hostParts: hostParts{
				database: n.ovs.client, underlay: p.underlay, sharing: n.sharing, mtu: n.newMTU(p), peers: others, bridge: switchBridge{n.ovs.client, n.host}, net: n.firewall.net, judge: n.firewall.judge, links: n.host, queues: tc.In(n.host),
			},
		},
		flows: &flowSide{
			picture: p.picture, publish: status.publish, services: p.services, policies: policy, metrics: m, log: log,
			flowParts: flowParts{table: p.table, store: p.flows, conn: p.conn, datapath: n.ovs.client, restore: n.ovs.client, attacher: p.attacher, peers: others, room: n.room(), tenants: n.etcd.tenants},
		},
		health: &health{
			picture: p.picture, exits: exits.New(exits.NodeIn(n.host), n.firewall.exit, exits.NewFile(n.cfg.StateDir), log), links: n.host, routes: hostRoutes{n.host}, database: n.ovs.client, conn: p.conn,
			way: checked{
				policy: n.cfg.ExitCheck, flag: "exit-check", unless: "pods do get out and the node reaches them", open: "pods reach the outside and their node again", shut: "pods may not reach the outside, or their node may not reach them",
				event: "OutsideClosed", node: n.cfg.NodeName, closed: m.closed, log: log,
			},
			mesh: mesh{nodes: nodes, through: through, kept: m.kept, routes: n.ovs.datapath == ovs.DatapathNetdev, checked: checked{
				policy: n.cfg.TunnelCheck, flag: "tunnel-check", unless: "pods do reach those of other nodes", open: "pods reach those of other nodes again", shut: "pods may not reach those of other nodes",
				event: "TunnelsClosed", node: n.cfg.NodeName, closed: m.alone, log: log,
			}},
		},
		services: p.services,
		policies: policy,
		status:   status,
		runtime:  n.runtime.way(n.cfg.StateDir),
		report: &reporter{
			readiness: n.ready, services: p.services, attached: p.attacher, table: p.table, store: p.flows, conf: n.runtime.conf, metrics: m, shrink: newShrink(), log: log,
		},
	}
	if n.ovs.datapath == ovs.DatapathNetdev {
		r.health.mesh.relearn = func(ctx context.Context) error {
			others.Cool()
			return n.ovs.client.ForgetNeighbours(ctx)
		}
	}
	if n.api == nil {
		r.former = &former{store: p.flows, areas: clusterAreas(), judge: n.firewall.judge, log: log}
	} else {
		r.flows.namesakes = p.namesakes
		r.health.way.events, r.health.mesh.events = n.api, n.api
		status.enforces = []string{topology.EnforcesNetworkPolicy, topology.EnforcesClusterNetworkPolicy}
		status.lacks = func() []string { return policies.Lacks(n.ovs.datapath, p.conn.software) }
		policy.lacks, status.lost = status.lacks, p.policies.Lost
	}
	if n.etcd.asking != nil {
		r.record.asking, r.flows.asking = n.etcd.asking, n.etcd.asking
	}
	l := newLoop(p.picture, r)
	l.file, l.database, l.ready, l.log, l.listen = records.NewFile(n.cfg.StateDir), n.ovs.client, n.ready, log, n.listen
	return l
}

func (n *node) settings() hostSettings {
	return hostSettings{
		endpoint: n.cfg.OVSDB, bridge: n.cfg.Bridge, datapath: n.ovs.datapath, serviceProxy: n.cfg.Cluster.ServiceProxy,
		tunnelPort: n.cfg.VXLANPort, probePort: n.cfg.MTUProbePort, stateDir: n.cfg.StateDir, bootID: n.bootID,
	}
}

func (n *node) newMTU(p *parts) *nodemtu.MTU {
	cfg := nodemtu.Config{
		Name: n.cfg.NodeName, Self: p.self, Configured: n.cfg.MTU, Policy: n.cfg.MTUOnBlackHole, Put: n.etcd.store.PutNodeMTU,
		Host: n.host, Switch: n.ovs.client, Underlay: p.underlay, Metrics: n.metrics.mtu, Logger: n.log,
	}
	if p.paths != nil {
		cfg.Prober = p.paths
	}
	return nodemtu.New(cfg)
}

// judged reports whether other nodes may go by what this one answers through the tunnels: not where it is not well by itself.
func (n *node) judged() bool {
	why := n.ready.is()
	return why == nil || errors.Is(why, tunnelprobe.ErrCut)
}

// newProbers makes what asks other nodes: past the tunnels, and through them. Both need the probes' port.
func (n *node) newProbers(p *parts) {
	if n.cfg.MTUProbePort == 0 {
		return
	}
	p.paths = pathprobe.New(pathprobe.Config{
		NS: n.host, Address: netip.AddrPortFrom(p.self, n.cfg.MTUProbePort), Interval: n.cfg.MTUProbeInterval,
		Listens: func() bool { return p.through.Listens() && n.judged() }, Logger: n.log,
	})
	p.through = tunnelprobe.New(tunnelprobe.Config{
		NS: n.host, Device: bridge.GatewayPort, Port: n.cfg.MTUProbePort, Outside: p.paths,
		Fresh: max(30*time.Second, 3*n.cfg.MTUProbeInterval), Well: n.judged, AnswersOnly: n.cfg.TunnelCheck == exits.Off, Logger: n.log,
	})
}

// room is what packets have while they wait for the userspace datapath; the kernel's has its own.
func (n *node) room() roomMaker {
	if n.ovs.datapath != ovs.DatapathNetdev {
		return noRoom{}
	}
	return &packetsock.Room{Switch: n.ovs.client, Host: n.host, Missed: n.metrics.missed, Logger: n.log}
}

type noRoom struct{}

func (noRoom) Make(context.Context, string) {}

// switchBridge is the bridge in the node's switch.
type switchBridge struct {
	client *ovs.Client
	host   *link.NS
}

// Ensure implements bridgeOwner.
func (s switchBridge) Ensure(ctx context.Context, spec bridge.Spec) (ports desired.Ports, changed bool, refused, err error) {
	return bridge.Ensure(ctx, s.client, spec)
}

// Refill implements bridgeOwner.
func (s switchBridge) Refill(ctx context.Context, spec bridge.Spec) error {
	return bridge.Refill(ctx, s.client, spec)
}

// EnsureBackers implements bridgeOwner.
func (s switchBridge) EnsureBackers(ctx context.Context, spec bridge.Spec) ([]string, error) {
	return bridge.EnsureBackers(ctx, s.client, s.host, spec)
}

// EnsureGateway implements bridgeOwner.
func (s switchBridge) EnsureGateway(ctx context.Context, spec bridge.Spec) (string, error) {
	return bridge.EnsureGateway(ctx, s.client, s.host, spec)
}

// listen subscribes to what wakes the loop.
func (n *node) listen(ctx context.Context) (sources, error) {
	links, err := n.host.Subscribe(ctx)
	if err != nil {
		return sources{}, err
	}
	s := sources{records: n.etcd.store.Watch(ctx), links: links, mtus: n.etcd.store.WatchMTUs(ctx)}
	if n.api != nil {
		s.services = n.api.WatchServices(ctx, n.cfg.NodeName)
	}
	return s, nil
}

// servicesReady is nil when pods have the services that the API server told of.
func (n *node) servicesReady() error {
	if p := n.parts.Load(); p != nil {
		return p.services.ready()
	}
	if n.api != nil {
		return errNoServices
	}
	return nil
}

// policiesReady is nil when policies are enforced as the records say.
func (n *node) policiesReady() error {
	if p := n.parts.Load(); p != nil && p.policies != nil {
		return p.policies.Ready()
	}
	return nil
}

// State is what /debug/state shows.
func (n *node) State() any {
	state := map[string]any{"version": version.String(), "node": n.cfg.NodeName}
	if why := n.ready.is(); why != nil {
		state["notReady"] = why.Error()
	}
	if p := n.parts.Load(); p != nil {
		state["attachments"], state["flows"] = p.attacher.List(), p.flows.Wanted()
	}
	return state
}
