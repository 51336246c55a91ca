package allot

import (
	"bytes"
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/fairness"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/hostnet"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/nodeflows"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
)

// byNamespace are the values of a metric by the namespace that they are about.
func byNamespace(t *testing.T, reg *prometheus.Registry, name string) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if f.GetName() == name && l.GetName() == "namespace" {
					values[l.GetValue()] = m.GetCounter().GetValue()
				}
			}
		}
	}
	return values
}

// A namespace whose connections are refused is counted and named in the log, once a
// minute, with the limit and the way out; one that is gone is forgotten.
func TestRefusedConnectionsTold(t *testing.T) {
	var log bytes.Buffer
	reg := prometheus.NewRegistry()
	cfg := Config{Logger: slog.New(slog.NewTextHandler(&log, nil)), Metrics: NewMetrics(reg)}
	u := cfg.newTableUse("service-connections", "service-connection-rate", fairness.Auto)
	full := fairness.Table{Size: 20_000, Used: 5000}
	for i := range uint64(3) {
		u.next(full, map[string]fairness.Asked{"red": {All: 100 * i, Refused: 10 * i}, "blue": {All: 5}}, nil)
	}
	const metric = "k8s_ovs_connections_refused_total"
	if diff := cmp.Diff(map[string]float64{"red": 20, "blue": 0}, byNamespace(t, reg, metric)); diff != "" {
		t.Error(diff)
	}
	text := log.String()
	if strings.Count(text, "\n") != 1 {
		t.Errorf("log:\n%s", text)
	}
	for _, part := range []string{"limit=service-connections", "flag=--service-connection-rate", "tenant=red", "refused=10", "perSecond=1250", "tableUsed=5000", "tableSize=20000"} {
		if !strings.Contains(text, part) {
			t.Errorf("no %q in\n%s", part, text)
		}
	}
	u.next(full, map[string]fairness.Asked{"blue": {All: 5}}, nil)
	if diff := cmp.Diff(map[string]float64{"blue": 0}, byNamespace(t, reg, metric)); diff != "" {
		t.Error(diff)
	}
}

// Counters that begin anew are counted from there.
func TestUntoldCounted(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := NewMetrics(reg)
	for _, untold := range []uint64{5, 7, 2} {
		m.tooLarge(map[string]nodeflows.Demand{"red": {TooLarge: 100, Untold: untold}, "blue": {}})
	}
	if diff := cmp.Diff(map[string]float64{"red": 9}, byNamespace(t, reg, "k8s_ovs_fragmentation_needed_untold_total")); diff != "" {
		t.Error(diff)
	}
}

// What is refused to pods that policies select is counted, whichever of them go.
func TestJudgedCounted(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := NewMetrics(reg)
	for _, refused := range []uint64{5, 9, 4, 6} { // a pod with 5 goes
		m.judged(map[string]nodeflows.Demand{"red": {Judged: 100, JudgedRefused: refused}, "blue": {Connections: 3}})
	}
	const metric = "k8s_ovs_connections_refused_total"
	if diff := cmp.Diff(map[string]float64{"red": 11}, byNamespace(t, reg, metric)); diff != "" {
		t.Error(diff)
	}
	m.judged(map[string]nodeflows.Demand{"blue": {}})
	if diff := cmp.Diff(map[string]float64{}, byNamespace(t, reg, metric)); diff != "" {
		t.Error(diff)
	}
}

// demanding is a table whose namespaces ask for so much more each time, and keeps who is held back.
type demanding struct {
	Table
	each, asked map[string]nodeflows.Demand
	held        map[string]pipeline.Allowance
}

func (d *demanding) Demands(context.Context) (map[string]nodeflows.Demand, error) {
	for namespace, more := range d.each {
		sum := d.asked[namespace]
		sum.Connections, sum.Judged = sum.Connections+more.Connections, sum.Judged+more.Judged
		d.asked[namespace] = sum
	}
	return d.asked, nil
}

func (d *demanding) SetAllowances(_ context.Context, _ pipeline.Allowance, held map[string]pipeline.Allowance) error {
	d.held = held
	return nil
}

// Who asks for most is held back while the table is short, by services or by pods that policies select.
func TestHeldBack(t *testing.T) {
	table := &demanding{each: map[string]nodeflows.Demand{"web": {Connections: 50_000}, "judged": {Judged: 50_000}, "quiet": {}}, asked: map[string]nodeflows.Demand{}}
	a := New(Config{Table: table, Logger: slog.New(slog.DiscardHandler), Metrics: NewMetrics(prometheus.NewRegistry())})
	for range 2 {
		if err := a.throughBridge(t.Context(), &fairness.Table{Size: 20_000, Used: 11_000}); err != nil {
			t.Fatal(err)
		}
	}
	if got := slices.Sorted(maps.Keys(table.held)); !slices.Equal(got, []string{"judged", "web"}) {
		t.Errorf("held back are %v", got)
	}
}

// The firewall waits until pods have stopped coming, but not to hold somebody back.
func TestUrgent(t *testing.T) {
	many := fairness.Allowance{Rate: 1000, Burst: 1000}
	pods := func(a fairness.Allowance, n int) map[string]hostnet.Passage {
		p := hostnet.Passage{Allowance: a}
		for i := range n {
			p.Addresses = append(p.Addresses, netip.AddrFrom4([4]byte{172, 11, 0, byte(2 + i)}))
		}
		return map[string]hostnet.Passage{"red": p}
	}
	a := &Allotment{passages: pods(many, 1), found: pods(many, 1)}
	for _, step := range []struct {
		what string
		want map[string]hostnet.Passage
		is   bool
	}{
		{"nothing new", pods(many, 1), false},
		{"a pod came", pods(many, 2), false},
		{"another came", pods(many, 3), false},
		{"no more came", pods(many, 3), true},
		{"it may less", pods(fairness.Allowance{Rate: 1, Burst: 1}, 3), true},
	} {
		if got := a.urgent(step.want); got != step.is {
			t.Errorf("%s: urgent is %t", step.what, got)
		}
	}
}
