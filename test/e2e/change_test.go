package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
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

// TestChangesLoseNothing: two namespaces with pods on two nodes go through many changes, at
// once and in no order, while their pods talk hundreds of times a second, to each other and to
// their service. Each goes on reaching itself, without one packet less.
func TestChangesLoseNothing(t *testing.T) {
	l := up(t, netlab.Options{})
	l.pods(map[string][]string{"n1": {"red/a", "red/near", "green/a", "blue/a"}, "n2": {"red/far", "green/b"}})
	c := l.inCluster("red/near", "red/far")
	run := l.runAs(ownTraffic, probe.RunOptions{Interval: 4 * time.Millisecond, Protocols: []probe.Protocol{probe.UDP}},
		l.get("red/a"), l.get("red/far"), l.get("green/a"), l.get("green/b"))
	through := c.askService("red/a", 8)
	l.traffic(run, 50)
	took := make([][]time.Duration, 2)
	var g errgroup.Group
	for i, namespace := range []string{"red", "green"} {
		g.Go(func() (err error) {
			took[i], err = l.changes(namespace, 100)
			return err
		})
	}
	l.must(g.Wait())
	l.traffic(run, 50)
	rep := run.Stop()
	for _, e := range rep.LostEvents {
		t.Errorf("lost %s", e)
	}
	all := slices.Sorted(slices.Values(slices.Concat(took...)))
	t.Logf("%d messages, %d lost; %d through the service, all answered; %d requests, the median took %s, the longest %s",
		rep.Sent(), rep.Lost(), through.stop(), len(all), all[len(all)/2], all[len(all)-1])
}

// requireAmong fails the test unless exactly the allowed pairs of these pods reach each other.
func (l *lab) requireAmong(when string, allowed func(a, b probe.Endpoint) bool, names ...string) {
	l.t.Helper()
	var pods []netlab.Pod
	for _, name := range names {
		pods = append(pods, l.get(name))
	}
	r, err := probe.Matrix(l.t.Context(), netlab.Endpoints(pods), probe.AllProtocols)
	l.must(err)
	if err := r.Check(allowed); err != nil {
		l.t.Errorf("%s: %v\n%s", when, err, table(r))
	}
}

// ownTraffic is the rule while anything may become of who reaches whom: each namespace reaches itself.
var ownTraffic = probe.Rule{Must: func(a, b probe.Endpoint) bool { return a.Namespace == b.Namespace }, May: everybody}

// changes makes n requests for a namespace, one after the other, and returns how long each took.
func (l *lab) changes(namespace string, n int) (took []time.Duration, err error) {
	random := rand.New(rand.NewPCG(uint64(len(namespace)), 1))
	for range n {
		command := [][]string{{"join", namespace, "blue"}, {"isolate", namespace}, {"global", namespace}}[random.IntN(3)]
		began := time.Now()
		if out, err := l.Netns(l.t.Context(), command...); err != nil {
			return nil, fmt.Errorf("%w\n%s", err, out)
		}
		took = append(took, time.Since(began))
	}
	return took, nil
}

// TestChangesWithSlowNode: the agent of one node hears of nothing for a second, again and again.
// Changes take longer, and lose nothing.
func TestChangesWithSlowNode(t *testing.T) {
	l := up(t, netlab.Options{})
	l.pods(map[string][]string{"n1": {"red/a", "blue/a"}, "n2": {"red/b"}})
	run := l.runAs(ownTraffic, probe.RunOptions{Interval: 4 * time.Millisecond, Protocols: []probe.Protocol{probe.UDP}}, l.get("red/a"), l.get("red/b"))
	l.traffic(run, 50)
	ctx, cancel := context.WithCancel(t.Context())
	var g errgroup.Group
	g.Go(func() error {
		for ctx.Err() == nil {
			if err := l.Agent("n2").Suspend(); err != nil {
				return err
			}
			time.Sleep(time.Second)
			if err := l.Agent("n2").Resume(); err != nil {
				return err
			}
			time.Sleep(300 * time.Millisecond)
		}
		return nil
	})
	took, err := l.changes("red", 12)
	cancel()
	l.must(errors.Join(err, g.Wait()))
	l.traffic(run, 50)
	rep := run.Stop()
	for _, e := range rep.LostEvents {
		t.Errorf("lost %s", e)
	}
	t.Logf("%d messages, %d lost; requests took %s", rep.Sent(), rep.Lost(), took)
}

// TestChangesWhileCutOff: a node hears of nothing while red is isolated from green, and blue joins
// green. The changes go on without it, and name it. On the other nodes they are in force, and what blue
// has on that node reaches nobody new. It comes to the newest records when it hears of them again, though
// etcd has forgotten what lies between.
func TestChangesWhileCutOff(t *testing.T) {
	l := up(t, netlab.Options{})
	l.pods(map[string][]string{"n1": {"red/a", "green/a", "blue/a"}, "n2": {"red/b", "green/b", "blue/b"}})
	l.netns("join", "red", "green")
	l.requireMatrix("at first", apart.with("red", "g").allowed)
	l.must(l.Agent("n2").Suspend())
	out := l.netns("isolate", "red")
	if !strings.Contains(out, "not live and not counted: n2") {
		t.Errorf("netns says %q, which does not name n2", out)
	}
	l.netns("join", "blue", "green")
	if log, err := l.Controller().Log(); err != nil || !strings.Contains(log, "goes on without a node") || !strings.Contains(log, "node=n2") {
		t.Errorf("the controller's log does not name n2 (%v)", err)
	}
	now := tenants{"red": "r", "green": "g", "blue": "g"}
	l.requireAmong("on the node that heard", now.allowed, "red/a", "green/a", "blue/a")
	// What blue has on n2 carries the netID that nobody takes any more.
	nobody := func(probe.Endpoint, probe.Endpoint) bool { return false }
	l.requireAmong("from the node that did not", nobody, "blue/b", "green/a")
	l.requireAmong("blue with itself", nobody, "blue/b", "blue/a")
	etcd, err := l.Etcd()
	l.must(err)
	defer func() { _ = etcd.Close() }()
	newest, err := etcd.Get(t.Context(), netlab.EtcdPrefix+"/k8ssdn/netnamespaces/blue")
	l.must(err)
	_, err = etcd.Compact(t.Context(), newest.Header.Revision)
	l.must(err)
	l.must(l.Agent("n2").Resume())
	l.waitMatrix("n2 is back", 30*time.Second, now.allowed)
	l.netns("join", "red", "blue")
	l.requireMatrix("all joined", everybody)
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
