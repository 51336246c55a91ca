package plan

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// space is a record that the controller has confirmed.
func space(name string, id netid.ID) topology.Namespace {
	n := int64(id)
	return topology.Namespace{NetName: name, NetID: &n, Effective: &id}
}

// with is a record whose request is pending.
func with(n topology.Namespace, a topology.Action, target string) topology.Namespace {
	n.Action, n.Namespace = a, target
	return n
}

func snapshot(records ...topology.Namespace) topology.Snapshot {
	s := topology.Snapshot{Revision: 7, Config: topology.DefaultConfig(), Namespaces: map[string]topology.Namespace{}}
	for _, n := range records {
		s.Namespaces[n.NetName] = n
	}
	return s
}

// standard has a pair (a, b), two that are alone (c, d), two that are global
// (g, h), and one without a netID (new).
func standard() topology.Snapshot {
	return snapshot(space("a", 100), space("b", 100), space("c", 300), space("d", 400),
		space("g", netid.Global), space("h", netid.Global), topology.Namespace{NetName: "new"})
}

func join(a, b string) Request { return Request{Action: topology.Join, Namespace: a, Target: b} }
func isolate(a string) Request { return Request{Action: topology.Isolate, Namespace: a} }
func global(a string) Request  { return Request{Action: topology.MakeGlobal, Namespace: a} }

func TestMakeChange(t *testing.T) {
	tests := []struct {
		request      Request
		gains, loses []string
		note         string
	}{
		{request: join("c", "d"), gains: []string{"d"}},
		{request: join("c", "a"), gains: []string{"a", "b"}},
		{request: join("a", "c"), gains: []string{"c"}, loses: []string{"b"}},
		{request: join("g", "a"), loses: []string{"c", "d"}},
		{request: join("c", "g"), gains: []string{"a", "b", "d"}, note: "makes c global"},
		{request: join("new", "a"), gains: []string{"a", "b", "g", "h"}},
		{request: isolate("a"), loses: []string{"b"}},
		{request: isolate("g"), loses: []string{"a", "b", "c", "d"}},
		{request: isolate("new"), gains: []string{"g", "h"}},
		{request: global("a"), gains: []string{"c", "d"}},
		{request: global("c"), gains: []string{"a", "b", "d"}},
		{request: global("new"), gains: []string{"a", "b", "c", "d", "g", "h"}},
	}
	for _, tt := range tests {
		t.Run(tt.request.String(), func(t *testing.T) {
			p, err := Make(standard(), tt.request)
			if err != nil {
				t.Fatal(err)
			}
			if p.Nothing != "" || p.Pending {
				t.Errorf("nothing to do (%q) or pending (%t), want a change", p.Nothing, p.Pending)
			}
			if diff := cmp.Diff(Change{Gains: tt.gains, Loses: tt.loses}, p.Change); diff != "" {
				t.Errorf("change (-want +got):\n%s", diff)
			}
			if got := strings.Join(p.Notes, "\n"); !strings.Contains(got, tt.note) || tt.note == "" && got != "" {
				t.Errorf("notes %q, want %q", got, tt.note)
			}
		})
	}
}

// TestChangeIsWhatTheRuleSays compares every plan with the rule itself, pair
// by pair and in both directions.
func TestChangeIsWhatTheRuleSays(t *testing.T) {
	s := standard()
	before := IDs(s)
	names := []string{"a", "b", "c", "d", "g", "h", "new"}
	for _, a := range names {
		requests := []Request{isolate(a), global(a)}
		for _, b := range names {
			if a != b && b != "new" {
				requests = append(requests, join(a, b))
			}
		}
		for _, r := range requests {
			p, err := Make(s, r)
			if err != nil {
				t.Fatalf("%s: %v", r, err)
			}
			after := IDs(s)
			switch {
			case p.Nothing != "":
			case r.Action == topology.Join:
				after[a] = after[r.Target]
			case r.Action == topology.Isolate:
				after[a] = 5555
			default:
				after[a] = netid.Global
			}
			for _, from := range names {
				for _, to := range names {
					was, is := allowed(before, from, to), allowed(after, from, to)
					other := to
					if to == a {
						other = from
					}
					involved := from != to && (from == a || to == a)
					if got := contains(p.Change.Gains, other) && involved; got != (is && !was) {
						t.Errorf("%s: %s to %s newly reachable: plan says %t", r, from, to, got)
					}
					if got := contains(p.Change.Loses, other) && involved; got != (was && !is) {
						t.Errorf("%s: %s to %s no longer reachable: plan says %t", r, from, to, got)
					}
				}
			}
		}
	}
}

func allowed(ids map[string]netid.ID, from, to string) bool {
	x, ok := ids[from]
	y, ok2 := ids[to]
	if from == to {
		return true
	}
	return ok && ok2 && netid.Allowed(x, y)
}

func contains(list []string, name string) bool {
	for _, n := range list {
		if n == name {
			return true
		}
	}
	return false
}

func TestMakeNothing(t *testing.T) {
	tests := []struct {
		request Request
		want    string
	}{
		{join("a", "b"), "a and b are in the same network already (netID 100)"},
		{join("g", "h"), "g and h are both global already"},
		{isolate("c"), "c is alone in its network already (netID 300)"},
		{global("g"), "g is global already"},
	}
	for _, tt := range tests {
		p, err := Make(standard(), tt.request)
		if err != nil {
			t.Errorf("%s: %v", tt.request, err)
			continue
		}
		if p.Nothing != tt.want || len(p.Change.Gains)+len(p.Change.Loses) > 0 {
			t.Errorf("%s: %q with change %+v, want %q and none", tt.request, p.Nothing, p.Change, tt.want)
		}
	}
}

// What others are about to change is not so already.
func TestMakeWhileChanging(t *testing.T) {
	leaving := space("b", 300)
	leaving.Change = topology.Change{Step: topology.StepSend, NetID: 100}
	s := snapshot(space("a", 100), leaving, space("c", 300))
	for _, r := range []Request{isolate("a"), join("c", "b"), isolate("b")} {
		if p, err := Make(s, r); err != nil || p.Nothing != "" {
			t.Errorf("%s: %v, nothing to do: %q", r, err, p.Nothing)
		}
	}
	// Who joins one that is on its way goes where that is going.
	coming := space("b", 100)
	coming.Change = topology.Change{Step: topology.StepAccept, NetID: 300}
	if p, err := Make(snapshot(coming, space("d", 400)), join("d", "b")); err != nil || p.TargetID != 300 {
		t.Errorf("%v, to %d", err, p.TargetID)
	}
}

func TestMakeErrors(t *testing.T) {
	s := standard()
	s.Namespaces["helloworld1"] = space("helloworld1", 500)
	s.Invalid = map[string]string{"netnamespaces/broken": "not valid JSON", "subnets/192.0.2.1": "HostIP is missing"}
	s.Namespaces["busy"] = with(space("busy", 600), topology.Join, "a")
	single := standard()
	single.Config.PluginName = topology.SingleTenant
	tests := []struct {
		name    string
		s       topology.Snapshot
		request Request
		want    []string
	}{
		{"unknown", s, isolate("nosuch"), []string{`no namespace "nosuch"`, "netns list", "the 9 there are"}},
		{"near", s, isolate("heloworld1"), []string{`no namespace "heloworld1"`, `did you mean "helloworld1"?`}},
		{"near target", s, join("a", "helloworld2"), []string{`no namespace "helloworld2"`, `did you mean "helloworld1"?`}},
		{"none yet", snapshot(), isolate("a"), []string{`no namespace "a"`, "none yet"}},
		{"no name", s, isolate("Not_A_Name"), []string{"Not_A_Name", "not a DNS subdomain"}},
		{"itself", s, join("a", "a"), []string{"cannot join itself", "nothing was changed"}},
		{"invalid record", s, isolate("broken"), []string{`"broken"`, "not valid JSON", "mend or delete"}},
		{"invalid target", s, join("a", "broken"), []string{`"broken"`, "not valid JSON"}},
		{"target without netID", s, join("a", "new"), []string{"new has no netID yet", "try again"}},
		{"other request pending", s, isolate("busy"), []string{"busy has another request pending: join busy a", "netns show busy"}},
		{"single tenant", single, join("a", "c"), []string{"single tenant", "k8s-ovs-subnet", "every namespace reaches all", "nothing was changed"}},
		{"no action", s, Request{Action: "split", Namespace: "a"}, []string{`"split"`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, err := Make(tt.s, tt.request)
			if err == nil {
				t.Fatalf("no error; plan is %+v", p)
			}
			for _, w := range tt.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q does not say %q", err, w)
				}
			}
		})
	}
}

func TestMakePending(t *testing.T) {
	s := standard()
	s.Namespaces["c"] = with(s.Namespaces["c"], topology.Join, "d")
	p, err := Make(s, join("c", "d"))
	if err != nil {
		t.Fatal(err)
	}
	if !p.Pending || p.Nothing != "" || len(p.Notes) != 1 {
		t.Errorf("plan is %+v, want one that is pending", p)
	}
	// The target's own request is worth a word.
	p, err = Make(s, join("a", "c"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"c has a request of its own pending: join c d"}, p.Notes); diff != "" {
		t.Errorf("notes (-want +got):\n%s", diff)
	}
}

func TestFulfilled(t *testing.T) {
	tests := []struct {
		request Request
		target  netid.ID
		want    bool
	}{
		{join("a", "b"), 100, true},
		{join("a", "c"), 300, false},
		{join("a", "c"), 100, true}, // c had 100 when it was asked for
		{join("g", "h"), netid.Global, true},
		{join("a", "gone"), 300, false},
		{join("new", "a"), 100, false},
		{isolate("c"), 0, true},
		{isolate("a"), 0, false},
		{isolate("g"), 0, false},
		{isolate("new"), 0, false},
		{global("g"), 0, true},
		{global("a"), 0, false},
		{global("gone"), 0, false},
	}
	for _, tt := range tests {
		if got := Fulfilled(standard(), tt.request, tt.target); got != tt.want {
			t.Errorf("Fulfilled(%s, %s) = %t, want %t", tt.request, tt.target, got, tt.want)
		}
	}
}

func TestReaches(t *testing.T) {
	ids := IDs(standard())
	for name, want := range map[string][]string{
		"a": {"b", "g", "h"}, "c": {"g", "h"}, "g": {"a", "b", "c", "d", "h"}, "new": nil, "gone": nil,
	} {
		if diff := cmp.Diff(want, Reaches(ids, name)); diff != "" {
			t.Errorf("Reaches(%s) (-want +got):\n%s", name, diff)
		}
	}
}

// BenchmarkMakeOfMany: a dry run in a big cluster is not to be waited for.
func BenchmarkMakeOfMany(b *testing.B) {
	var records []topology.Namespace
	for i := range 10000 {
		records = append(records, space(fmt.Sprintf("ns-%d", i), netid.ID(10+i)))
	}
	s := snapshot(records...)
	for b.Loop() {
		p, err := Make(s, global("ns-5"))
		if err != nil || len(p.Change.Gains) != 9999 {
			b.Fatal(err, len(p.Change.Gains))
		}
	}
}
