package main

import (
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/test/netlab/probe"
)

// TestAccounts: a fault accounts for what its node's pods lose while it lasts, where it may cost them something; a node
// that did not hear of a tenant change for that namespace's packets to it and from it, and for nothing else.
func TestAccounts(t *testing.T) {
	began := time.Now()
	at := func(d time.Duration) time.Time { return began.Add(d) }
	lasting := func(k kind, node string, lasts time.Duration) *window {
		f := faults[k]
		return &window{
			d: &decision{kind: k, node: node}, began: began, mended: at(lasts), closed: at(lasts + 100*time.Millisecond),
			costs:    func(from, to probe.Endpoint) bool { return f.mayCost(node, from, to) },
			concerns: func(from, to probe.Endpoint) bool { return f.concerns(node, from, to) },
		}
	}
	change := &tenantChange{d: &decision{kind: isolate, namespace: "red"}, began: at(100 * time.Millisecond), ended: at(200 * time.Millisecond)}
	const short, long = time.Second, 10 * time.Second
	red1, red2, red3 := probe.Endpoint{Namespace: "red", Node: "n1"}, probe.Endpoint{Namespace: "red", Node: "n2"}, probe.Endpoint{Namespace: "red", Node: "n3"}
	near, blue := probe.Endpoint{Namespace: "red", Name: "near", Node: "n1"}, probe.Endpoint{Namespace: "blue", Node: "n2"}
	for _, c := range []struct {
		name     string
		windows  []*window
		from, to probe.Endpoint
		sent     time.Duration
		want     bool
	}{
		{"no fault", nil, red1, red2, 0, false},
		{"flows deleted", []*window{lasting("all flows deleted", "n1", short)}, red1, red2, 500 * time.Millisecond, true},
		{"of another node", []*window{lasting("all flows deleted", "n1", short)}, red2, red3, 500 * time.Millisecond, false},
		{"afterwards", []*window{lasting("all flows deleted", "n1", short)}, red1, red2, long, false},
		{"before", []*window{lasting("all flows deleted", "n1", short)}, red1, red2, -short, false},
		{"link down, inside the node", []*window{lasting("link down", "n1", short)}, red1, near, 500 * time.Millisecond, false},
		{"link down, to another", []*window{lasting("link down", "n1", short)}, red1, blue, 500 * time.Millisecond, true},
		{"agent killed", []*window{lasting("agent killed", "n1", short)}, red1, red2, 500 * time.Millisecond, false},
		{"agent away for long, red changes", []*window{lasting("agent away", "n1", long)}, red1, red2, 7 * time.Second, true},
		{"inside the node", []*window{lasting("agent away", "n1", long)}, red1, near, 7 * time.Second, false},
		{"elsewhere", []*window{lasting("agent away", "n1", long)}, red2, red3, 7 * time.Second, false},
		{"not long", []*window{lasting("agent away", "n1", short)}, red1, red2, 500 * time.Millisecond, false},
		{"not long, and a new leader", []*window{lasting("agent away", "n1", short), lasting("controller and etcd killed", "all nodes", short)}, red1, red2, 500 * time.Millisecond, true},
		{"a namespace that does not change", []*window{lasting("agent away", "n1", long)}, probe.Endpoint{Namespace: "blue", Node: "n1"}, blue, 7 * time.Second, false},
	} {
		r := &run{windows: c.windows, changes: []*tenantChange{change}}
		if got := r.accounts(probe.Event{From: c.from, To: c.to, Sent: at(c.sent)}); (got != nil) != c.want {
			t.Errorf("%s: accounted for: %t, want %t", c.name, got != nil, c.want)
		}
	}
}

// TestAccountsToWhatIsBroken: of two faults the one that is not mended accounts for what is lost.
func TestAccountsToWhatIsBroken(t *testing.T) {
	began := time.Now()
	all := func(probe.Endpoint, probe.Endpoint) bool { return true }
	mended := &window{d: &decision{kind: "bridge deleted"}, began: began, mended: began, closed: began.Add(9 * time.Second), costs: all, concerns: all}
	broken := &window{d: &decision{kind: "link down"}, began: began.Add(time.Second), mended: began.Add(5 * time.Second), closed: began.Add(9 * time.Second), costs: all, concerns: all}
	r := &run{windows: []*window{mended, broken}}
	for at, want := range map[time.Duration]*window{100 * time.Millisecond: mended, 3 * time.Second: broken, 6 * time.Second: mended} {
		if got := r.accounts(probe.Event{Sent: began.Add(at)}); got != want {
			t.Errorf("after %s %v accounts for it, want %v", at, got.d, want.d)
		}
	}
}

// TestJudge: what no fault accounts for fails a round, and so does what may not be delivered.
func TestJudge(t *testing.T) {
	now := time.Now()
	from, to := probe.Endpoint{Namespace: "red", Name: "a", Node: "n1"}, probe.Endpoint{Namespace: "red", Name: "b", Node: "n2"}
	lost := func(seq uint64, at time.Time) probe.Event {
		return probe.Event{From: from, To: to, Protocol: probe.UDP, Seq: seq, Sent: at}
	}
	flows := []probe.FlowReport{{From: from, To: to, Sent: 100, Received: 90}}
	cut := func() []*window {
		all := func(probe.Endpoint, probe.Endpoint) bool { return true }
		return []*window{{d: &decision{kind: "link down", node: "n1"}, began: now, mended: now.Add(time.Second), closed: now.Add(2 * time.Second), arrived: 7, costs: all, concerns: all}}
	}
	during := []probe.Event{lost(5, now.Add(100*time.Millisecond)), lost(6, now.Add(150*time.Millisecond)), lost(20, now.Add(1100*time.Millisecond))}
	r := newRun(1, nil, func(string) {})
	r.windows = cut()
	if err := r.judge(probe.Report{Flows: flows, LostEvents: during}); err != nil {
		t.Errorf("lost while the link was down: %v", err)
	}
	want := tally{times: 1, lost: 3, arrived: 7, gap: 100 * time.Millisecond, after: 100 * time.Millisecond, took: time.Second}
	if got := r.tally["link down"]; got != want {
		t.Errorf("counted is %+v, want %+v", got, want)
	}
	for name, rep := range map[string]probe.Report{
		"lost later":        {Flows: flows, LostEvents: []probe.Event{lost(7, now.Add(time.Minute))}},
		"delivered":         {Flows: flows, ForbiddenEvents: []probe.Event{lost(7, now)}},
		"nothing delivered": {Flows: []probe.FlowReport{{From: from, To: to, Sent: 100}}},
	} {
		r := newRun(1, nil, func(string) {})
		r.windows = cut()
		if err := r.judge(rep); err == nil {
			t.Errorf("%s: nothing is wrong with it", name)
		}
	}
}
