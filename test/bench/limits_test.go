package main

import (
	"math"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns/nstest"
)

func TestLimitRows(t *testing.T) {
	r := limitResult{
		limited: limited{direction: "egress", protocol: "tcp", rate: 10e6, flows: 16}, n: 3,
		sides: [sides]carried{{9.9, 0.5, 40}, {9.5, 20, 120}},
		free:  [sides]carried{{mbits: 11}, {mbits: 10.9}},
	}
	type row struct {
		name, bar, note string
		ratio           float64
		met             bool
	}
	short := func(rows []Row) (out []row) {
		for _, r := range rows {
			bar := ""
			if r.bar != nil {
				bar = r.bar.String()
			}
			out = append(out, row{r.Name, bar, r.Note, math.Round(float64(r.Ratio)*1000) / 1000, r.met()})
		}
		return out
	}
	want := []row{
		{"limit egress tcp 10M 16 flows", "0.97 ≤ ratio ≤ 1.03", "", 0.99, true},
		{"limit egress tcp 10M 16 flows retransmits", "ours ≤ 1", "", 0.025, true},
		{"limit egress tcp 10M 16 flows latency", "ours ≤ 210", "", 0.333, true},
	}
	if diff := cmp.Diff(want, short(r.rows()), cmp.AllowUnexported(row{})); diff != "" {
		t.Error(diff)
	}
	r.free[ours].mbits = 10.9
	for i := range want {
		want[i].bar, want[i].note = "", "11 Mbit/s without a limit"
	}
	if diff := cmp.Diff(want, short(r.rows()), cmp.AllowUnexported(row{})); diff != "" {
		t.Errorf("where the machine carries too little: %s", diff)
	}
	r.limited = limited{direction: "ingress", protocol: "udp", rate: 1e9, flows: 1}
	if rows := r.rows(); len(rows) != 1 || rows[0].Name != "limit ingress udp 1G" {
		t.Errorf("rows of UDP: %+v", rows)
	}
}

func TestLimitsTable(t *testing.T) {
	got := limitsTable(testLimits())
	for _, want := range []string{
		"| 1M | ingress, TCP | 1.00 | 1.000 | 0.960 | 0.960 | 0.500 | 0.500 | 20.0 | 20.0 |\n",
		"| 100M | egress, TCP, 16 connections |",
		"| 1G | egress, UDP | 850 | 0.850* | 945 | 0.945 |",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}

// TestFlood: what is measured through a tbf of the kernel is what it lets through.
func TestFlood(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	const rate = 20e6
	f := flood{
		path:  path{from: testHost(t, "192.0.2.1"), to: testHost(t, "192.0.2.2")},
		flows: 2, skip: 500 * time.Millisecond, window: time.Second,
	}
	if err := ns.IP(t.Context(), f.from.netns, "link add eth0 type veth peer name eth0 netns "+f.to.netns); err != nil {
		t.Fatal(err)
	}
	for _, h := range []host{f.from, f.to} {
		if err := ns.IP(t.Context(), h.netns, "addr add "+h.ip.String()+"/24 dev eth0", "link set eth0 up"); err != nil {
			t.Fatal(err)
		}
	}
	if err := ns.WaitRunning(t.Context(), f.from.netns, "eth0"); err != nil {
		t.Fatal(err)
	}
	// Room for all that two connections queue: a segment that is lost would hold up what
	// came behind it, and the share that counts in the window is luck.
	qdisc := strings.Fields("-n " + f.from.netns + " qdisc add dev eth0 root tbf rate 20mbit burst 16k limit 4m")
	if out, err := exec.CommandContext(t.Context(), "tc", qdisc...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, tc := range []struct {
		name    string
		offered float64
		payload int
		share   float64 // of the frames
		within  float64
	}{
		{"tcp", 0, 0, 1448. / 1514, 0.05},
		{"udp", 1.25 * rate, 1472, 1472. / 1514, 0.03},
	} {
		f.offered, f.payload = tc.offered, tc.payload
		want := rate * tc.share / 1e6
		var got carried
		var all []float64
		// A window in which a busy machine did not run the receiver is measured again.
		for off := true; off && len(all) < 3; off = math.Abs(got.mbits/want-1) > tc.within {
			var err error
			if got, err = f.run(t.Context()); err != nil {
				t.Fatal(err)
			}
			all = append(all, got.mbits)
		}
		if math.Abs(got.mbits/want-1) > tc.within {
			t.Errorf("%s: %.2f Mbit/s, want %.2f", tc.name, all, want)
		}
		if !(got.roundTrip > 5) {
			t.Errorf("%s: longest round trip %.1f ms, in spite of the queue", tc.name, got.roundTrip)
		}
		if tcp := tc.offered == 0; tcp != (got.retransmits >= 0 && got.retransmits < 50) {
			t.Errorf("%s: %.1f %% sent again", tc.name, got.retransmits)
		}
	}
	if bytes, err := f.to.datagram(); err != nil || bytes != 1472 {
		t.Errorf("largest datagram %d, %v; want 1472", bytes, err)
	}
}

// testHost is a host in a namespace of its own.
func testHost(t *testing.T, ip string) host {
	t.Helper()
	return host{nstest.New(t), netip.MustParseAddr(ip)}
}
