package e2e

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k8s-ovs/k8s-ovs/test/chaos/rows"
	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/probe"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/world"
)

// costs adds what a fault cost to the table of `make faults`.
func (l *lab) costs(fault string, lost int, gap time.Duration, bar string) {
	l.t.Helper()
	l.must(rows.Add(fault, lost, gap, bar))
	l.t.Logf("%s: %d lost, longest gap %s; bar: %s", fault, lost, gap.Round(time.Millisecond), bar)
}

// longestGap is the longest time in which a run has lost all that somebody sent to somebody, one message each interval.
func longestGap(rep probe.Report, interval time.Duration) (longest time.Duration) {
	type silence struct {
		began time.Time
		last  uint64
	}
	silences := map[string]silence{}
	for _, e := range rep.LostEvents { // in order of time
		key := fmt.Sprint(e.From, e.To, e.Protocol)
		s, there := silences[key]
		if !there || e.Seq != s.last+1 {
			s.began = e.Sent
		}
		s.last = e.Seq
		silences[key] = s
		longest = max(longest, e.Sent.Sub(s.began)+interval)
	}
	return longest
}

// crowd makes n pods of red on n1, some of them at a time as a kubelet does. Those with even numbers have the label
// app=web, the others app=near; each third has limits that the probe does not meet.
func (c *cluster) crowd(n int) []netlab.Pod {
	c.t.Helper()
	pods := make([]netlab.Pod, n)
	var g errgroup.Group
	g.SetLimit(8)
	for i := range n {
		o := netlab.PodOptions{Labels: map[string]string{"app": []string{"web", "near"}[i%2]}}
		if i%3 == 0 {
			o.Annotations = map[string]string{ingressRate: "50M", egressRate: "50M"}
		}
		g.Go(func() (err error) {
			pods[i], err = c.AddPod(c.t.Context(), "n1", "red", fmt.Sprint("p", i), o)
			return err
		})
	}
	c.must(g.Wait())
	return pods
}

// manyServices makes n services of red, each with ten of these pods.
func (c *cluster) manyServices(n int, pods []netlab.Pod) {
	c.t.Helper()
	port, tcp, name := int32(8080), corev1.ProtocolTCP, "tcp"
	for i := range n {
		service := fmt.Sprint("s", i)
		slice := &discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Namespace: "red", Name: service + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: service}},
			AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &name, Protocol: &tcp, Port: &port}},
		}
		for k := range 10 {
			slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{pods[(i*10+k)%len(pods)].IP.String()}})
		}
		c.must(c.api.Put(&corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "red", Name: service},
			Spec:       corev1.ServiceSpec{ClusterIP: fmt.Sprintf("10.96.20.%d", i+1), Ports: []corev1.ServicePort{{Name: name, Protocol: tcp, Port: 80}}},
		}))
		c.must(c.api.Put(slice))
	}
}

// exact is asItShould for a node with many pods, at each of which it takes a look.
func (l *lab) exact(node string) {
	l.t.Helper()
	n, err := world.Of(l.Lab, node)
	l.must(err)
	if err := n.Await(context.WithoutCancel(l.t.Context()), 10*time.Minute); err != nil {
		l.t.Error(err)
	}
}

// TestFaultAgentKilledOften: an agent that has a hundred pods with limits, policies and services is killed fifty times.
// Nothing is lost, within the node or to another one, nothing is delivered that may not be, and at the end the node is
// exactly what it should be.
func TestFaultAgentKilledOften(t *testing.T) {
	long(t)
	const pods, kills, interval = 100, 50, 10 * time.Millisecond
	c := policed(t, netlab.Options{})
	crowd := c.crowd(pods)
	c.labelled("n2", "red/far", "near")
	c.labelled("n2", "blue/far", "near")
	c.manyServices(10, crowd)
	for i := range 10 { // that say the same, each with sets of its own
		c.policy(fmt.Sprint("red/x", i), fmt.Sprintf(`
podSelector: {matchLabels: {app: web}}
ingress:
- from: [{namespaceSelector: {matchExpressions: [{key: team, operator: NotIn, values: [no-%d]}]}, podSelector: {matchLabels: {app: near}}}]
`, i))
	}
	web := map[string]bool{}
	for i := 0; i < pods; i += 2 {
		web[crowd[i].String()] = true
	}
	allowed := rule(withinTenants).and(func(from, to probe.Endpoint) bool { return !web[to.String()] || !web[from.String()] })
	talk := append(slices.Clone(crowd[:5]), c.get("red/far"), c.get("blue/far"))
	c.eventuallyEach(policyLooks, "policies in force", policyTime, func() error {
		r, err := probe.Matrix(t.Context(), netlab.Endpoints(talk), probe.AllProtocols)
		if err != nil {
			return err
		}
		return r.Check(allowed)
	})
	run := c.runAs(probe.Exactly(allowed), probe.RunOptions{Interval: interval, Protocols: []probe.Protocol{probe.UDP}}, talk...)
	c.traffic(run, 50)
	for range kills {
		c.must(c.Agent("n1").KillProgram())
		c.traffic(run, 10)
		c.eventually("the agent is back", time.Minute, func() error { return c.Agent("n1").Ready(t.Context()) })
		c.traffic(run, 10)
	}
	rep := run.Stop()
	if err := rep.Err(); err != nil {
		t.Errorf("%d of %d lost: %v", rep.Lost(), rep.Sent(), err)
	}
	c.costs(fmt.Sprintf("agent killed %d times, %d pods with limits, services and policies on the node", kills, pods), rep.Lost(), longestGap(rep, interval), "0 lost")
	c.exact("n1")
}

// TestFaultVswitchdOfManyPods: ovs-vswitchd of a node with 250 pods is killed under load, again and again. All is
// as before within a second after it serves again.
func TestFaultVswitchdOfManyPods(t *testing.T) {
	long(t)
	const pods, kills, interval = 250, 5, 5 * time.Millisecond
	c := policed(t, netlab.Options{})
	crowd := c.crowd(pods)
	c.labelled("n2", "red/far", "near")
	c.serves(crowd[10], 8080)
	c.flood("udp4", crowd[11], crowd[10].IP.String()+port, offered)
	lost, longest := 0, time.Duration(0)
	for range kills {
		run := c.runAs(probe.Exactly(withinTenants), probe.RunOptions{Interval: interval, Protocols: []probe.Protocol{probe.UDP}}, append(slices.Clone(crowd[:4]), c.get("red/far"))...)
		c.traffic(run, 100)
		away := during("ovs-vswitchd is away", func() {
			c.must(c.OVS("n1").KillVswitchd())
			c.must(c.OVS("n1").StartVswitchd(t.Context()))
		})
		c.traffic(run, 100)
		rep := run.Stop()
		// Packets waited for it when it was killed, under load.
		away.began = away.began.Add(-time.Second)
		c.judge(rep, []span{away})
		lost += rep.Lost()
		for _, e := range rep.LostEvents {
			longest = max(longest, e.Sent.Sub(away.done)+interval)
		}
	}
	c.costs(fmt.Sprintf("ovs-vswitchd killed %d times under load, %d pods on the node; from when it serves again", kills, pods), lost, longest, "1 s")
	c.exact("n1")
}
