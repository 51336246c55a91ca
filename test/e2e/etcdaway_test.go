package e2e

import (
	"cmp"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/probe"
)

// etcdAway is how long etcd is gone in TestEtcdLongAway: longer than any lease lasts, and in `make faults` what CHAOS_ETCD_AWAY says.
func (l *lab) etcdAway() time.Duration {
	l.t.Helper()
	d, err := time.ParseDuration(cmp.Or(os.Getenv("CHAOS_ETCD_AWAY"), "1m"))
	l.must(err)
	return d
}

// TestEtcdLongAway: etcd and the controller are gone for a good while, in which pods and agents are restarted again and again.
// Nobody loses a packet, and each of those pods comes; one of an unknown namespace is refused, and why is said. When they are
// back that pod comes, what is asked for is carried out, and nodes are exactly what they should be. Then etcd is
// compacted while a node's agent is stopped, which reads everything anew.
func TestEtcdLongAway(t *testing.T) {
	long(t)
	l := up(t, netlab.Options{})
	l.pods(quartet)
	ctx := t.Context()
	run := l.run(probe.Exactly(redAndBlue.allowed))
	l.traffic(run, 20)
	restarted := []netlab.Pod{l.pod("n1", "red/restarted"), l.pod("n2", "blue/restarted")}
	l.must(l.Controller().Kill())
	gone, away, rounds := time.Now(), l.etcdAway(), 0
	for ; time.Since(gone) < away; rounds++ {
		for i := range restarted {
			l.restartPod(&restarted[i])
		}
		node := restarted[rounds%len(restarted)].Node
		_, err := l.AddPod(ctx, node, "unknown", "a", netlab.PodOptions{})
		l.says("ADD of an unknown namespace", err, "namespace unknown has no netID")
		l.must(l.Agent(node).Kill())
		l.must(l.Agent(node).StartUnready(ctx))
		l.traffic(run, 20)
	}
	l.must(l.StartController(ctx))
	back := time.Now()
	l.eventually("ADD of that namespace", time.Minute, func() error {
		_, err := l.AddPod(ctx, "n1", "unknown", "a", netlab.PodOptions{})
		return err
	})
	added := time.Since(back)
	for _, p := range restarted {
		l.eventually(p.Node+" is ready", time.Minute, func() error { return l.Agent(p.Node).Ready(ctx) })
	}
	l.netns("join", "unknown", "red")
	changed := time.Since(back)
	l.exact("n1")
	l.exact("n2")
	l.nothingLost(run, fmt.Sprintf("etcd and the controller gone for %s, each of two pods restarted %d times, and agents; a pod of a new namespace comes %s, a tenant change is carried out %s after the controller is ready",
		away, rounds, added.Round(time.Millisecond), changed.Round(time.Millisecond)))
	for _, p := range restarted {
		l.must(l.DelPod(ctx, p))
	}
	l.compactedUnder("n2")
	l.netns("join", "red", "blue")
	l.waitMatrix("joined", 10*time.Second, tenants{"red": "r", "blue": "r", "unknown": "u"}.allowed)
}

// compactedUnder has the records change while a node's agent is stopped, and then has etcd forget how.
func (l *lab) compactedUnder(node string) {
	l.t.Helper()
	ctx := l.t.Context()
	run := l.run(probe.Exactly(tenants{"red": "r", "blue": "b", "unknown": "r"}.allowed))
	l.traffic(run, 20)
	l.must(l.Agent(node).Suspend())
	c := l.etcd()
	var newest int64
	for i := range 200 {
		r, err := c.Put(ctx, networkKey+"/netnamespaces/pad", fmt.Sprintf(`{"NetName":"pad","By":"%d"}`, i))
		l.must(err)
		newest = r.Header.Revision
	}
	_, err := c.Compact(ctx, newest)
	l.must(err)
	l.must(l.Agent(node).Resume())
	l.eventually("ADD after a compaction", 30*time.Second, func() error {
		_, err := l.AddPod(ctx, node, "red", "after", netlab.PodOptions{})
		return err
	})
	l.traffic(run, 20)
	l.nothingLost(run, "etcd compacted under an agent that was stopped")
}
