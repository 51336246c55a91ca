// Package metricspage compares what a program shows at /metrics with what docs/metrics.md says of it. Each program's own
// test gives it the metrics, by a registerer that keeps what they are.
package metricspage

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// Metric is what a line of the page says of one.
type Metric struct{ Type, Labels string }

// Recorder is a registerer that shows nothing and keeps what each metric is.
type Recorder struct{ Metrics map[string]Metric }

// NewRecorder is one that knows no metric yet.
func NewRecorder() *Recorder { return &Recorder{map[string]Metric{}} }

// Register implements prometheus.Registerer. A collector of one's own says no type: there the name does, as is the custom.
func (r *Recorder) Register(c prometheus.Collector) error {
	ch := make(chan *prometheus.Desc)
	go func() { c.Describe(ch); close(ch) }()
	for d := range ch {
		m := described.FindStringSubmatch(d.String())
		if m == nil {
			return fmt.Errorf("the description of a metric is not what it was: %s", d)
		}
		r.Metrics[m[1]] = Metric{typeOf(c, m[1]), strings.ReplaceAll(m[2], ",", ", ")}
	}
	return nil
}

// MustRegister implements prometheus.Registerer.
func (r *Recorder) MustRegister(all ...prometheus.Collector) {
	for _, c := range all {
		if err := r.Register(c); err != nil {
			panic(err)
		}
	}
}

// Unregister implements prometheus.Registerer.
func (r *Recorder) Unregister(prometheus.Collector) bool { return false }

var described = regexp.MustCompile(`^Desc\{fqName: "(\w+)", .*variableLabels: \{([^}]*)\}\}$`)

func typeOf(c prometheus.Collector, name string) string {
	switch c.(type) {
	case prometheus.Gauge, *prometheus.GaugeVec:
		return "gauge"
	case prometheus.Counter, *prometheus.CounterVec:
		return "counter"
	case prometheus.Histogram, *prometheus.HistogramVec:
		return "histogram"
	}
	if strings.HasSuffix(name, "_total") {
		return "counter"
	}
	return "gauge"
}

// Compare fails where the section of the page has other metrics than the program, or says other things of one.
func Compare(t *testing.T, section string, has *Recorder) {
	t.Helper()
	said := read(t, section)
	for _, name := range slices.Sorted(maps.Keys(has.Metrics)) {
		if want, is := has.Metrics[name], said[name]; is == (Metric{}) {
			t.Errorf("docs/metrics.md, section %q, has no line for %s (%s, labels %q)", section, name, want.Type, want.Labels)
		} else if is != want {
			t.Errorf("docs/metrics.md says of %s: type %q, labels %q; it has type %q, labels %q", name, is.Type, is.Labels, want.Type, want.Labels)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(said)) {
		if _, there := has.Metrics[name]; !there {
			t.Errorf("docs/metrics.md, section %q, has %s, which the program does not show", section, name)
		}
	}
}

// read is what a section's tables say: name, type with its unit, labels, meaning.
func read(t *testing.T, section string) map[string]Metric {
	t.Helper()
	const page = "docs/metrics.md"
	// A test runs in its package's folder, here as in the emulated machine, which has no sources.
	up, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(up, page))
	for errors.Is(err, os.ErrNotExist) && up != filepath.Dir(up) {
		up = filepath.Dir(up)
		text, err = os.ReadFile(filepath.Join(up, page))
	}
	if err != nil {
		t.Fatalf("%s above the test's folder: %v", page, err)
	}
	_, lines, found := strings.Cut(string(text), "\n## "+section+"\n")
	if !found {
		t.Fatalf("docs/metrics.md has no section %q", section)
	}
	lines, _, _ = strings.Cut(lines, "\n## ")
	said := map[string]Metric{}
	for line := range strings.SplitSeq(lines, "\n") {
		cells := strings.Split(line, " | ")
		name := strings.Trim(cells[0], "|` ")
		if len(cells) < 4 || !strings.HasPrefix(name, "k8s_ovs_") {
			continue
		}
		kind, _, _ := strings.Cut(cells[1], ",")
		said[name] = Metric{kind, strings.ReplaceAll(cells[2], "`", "")}
	}
	return said
}
