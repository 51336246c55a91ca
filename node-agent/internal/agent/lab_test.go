package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/attach"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/bridge"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/exits"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/flowstore"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/hostnet"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/mtu"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/nodemtu"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/peers"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/podroutes"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/records"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/sharing"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/tenants"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/underlay"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
)

var (
	labSelf = topology.Node{Host: "n1", HostIP: netip.MustParseAddr("198.18.0.1"), Subnet: netip.MustParsePrefix("172.11.0.0/22")}
	labPeer = topology.Node{Host: "n2", HostIP: netip.MustParseAddr("198.18.0.2"), Subnet: netip.MustParsePrefix("172.11.4.0/22")}
)

// snapshot are records with the nodes and so many namespaces.
func snapshot(revision int64, namespaces int, nodes ...topology.Node) topology.Snapshot {
	s := topology.Snapshot{Revision: revision, Config: topology.DefaultConfig(), Nodes: map[netip.Addr]topology.Node{}, Namespaces: map[string]topology.Namespace{}}
	for _, n := range nodes {
		s.Nodes[n.HostIP] = n
	}
	for i := range namespaces {
		name, number := fmt.Sprintf("tenant-%05d", i), netid.ID(10+i)
		s.Namespaces[name] = topology.Namespace{NetName: name, Effective: &number}
	}
	return s
}

// etcd holds records. While it is away nothing comes, and nothing can be written. What watches
// see is the newest only, as with store.Store.
type etcd struct {
	mu       sync.Mutex
	away     bool
	revision int64
	records  chan topology.Snapshot
	mtus     chan topology.MTUs
	held     *topology.Snapshot
	written  map[netip.Addr]topology.NodeMTU
	status   topology.NodeStatus
	open     bool
	// unhealthy is why there is no connection.
	unhealthy error
}

// watch is what a new agent sees: all there is, and then what changes.
func (e *etcd) watch() (<-chan topology.Snapshot, <-chan topology.MTUs) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.records, e.mtus = make(chan topology.Snapshot, 1), make(chan topology.MTUs, 1)
	e.tell()
	return e.records, e.mtus
}

func newest[T any](c chan T, v T) {
	select {
	case <-c:
	default:
	}
	c <- v
}

// set makes records the newest ones, and returns their revision.
func (e *etcd) set(s topology.Snapshot) int64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.revision++
	s.Revision = e.revision
	e.held = &s
	e.tell()
	return s.Revision
}

// tell shows watches what there is.
func (e *etcd) tell() {
	if e.away || e.records == nil {
		return
	}
	if e.held != nil {
		newest(e.records, *e.held)
	}
	mtus := topology.MTUs{Revision: e.revision, Nodes: map[netip.Addr]topology.NodeMTU{}}
	if e.held != nil {
		for ip, m := range e.written {
			if _, there := e.held.Nodes[ip]; there {
				mtus.Nodes[ip] = m
			}
		}
	}
	newest(e.mtus, mtus)
}

func (e *etcd) setAway(away bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.away = away
	e.tell()
}

func (e *etcd) putMTU(_ context.Context, m topology.NodeMTU) (int64, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.away {
		return 0, errors.New("etcd is away")
	}
	e.revision++
	e.written[m.HostIP] = m
	e.tell()
	return e.revision, nil
}

func (e *etcd) Endpoints() []string { return []string{"https://192.0.2.1:2379"} }

// Healthy implements etcdState.
func (e *etcd) Healthy() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.unhealthy
}

// Set implements statusRecord.
func (e *etcd) Set(s topology.NodeStatus) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.status = s
}

// Close implements statusRecord.
func (e *etcd) Close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.open, e.status = false, topology.NodeStatus{}
}

func (e *etcd) openStatus(string) statusRecord { e.open = true; return e }

func (e *etcd) shown() topology.NodeStatus {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.status
}

// machine is a node's stack and its Open vSwitch, with one uplink. It outlives agents.
type machine struct {
	mu sync.Mutex
	// databaseAway and switchAway are that ovsdb-server and ovs-vswitchd do not run.
	databaseAway, switchAway bool
	closed                   error // why packets do not get out
	alone                    error // why tunnels' packets do not
	astray                   error // what leads packets for pods elsewhere
	full                     error // why the database cannot be written
	noRoom                   error // why leases cannot be written down
	tunnelDown               error // why the kernel has no device for the tunnels
	mtu                      int   // of the uplink
	// tunnelRefused is that ovs-vswitchd has the tunnel's port in its database only, since it was made anew so many
	// times.
	tunnelRefused bool
	remakes       int
	gateway       ovs.Port
	// refills counts how often what the database had lost was put back.
	refills int
	// tunnelPort is the bridge's, guarded are those that the firewall keeps pods from.
	tunnelPort tunnel.Port
	guarded    []tunnel.Port
	// unguarded is that the bridge got a port that pods could send to.
	unguarded bool
	// address is what the node has in place of its own; not valid where it has its own.
	address netip.Addr
	changes chan struct{}
	links   chan struct{}
	// databases counts connections to ovsdb-server.
	databases int
	// sessions counts connections to ovs-vswitchd; live is that the last one stands.
	sessions int
	live     bool
	lost     chan struct{}
	// restoring is that ovs-vswitchd waits for flows, ours that the agent is to end that.
	restoring, ours bool
	// compares is how long ovs-vswitchd takes to compare what its datapath cached with the flows.
	compares time.Duration
	// refuses is why ovs-vswitchd takes no flows though it is there.
	refuses error
	// takes is how long everything takes that a pass waits for.
	takes time.Duration
}

// work is what takes its time.
func (m *machine) work() {
	m.mu.Lock()
	takes := m.takes
	m.mu.Unlock()
	time.Sleep(takes)
}

func newMachine() *machine {
	return &machine{mtu: 1500, changes: make(chan struct{}, 1), links: make(chan struct{}, 1), lost: make(chan struct{}, 1)}
}

func (m *machine) set(change func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change()
}

// lose ends ovs-vswitchd.
func (m *machine) lose() {
	m.set(func() {
		m.switchAway = true
		m.end()
	})
}

// end ends the connection to ovs-vswitchd.
func (m *machine) end() {
	if m.live {
		m.live = false
		newest(m.lost, struct{}{})
	}
}

func (m *machine) Connected() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return !m.databaseAway
}

// Ports implements database.
func (m *machine) Ports(string) ([]ovs.Port, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.databaseAway:
		return nil, ovs.ErrDisconnected
	case m.gateway.Name == "":
		return nil, ovs.ErrNoBridge
	}
	return []ovs.Port{m.gateway, {Name: desired.NodeTunnel, Type: string(tunnel.VXLAN), Options: map[string]string{"dst_port": m.tunnelPort.String()}}}, nil
}

func (m *machine) Changes() <-chan struct{} { return m.changes }

func (m *machine) Sessions() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.databases
}

// Writable implements the database of [health].
func (m *machine) Writable(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.full
}

// Init implements database.
func (m *machine) Init(context.Context) error {
	if !m.Connected() {
		return ovs.ErrDisconnected
	}
	return nil
}

func (m *machine) Port(name string) (ovs.Port, bool) {
	return m.gateway, name == bridge.GatewayPort && m.gateway.Name != ""
}

// RestoreWait implements restorer.
func (m *machine) RestoreWait() (waits, ours bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.restoring, m.ours
}

// EndRestoreWait implements restorer.
func (m *machine) EndRestoreWait(context.Context) error {
	m.set(func() { m.restoring, m.ours = false, false })
	return nil
}

// AskRevalidated implements revalidator; a round takes some time.
func (m *machine) AskRevalidated(ctx context.Context) (wait func() error, err error) {
	m.mu.Lock()
	away := m.switchAway
	m.mu.Unlock()
	if away {
		return nil, errors.New("ovs-vswitchd does not answer")
	}
	return func() error {
		select {
		case <-ctx.Done():
		case <-time.After(m.compares):
		}
		return ctx.Err()
	}, nil
}

func (m *machine) PathsTo(_ netip.Addr, ips []netip.Addr) map[netip.Addr]link.Path {
	m.mu.Lock()
	defer m.mu.Unlock()
	found := map[netip.Addr]link.Path{}
	for _, ip := range ips {
		found[ip] = link.Path{Link: link.Link{Name: "eth0"}, MTU: m.mtu}
	}
	return found
}
func (m *machine) LinkExists(string) (bool, error)        { return true, nil }
func (m *machine) ReadConfig(string) (link.Config, error) { return link.Config{}, nil }
func (m *machine) ProbeNeighbour(netip.Addr) error        { return nil }
func (m *machine) Link(n string) (link.Link, bool, error) {
	return link.Link{Name: n, Up: true, Carrier: true}, true, nil
}
func (m *machine) LinkByIndex(int) (link.Link, bool, error) { return link.Link{}, false, nil }
func (m *machine) Make(context.Context, string)             {}
func (m *machine) Narrowest(underlay.Underlay) (string, int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return "eth0", m.mtu, nil
}

// fakeUnderlay, fakeBridge and fakeHost are owners on the machine: they refuse what cannot be done
// without what they stand on.
type (
	fakeUnderlay struct{ *machine }
	fakeBridge   struct{ *machine }
	fakeHost     struct{ *machine }
	fakeExits    struct{ *machine }
	fakeSharing  struct{}
	fakeConf     struct {
		there bool
		// mu guards why, which another goroutine sets: it is why the runtime does not come to the agent.
		mu    sync.Mutex
		why   error
		looks int // at the socket
		place error
		gone  error // of the state directory
	}
	noRoutes struct{ peers.Routes }
)

func (u fakeUnderlay) Ensure(ctx context.Context) (underlay.Underlay, bool, error) {
	u.work()
	device, mtu, err := u.Narrowest(underlay.Underlay{})
	if err != nil {
		return underlay.Underlay{}, false, err
	}
	if now, moved := u.Moved(labSelf.HostIP); moved {
		return underlay.Underlay{VTEP: now, Link: device, Narrowest: device, MTU: mtu}, false, ctx.Err()
	}
	return underlay.Underlay{VTEP: labSelf.HostIP, Link: device, Narrowest: device, MTU: mtu}, false, ctx.Err()
}

func (fakeUnderlay) EnsureForwarding(context.Context, underlay.Underlay, netip.AddrPort) (mended bool, closed, err error) {
	return false, nil, nil
}

func (u fakeUnderlay) Moved(netip.Addr) (now netip.Addr, moved bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.address, u.address.IsValid()
}

func (b fakeBridge) Ensure(ctx context.Context, spec bridge.Spec) (ports desired.Ports, changed bool, refused, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.databaseAway:
		return desired.Ports{}, false, nil, ovs.ErrDisconnected
	case b.switchAway:
		return desired.Ports{}, false, nil, errors.New("ovs-vswitchd does not take the bridge in")
	case spec.MTU < topology.MinMTU || !spec.Gateway.IsValid() || len(spec.Tunnels) == 0:
		return desired.Ports{}, false, nil, fmt.Errorf("no bridge is made as %+v", spec)
	}
	at := spec.Tunnels.Named(desired.NodeTunnel).Port
	if b.tunnelPort != 0 && b.tunnelPort != at && !slices.Contains(b.guarded, at) {
		b.unguarded = true
	}
	b.tunnelPort = at
	b.gateway = ovs.Port{Name: bridge.GatewayPort, MTURequest: spec.MTU}
	if b.tunnelRefused {
		refused = fmt.Errorf("no tunnel: %w", &ovs.PortError{Port: desired.NodeTunnel})
	}
	return desired.Ports{Tunnels: map[string]uint32{desired.NodeTunnel: desired.NodeOfport}, Gateway: 2}, false, refused, ctx.Err()
}

func (b fakeBridge) Refill(ctx context.Context, spec bridge.Spec) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.databaseAway {
		return ovs.ErrDisconnected
	}
	b.refills++
	b.gateway = ovs.Port{Name: bridge.GatewayPort, MTURequest: spec.MTU}
	return ctx.Err()
}

func (b fakeBridge) EnsureBackers(ctx context.Context, spec bridge.Spec) ([]string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.tunnelDown != nil: // the port was made anew, and has no device
		b.tunnelRefused = true
		b.remakes++
		return nil, b.tunnelDown
	case b.tunnelRefused:
		b.tunnelRefused = false
		return []string{"the device was gone"}, ctx.Err()
	}
	return nil, ctx.Err()
}

func (b fakeBridge) EnsureGateway(ctx context.Context, _ bridge.Spec) (string, error) {
	return "", ctx.Err()
}

func (h fakeHost) Ensure(ctx context.Context, spec hostnet.Spec) (bool, error) {
	h.work()
	if h.gateway.Name == "" || !spec.NodeSubnet.IsValid() {
		return false, errors.New("the gateway port is not there")
	}
	h.set(func() { h.guarded = slices.Concat(spec.TunnelPorts, spec.OtherTunnelPorts) })
	return false, ctx.Err()
}

func (h fakeHost) Dropped(ctx context.Context) (map[hostnet.Reason]uint64, error) {
	h.work()
	return nil, ctx.Err()
}

func (e fakeExits) Outside(context.Context, exits.Switch, exits.Gateway) error {
	e.work()
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.closed
}

func (e fakeExits) Reach(_ context.Context, self netip.Addr, peers exits.Peers, _ bool) error {
	e.work()
	if peers[self] != 0 {
		return fmt.Errorf("the node is no peer of its own: %v", peers)
	}
	for peer, port := range peers {
		if port == 0 {
			return fmt.Errorf("no UDP port of peer %s is known", peer)
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.alone
}

func (e fakeExits) Kept() int { return 0 }

func (e fakeExits) Check(pods podroutes.Pods) error {
	if pods.Device == "" || !pods.Own.IsValid() || !pods.Network.IsValid() {
		return fmt.Errorf("no routes are looked at for %+v", pods)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.astray
}

func (fakeSharing) Ensure(context.Context, string, string, sharing.Attached, bool, func(string) (netid.ID, bool)) {
}

func (f *fakeConf) Ensure() { f.there = true }

func (f *fakeConf) First() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.why
}

func (f *fakeConf) Keep() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.looks++
	return nil
}

// Look is that at the state directory.
func (f *fakeConf) Look() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.gone
}

func (f *fakeConf) setGone(why error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gone = why
}

func (f *fakeConf) kept() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.looks
}

func (f *fakeConf) InPlace() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.place
}

func (f *fakeConf) setPlace(why error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.place = why
}

func (f *fakeConf) set(why error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.why = why
}

func (noRoutes) Forget() {}

// fakeConn is the connection to the machine's ovs-vswitchd.
type fakeConn struct {
	*machine
	dialled bool
}

// fakeSwitch is what a table is connected to: one session with ovs-vswitchd.
type fakeSwitch struct {
	flowstore.Switch
	machine *machine
	session int
}

func (s fakeSwitch) err() error {
	s.machine.mu.Lock()
	defer s.machine.mu.Unlock()
	if !s.machine.live || s.session != s.machine.sessions {
		return errors.New("the connection to ovs-vswitchd ended")
	}
	return s.machine.refuses
}

func (c *fakeConn) alive() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dialled && c.live
}

func (c *fakeConn) dial(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.switchAway {
		return errors.New("connect to ovs-vswitchd: connection refused")
	}
	select {
	case <-c.lost: // it was the one before that ended
	default:
	}
	c.sessions++
	c.live, c.dialled = true, true
	return ctx.Err()
}

func (c *fakeConn) flows() flowstore.Switch {
	return fakeSwitch{machine: c.machine, session: c.sessions}
}
func (c *fakeConn) ended() <-chan struct{}                { return c.lost }
func (c *fakeConn) Send(context.Context, ...[]byte) error { return nil }
func (c *fakeConn) close()                                { c.set(c.end) }

func (c *fakeConn) unblock(context.Context, []string) ([]string, error) {
	c.work()
	return nil, nil
}

// fakePods are no pods; they refuse what an attacher refuses before it was started.
type fakePods struct {
	machine *machine
	mu      sync.Mutex
	started bool
	why     error
}

func (f *fakePods) Start(ctx context.Context, node attach.Node, _, _ string) ([]desired.Attached, error) {
	if len(node.Subnets) == 0 || !node.Subnets[0].IsValid() || node.MTU.Device < topology.MinMTU {
		return nil, fmt.Errorf("pods cannot be attached to %+v", node)
	}
	f.started = true
	return nil, ctx.Err()
}

func (f *fakePods) Repair(ctx context.Context, _ bool) (int, error) {
	f.machine.work()
	if !f.started {
		return 0, errors.New("not started")
	}
	return 0, ctx.Err()
}

func (f *fakePods) Refill(ctx context.Context) error {
	if !f.started {
		return errors.New("not started")
	}
	return ctx.Err()
}

func (f *fakePods) Writable() error {
	f.machine.mu.Lock()
	defer f.machine.mu.Unlock()
	return f.machine.noRoom
}

func (f *fakePods) List() []attach.Attachment                                       { return nil }
func (f *fakePods) SetMTU(context.Context, attach.MTU) error                        { return nil }
func (f *fakePods) SetQueues(context.Context, func(attach.Attachment) uint32) error { return nil }

func (f *fakePods) SetReady(why error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.why = why
}

// lab is a loop on a machine of fakes, with an etcd.
type lab struct {
	t       *testing.T
	etcd    *etcd
	machine *machine
	dir     string
	table   *fakeTable
	conf    *fakeConf
	loop    *loop
	// hooks run before the step of that name; what they return it fails with.
	mu     sync.Mutex
	hooks  map[string]func() error
	passes int
	cancel context.CancelFunc
	ended  chan error
}

// FreeRoots implements queues.
func (m *machine) FreeRoots(...link.Link) ([]string, error) { return nil, nil }

// fakeJudge has dropped nothing.
type fakeJudge struct{}

func (fakeJudge) Dropped(context.Context) (uint64, error) { return 0, nil }

// newLab makes one; dir is the agent's state directory.
func newLab(t *testing.T, dir string) *lab {
	l := &lab{t: t, etcd: &etcd{written: map[netip.Addr]topology.NodeMTU{}}, machine: newMachine(), dir: dir, hooks: map[string]func() error{}}
	l.machine.compares = 100 * time.Millisecond
	l.etcd.set(snapshot(0, 3, labSelf, labPeer))
	return l
}

// build wires the loop of an agent that starts.
func (l *lab) build() {
	log := slog.New(slog.DiscardHandler)
	m := newMetrics(prometheus.NewRegistry())
	ready := &readiness{node: labSelf.Host, gauge: m.ready, log: log, why: errStarting}
	l.table, l.conf = &fakeTable{self: labSelf.HostIP, machine: l.machine}, &fakeConf{}
	pic, conn, pods := &picture{name: labSelf.Host, self: labSelf.HostIP}, &fakeConn{machine: l.machine}, &fakePods{machine: l.machine}
	others := peers.New(peers.Config{Datapath: ovs.DatapathSystem, Self: labSelf.HostIP, Routes: noRoutes{}, Host: l.machine, Logger: log})
	feed := newServiceFeed(nil, ready.is, m, log)
	status := &ownStatus{picture: pic, readiness: ready, attached: pods, open: l.etcd.openStatus}
	none := &policySide{}
	r := &rooms{
		record: &ownRecord{picture: pic, etcd: l.etcd, inCluster: true, attached: pods},
		host: &hostSide{
			picture: pic, settings: hostSettings{endpoint: "unix:/db.sock", bridge: "br0", datapath: ovs.DatapathSystem, stateDir: l.dir}, attacher: pods, table: l.table,
			ready: ready, metrics: m, log: log,
			hostParts: hostParts{
				database: l.machine, underlay: fakeUnderlay{l.machine}, sharing: fakeSharing{}, peers: others, bridge: fakeBridge{l.machine}, net: fakeHost{l.machine}, judge: fakeJudge{}, links: l.machine, queues: l.machine,
				mtu: nodemtu.New(nodemtu.Config{
					Name: labSelf.Host, Self: labSelf.HostIP, Policy: mtu.Clamp, Put: l.etcd.putMTU, Host: l.machine, Switch: l.machine, Underlay: l.machine,
					Metrics: m.mtu, Logger: log,
				}),
			},
		},
		flows: &flowSide{
			picture: pic, publish: status.publish, services: feed, policies: none, metrics: m, log: log,
			flowParts: flowParts{table: l.table, store: l.table, conn: conn, datapath: l.machine, restore: l.machine, attacher: pods, peers: others, room: l.machine, tenants: tenants.New(nil, log)},
		},
		health: &health{picture: pic, exits: fakeExits{l.machine}, routes: fakeExits{l.machine}, way: checked{closed: m.closed, log: log}, mesh: mesh{checked: checked{closed: m.alone, log: log}, nodes: fakeExits{l.machine}, through: nobodyAsked{}, kept: m.kept}, links: l.machine, database: l.machine, conn: conn}, services: feed, policies: none, status: status,
		runtime: &runtimeWay{conf: l.conf, socket: l.conf, state: l.conf},
		report:  &reporter{readiness: ready, services: feed, attached: pods, table: l.table, store: l.table, conf: l.conf, metrics: m, shrink: func(bool) error { return nil }, log: log},
	}
	ready.open(pods)
	l.loop = newLoop(pic, r)
	l.loop.file, l.loop.database, l.loop.ready, l.loop.log = records.NewFile(l.dir), l.machine, ready, log
	l.loop.listen = func(context.Context) (sources, error) {
		records, mtus := l.etcd.watch()
		return sources{records: records, mtus: mtus, links: l.machine.links}, nil
	}
	for i, s := range l.loop.steps {
		l.loop.steps[i].run = func(ctx context.Context, p *pass) error {
			if err := l.before(s.name, i == 0); err != nil {
				return err
			}
			return s.run(ctx, p)
		}
	}
}

func (l *lab) before(step string, first bool) error {
	l.mu.Lock()
	if first {
		l.passes++
	}
	hook := l.hooks[step]
	l.mu.Unlock()
	if hook == nil {
		return nil
	}
	return hook()
}

// on has hook run before a step; nil for no more.
func (l *lab) on(step string, hook func() error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hooks[step] = hook
}

// once has hook run before a step, once.
func (l *lab) once(step string, hook func()) {
	l.on(step, func() error {
		l.on(step, nil)
		hook()
		return nil
	})
}

// start runs the loop of an agent.
func (l *lab) start() {
	l.build()
	ctx, cancel := context.WithCancel(l.t.Context())
	l.cancel, l.ended = cancel, make(chan error, 1)
	go func() { l.ended <- l.loop.run(ctx) }()
	synctest.Wait()
}

// stop ends it, and returns when all that it started has ended.
func (l *lab) stop() {
	l.t.Helper()
	l.cancel()
	if err := <-l.ended; !errors.Is(err, context.Canceled) {
		l.t.Errorf("the loop ended with %v", err)
	}
}

// isReady is that pods can be attached and the flows are those of revision, soon.
func (l *lab) isReady(revision int64) {
	l.t.Helper()
	time.Sleep(staleAtMost)
	synctest.Wait()
	if err := l.loop.ready.is(); err != nil {
		l.t.Errorf("not ready: %v", err)
	}
	if got := l.table.inSwitch(); got != revision {
		l.t.Errorf("the flows are those of revision %d, want %d", got, revision)
	}
}

// count is how many passes have begun.
func (l *lab) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.passes
}

// fakeTable is a flow table that keeps the revision of the records instead of flows. What it refuses
// nodeflows.Table refuses too: see TestTableContract.
type fakeTable struct {
	self    netip.Addr
	machine *machine

	mu      sync.Mutex
	sw      *fakeSwitch
	records *topology.Snapshot
	ports   *desired.Ports
	model   bool
	// udp are none before it is told some.
	udp []tunnel.Port
	// has is the revision whose flows the switch has.
	has int64
	// changed is that it has other flows than when SetRecords last told so.
	changed bool
	// failed is that the last change did not get into the switch.
	failed bool
}

func (f *fakeTable) sync() (err error) {
	defer func() { f.failed = err != nil }()
	if f.sw == nil {
		return flowstore.ErrDisconnected
	}
	if err := f.sw.err(); err != nil {
		return err
	}
	f.changed = f.changed || f.has != f.records.Revision
	f.has = f.records.Revision
	return nil
}

// again implements what nodeflows.Table does when it is told what it knows.
func (f *fakeTable) again() error {
	if !f.failed || f.sw == nil {
		return nil
	}
	return f.sync()
}

func (f *fakeTable) refresh() ([]desired.Problem, error) {
	if f.records == nil || f.ports == nil {
		return nil, flowstore.ErrNotReady
	}
	_, problems, err := desired.Node(*f.records, f.self, *f.ports, f.udp, nil, nil)
	if err != nil {
		return nil, err
	}
	f.model = true
	return problems, f.sync()
}

// Connect implements flowStore.
func (f *fakeTable) Connect(sw flowstore.Switch) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := sw.(fakeSwitch)
	f.sw, f.has = &s, 0
}

func (f *fakeTable) Connected(context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.model {
		return nil
	}
	return f.sync()
}

func (f *fakeTable) Disconnect() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sw = nil
}

func (f *fakeTable) SetPorts(_ context.Context, p desired.Ports) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ports != nil && f.ports.Equal(p) {
		return f.again()
	}
	f.ports = &p
	_, err := f.refresh()
	if errors.Is(err, flowstore.ErrNotReady) {
		return nil
	}
	return err
}

func (f *fakeTable) SetUDPPorts(_ context.Context, ports []tunnel.Port) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if slices.Equal(f.udp, ports) {
		return f.again()
	}
	f.udp = ports
	_, err := f.refresh()
	if errors.Is(err, flowstore.ErrNotReady) {
		return nil
	}
	return err
}

func (f *fakeTable) SetRecords(_ context.Context, s topology.Snapshot) ([]desired.Problem, bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.records = &s
	problems, err := f.refresh()
	if err != nil {
		return problems, false, err
	}
	changed := f.changed
	f.changed = false
	return problems, changed, nil
}

func (f *fakeTable) Resync(context.Context) error {
	f.machine.work()
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.model {
		return flowstore.ErrNotReady
	}
	return f.sync()
}

func (f *fakeTable) Nudge(context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.sw == nil {
		return flowstore.ErrDisconnected
	}
	return f.sw.err()
}

func (f *fakeTable) SetPathMTUs(context.Context, map[netip.Addr]int) error { return nil }
func (f *fakeTable) Load([]desired.Attached)                               {}

func (f *fakeTable) Peers() []pipeline.Peer {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.model {
		return nil
	}
	m, _, _ := desired.Node(*f.records, f.self, *f.ports, f.udp, nil, nil)
	return m.Peers
}

// Size implements flowStore: it is what is wanted.
func (f *fakeTable) Size(string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.model {
		return 0
	}
	return int(f.records.Revision)
}

// inSwitch is the revision whose flows the switch has.
func (f *fakeTable) inSwitch() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.has
}
