package main

import (
	"errors"
	"flag"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// programs makes a folder with files of the programs' names.
func programs(t *testing.T, without string) string {
	t.Helper()
	dir := t.TempDir()
	for _, p := range []string{"k8s-ovs", "k8s-ovs-agent", "k8s-ovs-controller", "netns", "netlab", "bridge", "host-local", "bandwidth"} {
		if p == without {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, p), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestParse(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.MkdirAll(defaultOut, 0o755); err != nil {
		t.Fatal(err)
	}
	bin, out := programs(t, ""), t.TempDir()
	for _, tc := range []struct {
		name, args string
		out        string
		fails      string // part of the error
	}{
		{name: "all", args: "-bin " + bin, out: defaultOut},
		{name: "short writes nothing", args: "-short -bin " + bin},
		{name: "some writes nothing", args: "-only cni -bin " + bin},
		{name: "short with -out", args: "-short -out " + out + " -bin " + bin, out: out},
		{name: "no such folder", args: "-out /nowhere -bin " + bin, fails: "/nowhere"},
		{name: "no reference", args: "-bin " + programs(t, "bridge"), fails: "program bridge is not in"},
		{name: "bad regexp", args: "-only ( -bin " + bin, fails: "-only"},
		{name: "compare", args: "-compare a.json b.json"},
		{name: "compare with one file", args: "-compare a.json", fails: "two files"},
		{name: "argument", args: "-bin " + bin + " more", fails: `"more"`},
	} {
		cfg, err := parse(strings.Fields(tc.args), io.Discard)
		switch {
		case tc.fails == "" && err != nil:
			t.Errorf("%s: %v", tc.name, err)
		case tc.fails != "" && (err == nil || !strings.Contains(err.Error(), tc.fails)):
			t.Errorf("%s: error %v, want one with %q", tc.name, err, tc.fails)
		case tc.fails == "" && cfg.out != tc.out:
			t.Errorf("%s: writes to %q, want %q", tc.name, cfg.out, tc.out)
		}
	}
	if _, err := parse([]string{"-h"}, io.Discard); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("-h: %v", err)
	}
}

// TestInTurn: both sides as often, in turn, the first place in turn, warming up first.
func TestInTurn(t *testing.T) {
	var got [][2]int
	err := inTurn(t.Context(), 1, 2, func(side, i int) error {
		got = append(got, [2]int{side, i})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	want := [][2]int{{1, -1}, {0, -1}, {0, 0}, {1, 0}, {1, 1}, {0, 1}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	failure := errors.New("failure")
	n := 0
	if err := inTurn(t.Context(), 0, 5, func(int, int) error { n++; return failure }); !errors.Is(err, failure) || n != 1 {
		t.Errorf("after an error: %v, %d calls", err, n)
	}
}

func TestHistograms(t *testing.T) {
	const addKey = `k8s_ovs_cni_seconds{code="0",command="ADD"}`
	before := parseHistograms(`# HELP k8s_ovs_cni_seconds Time of CNI requests.
# TYPE k8s_ovs_cni_seconds histogram
k8s_ovs_cni_seconds_bucket{code="0",command="ADD",le="0.0005"} 1
k8s_ovs_cni_seconds_sum{code="0",command="ADD"} 0.5
k8s_ovs_cni_seconds_count{code="0",command="ADD"} 10
k8s_ovs_flow_commit_seconds_sum 1e-3
k8s_ovs_flow_commit_seconds_count 2
k8s_ovs_pods 5
`)
	after := parseHistograms(`k8s_ovs_cni_seconds_sum{code="0",command="ADD"} 0.7
k8s_ovs_cni_seconds_count{code="0",command="ADD"} 14
k8s_ovs_flow_commit_seconds_sum 1e-3
k8s_ovs_flow_commit_seconds_count 2
`)
	if d, ok := between(before, after, addKey); !ok || d.Round(time.Microsecond) != 50*time.Millisecond {
		t.Errorf("mean ADD %v, %t; want 50ms", d, ok)
	}
	if d, ok := between(before, after, commitKey); ok {
		t.Errorf("mean commit %v though there was none", d)
	}
	if len(before) != 2 {
		t.Errorf("histograms %v, want 2", before)
	}
}

// TestOtherTenants: the flows of different pods differ in everything that
// identifies a pod, or one would replace the other in the switch.
func TestOtherTenants(t *testing.T) {
	pod := []string{
		"cookie=0x10300ac100002, table=0, priority=100,ip,in_port=12,dl_src=0a:58:ac:10:00:02,nw_src=172.16.0.2 actions=set_field:0x65->reg1,goto_table:5",
		"cookie=0x1040000000065, table=5, priority=100,reg1=0x65 actions=set_field:0x49a1df->reg0,goto_table:20",
		"cookie=0x10300ac100002, table=40, priority=100,ip,nw_dst=172.16.0.2 actions=set_field:0x65->reg12,set_field:0xc->reg2,set_field:0a:58:ac:10:00:02->eth_dst,goto_table:45",
		"cookie=0x1040000000065, table=45, priority=100,reg0=0x49a1df,reg12=0x65 actions=goto_table:60",
		"cookie=0x1040000000065, table=45, priority=100,reg0=0,reg12=0x65 actions=output:12",
	}
	got, err := otherTenants(pod, 300)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"cookie=0xbe7c4, table=0, priority=100,ip,in_port=20001,dl_src=0a:58:ac:1f:00:01,nw_src=172.31.0.1 actions=set_field:0xa00002->reg1,goto_table:5",
		"cookie=0xbe7c4, table=5, priority=100,reg1=0xa00002 actions=set_field:0xa00003->reg0,goto_table:20",
		"cookie=0xbe7c4, table=40, priority=100,ip,nw_dst=172.31.0.1 actions=set_field:0xa00002->reg12,set_field:0x4e21->reg2,set_field:0a:58:ac:1f:00:01->eth_dst,goto_table:45",
		"cookie=0xbe7c4, table=45, priority=100,reg0=0xa00003,reg12=0xa00002 actions=goto_table:60",
		"cookie=0xbe7c4, table=45, priority=100,reg0=0,reg12=0xa00002 actions=output:20001",
	}
	if diff := cmp.Diff(want, got[5:10]); diff != "" {
		t.Error(diff)
	}
	slices.Sort(got)
	if n := len(slices.Compact(got)); n != 1500 {
		t.Errorf("%d different flows, want 1500", n)
	}
	if _, err := otherTenants([]string{"table=0, actions=drop"}, 1); err == nil {
		t.Error("flows without a pod in them are taken")
	}
}

func TestNth(t *testing.T) {
	for n, want := range map[int]string{0: "10.97.0.1", 254: "10.97.0.255", 255: "10.97.1.0", 65535: "10.98.0.0"} {
		if got := nth(serviceAddresses, n); got != want {
			t.Errorf("%d after %s: %s, want %s", n, serviceAddresses, got, want)
		}
	}
}

func TestTarget(t *testing.T) {
	pod, vip := netip.MustParseAddr("172.16.0.2"), netip.MustParseAddr("10.98.0.1")
	if got := (path{to: host{ip: pod}}).target(); got != pod {
		t.Errorf("without a service: %s, want the pod's %s", got, pod)
	}
	if got := (path{to: host{ip: pod}, via: vip}).target(); got != vip {
		t.Errorf("by a service: %s, want %s", got, vip)
	}
}
