package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/attach"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/bridge"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/detached"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/hostnet"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/nodemtu"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/peers"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/sharing"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/underlay"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
)

// hostSide makes underlay, bridge, host side and attachments what they should be.
type hostSide struct {
	*picture
	hostParts
	settings hostSettings
	attacher attachments
	table    flowTable
	ready    *readiness
	metrics  *metrics
	log      *slog.Logger
	// readdressed is since when another address stands in the place of the node's; zero while none does.
	readdressed time.Time
	// had is what the bridge was last, once it was; asked is the connection to the database by which that was seen.
	had   *bridge.Spec
	asked int
	// closed is why the underlay's bridge did not hand on packets of the node at the last look at it.
	closed error
	// backless is why the datapath lacked what is behind a tunnel at the last look.
	backless error
}

// hostSettings do not change while the agent runs.
type hostSettings struct {
	// endpoint is that of the database.
	endpoint         string
	bridge, datapath string
	serviceProxy     pipeline.ServiceProxy
	// tunnelPort is the UDP port that the agent was told for the tunnels, probePort that of probes; 0 for none.
	tunnelPort       tunnel.Port
	probePort        uint16
	stateDir, bootID string
}

// hostParts are the owners of what the node consists of.
type hostParts struct {
	database database
	underlay underlayOwner
	sharing  uplinkSharer
	mtu      *nodemtu.MTU
	peers    *peers.Peers
	bridge   bridgeOwner
	net      hostOwner
	judge    judge
	links    links
	queues   queues
}

// queues are what devices hold packets back in; [tc.Control] knows them.
type queues interface {
	// FreeRoots takes away those that somebody put there.
	FreeRoots(devices ...link.Link) (freed []string, err error)
}

// database is that of Open vSwitch, which may be away; [ovs.Client] has it.
type database interface {
	Connected() bool
	// Sessions counts the connections there were.
	Sessions() int
	// Init makes an empty database one that can be used.
	Init(ctx context.Context) error
	// Ports are those of a bridge; [ovs.ErrNoBridge] where there is none.
	Ports(bridge string) ([]ovs.Port, error)
}

// underlayOwner is [underlay.Setup].
type underlayOwner interface {
	Ensure(ctx context.Context) (u underlay.Underlay, changed bool, err error)
	// EnsureForwarding sees that the bridge with the node's address hands on what comes to it; closed is why
	// that does not all the same. peer is the tunnels' end of another node, where one is known.
	EnsureForwarding(ctx context.Context, u underlay.Underlay, peer netip.AddrPort) (mended bool, closed, err error)
	// Moved is the address that the node has in place of ip.
	Moved(ip netip.Addr) (now netip.Addr, moved bool)
}

// uplinkSharer is [sharing.Sharing].
type uplinkSharer interface {
	Ensure(ctx context.Context, datapath, device string, attached sharing.Attached, known bool, netID func(namespace string) (netid.ID, bool))
}

// bridgeOwner is [bridge.Ensure] on the node's switch.
type bridgeOwner interface {
	Ensure(ctx context.Context, spec bridge.Spec) (ports desired.Ports, changed bool, refused, err error)
	// Refill puts back what the database lost of it, and waits for nobody.
	Refill(ctx context.Context, spec bridge.Spec) error
	// EnsureBackers sees that the kernel datapath has the devices of the tunnels, and says what was amiss.
	EnsureBackers(ctx context.Context, spec bridge.Spec) (mended []string, err error)
	// EnsureGateway sees that the gateway port has a device by which packets come and go, and says what was amiss.
	EnsureGateway(ctx context.Context, spec bridge.Spec) (mended string, err error)
}

// hostOwner is [hostnet.Net].
type hostOwner interface {
	Ensure(ctx context.Context, spec hostnet.Spec) (changed bool, err error)
	// Dropped counts what the firewall has dropped since it was called last.
	Dropped(ctx context.Context) (map[hostnet.Reason]uint64, error)
}

// judge is [hostnet.Judge], which policies give to do.
type judge interface {
	// Dropped counts what it has dropped since it was called last.
	Dropped(ctx context.Context) (uint64, error)
}

// links knows devices; [link.NS] does.
type links interface {
	Link(name string) (l link.Link, ok bool, err error)
	LinkByIndex(index int) (l link.Link, ok bool, err error)
}

// attachments are the pods of the node; [attach.Attacher] is them. Before Start, Repair
// fails and the rest knows of none.
type attachments interface {
	sharing.Attached
	Start(ctx context.Context, node attach.Node, stateDir, bootID string) ([]desired.Attached, error)
	SetMTU(ctx context.Context, m attach.MTU) error
	Repair(ctx context.Context, full bool) (mended int, err error)
	// Refill puts back ports that the database lost, and waits for nobody.
	Refill(ctx context.Context) error
	// Writable is nil when leases of addresses can be written down.
	Writable() error
}

// forget has the ways to peers read back.
func (n *hostSide) forget(_ context.Context, p *pass) error {
	if p.full {
		n.peers.Forget()
	}
	return nil
}

// reachDatabase says that nothing can be done without the database.
func (n *hostSide) reachDatabase(ctx context.Context, _ *pass) error {
	if !n.database.Connected() {
		return noDatabase(n.settings.endpoint, nil)
	}
	return n.database.Init(ctx)
}

// refill puts back what the database does not know any more, before ovs-vswitchd asks it: it may be an older copy, or empty. What
// follows makes sure of all that, step by step, and waits for ovs-vswitchd.
func (n *hostSide) refill(ctx context.Context, _ *pass) error {
	session := n.database.Sessions()
	if n.had == nil || session == n.asked || !n.started.IsValid() {
		return nil
	}
	n.asked = session
	if err := errors.Join(n.bridge.Refill(ctx, *n.had), n.attacher.Refill(ctx)); err != nil {
		n.log.Warn("what the database of Open vSwitch may have lost is not put back at once", "error", err)
	}
	return nil
}

// noDatabase says why the database does not answer: its folder may have been deleted under the agent's mount, as some
// restarts of Open vSwitch do, and whoever made it anew is not seen from here. cause is what is known else.
func noDatabase(endpoint string, cause error) error {
	socket := strings.TrimPrefix(endpoint, "unix:")
	_, err := os.Stat(socket)
	if err := detached.Explain(filepath.Dir(socket), err); errors.Is(err, detached.Err) {
		return err
	}
	if cause != nil {
		return fmt.Errorf("the database of Open vSwitch at %s does not answer (is ovsdb-server running?): %w", endpoint, cause)
	}
	return fmt.Errorf("the database of Open vSwitch at %s does not answer (is ovsdb-server running?)", endpoint)
}

func (n *hostSide) ensureUnderlay(ctx context.Context, p *pass) error {
	var under underlay.Underlay
	var moved bool
	var err error
	p.beside(func() { under, moved, err = n.underlay.Ensure(ctx) })
	if err == nil && under.VTEP == n.self {
		n.under, p.moved, n.readdressed = under, moved, time.Time{}
		if moved {
			n.peers.Cool() // with a device the datapath forgets the neighbours by it
		}
		return nil
	}
	if now, other := n.underlay.Moved(n.self); other {
		return n.readdress(now)
	}
	n.readdressed = time.Time{}
	if err != nil {
		return err
	}
	return fmt.Errorf("the node's address changed from %s to %s, while it has both: take the former away, or restart the agent", n.self, under.VTEP)
}

// ensureForwarding comes before all that needs the node's network.
func (n *hostSide) ensureForwarding(ctx context.Context, p *pass) (err error) {
	if p.full || n.closed != nil {
		var mended bool
		peer := n.otherEnd()
		p.beside(func() { mended, n.closed, err = n.underlay.EnsureForwarding(ctx, n.under, peer) })
		if mended {
			n.metrics.hostRepairs.Inc()
		}
	}
	p.unwell = cmp.Or(p.unwell, n.closed)
	return err
}

// addressSettles is how long another address stands in the place of the node's before the agent starts anew with it: one
// that is renewed is away for a moment.
const addressSettles = 3 * time.Second

// errReaddressed ends the agent, so that whoever keeps it running starts it with the address that the node has by now. All
// hangs on that address, so it is not exchanged while the agent runs.
var errReaddressed = errors.New("the agent starts anew with it")

// readdress says that the node has the address now in the place of its own, which is no error to stay with.
func (n *hostSide) readdress(now netip.Addr) error {
	if n.readdressed.IsZero() {
		n.readdressed = time.Now()
	}
	if time.Since(n.readdressed) < addressSettles {
		return fmt.Errorf("the node's address changed from %s to %s", n.self, now)
	}
	return fmt.Errorf("the node's address changed from %s to %s: %w", n.self, now, errReaddressed)
}

// share makes the classes of the uplink those of the pods. It is never why pods cannot be
// attached.
func (n *hostSide) share(ctx context.Context, _ *pass) error {
	n.sharing.Ensure(ctx, n.settings.datapath, n.under.Link, n.attacher, n.started.IsValid(), n.records.NetID)
	return nil
}

func (n *hostSide) wantMTU(_ context.Context, p *pass) (err error) {
	p.mtu, err = n.mtu.Want(n.under, n.tunnelList(), n.records, n.fromEtcd)
	if err == nil {
		p.unwell = cmp.Or(p.unwell, n.mtu.Unwell())
	}
	return err
}

// route tells the userspace datapath the ways to peers, which the bridge's tunnel port
// depends on.
func (n *hostSide) route(ctx context.Context, p *pass) error {
	p.source = n.peers.Route(ctx, n.under.Link, n.mtu.Ways())
	return nil
}

func (n *hostSide) ensureBridge(ctx context.Context, p *pass) (err error) {
	spec, session := n.bridgeSpec(p), n.database.Sessions()
	p.ports, _, p.refused, err = n.bridge.Ensure(ctx, spec)
	if err == nil {
		n.had, n.asked = &spec, session
	}
	return err
}

func (n *hostSide) bridgeSpec(p *pass) bridge.Spec {
	return bridge.Spec{
		Name: n.settings.bridge, Datapath: n.settings.datapath, VTEP: n.self, Gateway: p.me.Gateway(), MTU: p.mtu.Receives, Tunnels: n.tunnelList(),
		TunnelSource: p.source, Pods: attach.HostIfPrefix, Peer: n.isPeer, Carries: n.carries,
	}
}

// listen makes sure that the datapath takes the peers' tunnel packets: by what it has behind the tunnels' ports, and the
// one in userspace by what it knows of the node's address.
func (n *hostSide) listen(ctx context.Context, p *pass) error {
	if err := n.backTunnels(ctx, p); err != nil || n.settings.datapath == ovs.DatapathSystem {
		return err
	}
	mended, err := n.peers.Listen(ctx, n.under.Link, n.tunnelList().UDPPorts())
	if mended {
		n.metrics.hostRepairs.Inc()
	}
	return err
}

// backTunnels sees to what is behind the ports of tunnels. What the datapath cannot have is made anew with each pass that
// reads back all there is, not with each of those that follow each other while the node is not well; and ovs-vswitchd is
// asked for its ports no more often. Pods of this node reach each other all the same.
func (n *hostSide) backTunnels(ctx context.Context, p *pass) error {
	if p.full || n.backless == nil && n.settings.datapath == ovs.DatapathSystem {
		mended, err := n.bridge.EnsureBackers(ctx, n.bridgeSpec(p))
		if len(mended) > 0 {
			n.metrics.hostRepairs.Inc()
			n.log.Warn("somebody had changed what tunnel packets come and go by: put right", "found", mended)
			p.refused = nil // the port is another one; the next pass asks for it
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		n.backless = err
	}
	p.unwell = cmp.Or(p.unwell, n.backless, p.refused)
	return nil
}

func (n *hostSide) ensureHost(ctx context.Context, p *pass) error {
	spec, err := n.hostSpec(p)
	if err != nil {
		return err
	}
	gateway, err := n.bridge.EnsureGateway(ctx, n.bridgeSpec(p))
	if gateway != "" {
		n.metrics.hostRepairs.Inc()
		n.log.Warn("somebody had changed the device by which packets go between the node and its pods: put right", "found", gateway)
	}
	if err != nil {
		return err
	}
	var moved bool
	p.beside(func() { moved, err = n.net.Ensure(ctx, spec) })
	if err != nil {
		return err
	}
	if err := n.unqueue(p); err != nil {
		return err
	}
	if (p.moved || moved) && n.started.IsValid() && p.mtu == n.mtu.Has() {
		n.metrics.hostRepairs.Inc()
		n.log.Info("the host's side was put right", "underlay", p.moved, "host", moved)
	}
	return nil
}

// unqueue lets packets through that leave for the node or for tunnels: nobody is to hold those back, save at the uplink.
func (n *hostSide) unqueue(p *pass) error {
	if !p.full {
		return nil
	}
	names := []string{bridge.GatewayPort}
	if n.settings.datapath == ovs.DatapathSystem {
		for _, t := range n.tunnelList() {
			names = append(names, t.KernelDevice())
		}
	}
	var devices []link.Link
	for _, name := range names {
		if l, ok, err := n.links.Link(name); err != nil {
			return err
		} else if ok {
			devices = append(devices, l)
		}
	}
	freed, err := n.queues.FreeRoots(devices...)
	if len(freed) > 0 {
		n.metrics.hostRepairs.Inc()
		n.log.Warn("somebody had put a queueing discipline on devices of the overlay: taken away", "devices", freed)
	}
	return err
}

// hostSpec is what the node's own side of the overlay is to be.
func (n *hostSide) hostSpec(p *pass) (hostnet.Spec, error) {
	devices, bridges, err := n.switchDevices(n.under)
	spec := hostnet.Spec{
		Device: bridge.GatewayPort, Gateway: p.me.Gateway(), NodeSubnet: p.me.Subnet, ClusterNetwork: n.records.Config.Network,
		ServiceProxy: n.settings.serviceProxy, ServiceNetwork: n.records.Config.ServiceNetwork,
		Outside:     n.outside(n.under),
		TunnelPorts: n.tunnelList().UDPPorts(), OtherTunnelPorts: n.guarded(), ProbePort: n.settings.probePort, SwitchDevices: devices, SwitchBridges: bridges, HostEnds: attach.HostIfPrefix + "*", NodeAddress: n.self,
	}
	if p.mtu.Sends < p.mtu.Receives {
		spec.RouteMTU = p.mtu.Sends
	}
	return spec, err
}

// switchDevices are those whose packets only the switch may take. The kernel
// datapath takes them before the node's stack sees them.
func (n *hostSide) switchDevices(u underlay.Underlay) (devices, bridges []string, err error) {
	if n.settings.datapath != ovs.DatapathNetdev {
		return nil, nil, nil
	}
	devices = []string{attach.HostIfPrefix + "*"}
	if u.Uplink == "" {
		return devices, nil, nil
	}
	uplink, _, err := n.links.Link(u.Uplink)
	if uplink.Type == "bridge" {
		return devices, []string{u.Uplink}, err
	}
	return append(devices, u.Uplink), nil, err
}

// outside is the device by which answers from outside come in to be routed to pods; the
// node's address may be on one that none come by.
func (n *hostSide) outside(under underlay.Underlay) string {
	if l, ok, err := n.links.Link(under.Link); err != nil || !ok || l.Loopback {
		return ""
	}
	return under.Link
}

// start reads back what is attached, once for each subnet that the node has.
func (n *hostSide) start(ctx context.Context, p *pass) error {
	if n.started.IsValid() {
		return nil
	}
	attached, err := n.attacher.Start(ctx, attach.Node{
		Bridge: n.settings.bridge, Subnets: p.me.PodSubnets(), Gateways: p.me.Gateways(), MTU: attach.MTU{Device: p.mtu.Receives, Route: p.mtu.Sends}, Datapath: n.settings.datapath,
	}, n.settings.stateDir, n.settings.bootID)
	if err != nil {
		return err
	}
	n.table.Load(attached)
	n.started = p.me.Subnet
	n.ready.startedAs(n.started)
	return nil
}

// setMTU gives pods their MTU. That one does not take it is worth a warning.
func (n *hostSide) setMTU(ctx context.Context, p *pass) error {
	n.mtu.TellFailed(p.mtu, n.attacher.SetMTU(ctx, attach.MTU{Device: p.mtu.Receives, Route: p.mtu.Sends}))
	narrow := n.mtu.Done(p.mtu)
	n.podMTU = p.mtu.Sends
	return n.table.SetPathMTUs(ctx, narrow)
}

func (n *hostSide) countDropped(ctx context.Context, p *pass) (err error) {
	if !p.full {
		return nil
	}
	var dropped map[hostnet.Reason]uint64
	var denied uint64
	p.beside(func() {
		var failed error
		dropped, err = n.net.Dropped(ctx)
		denied, failed = n.judge.Dropped(ctx)
		err = errors.Join(err, failed)
	})
	if err != nil {
		return err
	}
	n.metrics.firewallDropped(dropped)
	n.metrics.firewallDropped(map[hostnet.Reason]uint64{hostnet.DeniedEgress: denied})
	return nil
}
