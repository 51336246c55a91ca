package tenant

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// inStep has two nodes, which have all records in their flows, carry out what there is, until
// nothing is left, and returns what the record of a namespace said in between.
func (w *world) inStep(key string) (said []string) { return w.inStepOf(key, "n1", "n2") }

// inStepOf is inStep of nodes.
func (w *world) inStepOf(key string, nodes ...string) (said []string) {
	w.t.Helper()
	for range 20 {
		w.nodes = Nodes{}
		for _, name := range nodes {
			w.nodes[name] = w.rev
		}
		writes := all(w.plan())
		if len(writes) == 0 {
			return said
		}
		for _, x := range writes {
			if !w.write(x) {
				w.t.Fatalf("write of %s failed", x.Key)
			}
			if x.Key == key {
				said = append(said, w.short(key))
			}
		}
	}
	w.t.Fatal("there is always something left to do")
	return nil
}

// short is a record in few words.
func (w *world) short(key string) string {
	n := w.records[key].Namespace
	text := fmt.Sprintf("NetID %d, Effective %d", *n.NetID, *n.Effective)
	if n.Action != topology.None {
		text += ", " + n.Request()
	}
	if n.Change.UnderWay() {
		text += fmt.Sprintf(", %s %d", n.Change.Step, n.Change.NetID)
	}
	return text
}

// two makes a with netID 100 and b with 200.
func two(t *testing.T) *world {
	w := newWorld(t, Config{})
	w.put("a", `{"NetName":"a","NetID":100,"Effective":100}`)
	w.put("b", `{"NetName":"b","NetID":200,"Effective":200}`)
	w.settle()
	return w
}

func TestSteps(t *testing.T) {
	for name, test := range map[string]struct {
		ask  string
		want []string
	}{
		"join": {`{"NetName":"a","NetID":100,"Effective":100,"Action":"join","Namespace":"b","By":"me@here"}`, []string{
			"NetID 100, Effective 100, join b, accept 200",
			"NetID 200, Effective 200, join b, send 100",
			"NetID 200, Effective 200",
		}},
		"global": {`{"NetName":"a","NetID":100,"Effective":100,"Action":"global"}`, []string{
			"NetID 100, Effective 100, global, accept 0",
			"NetID 0, Effective 0, global, send 100",
			"NetID 0, Effective 0",
		}},
		"by hand": {`{"NetName":"a","NetID":300}`, []string{
			"NetID 300, Effective 100, accept 300",
			"NetID 300, Effective 300, send 100",
			"NetID 300, Effective 300",
		}},
		"nothing to do": {`{"NetName":"a","NetID":100,"Effective":100,"Action":"isolate"}`, []string{"NetID 100, Effective 100"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := two(t)
			w.put("a", test.ask)
			if diff := cmp.Diff(test.want, w.inStep("a")); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if st := w.records["a"].Namespace.Status; name == "join" && (st == nil || st.Outcome != topology.Done || st.By != "me@here" || st.Message != "done: join b") {
				t.Errorf("Status %+v", st)
			}
			if w.records["a"].Namespace.NetID != nil && w.id("a") != 100 && !slices.Contains(w.freed, 100) {
				t.Errorf("100 is not among the freed %v", w.freed)
			}
		})
	}
}

// A netID that a namespace is leaving is nobody else's yet.
// One node takes the steps too: what its switch has translated for a service when the change comes has the netID
// of before it. Where none reports, nobody could.
func TestStepsOfOneNode(t *testing.T) {
	for _, nodes := range [][]string{{"n1"}, {}} {
		w := two(t)
		w.put("a", `{"NetName":"a","NetID":100,"Effective":100,"Action":"join","Namespace":"b"}`)
		if said := w.inStepOf("a", nodes...); len(said) != 1+2*len(nodes) {
			t.Errorf("with nodes %v the record said %q", nodes, said)
		}
	}
}

func TestLeavingIsInUse(t *testing.T) {
	w := two(t)
	w.ask("a", topology.Join, "b")
	w.nodes = Nodes{"n1": w.rev, "n2": w.rev}
	w.write(w.plan().Writes[0])
	w.put("c", `{"NetName":"c","NetID":100}`)
	for _, x := range all(w.plan()) {
		w.write(x)
	}
	w.says("c", "netID 100 belongs to namespace a")
	if slices.Contains(w.freed, 100) {
		t.Error("100 is freed while a is leaving it")
	}
}

// A step waits for every node; one that takes too long is named, once, and waited for again
// when it says something newer.
func TestStepsWait(t *testing.T) {
	w := two(t)
	w.ask("a", topology.Join, "b")
	w.nodes = Nodes{"n1": w.rev, "n2": w.rev}
	w.write(w.plan().Writes[0])
	accept := w.rev
	w.nodes = Nodes{"n1": accept, "n2": accept - 1}
	p := w.plan()
	want := []UnderWay{{Key: "a", Step: topology.StepAccept, Revision: accept, Lacking: []string{"n2"}, Until: w.now.Add(StepTimeout)}}
	if diff := cmp.Diff(want, p.UnderWay); diff != "" || len(all(p)) > 0 {
		t.Fatalf("writes %v; under way (-want +got):\n%s", all(p), diff)
	}
	due := func(n2 int64) bool { return w.planner.Due(func() Nodes { return Nodes{"n1": accept, "n2": n2} }) }
	if due(accept-1) || !due(accept) {
		t.Error("Due does not say when there is something to do")
	}
	w.now = w.now.Add(StepTimeout)
	p = w.plan()
	if diff := cmp.Diff([]Without{{Node: "n2", Key: "a", Step: topology.StepAccept, Revision: accept, Applied: accept - 1}}, p.Without); diff != "" {
		t.Errorf("without (-want +got):\n%s", diff)
	}
	if len(p.Writes) != 1 || p.Writes[0].Namespace.Change.Step != topology.StepSend {
		t.Fatalf("writes %+v", p.Writes)
	}
	w.write(p.Writes[0])
	w.nodes["n1"] = w.rev
	if p = w.plan(); len(p.Writes) != 1 || len(p.Without) > 0 {
		t.Fatalf("n2 is waited for again, without a word from it: %+v", p)
	}
	// It says something, and is waited for.
	w.nodes["n2"] = accept
	if p = w.plan(); len(p.Writes) != 0 || len(p.UnderWay) != 1 {
		t.Fatalf("n2 is back, and not waited for: %+v", p)
	}
	w.inStep("a")
	w.want("a", 200)
}

// Somebody rewrites the record in the midst of a change: the change goes on as it was, and what
// he asked for comes after it.
func TestRewrittenMeanwhile(t *testing.T) {
	for name, test := range map[string]struct {
		put  string
		want int64
	}{
		"in the first form":   {`{"NetName":"a","NetID":100,"Action":"join","Namespace":"b"}`, 200},
		"another request":     {`{"NetName":"a","NetID":100,"Effective":100,"Action":"global","Namespace":""}`, 0},
		"another netID":       {`{"NetName":"a","NetID":777}`, 777},
		"the request is gone": {`{"NetName":"a","NetID":100,"Effective":100,"Change":{"Step":"accept","NetID":200,"Request":"join b"}}`, 200},
		"another Effective":   {`{"NetName":"a","NetID":100,"Effective":900,"Action":"join","Namespace":"b"}`, 200},
		"another Change":      {`{"NetName":"a","NetID":100,"Effective":100,"Action":"join","Namespace":"b","Change":{"Step":"send","NetID":900}}`, 200},
	} {
		t.Run(name, func(t *testing.T) {
			w := two(t)
			w.ask("a", topology.Join, "b")
			w.nodes = Nodes{"n1": w.rev, "n2": w.rev}
			w.write(w.plan().Writes[0])
			w.put("a", test.put)
			said := w.inStep("a")
			if w.id("a") != test.want {
				t.Errorf("it has %d, want %d: %q", w.id("a"), test.want, said)
			}
		})
	}
}

// A new leader goes on where the last one was, with only what is in the record.
func TestStepsResumed(t *testing.T) {
	for died := range 3 {
		w := two(t)
		w.ask("a", topology.Isolate, "") // nothing to do
		w.inStep("a")
		w.ask("a", topology.Join, "b")
		for range died {
			w.nodes = Nodes{"n1": w.rev, "n2": w.rev}
			w.write(w.plan().Writes[0])
		}
		w.elect(false)
		w.inStep("a")
		w.want("a", 200)
	}
}

// olderNamespace is the record as the release before reads and writes it.
type olderNamespace struct {
	NetName   string
	NetID     *int64 `json:",omitempty"`
	Action    topology.Action
	Namespace string
	By        string           `json:",omitempty"`
	Effective *int64           `json:",omitempty"`
	Status    *topology.Status `json:",omitempty"`
}

// A leader of the release before knows no steps: it finds the request, and carries it out in one.
// Its planner is this one's where no nodes are waited for.
func TestStepsEndedByOlder(t *testing.T) {
	for _, action := range []topology.Action{topology.Join, topology.Isolate, topology.MakeGlobal} {
		for steps := 1; steps < 3; steps++ {
			w := two(t)
			w.put("c", `{"NetName":"c","NetID":100,"Effective":100}`)
			w.elect(false)
			w.settle()
			target := ""
			if action == topology.Join {
				target = "b"
			}
			w.ask("a", action, target)
			for range steps {
				w.nodes = Nodes{"n1": w.rev, "n2": w.rev}
				w.write(w.plan().Writes[0])
			}
			data, err := json.Marshal(w.records["a"].Namespace)
			if err != nil {
				t.Fatal(err)
			}
			var older olderNamespace
			if err := json.Unmarshal(data, &older); err != nil {
				t.Fatal(err)
			}
			if data, err = json.Marshal(older); err != nil {
				t.Fatal(err)
			}
			w.put("a", string(data))
			w.elect(false)
			w.nodes = nil
			w.settle()
			switch id := w.id("a"); {
			case action == topology.Join && id != 200, action == topology.MakeGlobal && id != 0, action == topology.Isolate && id != w.own("a"):
				t.Errorf("%s, %d steps: it has %d", action, steps, id)
			}
		}
	}
}

// TestStepsMeanTheSame: what becomes of requests is the same in steps as without, whatever
// else is asked meanwhile.
func TestStepsMeanTheSame(t *testing.T) {
	for seed := range uint64(40) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { stepsMeanTheSame(t, seed) })
	}
}
