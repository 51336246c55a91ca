package cluster

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

var now = time.Unix(5000, 0)

// scene is a cluster and records, as they stand.
type scene struct {
	cluster kube.Cluster
	records store.Records
	// reporting are the addresses whose agents report.
	reporting map[netip.Addr]bool
	age       int64
}

func newScene() *scene {
	cfg := topology.DefaultConfig()
	return &scene{
		cluster:   kube.Cluster{Namespaces: map[string]kube.Namespace{}, Nodes: map[string]kube.Node{}},
		reporting: map[netip.Addr]bool{},
		records: store.Records{
			Snapshot: topology.Snapshot{Config: cfg, Nodes: map[netip.Addr]topology.Node{}, Namespaces: map[string]topology.Namespace{}, Invalid: map[string]string{}},
			Revs:     store.Revs{Nodes: map[netip.Addr]store.Rev{}, Namespaces: map[string]store.Rev{}},
		},
	}
}

// namespace adds a Namespace, younger than those before it; annotation "-" for none.
func (s *scene) namespace(name, annotation string) *scene {
	s.age++
	n := kube.Namespace{Name: name, UID: "u-" + name, Created: time.Unix(s.age, 0)}
	if annotation != "-" {
		n.Network = &annotation
	}
	s.cluster.Namespaces[name] = n
	return s
}

// record adds a record with a confirmed netID, which follows the Namespace, and
// the value of its annotation as applied.
func (s *scene) record(name string, id netid.ID, declared string) *scene {
	n := int64(id)
	return s.put(topology.Namespace{NetName: name, NetID: &n, Effective: &id, UID: "u-" + name, Declared: declared})
}

func (s *scene) put(n topology.Namespace) *scene {
	s.age++
	s.records.Namespaces[n.NetName] = n
	s.records.Revs.Namespaces[n.NetName] = store.Rev{Mod: s.age, Create: s.age}
	return s
}

func (s *scene) change(name string, f func(*topology.Namespace)) *scene {
	n := s.records.Namespaces[name]
	f(&n)
	return s.put(n)
}

func (s *scene) state() State {
	return State{Cluster: s.cluster, Records: s.records, Reporting: s.reporting}
}

func (s *scene) plan() Plan { return New(FromRecords).Plan(s.state(), now) }

// words are the writes of a plan in short: what is written, not all of it.
func words(p Plan) []string {
	var out []string
	for _, w := range slices.Concat(p.Writes, p.New) {
		var b strings.Builder
		switch {
		case w.Delete:
			fmt.Fprintf(&b, "%s deleted", w.Key)
		case w.Node != nil:
			fmt.Fprintf(&b, "%s %s uid=%s", w.Key, w.Node.Host, w.Node.UID)
			if w.Node.Subnet.IsValid() {
				fmt.Fprintf(&b, " %s", w.Node.Subnet)
			}
			if w.Node.Assign {
				b.WriteString(" assign")
			}
		default:
			n := w.Namespace
			fmt.Fprintf(&b, "%s uid=%s", w.Key, n.UID)
			if n.Declared != "" {
				fmt.Fprintf(&b, " declared=%s", n.Declared)
			}
			if n.Forced {
				b.WriteString(" forced")
			}
			if n.Action != topology.None {
				b.WriteString(strings.TrimRight(fmt.Sprintf(" %s %s", n.Action, n.Namespace), " "))
			}
		}
		if w.Revision == 0 {
			b.WriteString(" (new)")
		}
		out = append(out, b.String())
	}
	return out
}

func TestNamespaces(t *testing.T) {
	forced := func(n *topology.Namespace) { n.Forced = true }
	pending := func(n *topology.Namespace) { n.Action = topology.Isolate }
	tests := map[string]struct {
		scene *scene
		want  []string
	}{
		"new":         {newScene().namespace("a", "-"), []string{"a uid=u-a (new)"}},
		"settled":     {newScene().namespace("a", "-").record("a", 10, ""), nil},
		"terminating": {newScene().terminating("a"), nil},
		"adopted":     {newScene().namespace("a", "-").record("a", 10, "").change("a", func(n *topology.Namespace) { n.UID = "" }), []string{"a uid=u-a"}},
		"not ours":    {newScene().put(topology.Namespace{NetName: "people"}), nil},
		"born anew":   {newScene().namespace("a", "-").record("a", 10, "").change("a", func(n *topology.Namespace) { n.UID = "old" }), []string{"a deleted", "a uid=u-a (new)"}},
		"born global": {newScene().namespace("a", "global"), []string{"a uid=u-a declared=global global (new)"}},
		"born in a group": {newScene().namespace("a", "x").record("a", 10, "x").namespace("b", "x"),
			[]string{"b uid=u-b declared=x join a (new)"}},
		"group born at once, the oldest first": {newScene().namespace("b", "x").namespace("a", "x"),
			[]string{"b uid=u-b declared=x isolate (new)", "a uid=u-a declared=x join b (new)"}},
		"the oldest keeps its netID": {newScene().namespace("b", "x").namespace("a", "x").record("a", 10, "").record("b", 11, ""),
			[]string{"b uid=u-b declared=x", "a uid=u-a declared=x join b"}},
		"cleared of others": {newScene().namespace("a", "x").namespace("c", "-").record("a", 10, "").record("c", 10, ""),
			[]string{"a uid=u-a declared=x isolate"}},
		"not cleared of what joined it by hand later": {newScene().namespace("a", "x").namespace("c", "-").record("a", 10, "x").record("c", 10, ""), nil},
		"an older one comes to a group": {newScene().namespace("old", "x").namespace("a", "x").namespace("b", "x").record("old", 12, "").record("a", 10, "x").record("b", 10, "x"),
			[]string{"old uid=u-old declared=x join a"}},
		"moved by hand": {newScene().namespace("a", "x").namespace("b", "x").namespace("c", "x").record("a", 12, "x").record("b", 10, "x").record("c", 10, "x"),
			[]string{"a uid=u-a declared=x join b"}},
		"moved by hand onto the network of another name": {newScene().namespace("a", "x").namespace("b", "x").namespace("w", "y").record("a", 12, "x").record("b", 10, "x").record("w", 12, "y"),
			[]string{"a uid=u-a declared=x join b", "w uid=u-w declared=y isolate"}},
		"forced away": {newScene().namespace("a", "x").namespace("b", "x").record("a", 10, "x").record("b", 11, "x").change("b", forced), nil},
		"forced, then another annotation": {newScene().namespace("a", "y").namespace("b", "y").record("a", 10, "y").record("b", 11, "x").change("b", forced),
			[]string{"b uid=u-b declared=y join a"}},
		"to another name": {newScene().namespace("a", "x").namespace("b", "y").record("a", 10, "x").record("b", 10, "x"),
			[]string{"b uid=u-b declared=y isolate"}},
		"to global":                             {newScene().namespace("a", "global").record("a", 10, ""), []string{"a uid=u-a declared=global global"}},
		"global":                                {newScene().namespace("a", "global").record("a", 0, "global"), nil},
		"from global":                           {newScene().namespace("a", "x").record("a", 0, "global"), []string{"a uid=u-a declared=x isolate"}},
		"taken away":                            {newScene().namespace("a", "-").namespace("b", "x").record("a", 10, "x").record("b", 10, "x"), []string{"a uid=u-a isolate"}},
		"taken away from one that is alone":     {newScene().namespace("a", "-").record("a", 10, "x"), []string{"a uid=u-a"}},
		"taken away from a forced one":          {newScene().namespace("a", "-").record("a", 0, "x").change("a", forced), []string{"a uid=u-a isolate"}},
		"taken away while a request is pending": {newScene().namespace("a", "-").record("a", 0, "x").change("a", pending), nil},
		"a request is pending":                  {newScene().namespace("a", "x").namespace("b", "x").record("a", 10, "").change("a", pending).record("b", 11, ""), nil},
		"invalid":                               {newScene().namespace("a", "No Such").record("a", 10, "x"), nil},
		"left to people":                        {newScene().namespace("a", "-").namespace("b", "-").record("a", 10, "").record("b", 10, ""), nil},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, words(test.scene.plan())); diff != "" {
				t.Errorf("writes (-want +got):\n%s", diff)
			}
		})
	}
}

func (s *scene) terminating(name string) *scene {
	s.namespace(name, "-")
	n := s.cluster.Namespaces[name]
	n.Terminating = true
	s.cluster.Namespaces[name] = n
	return s
}

// A record goes when its Namespace is gone and no pod is left.
func TestNamespaceGone(t *testing.T) {
	s := newScene().record("a", 10, "")
	p := New(FromRecords)
	plan := p.Plan(s.state(), now)
	if len(plan.Writes) != 0 || !cmp.Equal(plan.Asks, []Ask{{Namespace: "a", UID: "u-a"}}) {
		t.Errorf("pods unknown: %+v", plan)
	}
	gone := s.state()
	gone.Empty = map[string]bool{"u-a": true}
	plan = p.Plan(gone, now)
	if diff := cmp.Diff([]string{"a deleted"}, words(plan)); diff != "" || plan.Asks != nil {
		t.Errorf("no pods: %+v", plan)
	}
}

func TestInvalidAnnotation(t *testing.T) {
	s := newScene().namespace("a", "Blue").record("a", 10, "x").namespace("b", "").record("b", 11, "")
	p := New(FromRecords)
	plan := p.Plan(s.state(), now)
	if plan.Refused != 2 || len(plan.Events) != 2 || !strings.Contains(plan.Events[0].Message, `"Blue"`) || plan.Events[0].Reason != NetworkRefused ||
		plan.Events[0].Object != NamespaceRef("a", "u-a") {
		t.Errorf("plan %+v", plan)
	}
	if plan = p.Plan(s.state(), now); plan.Refused != 2 || len(plan.Events) != 0 {
		t.Errorf("said again: %+v", plan)
	}
}

// What the controller refused is asked for again, but not at once.
func TestRefusedRests(t *testing.T) {
	s := newScene().namespace("a", "global").record("a", 10, "global")
	at := func(age time.Duration) {
		s.change("a", func(n *topology.Namespace) {
			n.Status = &topology.Status{Outcome: topology.Refused, Message: "refused: x", Time: now.Add(-age)}
		})
	}
	at(time.Second)
	if plan := s.plan(); len(plan.Writes) != 0 || !plan.Again.Equal(now.Add(retryRefused-time.Second)) {
		t.Errorf("plan %+v", plan)
	}
	// An hour ago, and before the clock was set back by an hour.
	for _, age := range []time.Duration{time.Hour, -time.Hour} {
		at(age)
		if diff := cmp.Diff([]string{"a uid=u-a declared=global global"}, words(s.plan())); diff != "" {
			t.Errorf("refused %s ago: %s", age, diff)
		}
	}
	// Another annotation is another request.
	at(time.Second)
	s.change("a", func(n *topology.Namespace) { n.Declared = "x" })
	if diff := cmp.Diff([]string{"a uid=u-a declared=global global"}, words(s.plan())); diff != "" {
		t.Error(diff)
	}
}

func TestAnnotations(t *testing.T) {
	s := newScene().namespace("a", "-").record("a", 10, "").namespace("b", "-").record("b", 11, "").namespace("c", "-")
	b := s.cluster.Namespaces["b"]
	b.NetID = "11"
	s.cluster.Namespaces["b"] = b
	if diff := cmp.Diff([]Annotation{{Namespace: "a", UID: "u-a", Value: "10"}}, s.plan().Annotations); diff != "" {
		t.Error(diff)
	}
}

// Records that do not parse are left to people, and do not keep others waiting.
func TestUnreadable(t *testing.T) {
	s := newScene().namespace("a", "-").namespace("b", "-")
	s.records.Invalid["netnamespaces/a"] = "not valid JSON"
	plan := s.plan()
	if diff := cmp.Diff([]string{"b uid=u-b (new)"}, words(plan)); diff != "" || len(plan.Events) != 1 {
		t.Errorf("%s\nevents %+v", diff, plan.Events)
	}
}
