package policies

import (
	"bytes"
	"encoding/binary"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/policy"
)

// inTold is inTime with what is logged: told returns, and forgets, it.
func inTold(t *testing.T, story func(w *world, told func() string)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Copy{})
		var lines bytes.Buffer
		w.table.cfg.Logger = slog.New(slog.NewTextHandler(&lines, nil))
		w.run()
		defer w.end()
		story(w, func() string {
			synctest.Wait()
			defer lines.Reset()
			return lines.String()
		})
	})
}

// scattered are so many addresses from first on, each far from all others.
func scattered(first, n uint32) (out []netip.Prefix) {
	for i := range n {
		a := netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, (first+i)*2654435761)))
		out = append(out, netip.PrefixFrom(a, 32))
	}
	return out
}

// allBut lets pods send to all but some addresses.
func allBut(name, about string, except []netip.Prefix) policy.Policy {
	p := leaving(name, about, "0.0.0.0/0")
	p.Egress.Rules[0].Peers = []policy.Peer{{Block: netip.MustParsePrefix("0.0.0.0/0"), Except: except}}
	return p
}

// toBlocks lets them send to some.
func toBlocks(name, about string, blocks []netip.Prefix) policy.Policy {
	p := leaving(name, about)
	for _, b := range blocks {
		p.Egress.Rules[0].Peers = append(p.Egress.Rules[0].Peers, policy.Peer{Block: b})
	}
	return p
}

// TestPolicyTooLarge: a policy that comes to too much isolates its pods and lets them send nothing,
// which the log says once, by its name; others' pods come as ever. Made smaller it is in force.
func TestPolicyTooLarge(t *testing.T) {
	inTold(t, func(w *world, told func() string) {
		large := allBut("large", "db", scattered(1, 30000))
		ordinary := leaving("a", "web", "203.0.113.9/32")
		w.see(leavingAt(1, []string{client}, large, ordinary))
		w.show(nil)
		w.add(db1, "db-1", app("db"))
		if took := w.add(web1, "web-1", app("web")); took != 0 {
			t.Errorf("another's ADD took %s", took)
		}
		if w.past.lets(db1, server) || !w.selects(db1).Egress || !w.past.lets(web1, server) {
			t.Errorf("db is %+v and reaches the server: %t, web reaches it: %t", w.selects(db1), w.past.lets(db1, server), w.past.lets(web1, server))
		}
		if n := w.flows.Size(AreaName); n > 10 {
			t.Errorf("%d flows", n)
		}
		w.see(leavingAt(2, []string{client, "172.11.4.10"}, large, ordinary))
		if lines := told(); strings.Count(lines, "allows nothing here") != 1 || !strings.Contains(lines, "tenant=shop policy=large") {
			t.Errorf("told %q", lines)
		}
		w.see(leavingAt(3, []string{client}, allBut("large", "db", scattered(1, 300)), ordinary))
		if lines := told(); !strings.Contains(lines, "in force again, or gone") || !w.past.lets(db1, server) {
			t.Errorf("told %q, reaches the server: %t", lines, w.past.lets(db1, server))
		}
		if err := w.table.Ready(); err != nil {
			t.Error(err)
		}
	})
}

// TestReachTooLarge: where what one pod may reach past the switch is too much to be written it is
// closed, which the log says once; another's pod has its flows, and what it may reach.
func TestReachTooLarge(t *testing.T) {
	inTold(t, func(w *world, told func() string) {
		first, second := toBlocks("first", "db", scattered(1, 5000)), toBlocks("second", "db", scattered(5001, 5000))
		ordinary := leaving("a", "web", "203.0.113.9/32")
		w.see(leavingAt(1, []string{client}, first, second, ordinary))
		w.show(nil)
		there := scattered(1, 1)[0].Addr()
		w.add(db1, "db-1", app("db"))
		w.add(web1, "web-1", app("web"))
		if w.past.lets(db1, there) || !w.past.lets(web1, server) || w.past.lets(web1, elsewhere) {
			t.Errorf("db reaches what policies let it: %t; web reaches %+v", w.past.lets(db1, there), w.past.reach[web1])
		}
		w.see(leavingAt(2, []string{client}, first, second, leaving("a", "web", "203.0.113.10/32")))
		if lines := told(); strings.Count(lines, "too much for the node's firewall") != 1 || !strings.Contains(lines, "tenant=shop pod=db-1") {
			t.Errorf("told %q", lines)
		}
		if !w.past.lets(web1, elsewhere) {
			t.Error("another's policy is not followed")
		}
		w.see(leavingAt(3, []string{client}, first, ordinary))
		if lines := told(); !strings.Contains(lines, "reaches again") || !w.past.lets(db1, there) {
			t.Errorf("told %q, reaches what its policy lets it: %t", lines, w.past.lets(db1, there))
		}
	})
}

// TestLargePolicyInParts: a policy with many flows is several bundles; what both old and new allow is
// there throughout, as rules that come are first.
func TestLargePolicyInParts(t *testing.T) {
	inTime(t, Copy{}, func(w *world) {
		w.see(leavingAt(1, []string{client}, toBlocks("a", "web", scattered(1, 6000))))
		w.show(nil)
		w.add(web1, "web-1", app("web"))
		w.locked(func() { w.events = nil })
		w.see(leavingAt(2, []string{client}, toBlocks("a", "web", scattered(3001, 6000))))
		w.happened("rules come", "rules come", "rules come", "rules go", "rules go") // what comes; what both have without the old, and what goes
		w.see(leavingAt(3, []string{client}, toBlocks("a", "web", scattered(1, policy.MostWritten-1))))
		if n := state(w, &w.largest); n > mostAtOnce {
			t.Errorf("a bundle had %d changes", n)
		}
		if n := w.flows.Size(AreaName); n < policy.MostWritten {
			t.Errorf("%d flows", n)
		}
		w.locked(func() { w.events = nil })
		w.see(leavingAt(4, []string{client}, toBlocks("a", "web", scattered(1, 10))))
		w.happened("rules come", "rules come", "rules go", "rules go", "rules go") // little comes, much goes, in the same order
		w.see(leavingAt(5, []string{client}, toBlocks("a", "web", scattered(2, 10))))
		w.happened("rules come", "rules go")
	})
}

// TestNobodyWaitsForCompiling: while it is found out what policies come to, the switch is read back,
// and pods go.
func TestNobodyWaitsForCompiling(t *testing.T) {
	inTime(t, Copy{}, func(w *world) {
		w.see(shopWith(1, client))
		w.add(web1, "web-1", app("web"))
		w.table.compiling.Lock()
		done := make(chan error, 2)
		go func() { done <- w.table.Resync(w.t.Context()) }()
		go func() { done <- w.table.Forget(w.t.Context(), web1) }()
		for range 2 {
			select {
			case err := <-done:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(time.Minute):
				t.Error("it waits")
			}
		}
		w.table.compiling.Unlock()
	})
}

// TestNobodyWaitsForReach: what pods may reach past the switch is found out before anybody can have the
// switch wait for it.
func TestNobodyWaitsForReach(t *testing.T) {
	w := newWorld(t, Copy{})
	lines := make(lineChan, 100)
	w.table.cfg.Logger = slog.New(slog.NewTextHandler(lines, nil))
	w.table.SetRecords(twoNodes())
	w.table.See(leavingAt(1, []string{client}, toBlocks("first", "db", scattered(1, 5000)), toBlocks("second", "db", scattered(5001, 5000))))
	w.table.Seen(kube.Pod{PodKey: kube.PodKey{Namespace: "shop", Name: "db-1"}, UID: "u-db-1", Labels: app("db")})
	w.table.Enter(t.Context(), attachment(db1, "db-1"), "u-db-1")
	w.table.writing.Lock()
	done := make(chan error, 1)
	go func() { done <- w.table.Apply(t.Context()) }()
	for found := false; !found; {
		select {
		case line := <-lines:
			found = strings.Contains(line, "too much for the node's firewall")
		case <-time.After(time.Minute):
			t.Error("it is not found out while somebody else changes the switch")
			found = true
		}
	}
	w.table.writing.Unlock()
	<-done
}

// lineChan is told lines of a log.
type lineChan chan string

func (c lineChan) Write(line []byte) (int, error) {
	c <- string(line)
	return len(line), nil
}
