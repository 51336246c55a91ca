package flowstore_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/flowstore"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
)

// flow sends what comes by a port to another, in the area of others.
func flow(in, out uint32) of.Flow {
	return of.Flow{Table: 1, Cookie: otherCookie, Match: of.NewMatch(of.InPort(in)), Actions: []of.Action{of.Output(out)}}
}

// metered is a flow with its meter, which lets so many packets pass.
func metered(id, rate uint32) flowstore.Want {
	f := flow(1000+id, 1)
	f.Meter = id
	return flowstore.Want{
		Flows:  []of.Flow{f},
		Meters: []of.Meter{{ID: id, Flags: of.MeterPktps | of.MeterBurst | of.MeterStats, Bands: []of.Band{{Rate: rate, Burst: rate}}}},
	}
}

// refused is a flow that no switch takes.
func refused() of.Flow {
	f := flow(1, 1)
	f.Table, f.Goto = 9, of.GotoTable(3)
	return f
}

func flows(all ...of.Flow) flowstore.Want { return flowstore.Want{Flows: all} }

type names = map[string]flowstore.Want

// lines are what some wants are in the switch.
func lines(all ...flowstore.Want) []string {
	set := map[string]bool{}
	var out []string
	add := func(s string) {
		if !set[s] {
			set[s] = true
			out = append(out, s)
		}
	}
	for _, w := range all {
		for _, f := range w.Flows {
			add(text(f))
		}
		for _, g := range w.Groups {
			add(g.String())
		}
		for _, m := range w.Meters {
			add(m.String())
		}
	}
	return out
}

// complete is a bridge with the area of others, of which nothing is wanted yet.
func complete(t *testing.T) *bridge {
	t.Helper()
	b := newBridge(t, other)
	b.set(nil, "one", "two")
	return b
}

// TestNothingBeforeComplete: nothing is written or removed before all kinds of the area
// were told; another area is not concerned.
func TestNothingBeforeComplete(t *testing.T) {
	b := newBridge(t, other, greeters)
	left := fmt.Sprintf("cookie=%#x,table=70,priority=7,actions=drop", uint64(otherCookie))
	b.OFCtl("add-flow", "br0", left)
	notReady := func(err error) {
		t.Helper()
		if !errors.Is(err, flowstore.ErrNotReady) {
			t.Errorf("%v, want ErrNotReady", err)
		}
	}
	want := flows(flow(1, 2))
	notReady(b.store.Try(t.Context(), b.change(names{"a": want})))
	_, err := b.store.Set(t.Context(), b.change(names{"a": want}, "one"))
	notReady(err)
	_, err = b.store.Resync(t.Context(), "others")
	notReady(err)
	var c flowstore.Change
	c.Set(flowstore.Owner{Kind: "greeter", Name: "ann"}, flows(greeter(1, 11).Flows[0]))
	c.All("greeter")
	greeting := flows(greeter(1, 11).Flows[0])
	greeting.Flows[0].Actions = nil
	c.Set(flowstore.Owner{Kind: "greeter", Name: "ann"}, greeting)
	if _, err := b.store.Set(t.Context(), c); err != nil {
		t.Error(err)
	}
	b.require("one kind of two", append(lines(greeting), left)...)
	var two flowstore.Change
	two.All("two")
	r, err := b.store.Set(t.Context(), two)
	if err != nil || len(r.Leftovers) != 1 {
		t.Errorf("left over: %v (%v)", r.Leftovers, err)
	}
	b.require("both kinds", lines(want, greeting)...)
}

// TestOverlap: areas whose flows cannot be told apart, kinds that are in two, and changes of
// several areas are refused.
func TestOverlap(t *testing.T) {
	twice := greeters
	twice.Kinds = []flowstore.Kind{"one"}
	all := other
	all.Cookie, all.Mask, all.Kinds = 0, 0, nil
	for _, areas := range [][]flowstore.Area{{other, all}, {other, twice}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("areas %v are taken", areas)
				}
			}()
			flowstore.New(flowstore.Config{Areas: areas})
		}()
	}
	s := flowstore.New(flowstore.Config{Areas: []flowstore.Area{other, greeters}})
	for _, kinds := range [][]flowstore.Kind{{"one", "greeter"}, {"unknown"}} {
		var c flowstore.Change
		c.All(kinds...)
		if _, err := s.Set(t.Context(), c); err == nil || errors.Is(err, flowstore.ErrNotReady) {
			t.Errorf("a change of %v: %v", kinds, err)
		}
	}
}

// TestAreas: an area that is not complete keeps groups that may be its own, and what its
// owners want in the place of another area's waits until both can be.
func TestAreas(t *testing.T) {
	b := newBridge(t, other, greeters)
	b.OFCtl("add-group", "br0", "group_id=7,type=all")
	x, y := flow(1, 2), flow(1, 3)
	y.Cookie = greeterCookie
	b.set(names{"a": flows(x)}, "one", "two")
	b.require("one area", append(lines(flows(x)), "group_id=7,type=all")...)
	greeting := func(w flowstore.Want, all ...flowstore.Kind) error {
		var c flowstore.Change
		c.All(all...)
		c.Set(flowstore.Owner{Kind: "greeter", Name: "ann"}, w)
		_, err := b.store.Set(t.Context(), c)
		return err
	}
	if err := greeting(flows(y)); !errors.Is(err, flowstore.ErrNotReady) {
		t.Errorf("%v, want ErrNotReady", err)
	}
	b.set(names{"a": {}})
	b.resync("others")
	b.require("its owner gave it up, the next is not complete", append(lines(flows(x)), "group_id=7,type=all")...)
	if err := greeting(flows(y), "greeter"); err != nil {
		t.Error(err)
	}
	b.resync("others")
	b.require("both areas", lines(flows(y))...)
	if len(b.repaired) > 0 {
		t.Errorf("counted %v", b.repaired)
	}
}

// TestWanted: what is said to be wanted is what the switch has.
func TestWanted(t *testing.T) {
	b := complete(t)
	want := names{"a": flows(flow(1, 2), flow(2, 2)), "b": metered(7, 100), "c": flows(flow(2, 2))}
	b.set(want)
	var have []string
	stats, err := b.Flows(t.Context(), of.FlowFilter{})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range stats {
		have = append(have, f.Flow.String())
	}
	slices.Sort(have)
	if diff := cmp.Diff(append(have, want["b"].Meters[0].String()), b.store.Wanted()); diff != "" {
		t.Errorf("(-have +wanted)\n%s", diff)
	}
	b.set(nil, "one", "two")
	if left := b.store.Wanted(); len(left) != 0 {
		t.Errorf("nobody wants anything any more, and it says %q", left)
	}
}

// TestShared: what two owners want alike goes with the last of them. What they want
// otherwise the first keeps, and the next gets when it is given up.
func TestShared(t *testing.T) {
	b := complete(t)
	x, y, own := flow(1, 2), flow(1, 3), flow(9, 9)
	b.set(names{"a": flows(x), "b": flows(x, own)})
	b.set(names{"a": {}})
	b.require("one of two gone", lines(flows(x, own))...)
	r := b.set(names{"c": flows(y)})
	if diff := cmp.Diff([]flowstore.Owner{{Kind: "one", Name: "c"}}, r.Contested); diff != "" {
		t.Errorf("contested (-want +got):\n%s", diff)
	}
	b.require("another wants it otherwise", lines(flows(x, own))...)
	// c is before a: it would get it from b.
	err := b.store.Try(t.Context(), b.change(names{"d": flows(y, flow(7, 7)), "b": {}, "a": flows(x)}))
	if !errors.Is(err, flowstore.ErrContested) || !strings.Contains(err.Error(), "one a") {
		t.Errorf("a try that has to wait: %v", err)
	}
	b.require("taken back", lines(flows(x, own))...)
	more := flow(8, 8)
	b.set(names{"b": flows(x, more)})
	b.require("the first wants something else besides", lines(flows(x, more))...)
	b.set(names{"z": flows(flow(1, 4))})
	b.set(names{"c": flows(y, flow(7, 7))})
	b.require("who waits wants something else besides", lines(flows(x, more, flow(7, 7)))...)
	b.set(names{"b": flows(own), "c": flows(y)})
	b.set(names{"z": {}})
	b.require("the first gave it up", lines(flows(y, own))...)
	b.set(names{"e": flows(x), "c": {}})
	b.require("it moves in one change", lines(flows(x, own))...)
	b.set(names{"b": {}, "e": {}})
	b.require("all gone")
	if n := b.store.Size("others"); n != 0 {
		t.Errorf("%d flows counted", n)
	}
}

// TestOrder: in a bundle what is added comes before what goes, groups are there before and
// after the flows that refer to them, and meters before and after the bundle.
func TestOrder(t *testing.T) {
	b := complete(t)
	before, after := greeter(1, 11), greeter(2, 12)
	for _, w := range []*flowstore.Want{&before, &after} {
		w.Flows[0].Cookie = otherCookie
	}
	before.Flows, before.Meters = append(before.Flows, metered(5, 10).Flows...), metered(5, 10).Meters
	after.Flows, after.Meters = append(after.Flows, metered(6, 10).Flows...), metered(6, 10).Meters
	b.set(names{"a": before})
	if err := b.store.Try(t.Context(), b.change(names{"a": after})); err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for _, s := range b.sent {
		kinds = append(kinds, strings.Join(strings.Fields(s)[:2], " "))
	}
	want := []string{"--may-create mod-group", "add-flow cookie=0x100000000000,", "add-flow cookie=0x100000000000,", "del-flows --strict", "del-flows --strict", "del-groups group_id=1"}
	if diff := cmp.Diff(want, kinds); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	b.require("changed", lines(after)...)
}

// TestTakenBack: a change that the switch refuses leaves neither a trace in the picture nor
// in the switch, and does not make the next one read it.
func TestTakenBack(t *testing.T) {
	b := complete(t)
	a := metered(5, 10)
	a.Flows = append(a.Flows, flow(1, 2))
	b.set(names{"a": a})
	changed, bad := metered(5, 20), metered(6, 20)
	bad.Flows = append(bad.Flows, refused())
	var mod *of.ModError
	if err := b.store.Try(t.Context(), b.change(names{"a": changed, "bad": bad})); !errors.As(err, &mod) {
		t.Fatalf("%v, want a ModError", err)
	}
	b.resync("others") // the meters could not be part of the bundle
	b.require("refused", lines(a)...)
	if len(b.repaired) > 0 {
		t.Errorf("counted %v", b.repaired)
	}
	if err := b.store.Try(t.Context(), b.change(names{"a": changed})); err != nil {
		t.Fatal(err)
	}
	b.require("the next try", lines(changed)...)
}

// TestNewsStay: what Set cannot bring in stays in the picture, keeps nothing else out, and
// comes in when it can.
func TestNewsStay(t *testing.T) {
	b := complete(t)
	var mod *of.ModError
	if _, err := b.store.Set(t.Context(), b.change(names{"bad": flows(refused()), "a": flows(flow(1, 2))})); !errors.As(err, &mod) {
		t.Fatalf("%v, want a ModError", err)
	}
	if err := b.store.Try(t.Context(), b.change(names{"pod": flows(flow(3, 4))})); err != nil {
		t.Fatal(err)
	}
	b.require("refused", lines(flows(flow(3, 4)))...)
	// A pod shares its tenant's flows: what of them is behind comes in with the pod's.
	if err := b.store.Try(t.Context(), b.change(names{"pod": flows(flow(3, 4)), "a": flows(flow(1, 2))})); err != nil {
		t.Fatal(err)
	}
	b.require("behind", lines(flows(flow(3, 4), flow(1, 2)))...)
	b.set(names{"bad": {}})
	b.require("no longer wanted", lines(flows(flow(3, 4), flow(1, 2)))...)
	b.store.Disconnect()
	if _, err := b.store.Set(t.Context(), b.change(names{"a": {}, "b": flows(flow(5, 6))})); !errors.Is(err, flowstore.ErrDisconnected) {
		t.Errorf("Set without a switch: %v", err)
	}
	if err := b.store.Try(t.Context(), b.change(names{"c": flows(flow(7, 8))})); !errors.Is(err, flowstore.ErrDisconnected) {
		t.Errorf("Try without a switch: %v", err)
	}
	b.store.Connect(b)
	if r := b.resync("others"); r.Changed != 2 || len(b.repaired) > 0 {
		t.Errorf("%d changes, %v repairs: want what was behind, which is no repair", r.Changed, b.repaired)
	}
	b.require("connected", lines(flows(flow(3, 4), flow(5, 6)))...)
}

// TestAnswerLost: where the switch did not say what became of a change, the next one
// finds out.
func TestAnswerLost(t *testing.T) {
	lost := errors.New("no answer")
	for _, carriedOut := range []bool{false, true} {
		b := complete(t)
		b.set(names{"a": flows(flow(1, 2))})
		b.fail = func(after bool) error {
			if after == carriedOut {
				return lost
			}
			return nil
		}
		if err := b.store.Try(t.Context(), b.change(names{"a": {}, "b": flows(flow(3, 4))})); !errors.Is(err, lost) {
			t.Fatal(err)
		}
		b.fail = nil
		if err := b.store.Try(t.Context(), b.change(names{"c": flows(flow(5, 6))})); err != nil {
			t.Fatal(err)
		}
		b.resync("others")
		b.require(fmt.Sprint("carried out: ", carriedOut), lines(flows(flow(1, 2), flow(5, 6)))...)
		if len(b.repaired) > 0 {
			t.Errorf("counted %v", b.repaired)
		}
	}
}

// TestLarge: a large change is several bundles, between which others get in, additions
// first; it comes in as a whole when one of them fails.
func TestLarge(t *testing.T) {
	b := complete(t)
	large := func(out uint32) (w flowstore.Want) {
		for i := range 5000 {
			f := flow(1, out)
			f.Match = of.NewMatch(of.IP(), of.IPv4Dst(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(out), byte(i >> 8), byte(i)}), 32)))
			w.Flows = append(w.Flows, f)
		}
		return w
	}
	bundles := b.bundles
	b.set(names{"a": large(1)})
	if n := b.bundles - bundles; n != 2 {
		t.Errorf("%d bundles, want 2", n)
	}
	// The second of three has no answer: all that is added is in by then, or before long.
	n := 0
	b.fail = func(after bool) error {
		if n++; after && n == 4 {
			return errors.New("no answer")
		}
		return nil
	}
	if _, err := b.store.Set(t.Context(), b.change(names{"a": {}, "b": large(2)})); err == nil {
		t.Error("no error")
	}
	b.fail = nil
	b.resync("others")
	b.require("in the end", lines(large(2))...)
}

// TestTogether: flows that are not to be parted come, and go, in the first bundle of a large change,
// however many they are; the others in as many as it takes.
func TestTogether(t *testing.T) {
	area := other
	area.AtOnce, area.Together = 40, func(f of.Flow) bool { return f.Table == 2 }
	b := newBridge(t, area)
	want := func(out uint32) (w flowstore.Want) {
		for i := range uint32(100) {
			apart, together := flow(1+i+100*out, out), flow(1+i+50*out, out)
			together.Table = 2
			w.Flows = append(w.Flows, apart, together)
		}
		return w
	}
	var sizes, together []int
	b.fail = func(after bool) error {
		if !after {
			n := 0
			for _, m := range b.sent {
				if strings.Contains(m, "table=2") {
					n++
				}
			}
			sizes, together = append(sizes, len(b.sent)), append(together, n)
		}
		return nil
	}
	b.set(names{"a": want(1)}, "one", "two")
	b.set(names{"a": want(2)}) // half of those that are together are others now
	b.set(names{"a": flows(want(2).Flows[:30]...)})
	if want := []int{100, 40, 40, 20, 150, 40, 40, 40, 40, 40, 85, 40, 40, 5}; !slices.Equal(sizes, want) {
		t.Errorf("bundles of %v, want %v", sizes, want)
	}
	if want := []int{100, 0, 0, 0, 150, 0, 0, 0, 0, 0, 85, 0, 0, 0}; !slices.Equal(together, want) {
		t.Errorf("%v in them were to be together, want %v", together, want)
	}
	b.fail = nil
	b.require("in the end", lines(flows(want(2).Flows[:30]...))...)
}

// TestRetire: a flow that nobody wants becomes what its area says, also one that was
// left over; what is that already stays as it is.
func TestRetire(t *testing.T) {
	area := other
	area.Retire = func(f of.Flow) (of.Flow, bool) {
		_, keep := f.Match.Field(of.FieldInPort)
		f.IdleTimeout = 600
		return f, keep
	}
	b := newBridge(t, area)
	b.set(nil, "one", "two")
	late := flow(1, 2)
	late.IdleTimeout = 600
	for range 2 {
		b.set(names{"a": flows(flow(1, 2))})
		b.require("wanted", lines(flows(flow(1, 2)))...)
		b.set(names{"a": {}})
		b.require("not wanted", lines(flows(late))...)
	}
	b.restart()
	if r := b.set(nil, "one", "two"); r.Changed != 0 {
		t.Errorf("%d changes of what retired already", r.Changed)
	}
	b.OFCtl("add-flow", "br0", text(flow(3, 4)))
	b.resync("others")
	f := flow(3, 4)
	f.IdleTimeout = 600
	b.require("a leftover", lines(flows(late, f))...)
}

// TestCheck: what differs in the switch of what an owner wants is told.
func TestCheck(t *testing.T) {
	b := complete(t)
	w := metered(5, 10)
	w.Flows = append(w.Flows, flow(1, 2), flow(3, 4))
	b.set(names{"a": w, "b": flows(flow(5, 6))})
	owner := flowstore.Owner{Kind: "one", Name: "a"}
	for _, step := range []struct {
		damage []string
		want   string
	}{
		{[]string{"del-flows", "br0", "table=1,in_port=5"}, "[]"}, // another's
		{[]string{"mod-flows", "br0", "table=1,in_port=3,actions=drop"}, "[flow differs"},
		{[]string{"del-flows", "br0", "table=1,in_port=3"}, "[flow is missing"},
		{[]string{"mod-meter", "br0", "meter=5,pktps,burst,stats,band=type=drop,rate=7,burst_size=7"}, "[meter differs"},
		{[]string{"del-meter", "br0", "meter=5"}, "[meter is missing"},
	} {
		b.OFCtl(step.damage...)
		if diff, err := b.store.Check(t.Context(), owner); err != nil || !strings.HasPrefix(fmt.Sprint(diff), step.want) {
			t.Errorf("%v: %v (%v), want %s", step.damage, diff, err, step.want)
		}
	}
}

// TestReadInTime: an area is read back when it is time, and not before.
func TestReadInTime(t *testing.T) {
	area := other
	area.Every = time.Minute
	b := newBridge(t, area)
	b.set(names{"a": flows(flow(1, 2))}, "one", "two")
	b.OFCtl("del-flows", "br0")
	b.now = b.now.Add(time.Minute - 1)
	b.resync("others")
	b.require("too early")
	b.now = b.now.Add(1)
	if r := b.resync("others"); r.Found == nil {
		t.Error("nothing was read")
	}
	b.require("in time", lines(flows(flow(1, 2)))...)
	if diff := cmp.Diff(map[flowstore.Kind]int{"one": 1}, b.repaired); diff != "" {
		t.Errorf("repaired (-want +got):\n%s", diff)
	}
}

// noMeters is a switch that has no room for another meter.
type noMeters struct{ flowstore.Switch }

func (noMeters) AddMeter(context.Context, of.Meter) error { return errors.New("no room") }

func TestMeterRefused(t *testing.T) {
	b := complete(t)
	b.store.Connect(noMeters{b})
	var refused *flowstore.MeterError
	if err := b.store.Try(t.Context(), b.change(names{"a": metered(5, 10)})); !errors.As(err, &refused) || !refused.New || refused.Meter.ID != 5 {
		t.Errorf("%v, want a MeterError about meter 5", err)
	}
	if err := b.store.Try(t.Context(), b.change(names{"a": flows(flow(1, 2))})); err != nil {
		t.Error(err)
	}
	b.require("without", lines(flows(flow(1, 2)))...)
}
