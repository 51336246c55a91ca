package attach

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/shaping"
	"github.com/k8s-ovs/k8s-ovs/pkg/limits"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
)

// limited says whether the pod has these limits, everywhere.
func (w *world) limited(t *testing.T, a *Attacher, n int, l limits.Limits) {
	t.Helper()
	at, ok := a.find(request(n).Attachment())
	w.mu.Lock()
	defer w.mu.Unlock()
	stored, err := decodeLimits(w.ports[at.HostIf()].ExternalIDs[keyLimits])
	meter := w.flowsOf(at.Addresses[0]).Meter
	if !ok || err != nil || at.Limits != l || stored != l || w.shapes[at.HostIf()] != l || meter != shaping.Meter(l.Egress, at.mtu.Device) {
		t.Errorf("pod %d, want %+v: listed %+v, stored %+v, %v, shaped %+v, meter %+v", n, l, at.Limits, stored, err, w.shapes[at.HostIf()], meter)
	}
	if len(w.broken) > 0 {
		t.Errorf("the meter came before the shape: %v", w.broken[0])
	}
}

// TestSetLimits: whichever step fails, a second attempt, or a restart, gets there;
// and on the way the meter never drops what the shape lets pass.
func TestSetLimits(t *testing.T) {
	ctx := context.Background()
	burst := limits.Limits{Egress: limits.Limit{Rate: 20_000_000, Burst: 1 << 20}}
	small := limits.Limits{Egress: limits.Limit{Rate: 40_000_000, Burst: 1 << 13}}
	for name, tc := range map[string]struct{ from, to limits.Limits }{
		"appears":                    {limits.Limits{}, both(10_000_000)},
		"disappears":                 {both(10_000_000), limits.Limits{}},
		"less":                       {both(10_000_000), both(1_000_000)},
		"more":                       {both(1_000_000), both(10_000_000)},
		"faster, with smaller burst": {burst, small},
		"slower, with larger burst":  {small, burst},
		"the same":                   {burst, burst},
	} {
		t.Run(name, func(t *testing.T) {
			for failAt := 1; ; failAt++ {
				w, dir := newWorld(), t.TempDir()
				w.asked["p1"] = tc.from
				a := start(t, w, dir)
				if _, err := a.Add(ctx, request(1)); err != nil {
					t.Fatal(err)
				}
				w.limited(t, a, 1, tc.from)
				w.failAt = w.step + failAt
				err := a.SetLimits(ctx, "a", "p1", tc.to)
				w.failAt = 0
				if err == nil {
					w.limited(t, a, 1, tc.to)
					break
				}
				if !errors.Is(err, errInjected) || !strings.Contains(err.Error(), "a/p1") {
					t.Fatalf("step %d: %v", failAt, err)
				}
				if failAt > 1 { // written down
					b := start(t, w, dir)
					if _, err := b.Repair(ctx, true); err != nil {
						t.Fatal(err)
					}
					at := b.List()[0]
					if got := w.shapes[at.HostIf()]; at.Limits != tc.to || got != tc.to {
						t.Errorf("step %d, after a restart: %+v, shaped %+v", failAt, at.Limits, got)
					}
				}
				if err := a.SetLimits(ctx, "a", "p1", tc.to); err != nil {
					t.Fatal(err)
				}
				w.limited(t, a, 1, tc.to)
			}
		})
	}
}

// TestRenamedDevice: a pod that renames its device, so that nothing there can be
// changed, is held to a new limit by the meter all the same.
func TestRenamedDevice(t *testing.T) {
	ctx := context.Background()
	for name, from := range map[string]limits.Limits{"appears": {}, "less": both(10_000_000)} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			w.asked["p1"] = from
			a := start(t, w, t.TempDir())
			if _, err := a.Add(ctx, request(1)); err != nil {
				t.Fatal(err)
			}
			at := a.List()[0]
			w.stuck[at.HostIf()] = link.ErrNoLink
			if err := a.SetLimits(ctx, "a", "p1", both(1_000_000)); err != nil {
				t.Fatal(err)
			}
			if got, want := w.flowsOf(at.Addresses[0]).Meter, shaping.Meter(both(1_000_000).Egress, at.mtu.Device); got != want {
				t.Errorf("meter %+v, want %+v", got, want)
			}
		})
	}
}

// TestLimitsOutliveTheDatabase: without Open vSwitch's database a pod has the limits
// that it was attached with, not none.
func TestLimitsOutliveTheDatabase(t *testing.T) {
	ctx := context.Background()
	w, dir := newWorld(), t.TempDir()
	w.asked["p1"] = both(1_000_000)
	if _, err := start(t, w, dir).Add(ctx, request(1)); err != nil {
		t.Fatal(err)
	}
	clear(w.ports)
	a := start(t, w, dir)
	if _, err := a.Repair(ctx, true); err != nil {
		t.Fatal(err)
	}
	at := a.List()[0]
	stored, err := decodeLimits(w.ports[at.HostIf()].ExternalIDs[keyLimits])
	if err != nil || at.Limits != both(1_000_000) || stored != at.Limits || w.shapes[at.HostIf()] != at.Limits || w.flowsOf(at.Addresses[0]).Meter == (desired.Meter{}) {
		t.Errorf("listed %+v, stored %+v, %v, shaped %+v, meter %+v", at.Limits, stored, err, w.shapes[at.HostIf()], w.flowsOf(at.Addresses[0]).Meter)
	}
}

func TestSetLimitsOfWhom(t *testing.T) {
	ctx := context.Background()
	w := newWorld()
	a := start(t, w, t.TempDir())
	second := request(2)
	second.PodName = "p1" // another interface of the pod
	for _, req := range []struct{ n int }{{1}, {3}} {
		if _, err := a.Add(ctx, request(req.n)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := a.Add(ctx, second); err != nil {
		t.Fatal(err)
	}
	if err := a.SetLimits(ctx, "a", "p1", both(1_000_000)); err != nil {
		t.Fatal(err)
	}
	for n, l := range map[int]limits.Limits{1: both(1_000_000), 2: both(1_000_000), 3: {}} {
		w.limited(t, a, n, l)
	}
	for _, pod := range []struct{ namespace, name string }{{"b", "p1"}, {"a", "p9"}} {
		if err := a.SetLimits(ctx, pod.namespace, pod.name, both(7_000_000)); err != nil {
			t.Errorf("a pod that is not here: %v", err)
		}
	}
	w.limited(t, a, 1, both(1_000_000))
	// A port that somebody removed gets them with its return.
	clear(w.ports)
	if err := a.SetLimits(ctx, "a", "p1", both(2_000_000)); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Repair(ctx, false); err != nil {
		t.Fatal(err)
	}
	w.limited(t, a, 1, both(2_000_000))
	c := a.Counters()
	if len(c) != 2 || c[0].Pod != "p1" || c[0].Limits != both(2_000_000) || c[0].Egress.Bytes != 2_000_000 || c[0].Port != 12 {
		t.Errorf("counters %+v", c)
	}
}

// TestRepairLimits: what a pod does to its own qdisc, and what a crash leaves.
func TestRepairLimits(t *testing.T) {
	ctx := context.Background()
	w, dir := newWorld(), t.TempDir()
	w.asked["p1"], w.asked["p2"] = both(1_000_000), both(2_000_000)
	a := start(t, w, dir)
	for n := range 3 {
		if _, err := a.Add(ctx, request(n+1)); err != nil {
			t.Fatal(err)
		}
	}
	repair := func(full bool, want int) {
		t.Helper()
		if n, err := a.Repair(ctx, full); err != nil || n != want {
			t.Errorf("repaired %d, %v; want %d", n, err, want)
		}
	}
	repair(true, 0)
	delete(w.shapes, HostIf(request(1).Attachment()))
	repair(false, 0)
	repair(true, 1)
	w.limited(t, a, 1, both(1_000_000))
	// One that cannot be mended keeps neither the others nor the node from working.
	clear(w.shapes)
	w.stuck[HostIf(request(1).Attachment())] = errInjected
	repair(true, 1)
	w.limited(t, a, 2, both(2_000_000))
	clear(w.stuck)
	repair(true, 1)
	// Ports of an earlier version.
	for name, p := range w.ports {
		p.QoS = nil
		w.ports[name] = p
	}
	repair(false, 3)
	repair(false, 0)
	// Left by a crash: what a pod without limits had, and what one had that is gone.
	w.shapes[HostIf(request(3).Attachment())] = both(5)
	w.shapes[HostIf(request(9).Attachment())] = both(6)
	a = start(t, w, dir)
	repair(true, 1)
	want := map[string]limits.Limits{HostIf(request(1).Attachment()): both(1_000_000), HostIf(request(2).Attachment()): both(2_000_000)}
	if d := cmp.Diff(want, w.shapes); d != "" {
		t.Error(d)
	}
}

// TestUnreadableLimits: a pod whose limits are spoilt in the database has those of
// its ADD, not none.
func TestUnreadableLimits(t *testing.T) {
	ctx := context.Background()
	w, dir := newWorld(), t.TempDir()
	w.asked["p1"] = both(1_000_000)
	if _, err := start(t, w, dir).Add(ctx, request(1)); err != nil {
		t.Fatal(err)
	}
	w.ports[HostIf(request(1).Attachment())].ExternalIDs[keyLimits] = "{"
	a := start(t, w, dir)
	for want := range 2 { // the port has them again first
		if n, err := a.Repair(ctx, true); err != nil || n != 1-want {
			t.Errorf("repaired %d, %v", n, err)
		}
	}
	at := a.List()[0]
	if got := w.shapes[at.HostIf()]; at.Limits != both(1_000_000) || got != at.Limits || w.flowsOf(at.Addresses[0]).Meter == (desired.Meter{}) {
		t.Errorf("listed %+v, shaped %+v, meter %+v", at.Limits, got, w.flowsOf(at.Addresses[0]).Meter)
	}
}

// TestRepairLimitsQuietly: what a pod undoes again and again, and what cannot be
// mended, is said once.
func TestRepairLimitsQuietly(t *testing.T) {
	ctx := context.Background()
	w := newWorld()
	w.asked["p1"], w.asked["p2"] = both(1_000_000), both(2_000_000)
	a := start(t, w, t.TempDir())
	var log bytes.Buffer
	a.log = slog.New(slog.NewTextHandler(&log, nil))
	for n := range 2 {
		if _, err := a.Add(ctx, request(n+1)); err != nil {
			t.Fatal(err)
		}
	}
	said := func(when string, right, wrong int) {
		t.Helper()
		for range 3 {
			delete(w.shapes, HostIf(request(1).Attachment()))
			if _, err := a.Repair(ctx, true); err != nil {
				t.Fatal(err)
			}
		}
		got := log.String()
		if strings.Count(got, "put right") != right || strings.Count(got, "not as they should be") != wrong {
			t.Errorf("%s, want %d and %d lines:\n%s", when, right, wrong, got)
		}
	}
	said("undone", 1, 0)
	w.stuck[HostIf(request(1).Attachment())] = errInjected
	said("stuck", 1, 1)
	clear(w.stuck)
	said("undone again", 1, 1)
	w.stuck[HostIf(request(1).Attachment())] = errInjected
	said("stuck again", 1, 2)
	// Another pod is news.
	delete(w.shapes, HostIf(request(2).Attachment()))
	said("another", 2, 2)
}

// TestQueues: pods that are there, that come while queues change, and later ones.
func TestQueues(t *testing.T) {
	ctx := context.Background()
	w := newWorld()
	a := start(t, w, t.TempDir())
	set := func(plus uint32) {
		if err := a.SetQueues(ctx, func(at Attachment) uint32 { return at.Port + plus }); err != nil {
			t.Error(err)
		}
	}
	if _, err := a.Add(ctx, request(1)); err != nil {
		t.Fatal(err)
	}
	set(100)
	w.making = func() { set(200) }
	if _, err := a.Add(ctx, request(2)); err != nil {
		t.Fatal(err)
	}
	w.making = nil
	if _, err := a.Add(ctx, request(3)); err != nil {
		t.Fatal(err)
	}
	before := w.step
	set(200)
	if w.step != before {
		t.Error("flows were written though no queue changed")
	}
	want := map[string]uint32{"172.11.0.2": 212, "172.11.0.3": 213, "172.11.0.4": 214}
	got := map[string]uint32{}
	for _, f := range w.flows {
		got[f.Addresses[0].String()] = f.Queue
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestSetMTU(t *testing.T) {
	ctx := context.Background()
	w, dir := newWorld(), t.TempDir()
	w.asked["p1"] = both(10_000_000)
	a := start(t, w, dir)
	for n := range 3 {
		if _, err := a.Add(ctx, request(n+1)); err != nil {
			t.Fatal(err)
		}
	}
	check := func(want map[int]MTU) {
		t.Helper()
		got := map[int]MTU{}
		for n := range 4 {
			if l, ok := w.links[HostIf(request(n).Attachment())]; ok {
				got[n] = MTU{l.MTU, l.RouteMTU}
			}
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
	}
	// One is stuck, one has just gone.
	w.stuck[HostIf(request(2).Attachment())] = errInjected
	delete(w.links, HostIf(request(3).Attachment()))
	if err := a.SetMTU(ctx, MTU{1450, 576}); !errors.Is(err, errInjected) || !strings.Contains(err.Error(), "a/p2") {
		t.Errorf("error %v does not name the pod that is stuck", err)
	}
	check(map[int]MTU{1: {1450, 576}, 2: {1450, 576}})
	clear(w.stuck)
	if err := a.SetMTU(ctx, MTU{576, 576}); err != nil {
		t.Fatal(err)
	}
	check(map[int]MTU{1: {576, 576}, 2: {576, 576}})
	w.limited(t, a, 1, both(10_000_000)) // and the meter of that size
	before := w.step
	if err := a.SetMTU(ctx, MTU{576, 576}); err != nil || w.step > before+1 {
		t.Errorf("again: %v, %d steps; want none but for the pod that is gone", err, w.step-before)
	}
	got, err := a.Add(ctx, request(4))
	if err != nil || got.MTU != 576 {
		t.Errorf("a new pod: MTU %d, %v", got.MTU, err)
	}
	// Nobody was there when it changed.
	b := start(t, w, dir) // with theNode's
	if err := b.SetMTU(ctx, theNode.MTU); err != nil {
		t.Fatal(err)
	}
	check(map[int]MTU{1: theNode.MTU, 2: theNode.MTU})
}

// TestAllAtOnce: pods come and go while limits and MTU change. At rest each has
// what was said last.
func TestAllAtOnce(t *testing.T) {
	ctx := context.Background()
	w := newWorld()
	a := start(t, w, t.TempDir())
	const pods, rounds = 4, 30
	var wg sync.WaitGroup
	for n := range pods {
		wg.Go(func() {
			for range rounds {
				if _, err := a.Add(ctx, request(n)); err != nil {
					t.Error(err)
				}
				if err := a.Del(ctx, request(n)); err != nil {
					t.Error(err)
				}
			}
			if _, err := a.Add(ctx, request(n)); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			for range rounds {
				l := both(uint64(1+rand.N(9)) * 1_000_000)
				if rand.N(4) == 0 {
					l = limits.Limits{}
				}
				pod := request(n).PodName
				w.mu.Lock()
				w.asked[pod] = l
				w.mu.Unlock()
				if err := a.SetLimits(ctx, "a", pod, l); err != nil {
					t.Error(err)
				}
			}
		})
	}
	var last MTU
	wg.Go(func() {
		for range rounds {
			last = MTU{1300 + rand.N(100), 1300}
			if err := a.SetMTU(ctx, last); err != nil {
				t.Error(err)
			}
			if _, err := a.Repair(ctx, true); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
	for n := range pods {
		w.limited(t, a, n, w.asked[request(n).PodName])
		if l := w.links[HostIf(request(n).Attachment())]; (MTU{l.MTU, l.RouteMTU}) != last {
			t.Errorf("pod %d has MTU %d, sends %d; want %+v", n, l.MTU, l.RouteMTU, last)
		}
	}
	for n := range pods {
		if err := a.Del(ctx, request(n)); err != nil {
			t.Fatal(err)
		}
	}
	finished(t, a)
	w.empty(t)
}

func TestWider(t *testing.T) {
	m := func(rate, burst uint32) desired.Meter { return desired.Meter{Rate: rate, Burst: burst} }
	for _, tc := range []struct{ x, y, want desired.Meter }{
		{m(0, 0), m(5, 5), m(0, 0)},
		{m(5, 5), m(0, 0), m(0, 0)},
		{m(5, 9), m(7, 2), m(7, 9)},
	} {
		if got := wider(tc.x, tc.y); got != tc.want {
			t.Error(fmt.Sprint(tc, got))
		}
	}
}
