package nodeflows

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
	"github.com/k8s-ovs/k8s-ovs/test/ovstest"
)

// metered counts the requests about meters, and refuses new ones of namespaces, or does not
// answer about them.
type metered struct {
	*of.Conn
	requests     int
	refuse, mute bool
	// refuseDenied is that it refuses those of what policies deny.
	refuseDenied bool
}

func (m *metered) Meters(ctx context.Context) ([]of.Meter, error) {
	m.requests++
	return m.Conn.Meters(ctx)
}

func (m *metered) AddMeter(ctx context.Context, meter of.Meter) error {
	m.requests++
	if m.mute && ofFairness(meter.ID) {
		return context.DeadlineExceeded
	}
	if m.refuse && ofFairness(meter.ID) || m.refuseDenied && pipeline.OfDenied(meter.ID) {
		return &of.SwitchError{Type: 12, Code: 10} // OFPMMFC_OUT_OF_METERS
	}
	return m.Conn.AddMeter(ctx, meter)
}

// metering is a table with services by the bridge, and the pods on ports 12, 13 and 14
// of namespaces a, a and b.
func metering(t *testing.T, refuse bool) (*ovstest.OVS, *Table, *metered) {
	t.Helper()
	o, table, _ := start(t)
	for port := 12; port <= 14; port++ {
		o.AddDummyPort("br0", fmt.Sprint("p", port), port)
	}
	table.SetServiceProxy(pipeline.OVS)
	sw := &metered{Conn: connect(t, o, table), refuse: refuse}
	if err := reconnect(t.Context(), table, sw); err != nil {
		t.Fatal(err)
	}
	_, _, _ = table.SetRecords(t.Context(), records(1, map[string]netid.ID{"a": 10, "b": 11}))
	if err := table.SetPorts(t.Context(), desired.Ports{Tunnels: map[string]uint32{desired.NodeTunnel: 1}, Gateway: 2}); err != nil {
		t.Fatal(err)
	}
	return o, table, sw
}

func attach(t *testing.T, table *Table, pods ...desired.Attached) {
	t.Helper()
	for _, p := range pods {
		if err := table.Attach(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
}

func requireMeters(t *testing.T, when string, sw *metered, want ...string) {
	t.Helper()
	slices.Sort(want)
	if diff := cmp.Diff(want, meters(t, sw.Conn)); diff != "" {
		t.Errorf("%s: meters (-want +got):\n%s", when, diff)
	}
}

// A namespace has a meter as long as it has pods here, another pod of it costs no request
// about meters, and what it may changes without a flow.
func TestNamespaceMeters(t *testing.T) {
	_, table, sw := metering(t, false)
	requireMeters(t, "without pods", sw)
	meter := func(namespace string, a pipeline.Allowance) string {
		id := table.tenants.fair.meters(namespace).New
		return fmt.Sprintf("meter=%d,pktps,burst,stats,band=type=drop,rate=%d,burst_size=%d", id, a.Rate, a.Burst)
	}
	attach(t, table, pod("a", 2), pod("b", 4))
	requireMeters(t, "two namespaces", sw, meter("a", DefaultAllowance), meter("b", DefaultAllowance))
	requests := sw.requests
	attach(t, table, pod("a", 3))
	if n := sw.requests - requests; n != 0 {
		t.Errorf("%d requests about meters for the second pod of a namespace", n)
	}
	all, little := pipeline.Allowance{Rate: 1250, Burst: 1250}, pipeline.Allowance{Rate: 3, Burst: 10}
	before := flows(t, sw.Conn)
	if err := table.SetAllowances(t.Context(), all, map[string]pipeline.Allowance{"a": little}); err != nil {
		t.Fatal(err)
	}
	requireMeters(t, "one may less", sw, meter("a", little), meter("b", all))
	if diff := cmp.Diff(before, flows(t, sw.Conn)); diff != "" {
		t.Errorf("flows changed (-before +after):\n%s", diff)
	}
	b := meter("b", all)
	for _, p := range []desired.Attached{pod("a", 2), pod("a", 3)} {
		if err := table.Detach(t.Context(), p.Port, p.MAC); err != nil {
			t.Fatal(err)
		}
	}
	requireMeters(t, "a namespace has no pods any more", sw, b)
	for _, f := range flows(t, sw.Conn) {
		if strings.Contains(f, "table=21") && strings.Contains(f, "meter:") && !strings.Contains(f, "goto_table:25") {
			t.Errorf("flow %s", f)
		}
	}
}

// A switch that has no room for meters has pods attached all the same, and says so.
func TestNoRoomForMeters(t *testing.T) {
	_, table, sw := metering(t, true)
	if err := table.Attach(t.Context(), pod("a", 2)); err == nil {
		t.Fatal("the first attempt finds out")
	}
	attach(t, table, pod("a", 2), pod("b", 4))
	requireMeters(t, "no room", sw)
	if _, err := table.Demands(t.Context()); err == nil || !strings.Contains(err.Error(), "OUT_OF_METERS") {
		t.Errorf("demands: %v", err)
	}
	// An agent tries a connection again until all is in its switch.
	if err := reconnect(t.Context(), table, sw); err != nil {
		t.Errorf("the next connection, and still no room: %v", err)
	}
	requireMeters(t, "still no room", sw)
	// The next connection may be to a switch that has room.
	sw.refuse = false
	if err := reconnect(t.Context(), table, sw); err != nil {
		t.Fatal(err)
	}
	if n := len(meters(t, sw.Conn)); n != 2 {
		t.Errorf("%d meters after the next connection", n)
	}
}

// An answer that does not come in time is no refusal: the next attempt makes the meter.
func TestMeterUnanswered(t *testing.T) {
	_, table, sw := metering(t, false)
	sw.mute = true
	if err := table.Attach(t.Context(), pod("a", 2)); err == nil {
		t.Error("a pod is attached without an answer about its namespace's meter")
	}
	sw.mute = false
	attach(t, table, pod("a", 2))
	if n := len(meters(t, sw.Conn)); n != 1 {
		t.Errorf("%d meters after the next attempt, want one", n)
	}
}

// One namespace's packets that are too large for their path do not keep another's from
// being answered.
func TestTooLargeByNamespace(t *testing.T) {
	o, table, _ := metering(t, false)
	o.AddDummyPort("br0", "vxlan0", 1)
	attach(t, table, pod("a", 2), pod("b", 4))
	if err := table.SetPathMTUs(t.Context(), map[netip.Addr]int{node(2).HostIP: 1350}); err != nil {
		t.Fatal(err)
	}
	// In few calls, and more than a slow machine has said to it all: what comes in a second is what counts. A dummy device queues 100 and
	// throws away what finds no room, so the next call waits for the last one's.
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var d map[string]Demand
	sent := map[string]uint64{}
	send := func(namespace string, pod, n int) {
		t.Helper()
		for ; n > 0; n -= 100 {
			args := []string{"netdev-dummy/receive", fmt.Sprint("p", 10+pod)}
			for range min(n, 100) {
				args = append(args, fmt.Sprintf("in_port(%d),eth(src=0a:58:ac:0b:00:%02x,dst=0a:58:ac:0b:00:01),eth_type(0x0800),ipv4(src=172.11.0.%d,dst=172.11.4.9,proto=17,tos=0,ttl=64,frag=no),udp(src=1,dst=2)", 10+pod, pod, pod), "--len", "1400")
				sent[namespace]++
			}
			o.AppCtl(args...)
			for d[namespace].TooLarge < sent[namespace] {
				var err error
				if d, err = table.Demands(ctx); err != nil {
					t.Fatalf("%d of %d packets of %s came: %v", d[namespace].TooLarge, sent[namespace], namespace, err)
				}
			}
		}
	}
	send("a", 2, 1000)
	send("b", 4, 1)
	if d["a"].TooLarge != 1000 || d["a"].Untold == 0 || d["a"].Untold > 950 {
		t.Errorf("who sent 1000: %+v", d["a"])
	}
	if diff := cmp.Diff(Demand{TooLarge: 1}, d["b"]); diff != "" {
		t.Errorf("who sent one: %s", diff)
	}
}
