package tenant

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// TestCoalesced: what becomes of requests does not depend on how many of them a
// snapshot holds, nor on how often the leader changes. Two worlds get the same
// requests; one is settled after each, the other after a few.
func TestCoalesced(t *testing.T) {
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 2))
			each, few := newWorld(t, Config{}), newWorld(t, Config{})
			names := []string{"a", "b", "c", "d", "e"}
			for _, w := range []*world{each, few} {
				w.create(names...)
				w.settle()
			}
			touched := map[string]bool{}
			for range 80 {
				ns, target := names[r.IntN(5)], names[r.IntN(5)]
				action := []topology.Action{topology.Join, topology.Join, topology.Isolate, topology.MakeGlobal}[r.IntN(4)]
				if action != topology.Join {
					target = ""
				}
				if touched[ns] || r.IntN(4) == 0 {
					// A second request would replace the first: that is another story.
					few.settle()
					touched = map[string]bool{}
					if r.IntN(4) == 0 {
						few.elect(false)
					}
				}
				touched[ns] = true
				each.ask(ns, action, target)
				each.settle()
				few.ask(ns, action, target)
			}
			few.settle()
			if diff := cmp.Diff(partition(each), partition(few)); diff != "" {
				t.Errorf("settled after each and after a few differ:\n%s", diff)
			}
		})
	}
}

// partition says who shares with whom, whatever the numbers.
func partition(w *world) map[string]string {
	out := map[string]string{}
	for _, ns := range []string{"a", "b", "c", "d", "e"} {
		if w.id(ns) == 0 {
			out[ns] = "global"
			continue
		}
		for _, other := range []string{"a", "b", "c", "d", "e"} {
			if w.id(other) == w.id(ns) {
				out[ns] += other
			}
		}
	}
	return out
}

// TestInvariants: after anything at all, every readable record has a netID,
// nobody shares one without having joined, nothing is pending, and what is in use
// is not freed.
func TestInvariants(t *testing.T) {
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 3))
			w := newWorld(t, Config{Min: 10, Max: 60})
			names := []string{"a", "b", "c", "d", "e", "f"}
			// joined is the model: the group of each namespace, by a number of no meaning.
			group, next := map[string]int{}, 1
			fresh := func(ns string) { group[ns] = next; next++ }
			for step := range 150 {
				ns, target := names[r.IntN(6)], names[r.IntN(6)]
				_, exists := w.records[ns]
				_, targetExists := w.records[target]
				shared := false
				for other, g := range group {
					shared = shared || other != ns && g == group[ns]
				}
				switch op := r.IntN(8); {
				case op == 0 && exists:
					w.remove(ns)
					delete(group, ns)
				case op == 1 || !exists:
					if exists {
						break
					}
					w.create(ns)
					fresh(ns)
				case op == 2:
					w.ask(ns, topology.Isolate, "")
					if shared || group[ns] == 0 {
						fresh(ns)
					}
				case op == 3:
					w.ask(ns, topology.MakeGlobal, "")
					group[ns] = 0
				case op == 4:
					// By hand, in the ancestor's form, with any number.
					id := int64(5 + r.IntN(60))
					w.put(ns, fmt.Sprintf(`{"NetName":"%s","NetID":%d}`, ns, id))
					taken := false
					for other := range w.records {
						taken = taken || other != ns && w.id(other) == id
					}
					was := w.planner.memory[ns].confirmed
					if id >= 10 && id <= 1<<24-1 && !taken && (was == nil || int64(was.id) != id) {
						fresh(ns)
					}
				default:
					w.ask(ns, topology.Join, target)
					if targetExists && target != ns {
						group[ns] = group[target]
					}
				}
				w.settle()
				if r.IntN(10) == 0 {
					w.elect(false)
					w.settle()
				}
				for a := range w.records {
					if w.id(a) < 0 {
						t.Fatalf("step %d: %s has no netID", step, a)
					}
					for b := range w.records {
						if same, want := w.id(a) == w.id(b), group[a] == group[b]; same != want {
							t.Fatalf("step %d: %s (%d) and %s (%d) share: %v, want %v", step, a, w.id(a), b, w.id(b), same, want)
						}
					}
					for _, f := range w.freed {
						if w.id(a) == int64(f) {
							t.Fatalf("step %d: %d is in use by %s and freed", step, f, a)
						}
					}
				}
			}
		})
	}
}

// stepsMeanTheSame gives two worlds the same requests, a few at once: one has no nodes, the other
// two, which take up steps at random.
func stepsMeanTheSame(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 4))
	plain, steps := newWorld(t, Config{}), newWorld(t, Config{})
	names := []string{"a", "b", "c", "d", "e"}
	for _, w := range []*world{plain, steps} {
		w.create(names...)
		w.settle()
	}
	for range 30 {
		touched := map[string]bool{}
		for range 1 + r.IntN(3) {
			ns, target := names[r.IntN(5)], names[r.IntN(5)]
			action := []topology.Action{topology.Join, topology.Join, topology.Isolate, topology.MakeGlobal}[r.IntN(4)]
			if action != topology.Join {
				target = ""
			}
			if touched[ns] {
				continue
			}
			touched[ns] = true
			plain.ask(ns, action, target)
			plain.settle()
			steps.ask(ns, action, target)
			for range r.IntN(3) { // some steps in between
				n1, n2 := int64(r.IntN(3)), int64(r.IntN(3))
				steps.nodes = Nodes{"n1": steps.rev - n1, "n2": steps.rev - n2}
				if writes := all(steps.plan()); len(writes) > 0 {
					steps.write(writes[0])
				}
				if r.IntN(10) == 0 {
					steps.elect(false)
				}
			}
		}
		steps.inStep("")
		if diff := cmp.Diff(partition(plain), partition(steps)); diff != "" {
			t.Fatalf("without steps and in steps differ:\n%s", diff)
		}
	}
}
