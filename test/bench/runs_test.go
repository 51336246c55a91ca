package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// around are n values whose median is middle and that differ from it by part at most.
func around(middle, part float64, n int) []float64 {
	xs := make([]float64, n)
	for i := range xs {
		xs[i] = middle * (1 + part*(2*float64(i)/float64(n-1)-1))
	}
	return xs
}

// TestDiffer: what is worse, by less and by more than noise, for each way of being better.
func TestDiffer(t *testing.T) {
	one := func(unit string, middle, part float64) Row {
		return measured("", "", unit, median, around(middle, part, 101), nil)
	}
	both := func(o, f float64, b *bar) Row {
		return paired("", "", "ms", median, [sides][]float64{around(o, 0.1, 101), around(f, 0.1, 101)}, b)
	}
	for _, tc := range []struct {
		name          string
		before, after Row
		want          verdict
	}{
		{"the same", one("ms", 10, 0.1), one("ms", 10, 0.1), noVerdict},
		{"slower by 2 %", one("ms", 10, 0.001), one("ms", 10.2, 0.001), noVerdict},
		{"slower by 5 %", one("ms", 10, 0.001), one("ms", 10.5, 0.001), gotWorse},
		{"slower by 5 %, in noise", one("ms", 10, 0.5), one("ms", 10.5, 0.5), noVerdict},
		{"slower by 5 %, in noise of one side", one("ms", 10, 0.001), one("ms", 10.5, 0.5), noVerdict},
		{"twice as slow, in the same noise", one("ms", 10, 0.5), one("ms", 20, 0.5), gotWorse},
		{"faster", one("ms", 10, 0.001), one("ms", 9, 0.001), gotBetter},
		{"fewer a second", one("1/s", 1000, 0.001), one("1/s", 900, 0.001), gotWorse},
		{"more a second", one("1/s", 1000, 0.001), one("1/s", 1100, 0.001), gotBetter},
		{"none before, some after", one("%", 0, 0), one("%", 2, 0.1), gotWorse},
		{"measured once, more", alone("", "", "MB", 50, 1, nil), alone("", "", "MB", 52, 1, nil), perhapsWorse},
		{"measured once, hardly more", alone("", "", "MB", 50, 1, nil), alone("", "", "MB", 51, 1, nil), noVerdict},
		{"both sides twice as slow: the machine", both(10, 10, nil), both(20, 20, nil), noVerdict},
		{"ours alone slower", both(10, 10, nil), both(20, 10, nil), gotWorse},
		{"both slower, by ours", both(10, 10, oursAtMost(30)), both(20, 20, oursAtMost(30)), gotWorse},
		{"not measured", both(10, 10, nil), both(10, 0, nil), incomparable},
		{"another bar", both(10, 10, nil), both(10, 10, oursAtMost(30)), incomparable},
		{"farther from a limit, above", atLimit(1.00), atLimit(1.05), gotWorse},
		{"farther from a limit, below", atLimit(0.99), atLimit(0.93), gotWorse},
		{"nearer to a limit", atLimit(1.06), atLimit(1.00), gotBetter},
		{"on the other side of it", atLimit(0.98), atLimit(1.02), noVerdict},
	} {
		if got := differ(tc.before, tc.after); got.verdict != tc.want {
			t.Errorf("%s: %+v, want verdict %q", tc.name, got, tc.want)
		}
	}
}

// atLimit is a pod that carries that part of its limit.
func atLimit(part float64) Row {
	r := limitResult{limited: limited{direction: "egress", protocol: "udp", rate: 100e6, flows: 1}, n: 3}
	for _, mbits := range around(100*part, 0.001, 3) {
		r.runs = append(r.runs, carried{mbits: mbits})
	}
	r.sides[ours], r.free[ours] = middle(r.runs), carried{mbits: 1000}
	return r.rows()[0]
}

// TestCompareRuns: from one run's file to the other's, and the exit code.
func TestCompareRuns(t *testing.T) {
	write := func(name string, rows ...Row) string {
		t.Helper()
		dir := filepath.Join(t.TempDir(), name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := (report{rows: rows}).write(dir); err != nil {
			t.Fatal(err)
		}
		return filepath.Join(dir, "results.json")
	}
	add := func(o, f float64) Row {
		return paired("add", "ADD", "ms", median, [sides][]float64{around(o, 0.01, 50), around(f, 0.01, 50)}, ratioAtMost(1))
	}
	memory := alone("memory", "", "MB", 50, 1, nil)
	before := write("before", add(10, 10), memory)
	var out bytes.Buffer
	if code := run(t.Context(), []string{"-compare", before, write("same", add(11, 11), memory, alone("later", "", "ms", 1, 1, nil))}, &out, &out); code != 0 {
		t.Errorf("exit code %d:\n%s", code, out.String())
	}
	for _, want := range []string{"| add | ratio | 1.00 | 1.00 | 0.0 | ", "| later | ours | – | 1.00 | – | – | new |", "0 of 2 rows are worse", "differs by 10.0 % in the middle of 1 rows"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in:\n%s", want, out.String())
		}
	}
	for name, rows := range map[string][]Row{"slower": {add(12, 10), memory}, "gone": {memory}} {
		out.Reset()
		after := write(name, rows...)
		if err := compareRuns(before, after, &out); !errors.Is(err, errWorse) || !strings.Contains(err.Error(), ": add;") || !strings.Contains(out.String(), "1 of 2 rows are worse") {
			t.Errorf("%s: %v:\n%s", name, err, out.String())
		}
		if code := run(t.Context(), []string{"-compare", before, after}, &out, &out); code != 1 {
			t.Errorf("%s: exit code %d, want 1", name, code)
		}
	}
	old := filepath.Join(t.TempDir(), "old.json")
	if err := os.WriteFile(old, []byte(`[{"name":"add","ours":10,"reference":10,"unit":"ms","ratio":1,"n":200}]`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := compareRuns(old, before, &out); err == nil || errors.Is(err, errWorse) || !strings.Contains(err.Error(), "row add in "+old) {
		t.Errorf("results of an earlier version: %v", err)
	}
}
