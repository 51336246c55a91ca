package main

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden file")

// TestGolden: one run of each kind of outcome as Markdown.
func TestGolden(t *testing.T) {
	r, err := read("testdata/run")
	if err != nil {
		t.Fatal(err)
	}
	got := r.markdown(time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC))
	const golden = "testdata/run.golden.md"
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// TestOverlay: the results of an overlay name it, and say nothing of specs that were
// not chosen.
func TestOverlay(t *testing.T) {
	r, err := read("testdata/run")
	if err != nil {
		t.Fatal(err)
	}
	r.overlay = "single-tenant"
	got := r.markdown(time.Now())
	if !strings.Contains(got, "make conformance-overlays") || !strings.Contains(got, "`test/conformance/overlays/single-tenant`") || strings.Contains(got, "Not run") {
		t.Errorf("results of overlay single-tenant:\n%s", got)
	}
}

func TestVerdict(t *testing.T) {
	good := func() results {
		return results{
			upstream: []spec{{name: "a", outcome: passed}},
			own:      []spec{{name: "b", outcome: passed}, {name: "c", outcome: skipped}},
			starts:   map[string][]float64{ours: {600, 700, 800}, reference: {700, 710, 1200}},
			facts:    []fact{{readyFact, "29000 ms"}},
		}
	}
	for _, tt := range []struct {
		name  string
		spoil func(*results)
		wants string // in the error; empty: none
		says  string
	}{
		{"all passed", func(*results) {}, "", "upstream specs: 1 passed"},
		{"not measured", func(r *results) { r.starts = nil }, "", ""},
		{"upstream spec failed", func(r *results) { r.upstream[0].outcome = failed }, "upstream spec failed: a", ""},
		{"our spec failed", func(r *results) { r.own[0].outcome = failed }, "our spec failed: b", ""},
		{"a policy's spec failed", func(r *results) {
			r.ranPolicies, r.policies = true, []spec{{name: "d", outcome: failed}, {name: "e", outcome: passed}}
		}, "upstream NetworkPolicy spec failed: d", ""},
		{"no policy's spec ran", func(r *results) { r.ranPolicies = true }, "no upstream NetworkPolicy spec passed", ""},
		{"a cluster policy's spec failed", func(r *results) {
			r.ranClusterPolicies, r.clusterPolicies = true, []spec{{name: "f", outcome: failed}, {name: "g", outcome: passed}}
		}, "upstream ClusterNetworkPolicy spec failed: f", ""},
		{"no cluster policy's spec ran", func(r *results) { r.ranClusterPolicies = true }, "no upstream ClusterNetworkPolicy spec passed", ""},
		{"nothing ran", func(r *results) { r.upstream = nil }, "no upstream spec passed", ""},
		{"all skipped", func(r *results) { r.own[0].outcome = skipped }, "no our spec passed", ""},
		{"ready late", func(r *results) { r.facts[0].value = "30001 ms" }, "", "missed: nodes Ready after apply"},
		{"pods start late", func(r *results) { r.starts[ours] = []float64{700, 711, 712} }, "", "missed: pod start median 711 ms"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := good()
			tt.spoil(&r)
			var out strings.Builder
			err := r.verdict(&out)
			if tt.says == "" && strings.Contains(out.String(), "missed") || !strings.Contains(out.String(), tt.says) {
				t.Errorf("says %q, want %q", out.String(), tt.says)
			}
			if (err == nil) != (tt.wants == "") || err != nil && !strings.Contains(err.Error(), tt.wants) {
				t.Errorf("got %v, want %q", err, tt.wants)
			}
		})
	}
}

// TestClusterPoliciesWithoutSpecs: a suite whose pods do not come, or do not go, has failed.
func TestClusterPoliciesWithoutSpecs(t *testing.T) {
	const began, ended = `{"Action":"run","Test":"TestClusterNetworkPolicy"}`, `{"Action":"fail","Test":"TestClusterNetworkPolicy","Elapsed":300}`
	const good = `{"Action":"run","Test":"TestClusterNetworkPolicy/A"}{"Action":"pass","Test":"TestClusterNetworkPolicy/A","Elapsed":1}`
	for _, text := range []string{began + ended, began + good + ended, began + good} {
		specs, err := readClusterPolicies(strings.NewReader(text))
		if err != nil || count(specs, failed) != 1 {
			t.Errorf("%s: %v, %v", text, specs, err)
		}
	}
}

// TestCyclonus: what failed is named, and nothing is no success.
func TestCyclonus(t *testing.T) {
	dir := t.TempDir()
	judge := func(cases string) (written string, err error) {
		from, to := filepath.Join(dir, "in.xml"), filepath.Join(dir, "out.md")
		if err := os.WriteFile(from, []byte(`<testsuite name="cyclonus">`+cases+`</testsuite>`), 0o600); err != nil {
			t.Fatal(err)
		}
		err = judgeCyclonus(from, to)
		data, _ := os.ReadFile(to)
		return string(data), err
	}
	const good, bad = `<testcase classname="" name="deny all" time=""></testcase>`, `<testcase name="allow one"><failure message="" type=""></failure></testcase>`
	if written, err := judge(good); err != nil || !strings.Contains(written, "1 cases: 1 passed, 0 failed") || strings.Contains(written, "Failed:") {
		t.Errorf("%v: %s", err, written)
	}
	if written, err := judge(good + bad); err == nil || !strings.Contains(err.Error(), "allow one") || !strings.Contains(written, "- allow one") || strings.Contains(written, "- deny all") {
		t.Errorf("%v: %s", err, written)
	}
	if _, err := judge(""); err == nil {
		t.Error("a run without cases is a success")
	}
}
