// Package services owns the flows of services in br0: it holds what the node
// should serve, and makes the switch agree with it. What every node has for services,
// and who may use them, is package flowtable's.
//
// A change is an atomic bundle of the difference, several where it is very large.
// Nothing is removed before the table knows all services.
package services

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/flowtable"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
	"github.com/k8s-ovs/k8s-ovs/pkg/service"
)

// Switch is the bridge's OpenFlow connection; [of.Conn] is one.
type Switch interface {
	Flows(ctx context.Context, filter of.FlowFilter) ([]of.FlowStats, error)
	Groups(ctx context.Context) ([]of.GroupEntry, error)
	Commit(ctx context.Context, mods []of.Mod) error
	FlushConnections(ctx context.Context, filter of.CTFilter) error
}

// Base is the table of all other flows; [flowtable.Table] is one.
type Base interface {
	Model() (pipeline.Model, bool)
	Serve(ctx context.Context, namespaces map[string]bool) error
	Slot(namespace string) (uint32, bool)
	// HasNode reports whether a node of the cluster has the address.
	HasNode(netip.Addr) bool
}

// Config is what a table needs.
type Config struct {
	Base Base
	// Public are the services that every tenant may use. So are those whose
	// endpoints are nodes.
	Public []service.Key
	// TunnelPorts, if not nil, are the UDP ports at which nodes take what is for
	// themselves alone: packets of other nodes' pods, and probes.
	TunnelPorts func() []uint16
	// LeftOut, if not nil, is told of a service when it names other endpoints than before
	// that no pod is sent to; left is all of them. It must not wait for anything.
	LeftOut func(s service.Service, left []service.LeftOut)
	// Repaired is told how many flows and groups had been changed by somebody else.
	Repaired func(n int)
	Logger   *slog.Logger
	// Now is a clock; nil for time.Now.
	Now func() time.Time
}

const (
	// readEvery is how often the switch is read back: some 30,000 flows take it 0.1 s.
	readEvery = time.Minute
	// staleAtMost is how long the datapath may go on with what it cached before a
	// change: until its revalidators have been round.
	staleAtMost = time.Second
	// mostAtOnce bounds a bundle when all services are written, so that pods that are
	// attached meanwhile do not wait for all of it.
	mostAtOnce = 4096
)

// Table is the services of one bridge. Its methods may be called at once.
type Table struct {
	cfg    Config
	public map[service.Key]bool

	mu sync.Mutex
	sw Switch
	// wanted are the services as last told, complete once full; dirty are those
	// that are not in the picture as wanted.
	wanted map[service.Key]service.Service
	full   bool
	dirty  map[service.Key]bool
	// left are the endpoints that are left out, by services that have some.
	left map[service.Key][]service.LeftOut
	// parts are the services that are in the picture, ids the numbers of their ports,
	// model what else it follows from.
	parts map[service.Key]part
	ids   numbers
	model pipeline.Model
	// flows and groups are the picture, and how many parts have each. They are
	// what the switch is known to have while synced.
	flows  map[string]*shared[of.Flow]
	groups map[uint32]*shared[of.GroupEntry]
	// endpoints counts the distinct ones in the picture.
	endpoints int
	synced    bool
	read      time.Time // when the switch was last read

	flushes []flush
	noFlush bool // the switch cannot flush connections
}

// shared is something that some parts have.
type shared[T any] struct {
	value  T
	owners int
}

// New makes an empty table.
func New(cfg Config) *Table {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	t := &Table{
		cfg: cfg, public: map[service.Key]bool{}, wanted: map[service.Key]service.Service{}, dirty: map[service.Key]bool{},
		left: map[service.Key][]service.LeftOut{},
	}
	for _, k := range cfg.Public {
		t.public[k] = true
	}
	t.forget()
	return t
}

// forget empties the picture: it is computed anew from what is wanted.
func (t *Table) forget() {
	for key := range t.wanted {
		t.dirty[key] = true
	}
	t.parts, t.ids = map[service.Key]part{}, numbers{}
	t.flows, t.groups = map[string]*shared[of.Flow]{}, map[uint32]*shared[of.GroupEntry]{}
	t.endpoints, t.synced = 0, false
}

// Update takes news and brings them into the switch. Where that fails they are kept,
// and the next Update, Resync or Connect brings them in.
func (t *Table) Update(ctx context.Context, u service.Update) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if u.Full {
		for key := range t.wanted {
			if _, there := u.Services[key]; !there {
				t.take(service.Service{Key: key})
			}
		}
		t.full = true
	}
	for key, s := range u.Services {
		s.Key = key
		t.take(s)
	}
	_, err := t.apply(ctx)
	return err
}

// take notes what a service should be.
func (t *Table) take(s service.Service) {
	if was, ok := t.wanted[s.Key]; ok && was.Equal(s) || !ok && len(s.Ports) == 0 {
		return
	}
	t.dirty[s.Key] = true
	if len(s.Ports) == 0 {
		delete(t.wanted, s.Key)
		return
	}
	t.wanted[s.Key] = s
}

// Connect makes sw the switch and brings it to the picture, once that is known:
// what the switch has is read, and only the difference is written.
func (t *Table) Connect(ctx context.Context, sw Switch) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sw, t.synced, t.noFlush = sw, false, false
	_, err := t.apply(ctx)
	return err
}

// Disconnect says that the switch is gone.
func (t *Table) Disconnect() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sw, t.synced = nil, false
}

// Resync brings in what did not get into the switch. Once a minute it reads the
// switch, puts right what differs from the picture, and counts it.
func (t *Table) Resync(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	due := t.synced && len(t.dirty) == 0 && t.cfg.Now().Sub(t.read) >= readEvery
	if due {
		t.synced = false
	}
	repaired, err := t.apply(ctx)
	if due && repaired > 0 {
		t.cfg.Repaired(repaired)
	}
	return err
}

// Counts are the services that are served, their distinct endpoints, and all flows
// for them.
func (t *Table) Counts() (services, endpoints, flows int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.parts), t.endpoints, len(t.flows)
}

// apply brings the switch to what is wanted and returns how many flows and groups
// that changed.
func (t *Table) apply(ctx context.Context) (changed int, err error) {
	model, ok := t.cfg.Base.Model()
	switch {
	case !t.full:
		return 0, nil // the services of before stay as they are
	case !ok:
		return 0, flowtable.ErrNotReady
	case t.sw == nil:
		return 0, flowtable.ErrDisconnected
	}
	if !alike(t.model, model) {
		t.forget()
	}
	t.model = model
	for key, p := range t.parts { // nodes come and go
		if p.public != t.isPublic(p.service) {
			t.dirty[key] = true
		}
	}
	if len(t.dirty) > 0 || !t.synced {
		if changed, err = t.write(ctx); err != nil {
			return 0, err
		}
	}
	return changed, t.flush(ctx)
}

// alike reports whether services have the same flows in both models.
func alike(a, b pipeline.Model) bool {
	return a.ServiceProxy == b.ServiceProxy && a.ServiceNetwork == b.ServiceNetwork && a.Network == b.Network && a.Subnet == b.Subnet && a.Gateway == b.Gateway
}

// write brings the picture to what is wanted, and the switch to the picture.
func (t *Table) write(ctx context.Context) (int, error) {
	before, after := t.namespaces()
	// Those that serve no longer keep their slots until nothing refers to them.
	if err := t.cfg.Base.Serve(ctx, union(before, after)); err != nil {
		return 0, err
	}
	c := change{t: t, flows: map[string]of.Flow{}, groups: map[uint32]of.GroupEntry{}}
	for key := range t.dirty {
		c.replace(key)
	}
	clear(t.dirty)
	var mods []of.Mod
	if t.synced {
		mods = c.mods()
	} else {
		have, err := readSwitch(ctx, t.sw)
		if err != nil {
			return 0, err
		}
		var gone []of.CTFilter
		mods, gone = have.difference(t.flows, t.groups)
		t.later(gone...)
		t.read = t.cfg.Now()
	}
	t.synced = false // until all of it is in
	for chunk := range slices.Chunk(mods, mostAtOnce) {
		if err := t.sw.Commit(ctx, chunk); err != nil {
			return 0, fmt.Errorf("services: commit %d changes: %w", len(chunk), err)
		}
	}
	t.synced = true
	return len(mods), t.cfg.Base.Serve(ctx, after)
}

// namespaces are those with services as the flows are and as they should be.
func (t *Table) namespaces() (before, after map[string]bool) {
	before, after = map[string]bool{}, map[string]bool{}
	for key := range t.parts {
		before[key.Namespace] = true
	}
	for key := range t.wanted {
		after[key.Namespace] = true
	}
	return before, after
}

func union(a, b map[string]bool) map[string]bool {
	all := maps.Clone(a)
	maps.Copy(all, b)
	return all
}

// flush is connections that the switch should forget, as their endpoint is gone,
// again from a time on: until then the datapath may have made new ones.
type flush struct {
	filter of.CTFilter
	again  time.Time
}

// later has connections forgotten.
func (t *Table) later(filters ...of.CTFilter) {
	for _, f := range filters {
		t.flushes = append(t.flushes, flush{filter: f})
	}
}

// flush forgets connections to endpoints that are gone.
func (t *Table) flush(ctx context.Context) error {
	now := t.cfg.Now()
	var rest []flush
	for i, f := range t.flushes {
		if f.again.After(now) {
			rest = append(rest, f)
			continue
		}
		err := t.forgetConnections(ctx, f.filter)
		if err != nil {
			t.flushes = append(rest, t.flushes[i:]...)
			return err
		}
		if f.again.IsZero() {
			rest = append(rest, flush{f.filter, now.Add(staleAtMost)})
		}
	}
	t.flushes = rest
	return nil
}

func (t *Table) forgetConnections(ctx context.Context, f of.CTFilter) error {
	if t.noFlush {
		return nil
	}
	err := t.sw.FlushConnections(ctx, f)
	if errors.Is(err, errors.ErrUnsupported) {
		t.noFlush = true
		t.cfg.Logger.Warn("UDP clients of an endpoint that is gone find another one only when they pause for 30 s: Open vSwitch before 3.1 cannot forget their connections")
		return nil
	}
	if err != nil {
		return fmt.Errorf("services: forget connections to an endpoint that is gone: %w", err)
	}
	return nil
}
