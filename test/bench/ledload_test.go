package main

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// TestLedLoad: what counts as the leader's, and how long nodes wait for what they wrote.
func TestLedLoad(t *testing.T) {
	w := &ledLoad{acks: map[string][]ledAck{}}
	began := time.Now()
	at := func(ms int) time.Time { return began.Add(time.Duration(ms) * time.Millisecond) }
	for _, e := range []struct {
		ms       int
		name     string
		revision int64
		value    string
	}{
		{0, "pods/198.18.1.1", 5, "123456"},
		{10, "sets/abc/of", 6, "1234"}, {10, "sets/abc/172.24.0.0", 6, ""}, {10, "history/now", 6, "1"},
		{15, "pods/198.18.1.1", 7, "123456"},
		{20, "acknowledged/198.18.1.1", 8, `{"Revision":5}`},
		{30, "netnamespaces/a", 9, "1234"},
		{60, "acknowledged/198.18.1.1", 10, `{"Revision":9}`},
		{60, "acknowledged/198.18.1.2", 10, `{"Revision":9}`},
	} {
		w.count(at(e.ms), e.name, e.revision, 10, []byte(e.value))
	}
	want := load{transactions: 3, records: 6, bytes: 14 + 10 + 11 + 3*24, agents: 32}
	if diff := cmp.Diff(want, w.take(), cmp.AllowUnexported(load{})); diff != "" {
		t.Error(diff)
	}
	if again := w.take(); again != (load{}) {
		t.Errorf("taken twice: %+v", again)
	}
	node := &ledNode{record: topology.NodePods{HostIP: netip.MustParseAddr("198.18.1.1")}, wrote: []ledWrite{{at(0), 5}, {at(14), 7}}}
	if got, err := w.waits([]*ledNode{node}); err != nil || !slices.Equal(got, []float64{20, 46}) {
		t.Errorf("waits %v, %v; want 20 and 46 ms", got, err)
	}
	node.wrote = append(node.wrote, ledWrite{at(61), 11})
	if got, err := w.waits([]*ledNode{node}); err == nil {
		t.Errorf("waits %v of what was not acknowledged", got)
	}
}
