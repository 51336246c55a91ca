package e2e

import (
	"testing"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/probe"
)

// TestChangesUnderProbe: tenants are joined, isolated and made global while all
// pods talk. What the new state forbids is not delivered once the CLI has
// returned, and nothing is at any time that both states forbid. Established
// connections end with the permission.
//
// A change is one bundle a node, so within a node nothing is lost. Between
// nodes, and only there, packets of the namespace that changes may be lost while
// one node has the new netID and the other has not.
func TestChangesUnderProbe(t *testing.T) {
	l := up(t, netlab.Options{})
	l.pods(map[string][]string{"n1": {"red/a", "green/a", "blue/a"}, "n2": {"red/b", "green/b", "blue/b"}})
	run := l.run(probe.Exactly(apart.allowed))
	l.traffic(run, 50)
	now := apart
	var changes []span
	for _, step := range story {
		changes = append(changes, during(step.command[1], func() {
			run.SetRule(probe.Changing(now.allowed, step.after.allowed))
			l.netns(step.command...)
			run.SetRule(probe.Exactly(step.after.allowed))
		}))
		now = step.after
		l.traffic(run, 30)
		if forbidden := run.Report().ForbiddenEvents; len(forbidden) > 0 {
			t.Fatalf("%s: %d forbidden deliveries, the first: %s", step.name, len(forbidden), forbidden[0])
		}
	}
	rep := run.Stop()
	for _, e := range lostOutside(rep, changes, 0) {
		t.Errorf("lost %s, when nothing was changed", e)
	}
	for _, e := range rep.LostEvents {
		for _, c := range changes {
			if e.Sent.Before(c.began) || e.Sent.After(c.done) {
				continue
			}
			if e.From.Namespace != c.name && e.To.Namespace != c.name || e.From.Node == e.To.Node {
				t.Errorf("lost %s: the change of %s is no reason for that", e, c.name)
			}
		}
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
			out, err := l.OVS(node).VSCtl(t.Context(), "--columns=_uuid", "--format=csv", "--no-headings", "list", table)
			l.must(err)
			if out != "" {
				t.Errorf("%s: rows left in %s after all pods are gone:\n%s", node, table, out)
			}
		}
	}
}
