package nodeflows

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/flowstore"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
	"github.com/k8s-ovs/k8s-ovs/test/ovstest"
)

// observer counts.
type observer struct {
	bundles, changes, repaired int
	dropped                    map[pipeline.Reason]uint64
}

func (o *observer) Committed(_ string, n int, _ float64) { o.bundles++; o.changes += n }
func (o *observer) Repaired(_ flowstore.Kind, n int)     { o.repaired += n }
func (o *observer) Dropped(r pipeline.Reason, n uint64) {
	if o.dropped == nil {
		o.dropped = map[pipeline.Reason]uint64{}
	}
	o.dropped[r] += n
}

var self = netip.MustParseAddr("198.18.0.1")

func id(v netid.ID) *netid.ID { return &v }

func node(n int) topology.Node {
	return topology.Node{
		Host: fmt.Sprintf("n%d", n), HostIP: netip.AddrFrom4([4]byte{198, 18, 0, byte(n)}),
		Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 11, byte(4 * (n - 1)), 0}), 22),
	}
}

// records are a network of two nodes, and namespaces with the netIDs given.
func records(revision int64, tenants map[string]netid.ID) topology.Snapshot {
	s := topology.Snapshot{
		Revision: revision, Config: topology.DefaultConfig(),
		Nodes: map[netip.Addr]topology.Node{}, Namespaces: map[string]topology.Namespace{},
	}
	for i := 1; i <= 2; i++ {
		s.Nodes[node(i).HostIP] = node(i)
	}
	for name, v := range tenants {
		s.Namespaces[name] = topology.Namespace{NetName: name, Effective: id(v)}
	}
	return s
}

func pod(namespace string, n int) desired.Attached {
	address := netip.AddrFrom4([4]byte{172, 11, 0, byte(n)})
	return desired.Attached{Port: uint32(10 + n), Namespace: namespace, MAC: topology.MAC(address), Addresses: []netip.Addr{address}}
}

// detach takes the pod from [pod] off the table.
func detach(t *testing.T, table *Table, n int) error {
	t.Helper()
	p := pod("", n)
	return table.Detach(t.Context(), p.Port, p.MAC)
}

// newTable is a table with a store of its own, without an area of services.
func newTable(obs *observer) *Table {
	return New(self, []tunnel.Port{4789}, flowstore.New(flowstore.Config{Areas: []flowstore.Area{Area()}, Observer: obs}), obs)
}

func storeOf(t *Table) *flowstore.Store { return t.store.(*flowstore.Store) }

// reconnect gives the table another switch.
func reconnect(ctx context.Context, t *Table, sw flowstore.Switch) error {
	storeOf(t).Connect(sw)
	return t.Connected(ctx)
}

func connect(t *testing.T, o *ovstest.OVS, table *Table) *of.Conn {
	t.Helper()
	conn, err := of.Dial(context.Background(), o.Mgmt("br0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := reconnect(context.Background(), table, conn); err != nil {
		t.Fatal(err)
	}
	return conn
}

func start(t *testing.T) (*ovstest.OVS, *Table, *observer) {
	o := ovstest.Start(t)
	o.AddBridge("br0", "dummy")
	obs := &observer{}
	return o, newTable(obs), obs
}

// flows are what the switch has.
func flows(t *testing.T, conn *of.Conn) []string {
	t.Helper()
	stats, err := conn.Flows(context.Background(), of.FlowFilter{})
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, s := range stats {
		out = append(out, s.Flow.String())
	}
	slices.Sort(out)
	return out
}

// expect is what the model says of the same picture.
func expect(t *testing.T, s topology.Snapshot, pods []desired.Attached) []string {
	t.Helper()
	m, _, err := desired.Node(s, self, desired.Ports{Tunnels: map[string]uint32{desired.NodeTunnel: 1}, Gateway: 2}, []tunnel.Port{4789}, desired.Slots{}, pods)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, f := range m.Flows() {
		out = append(out, f.String())
	}
	slices.Sort(out)
	return out
}

// TestNothingBeforeRecords: a table that knows no records touches nothing,
// also not what an earlier agent left.
func TestNothingBeforeRecords(t *testing.T) {
	o, table, _ := start(t)
	o.OFCtl("add-flow", "br0", "table=77,priority=5,actions=drop")
	conn := connect(t, o, table)
	before := flows(t, conn)
	ctx := context.Background()
	if err := table.Attach(ctx, pod("a", 2)); !errors.Is(err, flowstore.ErrNotReady) {
		t.Errorf("Attach: %v, want ErrNotReady", err)
	}
	if err := table.Resync(ctx); !errors.Is(err, flowstore.ErrNotReady) {
		t.Errorf("Resync: %v, want ErrNotReady", err)
	}
	if _, _, err := table.SetRecords(ctx, records(1, nil)); !errors.Is(err, flowstore.ErrNotReady) {
		t.Errorf("SetRecords without ports: %v, want ErrNotReady", err)
	}
	if diff := cmp.Diff(before, flows(t, conn)); diff != "" {
		t.Error(diff)
	}
	if err := table.SetPorts(ctx, desired.Ports{Tunnels: map[string]uint32{desired.NodeTunnel: 1}, Gateway: 2}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(expect(t, records(1, nil), nil), flows(t, conn)); diff != "" {
		t.Errorf("with records and ports (-want +got):\n%s", diff)
	}
}

// The port that pods may not send to on nodes is the one that tunnels have.
func TestUDPPorts(t *testing.T) {
	o, table, _ := start(t)
	conn := connect(t, o, table)
	ctx := context.Background()
	if err := table.SetUDPPorts(ctx, []tunnel.Port{8472}); err != nil {
		t.Errorf("before records and ports: %v", err)
	}
	if err := table.SetPorts(ctx, desired.Ports{Tunnels: map[string]uint32{desired.NodeTunnel: 1}, Gateway: 2}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := table.SetRecords(ctx, records(1, nil)); err != nil {
		t.Fatal(err)
	}
	dropped := func(port string) bool {
		return strings.Contains(o.OFCtl("dump-flows", "br0"), "udp,tp_dst="+port+" actions=drop")
	}
	if !dropped("8472") || dropped("4789") {
		t.Errorf("flows %s", o.OFCtl("dump-flows", "br0"))
	}
	if err := table.SetUDPPorts(ctx, []tunnel.Port{4789}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(expect(t, records(1, nil), nil), flows(t, conn)); diff != "" {
		t.Errorf("at another port (-want +got):\n%s", diff)
	}
}

// TestRandomHistory: after any history of pods that come and go, tenants that
// change, and lost connections, the switch has exactly what a fresh computation
// says; and each change is one bundle.
func TestRandomHistory(t *testing.T) {
	const seed = 7
	rnd := rand.New(rand.NewPCG(seed, seed))
	ctx := context.Background()
	o, table, obs := start(t)
	conn := connect(t, o, table)
	names := []string{"a", "b", "c", "d"}
	ids := []netid.ID{netid.Global, 10, 300924, netid.Max}
	current := records(1, nil)
	if _, _, err := table.SetRecords(ctx, current); !errors.Is(err, flowstore.ErrNotReady) {
		t.Fatal(err)
	}
	if err := table.SetPorts(ctx, desired.Ports{Tunnels: map[string]uint32{desired.NodeTunnel: 1}, Gateway: 2}); err != nil {
		t.Fatal(err)
	}
	attached := map[int]desired.Attached{}
	_, _, _ = table.SetRecords(ctx, current)
	brought := 0 // bundles of connections since records were last set
	for step := range 300 {
		before := obs.bundles
		switch rnd.IntN(10) {
		case 0, 1:
			tenants := map[string]netid.ID{}
			for _, n := range names {
				if rnd.IntN(5) > 0 {
					tenants[n] = ids[rnd.IntN(len(ids))]
				}
			}
			current = records(int64(step+2), tenants)
			if rnd.IntN(3) == 0 {
				delete(current.Nodes, node(2).HostIP)
			}
			_, changed, err := table.SetRecords(ctx, current)
			if err != nil || changed != (obs.bundles-before+brought > 0) {
				t.Fatalf("changed %t, %d bundles, %d by connections: %v", changed, obs.bundles-before, brought, err)
			}
			brought = 0
			if err := table.Nudge(ctx); err != nil {
				t.Fatal(err)
			}
		case 2:
			storeOf(table).Disconnect()
			if rnd.IntN(2) == 0 {
				o.OFCtl("del-flows", "br0")
				o.OFCtl("del-meters", "br0")
			}
			if err := table.Attach(ctx, pod("a", 250)); !errors.Is(err, flowstore.ErrDisconnected) {
				t.Fatalf("Attach without a switch: %v", err)
			}
			if err := reconnect(ctx, table, conn); err != nil {
				t.Fatal(err)
			}
			brought += obs.bundles - before
		case 3, 4, 5:
			n := 2 + rnd.IntN(20)
			port := pod("", n).Port
			if p, ok := attached[n]; ok && rnd.IntN(4) > 0 { // else perhaps by a number that it does not have
				port = p.Port
			}
			if err := table.Detach(ctx, port, pod("", n).MAC); err != nil {
				t.Fatal(err)
			}
			if attached[n].Port == port {
				delete(attached, n)
			}
		default:
			n := 2 + rnd.IntN(20)
			p := pod(names[rnd.IntN(len(names))], n)
			p.Port += uint32(rnd.IntN(3)) // perhaps another's
			p.Meter, p.Queue = desired.Meter{Rate: 1000 * uint32(rnd.IntN(3)), Burst: 100}, uint32(rnd.IntN(2))
			if err := table.Attach(ctx, p); err != nil {
				t.Fatal(err)
			}
			maps.DeleteFunc(attached, func(_ int, other desired.Attached) bool { return other.Port == p.Port })
			attached[n] = p
		}
		if n := obs.bundles - before; n > 1 {
			t.Fatalf("step %d: %d bundles for one change", step, n)
		}
		var pods []desired.Attached
		for _, p := range attached {
			pods = append(pods, p)
		}
		if diff := cmp.Diff(expect(t, current, pods), flows(t, conn)); diff != "" {
			t.Fatalf("seed %d step %d (-want +got):\n%s", seed, step, diff)
		}
		if diff := cmp.Diff(expectMeters(pods), meters(t, conn)); diff != "" {
			t.Fatalf("seed %d step %d: meters (-want +got):\n%s", seed, step, diff)
		}
	}
	if err := table.Resync(ctx); err != nil || obs.repaired != 0 {
		t.Errorf("resync repaired %d (%v), want nothing to repair", obs.repaired, err)
	}
}

// TestPodsByAddress: an agent that finds the flows of the release before, whose cookies name pods
// by their addresses, makes them its own in one bundle.
func TestPodsByAddress(t *testing.T) {
	ctx := t.Context()
	o, table, obs := start(t)
	s, pods := records(1, map[string]netid.ID{"a": 10}), []desired.Attached{pod("a", 2), pod("a", 3)}
	m, _, err := desired.Node(s, self, desired.Ports{Tunnels: map[string]uint32{desired.NodeTunnel: 1}, Gateway: 2}, []tunnel.Port{4789}, desired.Slots{}, pods)
	if err != nil {
		t.Fatal(err)
	}
	var mods []of.Mod
	for _, f := range m.Flows() {
		c := pipeline.DecodeCookie(f.Cookie)
		if c.Kind == pipeline.KindPod {
			c.Object += 0xac0b0000 - 10 // its address, 172.11.0.n with port 10+n
		}
		f.Cookie = c.Encode()&(1<<48-1) | 6<<48
		mods = append(mods, of.AddFlow(f))
	}
	conn, err := of.Dial(ctx, o.Mgmt("br0"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.Commit(ctx, mods); err != nil {
		t.Fatal(err)
	}
	table.Load(pods)
	if err := table.SetPorts(ctx, desired.Ports{Tunnels: map[string]uint32{desired.NodeTunnel: 1}, Gateway: 2}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := table.SetRecords(ctx, s); !errors.Is(err, flowstore.ErrDisconnected) {
		t.Fatal(err)
	}
	if err := reconnect(ctx, table, conn); err != nil || obs.bundles != 1 {
		t.Errorf("%d bundles (%v), want one", obs.bundles, err)
	}
	if diff := cmp.Diff(expect(t, s, pods), flows(t, conn)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestRepair: what somebody adds, removes or changes by hand is put right and counted.
func TestRepair(t *testing.T) {
	ctx := context.Background()
	o, table, obs := start(t)
	conn := connect(t, o, table)
	s := records(1, map[string]netid.ID{"a": 10})
	_, _, _ = table.SetRecords(ctx, s)
	if err := table.SetPorts(ctx, desired.Ports{Tunnels: map[string]uint32{desired.NodeTunnel: 1}, Gateway: 2}); err != nil {
		t.Fatal(err)
	}
	p := pod("a", 2)
	if err := table.Attach(ctx, p); err != nil {
		t.Fatal(err)
	}
	if diff, err := table.Check(ctx, p.Port); err != nil || len(diff) > 0 {
		t.Fatalf("check of a fine pod: %v, %v", diff, err)
	}
	want := flows(t, conn)
	o.OFCtl("-O", "OpenFlow14", "add-flow", "br0", "table=0,priority=9999,actions=NORMAL")
	o.OFCtl("-O", "OpenFlow14", "del-flows", "br0", "table=45,reg0=10")
	o.OFCtl("-O", "OpenFlow14", "mod-flows", "br0", "table=40,ip,nw_dst="+p.Addresses[0].String()+",actions=drop")
	if diff, err := table.Check(ctx, p.Port); err != nil || len(diff) != 2 {
		t.Errorf("check finds %q (%v), want two differences", diff, err)
	}
	if err := table.Resync(ctx); err != nil {
		t.Fatal(err)
	}
	if obs.repaired != 3 {
		t.Errorf("%d repairs counted, want 3", obs.repaired)
	}
	if diff := cmp.Diff(want, flows(t, conn)); diff != "" {
		t.Error(diff)
	}
}

// TestDropsCounted: packets that the pipeline drops show under their reason,
// each once, also when ovs-vswitchd starts its counters anew.
func TestDropsCounted(t *testing.T) {
	ctx := context.Background()
	o, table, obs := start(t)
	o.AddDummyPort("br0", "p12", 12)
	connect(t, o, table)
	_, _, _ = table.SetRecords(ctx, records(1, map[string]netid.ID{"a": 10, "b": 11}))
	if err := table.SetPorts(ctx, desired.Ports{Tunnels: map[string]uint32{desired.NodeTunnel: 1}, Gateway: 2}); err != nil {
		t.Fatal(err)
	}
	for _, p := range []desired.Attached{pod("a", 2), pod("b", 3)} {
		if err := table.Attach(ctx, p); err != nil {
			t.Fatal(err)
		}
	}
	send := func(dst string) {
		o.AppCtl("netdev-dummy/receive", "p12", "in_port(12),eth(src=0a:58:ac:0b:00:02,dst=0a:58:ac:0b:00:01),eth_type(0x0800),ipv4(src=172.11.0.2,dst="+dst+",proto=17,tos=0,ttl=64,frag=no),udp(src=1,dst=2)")
	}
	for range 3 {
		send("172.11.0.3")
	}
	send("172.11.0.99")
	want := map[pipeline.Reason]uint64{pipeline.OtherTenant: 3, pipeline.NoPod: 1}
	// Open vSwitch moves the datapath's counters to the flows about once a second.
	o.AppCtl("revalidator/wait")
	o.AppCtl("revalidator/purge")
	for range 2 { // the second finds nothing new
		if err := table.Resync(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(want, obs.dropped); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// TestLostPlace: when the node's own record goes, what runs keeps running.
func TestLostPlace(t *testing.T) {
	ctx := context.Background()
	o, table, _ := start(t)
	conn := connect(t, o, table)
	s := records(1, map[string]netid.ID{"a": 10})
	_, _, _ = table.SetRecords(ctx, s)
	if err := table.SetPorts(ctx, desired.Ports{Tunnels: map[string]uint32{desired.NodeTunnel: 1}, Gateway: 2}); err != nil {
		t.Fatal(err)
	}
	if err := table.Attach(ctx, pod("a", 2)); err != nil {
		t.Fatal(err)
	}
	want := flows(t, conn)
	gone := records(2, map[string]netid.ID{"a": 20})
	delete(gone.Nodes, self)
	if _, _, err := table.SetRecords(ctx, gone); err == nil {
		t.Error("records without this node are taken")
	}
	if diff := cmp.Diff(want, flows(t, conn)); diff != "" {
		t.Error(diff)
	}
	// Its pods come and go by the newest records all the same, and once it is back it has those of then.
	if err := table.Attach(ctx, pod("a", 3)); err != nil {
		t.Fatal(err)
	}
	back := records(3, map[string]netid.ID{"a": 10})
	if _, _, err := table.SetRecords(ctx, back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(expect(t, back, []desired.Attached{pod("a", 2), pod("a", 3)}), flows(t, conn)); diff != "" {
		t.Errorf("back (-want +got):\n%s", diff)
	}
}
