package nodeflows

import (
	"context"
	"errors"
	"maps"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/flowstore"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
)

// DefaultAllowance is what namespaces may until the table is told otherwise: what
// [Table.SetAllowances] is told of a connection table of the usual size.
var DefaultAllowance = pipeline.Allowance{Rate: 16384, Burst: 16384}

// fairness is what the namespaces that have pods here may use of what the node has once.
type fairness struct {
	// numbers are those of their meters.
	numbers map[string]uint32
	taken   map[uint32]bool
	// all may as much as that, but for those in held, who may less.
	all  pipeline.Allowance
	held map[string]pipeline.Allowance
	// off is that nobody is held back, unmetered why it cannot be done.
	off       bool
	unmetered error
	// judged is what the meters of selected pods had counted when they were read last, by their numbers,
	// asked what that came to by namespace.
	judged map[uint32]judgedCount
	asked  map[string]judgedCount
}

// judgedCount is how many new connections of selected pods there were, and how many of them were refused.
type judgedCount struct{ all, refused uint64 }

func newFairness() fairness {
	return fairness{
		numbers: map[string]uint32{}, taken: map[uint32]bool{}, all: DefaultAllowance,
		judged: map[uint32]judgedCount{}, asked: map[string]judgedCount{},
	}
}

// assign gives a namespace its meters where it has none. Their number follows from its
// slot, so that an agent that restarts finds its flows unchanged; of two that would have
// the same, one gets the next free. There are none when all are taken.
func (f *fairness) assign(namespace string, slot uint32) {
	if _, ok := f.numbers[namespace]; ok || len(f.taken) == pipeline.MaxMetered {
		return
	}
	n := slot % pipeline.MaxMetered
	for f.taken[n] {
		n = (n + 1) % pipeline.MaxMetered
	}
	f.numbers[namespace], f.taken[n] = n, true
}

func (f *fairness) release(namespace string) {
	if n, ok := f.numbers[namespace]; ok {
		delete(f.numbers, namespace)
		delete(f.taken, n)
	}
}

// meters are those of a namespace.
func (f *fairness) meters(namespace string) pipeline.TenantMeters {
	n, ok := f.numbers[namespace]
	if !ok || f.unmetered != nil {
		return pipeline.TenantMeters{}
	}
	m := pipeline.MetersOf(n)
	if f.off {
		m.New = 0
	}
	return m
}

func (f *fairness) allowance(namespace string) pipeline.Allowance {
	if a, held := f.held[namespace]; held {
		return a
	}
	return f.all
}

// Unlimited says that no namespace is held back from making connections. It is called
// before anything else.
func (t *Table) Unlimited() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.tenants.fair.off = true
}

// SetAllowances makes what namespaces may: held those named, all the others. No flow
// changes. It fails with [flowstore.ErrDisconnected] or an error of the switch; then
// Resync brings it in.
func (t *Table) SetAllowances(ctx context.Context, all pipeline.Allowance, held map[string]pipeline.Allowance) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := &t.tenants.fair
	if f.off || f.all == all && maps.Equal(f.held, held) {
		return nil
	}
	f.all, f.held = all, maps.Clone(held)
	switch {
	case t.model == nil && !t.store.Connected():
		return flowstore.ErrDisconnected
	case t.model == nil || t.stale:
		t.stale = true // the next change brings it in
		return nil
	}
	var c flowstore.Change
	c.All(KindFairness)
	for n := range f.numbers {
		c.Set(flowstore.Owner{Kind: KindFairness, Name: n}, flowstore.Want{Meters: t.fairMeters(t.tenantModel(n), n)})
	}
	_, err := t.store.Set(ctx, c)
	return t.unmeter(err)
}

// unmeter notes that the switch does not take a meter of a namespace, or of what policies deny:
// the next attempt is made without them, as pods come first. err is what a change ended with; an answer that did
// not come in time says nothing about meters.
func (t *Table) unmeter(err error) error {
	var failed *flowstore.MeterError
	var refused *of.SwitchError
	if !errors.As(err, &failed) || !failed.New || !errors.As(failed.Err, &refused) {
		return err
	}
	switch {
	case ofFairness(failed.Meter.ID):
		t.tenants.fair.unmetered = failed.Err
		t.stale = true
	case pipeline.OfDenied(failed.Meter.ID):
		t.denied.unmetered = failed.Err
		t.stale, t.model.TellsDenied = true, false
	}
	return err
}

func ofFairness(meter uint32) bool { return pipeline.OfTenant(meter) || pipeline.OfConnections(meter) }

// Demand is what a namespace has asked for since its meters were made or, in userspace,
// changed.
type Demand struct {
	// Connections to services, and those of them that were refused, packets.
	Connections, Refused uint64
	// Judged are the connections of pods that policies select, JudgedRefused those of them
	// that were refused for their number, packets. They only grow, whichever pods go.
	Judged, JudgedRefused uint64
	// TooLarge are packets that were too large for their path, Untold those of them
	// whose sender was not told.
	TooLarge, Untold uint64
}

// Demands are those of the namespaces that have meters. It fails with
// [flowstore.ErrDisconnected], an error of the switch, or why the switch has no meters for
// them.
func (t *Table) Demands(ctx context.Context) (map[string]Demand, error) {
	t.mu.Lock()
	f := &t.tenants.fair
	unmetered := f.unmetered
	owners := make(map[uint32]string, 2*len(f.numbers))
	demands := make(map[string]Demand, len(f.numbers))
	for namespace := range f.numbers {
		m := f.meters(namespace)
		owners[m.New], owners[m.TooLarge] = namespace, namespace
	}
	for port, a := range t.attached {
		if t.connectionsMetered(a) {
			owners[pipeline.ConnectionsOf(port)] = a.Namespace
		}
	}
	t.mu.Unlock()
	switch {
	case !t.store.Connected():
		return nil, flowstore.ErrDisconnected
	case unmetered != nil:
		return nil, unmetered
	case len(owners) == 0:
		return demands, nil
	}
	counters, err := t.store.MeterCounters(ctx)
	if err != nil {
		return nil, err
	}
	judged := t.countJudged(counters, owners)
	for _, c := range counters {
		namespace, ok := owners[c.ID]
		if !ok {
			continue
		}
		d := demands[namespace]
		switch {
		case pipeline.OfConnections(c.ID):
			d.Judged, d.JudgedRefused = judged[namespace].all, judged[namespace].refused
		case pipeline.CountsTooLarge(c.ID):
			d.TooLarge, d.Untold = c.Packets, c.Dropped
		default:
			d.Connections, d.Refused = c.Packets, c.Dropped
		}
		demands[namespace] = d
	}
	return demands, nil
}

// countJudged adds what the meters of selected pods have counted since it was called last, and returns what that
// came to by namespace. A meter counts anew where its pod is another one or, in userspace, where it was changed.
func (t *Table) countJudged(counters []of.MeterCounters, owners map[uint32]string) map[string]judgedCount {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := &t.tenants.fair
	now := map[uint32]judgedCount{}
	for _, c := range counters {
		namespace, ok := owners[c.ID]
		if !ok || !pipeline.OfConnections(c.ID) {
			continue
		}
		last := f.judged[c.ID]
		if last.all > c.Packets || last.refused > c.Dropped {
			last = judgedCount{}
		}
		sum := f.asked[namespace]
		f.asked[namespace] = judgedCount{sum.all + c.Packets - last.all, sum.refused + c.Dropped - last.refused}
		now[c.ID] = judgedCount{c.Packets, c.Dropped}
	}
	f.judged = now
	maps.DeleteFunc(f.asked, func(namespace string, _ judgedCount) bool { _, there := f.numbers[namespace]; return !there })
	return maps.Clone(f.asked)
}
