package policies

import (
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// TestRestoredRecords: policies that an etcd which was restored has lost stay in force until they
// were put back, also those of the copy on disk.
func TestRestoredRecords(t *testing.T) {
	backup := topology.History{}.Begin("a")
	backup.Now.Revision = 5
	newest := backup
	newest.Now.Revision = 9
	restored := backup.Begin("b")
	restored.Now.Revision = 19
	view := func(h topology.History, names ...string) store.PolicyView {
		v := store.PolicyView{Listing: 1, History: h, Isolation: map[string]store.Versioned[topology.Isolation]{}}
		for _, name := range names {
			v.Isolation[name] = store.Versioned[topology.Isolation]{Revision: 1}
		}
		return v
	}
	for name, start := range map[string]func(*Table){
		"in force":    func(table *Table) { table.See(view(newest, "old", "new")) },
		"in the copy": func(table *Table) { table.Remember(copyAt(newest.Now, "old", "new")) },
		"in the copy, used": func(table *Table) {
			table.Remember(copyAt(newest.Now, "old", "new"))
			table.UseCopy(copyAt(newest.Now, "old", "new"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			table := New(Config{Now: time.Now})
			start(table)
			if table.Lost() != (topology.Point{}) {
				t.Errorf("lost %+v", table.Lost())
			}
			table.See(view(restored, "old"))
			if len(table.view.Isolation) != 2 || table.Lost() != newest.Now {
				t.Errorf("isolation %v, lost %+v", table.view.Isolation, table.Lost())
			}
			if c := table.copy(); c.At != newest.Now {
				t.Errorf("the copy is of %+v", c.At)
			}
			table.See(view(restored.Take([]topology.Point{newest.Now}), "old", "new", "later"))
			if len(table.view.Isolation) != 3 || table.Lost() != (topology.Point{}) {
				t.Errorf("isolation %v, lost %+v", table.view.Isolation, table.Lost())
			}
		})
	}
}

func copyAt(at topology.Point, names ...string) Copy {
	c := Copy{At: at, PolicyRecords: topology.PolicyRecords{Isolation: map[string]topology.Isolation{}}}
	for _, name := range names {
		c.Isolation[name] = topology.Isolation{}
	}
	return c
}
