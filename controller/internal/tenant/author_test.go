package tenant

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// TestAuthor: what became of a request says who made it, and the record no longer asks.
func TestAuthor(t *testing.T) {
	w := newWorld(t, Config{})
	w.create("a", "b")
	w.settle()
	ask := func(action topology.Action, target, by string) topology.Namespace {
		t.Helper()
		w.ask("a", action, target)
		r := w.records["a"]
		r.Namespace.By = by
		w.records["a"] = r
		w.settle()
		if last := w.log[len(w.log)-1]; last.By != by || last.Action != action {
			t.Errorf("written for %q %s, want %q %s", last.By, last.Action, by, action)
		}
		return w.records["a"].Namespace
	}
	const alice = "alice@desk"
	status := func(o topology.Outcome, message, request string) *topology.Status {
		return &topology.Status{Outcome: o, Message: message, Request: request, By: alice, Time: w.now}
	}
	for _, step := range []struct {
		action topology.Action
		target string
		want   *topology.Status
	}{
		{topology.Join, "b", status(topology.Done, "done: join b", "join b")},
		{topology.Join, "b", status(topology.Unchanged, "nothing to do: ", "join b")},
		{topology.Join, "nobody", status(topology.Refused, "refused: cannot join nobody: there is no namespace nobody", "join nobody")},
		{topology.Isolate, "", status(topology.Done, "done: isolate", "isolate")},
	} {
		n := ask(step.action, step.target, alice)
		if step.want.Outcome == topology.Unchanged && n.Status != nil {
			step.want.Message = n.Status.Message
		}
		if diff := cmp.Diff(step.want, n.Status); diff != "" || n.By != "" || n.Action != topology.None {
			t.Errorf("%s %s: By %q, Action %q, Status (-want +got):\n%s", step.action, step.target, n.By, n.Action, diff)
		}
	}
	if n := ask(topology.Join, "b", ""); n.Status != nil {
		t.Errorf("nobody's request left %+v", n.Status)
	}
	// A name beside no request is taken away, and is not held for a refusal.
	r := w.records["a"]
	nine := int64(9)
	r.Namespace.By, r.Namespace.NetID = "mallory@desk", &nine
	w.rev++
	r.Mod = w.rev
	w.records["a"] = r
	w.settle()
	n := w.records["a"].Namespace
	if n.By != "" || !n.Status.Is(topology.Refused) || n.Status.By != "" {
		t.Errorf("By %q, Status %+v", n.By, n.Status)
	}
}
