package uplink

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	diff "github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/link/tc"
	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
)

// fake are devices that refuse what the kernel refuses.
type fake struct {
	t      *testing.T
	links  map[string]link.Link
	speeds map[string]uint64
	roots  map[int]tc.RootQdisc
	tree   map[uint16]tc.HFSCClass
	queues map[uint16]bool
	// refuse makes calls of that name fail.
	refuse map[string]error
	// writes were made, lists read of all devices, tries begun.
	writes, lists, tries int
}

func newFake(t *testing.T) *fake {
	return &fake{
		t: t, links: map[string]link.Link{"eth0": {Name: "eth0", Index: 2}, "eth1": {Name: "eth1", Index: 3}, "lo": {Name: "lo", Index: 1, Loopback: true}},
		speeds: map[string]uint64{"eth0": 1e9}, roots: map[int]tc.RootQdisc{2: {Link: 2, Kind: "mq"}},
		tree: map[uint16]tc.HFSCClass{}, queues: map[uint16]bool{}, refuse: map[string]error{},
	}
}

func (f *fake) Link(name string) (link.Link, bool, error) {
	l, ok := f.links[name]
	return l, ok, nil
}

func (f *fake) LinkByIndex(index int) (link.Link, bool, error) {
	for _, l := range f.links {
		if l.Index == index {
			return l, true, nil
		}
	}
	return link.Link{}, false, nil
}

func (f *fake) Speed(name string) (uint64, bool, error) {
	return f.speeds[name], f.speeds[name] > 0, nil
}

func (f *fake) RootQdisc(name string) (tc.RootQdisc, error) {
	f.tries++
	i := f.links[name].Index
	return cmp.Or(f.roots[i], tc.RootQdisc{Link: i}), nil
}

func (f *fake) RootQdiscs() ([]tc.RootQdisc, error) {
	f.lists++
	return slices.Collect(maps.Values(f.roots)), f.refuse["list"]
}

func (f *fake) AddHFSC(name string, major uint16, classes ...tc.HFSCClass) error {
	i := f.links[name].Index
	if f.roots[i].Major != 0 {
		f.t.Errorf("hfsc in the place of %+v", f.roots[i])
	}
	if err := f.refuse["add"]; err != nil {
		return err
	}
	f.writes++
	f.roots[i] = tc.RootQdisc{Link: i, Kind: "hfsc", Major: major, Default: classes[len(classes)-1].Minor}
	f.tree, f.queues = map[uint16]tc.HFSCClass{}, map[uint16]bool{}
	for _, c := range classes {
		f.tree[c.Minor] = c
	}
	return nil
}

func (f *fake) DeleteHFSC(name string, major uint16) error {
	i := f.links[name].Index
	if q := f.roots[i]; q.Kind == "hfsc" && q.Major == major {
		f.writes++
		f.roots[i] = tc.RootQdisc{Link: i, Kind: "mq"}
	}
	return nil
}

func (f *fake) HFSCClasses(string) ([]tc.HFSCClass, error) {
	return slices.Collect(maps.Values(f.tree)), f.refuse["classes"]
}

func (f *fake) SetHFSCClass(name string, major uint16, c tc.HFSCClass) error {
	if err := f.refuse["set"]; err != nil {
		return err
	}
	if _, ok := f.tree[c.Parent]; c.Parent != 0 && !ok {
		return fmt.Errorf("class %x: no parent %x", c.Minor, c.Parent)
	}
	if old, ok := f.tree[c.Minor]; ok && old.Parent != c.Parent {
		return fmt.Errorf("class %x: parent is %x, not %x", c.Minor, old.Parent, c.Parent)
	}
	f.writes++
	f.tree[c.Minor] = c
	return nil
}

func (f *fake) QueueFairly(_ string, _, minor uint16) error {
	for _, c := range f.tree {
		if c.Parent == minor {
			return fmt.Errorf("class %x has children", minor)
		}
	}
	f.queues[minor] = true
	return nil
}

func (f *fake) DeleteHFSCClass(_ string, _, minor uint16) error {
	for _, c := range f.tree {
		if c.Parent == minor {
			return fmt.Errorf("class %x has children", minor)
		}
	}
	f.writes++
	delete(f.tree, minor)
	delete(f.queues, minor)
	return nil
}

// parents are the classes by number, each with its parent's.
func (f *fake) parents() map[uint16]uint16 {
	out := map[uint16]uint16{}
	for m, c := range f.tree {
		out[m] = c.Parent
	}
	return out
}

func ensure(t *testing.T, u *Uplink, device string, pods []Pod) uint64 {
	t.Helper()
	rate, err := u.Ensure(device, pods)
	if err != nil {
		t.Fatal(err)
	}
	return rate
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestTree(t *testing.T) {
	f := newFake(t)
	u := New(f, Rate{}, quiet())
	pods := []Pod{{Tenant: 20, Port: 5}, {Tenant: 10, Port: 6}, {Tenant: 20, Port: 7}, {Tenant: 0, Port: 8}, {Tenant: 10, Port: 0xf000}, {Tenant: 10, Port: 0}}
	if rate := ensure(t, u, "eth0", pods); rate != 1e9 {
		t.Errorf("rate %d, want the link's", rate)
	}
	// Tenants in order: 0, 10, 20. A pod whose port has no queue has no class.
	want := map[uint16]uint16{root: 0, own: root, 0xf001: root, 0xf002: root, 0xf003: root, 6: 0xf003, 7: 0xf002, 8: 0xf003, 9: 0xf001}
	if d := diff.Diff(want, f.parents()); d != "" {
		t.Errorf("classes (-want +got):\n%s", d)
	}
	if d := diff.Diff(map[uint16]bool{own: true, 6: true, 7: true, 8: true, 9: true}, f.queues); d != "" {
		t.Errorf("fair queues (-want +got):\n%s", d)
	}
	for m, c := range f.tree {
		limit := uint64(0)
		if m == root {
			limit = 1e9
		}
		if c.Share != share || c.Limit != limit {
			t.Errorf("class %x: %+v", m, c)
		}
	}

	before := f.writes
	ensure(t, New(f, Rate{}, quiet()), "eth0", pods) // another agent, nothing new
	ensure(t, u, "eth0", nil)                        // pods not known
	if f.writes != before {
		t.Errorf("%d writes where there was nothing to do", f.writes-before)
	}

	// Tenant 0 and a pod go, one of 20 joins 10: who stays keeps its class.
	ensure(t, u, "eth0", []Pod{{Tenant: 20, Port: 5}, {Tenant: 10, Port: 6}, {Tenant: 10, Port: 7}})
	want = map[uint16]uint16{root: 0, own: root, 0xf002: root, 0xf003: root, 6: 0xf003, 7: 0xf002, 8: 0xf002}
	if d := diff.Diff(want, f.parents()); d != "" {
		t.Errorf("classes later (-want +got):\n%s", d)
	}

	f.speeds["eth0"] = 100e6
	before = f.writes
	if rate := ensure(t, u, "eth0", nil); rate != 100e6 || f.tree[root].Limit != 100e6 || f.writes != before+1 {
		t.Errorf("after the link slowed down: rate %d, root %+v, %d writes", rate, f.tree[root], f.writes-before)
	}
}

func TestRandomOrder(t *testing.T) {
	f := newFake(t)
	u := New(f, Rate{Bits: 5e6}, quiet())
	r := rand.New(rand.NewPCG(1, 2))
	tenants := map[uint32]netid.ID{}
	for range 500 {
		switch r.IntN(20) {
		case 0:
			delete(f.roots, 2) // somebody deletes it
		case 1:
			u = New(f, Rate{Bits: 5e6}, quiet())
		default:
			port := uint32(2 + r.IntN(30))
			if delete(tenants, port); r.IntN(3) > 0 {
				tenants[port] = netid.ID(10 + r.IntN(6))
			}
		}
		pods := []Pod{}
		for port, tenant := range tenants {
			pods = append(pods, Pod{Tenant: tenant, Port: port})
		}
		ensure(t, u, "eth0", pods)
		checkTree(t, f, tenants)
		before := f.writes
		if ensure(t, u, "eth0", pods); f.writes != before {
			t.Fatal("a second time was not for nothing")
		}
	}
}

// checkTree compares which pods share a class, and that no other class is there.
func checkTree(t *testing.T, f *fake, tenants map[uint32]netid.ID) {
	t.Helper()
	class := map[netid.ID]uint16{}
	for port, tenant := range tenants {
		c, ok := f.tree[uint16(port)+1]
		if was, seen := class[tenant]; !ok || seen && was != c.Parent {
			t.Fatalf("pod %d of tenant %d: %+v, others of it in %x", port, tenant, c, was)
		}
		class[tenant] = c.Parent
	}
	different := map[uint16]bool{}
	for _, c := range class {
		different[c] = true
	}
	if len(different) != len(class) || len(f.tree) != 2+len(class)+len(tenants) {
		t.Fatalf("%d classes for %d tenants; %d in all, with %d pods", len(different), len(class), len(f.tree), len(tenants))
	}
}

func TestNotShared(t *testing.T) {
	foreign := tc.RootQdisc{Link: 2, Kind: "htb", Major: 1}
	for _, c := range []struct {
		name    string
		device  string
		rate    Rate
		speed   uint64
		root    tc.RootQdisc
		refuse  error
		says    string
		warning bool
	}{
		{name: "off", rate: Rate{Off: true}, speed: 1e9, says: "--uplink-rate=off"},
		{name: "speed not known", says: "the speed of the link is not known"},
		{name: "too fast", speed: 25e9, says: "25000000000"},
		{name: "somebody else's", speed: 1e9, root: foreign, says: "htb 1:", warning: true},
		{name: "somebody else's hfsc", rate: Rate{Bits: 1e6}, root: tc.RootQdisc{Link: 2, Kind: "hfsc", Major: 1, Default: 0x30}, says: "hfsc 1:", warning: true},
		{name: "no sch_hfsc", speed: 1e9, refuse: tc.ErrNoHFSC, says: "sch_hfsc", warning: true},
		{name: "loopback", device: "lo", rate: Rate{Bits: 1e6}, says: "leads outside", warning: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.device == "" {
				c.device = "eth0"
			}
			f := newFake(t)
			f.speeds["eth0"], f.refuse["add"] = c.speed, c.refuse
			if c.root.Kind != "" {
				f.roots[2] = c.root
			}
			// What an earlier agent left elsewhere goes all the same.
			f.roots[3] = tc.RootQdisc{Link: 3, Kind: "hfsc", Major: major, Default: own}
			var log bytes.Buffer
			u := New(f, c.rate, slog.New(slog.NewTextHandler(&log, nil)))
			for range 3 {
				if rate := ensure(t, u, c.device, []Pod{{Tenant: 10, Port: 3}}); rate != 0 {
					t.Errorf("rate %d", rate)
				}
			}
			if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, c.says) || strings.Contains(got, "WARN") != c.warning {
				t.Errorf("log, want one line with %q, warning %t:\n%s", c.says, c.warning, got)
			}
			if c.root.Kind != "" && f.roots[2] != c.root {
				t.Errorf("somebody's discipline is %+v now", f.roots[2])
			}
			if f.roots[3].Kind != "mq" {
				t.Errorf("what an earlier agent left is %+v", f.roots[3])
			}
		})
	}
}

// The VTEP moves to another device, and the agent leaves.
func TestMovesAndLeaves(t *testing.T) {
	f := newFake(t)
	f.speeds["eth1"] = 2e9
	u := New(f, Rate{}, quiet())
	ensure(t, u, "eth0", []Pod{{Tenant: 10, Port: 3}})
	if rate := ensure(t, u, "eth1", []Pod{{Tenant: 10, Port: 3}}); rate != 2e9 || f.roots[2].Kind != "mq" || !isOurs(f.roots[3]) {
		t.Errorf("moved: rate %d, disciplines %+v", rate, f.roots)
	}
	lists := f.lists
	for range 3 {
		ensure(t, u, "eth1", nil)
	}
	if f.lists != lists {
		t.Errorf("all devices were listed %d times though nothing moved", f.lists-lists)
	}
	if err := u.Remove(); err != nil || f.roots[3].Kind != "mq" {
		t.Errorf("left: %v, %+v", err, f.roots)
	}
}

// What cannot be changed stays while it loses nothing, and goes where it is new or
// has no class for the rest; each time later, and with one message.
func TestFailures(t *testing.T) {
	grown := func(f *fake) { ensure(t, New(f, Rate{}, quiet()), "eth0", []Pod{{Tenant: 10, Port: 3}}) }
	for _, c := range []struct {
		name  string
		spoil func(f *fake)
		stays bool
	}{
		{"a tree that works", func(f *fake) { grown(f); f.refuse["set"] = errors.New("no") }, true},
		{"a tree that cannot be read", func(f *fake) { grown(f); f.refuse["classes"] = errors.New("no") }, true},
		{"a new tree", func(f *fake) { f.refuse["set"] = errors.New("no") }, false},
		{"no class for the rest", func(f *fake) { grown(f); delete(f.tree, own); f.refuse["set"] = errors.New("no") }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(t)
				c.spoil(f)
				u := New(f, Rate{}, quiet())
				pods := []Pod{{Tenant: 10, Port: 3}, {Tenant: 20, Port: 4}}
				_, first := u.Ensure("eth0", pods)
				if first == nil || isOurs(f.roots[2]) != c.stays {
					t.Fatalf("%v; the tree is there: %t, want %t", first, isOurs(f.roots[2]), c.stays)
				}
				before, began := f.tries, time.Now()
				for time.Since(began) < 10*time.Minute {
					time.Sleep(time.Second)
					if _, err := u.Ensure("eth0", pods); err == nil || err.Error() != first.Error() {
						t.Fatalf("%v, then %v", first, err)
					}
				}
				// After 1, 2, 4, 8, 16 and 32 s, then every minute; each from half to one and a half times as long.
				if tries := f.tries - before; tries < 10 || tries > 26 {
					t.Errorf("%d attempts in 10 minutes", tries)
				}
				clear(f.refuse)
				if _, err := u.Ensure("eth1", nil); err != nil { // another device does not wait
					t.Error(err)
				}
				ensure(t, u, "eth0", pods)
				if !isOurs(f.roots[2]) || len(f.tree) != 6 {
					t.Errorf("mended: %+v, %+v", f.roots[2], f.tree)
				}
			})
		})
	}
}

// A tree that somebody else changed says how to get rid of it.
func TestBrokenTree(t *testing.T) {
	f := newFake(t)
	u := New(f, Rate{}, quiet())
	pods := []Pod{{Tenant: 10, Port: 3}}
	ensure(t, u, "eth0", pods)
	f.tree[4] = tc.HFSCClass{Minor: 4, Parent: 0xf001}
	f.tree[0xf001] = tc.HFSCClass{Minor: 0xf001, Parent: 0} // by hand, and with a child
	if _, err := u.Ensure("eth0", pods); err == nil || !strings.Contains(err.Error(), "tc qdisc del dev eth0 root") {
		t.Errorf("error %v", err)
	}
	f.refuse["list"] = errors.New("no answer")
	if _, err := u.Ensure("eth1", pods); err == nil || !strings.Contains(err.Error(), "no answer") {
		t.Errorf("error %v", err)
	}
}

func TestManyTenants(t *testing.T) {
	f := newFake(t)
	var pods []Pod
	for i := range 5000 {
		pods = append(pods, Pod{Tenant: netid.ID(10 + i), Port: uint32(2 + i)})
	}
	ensure(t, New(f, Rate{}, quiet()), "eth0", pods)
	if want := 2 + 2*(lastTenant-firstTenant+1); len(f.tree) != want {
		t.Errorf("%d classes, want %d: the rest share the node's", len(f.tree), want)
	}
}

func TestPriority(t *testing.T) {
	for port, want := range map[uint32]uint32{0: 0, 1: 0x10002, 7: 0x10008, 0xeffe: 0x1efff, 0xefff: 0, 0xfffffffe: 0} {
		if got := Priority(port); got != want {
			t.Errorf("priority of port %#x: %#x, want %#x", port, got, want)
		}
	}
}

func TestRate(t *testing.T) {
	for text, want := range map[string]Rate{"auto": {}, "off": {Off: true}, "950M": {Bits: 950e6}, "10G": {Bits: 10e9}, "1000": {Bits: 1000}} {
		r := Rate{Off: true, Bits: 3}
		if err := r.Set(text); err != nil || r != want {
			t.Errorf("%q: %+v, %v; want %+v", text, r, err, want)
			continue
		}
		var again Rate
		if err := again.Set(r.String()); err != nil || again != r {
			t.Errorf("%q is written as %q, which is %+v, %v", text, r.String(), again, err)
		}
	}
	for _, text := range []string{"", "on", "0", "999", "-5M", "40G", "2P", "fast"} {
		r := Rate{}
		if err := r.Set(text); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%q", text)) {
			t.Errorf("%q: %+v, error %v; want one that quotes it", text, r, err)
		}
	}
}
