// Package policies keeps the records of NetworkPolicies and ClusterNetworkPolicies: what those
// of the API server mean, and which addresses are in the sets that they name. docs/policy.md, "Records", has
// their forms, and who reads them.
//
// One [Keeper] works for one term of one leader. It compares what the records should be with
// what they are, so that it goes on where another leader stopped, and writes nothing before
// it knows all that they follow from. What it does for a change costs what the change
// touches.
package policies

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/policy"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

const (
	// writeEvery is how far apart writes begin at least: what comes meanwhile is written
	// together.
	writeEvery = 50 * time.Millisecond
	// writeTime is how long writing may go on before news are looked at.
	writeTime = 200 * time.Millisecond
	// tellAfter is how long after a change people are told of it.
	tellAfter = 200 * time.Millisecond
	// lookEvery is how often nodes are asked what they enforce, and lack.
	lookEvery = 30 * time.Second
	// rereadEvery is how often records are compared that somebody else may have changed.
	rereadEvery = 5 * time.Minute
	// maxChanges is how many changes are in a transaction.
	maxChanges = store.MaxBatch
	// maxRecord is the length of a record that etcd takes for sure, bytes.
	maxRecord = store.MaxBatchBytes - keyBytes
)

// API is what a Keeper needs of [kube.Client].
type API interface {
	WatchNetworkPolicies(ctx context.Context) *kube.Changes[policy.Key, kube.NetworkPolicy]
	WatchClusterNetworkPolicies(ctx context.Context) *kube.Changes[string, kube.ClusterNetworkPolicy]
	WatchNamespaceLabels(ctx context.Context) *kube.Changes[string, map[string]string]
	WatchPodLabels(ctx context.Context) *kube.Changes[kube.PodKey, kube.PodLabels]
	WatchPodPorts(ctx context.Context) *kube.Changes[kube.PodKey, kube.PodPorts]
	WatchNodeLabels(ctx context.Context) *kube.Changes[string, kube.NodeLabels]
	TellHonoured(ctx context.Context, p kube.ClusterNetworkPolicy, say kube.Honoured) error
	Event(object kube.ObjectRef, warning bool, reason kube.EventReason, message string)
}

// Nodes is what a Keeper needs of [store.Store].
type Nodes interface {
	WatchNodePods(ctx context.Context) <-chan store.NodePods
	Statuses(ctx context.Context) (map[netip.Addr]topology.NodeStatus, error)
}

// Config is what a Keeper needs.
type Config struct {
	API    API
	Nodes  Nodes
	Writer Writer
	// Counted hears how many things there are, whenever that may have changed.
	Counted func(Counts)
	Now     func() time.Time
	Logger  *slog.Logger
}

// Counts are for metrics.
type Counts struct {
	// Policies there are, of which NotEnforced some node does not enforce: NetworkPolicies,
	// and ClusterNetworkPolicies.
	Policies, NotEnforced               int
	ClusterPolicies, ClusterNotEnforced int
	// Sets of addresses, and Records of all kinds in etcd.
	Sets, Records int
	// Writes is how many records were written since this was last told.
	Writes int
}

// Keeper keeps the records.
type Keeper struct {
	cfg  Config
	log  *slog.Logger
	wake chan struct{}
	// settled is that the records were once in step.
	settled atomic.Bool

	mu      sync.Mutex // guards network and subnets
	network topology.Config
	subnets map[netip.Addr]topology.Node

	// What follows belongs to Run.
	state   *state
	records records
	begun   bool      // the state knows all that the records follow from
	sure    time.Time // when the records were read last; zero: they have to be
	writes  int
	known   inputs
	// waits is that the records have ClusterNetworkPolicies, which are not known yet.
	waits      bool
	notices    *notices
	conditions *conditions
	lacking    lacking
	pauses     backoff.Pauses
	trouble    backoff.Trouble
}

// inputs are what was told once.
type inputs struct{ policies, cluster, namespaces, labels, ports, hosts, pods, subnets bool }

// New makes a Keeper that does nothing before Run.
func New(cfg Config) *Keeper {
	return &Keeper{
		cfg: cfg, log: cfg.Logger, wake: make(chan struct{}, 1), state: newState(), notices: newNotices(), conditions: newConditions(cfg.API, cfg.Logger),
		records: records{is: map[store.PolicyKey]store.Versioned[string]{}, dirty: map[store.PolicyKey]bool{}, most: maxChanges},
		pauses:  backoff.Pauses{First: 100 * time.Millisecond, Last: 2 * time.Second},
	}
}

// SetNodes takes in the network's configuration and the nodes' records: only addresses in a node's
// own subnets are its pods', and none of another node's is its own.
func (k *Keeper) SetNodes(network topology.Config, nodes map[netip.Addr]topology.Node) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.network, k.subnets = network, nodes
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// Settled reports whether the records came to say what they should since this Keeper began.
func (k *Keeper) Settled() bool { return k.settled.Load() }

// aside is a watch that runs while it is needed.
type aside[K comparable, T any] struct {
	cancel context.CancelFunc
	*kube.Changes[K, T]
}

// run has it run or not, and reports whether it ended.
func (a *aside[K, T]) run(ctx context.Context, needed bool, watch func(context.Context) *kube.Changes[K, T]) (ended bool) {
	switch {
	case needed && a.cancel == nil:
		ctx, a.cancel = context.WithCancel(ctx)
		a.Changes = watch(ctx)
	case !needed && a.cancel != nil:
		a.cancel()
		drain(a.News())
		*a = aside[K, T]{}
		return true
	}
	return false
}

// watches are those that do not run always.
type watches struct {
	namespaces aside[string, map[string]string]
	labels     aside[kube.PodKey, kube.PodLabels]
	ports      aside[kube.PodKey, kube.PodPorts]
	hosts      aside[string, kube.NodeLabels]
}

// Run works until ctx ends, or somebody else leads.
func (k *Keeper) Run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	policies := k.cfg.API.WatchNetworkPolicies(ctx)
	cluster := k.cfg.API.WatchClusterNetworkPolicies(ctx)
	pods := k.cfg.Nodes.WatchNodePods(ctx)
	var w watches
	var telling sync.WaitGroup
	telling.Go(func() { k.conditions.run(ctx) })
	defer func() {
		cancel()
		drain(policies.News())
		drain(cluster.News())
		drain(pods)
		k.follow(ctx, &w, false, false, false)
		telling.Wait()
	}()
	// When to write, to look at what was kept for a while, and to tell people; soon says that
	// the last was set for what just changed.
	var write, later, tell <-chan time.Time
	soon := false
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	var written time.Time
	for {
		k.follow(ctx, &w, k.state.needed(), len(k.state.portNames) > 0, k.state.nodeSets > 0)
		news, looked := true, false
		select {
		case <-ctx.Done():
			return
		case <-k.wake:
			k.takeSubnets()
		case <-policies.News():
			k.takePolicies(ctx, policies)
			looked = true
		case <-cluster.News():
			k.takeClusterPolicies(ctx, cluster)
			looked = true
		case <-newsOf(w.namespaces.Changes):
			k.known.namespaces = take(w.namespaces.Changes, k.state.setNamespace) || k.known.namespaces
		case <-newsOf(w.labels.Changes):
			k.known.labels = take(w.labels.Changes, k.state.setLabels) || k.known.labels
		case <-newsOf(w.ports.Changes):
			k.known.ports = take(w.ports.Changes, k.state.setPorts) || k.known.ports
		case <-newsOf(w.hosts.Changes):
			k.known.hosts = take(w.hosts.Changes, k.state.setHost) || k.known.hosts
		case all, ok := <-pods:
			if !ok {
				return
			}
			k.state.setPods(all)
			k.known.pods = true
		case <-look.C:
			k.look(ctx)
			looked = true
		case <-tell:
			tell, soon, news = k.tell(), false, false
		case <-later:
		case <-write:
			write, news = nil, false
			if !k.ready() {
				continue // not any more: the first policy came meanwhile
			}
			written = time.Now()
			var leads bool
			if write, leads = k.attempt(ctx); !leads {
				return
			}
		}
		if looked && !soon {
			tell, soon = time.After(tellAfter), true
		}
		if news {
			later = k.expire()
			if write == nil && k.ready() {
				write = time.After(time.Until(written.Add(writeEvery)))
			}
		}
	}
}

// attempt writes, and returns when to write again; leads is false where another leads by now.
func (k *Keeper) attempt(ctx context.Context) (again <-chan time.Time, leads bool) {
	some, err := k.write(ctx)
	switch {
	case errors.Is(err, store.ErrDeposed):
		return nil, false
	case err != nil:
		return time.After(k.pauses.Next()), true
	case some:
		return time.After(0), true
	}
	k.settled.Store(true)
	return nil, true
}

// newsOf is where a watch says that there is something; nil where there is no watch.
func newsOf[K comparable, T any](c *kube.Changes[K, T]) <-chan struct{} {
	if c == nil {
		return nil
	}
	return c.News()
}

// take takes in what changed, and reports whether all is known.
func take[K comparable, T any](c *kube.Changes[K, T], set func(K, *T)) bool {
	changed, ok := c.Take()
	for key, v := range changed {
		set(key, v)
	}
	return ok
}

// drain waits until a channel is closed.
func drain[T any](c <-chan T) {
	for range c {
	}
}

// follow has those watches run that are needed: for pods and namespaces, for ports, for nodes.
func (k *Keeper) follow(ctx context.Context, w *watches, needed, ports, hosts bool) {
	api := k.cfg.API
	spaces := w.namespaces.run(ctx, needed, api.WatchNamespaceLabels)
	if w.labels.run(ctx, needed, api.WatchPodLabels) || spaces {
		k.known.namespaces, k.known.labels = false, false
		k.state.forget()
	}
	if w.ports.run(ctx, ports, api.WatchPodPorts) {
		k.known.ports = false
		k.state.forgetPorts()
	}
	if w.hosts.run(ctx, hosts, api.WatchNodeLabels) {
		k.known.hosts = false
		k.state.forgetHosts()
	}
}

func (k *Keeper) takeSubnets() {
	k.mu.Lock()
	network, subnets := k.network, k.subnets
	k.mu.Unlock()
	k.state.setSubnets(subnets)
	k.state.setNetwork(network, subnets)
	k.known.subnets = true
}

// takePolicies takes in the policies that changed.
func (k *Keeper) takePolicies(ctx context.Context, changes *kube.Changes[policy.Key, kube.NetworkPolicy]) {
	none := len(k.state.policies) == 0
	now := k.cfg.Now()
	k.known.policies = take(changes, k.state.hear) || k.known.policies
	k.state.admit(now)
	if none && len(k.state.policies) > 0 {
		k.look(ctx)
	}
}

// takeClusterPolicies takes in the ClusterNetworkPolicies that changed.
func (k *Keeper) takeClusterPolicies(ctx context.Context, changes *kube.Changes[string, kube.ClusterNetworkPolicy]) {
	none := len(k.state.cluster) == 0
	now := k.cfg.Now()
	k.known.cluster = take(changes, func(name string, p *kube.ClusterNetworkPolicy) { k.state.setClusterPolicy(name, p, now) }) || k.known.cluster
	if none && len(k.state.cluster) > 0 {
		k.look(ctx)
	}
}

// look asks which live nodes cannot do all that policies ask for.
func (k *Keeper) look(ctx context.Context) {
	if len(k.state.policies)+len(k.state.cluster) == 0 {
		return
	}
	live, err := k.cfg.Nodes.Statuses(ctx)
	if err != nil {
		return // etcd's absence is told of where records are written; what was known stands
	}
	var now lacking
	for _, st := range live {
		policies, cluster := slices.Contains(st.Enforces, topology.EnforcesNetworkPolicy), slices.Contains(st.Enforces, topology.EnforcesClusterNetworkPolicy)
		if !policies {
			now.policies = append(now.policies, st.Host)
		}
		if !cluster {
			now.cluster = append(now.cluster, st.Host)
		}
		if (policies || cluster) && slices.Contains(st.Lacks, topology.LacksSCTPPorts) {
			now.sctp = append(now.sctp, st.Host)
		}
	}
	for _, hosts := range [][]string{now.policies, now.cluster, now.sctp} {
		slices.Sort(hosts)
	}
	k.logLacking("NetworkPolicies", len(k.state.policies), k.lacking.policies, now.policies)
	k.logLacking("ClusterNetworkPolicies", len(k.state.cluster), k.lacking.cluster, now.cluster)
	k.lacking = now
}

// logLacking says which nodes do not enforce a kind of policies, when there are some of it.
func (k *Keeper) logLacking(kind string, count int, was, now []string) {
	switch {
	case count == 0:
	case len(now) == 0 && len(was) > 0:
		k.log.Info(kind + " are enforced on all nodes")
	case len(now) > 0 && !slices.Equal(now, was):
		k.log.Warn("there are "+kind+", which some nodes do not enforce", "count", count, "nodes", list(now))
	}
}

// tell sends the Events that are due, has conditions written, and returns when to ask again.
func (k *Keeper) tell() <-chan time.Time {
	k.count()
	k.conditions.set(k.state.cluster)
	now := k.cfg.Now()
	due, again := k.notices.due(k.state.notices(k.lacking), now)
	for _, n := range due {
		k.cfg.API.Event(n.object, true, n.reason, n.text())
	}
	if again.IsZero() {
		return nil
	}
	return time.After(again.Sub(now))
}

func (k *Keeper) count() {
	c := Counts{Policies: len(k.state.policies), ClusterPolicies: len(k.state.cluster), Sets: len(k.state.sets), Records: len(k.records.is), Writes: k.writes}
	if len(k.lacking.policies) > 0 {
		c.NotEnforced = c.Policies
	}
	if len(k.lacking.cluster) > 0 {
		c.ClusterNotEnforced = c.ClusterPolicies
	}
	k.writes = 0
	k.cfg.Counted(c)
}

// expire drops what was kept for a while, and returns when to do so again.
func (k *Keeper) expire() <-chan time.Time {
	now := k.cfg.Now()
	dropped, again := k.state.expire(now)
	for _, hash := range dropped {
		k.records.drop(hash)
	}
	if again.IsZero() {
		return nil
	}
	return time.After(again.Sub(now))
}

// ready reports whether all is known that the records follow from. The first policy, or the
// first that names a port or nodes, waits until pods or nodes are known: sets that are not whole
// would cut off whom it allows, and let through whom it denies. ClusterNetworkPolicies may be
// unknown for long, where a role from before them does not let this program see them; that
// holds nothing up unless there are some in the records.
func (k *Keeper) ready() bool {
	n := k.known
	return n.policies && n.pods && n.subnets &&
		(n.cluster || !k.waits) &&
		(n.namespaces && n.labels || !k.state.needed()) &&
		(n.ports || len(k.state.portNames) == 0) &&
		(n.hosts || k.state.nodeSets == 0)
}

// write brings the records to what they should be. again says that some are left.
func (k *Keeper) write(ctx context.Context) (again bool, err error) {
	if k.sure.IsZero() || k.cfg.Now().Sub(k.sure) >= rereadEvery {
		if done, err := k.reread(ctx); !done || err != nil {
			return false, k.failed(ctx, err)
		}
	}
	groups, end := k.plan(), time.Now().Add(writeTime)
	for len(groups) > 0 {
		if time.Now().After(end) {
			return true, nil
		}
		var changes []store.PolicyChange
		changes, groups = batch(groups, k.records.most)
		rev, err := k.cfg.Writer.PutPolicies(ctx, changes)
		if errors.Is(err, store.ErrInvalid) {
			k.refused(changes, err)
			return true, nil
		}
		if err != nil {
			return false, k.failed(ctx, err)
		}
		k.records.wrote(changes, rev)
		for _, c := range changes {
			if c.Value == "" {
				delete(k.state.refused, c.Key)
			}
		}
		k.writes += len(changes)
	}
	k.pauses.Reset()
	if k.trouble.Over() {
		k.log.Info("the records of policies are up to date again")
	}
	k.count()
	return false, nil
}

// plan is what is to be written. Where the length of one record changes what another is to be, that
// is looked at too.
func (k *Keeper) plan() []group {
	for {
		maps.Copy(k.records.dirty, k.state.take())
		if groups := k.records.plan(k.should); len(k.state.touched) == 0 {
			return groups
		}
	}
}

// refused takes in that etcd takes less than was thought: in a transaction, or as one record. That
// one is closed, so that it holds up none of the others.
func (k *Keeper) refused(changes []store.PolicyChange, err error) {
	if len(changes) > 1 {
		k.records.most = max(1, len(changes)/2)
		return
	}
	k.records.most = maxChanges
	c := changes[0]
	k.log.Error("etcd does not take a record of policies, and what needs it is closed; let etcd have its default of --max-request-bytes, 1.5 MiB, at least", "record", c.Key, "bytes", len(c.Value), "error", err)
	k.state.refuse(c.Key, len(c.Value), k.cfg.Now())
}

// reread reads the records as they stand. done is false where what former leaders left has
// to be looked into first: sets that no policy names need what sets need.
func (k *Keeper) reread(ctx context.Context) (done bool, err error) {
	is, err := k.cfg.Writer.PolicyRecords(ctx)
	if err != nil {
		return false, err
	}
	k.records.reread(is)
	k.sure = k.cfg.Now()
	k.waits = hasClusterPolicies(is)
	if k.begun && k.ready() {
		return true, nil
	}
	if !k.begun {
		k.state.begin(is, k.cfg.Now())
	}
	if !k.ready() {
		k.sure = time.Time{}
		return false, nil
	}
	k.begun = true
	return true, nil
}

// hasClusterPolicies reports whether ClusterNetworkPolicies are among the records.
func hasClusterPolicies(is map[store.PolicyKey]store.Versioned[string]) bool {
	for key := range is {
		if kindOf(key) == "clusterpolicies" {
			return true
		}
	}
	return false
}

// failed takes in that records may be other than was thought.
func (k *Keeper) failed(ctx context.Context, err error) error {
	if err == nil || ctx.Err() != nil {
		return err
	}
	k.sure = time.Time{}
	if !errors.Is(err, store.ErrConflict) && k.trouble.News(err) {
		k.log.Warn("cannot write the records of policies; trying again", "error", err)
	}
	return err
}

// should is what a record is to be; not ok where that cannot be written.
func (k *Keeper) should(key store.PolicyKey) (value string, ok bool) {
	value, err := k.state.should(key)
	if err != nil {
		k.log.Error("a record of policies is left as it is", "record", key, "error", err)
	}
	return value, err == nil
}
