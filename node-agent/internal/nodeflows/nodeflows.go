// Package nodeflows produces the flows of br0 but for those of services and of what policies
// allow: of the node itself, its peers, the namespaces that have pods here or serve, and the pods. It holds
// the picture that they follow from (records, ports, attached pods), and gives what each
// owner wants to the flow store. It never talks to the switch.
//
// Nothing is written or removed before it knows the records and the ports.
package nodeflows

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/flowstore"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	"github.com/k8s-ovs/k8s-ovs/pkg/batch"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
)

// The kinds of owners. A namespace that has meters is one of fairness besides, so that
// what it may changes without its flows.
const (
	KindNode     flowstore.Kind = "node"
	KindPeer     flowstore.Kind = "peer"
	KindTenant   flowstore.Kind = "tenant"
	KindFairness flowstore.Kind = "fairness"
	KindPod      flowstore.Kind = "pod"
)

var kinds = []flowstore.Kind{KindNode, KindPeer, KindTenant, KindFairness, KindPod}

// AreaName is that of the flows of this package.
const AreaName = "the node"

// Area is all flows of the bridge but those of services and of what policies allow, and all
// its meters.
func Area() flowstore.Area {
	cookie, mask := pipeline.Others()
	return flowstore.Area{Name: AreaName, Cookie: cookie, Mask: mask, Kinds: kinds, Meters: true}
}

// Store is where flows go; [flowstore.Store] is one.
type Store interface {
	Connected() bool
	Try(ctx context.Context, c flowstore.Change) error
	Set(ctx context.Context, c flowstore.Change) (flowstore.Result, error)
	Read(ctx context.Context, area string) ([]of.FlowStats, error)
	Resync(ctx context.Context, area string) (flowstore.Result, error)
	Check(ctx context.Context, owners ...flowstore.Owner) ([]string, error)
	MeterCounters(ctx context.Context) ([]of.MeterCounters, error)
	Nudge(ctx context.Context, f of.Flow) error
}

// Observer is told about what the switch counts; for metrics.
type Observer interface {
	// Dropped: n more packets were dropped for a reason.
	Dropped(reason pipeline.Reason, n uint64)
}

// Table is the picture of one node. Its methods may be called at once.
type Table struct {
	self     netip.Addr
	store    Store
	observer Observer
	view     atomic.Pointer[View]

	mu      sync.Mutex
	records *topology.Snapshot
	ports   *desired.Ports
	// udp are the UDP ports of the tunnels.
	udp []tunnel.Port
	// attached is by port.
	attached map[uint32]desired.Attached
	tenants  tenants
	// model without pods, as of the last refresh; nil until there is one. modelled are the
	// records that it is of, nil where it could not be made of the newest, and leftOut what
	// it lacks of them.
	model    *pipeline.Model
	modelled *topology.Snapshot
	leftOut  []desired.Problem
	proxy    pipeline.ServiceProxy
	denied   denied
	// pathMTUs are of the peers, by VTEP, whose paths carry less than pods' devices.
	pathMTUs map[netip.Addr]int
	lag
	drops counted
	// changing lets pods that come and go at once share a bundle.
	changing *batch.Batch[change, error]
}

// lag is how far the store and the switch may be behind the picture.
type lag struct {
	// stale is that all owners may want something else than the store knows.
	stale bool
	// failed is that the last attempt to bring all of it into the switch did.
	failed bool
	// unsettled is that flows may have changed since [Table.SetRecords] last told so.
	unsettled bool
	// waiting are the owners that others keep from what they want. They are no reason to
	// keep all others from the network.
	waiting []flowstore.Owner
}

// tenants are the namespaces that have pods here or serve.
type tenants struct {
	// slots are of all of them, members counts the pods.
	slots   desired.Slots
	members map[string]int
	fair    fairness
	serving map[string]bool
	// recalled is that serving was read back from the switch, or told.
	recalled bool
}

// New makes the table of the node with VTEP address self, whose tunnels have the UDP ports udp; none where
// [Table.SetUDPPorts] says them before the table is connected to a switch.
func New(self netip.Addr, udp []tunnel.Port, store Store, observer Observer) *Table {
	t := &Table{
		self: self, udp: slices.Clone(udp), store: store, observer: observer,
		attached: map[uint32]desired.Attached{},
		tenants:  tenants{slots: desired.Slots{}, members: map[string]int{}, serving: map[string]bool{}, fair: newFairness()},
		drops:    counted{flows: map[string]uint64{}, meters: map[uint32]uint64{}},
	}
	t.changing = batch.New(changedAtOnce, t.change)
	return t
}

// SetRecords makes s the records that the flows follow, in one bundle, and
// reports whether flows may have changed since it last did so: also by what else brings
// the picture into the switch, and by a bundle whose answer was lost. The problems are
// records that this node leaves out, and pods that wait for what another has.
func (t *Table) SetRecords(ctx context.Context, s topology.Snapshot) (problems []desired.Problem, changed bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.records = &s
	if namespaces, ports, ok := t.moved(); ok {
		err = t.follow(ctx, namespaces, ports)
	} else {
		err = t.refresh(ctx)
	}
	problems = t.problems()
	if err != nil {
		// Whatever the next change of a pod brings in of these records is news of them.
		t.unsettled = t.unsettled || !errors.Is(err, flowstore.ErrNotReady)
		return problems, false, err
	}
	changed, t.unsettled = t.unsettled, false
	return problems, changed, nil
}

// moved are the namespaces and the ports of pods whose flows follow from the records otherwise than
// from those of the model; ok is false where more than these may have changed, or something was not
// brought in.
func (t *Table) moved() (namespaces []string, ports []uint32, ok bool) {
	was, now := t.modelled, t.records
	if was == nil || t.stale || t.failed || len(t.waiting) > 0 || !was.Config.Equal(now.Config) || !maps.EqualFunc(was.Nodes, now.Nodes, topology.Node.Equal) {
		return nil, nil, false
	}
	for n := range t.tenants.slots {
		before, had := was.Tenancy(n)
		if after, has := now.Tenancy(n); after != before || has != had {
			namespaces = append(namespaces, n)
		}
	}
	for port, a := range t.attached {
		if was.Namesake(a.Namespace, a.NamespaceUID) != now.Namesake(a.Namespace, a.NamespaceUID) {
			ports = append(ports, port)
		}
	}
	return namespaces, ports, true
}

// follow brings in the records where all that they change is the netIDs of some namespaces, and
// which pods are of them.
func (t *Table) follow(ctx context.Context, namespaces []string, ports []uint32) error {
	t.modelled = t.records
	c := t.want(ports, namespaces)
	c.Set(t.own()) // so that the store looks at what else is behind
	return t.give(ctx, c)
}

// Nudge makes the switch compare the flows that its datapath cached with its
// tables, by a flow of a table that no packet reaches.
func (t *Table) Nudge(ctx context.Context) error { return t.store.Nudge(ctx, pipeline.Nudge()) }

// SetPorts makes p the numbers of the bridge's own ports.
func (t *Table) SetPorts(ctx context.Context, p desired.Ports) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ports != nil && t.ports.Equal(p) {
		return t.again(ctx)
	}
	t.ports = &p
	err := t.refresh(ctx)
	if errors.Is(err, flowstore.ErrNotReady) {
		return nil
	}
	return err
}

// again brings in what the last attempt did not: who tells the table once more what it knows
// wants it in the switch. Without a connection the next one does.
func (t *Table) again(ctx context.Context) error {
	if !t.failed || !t.store.Connected() {
		return nil
	}
	return t.bring(ctx)
}

// Load puts pods into the picture without touching the switch: what was
// attached before the agent started. No two have one port.
func (t *Table) Load(pods []desired.Attached) {
	t.mu.Lock()
	defer t.mu.Unlock()
	// In order of name, so that slots are the same after every start.
	pods = slices.SortedFunc(slices.Values(pods), func(a, b desired.Attached) int { return strings.Compare(a.Namespace, b.Namespace) })
	for _, p := range pods {
		t.take(p)
	}
	t.stale = true
}

// take puts a pod into the picture, instead of one with the same port.
func (t *Table) take(p desired.Attached) {
	t.leave(p.Port)
	t.attached[p.Port] = p
	n := &t.tenants
	n.members[p.Namespace]++
	n.slots.Assign(p.Namespace)
	n.fair.assign(p.Namespace, n.slots[p.Namespace])
}

// leave takes the pod with that port out of the picture, and its namespace's
// slot with the last one.
func (t *Table) leave(port uint32) {
	p, ok := t.attached[port]
	if !ok {
		return
	}
	delete(t.attached, port)
	n := &t.tenants
	if n.members[p.Namespace]--; n.members[p.Namespace] == 0 {
		delete(n.members, p.Namespace)
		n.fair.release(p.Namespace)
		n.release(p.Namespace)
	}
}

// podOwner is the pod with that port.
func podOwner(port uint32) flowstore.Owner {
	return flowstore.Owner{Kind: KindPod, Name: strconv.FormatUint(uint64(port), 10)}
}

// pod is what the pod with that port wants: nothing where there is none, and where its Namespace
// is gone and another has the name, whose netID is not the pod's.
func (t *Table) pod(port uint32) (w flowstore.Want) {
	a, ok := t.attached[port]
	if !ok || t.records.Namesake(a.Namespace, a.NamespaceUID) {
		return w
	}
	p := desired.Pod(t.tenants.slots, a)
	if t.connectionsMetered(a) {
		p.Connections = pipeline.ConnectionsOf(port)
	}
	w.Flows = t.model.Pod(p)
	if a.Meter.Rate > 0 {
		w.Meters = []of.Meter{meter(a)}
	}
	return w
}

// setTenant puts into c what a namespace wants: nothing without a slot.
func (t *Table) setTenant(c *flowstore.Change, namespace string) {
	var flows, meters flowstore.Want
	if _, ok := t.tenants.slots[namespace]; ok {
		m := t.tenantModel(namespace)
		flows.Flows = t.model.Tenant(m)
		meters.Meters = t.fairMeters(m, namespace)
	}
	c.Set(flowstore.Owner{Kind: KindTenant, Name: namespace}, flows)
	c.Set(flowstore.Owner{Kind: KindFairness, Name: namespace}, meters)
}

func (t *Table) tenantModel(namespace string) pipeline.Tenant {
	m := desired.Tenant(*t.records, t.tenants.slots, namespace)
	m.Serves = t.tenants.serving[namespace]
	m.Meters = t.tenants.fair.meters(namespace)
	return m
}

// peerOwner is the owner of the peer's flows: another one for each tunnel port.
func peerOwner(p pipeline.Peer) flowstore.Owner {
	return flowstore.Owner{Kind: KindPeer, Name: p.VTEP.String() + " by port " + strconv.FormatUint(uint64(p.Port), 10)}
}

// own is what the node itself wants.
func (t *Table) own() (flowstore.Owner, flowstore.Want) {
	return flowstore.Owner{Kind: KindNode}, flowstore.Want{Flows: t.model.Own(), Meters: t.model.Meters()}
}

// all is what all owners want.
func (t *Table) all() (c flowstore.Change) {
	c.All(kinds...)
	c.Set(t.own())
	for _, p := range t.model.Peers {
		c.Set(peerOwner(p), flowstore.Want{Flows: t.model.Peer(p)})
	}
	for n := range t.tenants.slots {
		t.setTenant(&c, n)
	}
	for port := range t.attached {
		c.Set(podOwner(port), t.pod(port))
	}
	return c
}

// Connected says that the switch is another one, and brings it to the picture: what it
// has is read, and only the difference is written.
func (t *Table) Connected(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.tenants.fair.unmetered, t.denied.unmetered = nil, nil
	if t.model == nil {
		return nil
	}
	t.model.TellsDenied = t.denied.told
	err := t.bring(ctx)
	for range 2 { // it has just found out that the switch has not those meters, or not these
		if err != nil && t.stale {
			err = t.bring(ctx)
		}
	}
	return err
}

// Resync reads the switch, puts right what differs from the picture, and counts what was
// dropped since. Pods come and go meanwhile.
func (t *Table) Resync(ctx context.Context) error {
	t.drops.mu.Lock()
	defer t.drops.mu.Unlock()
	measures, err := t.beforeResync(ctx)
	if err != nil {
		return err
	}
	r, err := t.store.Resync(ctx, AreaName)
	if r.Found != nil {
		t.countDrops(r.Found)
	}
	switch {
	case err != nil:
		t.mu.Lock()
		defer t.mu.Unlock()
		return t.unmeter(err)
	case measures:
		return t.countTooLarge(ctx)
	}
	clear(t.drops.meters)
	return nil
}

// beforeResync has the store know all that is wanted, and reports whether packets that are
// too large for their path are counted.
func (t *Table) beforeResync(ctx context.Context) (measures bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.model == nil {
		return false, flowstore.ErrNotReady
	}
	if t.stale || !t.tenants.recalled {
		err = t.bring(ctx)
	}
	return t.model.Measures(), err
}

// Check compares the flows of the pod with that port with the picture and says what
// differs, nothing where all is as it should be.
func (t *Table) Check(ctx context.Context, port uint32) ([]string, error) {
	t.mu.Lock()
	a, ok := t.attached[port]
	known := t.model != nil
	outlived := known && ok && t.records.Namesake(a.Namespace, a.NamespaceUID)
	t.mu.Unlock()
	switch {
	case !known:
		return nil, flowstore.ErrNotReady
	case !t.store.Connected():
		return nil, flowstore.ErrDisconnected
	case !ok:
		return []string{fmt.Sprintf("no pod is attached at port %d", port)}, nil
	case outlived:
		return []string{fmt.Sprintf("it came in a Namespace %s (UID %s) that is gone, and another one has that name: it has no network, as it is not that one's; delete the pod", a.Namespace, a.NamespaceUID)}, nil
	}
	return t.store.Check(ctx, podOwner(port), flowstore.Owner{Kind: KindTenant, Name: a.Namespace})
}

// Peers are the other nodes in the picture.
func (t *Table) Peers() []pipeline.Peer {
	if v := t.view.Load(); v != nil {
		return slices.Clone(v.Peers)
	}
	return nil
}

// refresh computes the model anew and has the switch follow.
func (t *Table) refresh(ctx context.Context) error {
	if t.records == nil || t.ports == nil {
		return flowstore.ErrNotReady
	}
	m, leftOut, err := desired.Node(*t.records, t.self, *t.ports, t.udp, nil, nil)
	if err != nil {
		// The node lost its place in the network. What it has stays: its pods keep
		// their network, and the caller says why nothing new is applied.
		t.modelled = nil
		return err
	}
	m.ServiceProxy, m.TellsDenied = t.proxy, t.denied.told && t.denied.unmetered == nil
	t.withPathMTUs(&m)
	t.model, t.modelled, t.leftOut = &m, t.records, leftOut
	t.publish()
	return t.bring(ctx)
}

// problems are the records that this node leaves out, and the pods that wait for what another has.
func (t *Table) problems() []desired.Problem {
	if t.modelled == nil {
		return nil
	}
	problems := slices.Clone(t.leftOut)
	for _, o := range t.waiting {
		problems = append(problems, desired.Problem{Record: t.describe(o), Why: "another has its flows or its meter otherwise: it waits until that is gone"})
	}
	return problems
}

// describe is an owner in words: a pod with its addresses.
func (t *Table) describe(o flowstore.Owner) string {
	for port, a := range t.attached {
		if o == podOwner(port) {
			return fmt.Sprintf("%s of namespace %s with %v", o, a.Namespace, a.Addresses)
		}
	}
	return o.String()
}

// bring gives the store all that is wanted, and has the switch follow.
func (t *Table) bring(ctx context.Context) error {
	if !t.tenants.recalled {
		found, err := t.store.Read(ctx, AreaName)
		switch {
		case err == nil:
			t.recall(found)
		case !errors.Is(err, flowstore.ErrDisconnected):
			t.failed = true
			return err
		}
	}
	t.stale = false // the store gets all, though perhaps not the switch
	return t.give(ctx, t.all())
}

// give has the store take a change in, and the switch follow.
func (t *Table) give(ctx context.Context, c flowstore.Change) error {
	r, err := t.store.Set(ctx, c)
	t.failed = err != nil
	t.unsettled = t.unsettled || r.Changed > 0 || t.failed
	t.waiting = r.Contested
	return t.unmeter(err)
}
