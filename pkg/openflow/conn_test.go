package openflow

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/k8s-ovs/k8s-ovs/test/ovstest"
)

func podFlows(n int) []Flow {
	flows := make([]Flow, n)
	for i := range flows {
		flows[i] = Flow{
			Table: uint8(i % 12), Priority: 100, Cookie: uint64(i),
			Match: NewMatch(Reg(0, uint32(i)), IPv4Dst(pfx("10.0.0.0/24")), InPort(uint32(i%4+1))),
			Actions: []Action{SetField(Reg(1, uint32(i))), SetField(EthDst(mac("0a:58:0a:00:00:01"))),
				Load(Range(FieldTunnelID, 0, 24), uint64(i&0xffffff)), Output(1)},
		}
	}
	return flows
}

// A bundle with one bad part changes nothing, wherever and whatever it is, and
// the error names it.
func TestBundleIsAtomic(t *testing.T) {
	_, c := startBridge(t)
	ctx := testContext(t)
	before := podFlows(5)
	if err := c.Commit(ctx, addAll(before)); err != nil {
		t.Fatal(err)
	}
	good := Flow{Table: 20, Priority: 1, Actions: []Action{Output(2)}}
	for _, tc := range []struct {
		name string
		bad  Mod
		want string
	}{
		{"decoding", AddFlow(Flow{Table: 21, Match: NewMatch(IP()), Actions: []Action{SetField(ARPOp(2))}}), "OFPBAC_MATCH_INCONSISTENT"},
		{"group that does not exist", AddFlow(Flow{Table: 21, Actions: []Action{Group(99)}}), "OFPBAC_BAD_OUT_GROUP"},
		{"meter that does not exist", AddFlow(Flow{Table: 21, Meter: 99}), "OFPMMFC_INVALID_METER"},
		{"goto backwards", AddFlow(Flow{Table: 21, Goto: GotoTable(3)}), "OFPBIC_BAD_TABLE_ID"},
		{"overlap, seen at the commit", AddFlow(Flow{Table: 0, Priority: 100, Match: NewMatch(Reg(0, 0)), Flags: CheckOverlap}), "OFPFMFC_OVERLAP"},
		{"group twice, seen at the commit", AddGroup(GroupEntry{ID: 1, Type: GroupAll}), "OFPGMFC_GROUP_EXISTS"},
		{"group unknown, seen at the commit", ModifyGroup(GroupEntry{ID: 44, Type: GroupAll}), "OFPGMFC_UNKNOWN_GROUP"},
		{"ct_state bits", AddFlow(Flow{Match: NewMatch(IP(), CTState(1<<9, 1<<9))}), "OFPBMC_BAD_VALUE"},
	} {
		for at := range 3 {
			t.Run(fmt.Sprintf("%s/%d", tc.name, at), func(t *testing.T) {
				mods := []Mod{DeleteFlows(FlowFilter{}), AddFlow(good)}
				mods = slices.Insert(mods, at, tc.bad)
				if strings.Contains(tc.name, "overlap") { // with what is not deleted first
					mods = slices.Insert([]Mod{AddFlow(good), AddFlow(good)}, at, tc.bad)
				}
				err := c.Commit(ctx, mods)
				var me *ModError
				var se *SwitchError
				if !errors.As(err, &me) || !errors.As(err, &se) {
					t.Fatalf("error is %v, not one that names a part", err)
				}
				if mods[me.Index].String() != tc.bad.String() || me.Mod.String() != tc.bad.String() || se.Name() != tc.want {
					t.Errorf("error names part %d and %s, want %s, %s: %v", me.Index, se.Name(), tc.bad, tc.want, err)
				}
				if d := diffFlows(sorted(before), readFlows(t, c)); d != "" {
					t.Errorf("flows changed (-before +after):\n%s", d)
				}
			})
		}
	}
	huge := Flow{Actions: []Action{Note(make([]byte, 70000))}}
	if err := c.Commit(ctx, []Mod{AddFlow(good), AddFlow(huge)}); err == nil || !strings.Contains(err.Error(), "at most 65535") {
		t.Errorf("a flow too large for a message: %v", err)
	}
	if d := diffFlows(sorted(before), readFlows(t, c)); d != "" {
		t.Errorf("flows changed (-before +after):\n%s", d)
	}
}

// Deleting by match takes flows that match the same or less, and no others; by
// cookie those that have its bits.
func TestDeleteFlowsByMatch(t *testing.T) {
	_, c := startBridge(t)
	ctx := testContext(t)
	flow := func(fields ...Field) Flow { return Flow{Table: 1, Match: NewMatch(fields...)} }
	kept := []Flow{flow(Reg(0, 1)), flow(IPv4Dst(pfx("10.0.0.0/7"))), flow(IPv4Src(pfx("10.0.0.1/32")))}
	gone := []Flow{flow(IPv4Dst(pfx("10.0.0.0/8"))), flow(IPv4Dst(pfx("10.0.0.1/32")), Reg(0, 1)), flow(UDPDst(1), IPv4Dst(pfx("10.9.0.0/16")))}
	if err := c.Commit(ctx, addAll(append(gone, kept...))); err != nil {
		t.Fatal(err)
	}
	filter := FlowFilter{Match: NewMatch(IPv4Dst(pfx("10.0.0.0/8")))}
	if got, err := c.Flows(ctx, filter); err != nil || len(got) != len(gone) {
		t.Errorf("Flows: %v, %v", got, err)
	}
	if err := c.Commit(ctx, []Mod{DeleteFlows(filter)}); err != nil {
		t.Fatal(err)
	}
	if d := diffFlows(sorted(kept), readFlows(t, c)); d != "" {
		t.Errorf("by match (-want +got):\n%s", d)
	}
	kept[1].Cookie, kept[2].Cookie = 0x11, 0x21
	if err := c.Commit(ctx, addAll(kept)); err != nil {
		t.Fatal(err)
	}
	if err := c.Commit(ctx, []Mod{DeleteFlows(FlowFilter{Cookie: 0x10, CookieMask: 0xf0})}); err != nil {
		t.Fatal(err)
	}
	if d := diffFlows(sorted([]Flow{kept[0], kept[2]}), readFlows(t, c)); d != "" {
		t.Errorf("by cookie (-want +got):\n%s", d)
	}
}

// The switch's own flows show what this package does not understand: it is kept,
// and shown only to those who ask for the table.
func TestFlowsOfTheSwitch(t *testing.T) {
	_, c := startBridge(t)
	ctx := testContext(t)
	if got, err := c.Flows(ctx, FlowFilter{Cookie: 0, CookieMask: ^uint64(0)}); err != nil || len(got) != 0 {
		t.Errorf("flows of an empty bridge: %v, %v", got, err)
	}
	got, err := c.Flows(ctx, FlowFilter{Table: GotoTable(internalTable), CookieMask: ^uint64(0)})
	if err != nil {
		t.Fatal(err)
	}
	var raw int
	for _, f := range got {
		if !f.Match.Typed() {
			raw++
		}
	}
	if raw == 0 {
		t.Errorf("none of these has a match that is not understood: %v", got)
	}
}

// Parts of a bundle take effect in their order.
func TestBundleIsOrdered(t *testing.T) {
	_, c := startBridge(t)
	ctx := testContext(t)
	a := Flow{Table: 1, Priority: 7, Cookie: 1, Match: NewMatch(Reg(0, 1)), Actions: []Action{Output(1)}}
	b := a
	b.Cookie, b.Actions = 2, []Action{Output(2)}
	other := Flow{Table: 1, Priority: 8, Cookie: 0x11, Match: NewMatch(Reg(0, 1), IPv4Dst(pfx("10.0.0.1/32"))), Actions: []Action{Output(3)}}
	modified := a
	modified.Actions = b.Actions // the cookie stays
	for _, tc := range []struct {
		name string
		mods []Mod
		want []Flow
	}{
		{"add replaces all", []Mod{AddFlow(a), AddFlow(b)}, []Flow{b}},
		{"delete then add", []Mod{AddFlow(b), DeleteFlow(a), AddFlow(a)}, []Flow{a}},
		{"add then delete", []Mod{AddFlow(a), DeleteFlow(b)}, nil},
		{"modify keeps the cookie", []Mod{AddFlow(a), ModifyFlow(b)}, []Flow{modified}},
		{"modify of none", []Mod{ModifyFlow(b)}, nil},
		{"both, then delete one", []Mod{AddFlow(a), AddFlow(other), DeleteFlow(other)}, []Flow{a}},
		{"delete by another table", []Mod{AddFlow(a), DeleteFlows(FlowFilter{Table: GotoTable(2)})}, []Flow{a}},
		{"strict delete of another priority", []Mod{AddFlow(a), DeleteFlow(Flow{Table: 1, Priority: 6, Match: a.Match})}, []Flow{a}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := c.Commit(ctx, append([]Mod{DeleteFlows(FlowFilter{})}, tc.mods...)); err != nil {
				t.Fatal(err)
			}
			if d := diffFlows(sorted(tc.want), readFlows(t, c)); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

// Parts that are posted count one by one: what the switch refuses keeps no other, and nobody hears of it.
func TestPost(t *testing.T) {
	_, c := startBridge(t)
	ctx := testContext(t)
	f := Flow{Table: 1, Priority: 7, Cookie: 1, Match: NewMatch(Reg(0, 1)), Actions: []Action{Output(1)}}
	gone := Flow{Table: 1, Priority: 8, Cookie: 1, Match: NewMatch(Reg(0, 1))}
	noGroup := Flow{Table: 1, Priority: 9, Cookie: 1, Match: NewMatch(Reg(0, 1)), Actions: []Action{Group(77)}}
	if err := c.Post(ctx, []Mod{AddFlow(gone), AddFlow(noGroup), AddFlow(f), DeleteFlow(gone)}); err != nil {
		t.Fatal(err)
	}
	if d := diffFlows([]Flow{f}, readFlows(t, c)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	_ = c.Close()
	if err := c.Post(ctx, []Mod{AddFlow(gone)}); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func TestFilters(t *testing.T) {
	_, c := startBridge(t)
	ctx := testContext(t)
	flows := podFlows(48)
	if err := c.Commit(ctx, addAll(flows)); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		filter FlowFilter
		want   int
	}{
		{FlowFilter{}, 48},
		{FlowFilter{Table: GotoTable(0)}, 4},
		{FlowFilter{Cookie: 5, CookieMask: ^uint64(0)}, 1},
		{FlowFilter{Cookie: 0x20, CookieMask: 0x20}, 16},
		{FlowFilter{Match: NewMatch(InPort(1))}, 12},
		{FlowFilter{Table: GotoTable(1), Match: NewMatch(InPort(2))}, 4},
		{FlowFilter{Match: NewMatch(ARP())}, 0},
	} {
		got, err := c.Flows(ctx, tc.filter)
		if err != nil || len(got) != tc.want {
			t.Errorf("Flows(%s): %d, %v; want %d", tc.filter, len(got), err, tc.want)
		}
	}
	if _, err := c.Flows(ctx, FlowFilter{Match: NewMatch(CTState(1<<9, 1<<9), IP())}); err == nil || !strings.Contains(err.Error(), "OFPBMC_") {
		t.Errorf("a filter that the switch refuses: %v", err)
	}
}

func TestGroupsMetersPorts(t *testing.T) {
	o, c := startBridge(t)
	ctx := testContext(t)
	sel := GroupEntry{ID: 2, Type: GroupSelect, Buckets: []Bucket{
		{Weight: 3, Actions: []Action{SetField(Reg(0, 1)), Output(1)}},
		{Weight: 1, WatchPort: 2, Actions: []Action{Output(2)}},
		{Weight: 0, Actions: []Action{Output(3)}},
	}}
	all := GroupEntry{ID: 3, Type: GroupAll, Buckets: []Bucket{{Actions: []Action{Output(1)}}, {Actions: []Action{Output(2)}}}}
	ff := GroupEntry{ID: 4, Type: GroupFastFail, Buckets: []Bucket{{WatchPort: 1, Actions: []Action{Output(1)}}, {WatchGroup: 3, Actions: []Action{Group(3)}}}}
	empty := GroupEntry{ID: 5, Type: GroupSelect}
	use := Flow{Actions: []Action{Group(2)}}
	if err := c.Commit(ctx, []Mod{AddGroup(sel), AddGroup(all), AddGroup(ff), SetGroup(empty), AddFlow(use)}); err != nil {
		t.Fatal(err)
	}
	byID := cmpopts.SortSlices(func(a, b GroupEntry) bool { return a.ID < b.ID })
	one := GroupEntry{ID: 1, Type: GroupIndirect, Buckets: []Bucket{{Actions: []Action{Output(1)}}}}
	check := func(want ...GroupEntry) {
		t.Helper()
		got, err := c.Groups(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got, byID); d != "" {
			t.Errorf("groups (-want +got):\n%s", d)
		}
	}
	check(one, sel, all, ff, empty)
	// ovs-ofctl takes the text and makes the same group of it.
	o.OFCtl("del-groups", "br0", "group_id=2")
	o.OFCtl("add-group", "br0", sel.String())
	o.OFCtl("del-groups", "br0", "group_id=4")
	o.OFCtl("add-group", "br0", ff.String())
	check(one, sel, all, ff, empty)

	// A flow follows its group and goes with it.
	sel.Buckets = sel.Buckets[:1]
	if err := c.Commit(ctx, []Mod{SetGroup(sel), DeleteGroup(4), DeleteGroup(5), AddFlow(use)}); err != nil {
		t.Fatal(err)
	}
	check(one, sel, all)
	if err := c.Commit(ctx, []Mod{DeleteGroup(EveryGroup)}); err != nil {
		t.Fatal(err)
	}
	check()
	if f := readFlows(t, c); len(f) != 0 {
		t.Errorf("flows of a deleted group: %v", f)
	}

	m := Meter{ID: 7, Flags: MeterPktps | MeterBurst | MeterStats, Bands: []Band{{Rate: 100, Burst: 10}}}
	if err := c.AddMeter(ctx, m); err != nil {
		t.Fatal(err)
	}
	if err := c.AddMeter(ctx, m); err == nil || !strings.Contains(err.Error(), "OFPMMFC_METER_EXISTS") || !strings.Contains(err.Error(), "meter=7") {
		t.Errorf("a meter twice: %v", err)
	}
	m.Bands[0].Rate = 200
	if err := c.ModifyMeter(ctx, m); err != nil {
		t.Fatal(err)
	}
	if err := c.DeleteMeter(ctx, 1); err != nil {
		t.Fatal(err)
	}
	meters, err := c.Meters(ctx)
	if d := cmp.Diff([]Meter{m}, meters); err != nil || d != "" {
		t.Errorf("meters: %v (-want +got):\n%s", err, d)
	}

	ports, err := c.Ports(ctx)
	if err != nil {
		t.Fatal(err)
	}
	names := map[uint32]string{}
	for _, p := range ports {
		names[p.Port] = p.Name
	}
	if d := cmp.Diff(map[uint32]string{1: "p1", 2: "p2", 3: "p3", 4: "p4", PortLocal: "br0"}, names); d != "" {
		t.Errorf("ports (-want +got):\n%s", d)
	}
}

// Fragments that ovs-ofctl set-frags keeps from flows are theirs again.
func TestAcceptFragments(t *testing.T) {
	b, c := startBridge(t)
	for _, c2 := range []struct {
		mode    string
		changed bool
	}{{"normal", false}, {"drop", true}, {"nx-match", true}} {
		b.OFCtl("set-frags", b.Mgmt("br0"), c2.mode)
		if changed, err := c.AcceptFragments(testContext(t)); changed != c2.changed || err != nil {
			t.Errorf("%s: changed %t, %v", c2.mode, changed, err)
		}
		if out := b.OFCtl("get-frags", b.Mgmt("br0")); strings.TrimSpace(out) != "normal" {
			t.Errorf("%s: then %q", c2.mode, out)
		}
	}
}

// What ovs-ofctl mod-port keeps from a port is read and undone.
func TestPortConfig(t *testing.T) {
	b, c := startBridge(t)
	ctx := testContext(t)
	config := func() map[string]PortConfig {
		t.Helper()
		ports, err := c.Ports(ctx)
		if err != nil {
			t.Fatal(err)
		}
		blocked := map[string]PortConfig{}
		for _, p := range ports {
			if p.Config == 0 {
				continue
			}
			blocked[p.Name] = p.Config
			if p.Name != "p3" {
				if err := c.SetPortConfig(ctx, p, 0, PortBlocked); err != nil {
					t.Error(err)
				}
			}
		}
		return blocked
	}
	for _, args := range [][]string{{"p1", "no-forward"}, {"p2", "no-receive"}, {"p2", "no-packet-in"}, {"p3", "no-forward"}} {
		b.OFCtl(append([]string{"mod-port", b.Mgmt("br0")}, args...)...)
	}
	if d := cmp.Diff(map[string]PortConfig{"p1": PortNoForward, "p2": PortNoReceive | PortNoPacketIn, "p3": PortNoForward}, config()); d != "" {
		t.Errorf("blocked (-want +got):\n%s", d)
	}
	if d := cmp.Diff(map[string]PortConfig{"p3": PortNoForward}, config()); d != "" {
		t.Errorf("after unblocking (-want +got):\n%s", d)
	}
}

// Many goroutines commit and read at once; each sees its own flows only.
func TestConcurrentCommits(t *testing.T) {
	_, c := startBridge(t)
	ctx := testContext(t)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for round := range 20 {
				cookie := uint64(g)<<32 | uint64(round)
				var mods []Mod
				for i := range 12 {
					mods = append(mods, AddFlow(Flow{Table: uint8(g), Priority: 5, Cookie: cookie, Match: NewMatch(Reg(0, uint32(i))), Actions: []Action{Output(1)}}))
				}
				if round%5 == 4 { // one that fails beside those that do not
					if err := c.Commit(ctx, append(mods, AddFlow(Flow{Actions: []Action{Group(9)}}))); err == nil {
						t.Error("a bad bundle was committed")
					}
					continue
				}
				if err := c.Commit(ctx, mods); err != nil {
					t.Error(err)
					return
				}
				got, err := c.Flows(ctx, FlowFilter{Cookie: cookie, CookieMask: ^uint64(0)})
				if err != nil || len(got) != 12 {
					t.Errorf("goroutine %d round %d: %d flows, %v; want 12: %v", g, round, len(got), err, got)
				}
			}
		})
	}
	wg.Wait()
}

// A bundle much larger than any socket buffer, every part of which the switch
// answers with an error, does not block, and neither does one that is good.
func TestLargeBundle(t *testing.T) {
	_, c := startBridge(t)
	ctx := testContext(t)
	bad := make([]Mod, 20000)
	for i := range bad {
		bad[i] = AddFlow(Flow{Match: NewMatch(Reg(0, uint32(i))), Actions: []Action{Group(99)}})
	}
	var me *ModError
	if err := c.Commit(ctx, bad); !errors.As(err, &me) || me.Index != 0 {
		t.Fatalf("bundle of bad parts: %v", err)
	}
	flows := podFlows(50000)
	if err := c.Commit(ctx, addAll(flows)); err != nil {
		t.Fatal(err)
	}
	if d := diffFlows(sorted(flows), readFlows(t, c)); d != "" {
		t.Errorf("read back (-written +read):\n%.2000s", d)
	}
}

// The connection notices a switch that dies, and one that hangs.
func TestLostConnection(t *testing.T) {
	o := ovstest.Start(t)
	mgmt := o.AddBridge("br0", "dummy")
	ctx := testContext(t)
	t.Run("hangs", func(t *testing.T) {
		c := dial(t, mgmt, withKeepalive(20*time.Millisecond, 100*time.Millisecond))
		resume := o.PauseVswitchd()
		defer resume()
		waitDone(t, c)
		if !errors.Is(c.Err(), ErrUnresponsive) || !strings.Contains(c.Err().Error(), mgmt) {
			t.Errorf("Err is %v", c.Err())
		}
	})
	t.Run("hangs while called", func(t *testing.T) {
		mods := addAll(podFlows(5000)) // more than fits in the socket; ready before the switch has to answer
		c := dial(t, mgmt, withKeepalive(20*time.Millisecond, 100*time.Millisecond))
		defer o.PauseVswitchd()()
		start := time.Now()
		err := c.Commit(ctx, mods)
		if !errors.Is(err, ErrUnresponsive) {
			t.Errorf("Commit: %v", err)
		}
		if took := time.Since(start); took < 5000*partTime {
			t.Errorf("given up after %v; a bundle of 5000 parts may take the switch %v", took, 5000*partTime)
		}
	})
	t.Run("caller gives up", func(t *testing.T) {
		c := dial(t, mgmt)
		resume := o.PauseVswitchd()
		short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		if err := c.Commit(short, addAll(podFlows(20000))); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Commit: %v", err)
		}
		resume()
		// It was not committed, and the connection goes on.
		if f := readFlows(t, c); len(f) != 0 {
			t.Errorf("%d flows of a bundle that was given up", len(f))
		}
	})
	t.Run("idle is not lost", func(t *testing.T) {
		c := dial(t, mgmt, withKeepalive(5*time.Millisecond, 20*time.Second))
		heard := c.heard.Load()
		for c.heard.Load() == heard { // an answer to the echo; the test's deadline ends this
			if c.Err() != nil || ctx.Err() != nil {
				t.Fatal(c.Err(), ctx.Err())
			}
			runtime.Gosched()
		}
	})
	t.Run("dies", func(t *testing.T) {
		c := dial(t, mgmt)
		o.KillVswitchd()
		waitDone(t, c)
		if _, err := c.Flows(ctx, FlowFilter{}); err == nil || !errors.Is(err, c.Err()) {
			t.Errorf("Flows after that: %v", err)
		}
		if _, err := Dial(ctx, mgmt); err == nil || !strings.Contains(err.Error(), "is ovs-vswitchd running") {
			t.Errorf("Dial after that: %v", err)
		}
		o.StartVswitchd()
		if err := dial(t, mgmt).Barrier(ctx); err != nil {
			t.Error(err)
		}
	})
}

func waitDone(t *testing.T, c *Conn) {
	t.Helper()
	select {
	case <-c.Done():
	case <-time.After(20 * time.Second):
		t.Fatal("Done is not closed")
	}
}

// Close ends calls that are under way and leaves no goroutine.
func TestClose(t *testing.T) {
	o := ovstest.Start(t)
	mgmt := o.AddBridge("br0", "dummy")
	c := dial(t, mgmt)
	defer o.PauseVswitchd()()
	got := make(chan error)
	go func() { got <- c.Barrier(context.Background()) }()
	waitFor(t, func() bool { c.mu.Lock(); defer c.mu.Unlock(); return len(c.calls) == 1 })
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-got; !errors.Is(err, ErrClosed) {
		t.Errorf("Barrier during Close: %v", err)
	}
	if err := c.Close(); err != nil || c.Err() != ErrClosed {
		t.Errorf("second Close: %v, Err %v", err, c.Err())
	}
	if err := c.Commit(context.Background(), []Mod{DeleteFlows(FlowFilter{})}); !errors.Is(err, ErrClosed) {
		t.Errorf("Commit after Close: %v", err)
	}
	stacks := make([]byte, 1<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	if strings.Contains(string(stacks), "openflow.(*Conn)") {
		t.Errorf("goroutines are left:\n%s", stacks)
	}
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("waited 20 s for a condition")
		}
	}
}

// A bridge without OpenFlow 1.4 is refused with what to do.
func TestDialVersions(t *testing.T) {
	o := ovstest.Start(t)
	mgmt := o.AddBridge("br0", "dummy")
	o.VSCtl("set", "bridge", "br0", "protocols=OpenFlow10,OpenFlow13,OpenFlow15")
	ctx := testContext(t)
	_, err := Dial(ctx, mgmt)
	if err == nil || !strings.Contains(err.Error(), "clear bridge BRIDGE protocols") || !strings.Contains(err.Error(), "0x1 0x4 0x6") {
		t.Errorf("Dial: %v", err)
	}
	o.VSCtl("clear", "bridge", "br0", "protocols")
	dial(t, mgmt)
	if _, err := Dial(ctx, o.Mgmt("br9")); err == nil || !strings.Contains(err.Error(), "br9.mgmt") {
		t.Errorf("Dial of a bridge that is not: %v", err)
	}
}

// fakeSwitch answers one connection by a script.
func fakeSwitch(t *testing.T, script func(net.Conn, *bufio.Reader)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	wg.Go(func() {
		nc, err := l.Accept()
		if err != nil {
			return
		}
		defer nc.Close()
		script(nc, bufio.NewReader(nc))
	})
	return path
}

// The connection answers echo requests, and ends on what is not OpenFlow 1.4.
func TestPeerMisbehaves(t *testing.T) {
	greet := func(nc net.Conn, r *bufio.Reader) {
		_, _ = readMessage(r)
		_, _ = nc.Write([]byte{version, byte(msgHello), 0, 8, 0, 0, 0, 0})
	}
	t.Run("echo", func(t *testing.T) {
		answer := make(chan message, 1)
		c := dial(t, fakeSwitch(t, func(nc net.Conn, r *bufio.Reader) {
			greet(nc, r)
			_, _ = nc.Write([]byte{version, byte(msgEchoRequest), 0, 10, 0, 0, 0, 9, 'h', 'i'})
			m, _ := readMessage(r)
			answer <- m
		}))
		waitDone(t, c) // it hangs up
		if m := <-answer; m.typ != msgEchoReply || m.xid != 9 || string(m.body) != "hi" {
			t.Errorf("answer to an echo: %+v", m)
		}
	})
	for name, sent := range map[string][]byte{
		"other version": {0x04, byte(msgBarrierReply), 0, 8, 0, 0, 0, 1},
		"short length":  {version, byte(msgBarrierReply), 0, 7, 0, 0, 0, 1},
		"hangs up":      {version, byte(msgBarrierReply), 0, 9, 0, 0, 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, fakeSwitch(t, func(nc net.Conn, r *bufio.Reader) {
				greet(nc, r)
				_, _ = nc.Write(sent)
			}))
			waitDone(t, c)
		})
	}
	t.Run("answers something else", func(t *testing.T) {
		c := dial(t, fakeSwitch(t, func(nc net.Conn, r *bufio.Reader) {
			greet(nc, r)
			m, _ := readMessage(r)
			b := appendMessageHeader(nil, msgMultipartReply, m.xid)
			_, _ = nc.Write(finishMessage(append(b, 0, 2, 0, 0, 0, 0, 0, 0), 0))
			_, _ = readMessage(r)
		}))
		if _, err := c.Flows(testContext(t), FlowFilter{}); err == nil || !strings.Contains(err.Error(), "multipart") {
			t.Errorf("Flows: %v", err)
		}
	})
	t.Run("never greets", func(t *testing.T) {
		ctx, cancel := context.WithCancel(testContext(t))
		path := fakeSwitch(t, func(nc net.Conn, r *bufio.Reader) {
			_, _ = readMessage(r)
			cancel()
			_, _ = readMessage(r)
		})
		if _, err := Dial(ctx, path); !errors.Is(err, context.Canceled) {
			t.Errorf("Dial: %v", err)
		}
	})
}

// A bundle with a refused part is never committed: the switch is told to forget
// it, and the connection goes on.
func TestRefusedBundleIsDiscarded(t *testing.T) {
	last := make(chan message, 1)
	c := dial(t, fakeSwitch(t, func(nc net.Conn, r *bufio.Reader) {
		_, _ = readMessage(r)
		_, _ = nc.Write([]byte{version, byte(msgHello), 0, 8, 0, 0, 0, 0})
		var part, end message
		for _, m := range []*message{{}, &part, &end} { // opening, part, closing
			*m, _ = readMessage(r)
		}
		b := appendMessageHeader(nil, msgError, part.xid)
		b = finishMessage(append(b, 0, 2, 0, 4), 0)
		n := len(b)
		b = appendMessageHeader(b, msgBundleControl, end.xid)
		b = append(b, end.body[:4]...)
		_, _ = nc.Write(finishMessage(append(b, 0, bundleClose+bundleIsReply, 0, bundleFlags), n))
		m, _ := readMessage(r)
		last <- m
	}))
	var me *ModError
	if err := c.Commit(testContext(t), []Mod{AddFlow(Flow{})}); !errors.As(err, &me) || me.Index != 0 {
		t.Errorf("Commit: %v", err)
	}
	if m := <-last; m.typ != msgBundleControl || m.body[5] != bundleDiscard || m.body[3] != 1 {
		t.Errorf("after the refusal came %+v, not a discard of bundle 1", m)
	}
}

// withKeepalive has other times than defaultIdle and defaultDead.
func withKeepalive(idle, dead time.Duration) Option {
	return func(o *options) { o.idle, o.dead = idle, dead }
}
