package services

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/flowstore"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/nodeflows"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
	"github.com/k8s-ovs/k8s-ovs/pkg/service"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
	"github.com/k8s-ovs/k8s-ovs/test/ovstest"
)

// bridge is a real bridge without ports.
type bridge struct {
	*ovstest.OVS
	conn *of.Conn
	// store and base are those of the newest agent, repaired what all of them repaired.
	store    *flowstore.Store
	base     *nodeflows.Table
	repaired int
	now      time.Time
}

func newBridge(t testing.TB) *bridge {
	t.Helper()
	b := &bridge{OVS: ovstest.Start(t), now: time.Unix(0, 0)}
	b.AddBridge("br0", "dummy")
	var err error
	if b.conn, err = of.Dial(t.Context(), b.Mgmt("br0")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.conn.Close() })
	return b
}

func (b *bridge) Committed(string, int, float64)   {}
func (b *bridge) Repaired(_ flowstore.Kind, n int) { b.repaired += n }
func (b *bridge) Dropped(pipeline.Reason, uint64)  {}
func (b *bridge) clock() time.Time                 { return b.now }
func (b *bridge) connect(t *Table) error           { return b.connectTo(t, b.conn) }
func (b *bridge) connectTo(t *Table, sw flowstore.Switch) error {
	b.store.Connect(sw)
	return errors.Join(b.base.Connected(context.Background()), t.Connected(context.Background()))
}

// table is an agent that starts: it knows nothing of what another one wrote.
func (b *bridge) table() *Table {
	b.store = flowstore.New(flowstore.Config{Areas: []flowstore.Area{nodeflows.Area(), Area()}, Observer: b, Now: b.clock})
	b.base = nodeflows.New(self, []tunnel.Port{4789}, b.store, b)
	b.base.SetServiceProxy(pipeline.OVS)
	_, _, _ = b.base.SetRecords(context.Background(), records(10))
	_ = b.base.SetPorts(context.Background(), desired.Ports{Tunnels: map[string]uint32{desired.NodeTunnel: 1}, Gateway: 2})
	return New(Config{Base: b.base, Store: b.store, Tracker: b.store, Logger: slog.New(slog.DiscardHandler), Now: b.clock})
}

// contents are the flows and groups of services, without what lingers and what was learned.
func (b *bridge) contents(t *testing.T) []string {
	t.Helper()
	cookie, mask := pipeline.Services()
	flows, err := b.conn.Flows(t.Context(), of.FlowFilter{Cookie: cookie, CookieMask: mask})
	if err != nil {
		t.Fatal(err)
	}
	groups, err := b.conn.Groups(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, f := range flows {
		if f.IdleTimeout == 0 && f.Table != pipeline.TableAffinity {
			out = append(out, f.Flow.String())
		}
	}
	for _, g := range groups {
		out = append(out, g.String())
	}
	slices.Sort(out)
	return out
}

func full(all map[service.Key]service.Service) service.Update {
	return service.Update{Full: true, Services: maps.Clone(all)}
}

// random is a service with random ports and endpoints, which others may share.
func random(rnd *rand.Rand, key service.Key) service.Service {
	s := service.Service{Key: key, Affinity: time.Duration(rnd.IntN(2)) * time.Hour}
	address := netip.AddrFrom4([4]byte{10, 96, 1, byte(rnd.IntN(6))}) // may be taken over from another
	for port := range rnd.IntN(3) {
		p := service.Port{VIP: address, Protocol: []service.Protocol{service.TCP, service.UDP, service.SCTP}[rnd.IntN(3)], Port: uint16(80 + port)}
		for i := range 6 {
			if rnd.IntN(2) == 0 {
				p.Endpoints = append(p.Endpoints, service.Endpoint{Address: netip.AddrFrom4([4]byte{172, 11, byte(i), 9}), Port: 8080})
			}
		}
		s.Ports = append(s.Ports, p)
	}
	return s
}

// TestRandomHistory: after any history of services that come, change and go, lost
// connections and meddling, the switch has what a fresh table would write.
func TestRandomHistory(t *testing.T) {
	const seed = 11
	rnd := rand.New(rand.NewPCG(seed, seed))
	ctx := context.Background()
	b, fresh := newBridge(t), newBridge(t)
	table := b.table()
	if err := b.connect(table); err != nil {
		t.Fatal(err)
	}
	all := map[service.Key]service.Service{}
	if err := table.Update(ctx, full(all)); err != nil {
		t.Fatal(err)
	}
	for step := range 150 {
		u := service.Update{Services: map[service.Key]service.Service{}}
		for range 1 + rnd.IntN(3) {
			key := service.Key{Namespace: string(rune('a' + rnd.IntN(3))), Name: fmt.Sprint(rnd.IntN(4))}
			s := random(rnd, key)
			u.Services[key], all[key] = s, s
			if len(s.Ports) == 0 {
				delete(all, key)
			}
		}
		// Two services with one address are only ever passing by.
		byAddress := map[netip.Addr]service.Key{}
		for _, key := range slices.SortedFunc(maps.Keys(all), service.Key.Compare) {
			a := all[key].Ports[0].VIP
			if _, taken := byAddress[a]; taken {
				delete(all, key)
				u.Services[key] = service.Service{Key: key}
			}
			byAddress[a] = key
		}
		switch rnd.IntN(6) {
		case 0:
			b.store.Disconnect()
			if rnd.IntN(2) == 0 {
				b.OFCtl("del-groups", "br0")
			}
			if err := table.Update(ctx, u); !errors.Is(err, flowstore.ErrDisconnected) {
				t.Fatalf("Update without a switch: %v", err)
			}
			if err := b.connect(table); err != nil {
				t.Fatal(err)
			}
		case 1:
			if err := table.Update(ctx, full(all)); err != nil {
				t.Fatal(err)
			}
		case 2: // another agent
			table = b.table()
			if err := b.connect(table); err != nil {
				t.Fatal(err)
			}
			if err := table.Update(ctx, full(all)); err != nil {
				t.Fatal(err)
			}
		default:
			if err := table.Update(ctx, u); err != nil {
				t.Fatal(err)
			}
		}
		want := fresh.table()
		if err := fresh.connect(want); err != nil {
			t.Fatal(err)
		}
		if err := want.Update(ctx, full(all)); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(fresh.contents(t), b.contents(t)); diff != "" {
			t.Fatalf("seed %d step %d (-want +got):\n%s", seed, step, diff)
		}
	}
	// What is counted as it comes and goes is what there is.
	endpoints := map[service.Endpoint]map[service.Protocol]bool{}
	distinct := 0
	for _, sv := range all {
		for _, p := range sv.Ports {
			for _, e := range p.Endpoints {
				if endpoints[e] == nil {
					endpoints[e] = map[service.Protocol]bool{}
				}
				if !endpoints[e][p.Protocol] {
					endpoints[e][p.Protocol] = true
					distinct++
				}
			}
		}
	}
	if services, counted, _ := table.Counts(); services != len(all) || counted != distinct || distinct == 0 {
		t.Errorf("counts %d services with %d endpoints; want %d with %d", services, counted, len(all), distinct)
	}
	if groups, err := b.conn.Groups(ctx); err != nil || len(table.ids) != len(groups) {
		t.Errorf("%d numbers for %d service ports (%v)", len(table.ids), len(groups), err)
	}
}

// TestNothingBeforeAllServices: an agent that starts while the API server is away
// leaves what was there.
func TestNothingBeforeAllServices(t *testing.T) {
	ctx := context.Background()
	b := newBridge(t)
	before := b.table()
	web := svc(tcpPort("a1"))
	all := map[service.Key]service.Service{web.Key: web}
	if err := errors.Join(b.connect(before), before.Update(ctx, full(all))); err != nil {
		t.Fatal(err)
	}
	want := b.contents(t)
	table := b.table()
	some := service.Update{Services: map[service.Key]service.Service{{Namespace: "a", Name: "x"}: {}}}
	if err := errors.Join(b.connect(table), table.Update(ctx, some), table.Resync(ctx), b.base.Resync(ctx)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, b.contents(t)); diff != "" {
		t.Error(diff)
	}
	if err := table.Update(ctx, full(nil)); err != nil {
		t.Fatal(err)
	}
	if got := b.contents(t); len(got) != 0 {
		t.Errorf("no services, but %v", got)
	}
}

// TestRepair: what somebody else changes is put right within a minute and counted;
// the tables of services and of all else leave each other, and what lingers, alone.
func TestRepair(t *testing.T) {
	ctx := context.Background()
	b := newBridge(t)
	table := b.table()
	web := svc(tcpPort("a1", "a2"))
	all := map[service.Key]service.Service{web.Key: web}
	if err := errors.Join(b.connect(table), table.Update(ctx, full(all))); err != nil {
		t.Fatal(err)
	}
	web.Ports = []service.Port{tcpPort("a2")}
	if err := table.Update(ctx, full(map[service.Key]service.Service{web.Key: web})); err != nil {
		t.Fatal(err)
	}
	const way = "table=30, idle_timeout=9000, priority=100,tcp,nw_src=172.11.0.2,tp_src=8080"
	want := b.contents(t)
	b.OFCtl("del-flows", "br0", "table=30,tcp,nw_src=172.11.0.3,tp_src=8080")
	b.OFCtl("del-groups", "br0") // takes the flow that refers to it along
	b.now = b.now.Add(readEvery)
	if err := errors.Join(table.Resync(ctx), b.base.Resync(ctx)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, b.contents(t)); diff != "" || b.repaired != 3 {
		t.Errorf("%d repairs, want 3: %s", b.repaired, diff)
	}
	if flows := b.OFCtl("dump-flows", "br0", "--no-stats", "--no-names"); !strings.Contains(flows, way) {
		t.Errorf("the way back of open connections is gone:\n%s", flows)
	}
}

// old is a switch that cannot forget connections.
type old struct {
	flowstore.Switch
	asked int
}

func (o *old) FlushConnections(context.Context, of.CTFilter) error {
	o.asked++
	return fmt.Errorf("flush: %w", errors.ErrUnsupported)
}

func TestOldSwitch(t *testing.T) {
	ctx := context.Background()
	b := newBridge(t)
	table, sw := b.table(), &old{Switch: b.conn}
	web := svc(udpPort(53, "a1", "a2"))
	if err := errors.Join(b.connectTo(table, sw), table.Update(ctx, full(map[service.Key]service.Service{web.Key: web})), table.Update(ctx, full(nil)), table.Resync(ctx)); err != nil {
		t.Error(err)
	}
	if sw.asked != 1 {
		t.Errorf("asked %d times, want once", sw.asked)
	}
}

// many are 2,000 services with 10 endpoints each, as the bar has it.
func many() map[service.Key]service.Service {
	all := map[service.Key]service.Service{}
	for i := range 2000 {
		s := service.Service{Key: service.Key{Namespace: fmt.Sprintf("n%d", i%100), Name: fmt.Sprintf("s%d", i)}}
		p := service.Port{VIP: netip.AddrFrom4([4]byte{10, 97, byte(i >> 8), byte(i)}), Protocol: service.TCP, Port: 80}
		for e := range 10 {
			p.Endpoints = append(p.Endpoints, service.Endpoint{Address: netip.AddrFrom4([4]byte{172, 11, byte(8 + (i*10+e)>>8), byte(i*10 + e)}), Port: 8080})
		}
		s.Ports = []service.Port{p}
		all[s.Key] = s
	}
	return all
}

// BenchmarkProgram writes 2,000 services into an empty bridge.
func BenchmarkProgram(b *testing.B) {
	all := many()
	for b.Loop() {
		b.StopTimer()
		br := newBridge(b)
		table := br.table()
		_ = br.connect(table)
		b.StartTimer()
		if err := table.Update(b.Context(), full(all)); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkEndpoint changes one endpoint of 2,000 services.
func BenchmarkEndpoint(b *testing.B) {
	_, table, all := benchTable(b)
	key := service.Key{Namespace: "n7", Name: "s7"}
	whole, port := all[key], all[key].Ports[0]
	port.Endpoints = port.Endpoints[1:]
	less := whole
	less.Ports = []service.Port{port}
	for i := 0; b.Loop(); i++ {
		if err := table.Update(b.Context(), service.Update{Services: map[service.Key]service.Service{key: []service.Service{less, whole}[i%2]}}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkResync reads back 2,000 services, once a minute; BenchmarkBaseResync all
// else beside them, every 5 seconds.
func BenchmarkResync(b *testing.B) {
	br, table, _ := benchTable(b)
	for b.Loop() {
		br.now = br.now.Add(readEvery)
		if err := table.Resync(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkBaseResync(b *testing.B) {
	br, _, _ := benchTable(b)
	for b.Loop() {
		if err := br.base.Resync(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

func benchTable(b *testing.B) (*bridge, *Table, map[service.Key]service.Service) {
	b.Helper()
	br, all := newBridge(b), many()
	table := br.table()
	if err := errors.Join(br.connect(table), table.Update(b.Context(), full(all))); err != nil {
		b.Fatal(err)
	}
	return br, table, all
}
