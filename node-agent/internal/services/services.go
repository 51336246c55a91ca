// Package services produces the flows and groups of services: it holds what the node
// should serve, and gives what each service wants to the flow store. What every node has
// for services, and who may use them, is package nodeflows'. It never talks to the switch
// about flows.
//
// Nothing is written or removed before it knows all services.
package services

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/flowstore"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/nodeflows"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
	"github.com/k8s-ovs/k8s-ovs/pkg/service"
)

// KindService is the only kind of owners.
const KindService flowstore.Kind = "service"

// AreaName is that of the flows of this package.
const AreaName = "services"

// Area is all flows of services, and all groups of the bridge.
func Area() flowstore.Area {
	cookie, mask := pipeline.Services()
	return flowstore.Area{
		Name: AreaName, Cookie: cookie, Mask: mask, Kinds: []flowstore.Kind{KindService}, Groups: true,
		Every: readEvery, AtOnce: mostAtOnce, Retire: retire,
	}
}

// Store is where flows go; [flowstore.Store] is one.
type Store interface {
	Connected() bool
	Set(ctx context.Context, c flowstore.Change) (flowstore.Result, error)
	Resync(ctx context.Context, area string) (flowstore.Result, error)
	Size(area string) int
	InTable(area string, table uint8) int
}

// Tracker forgets connections that the switch tracks; [flowstore.Store] is one.
type Tracker interface {
	FlushConnections(ctx context.Context, filter of.CTFilter) error
}

// Base is what flows of services build on; [nodeflows.Table] is one.
type Base interface {
	View() (nodeflows.View, bool)
	// Serve tells which namespaces have services; the view has their slots then.
	Serve(ctx context.Context, namespaces map[string]bool) error
}

// Config is what a table needs.
type Config struct {
	Base    Base
	Store   Store
	Tracker Tracker
	// Public are the services that every tenant may use. So are those whose
	// endpoints are nodes.
	Public []service.Key
	// TunnelPorts, if not nil, are the UDP ports at which nodes take what is for
	// themselves alone: packets of other nodes' pods, and probes.
	TunnelPorts func() []uint16
	// LeftOut, if not nil, is told of a service when it names other endpoints than before
	// that no pod is sent to; left is all of them. It must not wait for anything.
	LeftOut func(s service.Service, left []service.LeftOut)
	Logger  *slog.Logger
	// Now is a clock; nil for time.Now.
	Now func() time.Time
}

const (
	// readEvery is how often the switch is read back: some 30,000 flows take it 0.1 s.
	readEvery = time.Minute
	// mostAtOnce bounds a bundle when all services are written, so that pods that are
	// attached meanwhile do not wait for all of it.
	mostAtOnce = 4096
	// staleAtMost is how long the datapath may go on with what it cached before a
	// change: until its revalidators have been round.
	staleAtMost = time.Second
)

// Table is the services of one bridge. Its methods may be called at once.
type Table struct {
	cfg    Config
	public map[service.Key]bool

	mu sync.Mutex
	// wanted are the services as last told, complete once full; dirty are those
	// that are not in the picture as wanted.
	wanted map[service.Key]service.Service
	full   bool
	dirty  map[service.Key]bool
	// left are the endpoints that are left out, by services that have some.
	left map[service.Key][]service.LeftOut
	// parts are the services that are in the picture, ids the numbers of their ports,
	// view what else it follows from.
	parts map[service.Key]part
	ids   numbers
	room  room
	view  nodeflows.View
	// anew is that the store has to be told of all services, behind that it may not have
	// brought all of them into the switch.
	anew, behind bool
	// served are the namespaces that have services in the switch, as last told.
	served map[string]bool

	flushes []flush
	noFlush bool // the switch cannot flush connections
}

// New makes an empty table.
func New(cfg Config) *Table {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	t := &Table{
		cfg: cfg, public: map[service.Key]bool{}, wanted: map[service.Key]service.Service{}, dirty: map[service.Key]bool{},
		left: map[service.Key][]service.LeftOut{}, room: newRoom(),
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
	t.parts, t.ids, t.anew = map[service.Key]part{}, numbers{}, true
	clear(t.room.taken)
}

// Update takes news and brings them into the switch. Where that fails they are kept,
// and the next Update, Resync or Connected brings them in.
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
	return t.apply(ctx, t.behind)
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

// Connected says that the switch is another one, and brings it to the picture, once that
// is known.
func (t *Table) Connected(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.noFlush = false
	return t.apply(ctx, true)
}

// Resync brings in what did not get into the switch. Once a minute the switch is read, and
// what differs from the picture is put right, and counted.
func (t *Table) Resync(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.apply(ctx, true)
}

// Counts are the services that are served, their distinct endpoints, and all flows
// for them.
func (t *Table) Counts() (services, endpoints, flows int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.parts), t.cfg.Store.InTable(AreaName, pipeline.TableReply), t.cfg.Store.Size(AreaName)
}

// apply brings the switch to what is wanted; resync is that it may need it though nothing
// is dirty.
func (t *Table) apply(ctx context.Context, resync bool) error {
	view, ok := t.cfg.Base.View()
	switch {
	case !t.full:
		return nil // the services of before stay as they are
	case !ok:
		return flowstore.ErrNotReady
	case !t.cfg.Store.Connected():
		return flowstore.ErrDisconnected
	}
	if !alike(t.view.Model, view.Model) {
		t.forget()
	}
	t.view = view
	for key, p := range t.parts { // nodes come and go
		if p.public != t.isPublic(p.service) {
			t.dirty[key] = true
		}
	}
	if len(t.dirty) > 0 || t.anew || resync {
		if err := t.write(ctx); err != nil {
			return err
		}
	}
	return t.flush(ctx)
}

// alike reports whether services have the same flows in both models.
func alike(a, b pipeline.Model) bool {
	return a.ServiceProxy == b.ServiceProxy && slices.Equal(a.Nets, b.Nets)
}

// write gives the store what is dirty, and has the switch follow.
func (t *Table) write(ctx context.Context) error {
	after := t.namespaces()
	// Those that serve no longer keep their slots until nothing refers to them.
	if err := t.cfg.Base.Serve(ctx, union(t.served, after)); err != nil {
		return err
	}
	t.view, _ = t.cfg.Base.View()
	r, err := t.program(ctx)
	for _, f := range r.Leftovers {
		if e, ok := pipeline.UDPEndpoint(f); ok {
			t.later(of.CTFilter{Zone: &zone, Protocol: uint8(service.UDP), Reply: of.CTTuple{Src: e.Address, SrcPort: e.Port}})
		}
	}
	for _, o := range r.Contested {
		t.cfg.Logger.Error("a service has an address that another one has: it waits until that is gone", "service", o.Name)
	}
	t.behind = err != nil
	if err != nil {
		t.served = union(t.served, after)
		return fmt.Errorf("services: %w", err)
	}
	t.served = after
	return t.cfg.Base.Serve(ctx, after)
}

// program tells the store what changed, or where nothing did has it look at the switch.
func (t *Table) program(ctx context.Context) (flowstore.Result, error) {
	if len(t.dirty) == 0 && !t.anew {
		return t.cfg.Store.Resync(ctx, AreaName)
	}
	var c flowstore.Change
	if t.anew {
		c.All(KindService)
	}
	before := maps.Clone(t.room.taken)
	replace := func(keys []service.Key) {
		for _, key := range t.room.inTurn(keys) {
			c.Set(flowstore.Owner{Kind: KindService, Name: key.String()}, t.replace(key))
		}
	}
	replace(slices.Collect(maps.Keys(t.dirty)))
	replace(t.room.waiting(before))
	clear(t.dirty)
	t.anew = false
	return t.cfg.Store.Set(ctx, c)
}

// namespaces are those that should have services.
func (t *Table) namespaces() map[string]bool {
	all := map[string]bool{}
	for key := range t.wanted {
		all[key.Namespace] = true
	}
	return all
}

func union(a, b map[string]bool) map[string]bool {
	all := make(map[string]bool, len(b))
	maps.Copy(all, a)
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
	err := t.cfg.Tracker.FlushConnections(ctx, f)
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
