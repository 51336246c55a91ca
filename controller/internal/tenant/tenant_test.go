package tenant

import (
	"crypto/rand"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

func TestAssign(t *testing.T) {
	w := newWorld(t, Config{Global: []string{"kube-system"}})
	w.create("a", "b", "kube-system")
	w.settle()
	w.own("a")
	w.own("b")
	w.want("kube-system", 0)
	w.says("a", "")
	// Only new records start global: one that was taken out of it stays out.
	w.ask("kube-system", topology.Isolate, "")
	w.settle()
	w.own("kube-system")
}

func TestJoinIsolateGlobal(t *testing.T) {
	w := newWorld(t, Config{})
	w.create("a", "b", "c")
	w.settle()
	a, b, c := w.own("a"), w.own("b"), w.own("c")

	w.ask("a", topology.Join, "b")
	w.settle()
	w.want("a", b)
	w.want("b", b)
	w.want("c", c)
	w.says("a", "")
	if diff := cmp.Diff([]netid.ID{netid.ID(a)}, w.freed); diff != "" {
		t.Errorf("freed (-want +got):\n%s", diff)
	}

	w.ask("a", topology.Join, "b") // again
	w.settle()
	w.want("a", b)
	w.says("a", "nothing to do")

	w.ask("b", topology.Isolate, "")
	w.settle()
	w.want("a", b)
	if got := w.own("b"); got == b || got == a || got == c {
		t.Errorf("isolated b has %d; it is no fresh netID", got)
	}

	w.ask("a", topology.Isolate, "") // alone now
	w.settle()
	w.want("a", b)
	w.says("a", "nothing to do: no other namespace has the netID")

	w.ask("a", topology.MakeGlobal, "")
	w.settle()
	w.want("a", 0)
	w.says("a", "")
	w.ask("a", topology.MakeGlobal, "")
	w.settle()
	w.says("a", "nothing to do: a is global already")

	// The first k8s-ovs could not isolate a lone global namespace: its count was 1.
	w.ask("a", topology.Isolate, "")
	w.settle()
	if got := w.own("a"); got == b {
		t.Errorf("isolated from global: %d, its old netID", got)
	}

	w.ask("c", topology.MakeGlobal, "")
	w.settle()
	w.ask("a", topology.Join, "c") // to a global one
	w.settle()
	w.want("a", 0)
}

// Failure 17: a request that cannot be carried out is cleared, and never fires.
func TestRefusedNeverFires(t *testing.T) {
	for name, test := range map[string]struct {
		put  string
		want string
	}{
		"unknown target": {`{"NetName":"a","NetID":%d,"Action":"join","Namespace":"later"}`, "there is no namespace later"},
		"no target":      {`{"NetName":"a","NetID":%d,"Action":"join"}`, "needs Namespace"},
		"itself":         {`{"NetName":"a","NetID":%d,"Action":"join","Namespace":"a"}`, "cannot join itself"},
		"misspelled":     {`{"NetName":"a","NetID":%d,"Action":"Global"}`, "none of join, isolate, global"},
		"unreadable":     {`{"NetName":"a","NetID":%d,"Action":"join","Namespace":"broken"}`, "must be the name in the key"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, Config{})
			w.create("a")
			w.put("broken", `{"NetName":"other"}`)
			w.settle()
			a := w.own("a")
			w.put("a", fmt.Sprintf(test.put, a))
			w.settle()
			w.want("a", a)
			w.says("a", test.want)
			// The target comes, the leader changes: nothing happens.
			w.create("later")
			w.put("broken", `{"NetName":"broken"}`)
			w.elect(false)
			w.settle()
			w.own("a")
			w.want("a", a)
			w.says("a", test.want)
		})
	}
}

// A request in a record that does not parse is cleared too, and the rest left.
func TestUnreadableRequest(t *testing.T) {
	w := newWorld(t, Config{})
	w.create("b")
	w.settle()
	w.put("a", `{"NetName":"A","NetID":77,"Action":"join","Namespace":"b"}`)
	w.put("c", `{"NetName":`)
	w.settle()
	n := w.records["a"].Namespace
	if n.Action != topology.None || n.Namespace != "" || n.NetName != "A" || *n.NetID != 77 || n.Effective != nil {
		t.Errorf("record %+v", n)
	}
	w.says("a", "must be the name in the key")
}

// Failure 11: a netID written by hand.
func TestHandWritten(t *testing.T) {
	w := newWorld(t, Config{})
	w.create("a", "b", "c")
	w.settle()
	a, b, c := w.own("a"), w.own("b"), w.own("c")
	w.ask("c", topology.Join, "b")
	w.settle()

	put := func(key string, id int64) {
		w.put(key, fmt.Sprintf(`{"NetName":"%s","NetID":%d,"Action":"","Namespace":""}`, key, id))
		w.settle()
	}
	put("a", 500)
	w.want("a", 500)
	w.says("a", "")

	put("a", b)
	w.want("a", 500)
	w.says("a", fmt.Sprintf("refused: netID %d belongs to namespace b; to share it ask for action join", b))

	for _, bad := range []int64{5, 1 << 24, -1, 1<<32 + 600} {
		put("a", bad)
		w.want("a", 500)
		w.says("a", "refused: ")
	}
	put("a", 0)
	w.want("a", 0)
	w.says("a", "")

	// Rewritten with what it has, also shared: that is no change.
	put("c", b)
	w.want("c", b)
	w.says("c", "")

	// A new record with a netID that is taken, or bad, gets another.
	put("d", b)
	w.own("d")
	w.says("d", "belongs to namespace b")
	put("e", 3)
	w.own("e")
	w.says("e", "reserved")
	put("f", a) // free: a left it
	w.want("f", a)
	put("g", c)
	w.want("g", c)

	// Two by hand in one snapshot: the first one has it.
	w.put("h", `{"NetName":"h","NetID":900}`)
	w.put("i", `{"NetName":"i","NetID":900}`)
	w.settle()
	w.want("h", 900)
	w.own("i")
	w.says("i", "belongs to namespace h")
}

func TestHandWrittenRange(t *testing.T) {
	for _, id := range []int64{5, 1 << 24, -1, 1<<32 + 12, 1 << 40} {
		w := newWorld(t, Config{})
		w.put("a", fmt.Sprintf(`{"NetName":"a","NetID":%d}`, id))
		w.settle()
		w.own("a")
		w.says("a", fmt.Sprintf("%d", id))
	}
}

// Effective is the controller's: what people write there reaches no node for long.
func TestTamperedEffective(t *testing.T) {
	w := newWorld(t, Config{})
	w.create("a", "b")
	w.settle()
	a, b := w.own("a"), w.own("b")
	w.put("a", fmt.Sprintf(`{"NetName":"a","NetID":%d,"Effective":%d}`, a, b))
	w.settle()
	w.want("a", a)
	w.says("a", "Effective is for the controller")
	w.put("a", fmt.Sprintf(`{"NetName":"a","NetID":%d,"Effective":%d}`, b, b))
	w.settle()
	w.want("a", a)
	w.says("a", "belongs to namespace b")
	w.put("new", fmt.Sprintf(`{"NetName":"new","Effective":%d}`, b))
	w.settle()
	w.own("new")
	w.put("new2", fmt.Sprintf(`{"NetName":"new2","NetID":%d,"Effective":%d}`, b, b))
	w.settle()
	w.own("new2")
}

// A record rewritten in the ancestor's form keeps its tenant; no etcdctl put
// takes a namespace's pods off the network.
func TestRewritten(t *testing.T) {
	w := newWorld(t, Config{})
	w.create("a", "b")
	w.settle()
	w.ask("a", topology.Join, "b")
	w.settle()
	b := w.id("b")
	for _, data := range []string{`{"NetName":"a"}`, fmt.Sprintf(`{"NetName":"a","NetID":%d,"Action":"","Namespace":""}`, b)} {
		w.put("a", data)
		w.settle()
		w.want("a", b)
	}
	// With an action the NetID in it counts for nothing.
	w.put("a", `{"NetName":"a","NetID":4711,"Action":"isolate","Namespace":""}`)
	w.settle()
	if got := w.own("a"); got == 4711 {
		t.Error("isolate took the NetID in the record")
	}
	w.put("a", `{"NetName":"a","NetID":4711,"Action":"join","Namespace":"b"}`)
	w.settle()
	w.want("a", b)
	w.put("a", `{"NetName":"a","NetID":4711,"Action":"join","Namespace":"nowhere"}`)
	w.settle()
	w.want("a", b)
}

// Isolating by hand what is alone changes nothing, also when a leader comes anew
// and the record lacks what the controller wrote.
func TestIsolateRewrittenUnderNewLeader(t *testing.T) {
	w := newWorld(t, Config{})
	w.create("a", "b", "c")
	w.settle()
	a, b := w.id("a"), w.id("b")
	w.put("a", fmt.Sprintf(`{"NetName":"a","NetID":%d,"Action":"isolate"}`, a))
	w.put("c", fmt.Sprintf(`{"NetName":"c","NetID":%d,"Action":"isolate"}`, b))
	w.elect(false)
	w.settle()
	w.want("a", a)
	w.own("c")
	w.want("b", b)
}

// Failure 12: a namesake inherits nothing, however much one snapshot hides.
func TestNamesake(t *testing.T) {
	for _, snapshotBetween := range []bool{true, false} {
		t.Run(fmt.Sprint(snapshotBetween), func(t *testing.T) {
			w := newWorld(t, Config{})
			w.create("a", "b")
			w.settle()
			w.ask("a", topology.Join, "b")
			w.settle()
			b := w.id("b")
			w.remove("a")
			if snapshotBetween {
				w.settle()
			}
			w.create("a")
			w.settle()
			if got := w.own("a"); got == b {
				t.Error("the namesake inherited the join")
			}
			w.want("b", b)
		})
	}
}

// Failure 12, under another leader.
func TestNamesakeAcrossLeaders(t *testing.T) {
	w := newWorld(t, Config{})
	w.create("a", "b")
	w.settle()
	w.ask("a", topology.Join, "b")
	w.settle()
	b := w.id("b")
	w.remove("a")
	w.elect(false)
	w.settle()
	w.create("a")
	w.elect(false)
	w.settle()
	w.own("a")
	w.want("b", b)
}

// A netID is freed when the last that has it goes, and comes back last.
func TestFreedLast(t *testing.T) {
	w := newWorld(t, Config{Min: 10, Max: 13})
	w.create("a", "b", "c")
	w.settle()
	w.ask("a", topology.Join, "b")
	w.settle()
	b := w.id("b")
	w.remove("b")
	w.settle()
	if got := len(w.freed); got != 1 {
		t.Fatalf("freed %v: that of a before it joined, and not %d, which a still has", w.freed, b)
	}
	first := w.freed[0]
	w.remove("a")
	w.settle()
	if diff := cmp.Diff([]netid.ID{first, netid.ID(b)}, w.freed); diff != "" {
		t.Fatalf("freed (-want +got):\n%s", diff)
	}
	w.elect(false) // what is freed outlives the leader
	w.create("d")
	w.settle()
	if got := netid.ID(w.own("d")); got == first || got == netid.ID(b) {
		t.Errorf("d has the freed %d while another was never used", got)
	}
	w.create("e")
	w.settle()
	w.want("e", int64(first))
	w.create("f")
	w.settle()
	w.want("f", b)
}

func TestExhausted(t *testing.T) {
	w := newWorld(t, Config{Min: 10, Max: 11})
	w.create("a", "b")
	w.settle()
	b := w.own("b")
	w.create("c")
	w.settle()
	w.want("c", -1)
	w.says("c", "waiting: no netID is free")
	w.ask("c", topology.Join, "a")
	w.settle()
	w.want("c", w.id("a"))
	w.ask("c", topology.Isolate, "")
	w.settle()
	w.want("c", w.id("a"))
	w.says("c", "refused: no netID is free")
	w.create("d")
	w.settle()
	w.remove("b")
	w.settle()
	w.want("d", b)
	w.says("d", "")
}

// A tree of the first k8s-ovs: taken over as it stands, shared netIDs too.
func TestImport(t *testing.T) {
	tree := func(w *world) {
		w.put("helloworld1", `{"NetName":"helloworld1","NetID":300924,"Action":"","Namespace":""}`)
		w.put("helloworld2", `{"NetName":"helloworld2","NetID":300924,"Action":"","Namespace":""}`)
		w.put("kube-system", `{"NetName":"kube-system","NetID":0,"Action":"","Namespace":""}`)
		w.put("bad", `{"NetName":"bad","NetID":7,"Action":"","Namespace":""}`)
		// Failure 17: it failed once and would have fired at the next restart.
		w.put("stuck", `{"NetName":"stuck","NetID":3831805,"Action":"join","Namespace":"helloworld1"}`)
	}
	check := func(w *world) {
		w.t.Helper()
		w.want("helloworld1", 300924)
		w.want("helloworld2", 300924)
		w.want("kube-system", 0)
		w.own("bad")
		w.says("bad", "reserved")
		w.want("stuck", 3831805)
		w.says("stuck", `refused: action "join" was found`)
	}
	t.Run("whole", func(t *testing.T) {
		w := newWorld(t, Config{Import: true})
		tree(w)
		w.settle()
		check(w)
		// Afterwards sharing must be asked for.
		w.put("later", `{"NetName":"later","NetID":300924}`)
		w.settle()
		w.own("later")
	})
	t.Run("all records lack Effective", func(t *testing.T) {
		w := newWorld(t, Config{}) // a controller ran here before
		tree(w)
		w.settle()
		check(w)
	})
	t.Run("leader killed after every write", func(t *testing.T) {
		w := newWorld(t, Config{Import: true})
		tree(w)
		for range len(w.records) {
			if writes := all(w.plan()); len(writes) > 0 {
				w.write(writes[0])
			}
			w.elect(true) // the mark of completion was not written
		}
		w.settle()
		check(w)
	})
}

// Failure 12 and 18: a leader killed between any two writes leaves nothing that
// the next one does not finish.
func TestKilledBetweenWrites(t *testing.T) {
	for kill := range 4 {
		w := newWorld(t, Config{})
		w.create("a", "b", "c")
		w.settle()
		w.create("d")
		w.ask("a", topology.Join, "d") // builds on d's new netID
		w.ask("b", topology.Isolate, "")
		w.ask("c", topology.MakeGlobal, "")
		for i, x := range all(w.plan()) {
			if i < kill {
				w.write(x)
			}
		}
		w.elect(false)
		w.settle()
		if w.id("a") != w.id("d") || w.id("c") != 0 || w.id("b") == w.id("a") {
			t.Errorf("killed after %d writes: a %d, b %d, c %d, d %d", kill, w.id("a"), w.id("b"), w.id("c"), w.id("d"))
		}
	}
}

// Writes whose fate is not known: applied or not, the next plan is right.
func TestUnknownFate(t *testing.T) {
	for _, applied := range []bool{true, false} {
		w := newWorld(t, Config{})
		w.create("a", "b")
		w.settle()
		w.ask("a", topology.Join, "b")
		x := w.plan().Writes[0]
		w.planner.Trying(x)
		if applied {
			r := w.records["a"]
			w.rev++
			r.Namespace, r.Mod = x.Namespace, w.rev
			w.records["a"] = r
		}
		w.settle()
		w.want("a", w.id("b"))
		w.says("a", "")
		w.settle()
	}
}

// A write whose fate is not known is tried again, and fails because the first attempt was
// made after all: what it wrote is not taken for somebody's hand.
func TestUnknownFateTriedAgain(t *testing.T) {
	w := newWorld(t, Config{Min: 10, Max: 12})
	w.create("a", "b")
	first := w.plan().First
	for _, x := range first {
		w.planner.Trying(x)
	}
	again := w.plan().First
	if diff := cmp.Diff(ids(first), ids(again)); diff != "" {
		t.Errorf("other netIDs at the second attempt (-first +second):\n%s", diff)
	}
	for i, x := range first {
		w.planner.Trying(again[i])
		w.planner.Failed(again[i])
		r := w.records[x.Key]
		w.rev++
		r.Namespace, r.Mod = x.Namespace, w.rev
		w.records[x.Key] = r
	}
	if writes := w.settle(); len(writes) > 0 {
		t.Errorf("writes %+v", writes)
	}
	w.says("a", "")
}

func ids(writes []Write) map[string]netid.ID {
	out := map[string]netid.ID{}
	for _, w := range writes {
		out[w.Key] = *w.Namespace.Effective
	}
	return out
}

// What may have been written to one record is given to no other meanwhile.
func TestUnknownFateReserved(t *testing.T) {
	w := newWorld(t, Config{Min: 10, Max: 13})
	w.create("z") // there is nothing to import
	w.settle()
	w.create("a", "b", "c")
	x := w.plan().First[0]
	w.planner.Trying(x)
	w.put("b", fmt.Sprintf(`{"NetName":"b","NetID":%d}`, *x.Namespace.Effective)) // by hand
	w.ask("c", topology.Isolate, "")
	for _, other := range all(w.plan()) {
		if other.Key != "a" && *other.Namespace.Effective == *x.Namespace.Effective {
			t.Errorf("%s is given netID %d, which a may have", other.Key, *x.Namespace.Effective)
		}
	}
	w.settle()
	w.own("a")
	w.own("b")
	w.own("c")
	w.says("b", "belongs to namespace a")
}

// Requests of people come before first netIDs, each in the order in which they were
// written; the first netID of who is joined comes before the joining.
func TestRequestsBeforeFirst(t *testing.T) {
	w := newWorld(t, Config{})
	w.create("a", "b", "c")
	w.settle()
	w.create("new1", "new2", "target")
	w.ask("c", topology.MakeGlobal, "")
	w.ask("a", topology.Join, "target")
	w.create("new3")
	w.put("b", `{"NetName":"b","NetID":77}`)
	keys := func(writes []Write) (out []string) {
		for _, x := range writes {
			out = append(out, x.Key)
		}
		return out
	}
	p := w.plan()
	if diff := cmp.Diff([][]string{{"c", "target", "a", "b"}, {"new1", "new2", "new3"}}, [][]string{keys(p.Writes), keys(p.First)}); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// With one netID left, whoever asks for another one has it before who asks for the first.
func TestLastNetID(t *testing.T) {
	w := newWorld(t, Config{Min: 10, Max: 11})
	w.create("a", "b")
	w.settle()
	w.ask("b", topology.Join, "a")
	w.settle()
	w.create("new")
	w.ask("b", topology.Isolate, "")
	w.settle()
	w.own("b")
	w.says("new", "waiting")
}

func TestDeterministicOrder(t *testing.T) {
	t.Run("target asks for a netID", func(t *testing.T) {
		for _, order := range [][]string{{"a", "b"}, {"b", "a"}} {
			w := newWorld(t, Config{})
			w.create("a")
			w.settle()
			for _, k := range order {
				if k == "a" {
					w.ask("a", topology.Join, "b")
				} else {
					w.create("b")
				}
			}
			writes := w.settle()
			w.want("a", w.id("b"))
			if writes[0].Key != "b" {
				t.Errorf("%s is written first; a builds on b", writes[0].Key)
			}
		}
	})
	t.Run("target leaves: joined first", func(t *testing.T) {
		w := newWorld(t, Config{})
		w.create("a", "b")
		w.settle()
		b := w.id("b")
		w.ask("a", topology.Join, "b")
		w.ask("b", topology.Isolate, "")
		w.settle()
		w.want("a", b)
		w.own("b")
	})
	t.Run("target leaves: left first", func(t *testing.T) {
		w := newWorld(t, Config{})
		w.create("a", "b", "c")
		w.settle()
		w.ask("c", topology.Join, "b")
		w.settle()
		w.ask("b", topology.Isolate, "")
		w.ask("a", topology.Join, "b")
		w.settle()
		w.want("a", w.id("b"))
		if w.id("c") == w.id("b") {
			t.Error("b did not leave c")
		}
	})
	t.Run("chain: joins are not transitive", func(t *testing.T) {
		w := newWorld(t, Config{})
		w.create("a", "b", "c")
		w.settle()
		b, c := w.id("b"), w.id("c")
		w.ask("a", topology.Join, "b")
		w.ask("b", topology.Join, "c")
		w.settle()
		w.want("a", b)
		w.want("b", c)
	})
	t.Run("chain the other way", func(t *testing.T) {
		w := newWorld(t, Config{})
		w.create("a", "b", "c")
		w.settle()
		c := w.id("c")
		w.ask("b", topology.Join, "c")
		w.ask("a", topology.Join, "b")
		w.settle()
		w.want("a", c)
		w.want("b", c)
	})
	t.Run("swap", func(t *testing.T) {
		w := newWorld(t, Config{})
		w.create("a", "b")
		w.settle()
		b := w.id("b")
		w.ask("a", topology.Join, "b")
		w.ask("b", topology.Join, "a")
		w.settle()
		w.want("a", b)
		w.want("b", b)
	})
	t.Run("new ones that join each other", func(t *testing.T) {
		w := newWorld(t, Config{})
		w.create("x")
		w.settle()
		w.put("a", `{"NetName":"a","Action":"join","Namespace":"b"}`)
		w.put("b", `{"NetName":"b","Action":"join","Namespace":"a"}`)
		w.settle()
		if w.id("a") != w.id("b") || w.id("a") < 10 {
			t.Errorf("a %d, b %d", w.id("a"), w.id("b"))
		}
	})
	t.Run("two requests on one record: the newer", func(t *testing.T) {
		w := newWorld(t, Config{})
		w.create("a", "b")
		w.settle()
		w.ask("a", topology.Join, "b")
		w.ask("a", topology.MakeGlobal, "")
		w.settle()
		w.want("a", 0)
	})
}

// The record changed while the plan was made: the write fails, nothing is lost.
func TestConflict(t *testing.T) {
	w := newWorld(t, Config{})
	w.create("a", "b")
	w.settle()
	w.ask("a", topology.Join, "b")
	x := w.plan().Writes[0]
	w.ask("a", topology.MakeGlobal, "")
	if w.write(x) {
		t.Fatal("a write on an old revision succeeded")
	}
	w.settle()
	w.want("a", 0)
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("no entropy") }

func TestNoRandomness(t *testing.T) {
	p := New(Config{Random: broken{}})
	if _, err := p.Plan([]Record{{Key: "a", Namespace: topology.Namespace{NetName: "a"}, Mod: 1, Create: 1}}, nil, newWorld(t, Config{Random: rand.Reader}).now); err == nil {
		t.Error("a plan without randomness")
	}
}

func TestOutcomes(t *testing.T) {
	w := newWorld(t, Config{})
	w.create("a", "b")
	w.settle()
	w.ask("a", topology.Join, "b")
	w.settle()
	w.ask("a", topology.Join, "b")
	w.settle()
	w.ask("a", topology.Join, "c")
	w.settle()
	w.put("a", `{"NetName":"a","NetID":500}`)
	w.settle()
	type seen struct {
		Key     string
		Outcome Outcome
		Action  topology.Action
	}
	var got []seen
	for _, x := range w.log {
		got = append(got, seen{x.Key, x.Outcome, x.Action})
	}
	want := []seen{{"a", Assigned, ""}, {"b", Assigned, ""}, {"a", Done, topology.Join}, {"a", Unchanged, topology.Join}, {"a", Refused, topology.Join}, {"a", Confirmed, ""}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
