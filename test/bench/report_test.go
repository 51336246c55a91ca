package main

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var testReport = report{
	machine: machine{cpu: "Abacus", cores: 2, memory: 4 << 30, kernel: "6.1", ovs: "3.1.0", golang: "go1.26", load: "0.10", date: "2026-01-02", commit: "abc", stolen: 0.125},
	rows: []Row{
		compared("add_median", "ADD, median", "ms", 9, 10, 200, ratioAtMost(1)),
		compared("tcp", "TCP", "Mbit/s", 900, 1000, 6, ratioAtLeast(0.95)),
		alone("rss", "memory", "MB", 43.44, 1, oursAtMost(60)),
		{Name: "start", title: "start", Ours: 250, Reference: none, Ratio: none, Unit: "ms", N: 8, By: byOurs, Better: wayLess, Low: 240, High: 262},
		{Name: "limit", title: "limit", Ours: 700, Reference: 960, Ratio: 0.7, Unit: "Mbit/s", N: 3, Note: "800 Mbit/s without a limit", By: byRatio, Better: wayOne, Low: 0.69, High: 0.72},
	},
	sections: []section{{"Where the time goes", "Nowhere.\n"}},
	pictures: map[string][]byte{"limits.svg": []byte("<svg/>")},
}

func TestMarkdown(t *testing.T) {
	_, got, _ := strings.Cut(testReport.markdown(), "lies within.\n\n")
	const want = `- CPU: Abacus, 2 cores; memory: 4 GiB
- kernel 6.1; Open vSwitch 3.1.0, userspace datapath (netdev); go1.26
- 2026-01-02, commit abc; load average before the run: 0.10; CPU time taken by the hypervisor during it: 12.5 %

| measured | ours | reference | unit | ratio | bounds | bar | | n |
|---|---:|---:|---|---:|---|---|---|---:|
| ADD, median | 9.00 | 10.0 | ms | 0.900 |  | ratio ≤ 1 | met | 200 |
| TCP | 900 | 1000 | Mbit/s | 0.900 |  | ratio ≥ 0.95 | **missed** | 6 |
| memory | 43.4 | – | MB | – |  | ours ≤ 60 | met | 1 |
| start | 250 | – | ms | – | 240 to 262 |  |  | 8 |
| limit | 700 | 960 | Mbit/s | 0.700 | 0.690 to 0.720 | 800 Mbit/s without a limit |  | 3 |

## Where the time goes

Nowhere.
`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestJSON: results.json is a list of objects with these keys, null where there
// is no reference.
func TestJSON(t *testing.T) {
	data, err := testReport.json()
	if err != nil {
		t.Fatal(err)
	}
	var got []map[string]any
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatalf("%v in:\n%s", err, data)
	}
	want := []map[string]any{
		{"name": "add_median", "ours": 9.0, "reference": 10.0, "unit": "ms", "ratio": 0.9, "n": 200.0, "by": "ratio", "better": "less", "low": nil, "high": nil},
		{"name": "tcp", "ours": 900.0, "reference": 1000.0, "unit": "Mbit/s", "ratio": 0.9, "n": 6.0, "by": "ratio", "better": "more", "low": nil, "high": nil},
		{"name": "rss", "ours": 43.44, "reference": nil, "unit": "MB", "ratio": nil, "n": 1.0, "by": "ours", "better": "less", "low": nil, "high": nil},
		{"name": "start", "ours": 250.0, "reference": nil, "unit": "ms", "ratio": nil, "n": 8.0, "by": "ours", "better": "less", "low": 240.0, "high": 262.0},
		{"name": "limit", "ours": 700.0, "reference": 960.0, "unit": "Mbit/s", "ratio": 0.7, "n": 3.0, "by": "ratio", "better": "one", "low": 0.69, "high": 0.72, "note": "800 Mbit/s without a limit"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if data, err := (report{}).json(); err != nil || strings.TrimSpace(string(data)) != "[]" {
		t.Errorf("no rows: %s, %v; want an empty list", data, err)
	}
}

func TestMet(t *testing.T) {
	for _, tc := range []struct {
		name string
		row  Row
		want bool
	}{
		{"at the limit", compared("", "", "", 13, 10, 1, ratioAtMost(1.3)), true},
		{"above it", compared("", "", "", 13.1, 10, 1, ratioAtMost(1.3)), false},
		{"enough", compared("", "", "", 95, 100, 1, ratioAtLeast(0.95)), true},
		{"not enough", compared("", "", "", 94, 100, 1, ratioAtLeast(0.95)), false},
		{"within", compared("", "", "", 103, 100, 1, ratioWithin(0.97, 1.03)), true},
		{"too much", compared("", "", "", 104, 100, 1, ratioWithin(0.97, 1.03)), false},
		{"too little", compared("", "", "", 96, 100, 1, ratioWithin(0.97, 1.03)), false},
		{"no bar", alone("", "", "", 1, 1, nil), true},
		{"nothing measured", alone("", "", "", math.NaN(), 0, oursAtMost(1)), false},
		{"no reference measured", compared("", "", "", 1, 0, 1, ratioAtMost(1)), false},
	} {
		if got := tc.row.met(); got != tc.want {
			t.Errorf("%s: met is %t", tc.name, got)
		}
	}
}

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	if err := testReport.write(dir); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if diff := cmp.Diff([]string{"RESULTS.md", "limits.svg", "results.json"}, names); diff != "" {
		t.Error(diff)
	}
	got, err := os.ReadFile(filepath.Join(dir, "RESULTS.md"))
	if diff := cmp.Diff(testReport.markdown(), string(got)); err != nil || diff != "" {
		t.Error(err, diff)
	}
	if err := testReport.write(filepath.Join(dir, "nowhere")); err == nil {
		t.Error("writing into a folder that is not there gives no error")
	}
}
