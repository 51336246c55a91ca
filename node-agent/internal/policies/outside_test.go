package policies

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/attach"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/hostnet"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/policy"
	"github.com/k8s-ovs/k8s-ovs/pkg/service"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
)

// past is a way past the switch, in memory.
type past struct {
	mu    sync.Mutex
	reach map[netip.Addr]policy.Reach
	// sets counts changes that it was asked for, forgotten how often it was to read; refuses is why it
	// takes none.
	sets, forgotten int
	refuses         error
	services        netip.Prefix
}

// Set implements Outside.
func (p *past) Set(_ context.Context, want hostnet.Senders) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sets++
	if p.refuses != nil {
		return p.refuses
	}
	keep := func(a netip.Addr) bool { return want.Keep != nil && want.Keep(a) }
	next := maps.Clone(want.Reach)
	maps.DeleteFunc(next, func(a netip.Addr, _ policy.Reach) bool { return keep(a) })
	for a, r := range p.reach {
		if keep(a) {
			next[a] = r
		}
	}
	p.reach, p.services = next, want.Services
	return nil
}

// Forget implements Outside.
func (p *past) Forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.forgotten++
}

// refuse has it take nothing.
func (p *past) refuse(why error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuses = why
}

// asked is how many changes it was asked for since it was asked last.
func (p *past) asked() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.sets
	p.sets = 0
	return n
}

// lets reports whether a pod reaches port 443 of an address there.
func (p *past) lets(pod, to netip.Addr) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	r, judged := p.reach[pod]
	return !judged || r.Lets(policy.Packet{Src: pod, Dst: to, Protocol: uint8(service.TCP), DstPort: 443})
}

var (
	server    = netip.MustParseAddr("203.0.113.9")
	elsewhere = netip.MustParseAddr("203.0.113.10")
	outward   = pipeline.PodPolicy{Egress: true}
)

// leaving is the policy called name, about pods with app=about: it isolates what they send, and allows
// clients and these blocks.
func leaving(name, about string, blocks ...string) policy.Policy {
	p := policy.Policy{Key: policy.Key{Namespace: "shop", Name: name}, Subject: policy.Selector("app=" + about), Egress: policy.Side{Isolates: true}}
	r := policy.Rule{Peers: []policy.Peer{{Set: &clients}}, AnyPort: true}
	for _, b := range blocks {
		r.Peers = append(r.Peers, policy.Peer{Block: netip.MustParsePrefix(b)})
	}
	p.Egress.Rules = []policy.Rule{r}
	return p
}

func leavingAt(revision int64, members []string, policies ...policy.Policy) store.PolicyView {
	return withMembers(viewAt(revision, policies...), revision, true, members...)
}

// TestOutside: the way past the switch is closed for a pod before its flows are there, follows the
// policies, and is not touched by what changes nothing of it.
func TestOutside(t *testing.T) {
	inTime(t, Copy{}, func(w *world) {
		w.see(leavingAt(1, nil, leaving("a", "web", "203.0.113.9/32")))
		w.show(nil)
		w.past.asked()
		w.add(db1, "db-1", app("db"))
		if n := w.past.asked(); n != 0 || !w.past.lets(db1, elsewhere) {
			t.Errorf("a pod that no policy selects: %d changes", n)
		}
		w.past.refuse(errors.New("no nft"))
		at := attachment(web1, "web-1")
		w.table.Seen(kube.Pod{PodKey: kube.PodKey{Namespace: "shop", Name: "web-1"}, UID: "u-web-1", Labels: app("web")})
		w.table.Enter(w.t.Context(), at, "u-web-1")
		began := time.Now()
		if err := w.table.Arm(w.t.Context(), at); err == nil || time.Since(began) != armedAtMost {
			t.Errorf("a pod has flows though its way past the switch is open: after %s, %v", time.Since(began), err)
		}
		w.del(web1, "web-1")
		w.past.refuse(nil)
		w.add(web1, "web-1", app("web"))
		if w.selects(web1) != outward || !w.past.lets(web1, server) || w.past.lets(web1, elsewhere) || !w.past.lets(db1, elsewhere) {
			t.Errorf("it is %+v, and reaches %+v", w.selects(web1), w.past.reach)
		}
		if !w.past.services.IsValid() {
			t.Error("nobody says which the service network is")
		}

		w.past.asked()
		w.see(leavingAt(2, []string{client}, leaving("a", "web", "203.0.113.9/32")))
		if n := w.past.asked(); n != 0 {
			t.Errorf("it was written %d times for what is about pods only", n)
		}
		w.see(leavingAt(3, []string{client}, leaving("a", "web", "203.0.113.10/32")))
		if w.past.lets(web1, server) || !w.past.lets(web1, elsewhere) {
			t.Errorf("after the policy changed it reaches %+v", w.past.reach)
		}
		w.see(leavingAt(4, []string{client}, leaving("a", "web")))
		if w.past.lets(web1, server) || w.past.lets(web1, elsewhere) {
			t.Errorf("after the policy lost its blocks it reaches %+v", w.past.reach)
		}
		if w.past.reach[web1] == nil || !w.past.lets(web1, netip.MustParseAddr("198.18.0.1")) {
			t.Error("it is cut from its own node")
		}

		w.past.asked()
		if err := w.table.Resync(w.t.Context()); err != nil || w.past.forgotten != 1 || w.past.asked() != 1 {
			t.Errorf("read back %d times, %v", w.past.forgotten, err)
		}
		w.see(leavingAt(5, []string{client}))
		if !w.past.lets(web1, server) || len(w.past.reach) != 0 {
			t.Errorf("without policies it reaches %+v", w.past.reach)
		}
		w.past.asked()
		if err := w.table.Resync(w.t.Context()); err != nil || w.past.asked() != 0 {
			t.Error("it is read though no pod is judged")
		}
		w.see(leavingAt(6, []string{client}, leaving("a", "web")))
		if w.past.lets(web1, server) {
			t.Error("a pod that comes to be selected reaches what it may not")
		}
		w.del(web1, "web-1")
		if len(w.past.reach) != 0 {
			t.Errorf("a pod that left is still judged: %+v", w.past.reach)
		}
	})
}

// TestOutsideCluster: ClusterNetworkPolicies are before and behind NetworkPolicies there, too.
func TestOutsideCluster(t *testing.T) {
	block := policy.Rule{Peers: []policy.Peer{{Block: netip.MustParsePrefix("203.0.113.9/32")}}, AnyPort: true}
	cluster := func(action policy.Action, baseline bool) policy.ClusterPolicy {
		return policy.ClusterPolicy{Name: "c", Baseline: baseline, Subject: policy.Set{Namespaces: "team=a"}, Egress: []policy.ClusterRule{{Action: action, Rule: block}}}
	}
	for name, tc := range map[string]struct {
		view            store.PolicyView
		server, another bool
	}{
		"denied before":                {withCluster(leavingAt(1, nil, leaving("a", "web", "203.0.113.0/24")), 1, cluster(policy.Deny, false)), false, true},
		"accepted before":              {withCluster(leavingAt(1, nil, leaving("a", "web")), 1, cluster(policy.Accept, false)), true, false},
		"denied, and no other":         {withCluster(viewAt(1), 1, cluster(policy.Deny, true)), false, true},
		"denied too late":              {withCluster(leavingAt(1, nil, leaving("a", "web", "203.0.113.0/24")), 1, cluster(policy.Deny, true)), true, true},
		"accepted, which is so anyway": {withCluster(viewAt(1), 1, cluster(policy.Accept, false)), true, true},
	} {
		t.Run(name, func(t *testing.T) {
			inTime(t, Copy{}, func(w *world) {
				w.see(tc.view)
				w.add(web1, "web-1", app("web"))
				if got := w.past.lets(web1, server); got != tc.server {
					t.Errorf("%v is reached: %t, want %t", server, got, tc.server)
				}
				if got := w.past.lets(web1, elsewhere); got != tc.another {
					t.Errorf("%v is reached: %t, want %t", elsewhere, got, tc.another)
				}
				if tc.server && tc.another && len(w.past.reach) > 0 && tc.view.Isolation["shop"].Value.Policies == nil {
					t.Errorf("a pod that reaches everything is judged: %+v", w.past.reach)
				}
			})
		})
	}
}

// TestOutsideStart: an agent that starts takes nothing from pods that were there, before all is known
// that it follows from; a pod that comes meanwhile has no more than is known.
func TestOutsideStart(t *testing.T) {
	may, _ := policy.Compiled{Network: twoNodes().Config.Network}.Reaches(map[netip.Addr]bool{web1: false})
	before := Copy{Pods: []CopiedPod{{Namespace: "shop", Name: "web-1", UID: "u-web-1", Address: web1, Labels: app("web"), Labelled: true, Selected: true}}}
	inTime(t, before, func(w *world) {
		w.past.reach = may
		at := attachment(web1, "web-1")
		w.table.Load([]attach.Attachment{at})
		w.see(withMembers(viewAt(1, leaving("a", "web", "203.0.113.10/32")), 1, false))
		if !w.past.lets(web1, server) {
			t.Error("a pod lost what it had though not all is known")
		}
		w.add(db1, "web-2", app("web"))
		if w.past.lets(db1, server) || !w.past.lets(db1, elsewhere) {
			t.Errorf("a pod that comes reaches %+v", w.past.reach[db1])
		}
		w.see(leavingAt(2, []string{client}, leaving("a", "web", "203.0.113.10/32")))
		if !w.past.lets(web1, server) {
			t.Error("a pod lost what it had though nobody knows its labels")
		}
		w.show(map[string]map[string]string{"web-1": app("web"), "web-2": app("web")})
		synctest.Wait()
		if w.past.lets(web1, server) || !w.past.lets(web1, elsewhere) {
			t.Errorf("in the end it reaches %+v", w.past.reach[web1])
		}
	})
	// Whom nobody shows has what the copy says of him, after a while.
	inTime(t, before, func(w *world) {
		w.past.reach = may
		w.table.Load([]attach.Attachment{attachment(web1, "web-1")})
		w.see(leavingAt(2, []string{client}, leaving("a", "web", "203.0.113.10/32")))
		time.Sleep(labelsAtMost + time.Second)
		synctest.Wait()
		if w.past.lets(web1, server) || !w.past.lets(web1, elsewhere) {
			t.Errorf("in the end it reaches %+v", w.past.reach[web1])
		}
	})
}

// TestOutsideOnce: what pods may reach is found out once, however often it cannot be written.
func TestOutsideOnce(t *testing.T) {
	inTime(t, Copy{}, func(w *world) {
		w.see(leavingAt(1, nil, leaving("a", "web", "203.0.113.9/32")))
		w.show(nil)
		w.add(web1, "web-1", app("web"))
		w.past.refuse(errors.New("no nft"))
		w.past.asked()
		w.see(leavingAt(2, nil, leaving("a", "web", "203.0.113.10/32")))
		found := w.table.outside.found.version
		time.Sleep(10 * lastPause)
		synctest.Wait()
		if n := w.past.asked(); n < 10 || w.table.outside.found.version != found {
			t.Errorf("it was found out %d times while %d changes failed", w.table.outside.found.version-found, n)
		}
		w.past.refuse(nil)
		time.Sleep(2 * lastPause)
		synctest.Wait()
		if !w.past.lets(web1, elsewhere) || w.past.lets(web1, server) || w.table.outside.found.version != found {
			t.Errorf("in the end it reaches %+v", w.past.reach[web1])
		}
	})
}
