package tc

import (
	"cmp"
	"errors"
	"slices"
	"strings"
	"testing"

	diff "github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/link"
)

var deflt = HFSCClass{Minor: 0xffff, Parent: 0xf000, Share: 100_000_000}

// hfscOn makes a namespace with a device d0 that has hfsc, or skips the test.
func hfscOn(t *testing.T) world {
	t.Helper()
	n := space(t)
	ip(t, n, "link add d0 type veth peer name d1")
	ip(t, n, "link set d0 up")
	err := n.AddHFSC("d0", 1, HFSCClass{Minor: 0xf000, Share: 100_000_000}, deflt)
	if errors.Is(err, ErrNoHFSC) {
		t.Skipf("%v; `make test-kernel RUN=TestHFSC` runs it", err)
	}
	noErr(t, err)
	return n
}

func classesOf(t *testing.T, n world) []HFSCClass {
	t.Helper()
	list := must(n.HFSCClasses("d0"))(t)
	slices.SortFunc(list, func(a, b HFSCClass) int { return cmp.Compare(a.Minor, b.Minor) })
	return list
}

func TestHFSC(t *testing.T) {
	n := hfscOn(t)
	l, _, err := n.Link("d0")
	noErr(t, err)
	wantRoot := RootQdisc{Link: l.Index, Kind: "hfsc", Major: 1, Default: 0xffff}
	if roots := must(n.RootQdiscs())(t); !slices.Contains(roots, wantRoot) {
		t.Errorf("disciplines %+v, want %+v among them", roots, wantRoot)
	}
	if root := must(n.RootQdisc("d0"))(t); root != wantRoot {
		t.Errorf("discipline %+v, want %+v", root, wantRoot)
	}
	if err := n.AddHFSC("d0", 1, deflt); err == nil {
		t.Error("a second hfsc was accepted")
	}
	if err := n.AddHFSC("d1", 1, deflt); err == nil { // its parent is missing
		t.Error("hfsc without a class for the rest was accepted")
	}
	if root := must(n.RootQdisc("d1"))(t); root.Major != 0 {
		t.Errorf("hfsc that could not be finished is still there: %+v", root)
	}
	want := []HFSCClass{
		{Minor: 6, Parent: 0xf001, Share: 100_000_000},
		{Minor: 0xf000, Share: 100_000_000, Limit: 25_000_000_000},
		{Minor: 0xf001, Parent: 0xf000, Share: 100_000_000},
		{Minor: 0xffff, Parent: 0xf000, Share: 100_000_000},
	}
	for _, i := range []int{1, 2, 3, 0} {
		noErr(t, n.SetHFSCClass("d0", 1, want[i]))
	}
	noErr(t, n.QueueFairly("d0", 1, 6))
	if d := diff.Diff(want, classesOf(t, n)); d != "" {
		t.Errorf("classes (-want +got):\n%s", d)
	}
	if out := tc(t, n, "class show dev d0"); !strings.Contains(out, "class hfsc 1:f000 parent 1: ls m1 0bit d 0us m2 100Mbit ul m1 0bit d 0us m2 25Gbit") {
		t.Errorf("tc sees\n%s", out)
	}

	want[1].Limit = 20_000_000
	noErr(t, n.SetHFSCClass("d0", 1, want[1]))
	if d := diff.Diff(want, classesOf(t, n)); d != "" {
		t.Errorf("classes after the rate changed (-want +got):\n%s", d)
	}
	moved := want[0]
	moved.Parent = 0xf000
	for name, err := range map[string]error{
		"another parent":                   n.SetHFSCClass("d0", 1, moved),
		"a parent that is not there":       n.SetHFSCClass("d0", 1, HFSCClass{Minor: 7, Parent: 0xf002, Share: 1000}),
		"removing a class with children":   n.DeleteHFSCClass("d0", 1, 0xf001),
		"a class of a device not there":    n.SetHFSCClass("d7", 1, want[0]),
		"hfsc on a device that is not one": n.AddHFSC("d7", 1, deflt),
	} {
		if err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	for range 2 {
		noErr(t, n.DeleteHFSCClass("d0", 1, 6))
		noErr(t, n.DeleteHFSCClass("d0", 1, 0xf001))
	}
	if d := diff.Diff([]HFSCClass{want[1], want[3]}, classesOf(t, n)); d != "" {
		t.Errorf("classes after two were removed (-want +got):\n%s", d)
	}
	for range 2 {
		noErr(t, n.DeleteHFSC("d0", 1))
	}
	noErr(t, n.DeleteHFSC("d7", 1))
	if root := must(n.RootQdisc("d0"))(t); root.Major != 0 {
		t.Errorf("still there: %+v", root)
	}
}

// A qdisc of somebody else is told from one that the kernel chose, and from none.
func TestRootQdisc(t *testing.T) {
	n := space(t)
	ip(t, n, "link add d0 type veth peer name d1")
	l, _, err := n.Link("d0")
	noErr(t, err)
	check := func(when string, major uint16, kind string) {
		t.Helper()
		if root := must(n.RootQdisc("d0"))(t); root.Link != l.Index || root.Major != major || root.Kind != kind || root.Default != 0 {
			t.Errorf("%s: %+v, want %s %x:", when, root, kind, major)
		}
	}
	check("never up", 0, "")
	ip(t, n, "link set d0 up")
	check("up", 0, "noqueue")
	noErr(t, n.SetTBF("d0", TBF{Rate: 1e6, Burst: 1e4, Queue: 1e5}))
	root := must(n.RootQdisc("d0"))(t)
	check("shaped", root.Major, "tbf")
	if root.Major == 0 {
		t.Error("the tbf passes for one that the kernel chose")
	}
	if _, err := n.RootQdisc("d7"); !errors.Is(err, link.ErrNoLink) {
		t.Errorf("no device: %v", err)
	}
}
