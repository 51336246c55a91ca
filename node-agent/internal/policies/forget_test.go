package policies

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/attach"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
)

// forgets ends what is remembered of an address, and says how often the switch was asked to.
func (w *world) forgets(want int, addresses ...netip.Addr) {
	w.t.Helper()
	w.locked(func() { w.flushed = nil })
	if err := w.table.Forget(w.t.Context(), addresses...); err != nil {
		w.t.Error(err)
	}
	if got := len(state(w, &w.flushed)); got != want {
		w.t.Errorf("to forget %s the switch is asked %d times, want %d", addresses, got, want)
	}
}

const askedOf = 2 * forgetPasses // for one address

// The switch is asked to forget connections where it may know some: of a pod that was selected,
// and of one that others here which are selected may have met.
func TestForgetOnlyWhatIsTracked(t *testing.T) {
	inTime(t, Copy{}, func(w *world) {
		w.see(shopWith(1, client))
		w.add(db1, "db-1", app("db"))
		w.add(web1, "web-1", app("web"))
		w.del(db1, "db-1")
		w.forgets(askedOf, db1) // from web-1, or to it
		w.add(db1, "db-1", app("db"))
		w.del(web1, "web-1")
		w.del(db1, "db-1")
		w.forgets(askedOf, db1) // what web-1 left is there
		w.forgets(askedOf, web1)
		w.add(db1, "db-1", app("db"))
		w.del(db1, "db-1")
		w.forgets(0, db1)

		// One that was selected until the policy went, and who met it.
		w.add(db1, "db-1", app("db"))
		w.add(web1, "web-1", app("web"))
		w.see(viewAt(2))
		time.Sleep(policiesLate)
		synctest.Wait()
		w.del(db1, "db-1")
		w.forgets(askedOf, db1)
		time.Sleep(3 * staleAtMost)
		synctest.Wait()
		w.del(web1, "web-1")
		w.forgets(0, web1)
	})
}

// A pod that was selected before the agent started is forgotten, though no policy is left; of one
// that left before that nobody knows.
func TestForgetAfterStart(t *testing.T) {
	copied := func(selected bool) Copy {
		return Copy{Pods: []CopiedPod{{Namespace: "shop", Name: "web-1", UID: "u-web-1", Address: web1, Labels: app("web"), Labelled: true, Selected: selected}}}
	}
	for _, test := range []struct {
		about  string
		before Copy
		want   int
	}{
		{"it was selected", copied(true), askedOf},
		{"it was not", copied(false), 0},
		{"it came just before the agent ended", Copy{Pods: []CopiedPod{{Namespace: "shop", Name: "db-1", Address: db1}}}, askedOf},
		{"there were no policies", Copy{}, 0},
	} {
		t.Run(test.about, func(t *testing.T) {
			inTime(t, test.before, func(w *world) {
				w.table.Load([]attach.Attachment{attachment(web1, "web-1")})
				w.see(store.PolicyView{})
				w.del(web1, "web-1")
				w.forgets(test.want, web1)
				w.forgets(askedOf, web1)
			})
		})
	}
	// It lives on: what is known of it is forgotten, as of any that is selected no longer.
	inTime(t, copied(true), func(w *world) {
		w.table.Load([]attach.Attachment{attachment(web1, "web-1")})
		w.see(store.PolicyView{})
		time.Sleep(3 * staleAtMost)
		synctest.Wait()
		if got := state(w, &w.flushed); len(got) != 2*askedOf || slices.ContainsFunc(got, func(f string) bool { return !strings.Contains(f, web1.String()) }) {
			t.Errorf("%q is forgotten", got)
		}
		w.del(web1, "web-1")
		w.forgets(0, web1)
	})
}
