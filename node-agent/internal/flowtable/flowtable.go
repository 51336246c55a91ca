// Package flowtable owns the flows of br0, but for those of services: it holds the
// picture they follow from (records, ports, attached pods), and makes the switch
// agree with it.
//
// Every change is one atomic bundle of the difference. Nothing is written or
// removed before the table knows the records.
package flowtable

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	"github.com/k8s-ovs/k8s-ovs/pkg/batch"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

var (
	// ErrDisconnected: there is no connection to ovs-vswitchd now. What was to
	// be changed is in the picture and reaches the switch on reconnection.
	ErrDisconnected = errors.New("not connected to ovs-vswitchd")
	// ErrNotReady: the table does not know the records or the ports yet.
	ErrNotReady = errors.New("the node has no picture of the network yet")
)

// Switch is the bridge's OpenFlow connection; [of.Conn] is one.
type Switch interface {
	Flows(ctx context.Context, filter of.FlowFilter) ([]of.FlowStats, error)
	Commit(ctx context.Context, mods []of.Mod) error
	Meters(ctx context.Context) ([]of.Meter, error)
	MeterCounters(ctx context.Context) ([]of.MeterCounters, error)
	AddMeter(ctx context.Context, m of.Meter) error
	ModifyMeter(ctx context.Context, m of.Meter) error
	DeleteMeter(ctx context.Context, id uint32) error
}

// Observer is told about what the table does; for metrics.
type Observer interface {
	// Committed: one bundle of n changes took seconds.
	Committed(n int, seconds float64)
	// Repaired: n flows or meters had been changed by somebody else.
	Repaired(n int)
	// Dropped: n more packets were dropped for a reason.
	Dropped(reason pipeline.Reason, n uint64)
}

// Table is the flow table of one bridge. Its methods may be called at once.
type Table struct {
	self      netip.Addr
	vxlanPort uint16
	observer  Observer
	now       func() float64

	mu       sync.Mutex
	sw       Switch
	records  *topology.Snapshot
	ports    *desired.Ports
	attached map[netip.Addr]desired.Attached
	// slots are of the namespaces that have pods here, which members counts, and of
	// those that serve.
	slots   desired.Slots
	members map[string]int
	fair    fairness
	serving map[string]bool
	proxy   pipeline.ServiceProxy
	// recalled is that serving was read back from the switch, or told.
	recalled bool
	// model without pods, as of the last refresh; nil until there is one.
	model *pipeline.Model
	// pathMTUs are of the peers, by VTEP, whose paths carry less than pods' devices.
	pathMTUs map[netip.Addr]int
	// installed is what the switch is known to have, by flow key.
	installed map[string]of.Flow
	// meters are those that the switch is known to have, nil before they were read; want
	// those of the picture, nil when it has changed; settled says that both are the same.
	meters, want map[uint32]of.Meter
	settled      bool
	drops        map[string]uint64
	tooLarge     map[uint32]uint64 // packets counted as such, by meter
	// commits counts bundles.
	commits uint64
	// changing lets pods that come and go at once share a bundle.
	changing *batch.Batch[change, error]
}

// New makes the table of the node with VTEP address self. now gives seconds
// of a monotonic clock.
func New(self netip.Addr, vxlanPort uint16, observer Observer, now func() float64) *Table {
	t := &Table{
		self: self, vxlanPort: vxlanPort, observer: observer, now: now,
		attached: map[netip.Addr]desired.Attached{}, slots: desired.Slots{}, members: map[string]int{}, serving: map[string]bool{},
		installed: map[string]of.Flow{}, drops: map[string]uint64{}, tooLarge: map[uint32]uint64{}, fair: newFairness(),
	}
	t.changing = batch.New(changedAtOnce, t.change)
	return t
}

// SetRecords makes s the records that the flows follow, in one bundle, and
// reports whether flows had to change. The problems are records that this node
// leaves out.
func (t *Table) SetRecords(ctx context.Context, s topology.Snapshot) (problems []desired.Problem, changed bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.records = &s
	before := t.commits
	problems, err = t.refresh(ctx)
	return problems, t.commits != before, err
}

// Nudge makes the switch compare the flows that its datapath cached with its
// tables: a flow comes and goes in one bundle, in a table that no packet reaches.
func (t *Table) Nudge(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.sw == nil {
		return ErrDisconnected
	}
	f := pipeline.Nudge()
	if err := t.sw.Commit(ctx, []of.Mod{of.AddFlow(f), of.DeleteFlow(f)}); err != nil {
		return fmt.Errorf("nudge the switch: %w", err)
	}
	return nil
}

// SetPorts makes p the numbers of the bridge's own ports.
func (t *Table) SetPorts(ctx context.Context, p desired.Ports) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ports != nil && *t.ports == p {
		return nil
	}
	t.ports = &p
	_, err := t.refresh(ctx)
	if errors.Is(err, ErrNotReady) {
		return nil
	}
	return err
}

// Load puts pods into the picture without touching the switch: what was
// attached before the agent started.
func (t *Table) Load(pods []desired.Attached) {
	t.mu.Lock()
	defer t.mu.Unlock()
	// In order of name, so that slots are the same after every start.
	pods = slices.SortedFunc(slices.Values(pods), func(a, b desired.Attached) int { return strings.Compare(a.Namespace, b.Namespace) })
	for _, p := range pods {
		t.take(p)
	}
}

// take puts a pod into the picture, instead of one with the same address.
func (t *Table) take(p desired.Attached) {
	t.leave(p.Address)
	t.attached[p.Address] = p
	t.members[p.Namespace]++
	t.slots.Assign(p.Namespace)
	if t.fair.assign(p.Namespace, t.slots[p.Namespace]) || p.Meter.Rate > 0 {
		t.remeter()
	}
}

// leave takes the pod with that address out of the picture, and its namespace's
// slot with the last one.
func (t *Table) leave(address netip.Addr) {
	p, ok := t.attached[address]
	if !ok {
		return
	}
	delete(t.attached, address)
	if p.Meter.Rate > 0 {
		t.remeter()
	}
	if t.members[p.Namespace]--; t.members[p.Namespace] == 0 {
		delete(t.members, p.Namespace)
		t.fair.release(p.Namespace)
		t.remeter()
		t.release(p.Namespace)
	}
}

// commitPart replaces a part of the flows: those in before that are not wanted go.
func (t *Table) commitPart(ctx context.Context, before, wanted map[string]of.Flow) error {
	var mods []of.Mod
	for key, f := range wanted {
		if have, ok := t.installed[key]; !ok || !have.Equal(f) {
			mods = append(mods, of.AddFlow(f))
		}
	}
	for key, f := range before {
		_, keep := wanted[key]
		if _, there := t.installed[key]; there && !keep {
			mods = append(mods, of.DeleteFlow(f))
		}
	}
	if err := t.commit(ctx, mods); err != nil {
		return err
	}
	for key := range before {
		delete(t.installed, key)
	}
	maps.Copy(t.installed, wanted)
	return nil
}

// Connect makes sw the switch and brings it to the picture: what it has is
// read, and only the difference is written.
func (t *Table) Connect(ctx context.Context, sw Switch) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sw = sw
	t.installed, t.meters = map[string]of.Flow{}, nil
	t.fair.unmetered = nil
	t.remeter()
	if t.model == nil {
		return nil
	}
	_, err := t.sync(ctx)
	if err != nil {
		t.sw = nil
	}
	return err
}

// Disconnect says that the switch is gone.
func (t *Table) Disconnect() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sw = nil
}

// Resync reads the switch, puts right what differs from the picture, and
// counts it, and what was dropped since.
func (t *Table) Resync(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.model == nil {
		return ErrNotReady
	}
	repaired, err := t.sync(ctx)
	if err == nil && repaired > 0 {
		t.observer.Repaired(repaired)
	}
	return err
}

// Check compares the pod's flows in the switch with the picture and says what
// differs, nothing where all is as it should be.
func (t *Table) Check(ctx context.Context, address netip.Addr) ([]string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.model == nil {
		return nil, ErrNotReady
	}
	if t.sw == nil {
		return nil, ErrDisconnected
	}
	a, ok := t.attached[address]
	if !ok {
		return []string{fmt.Sprintf("%s is not attached", address)}, nil
	}
	have := map[string]of.Flow{}
	read := func(cookie, mask uint64) error {
		stats, err := t.sw.Flows(ctx, of.FlowFilter{Cookie: cookie, CookieMask: mask})
		if err != nil {
			return fmt.Errorf("read the flows of %s: %w", address, err)
		}
		for _, s := range stats {
			have[s.Key()] = s.Flow
		}
		return nil
	}
	if err := errors.Join(read(pipeline.PodCookie(address)), read(pipeline.TenantCookie(t.slots[a.Namespace]))); err != nil {
		return nil, err
	}
	want := t.flowsAround([]netip.Addr{address})
	diff, err := t.checkMeter(ctx, a)
	if err != nil {
		return nil, err
	}
	for _, key := range slices.Sorted(maps.Keys(want)) {
		f := want[key]
		got, ok := have[key]
		switch {
		case !ok:
			diff = append(diff, "flow is missing: "+f.String())
		case !got.Equal(f):
			diff = append(diff, fmt.Sprintf("flow differs: have %s, want %s", got, f))
		}
	}
	return diff, nil
}

// Size is the number of flows in the switch as far as known.
func (t *Table) Size() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.installed)
}

// Peers are the other nodes in the picture.
func (t *Table) Peers() []pipeline.Peer {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.model == nil {
		return nil
	}
	return slices.Clone(t.model.Peers)
}

// Dump is the picture as text, for /debug/state.
func (t *Table) Dump() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.model == nil {
		return nil
	}
	var out []string
	for _, f := range t.desired() {
		out = append(out, f.String())
	}
	return out
}

// refresh computes the model anew and commits what changed.
func (t *Table) refresh(ctx context.Context) ([]desired.Problem, error) {
	if t.records == nil || t.ports == nil {
		return nil, ErrNotReady
	}
	m, problems, err := desired.Node(*t.records, t.self, *t.ports, t.vxlanPort, nil, nil)
	if err != nil {
		// The node lost its place in the network. What it has stays: its pods keep
		// their network, and the caller says why nothing new is applied.
		return nil, err
	}
	first := t.model == nil
	m.ServiceProxy = t.proxy
	t.withPathMTUs(&m)
	t.model = &m
	t.remeter()
	if first {
		// What the switch has from before was not read yet.
		_, err := t.sync(ctx)
		return problems, err
	}
	mods, want := difference(t.installed, t.desired())
	if err := t.commit(ctx, mods); err != nil {
		return problems, err
	}
	t.installed = want
	return problems, nil
}

// desired is every flow of the picture.
func (t *Table) desired() []of.Flow {
	flows := t.model.Flows()
	for _, n := range slices.Sorted(maps.Keys(t.slots)) {
		flows = append(flows, t.tenant(n)...)
	}
	for _, addr := range slices.SortedFunc(maps.Keys(t.attached), netip.Addr.Compare) {
		flows = append(flows, t.model.Pod(desired.Pod(t.slots, t.attached[addr]))...)
	}
	return flows
}

// sync reads the switch and commits the difference; it returns how many
// flows differed.
func (t *Table) sync(ctx context.Context) (int, error) {
	if t.sw == nil {
		return 0, ErrDisconnected
	}
	cookie, mask := pipeline.Others()
	stats, err := t.sw.Flows(ctx, of.FlowFilter{Cookie: cookie, CookieMask: mask})
	if err != nil {
		return 0, fmt.Errorf("read the flows of the bridge: %w", err)
	}
	actual := make(map[string]of.Flow, len(stats))
	for _, s := range stats {
		actual[s.Key()] = s.Flow
	}
	if err := t.readMeters(ctx); err != nil {
		return 0, err
	}
	t.countDrops(stats)
	t.recall(stats)
	mods, want := difference(actual, t.desired())
	repaired := len(mods) + t.meterDifferences()
	if err := t.commit(ctx, mods); err != nil {
		return 0, err
	}
	t.installed = want
	return repaired, t.countTooLarge(ctx)
}

// commit brings parts of the picture into the switch, and its meters.
func (t *Table) commit(ctx context.Context, mods []of.Mod) error {
	if t.sw == nil {
		return ErrDisconnected
	}
	if err := t.ensureMeters(ctx); err != nil {
		return err
	}
	if len(mods) > 0 {
		start := t.now()
		if err := t.sw.Commit(ctx, mods); err != nil {
			return fmt.Errorf("commit %d flow changes: %w", len(mods), err)
		}
		t.commits++
		t.observer.Committed(len(mods), t.now()-start)
	}
	t.pruneMeters(ctx)
	return nil
}

// difference is what makes have into want: additions first, so that nothing
// is without a flow even where bundles were not atomic.
func difference(have map[string]of.Flow, want []of.Flow) ([]of.Mod, map[string]of.Flow) {
	wanted := byKey(want)
	var mods []of.Mod
	for _, f := range want {
		if old, ok := have[f.Key()]; !ok || !old.Equal(f) {
			mods = append(mods, of.AddFlow(f))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(have)) {
		if _, keep := wanted[key]; !keep {
			mods = append(mods, of.DeleteFlow(have[key]))
		}
	}
	return mods, wanted
}

func byKey(flows []of.Flow) map[string]of.Flow {
	out := make(map[string]of.Flow, len(flows))
	for _, f := range flows {
		out[f.Key()] = f
	}
	return out
}
