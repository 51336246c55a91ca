package openflow

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/test/ovstest"
)

// flowUpdates are one of each kind: a flow that went, a change of one's own, paused, resumed.
var flowUpdates = []byte{
	0, 32, 0, 2, 3, 2, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 1, 0, 4, 0, 0, 0, 0,
	0, 8, 0, 4, 0, 0, 0, 7,
	0, 8, 0, 5, 0, 0, 0, 0,
	0, 8, 0, 6, 0, 0, 0, 0,
}

func TestChangedByOthers(t *testing.T) {
	removed := func(reason byte) []byte {
		b := append([]byte(nil), flowUpdates[:32]...)
		b[5] = reason
		return b
	}
	for name, tc := range map[string]struct {
		body []byte
		want bool
	}{
		"nothing":         {nil, false},
		"deleted":         {removed(2), true},
		"its group gone":  {removed(3), true},
		"its meter gone":  {removed(6), true},
		"idle":            {removed(0), false},
		"timed out":       {removed(1), false},
		"own":             {flowUpdates[32:40], false},
		"paused":          {flowUpdates[40:48], false},
		"resumed":         {flowUpdates[48:], true},
		"own and another": {append(append([]byte(nil), flowUpdates[32:40]...), removed(2)...), true},
	} {
		if got, err := changedByOthers(tc.body); err != nil || got != tc.want {
			t.Errorf("%s: %v, %v; want %v", name, got, err, tc.want)
		}
	}
	for _, b := range [][]byte{{0, 7, 0, 2, 0, 0, 0}, flowUpdates[:31], {0, 0, 0, 4, 0, 0, 0, 0}} {
		if _, err := changedByOthers(b); err == nil {
			t.Errorf("%x is taken", b)
		}
	}
}

// A real switch tells of what others change, at once, and of nothing else.
func TestWatch(t *testing.T) {
	o, c := startBridge(t)
	ctx := testContext(t)
	var heard atomic.Int64
	var reading sync.Mutex
	if err := c.Watch(ctx, []uint8{3, 5}, func() {
		reading.Lock()
		defer reading.Unlock()
		heard.Add(1)
	}); err != nil {
		t.Fatal(err)
	}
	ours := func(table uint8, n int) []Flow {
		var flows []Flow
		for i := range n {
			flows = append(flows, Flow{Table: table, Priority: uint16(i), Actions: []Action{Output(1)}})
		}
		return flows
	}
	// silent is that nothing was told by the time that the switch answered.
	silent := func(what string, change func() error) {
		t.Helper()
		err := c.Barrier(ctx) // what was told of before is heard
		heard.Store(0)
		if err := errors.Join(err, change(), c.Barrier(ctx)); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if n := heard.Load(); n != 0 {
			t.Errorf("%s: told %d times, want silence", what, n)
		}
	}
	byHand := func(args ...string) func() error {
		return func() error { o.OFCtl(slices.Insert(slices.Clone(args), 1, "br0")...); return nil }
	}
	told := func(what string, change func() error) {
		t.Helper()
		heard.Store(0)
		if err := change(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		waitFor(t, func() bool { return heard.Load() > 0 })
	}
	silent("own flows", func() error { return c.Commit(ctx, addAll(ours(3, 5000))) })
	silent("own group", func() error {
		return c.Commit(ctx, []Mod{SetGroup(GroupEntry{ID: 7, Type: GroupSelect}), DeleteGroup(7)})
	})
	silent("own meter", func() error {
		m := Meter{ID: 7, Flags: MeterKbps, Bands: []Band{{Rate: 5}}}
		return errors.Join(c.AddMeter(ctx, m), c.ModifyMeter(ctx, m), c.DeleteMeter(ctx, 7))
	})
	silent("another table", byHand("add-flow", "table=4,actions=drop"))
	silent("nothing to delete", byHand("del-flows", "table=5"))
	told("added", byHand("add-flow", "table=5,actions=drop"))
	told("replaced", byHand("add-flow", "table=3,priority=7,actions=drop"))
	told("changed", byHand("mod-flows", "table=5,actions=NORMAL"))
	told("deleted", byHand("del-flows", "table=5"))
	told("group added", byHand("add-group", "group_id=8,type=all"))
	told("bucket added", func() error {
		o.OFCtl("-O", "OpenFlow15", "insert-buckets", "br0", "group_id=8,command_bucket_id=last,bucket=bucket_id:1,actions=output:1")
		return nil
	})
	told("group changed", byHand("mod-group", "group_id=8,type=select"))
	told("groups deleted", byHand("del-groups"))
	told("meter added", byHand("add-meter", "meter=8,kbps,band=type=drop,rate=5"))
	told("meter changed", byHand("mod-meter", "meter=8,kbps,band=type=drop,rate=6"))
	told("meters deleted", byHand("del-meters"))
	silent("timed out", func() error {
		err := c.Commit(ctx, []Mod{AddFlow(Flow{Table: 5, HardTimeout: 1})})
		waitFor(t, func() bool { return !strings.Contains(o.OFCtl("dump-flows", "br0", "table=5"), "hard_timeout") })
		return err
	})

	// More than the switch keeps for who does not read: it pauses, and tells when it goes on.
	file := filepath.Join(t.TempDir(), "flows")
	var text strings.Builder
	for i := range 20000 {
		fmt.Fprintf(&text, "table=5,priority=%d,actions=drop\n", i)
	}
	if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	reading.Lock()
	o.OFCtl("add-flows", "--bundle", "br0", file)
	reading.Unlock()
	// Its threads add up what they count once a second.
	waitFor(t, func() bool {
		paused := count(t, o, "ofmonitor_pause")
		return paused > 0 && count(t, o, "ofmonitor_resume") == paused
	})
	silent("own flows once resumed", func() error { return c.Commit(ctx, addAll(ours(3, 10))) })
	told("deleted once resumed", byHand("del-flows", "--strict", "table=5,priority=7"))
}

// count is a counter of ovs-vswitchd.
func count(t *testing.T, o *ovstest.OVS, name string) (n int) {
	t.Helper()
	if _, err := fmt.Sscan(o.AppCtl("coverage/read-counter", name), &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// BenchmarkWatched commits 25,000 flows, with and without the switch telling of changes.
func BenchmarkWatched(b *testing.B) {
	var flows []Flow
	for i := range 25000 {
		flows = append(flows, Flow{Table: uint8(i % 16), Match: NewMatch(Reg(0, uint32(i))), Actions: []Action{Output(1)}})
	}
	for _, watched := range []bool{false, true} {
		b.Run(fmt.Sprint(watched), func(b *testing.B) {
			_, c := startBridge(b)
			ctx := testContext(b)
			var tables []uint8
			for t := range uint8(17) {
				tables = append(tables, t)
			}
			if watched {
				if err := c.Watch(ctx, tables, func() { b.Error("told of an own change") }); err != nil {
					b.Fatal(err)
				}
			}
			for b.Loop() {
				b.StopTimer()
				if err := c.Commit(ctx, []Mod{DeleteFlows(FlowFilter{})}); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				if err := c.Commit(ctx, addAll(flows)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
