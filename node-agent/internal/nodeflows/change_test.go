package nodeflows

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/flowstore"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
)

// refusing is a switch that refuses flows of one port.
type refusing struct {
	flowstore.Switch
	port uint32
}

var errRefused = errors.New("refused")

func (r refusing) Commit(ctx context.Context, mods []of.Mod) error {
	if strings.Contains(fmt.Sprintf("%v,", mods), fmt.Sprintf("in_port=%d,", r.port)) {
		return errRefused
	}
	return r.Switch.Commit(ctx, mods)
}

// Pods that come and go at once share a bundle, and the switch has what it would have had
// after one at a time. One that it refuses keeps no other.
func TestChangesAtOnce(t *testing.T) {
	ctx := context.Background()
	o, table, obs := start(t)
	conn := connect(t, o, table)
	s := records(1, map[string]netid.ID{"a": 10, "b": 11, "c": 12})
	if _, _, err := table.SetRecords(ctx, s); err != nil && !errors.Is(err, flowstore.ErrNotReady) {
		t.Fatal(err)
	}
	if err := table.SetPorts(ctx, desired.Ports{Tunnels: map[string]uint32{desired.NodeTunnel: 1}, Gateway: 2}); err != nil {
		t.Fatal(err)
	}
	comes := func(namespace string, n int) change { return change{pod: pod(namespace, n)} }
	goes := func(n int) change { return change{pod: pod("", n), goes: true} }
	bundles := obs.bundles
	step := func(list []change, failed map[int]error, bundlesWant int, want ...desired.Attached) {
		t.Helper()
		for i, err := range table.change(ctx, list) {
			if !errors.Is(err, failed[i]) || (failed[i] == nil) != (err == nil) {
				t.Errorf("%d: %v, want %v", i, err, failed[i])
			}
		}
		if n := obs.bundles - bundles; n != bundlesWant {
			t.Errorf("%d bundles, want %d", n, bundlesWant)
		}
		bundles = obs.bundles
		if diff := cmp.Diff(expect(t, s, want), flows(t, conn)); diff != "" {
			t.Errorf("flows (-want +got):\n%s", diff)
		}
	}
	step([]change{comes("a", 2), comes("b", 3), comes("a", 4), goes(9)}, nil, 1, pod("a", 2), pod("b", 3), pod("a", 4))
	step([]change{goes(2), comes("c", 5), goes(3), comes("b", 4)}, nil, 1, pod("b", 4), pod("c", 5))
	step([]change{goes(2), goes(9)}, nil, 0, pod("b", 4), pod("c", 5))
	if err := reconnect(ctx, table, refusing{conn, pod("", 6).Port}); err != nil {
		t.Fatal(err)
	}
	step([]change{comes("a", 2), comes("a", 6), goes(5)}, map[int]error{1: errRefused}, 2, pod("a", 2), pod("b", 4))
	storeOf(table).Disconnect()
	// Without a switch those that go are gone when there is one again, and it is said that
	// they are not yet.
	step([]change{goes(2), comes("a", 7)}, map[int]error{0: flowstore.ErrDisconnected, 1: flowstore.ErrDisconnected}, 0, pod("a", 2), pod("b", 4))
	if err := reconnect(ctx, table, conn); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(expect(t, s, []desired.Attached{pod("b", 4)}), flows(t, conn)); diff != "" {
		t.Errorf("flows (-want +got):\n%s", diff)
	}
}

// losing is a switch whose answers are lost while it is told so.
type losing struct {
	flowstore.Switch
	lose bool
	// before is that what it is asked is lost too.
	before bool
}

func (l *losing) Commit(ctx context.Context, mods []of.Mod) error {
	if l.lose && l.before {
		return context.DeadlineExceeded
	}
	err := l.Switch.Commit(ctx, mods)
	if l.lose {
		return context.DeadlineExceeded
	}
	return err
}

// What did not get into the switch is no news any more when the table is told it once more,
// and is brought in all the same.
func TestToldAgain(t *testing.T) {
	ctx := t.Context()
	o, table, _ := start(t)
	sw := &losing{Switch: connect(t, o, table), before: true}
	if err := reconnect(ctx, table, sw); err != nil {
		t.Fatal(err)
	}
	follow(t, table, 11)
	for name, tell := range map[string]func() error{
		"ports": func() error {
			return table.SetPorts(ctx, desired.Ports{Tunnels: map[string]uint32{desired.NodeTunnel: 3}, Gateway: 4})
		},
		"path MTUs": func() error { return table.SetPathMTUs(ctx, map[netip.Addr]int{node(2).HostIP: 1350}) },
		"UDP port":  func() error { return table.SetUDPPorts(ctx, []tunnel.Port{8472}) },
	} {
		sw.lose = true
		before := o.OFCtl("dump-flows", "--no-stats", "br0")
		for range 2 {
			if err := tell(); err == nil {
				t.Errorf("%s: no error, but the switch did not take it", name)
			}
		}
		sw.lose = false
		if err := tell(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if o.OFCtl("dump-flows", "--no-stats", "br0") == before {
			t.Errorf("%s: told once more, and not in the switch", name)
		}
	}
}

// alikes are two namespaces whose numbers would be the same, of so many.
func alikes(t *testing.T, numbers uint32) (a, b string) {
	t.Helper()
	seen := map[uint32]string{}
	for i := range 1 << 20 {
		name := fmt.Sprint("ns", i)
		n := desired.Slots{}.Assign(name) % numbers
		if other, ok := seen[n]; ok {
			return other, name
		}
		seen[n] = name
	}
	t.Fatal("no two names have the same number")
	return "", ""
}

// A change that the switch does not take leaves namespaces their numbers, also when those would be
// others if they were given anew.
func TestNumbersStay(t *testing.T) {
	ctx := t.Context()
	o, table, _ := start(t)
	table.SetServiceProxy(pipeline.OVS)
	sw := &losing{Switch: connect(t, o, table), before: true}
	if err := reconnect(ctx, table, sw); err != nil {
		t.Fatal(err)
	}
	follow(t, table, 11)
	numbers := func() [2]map[string]uint32 {
		return [2]map[string]uint32{maps.Clone(table.tenants.slots), maps.Clone(table.tenants.fair.numbers)}
	}
	unchanged := func(what string, change func() error) {
		t.Helper()
		before := numbers()
		sw.lose = true
		if err := change(); err == nil {
			t.Errorf("%s: no error", what)
		}
		sw.lose = false
		if diff := cmp.Diff(before, numbers()); diff != "" {
			t.Errorf("%s (-before +after):\n%s", what, diff)
		}
	}
	first, second := alikes(t, pipeline.MaxMetered)
	attach(t, table, pod(first, 2), pod(second, 3))
	if err := detach(t, table, 2); err != nil {
		t.Fatal(err)
	}
	unchanged("a pod that goes", func() error { return detach(t, table, 3) })
	unchanged("pods that come and go", func() error {
		return errors.Join(table.change(ctx, []change{{pod: pod(second, 3), goes: true}, {pod: pod(first, 3)}, {pod: pod(second, 4)}})...)
	})
	first, second = alikes(t, math.MaxUint32)
	serve(t, table, first)
	serve(t, table, first, second)
	serve(t, table, second)
	unchanged("a namespace that serves no longer", func() error { return table.Serve(ctx, nil) })
}

// Who tells of records is told that flows may have changed until it has heard it once, also where a
// bundle's answer was lost, and where something else brought the records in.
func TestChangeIsTold(t *testing.T) {
	ctx := t.Context()
	o, table, _ := start(t)
	conn := connect(t, o, table)
	sw := &losing{Switch: conn}
	set := func(what string, blue netid.ID, fails, want bool) {
		t.Helper()
		_, changed, err := table.SetRecords(ctx, records(1, map[string]netid.ID{"red": 10, "blue": blue}))
		if changed != want || (err != nil) != fails {
			t.Errorf("%s: changed %t, want %t: %v", what, changed, want, err)
		}
	}
	connectTo := func(sw flowstore.Switch) {
		t.Helper()
		if err := reconnect(ctx, table, sw); err != nil {
			t.Fatal(err)
		}
	}
	follow(t, table, 11)
	attach(t, table, pod("red", 2), pod("blue", 3))
	connectTo(sw)
	set("the same", 11, false, false)
	sw.lose = true
	set("the answer is lost", 12, true, false)
	sw.lose = false
	set("and it had been carried out", 12, false, true)
	set("the same again", 12, false, false)
	storeOf(table).Disconnect()
	set("without a switch", 13, true, false)
	connectTo(sw)
	set("what the connection brought", 13, false, true)
	sw.lose, sw.before = true, true
	set("lost on the way", 14, true, false)
	sw.lose = false
	if err := table.SetAllowances(ctx, pipeline.Allowance{Rate: 100, Burst: 100}, nil); err != nil {
		t.Fatal(err)
	}
	set("what came with something else", 14, false, true)
	set("the same in the end", 14, false, false)
}

// Before the table knows the records nobody comes, and everybody may go: of the picture, it
// is said, not of the switch.
func TestChangesUnready(t *testing.T) {
	_, table, _ := start(t)
	table.Load([]desired.Attached{pod("a", 2)})
	errs := table.change(context.Background(), []change{{pod: pod("a", 3)}, {pod: pod("a", 2), goes: true}})
	if !errors.Is(errs[0], flowstore.ErrNotReady) || !errors.Is(errs[1], flowstore.ErrNotReady) || len(table.attached) != 0 {
		t.Errorf("%v, attached %v", errs, table.attached)
	}
}
