// Package allot keeps namespaces from using up the connection tables of the node: it looks how full they are
// and who asks for connections, and sets what each namespace may, in the bridge and in the firewall.
//
// Package fairness decides who is held back. It never touches a connection that is there.
package allot

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"time"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/attach"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/bridge"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/fairness"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/flowstore"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/hostnet"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/nodeflows"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
)

const (
	// lookAtConnections is how often the fill of the connection tables is looked at;
	// below a quarter, who asks for connections is looked at once in calmLooks only.
	lookAtConnections = 500 * time.Millisecond
	calmLooks         = 10
	// countHoldersEvery is how often the kernel's table is read to see who holds what,
	// while it is short.
	countHoldersEvery = 5 * time.Second
	// userspaceSize is what is taken for the size of the userspace datapath's table at
	// most. Its own limit is 3,000,000 by default, some GiB.
	userspaceSize = 1 << 18
	// sayAgain is the pause between two log lines about one namespace.
	sayAgain = time.Minute
	// lookTimeout bounds one look.
	lookTimeout = 10 * time.Second
)

// Table is what namespaces may in the bridge; [nodeflows.Table] is one.
type Table interface {
	// View is false before the table knows the records.
	View() (nodeflows.View, bool)
	Demands(ctx context.Context) (map[string]nodeflows.Demand, error)
	SetAllowances(ctx context.Context, all pipeline.Allowance, held map[string]pipeline.Allowance) error
}

// Gate is what namespaces may through the node; [hostnet.Gate] is one.
type Gate interface {
	Set(ctx context.Context, device string, others fairness.Allowance, want map[string]hostnet.Passage) error
	Asked(ctx context.Context) (map[string]fairness.Asked, error)
	Remove(ctx context.Context) error
}

// Kernel is the kernel's connection table; [conntrack.Table] is one.
type Kernel interface {
	Fill() (used, size uint64, err error)
	BySource(from netip.Prefix) (map[netip.Addr]uint64, error)
	// Outgoing calls each for every connection whose source is translated.
	Outgoing(each func(from netip.Addr, protocol uint8, to netip.AddrPort)) error
}

// Userspace has the userspace datapath's connection table; [ovs.Client] is one.
type Userspace interface {
	UserspaceConnections(ctx context.Context) (used, size uint64, err error)
}

// Pods are what is attached; [attach.Attacher] is them.
type Pods interface{ List() []attach.Attachment }

// Config is whose tables are looked at, and what namespaces may.
type Config struct {
	Table     Table
	Gate      Gate
	Kernel    Kernel
	Userspace Userspace
	Pods      Pods
	Datapath  string
	// ServiceConnections and NodeConnections are the most new connections per second that
	// the pods of a namespace may make to services and through the node.
	ServiceConnections, NodeConnections fairness.Rate
	Metrics                             *Metrics
	Logger                              *slog.Logger
}

// Allotment keeps namespaces from using up the connection tables of the node. It belongs
// to one goroutine.
type Allotment struct {
	cfg Config
	// services are connections through the bridge, through those through the node.
	services, through *tableUse
	// ports are those by which connections through the node leave.
	ports portsUse
	looks int
	// passages are as last set, found as they were at the last look.
	passages, found map[string]hostnet.Passage
	holds           map[string]uint64
	counted         time.Time
	failed          map[string]*backoff.Trouble
}

// tableUse is what namespaces make of one connection table.
type tableUse struct {
	// limit is its name in metrics and log lines, flag what changes it.
	limit, flag string
	judge       fairness.Judge
	// last is what was asked for, for the metrics, said when a namespace was named in the log.
	last map[string]fairness.Asked
	said map[string]time.Time
	log  *slog.Logger
	m    *Metrics
}

// New returns an allotment that has not looked yet.
func New(cfg Config) *Allotment {
	a := &Allotment{cfg: cfg, looks: calmLooks - 1, failed: map[string]*backoff.Trouble{}, ports: portsUse{last: map[string]uint64{}, said: map[string]time.Time{}}}
	a.services = cfg.newTableUse("service-connections", "service-connection-rate", cfg.ServiceConnections)
	a.through = cfg.newTableUse("node-connections", "node-connection-rate", cfg.NodeConnections)
	return a
}

// Run looks at the connection tables until ctx ends.
func (a *Allotment) Run(ctx context.Context) error {
	tick := time.NewTicker(lookAtConnections)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			a.look(ctx)
		}
	}
}

func (cfg Config) newTableUse(limit, flag string, rate fairness.Rate) *tableUse {
	return &tableUse{
		limit: limit, flag: flag, judge: fairness.Judge{Rate: rate}, last: map[string]fairness.Asked{}, said: map[string]time.Time{},
		log: cfg.Logger, m: cfg.Metrics,
	}
}

// look does all there is to do about both tables. What fails is tried again at the next
// look: nobody waits for it.
func (a *Allotment) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	m, ready := a.cfg.Table.View()
	if !ready {
		return
	}
	a.looks++
	kernel, err := a.kernelTable()
	a.say("the node's connection table", err)
	if err == nil {
		a.countHolders(m.Nets, kernel)
		a.say("the limit of connections through the node", a.throughNode(ctx, kernel))
	}
	switch {
	case a.cfg.ServiceConnections == fairness.Off, m.ServiceProxy == pipeline.NoServices: // there, nor policies
	case a.cfg.Datapath == ovs.DatapathNetdev:
		a.say("the limit of connections through the bridge", a.throughBridge(ctx, nil))
	case err == nil:
		a.say("the limit of connections through the bridge", a.throughBridge(ctx, &kernel))
	}
}

// say logs what is wrong once.
func (a *Allotment) say(what string, err error) {
	if errors.Is(err, flowstore.ErrDisconnected) || errors.Is(err, context.Canceled) {
		err = nil // somebody else says it, or it is on purpose
	}
	if a.failed[what] == nil {
		a.failed[what] = &backoff.Trouble{}
	}
	if a.failed[what].News(err) {
		a.cfg.Logger.Warn("a tenant might use up what others need: "+what+" is not in force", "error", err)
	}
}

func (a *Allotment) kernelTable() (fairness.Table, error) {
	used, size, err := a.cfg.Kernel.Fill()
	if errors.Is(err, link.ErrNoSysctl) {
		return fairness.Table{Size: userspaceSize}, nil // nothing tracks connections yet
	}
	return fairness.Table{Size: size, Used: used}, err
}

// countHolders reads who holds what of the kernel's table, where that matters.
func (a *Allotment) countHolders(nets []pipeline.Net, t fairness.Table) {
	switch {
	case !t.Short():
		a.holds = nil
		return
	case time.Since(a.counted) < countHoldersEvery:
		return
	}
	a.counted = time.Now()
	counts := map[netip.Addr]uint64{}
	var errs []error
	for _, n := range nets {
		of, err := a.cfg.Kernel.BySource(n.Subnet)
		maps.Copy(counts, of)
		errs = append(errs, err)
	}
	a.say("the share of the node's connection table", errors.Join(errs...))
	a.holds = map[string]uint64{}
	for _, at := range a.cfg.Pods.List() {
		for _, address := range at.Addresses {
			a.holds[at.Namespace] += counts[address]
		}
	}
}

// throughBridge allots the connections to services, and those of pods that policies select; t is nil on the userspace datapath,
// which has a table of its own.
func (a *Allotment) throughBridge(ctx context.Context, t *fairness.Table) error {
	holds := a.holds
	if t == nil {
		used, size, err := a.cfg.Userspace.UserspaceConnections(ctx)
		if err != nil {
			return err
		}
		t, holds = &fairness.Table{Size: min(size, userspaceSize), Used: used}, nil
	}
	held := a.services.judge.Held()
	if a.due(*t) {
		demands, err := a.cfg.Table.Demands(ctx)
		if err != nil {
			return err
		}
		asked := make(map[string]fairness.Asked, len(demands))
		for namespace, d := range demands {
			// Connections of pods that policies select are in the same table.
			asked[namespace] = fairness.Asked{All: d.Connections + d.Judged, Refused: d.Refused, Judged: d.JudgedRefused}
		}
		held = a.services.next(*t, asked, holds)
		a.cfg.Metrics.tooLarge(demands)
		a.cfg.Metrics.judged(demands)
	}
	allowances := make(map[string]pipeline.Allowance, len(held))
	for namespace, h := range held {
		allowances[namespace] = pipeline.Allowance(h)
	}
	return a.cfg.Table.SetAllowances(ctx, pipeline.Allowance(a.cfg.ServiceConnections.Ceiling(t.Size)), allowances)
}

// due is whether it matters now who asks for connections.
func (a *Allotment) due(t fairness.Table) bool { return a.looks%calmLooks == 0 || t.Filling() }

// throughNode allots the connections through the node.
func (a *Allotment) throughNode(ctx context.Context, t fairness.Table) error {
	if a.cfg.NodeConnections == fairness.Off {
		return a.cfg.Gate.Remove(ctx)
	}
	held := a.through.judge.Held()
	if a.due(t) || a.ports.Matters(t) {
		asked, err := a.cfg.Gate.Asked(ctx)
		if err != nil {
			return err
		}
		held = a.through.next(t, asked, a.holds)
		a.say("the limit of connections to one destination", a.countPorts(t, asked))
	}
	want := map[string]hostnet.Passage{}
	all := a.cfg.NodeConnections.Ceiling(t.Size)
	for _, at := range a.cfg.Pods.List() {
		p, ok := want[at.Namespace]
		if !ok {
			p.Allowance = all
			if h, less := held[at.Namespace]; less {
				p.Allowance = h
			}
			p.Crowded = a.ports.Taken(at.Namespace)
		}
		p.Addresses = append(p.Addresses, at.Addresses...)
		want[at.Namespace] = p
	}
	if a.looks%calmLooks != 0 && !a.urgent(want) {
		return nil
	}
	err := a.cfg.Gate.Set(ctx, bridge.GatewayPort, all, want)
	a.passages = want
	if err != nil {
		a.passages = nil
	}
	return err
}

// urgent is whether what pods may through the node must be written now: at once where a
// namespace may more or less than before, or has its part of some ports, and when pods have stopped coming and going, which
// must not wait for the firewall.
func (a *Allotment) urgent(want map[string]hostnet.Passage) bool {
	settled := maps.EqualFunc(want, a.found, hostnet.Passage.Equal)
	a.found = want
	if settled && !maps.EqualFunc(want, a.passages, hostnet.Passage.Equal) {
		return true
	}
	for namespace, p := range want {
		if was, known := a.passages[namespace]; known && (was.Allowance != p.Allowance || len(was.Crowded)+len(p.Crowded) > 0 && !was.Equal(p)) {
			return true
		}
	}
	return false
}

// next is the judge's word on a table, told to whom it concerns.
func (u *tableUse) next(t fairness.Table, asked map[string]fairness.Asked, holds map[string]uint64) map[string]fairness.Allowance {
	now := time.Now()
	held := u.judge.Next(now, t, asked, holds)
	u.m.table(u.limit, t, len(held))
	for namespace, n := range asked {
		last := u.last[namespace]
		if last.Refused > n.Refused {
			last.Refused = 0
		}
		refused := n.Refused - last.Refused
		u.m.refused.WithLabelValues(namespace, u.limit).Add(float64(refused))
		if refused == 0 || now.Sub(u.said[namespace]) < sayAgain {
			continue
		}
		u.said[namespace] = now
		allowed, isHeld := held[namespace]
		if !isHeld {
			allowed = u.judge.Rate.Ceiling(t.Size)
		}
		u.log.Warn("new connections of a namespace are refused: it asks for more than it may; have its pods keep connections open, or raise the limit by the agent's flag or a larger connection table (net.netfilter.nf_conntrack_max)",
			"limit", u.limit, "flag", "--"+u.flag, "tenant", namespace, "refused", refused, "perSecond", allowed.Rate, "tableUsed", t.Used, "tableSize", t.Size)
	}
	for namespace := range u.last {
		if _, there := asked[namespace]; !there {
			u.m.refused.DeleteLabelValues(namespace, u.limit)
			delete(u.said, namespace)
		}
	}
	u.last = maps.Clone(asked)
	return held
}
