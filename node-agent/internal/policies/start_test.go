package policies

import (
	"slices"
	"testing"
	"testing/synctest"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/attach"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// starting runs a story of a table that knows no records of nodes yet, and a copy with the pod web-1.
func starting(t *testing.T, c Copy, story func(w *world)) {
	t.Helper()
	c.Pods = []CopiedPod{{Namespace: "shop", Name: "web-1", UID: "u-web-1", Address: web1, Labels: app("web"), Labelled: true, Selected: true}}
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, c)
		w.begin()
		defer w.end()
		story(w)
	})
}

// load has web-1 attached from before, as the API server shows it.
func (w *world) load() {
	w.show(map[string]map[string]string{"web-1": app("web")})
	at := attachment(web1, "web-1")
	w.table.Load([]attach.Attachment{at})
	first := w.table.Selection(at)
	w.locked(func() { w.attached, w.pods[at.Port] = []attach.Attachment{at}, first })
	synctest.Wait()
}

// Rules are made ahead of the records that are on their way into the flows of pods, written with them, and as
// what came meanwhile says.
func TestRulesMadeAhead(t *testing.T) {
	with := func(before func(w *world)) (added int) {
		starting(t, Copy{}, func(w *world) {
			w.see(shopWith(1, client))
			w.load()
			before(w)
			w.table.SetRecords(twoNodes())
			synctest.Wait()
			w.happened("rules come", "pods") // connections from before may go on: the switch knows of none
			if err := w.table.Ready(); err != nil {
				t.Error(err)
			}
			added = state(w, &w.added)
		})
		return added
	}
	ahead := func(w *world) {
		w.table.Expect(twoNodes())
		synctest.Wait()
		w.happened()
		if len(w.table.writer.ready) == 0 {
			t.Error("nothing is made ahead")
		}
		if err := w.table.Ready(); err == nil {
			t.Error("it is ready without rules in the switch")
		}
	}
	one := with(func(*world) {})
	if got := with(ahead); got != one {
		t.Errorf("made ahead these are %d flows, else %d", got, one)
	}
	if got := with(func(w *world) {
		ahead(w)
		w.see(shopWith(2, client, "172.11.4.10"))
		w.happened()
	}); got != one+1 {
		t.Errorf("with one member more, that came meanwhile, these are %d flows, and without %d", got, one)
	}
}

// What the copy has is asked for as soon as etcd has told the first, before it is known what is attached, and no longer
// than until all is there that rules follow from.
func TestAskedAhead(t *testing.T) {
	gone := "0123456789abcdef"
	c := Copy{PolicyRecords: topology.PolicyRecords{
		Policies: map[string]map[string]topology.PolicyRecord{"shop": {}, "left": {}},
		Sets:     map[string]topology.SetMembers{clients.Hash(): {}, gone: {}},
	}}
	both := []string{clients.Hash(), gone}
	slices.Sort(both)
	starting(t, c, func(w *world) {
		asks := func(when string, namespaces, sets []string) {
			t.Helper()
			if got := state(w, &w.wanted); !slices.Equal(got.namespaces, namespaces) || !slices.Equal(got.sets, sets) {
				t.Errorf("%s it asks for %v", when, got)
			}
		}
		asks("at first", nil, nil)
		first := shopWith(1, client)
		first.Policies, first.Sets = nil, nil
		w.see(first)
		asks("told of isolation", []string{"left", "shop"}, both)
		w.load()
		w.table.Expect(twoNodes())
		synctest.Wait()
		asks("with pods", []string{"left", "shop"}, both)
		w.see(shopWith(1, client))
		asks("told of all", []string{"shop"}, []string{clients.Hash()})
	})
}
