package crashnews

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/crashes"
)

// TestNews: each end is told, not too often, and the last word always.
func TestNews(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	record := crashes.Record{Daemon: "ovs-vswitchd"}
	record.Add(crashes.End{Time: now.Add(-time.Hour), Cause: "SIGSEGV"})
	other := crashes.Record{Daemon: "ovsdb-server"}
	var n News
	expect := func(when string, want int) {
		t.Helper()
		if got := n.Next([]crashes.Record{record, other}, now); len(got) != want {
			t.Errorf("%s: %d news, want %d: %v", when, len(got), want, got)
		}
	}
	end := func(e crashes.End) { e.Time = now; record.Add(e) }

	expect("an agent starts long after the last end", 0)
	end(crashes.End{Cause: "SIGSEGV"})
	expect("it ended", 1)
	expect("nothing happened", 0)
	now = now.Add(time.Second)
	end(crashes.End{Cause: "SIGABRT"})
	end(crashes.End{Cause: "SIGABRT"})
	expect("it ended again at once", 0)
	now = now.Add(tellEvery)
	expect("a while later", 1)
	expect("that was all", 0)
	now = now.Add(time.Second)
	end(crashes.End{Cause: "exit status 1", GivenUp: true})
	expect("its supervisor ended", 1)
	now = now.Add(time.Hour)
	record = crashes.Record{Daemon: "ovs-vswitchd"}
	expect("somebody emptied the folder", 0)
	end(crashes.End{Cause: "SIGSEGV"})
	expect("the first end since", 1)

	n = News{}
	expect("an agent starts right after an end", 1)
	other.Add(crashes.End{Time: now, Cause: "SIGKILL"})
	expect("the other daemon ended", 1)
}

func TestWatch(t *testing.T) {
	dir := t.TempDir()
	r := crashes.Record{Daemon: "ovs-vswitchd"}
	r.Add(crashes.End{Time: time.Now(), Cause: "SIGSEGV", Line: "x"})
	r.Add(crashes.End{Time: time.Now(), Cause: "SIGKILL"})
	if err := r.Write(dir); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var told []crashes.Record
	err := Watch(ctx, dir, func(r crashes.Record) { told = append(told, r); cancel() }, slog.New(slog.DiscardHandler))
	if err != nil || len(told) != 1 || told[0].Count() != 2 {
		t.Errorf("told %v, %v", told, err)
	}
}

func TestMetrics(t *testing.T) {
	dir := t.TempDir()
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(NewCollector(dir))
	series := func() map[string]float64 {
		t.Helper()
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]float64{}
		for _, f := range families {
			for _, m := range f.GetMetric() {
				name := f.GetName()
				for _, l := range m.GetLabel() {
					name += " " + l.GetName() + "=" + l.GetValue()
				}
				got[name] = m.GetCounter().GetValue()
			}
		}
		return got
	}
	if got := series(); len(got) != 0 {
		t.Errorf("without a supervisor there is %v", got)
	}
	r := crashes.Record{Daemon: "ovsdb-server"}
	r.Add(crashes.End{Cause: "SIGSEGV"})
	r.Add(crashes.End{Cause: "exit status 1"})
	r.Add(crashes.End{Cause: "SIGSEGV"})
	if err := r.Write(dir); err != nil {
		t.Fatal(err)
	}
	want := map[string]float64{
		"k8s_ovs_openvswitch_crashes_total cause=SIGSEGV daemon=ovsdb-server":       2,
		"k8s_ovs_openvswitch_crashes_total cause=exit status 1 daemon=ovsdb-server": 1,
	}
	if diff := cmp.Diff(want, series()); diff != "" {
		t.Error(diff)
	}
}
