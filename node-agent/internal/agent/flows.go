package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/detached"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/exits"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/flowstore"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/peers"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	"github.com/k8s-ovs/k8s-ovs/pkg/faultpoint"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
)

// flowSide brings the records into the flows of the switch, and tells who waits for them.
type flowSide struct {
	*picture
	flowParts
	// copies keeps the copy of the records on disk; it is there while the loop runs.
	copies interface{ Keep(s topology.Snapshot) }
	// connected is that the flows of the node are in the newest switch.
	connected bool
	// held is since when somebody else keeps the switch from forwarding by its flows.
	held time.Time
	// unsettled is that the datapath may still follow flows from before.
	unsettled bool
	problems  []desired.Problem
	// publish tells what is applied.
	publish func()
	// services are connected to the same switch.
	services *serviceFeed
	policies *policySide
	metrics  *metrics
	log      *slog.Logger
}

// flowParts are what flows are made with.
type flowParts struct {
	table    flowTable
	store    flowStore
	conn     switchConnection
	datapath revalidator
	restore  restorer
	attacher attachments
	peers    *peers.Peers
	room     roomMaker
	// tenants hear that records are in the flows.
	tenants appliedHearer
	// namesakes hear it too; nil outside of Kubernetes.
	namesakes appliedHearer
	// asking is nil in Kubernetes, where records follow the API server.
	asking recordAsker
}

// flowStore is what the bridge has; [flowstore.Store] is one.
type flowStore interface {
	Connect(sw flowstore.Switch)
	Disconnect()
	// Size is how many flows the owners of an area want.
	Size(area string) int
}

// flowTable is the flows of the bridge, but for those of services; [nodeflows.Table] is
// one. It keeps what it is told while there is no switch, and brings it into the flows of
// the one that the store is connected to.
type flowTable interface {
	// Connected says that the switch is another one.
	Connected(ctx context.Context) error
	Load(pods []desired.Attached)
	SetPorts(ctx context.Context, p desired.Ports) error
	// SetUDPPorts says the UDP ports of the tunnels.
	SetUDPPorts(ctx context.Context, ports []tunnel.Port) error
	SetPathMTUs(ctx context.Context, narrow map[netip.Addr]int) error
	// SetRecords reports, once, that flows may have changed, by whatever.
	SetRecords(ctx context.Context, s topology.Snapshot) (problems []desired.Problem, changed bool, err error)
	Resync(ctx context.Context) error
	Nudge(ctx context.Context) error
	Peers() []pipeline.Peer
}

// switchConnection is the bridge's OpenFlow connection; [connection] is one.
type switchConnection interface {
	// alive reports whether there is a connection that has not ended.
	alive() bool
	// dial connects anew.
	dial(ctx context.Context) error
	// flows is the switch, once dialled.
	flows() flowstore.Switch
	// Send sends a frame out of the gateway port, past all flows.
	exits.Switch
	// unblock lets the ports have all packets, also the tunnels with those names, and says what had not.
	unblock(ctx context.Context, tunnels []string) (kept []string, err error)
	// ended wakes up when the connection that was dialled last has ended.
	ended() <-chan struct{}
	close()
}

// revalidator compares what the datapath cached with the flows; [ovs.Client] asks for it.
type revalidator interface {
	// AskRevalidated asks when a round of comparison is over: wait returns then. One that is
	// brought about after that ends after the question was taken.
	AskRevalidated(ctx context.Context) (wait func() error, err error)
}

// restorer is a switch that starts and may leave its datapath as it was until its flows are
// there; [ovs.Client] knows.
type restorer interface {
	// RestoreWait reports whether it does, and whether that is ours to end.
	RestoreWait() (waits, ours bool)
	EndRestoreWait(ctx context.Context) error
}

// roomMaker is [packetsock.Room].
type roomMaker interface {
	Make(ctx context.Context, uplink string)
}

type appliedHearer interface{ Applied(s topology.Snapshot) }

// recordAsker asks for records of namespaces; [asking.Asking] does.
type recordAsker interface {
	appliedHearer
	Namespace(name string) int
}

func (n *flowSide) setPorts(ctx context.Context, p *pass) error {
	return n.table.SetPorts(ctx, p.ports)
}

// connect connects the flow store to the switch, where it is not, and brings in the
// flows of the node. Those of services follow when the node is as it should be.
func (n *flowSide) connect(ctx context.Context, _ *pass) error {
	if !n.conn.alive() {
		n.disconnect()
		if err := n.conn.dial(ctx); err != nil {
			return err
		}
		n.metrics.reconnects.Inc()
		n.peers.Cool()
	}
	if n.connected {
		return nil
	}
	n.store.Connect(n.conn.flows())
	if err := n.policies.ahead(ctx); err != nil {
		return err
	}
	err := n.table.Connected(ctx)
	n.connected = err == nil
	return err
}

// disconnect says that the switch is gone.
func (n *flowSide) disconnect() {
	n.peers.Forget()
	n.store.Disconnect()
	n.connected = false
	n.services.disconnect()
	n.policies.disconnect()
}

// makeRoom gives packets room while they wait for the userspace datapath.
func (n *flowSide) makeRoom(ctx context.Context, _ *pass) error {
	n.room.Make(ctx, n.under.Uplink)
	return nil
}

func (n *flowSide) followRecords(ctx context.Context, _ *pass) error {
	waits, _ := n.restore.RestoreWait()
	return n.apply(ctx, waits)
}

// follow takes in new records and brings them into the flows the quick way, also
// while something else is amiss: flows can be changed. It reports whether that was
// all there was to do: what else the network's configuration changes, a pass does.
func (n *flowSide) follow(ctx context.Context, s topology.Snapshot, ways map[netip.Addr]link.Path) bool {
	same := n.records != nil && n.records.Config.Equal(s.Config)
	n.take(s)
	return same && n.started.IsValid() && n.conn.alive() && !n.peers.New(n.records, ways) && n.followRecords(ctx, nil) == nil
}

// take takes in new records, and tells of those that lack what was there before.
func (n *flowSide) take(s topology.Snapshot) {
	lacked := n.older != nil
	n.hold(s)
	lacks := n.older != nil
	switch {
	case lacks && !lacked:
		n.metrics.older.Set(1)
		n.log.Warn("etcd went back to older records, as it does when it is restored from a backup: going on with those from before until the controller has put back what is missing",
			"revision", n.records.Revision, "etcd", s.Revision)
	case lacked && !lacks:
		n.metrics.older.Set(0)
		n.log.Info("etcd has again what it had lost: following its records", "revision", s.Revision)
	}
	if lacks {
		n.publish()
	}
}

// apply brings the newest records into the flows, and tells who waits for them. While the switch
// waits for flows its datapath goes on as before these records: [flowSide.restored] tells later.
func (n *flowSide) apply(ctx context.Context, waits bool) error {
	s := *n.records
	if n.applied == s.Revision && n.applied != 0 {
		return nil
	}
	if me, ok := s.Nodes[n.self]; ok && me.Ready() && me.Subnet != n.started {
		return fmt.Errorf("node %s moves from subnet %s to %s", n.name, n.started, me.Subnet)
	}
	problems, changed, err := n.table.SetRecords(ctx, s)
	if err != nil {
		return err
	}
	n.unsettled = n.unsettled || changed
	faultpoint.Here("records", "in the flows")
	if n.unsettled {
		if waits {
			n.policies.applied(s, n.fromEtcd)
			return nil
		}
		if err := n.settle(ctx); err != nil {
			return err
		}
		n.unsettled = false
		faultpoint.Here("records", "in what the datapath cached")
	}
	n.applied = s.Revision
	n.policies.applied(s, n.fromEtcd)
	n.tenants.Applied(s)
	if n.namesakes != nil {
		n.namesakes.Applied(s)
	}
	if n.asking != nil {
		n.asking.Applied(s)
	}
	n.peers.Warm(n.table.Peers())
	n.reportProblems(problems)
	n.metrics.revision.Set(float64(s.Revision))
	n.publish()
	faultpoint.Here("records", "told")
	if n.fromEtcd {
		n.copies.Keep(s)
		n.adopt(s)
	}
	return nil
}

// settle returns when no packet is forwarded any more by what the datapath
// cached before the last commit. Each round of Open vSwitch's comparison may have
// begun before it, so it takes two. Only then the change is published as applied.
func (n *flowSide) settle(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, staleAtMost)
	defer cancel()
	// The commit itself has brought about a round, which may be over by now or not.
	for _, patience := range []time.Duration{ownRound, 0} {
		if err := n.compared(limited, patience); err != nil {
			if n.conn.alive() {
				n.log.Warn("cannot see when the datapath follows the flows: giving it the time it may take", "error", err, "wait", staleAtMost)
				<-limited.Done()
			}
			break
		}
	}
	switch err := ctx.Err(); {
	case err != nil:
		return fmt.Errorf("wait until the datapath follows the flows: %w", err)
	case !n.conn.alive(): // that of the kernel goes on without it, and is compared with nothing
		return errors.New("ovs-vswitchd went away before the datapath followed the flows")
	}
	return nil
}

// compared returns when a round of comparison has ended. The next would come when it is time
// (max-revalidator): where it has not come after patience, compared brings one about; after the
// question, as one that is over before that would not be told.
func (n *flowSide) compared(ctx context.Context, patience time.Duration) error {
	wait, err := n.datapath.AskRevalidated(ctx)
	if err != nil {
		return err
	}
	answer := make(chan error, 1)
	go func() { answer <- wait() }()
	if patience > 0 {
		select {
		case err := <-answer:
			return err
		case <-time.After(patience):
		}
	}
	return errors.Join(n.table.Nudge(ctx), <-answer)
}

// adopt asks for records of namespaces that have pods here and no record:
// somebody deleted it. Without one their pods are cut off. In Kubernetes that is
// the controller's to mend.
func (n *flowSide) adopt(s topology.Snapshot) {
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

func (n *flowSide) reportProblems(problems []desired.Problem) {
	for _, p := range problems {
		if !slices.Contains(n.problems, p) {
			n.log.Error("a record is left out", "record", p.Record, "error", p.Why)
		}
	}
	n.problems = problems
	n.metrics.problems.Set(float64(len(problems)))
}

// repair puts right what is there of pods. That no pod can come, as its lease could not be written down, keeps nothing up.
func (n *flowSide) repair(ctx context.Context, p *pass) (err error) {
	var mended int
	var unsaved error
	p.beside(func() {
		mended, err = n.attacher.Repair(ctx, p.full)
		unsaved = n.attacher.Writable()
	})
	if errors.Is(unsaved, detached.Err) {
		err = errors.Join(err, unsaved)
	}
	p.unwell = cmp.Or(p.unwell, unsaved)
	n.metrics.portRepairs.Add(float64(mended))
	return err
}

func (n *flowSide) resync(ctx context.Context, p *pass) (err error) {
	if p.full {
		p.beside(func() { err = n.table.Resync(ctx) })
	}
	return err
}

// othersRestoreWithin is how long somebody else may keep the switch from forwarding by its
// flows: Open vSwitch's own scripts do for some seconds, while they restart it.
const othersRestoreWithin = 10 * time.Second

// restored has a switch that started forward by its flows, which are all there now, those of
// services too; until then it goes on with what its datapath had cached before. Records that
// came meanwhile are applied.
func (n *flowSide) restored(ctx context.Context, p *pass) error {
	waits, ours := n.restore.RestoreWait()
	if !waits || ours {
		n.held = time.Time{}
	}
	switch {
	case !n.conn.alive():
		return nil // it is one that started since the flows were brought to another
	case !waits:
		return n.apply(ctx, false)
	case !ours && n.isHeld():
		p.unwell = fmt.Errorf("somebody has Open vSwitch wait for flows (other_config:flow-restore-wait), as its own scripts do while they restart it: new connections of pods wait, too, for %s at most", othersRestoreWithin)
		return nil
	}
	if err := n.services.follow(ctx, p); err != nil {
		return err
	}
	if err := n.restore.EndRestoreWait(ctx); err != nil {
		return err
	}
	return n.apply(ctx, false)
}

// isHeld reports whether somebody else may keep the switch waiting for some more time.
func (n *flowSide) isHeld() bool {
	if n.held.IsZero() {
		n.held = time.Now()
	}
	if time.Since(n.held) < othersRestoreWithin {
		return true
	}
	n.log.Warn("somebody left Open vSwitch waiting for flows (other_config:flow-restore-wait): it forwards by those that it has", "waited", othersRestoreWithin)
	return false
}

// unblock lets ports have all packets that somebody kept from them whatever flows say.
func (n *flowSide) unblock(ctx context.Context, p *pass) (err error) {
	if !p.full {
		return nil
	}
	var kept []string
	p.beside(func() { kept, err = n.conn.unblock(ctx, slices.Collect(maps.Keys(p.ports.Tunnels))) })
	if len(kept) > 0 {
		n.metrics.portRepairs.Add(float64(len(kept)))
		n.log.Warn("somebody had kept packets from ports of the bridge (ovs-ofctl mod-port, set-frags): put right", "ports", kept)
	}
	return err
}

func (n *flowSide) warm(context.Context, *pass) error {
	n.peers.Warm(n.table.Peers())
	return nil
}
