package agent

import (
	"context"
	"errors"
	"log/slog"
	"sync"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/flowstore"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/nodeflows"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/policies"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/records"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// policyCopy is what of policies a start without etcd needs.
func (n *node) policyCopy() records.File[policies.Copy] {
	return records.At[policies.Copy](n.cfg.StateDir, "policies.json", "the policies", nil)
}

// enforce follows the policies until ctx ends.
func (n *node) enforce(ctx context.Context, p *parts) error {
	copies := records.NewWriter(n.policyCopy(), n.log)
	defer copies.Close()
	var following sync.WaitGroup
	defer following.Wait()
	following.Go(func() { p.policies.Follow(n.etcd.store.FollowPolicies(ctx, p.self)) })
	if p.drops != nil {
		if err := n.firewall.judge.TellDropped(ctx, p.drops.TakePast, n.log); err != nil {
			n.log.Warn("what policies deny past the switch is counted and not logged", "error", err)
		}
		following.Go(func() { p.drops.Run(ctx) })
	}
	return p.policies.Run(ctx, copies.Keep)
}

// denied counts what policies denied, in the switch and past it.
func (n *node) denied(table *nodeflows.Table) func(context.Context) (uint64, error) {
	return func(ctx context.Context) (uint64, error) {
		switched, err := table.Denied(ctx)
		if err != nil {
			return 0, err
		}
		past, err := n.firewall.judge.Total(ctx)
		return switched + past, err
	}
}

// policyTable is what NetworkPolicies come to on the node; [policies.Table] is it.
type policyTable interface {
	// Remember takes labels of pods from the copy on disk, UseCopy its records where etcd has
	// given none.
	Remember(c policies.Copy)
	UseCopy(c policies.Copy)
	// Expect takes in, at a start, what SetRecords will say.
	Expect(s topology.Snapshot)
	SetRecords(s topology.Snapshot)
	SetLacks(lacks []string)
	// Known is nil when it is known which pods policies select.
	Known() error
	// Lost is the newest write of a leader that the table has taken in, where etcd has lost it.
	Lost() topology.Point
	// Denies reports whether pods' own flows let through what is denied, without the rules.
	Denies() bool
	// Connected says that the switch is another one, Forgotten that it has lost the
	// connections that it tracked.
	Connected(ctx context.Context) error
	Forgotten()
	Resync(ctx context.Context) error
}

// policySide has NetworkPolicies enforced. But for what is told by others it belongs to the
// loop's goroutine. The zero value is for a node of which no API server tells any.
type policySide struct {
	*picture
	table policyTable
	pods  *podsRecord
	file  records.File[policies.Copy]
	// copied is what was found on disk.
	copied policies.Copy
	// loses is that a switch that goes takes its connections along: that of the userspace
	// datapath does.
	loses bool
	// lacks is what of policies the newest switch does not know.
	lacks func() []string
	// connected is that the table knows of the newest switch.
	connected bool
	log       *slog.Logger
}

// load takes what stands on disk.
func (n *policySide) load() {
	if n.table == nil {
		return
	}
	c, _, err := n.file.Load()
	if err != nil {
		n.log.Warn("starting without the copy of the policies", "error", err)
	}
	n.copied = c
	n.table.Remember(c)
}

// useCopy goes on with the copy on disk, where etcd has given nothing. Without one there
// were no policies in force.
func (n *policySide) useCopy() {
	if n.table != nil {
		n.table.UseCopy(n.copied)
	}
}

// known keeps pods' flows as they are until it is known what selects them.
func (n *policySide) known(context.Context, *pass) error {
	if n.table == nil {
		return nil
	}
	return n.table.Known()
}

// expect has rules be made once it is known what is attached, beside what comes before they belong in the switch.
func (n *policySide) expect(context.Context, *pass) error {
	if n.table != nil {
		n.table.Expect(*n.records)
	}
	return nil
}

// ahead brings rules into a new switch before pods' own flows come, where these would let through
// what is denied. Rules from before, which wait for what is late, are there.
func (n *policySide) ahead(ctx context.Context) error {
	if n.table == nil || n.records == nil || !n.table.Denies() {
		return nil
	}
	n.table.SetRecords(*n.records)
	err := n.connect(ctx)
	if errors.Is(err, flowstore.ErrNotReady) {
		return nil
	}
	return err
}

// connect brings rules into a new switch.
func (n *policySide) connect(ctx context.Context) error {
	n.table.SetLacks(n.lacks())
	err := n.table.Connected(ctx)
	n.connected = err == nil
	return err
}

// applied takes in records that are in the flows.
func (n *policySide) applied(s topology.Snapshot, fromEtcd bool) {
	if n.table == nil {
		return
	}
	n.table.SetRecords(s)
	if fromEtcd {
		n.pods.openIn(s.Config.Name)
	}
}

// disconnect says that the switch is gone.
func (n *policySide) disconnect() {
	if n.table != nil && n.connected && n.loses {
		n.table.Forgotten()
	}
	n.connected = false
}

// follow brings rules into a new switch, and puts right what differs. It is never why pods
// cannot be attached: what is late is closed. Records do not wait for it, as it takes as long as
// the policies of all tenants are large.
func (n *policySide) follow(ctx context.Context, p *pass) error {
	var err error
	switch {
	case n.table == nil:
	case !n.connected:
		n.table.SetLacks(n.lacks())
		p.beside(func() { err = n.table.Connected(ctx) })
		n.connected = err == nil
	case p.full:
		p.beside(func() { err = n.table.Resync(ctx) })
	}
	if err != nil {
		n.log.Debug("policies are not what they should be: trying again", "error", err)
	}
	return nil
}

// close takes what the node says of its pods out of the records.
func (n *policySide) close() {
	if n.pods != nil {
		n.pods.close()
	}
}

// podsRecord is what the node tells the leader of its pods, on its way into etcd. Its methods
// may be called at once.
type podsRecord struct {
	// open opens the record in a network of that name.
	open func(network string) podsPublisher

	mu     sync.Mutex
	to     podsPublisher // nil before there is a network, and in the end
	ended  bool
	newest *topology.NodePods
}

// podsPublisher is [store.PodsPublisher].
type podsPublisher interface {
	Set(n topology.NodePods)
	Close()
}

// set makes n what the node tells.
func (r *podsRecord) set(n topology.NodePods) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.newest = &n
	if r.to != nil {
		r.to.Set(n)
	}
}

// openIn opens the record, once.
func (r *podsRecord) openIn(network string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.to != nil || r.ended {
		return
	}
	r.to = r.open(network)
	if r.newest != nil {
		r.to.Set(*r.newest)
	}
}

func (r *podsRecord) close() {
	r.mu.Lock()
	to := r.to
	r.to, r.ended = nil, true
	r.mu.Unlock()
	if to != nil {
		to.Close()
	}
}
