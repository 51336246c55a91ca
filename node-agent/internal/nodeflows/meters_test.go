package nodeflows

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
	"github.com/k8s-ovs/k8s-ovs/test/ovstest"
)

// meters are what the switch has.
func meters(t *testing.T, conn *of.Conn) []string {
	t.Helper()
	all, err := conn.Meters(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, m := range all {
		out = append(out, m.String())
	}
	slices.Sort(out)
	return out
}

func expectMeters(pods []desired.Attached) []string {
	var out []string
	for _, p := range pods {
		if p.Meter.Rate > 0 {
			out = append(out, fmt.Sprintf("meter=%d,kbps,burst,stats,band=type=drop,rate=%d,burst_size=%d", p.Port, p.Meter.Rate, p.Meter.Burst))
		}
	}
	slices.Sort(out)
	return out
}

// limited is a table with one pod on port 12 that has a meter.
func limited(t *testing.T) (*ovstest.OVS, *Table, *observer, *of.Conn, desired.Attached) {
	t.Helper()
	o, table, obs := start(t)
	o.AddDummyPort("br0", "p12", 12)
	conn := connect(t, o, table)
	_, _, _ = table.SetRecords(t.Context(), records(1, map[string]netid.ID{"a": 10}))
	if err := table.SetPorts(t.Context(), desired.Ports{Tunnels: map[string]uint32{desired.NodeTunnel: 1}, Gateway: 2}); err != nil {
		t.Fatal(err)
	}
	p := pod("a", 2)
	p.Meter = desired.Meter{Rate: 1000, Burst: 2000}
	if err := table.Attach(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	return o, table, obs, conn, p
}

// A rate changes without a change of flows, and a limit that goes takes its meter along.
func TestMeterChanges(t *testing.T) {
	_, table, obs, conn, p := limited(t)
	bundles := obs.bundles
	for _, rate := range []uint32{5000, 300} {
		p.Meter.Rate = rate
		if err := table.Attach(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(expectMeters([]desired.Attached{p}), meters(t, conn)); diff != "" {
			t.Errorf("rate %d (-want +got):\n%s", rate, diff)
		}
	}
	if obs.bundles != bundles {
		t.Errorf("%d bundles for a change of the rate", obs.bundles-bundles)
	}
	p.Meter = desired.Meter{}
	if err := table.Attach(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if got := meters(t, conn); len(got) > 0 {
		t.Errorf("without a limit there is %q", got)
	}
	if diff := cmp.Diff(expect(t, *table.records, []desired.Attached{p}), flows(t, conn)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// What somebody does to meters is found by a check of the pod, put right with the
// flows that went with it, and counted; so is what a crash left.
func TestMeterRepair(t *testing.T) {
	o, table, obs, conn, p := limited(t)
	wantFlows, wantMeters := flows(t, conn), meters(t, conn)
	for name, tc := range map[string]struct {
		damage   []string
		repaired int
		found    string
	}{
		"nothing":         {nil, 0, ""},
		"deleted":         {[]string{"del-meter", "br0", "meter=12"}, 2, "meter is missing"},
		"another rate":    {[]string{"mod-meter", "br0", "meter=12,kbps,burst,stats,band=type=drop,rate=9,burst_size=2000"}, 1, "meter differs"},
		"left by a crash": {[]string{"add-meter", "br0", "meter=77,kbps,band=type=drop,rate=9"}, 1, ""},
	} {
		if tc.damage != nil {
			o.OFCtl(tc.damage...)
		}
		found, err := table.Check(t.Context(), p.Port)
		if err != nil || (tc.found == "") != (len(found) == 0) || !strings.Contains(strings.Join(found, "; "), tc.found) {
			t.Errorf("%s: check finds %q (%v), want %q", name, found, err, tc.found)
		}
		before := obs.repaired
		if err := table.Resync(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := obs.repaired - before; n != tc.repaired {
			t.Errorf("%s: %d repairs, want %d", name, n, tc.repaired)
		}
		if diff := cmp.Diff(append(wantFlows, wantMeters...), append(flows(t, conn), meters(t, conn)...)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// A restarted ovs-vswitchd gets meters and flows back, and an agent that starts finds
// them as they should be.
func TestMeterRestarts(t *testing.T) {
	o, table, _, conn, p := limited(t)
	want := append(flows(t, conn), meters(t, conn)...)
	o.KillVswitchd()
	storeOf(table).Disconnect()
	o.StartVswitchd()
	conn = connect(t, o, table)
	if diff := cmp.Diff(want, append(flows(t, conn), meters(t, conn)...)); diff != "" {
		t.Errorf("after a restart of ovs-vswitchd (-want +got):\n%s", diff)
	}
	obs := &observer{}
	restarted := newTable(obs)
	restarted.Load([]desired.Attached{p})
	follow(t, restarted, 11)
	_, _, _ = restarted.SetRecords(t.Context(), records(1, map[string]netid.ID{"a": 10}))
	conn = connect(t, o, restarted)
	if diff := cmp.Diff(want, append(flows(t, conn), meters(t, conn)...)); diff != "" || obs.bundles != 0 {
		t.Errorf("%d bundles at the start of an agent (-before +after):\n%s", obs.bundles, diff)
	}
}

// Pods whose ports swapped their numbers, one attached anew after the other, have their own meters
// in the end; where the first is not taken nothing changed.
func TestPortsSwapped(t *testing.T) {
	o, table, _, conn, a := limited(t)
	o.AddDummyPort("br0", "p13", 13)
	b := pod("a", 3)
	b.Meter = desired.Meter{Rate: 9000, Burst: 9000}
	attach(t, table, b)
	a.Port, b.Port = b.Port, a.Port
	sw := &losing{Switch: conn, before: true}
	if err := reconnect(t.Context(), table, sw); err != nil {
		t.Fatal(err)
	}
	before := flows(t, conn)
	sw.lose = true
	if err := table.Attach(t.Context(), a); err == nil {
		t.Error("no error, but the switch did not take it")
	}
	sw.lose = false
	if err := table.Resync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, flows(t, conn)); diff != "" {
		t.Errorf("not taken (-before +after):\n%s", diff)
	}
	attach(t, table, a, b)
	want := []desired.Attached{a, b}
	if diff := cmp.Diff(expect(t, *table.records, want), flows(t, conn)); diff != "" {
		t.Errorf("flows (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(expectMeters(want), meters(t, conn)); diff != "" {
		t.Errorf("meters (-want +got):\n%s", diff)
	}
}

// Pods that are found with the same address keep nobody else from the network: who has to wait is told.
func TestAddressTwice(t *testing.T) {
	o, table, _ := start(t)
	a, b, c := pod("red", 2), pod("red", 3), pod("blue", 4)
	b.Addresses = a.Addresses
	table.Load([]desired.Attached{a, b, c})
	conn := connect(t, o, table)
	if err := table.SetPorts(t.Context(), desired.Ports{Tunnels: map[string]uint32{desired.NodeTunnel: 1}, Gateway: 2}); err != nil {
		t.Fatal(err)
	}
	problems, _, err := table.SetRecords(t.Context(), records(1, map[string]netid.ID{"red": 10, "blue": 11}))
	if err != nil || len(problems) != 1 || !strings.Contains(problems[0].Record, "of namespace red with [172.11.0.2]") {
		t.Errorf("problems %v: %v", problems, err)
	}
	b = pod("red", 3)
	attach(t, table, b)
	if problems, _, err = table.SetRecords(t.Context(), *table.records); err != nil || len(problems) > 0 {
		t.Errorf("with addresses of their own: problems %v, %v", problems, err)
	}
	if diff := cmp.Diff(expect(t, *table.records, []desired.Attached{a, b, c}), flows(t, conn)); diff != "" {
		t.Errorf("flows (-want +got):\n%s", diff)
	}
}

// Who goes at a port that another has by now takes nothing from that one.
func TestDetachOfAnother(t *testing.T) {
	_, table, _, conn, a := limited(t)
	b := pod("a", 3)
	b.Port = a.Port
	attach(t, table, b) // Open vSwitch gave it the number of a's port
	if err := table.Detach(t.Context(), a.Port, a.MAC); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(expect(t, *table.records, []desired.Attached{b}), flows(t, conn)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	storeOf(table).Disconnect()
	if err := table.Detach(t.Context(), a.Port, a.MAC); err != nil {
		t.Errorf("without a switch: %v", err)
	}
}

// One pod at two numbers, one after the other in one bundle, is at the last.
func TestNumbersAtOnce(t *testing.T) {
	_, table, _, conn, a := limited(t)
	b, moved := pod("a", 3), a
	moved.Port, b.Port = 13, 12
	for _, err := range table.change(t.Context(), []change{{pod: moved}, {pod: b}, {pod: a, goes: true}}) {
		if err != nil {
			t.Error(err)
		}
	}
	if diff := cmp.Diff(expect(t, *table.records, []desired.Attached{moved, b}), flows(t, conn)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// What the meter drops is told by pod.
func TestMeterDrops(t *testing.T) {
	o, table, _, _, p := limited(t)
	p.Meter = desired.Meter{Rate: 8, Burst: 8} // one packet of 1000 bytes
	if err := table.Attach(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if err := table.Attach(t.Context(), pod("a", 3)); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		o.AppCtl("netdev-dummy/receive", "p12", "in_port(12),eth(src=0a:58:ac:0b:00:02,dst=0a:58:ac:0b:00:01),eth_type(0x0800),ipv4(src=172.11.0.2,dst=172.11.0.9,proto=17,tos=0,ttl=64,frag=no),udp(src=1,dst=2)", "--len", "1000")
	}
	drops, err := table.MeterDrops(t.Context())
	if n := drops[p.Port]; err != nil || len(drops) != 1 || n == 0 || n == 5 {
		t.Errorf("drops %v, %v; want some of 5 packets", drops, err)
	}
}

// Paths that carry less get their flows and the meter, and lose them again.
func TestPathMTUs(t *testing.T) {
	_, table, _, conn, _ := limited(t)
	before := append(flows(t, conn), meters(t, conn)...)
	if err := table.SetPathMTUs(t.Context(), map[netip.Addr]int{node(2).HostIP: 1350}); err != nil {
		t.Fatal(err)
	}
	all := strings.Join(append(flows(t, conn), meters(t, conn)...), "\n")
	for _, want := range []string{"check_pkt_larger(1364)", fmt.Sprintf("meter=%d,pktps", pipeline.MeterTooLarge), fmt.Sprintf("actions=meter:%d,CONTROLLER", pipeline.MeterTooLarge)} {
		if !strings.Contains(all, want) {
			t.Errorf("no %s in\n%s", want, all)
		}
	}
	if err := table.SetPathMTUs(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, append(flows(t, conn), meters(t, conn)...)); diff != "" {
		t.Errorf("when the path carries all again (-before +after):\n%s", diff)
	}
}
