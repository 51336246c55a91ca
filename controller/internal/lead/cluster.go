package lead

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/k8s-ovs/k8s-ovs/controller/internal/admission"
	"github.com/k8s-ovs/k8s-ovs/controller/internal/cluster"
	"github.com/k8s-ovs/k8s-ovs/controller/internal/definitions"
	"github.com/k8s-ovs/k8s-ovs/controller/internal/policies"
	"github.com/k8s-ovs/k8s-ovs/controller/internal/subnet"
	"github.com/k8s-ovs/k8s-ovs/controller/internal/tenant"
	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// Cluster is the Kubernetes cluster that the records follow.
type Cluster struct {
	// API is the connection to its API server.
	API interface {
		cluster.API
		admission.API
		definitions.API
		policies.API
		WatchCluster(ctx context.Context) <-chan kube.Cluster
	}
	// SubnetSource says where the subnets of nodes come from.
	SubnetSource cluster.SubnetSource
	// Pod is what Events about the network configuration, and about the API server's policies
	// that are not in force, are about: the controller's own. Without a name none are sent.
	Pod kube.ObjectRef
}

// complain sends an Event about the network configuration.
func (c *Cluster) complain(err error) {
	if c.Pod.Name != "" {
		c.API.Event(c.Pod, true, cluster.ConfigRefused, err.Error())
	}
}

var errNoWorld = errors.New("the namespaces and nodes of the Kubernetes API server were not read yet")

// world holds what the API server said last.
type world struct {
	known   chan struct{} // closed when there is something
	changed chan struct{}

	mu     sync.Mutex // guards newest
	newest *kube.Cluster
}

func newWorld() *world {
	return &world{known: make(chan struct{}), changed: make(chan struct{}, 1)}
}

// follow takes in what comes until the channel is closed.
func (w *world) follow(updates <-chan kube.Cluster) {
	for c := range updates {
		w.mu.Lock()
		first := w.newest == nil
		w.newest = &c
		w.mu.Unlock()
		if first {
			close(w.known)
		}
		select {
		case w.changed <- struct{}{}:
		default:
		}
	}
}

// now is the newest; ok is false before there is any.
func (w *world) now() (c kube.Cluster, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.newest == nil {
		return kube.Cluster{}, false
	}
	return *w.newest, true
}

// fits says why the configuration cannot be in the Kubernetes cluster. It waits
// for the first word of the API server.
func (c *Controller) fits(ctx context.Context, network topology.Config) error {
	if c.world == nil {
		return nil
	}
	if _, ok := c.world.now(); !ok {
		c.setProblem(errNoWorld)
		c.log.Info("waiting for the Kubernetes API server before the network configuration is written")
		select {
		case <-c.world.known:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	now, _ := c.world.now()
	return cluster.Check(network, now)
}

// follower is what a term keeps of the Kubernetes cluster.
type follower struct {
	cluster  *Cluster
	planner  *cluster.Planner
	errands  *cluster.Errands
	guards   *admission.Keeper
	policies *policies.Keeper
	again    chan time.Duration
	misfit   backoff.Trouble // of the network configuration
}

func newFollower(c Config, w writer) *follower {
	api := c.Cluster.API
	return &follower{
		cluster: c.Cluster, planner: cluster.New(c.Cluster.SubnetSource), errands: cluster.NewErrands(api, c.Logger), again: make(chan time.Duration, 1),
		guards:   admission.New(admission.Config{API: api, Pod: c.Cluster.Pod, Absent: c.Metrics.policiesAbsent, Logger: c.Logger}),
		policies: policies.New(policies.Config{API: api, Nodes: c.Store, Writer: w, Counted: c.Metrics.networkPolicies, Now: c.Now, Logger: c.Logger}),
	}
}

// follow makes the calls that plans want until stop, and sends to events whenever
// there may be something new to plan.
func (t *term) follow(ctx context.Context) (events <-chan struct{}, stop func()) {
	if t.follower == nil {
		return nil, func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { t.follower.errands.Run(ctx) })
	running.Go(func() { t.follower.policies.Run(ctx) })
	running.Go(func() { t.follower.guards.Run(ctx) })
	running.Go(func() { definitions.Make(ctx, t.follower.cluster.API, t.log) })
	merged := make(chan struct{})
	running.Go(func() {
		var timer <-chan time.Time
		for {
			select {
			case <-ctx.Done():
				return
			case d := <-t.follower.again:
				timer = time.After(d)
				continue
			case <-t.c.world.changed:
			case <-t.follower.errands.News():
			case <-timer:
				timer = nil
			}
			select {
			case merged <- struct{}{}:
			case <-ctx.Done():
				return
			}
		}
	})
	return merged, func() { cancel(); running.Wait() }
}

// actCluster plans and writes what the Kubernetes cluster calls for. all is false where
// some of the plan was left for the next.
func (t *term) actCluster(ctx context.Context) (wrote, all bool, err error) {
	f := t.follower
	if f == nil {
		return false, true, nil
	}
	now, ok := t.c.world.now()
	if !ok {
		return false, true, nil
	}
	t.check(now)
	state := cluster.State{Cluster: now, Records: t.last, Empty: f.errands.Empty()}
	if state.AddressesDiffer() {
		if state.Reporting, err = t.reporting(ctx); err != nil {
			return false, true, err
		}
	}
	plan := f.planner.Plan(state, t.c.cfg.Now())
	f.errands.Set(plan)
	f.guards.Set(admission.Network{Config: t.last.Config, Addresses: plan.Addresses, Records: t.last.Nodes})
	t.c.cfg.Metrics.follows(now, plan)
	if !plan.Again.IsZero() {
		select {
		case f.again <- plan.Again.Sub(t.c.cfg.Now()):
		default:
		}
	}
	over := t.slice()
	for i, w := range plan.Writes {
		if i > 0 && over() {
			return true, false, nil
		}
		rev, err := t.writeCluster(ctx, w)
		if err != nil {
			return true, true, err
		}
		t.lastWrite = max(t.lastWrite, rev)
		t.logCluster(w, rev)
	}
	all, err = t.create(ctx, plan.New)
	return len(plan.Writes)+len(plan.New) > 0, all, err
}

// reporting are the addresses whose agents report.
func (t *term) reporting(ctx context.Context) (map[netip.Addr]bool, error) {
	live, err := t.c.cfg.Store.Statuses(ctx)
	if err != nil {
		return nil, err
	}
	addresses := map[netip.Addr]bool{}
	for ip := range live {
		addresses[ip] = true
	}
	return addresses, nil
}

// check warns of a configuration record that does not fit the cluster. It stands:
// there may be pods on it.
func (t *term) check(now kube.Cluster) {
	err := cluster.Check(t.last.Config, now)
	if !t.follower.misfit.News(err) {
		return
	}
	t.log.Warn("the network configuration in etcd does not fit the cluster; it stands", "error", err)
	t.follower.cluster.complain(err)
}

func (t *term) writeCluster(ctx context.Context, w cluster.Write) (int64, error) {
	switch {
	case w.Namespace != nil && w.Delete:
		return t.writer.DeleteNamespace(ctx, w.Key, w.Revision)
	case w.Namespace != nil:
		return t.writer.PutNamespace(ctx, w.Key, *w.Namespace, w.Revision)
	case w.Delete:
		return t.writer.DeleteNode(ctx, w.Key, w.Revision)
	}
	return t.writer.PutNode(ctx, w.Key, *w.Node, w.Revision)
}

func (t *term) logCluster(w cluster.Write, rev int64) {
	message, attrs := "wrote a record", []any{"why", w.Why, "revision", rev}
	if w.Delete {
		message = "deleted a record"
	}
	if w.Node != nil {
		t.log.Info(message, append([]any{"node", w.Node.Host, "key", w.Key}, attrs...)...)
		return
	}
	if w.Namespace.Action != topology.None && !w.Delete {
		attrs = append(attrs, "action", w.Namespace.Action)
	}
	t.log.Info(message, append([]any{"tenant", w.Key}, attrs...)...)
}

// tellTenant tells the users of a namespace what became of a request.
func (f *follower) tellTenant(w tenant.Write) {
	if f == nil || w.Namespace.UID == "" {
		return
	}
	object := cluster.NamespaceRef(w.Key, w.Namespace.UID)
	reasons := map[topology.Action]kube.EventReason{topology.Join: cluster.NetworkJoined, topology.Isolate: cluster.NetworkIsolated, topology.MakeGlobal: cluster.NetworkGlobal}
	switch {
	case w.Outcome == tenant.Refused, w.Outcome == tenant.Waiting:
		f.cluster.API.Event(object, true, cluster.NetworkRefused, w.Message+askedBy(w.By))
	case w.Outcome == tenant.Done && reasons[w.Action] != "":
		message := fmt.Sprintf("netID %d", *w.Namespace.Effective)
		if w.Namespace.Declared != "" && !w.Namespace.Forced {
			message += fmt.Sprintf(", by annotation %s: %s", topology.NetworkAnnotation, w.Namespace.Declared)
		}
		f.cluster.API.Event(object, false, reasons[w.Action], message+askedBy(w.By))
	}
}

// askedBy names who made a request, where that is known.
func askedBy(who string) string {
	if who == "" {
		return ""
	}
	return ", asked for by " + who
}

// tellNode tells what keeps a node from having a subnet.
func (f *follower) tellNode(w subnet.Write) {
	if f == nil || w.Node.UID == "" {
		return
	}
	switch w.Outcome {
	case subnet.Refused:
		f.cluster.API.Event(cluster.NodeRef(w.Node.Host), true, cluster.SubnetRefused, w.Message)
	case subnet.Waiting:
		f.cluster.API.Event(cluster.NodeRef(w.Node.Host), true, cluster.SubnetWaiting, w.Message)
	}
}
