package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/probe"
)

// TestChangesUnderProbe: tenants are joined, isolated and made global while all
// pods talk. What the new state forbids is not delivered once the CLI has
// returned, and nothing is at any time that both states forbid. Established
// connections end with the permission.
//
// What the namespace that changes sends to itself arrives, between nodes too.
func TestChangesUnderProbe(t *testing.T) {
	l := up(t, netlab.Options{})
	l.pods(map[string][]string{"n1": {"red/a", "green/a", "blue/a"}, "n2": {"red/b", "green/b", "blue/b"}})
	run := l.run(probe.Exactly(apart.allowed))
	l.traffic(run, 50)
	now := apart
	for _, step := range story {
		run.SetRule(probe.Changing(now.allowed, step.after.allowed))
		l.netns(step.command...)
		run.SetRule(probe.Exactly(step.after.allowed))
		now = step.after
		l.traffic(run, 30)
		if forbidden := run.Report().ForbiddenEvents; len(forbidden) > 0 {
			t.Fatalf("%s: %d forbidden deliveries, the first: %s", step.name, len(forbidden), forbidden[0])
		}
	}
	rep := run.Stop()
	for _, e := range rep.LostEvents {
		t.Errorf("lost %s", e)
	}
	t.Logf("%s:\n%s", rep.Duration.Round(1e8), table(rep))
}

// TestChangeWithBandwidth: pods with rate limits go through changes as others do
// (ancestors' failure 14), and keep the world.
func TestChangeWithBandwidth(t *testing.T) {
	long(t)
	l := up(t, netlab.Options{})
	limits := netlab.PodOptions{IngressBandwidth: 50e6, EgressBandwidth: 50e6}
	for node, names := range map[string][]string{"n1": {"red", "green"}, "n2": {"red", "green"}} {
		for _, namespace := range names {
			_, err := l.AddPod(t.Context(), node, namespace, "on-"+node, limits)
			l.must(err)
		}
	}
	rule := tenants{"red": "r", "green": "g"}
	l.requireMatrix("at first", rule.allowed)
	l.netns("join", "red", "green")
	l.requireMatrix("joined", everybody)
	l.netns("isolate", "red")
	l.requireMatrix("isolated", rule.allowed)
	pods, err := l.Pods()
	l.must(err)
	for _, p := range pods {
		if out, err := l.PodExec(t.Context(), p, "ping", "-c1", "-W3", netlab.Outside.String()); err != nil {
			t.Errorf("%s does not reach the world: %v\n%s", p, err, out)
		}
		l.must(l.DelPod(t.Context(), p))
	}
	for _, node := range []string{"n1", "n2"} {
		for _, table := range []string{"QoS", "Queue"} {
			// DEL is answered before all that there was of a pod is gone.
			l.eventually("rows in "+table+" of "+node+" go with the pods", 10*time.Second, func() error {
				out, err := l.OVS(node).VSCtl(t.Context(), "--columns=_uuid", "--format=csv", "--no-headings", "list", table)
				if err != nil || out == "" {
					return err
				}
				return fmt.Errorf("left are:\n%s", out)
			})
		}
	}
}

// TestChangesLoseNothing: namespaces with pods on two nodes go through many changes, several at once and in no order, while
// everybody talks to everybody, and to everybody's services. What may talk both before and after a change loses nothing, what may
// talk neither before nor after gets nothing, and what a change splits gets nothing once netns has returned, on open connections and
// through services neither.
func TestChangesLoseNothing(t *testing.T) {
	c := up(t, netlab.Options{}).changingTenants()
	balanced := c.askService("red/a", 8)
	c.changes(inShort(30, 200), 3)
	c.end()
	t.Logf("%d questions to a service with two endpoints, all answered", balanced.stop())
}

// inShort is how many there are in a short run, and else.
func inShort(short, long int) int {
	if testing.Short() {
		return short
	}
	return long
}

// etcdLine puts a line that can be slow, or cut, into a node's way to etcd.
func (l *lab) etcdLine(node string) *netlab.EtcdLine {
	l.t.Helper()
	line, err := l.EtcdLine(l.t.Context(), node)
	l.must(err)
	l.t.Cleanup(func() {
		if err := line.Close(context.WithoutCancel(l.t.Context())); err != nil {
			l.t.Error(err)
		}
	})
	return line
}

// TestChangesWithSlowNode: one node hears of everything a second late. Changes take longer, and are as strict.
func TestChangesWithSlowNode(t *testing.T) {
	l := up(t, netlab.Options{})
	line := l.etcdLine("n2")
	c := l.changingTenants()
	line.Delay(time.Second)
	c.changes(inShort(9, 18), 3)
	if least := slices.Min(c.took); least < time.Second {
		t.Errorf("a change took %s, so it did not wait for the slow node", least)
	}
	c.end()
}

// TestChangesWhileCutOff: a node hears of nothing while namespaces are isolated, joined and made global. The changes go on without
// it, and netns names it. On the other nodes they are in force. What it has of a namespace that joins others reaches nobody new,
// what was isolated before stays so, and what was isolated since stays with those whom it left, there and no further. It comes to the newest
// records when it hears of them again, though etcd has forgotten what lies between.
func TestChangesWhileCutOff(t *testing.T) {
	l := up(t, netlab.Options{})
	line := l.etcdLine("n2")
	c := l.changingTenants()
	c.change(tenantChange{action: "join", namespace: "red", target: "green"}, tenantChange{action: "join", namespace: "blue", target: "green"})
	c.change(tenantChange{action: "isolate", namespace: "blue", own: c.network()})
	had := c.revision
	line.Cut()
	c.sight = sight{cutOff: "n2", then: c.now}
	missed := len(c.took)
	c.change(tenantChange{action: "isolate", namespace: "red", own: c.network()})
	if log, err := l.Controller().Log(); err != nil || !strings.Contains(log, "goes on without a node") || !strings.Contains(log, "node=n2") {
		t.Errorf("the controller's log does not name n2 (%v)", err)
	}
	c.change(tenantChange{action: "join", namespace: "gray", target: "green"})
	c.changes(inShort(4, 16), 2)
	missed = len(c.took) - missed
	if at := l.metric("n2", "k8s_ovs_applied_revision"); int64(at) > c.revision-int64(missed) {
		t.Errorf("n2 has revision %.0f in its flows, though it heard of none of the %d changes up to %d", at, missed, c.revision)
	}
	l.compact(c.revision)

	whole := sight{}
	either := func(cut, whole func(now tenants, from, to probe.Endpoint) bool) probe.Rule {
		return probe.Changing(func(a, b probe.Endpoint) bool { return cut(c.now, a, b) }, func(a, b probe.Endpoint) bool { return whole(c.now, a, b) })
	}
	c.own.SetRule(either(c.sight.direct, whole.direct))
	c.direct.SetRule(either(c.sight.direct, whole.direct))
	c.through.SetRule(either(c.sight.service, whole.service))
	line.Mend()
	back := time.Now()
	l.eventually("n2 has the newest records in its flows", 30*time.Second, func() error { return l.applied("n2", c.revision) })
	t.Logf("n2 missed %d changes, from revision %d to %d, and had them in its flows %s after it heard again", missed, had, c.revision, time.Since(back).Round(time.Millisecond))
	c.sight = whole
	c.judge(possibleFrom(c.now, nil))
	c.flowing()
	c.changes(inShort(4, 12), 2)
	c.end()
}

// compact has etcd forget what was before a revision.
func (l *lab) compact(revision int64) {
	l.t.Helper()
	etcd, err := l.Etcd()
	l.must(err)
	defer func() { _ = etcd.Close() }()
	_, err = etcd.Compact(l.t.Context(), revision)
	l.must(err)
}

// applied is nil when a node says that it has a revision in its flows.
func (l *lab) applied(node string, revision int64) error {
	var nodes []struct {
		Node, State     string
		AppliedRevision int64
	}
	out, err := l.Netns(l.t.Context(), "nodes", "--output", "json")
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), &nodes); err != nil {
		return err
	}
	for _, n := range nodes {
		if n.Node == node && n.AppliedRevision >= revision {
			return nil
		}
	}
	return fmt.Errorf("%s has not got revision %d:\n%s", node, revision, out)
}

// TestChangesBesideOlder: an agent of the release before beside one of this version, and then a
// controller of the release before that leads both. A change may lose packets, as it did; what becomes of it is the same.
func TestChangesBesideOlder(t *testing.T) {
	old := previousRelease(t)
	l := up(t, netlab.Options{Bare: true})
	c := l.serveCluster("red", "green", "blue")
	c.must(l.UsePlugin(old))
	c.must(l.StartInCluster(t.Context(), binDir))
	c.must(l.Agent("n1").StartInCluster(t.Context(), binDir))
	c.must(l.Agent("n2").StartInCluster(t.Context(), old))
	l.pods(map[string][]string{"n1": {"red/a", "green/a", "blue/a"}, "n2": {"red/b", "green/b", "blue/b"}})
	c.declareAll("one older agent")
	c.exchangeController(old)
	c.declareAll("an older controller")
}

// declareAll goes through changes by annotations, and ends with every namespace apart as it began.
func (c *cluster) declareAll(when string) {
	c.t.Helper()
	c.requireMatrix(when, apart.allowed)
	for _, s := range []struct {
		namespace, network string // empty for none
		after              tenants
	}{
		{"green", "shared", apart},
		{"red", "shared", apart.with("red", "g")},
		{"blue", "shared", tenants{"red": "g", "green": "g", "blue": "g"}},
		{"green", "", tenants{"red": "r", "green": "g", "blue": "r"}},
		{"blue", "global", apart.with("blue", "0")},
		{"blue", "", apart},
		{"red", "", apart},
	} {
		n := c.api.Object("namespaces", "", s.namespace).(*corev1.Namespace).DeepCopy()
		n.Annotations = map[string]string{topology.NetworkAnnotation: s.network}
		if s.network == "" {
			n.Annotations = nil
		}
		c.must(c.api.Put(n))
		c.waitMatrix(fmt.Sprintf("%s: %s on network %q", when, s.namespace, s.network), 15*time.Second, s.after.allowed)
	}
}
