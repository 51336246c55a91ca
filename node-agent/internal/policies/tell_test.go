package policies

import (
	"testing"
	"testing/synctest"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/attach"
	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
)

// TestOldWork: what was to be done for a pod whose address another one has by then is not done to that.
func TestOldWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Copy{})
		w.table.SetRecords(twoNodes())
		w.table.See(shopWith(1, client))
		apply := func() {
			t.Helper()
			if err := w.table.Apply(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		w.table.Shown(map[kube.PodKey]kube.Pod{})
		w.add(web1, "web-1", app("web"))
		w.add(db1, "db-1", app("db"))
		apply()
		// It becomes known that web-1 is selected no longer, and while that is compiled web-2 takes its place.
		w.table.See(withMembers(viewAt(2, allowing("a", "db")), 2, true, client))
		w.table.mu.Lock()
		w.table.spaces["shop"].late = w.table.cfg.Now().Add(-policiesLate)
		w.table.mu.Unlock()
		old, _ := w.table.prepare()
		if old.pods[web1].Selected() || !old.pods[db1].Selected() || !old.news {
			t.Fatalf("the work is %+v", old.pods)
		}
		w.locked(func() { w.attached = []attach.Attachment{attachment(db1, "db-1")} })
		w.table.Leave(attachment(web1, "web-1"))
		w.table.See(withMembers(viewAt(3, allowing("a", "web")), 3, true, client))
		w.add(web1, "web-2", app("web"))
		if w.selects(web1) != inward {
			t.Fatalf("web-2 is %+v", w.selects(web1))
		}
		w.table.writing.Lock()
		_, err := w.table.write(t.Context(), old, old.compile(), reached{})
		w.table.writing.Unlock()
		if err != nil {
			t.Fatal(err)
		}
		if w.selects(web1) != inward || !w.selects(db1).Selected() {
			t.Errorf("after the old work web-2 is %+v, and db-1 %+v", w.selects(web1), w.selects(db1))
		}
		w.table.mu.Lock()
		defer w.table.mu.Unlock()
		if one := w.table.pods[web1]; one.given != inward || !one.tracked || len(w.table.flushes) > 0 {
			t.Errorf("of web-2 it is known that its flows say %+v, and its connections are there: %t; to be flushed: %v", one.given, one.tracked, w.table.flushes)
		}
	})
}
