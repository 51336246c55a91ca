package records

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

var comparers = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}

func id(v netid.ID) *netid.ID { return &v }
func raw(v int64) *int64      { return &v }

func snapshot(ns ...topology.Namespace) topology.Snapshot {
	s := topology.Snapshot{Config: topology.DefaultConfig(), Namespaces: map[string]topology.Namespace{}}
	for _, n := range ns {
		s.Namespaces[n.NetName] = n
	}
	return s
}

func TestCarry(t *testing.T) {
	old := snapshot(topology.Namespace{NetName: "a", NetID: raw(10), Effective: id(10)}, topology.Namespace{NetName: "b", NetID: raw(11), Effective: id(11)})
	broken := snapshot()
	broken.Invalid = map[string]string{"a": "not JSON"}
	elsewhere := snapshot(topology.Namespace{NetName: "a"})
	elsewhere.Config.Name = "other"
	for name, tc := range map[string]struct {
		next topology.Snapshot
		want map[string]*netid.ID
	}{
		"confirmed anew":                  {snapshot(topology.Namespace{NetName: "a", Effective: id(12)}), map[string]*netid.ID{"a": id(12)}},
		"written by hand":                 {snapshot(topology.Namespace{NetName: "a", NetID: raw(99)}), map[string]*netid.ID{"a": id(10)}},
		"asked to be global by hand":      {snapshot(topology.Namespace{NetName: "a", NetID: raw(0), Action: topology.Join, Namespace: "b"}), map[string]*netid.ID{"a": id(10)}},
		"new, not confirmed":              {snapshot(topology.Namespace{NetName: "c", NetID: raw(99)}), map[string]*netid.ID{"c": nil}},
		"deleted":                         {snapshot(), map[string]*netid.ID{}},
		"no longer parses":                {broken, map[string]*netid.ID{"a": id(10)}},
		"of another network, same prefix": {elsewhere, map[string]*netid.ID{"a": nil}},
	} {
		t.Run(name, func(t *testing.T) {
			got := map[string]*netid.ID{}
			for n, rec := range Carry(old, tc.next).Namespaces {
				got[n] = rec.Effective
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
	// A change that was under way goes with the netID.
	changing := topology.Namespace{NetName: "a", Effective: id(10), Change: topology.Change{Step: topology.StepSend, NetID: 9}}
	if got := Carry(snapshot(changing), snapshot(topology.Namespace{NetName: "a", NetID: raw(99)})).Namespaces["a"].Change; got != changing.Change {
		t.Errorf("the change became %+v", got)
	}
	// A namesake's record has nothing of the one before, also where somebody wrote that by hand
	// meanwhile.
	one, written, namesake := topology.Namespace{NetName: "a", UID: "A", Effective: id(10)}, topology.Namespace{NetName: "a"}, topology.Namespace{NetName: "a", UID: "B"}
	if got := Carry(snapshot(one), snapshot(namesake)).Namespaces["a"].Effective; got != nil {
		t.Errorf("a namesake got netID %d of the one before", *got)
	}
	if got := Carry(Carry(snapshot(one), snapshot(written)), snapshot(namesake)).Namespaces["a"].Effective; got != nil {
		t.Errorf("a namesake got netID %d of the one before that was written by hand", *got)
	}
	if got := Carry(snapshot(one), snapshot(topology.Namespace{NetName: "a", UID: "A"})).Namespaces["a"].Effective; got == nil || *got != 10 {
		t.Error("the same one lost its netID")
	}
	// What is handed out is not changed.
	next := snapshot(topology.Namespace{NetName: "a", NetID: raw(99)})
	Carry(old, next)
	if next.Namespaces["a"].Effective != nil {
		t.Error("Carry changed its argument")
	}
}

func TestFile(t *testing.T) {
	dir := t.TempDir()
	f := NewFile(dir)
	if _, ok, err := f.Load(); ok || err != nil {
		t.Fatalf("no file: %t, %v", ok, err)
	}
	want := snapshot(topology.Namespace{NetName: "a", NetID: raw(10), Effective: id(10)})
	want.Revision = 7
	want.Nodes = map[netip.Addr]topology.Node{
		netip.MustParseAddr("198.18.0.1"): {Host: "n1", HostIP: netip.MustParseAddr("198.18.0.1"), Subnet: netip.MustParsePrefix("172.11.0.0/22")},
		netip.MustParseAddr("198.18.0.2"): {Host: "n2", HostIP: netip.MustParseAddr("198.18.0.2"), Assign: true},
	}
	for range 2 {
		if err := f.Save(want); err != nil {
			t.Fatal(err)
		}
	}
	got, ok, err := f.Load()
	if !ok || err != nil {
		t.Fatal(ok, err)
	}
	if diff := cmp.Diff(want, got, comparers); diff != "" {
		t.Error(diff)
	}
	for _, damaged := range []string{"", "{", `{"Config":{}}`} {
		if err := os.WriteFile(filepath.Join(dir, "records.json"), []byte(damaged), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, ok, err := f.Load(); ok || err == nil {
			t.Errorf("%q: ok %t, error %v; want an error", damaged, ok, err)
		}
	}
}
