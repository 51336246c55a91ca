package e2e

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/probe"
)

// quartet is two tenants with a pod on each node.
var quartet = map[string][]string{"n1": {"red/a", "blue/a"}, "n2": {"red/b", "blue/b"}}

var redAndBlue = tenants{"red": "r", "blue": "b"}

// metric is the sum of all samples of a node's metric.
func (l *lab) metric(node, name string) float64 {
	l.t.Helper()
	sum, found, text := l.findMetric(node, name)
	if !found {
		l.t.Fatalf("%s has no metric %s:\n%s", node, name, text)
	}
	return sum
}

// findMetric is metric where there may be none yet; text is all there are.
func (l *lab) findMetric(node, name string) (sum float64, found bool, text string) {
	l.t.Helper()
	text, err := l.Agent(node).Metrics(l.t.Context())
	l.must(err)
	for _, line := range strings.Split(text, "\n") {
		rest, ok := strings.CutPrefix(line, name)
		if !ok || rest == "" || rest[0] != ' ' && rest[0] != '{' {
			continue
		}
		v, err := strconv.ParseFloat(rest[strings.LastIndexByte(rest, ' ')+1:], 64)
		l.must(err)
		sum, found = sum+v, true
	}
	return sum, found, text
}

// TestFlowsPutRight: flows that somebody deletes or adds by hand are put right
// within 10 s, and counted.
func TestFlowsPutRight(t *testing.T) {
	l := up(t, netlab.Options{})
	l.pods(quartet)
	want := l.flows("n1")
	o := l.OVS("n1")
	for _, c := range []struct {
		name string
		args []string
	}{
		{"all deleted", []string{"del-flows", "br0"}},
		{"one added that drops all", []string{"add-flow", "br0", "table=0,priority=65000,actions=drop"}},
		{"one added whose cookie is nobody's", []string{"add-flow", "br0", "cookie=0xdeadbeefdeadbeef,table=0,priority=65000,actions=drop"}},
		{"one added in an unused table", []string{"add-flow", "br0", "table=200,priority=1,actions=NORMAL"}},
		{"actions changed", []string{"mod-flows", "br0", "table=0,actions=drop"}},
	} {
		before := l.metric("n1", "k8s_ovs_flow_repairs_total")
		_, err := o.OFCtl(t.Context(), c.args...)
		l.must(err)
		began := time.Now()
		l.waitFlows(c.name, "n1", want, 10*time.Second)
		t.Logf("%s: right again after %s", c.name, time.Since(began).Round(time.Millisecond))
		l.requireMatrix(c.name, redAndBlue.allowed)
		l.eventually("repairs of flows are counted", 5*time.Second, func() error {
			if after := l.metric("n1", "k8s_ovs_flow_repairs_total"); after <= before {
				return fmt.Errorf("%v before, %v after", before, after)
			}
			return nil
		})
	}
}

// byHand has somebody do something to n1's switch with ovs-ofctl, again and again under the probe, each time after a
// while in which nobody did, so that it is put right as soon as the first; after waits for what is to come of it. It returns
// when that was.
func (l *lab) byHand(run *probe.Run, times int, after func(begun time.Time), args ...string) (all []span) {
	l.t.Helper()
	for range times {
		for quiet := time.Now().Add(3 * time.Second); time.Now().Before(quiet); {
			l.traffic(run, 100)
		}
		now := time.Now()
		_, err := l.OVS("n1").OFCtl(l.t.Context(), args...)
		l.must(err)
		all = append(all, span{name: strings.Join(args, " "), began: now, done: now})
		after(now)
	}
	l.traffic(run, 100)
	return all
}

// TestFlowsPutRightAtOnce: somebody deletes all flows of a node, again and again. Packets are
// lost for some milliseconds, and nothing else.
func TestFlowsPutRightAtOnce(t *testing.T) {
	const bar, times, every = 100 * time.Millisecond, 10, 2 * time.Millisecond
	l := up(t, netlab.Options{})
	l.pods(quartet)
	want := l.flows("n1")
	before := l.metric("n1", "k8s_ovs_flow_repairs_total")
	pods, err := l.Pods()
	l.must(err)
	other := l.beside()
	run := l.runAs(probe.Exactly(redAndBlue.allowed), probe.RunOptions{Interval: every, Protocols: []probe.Protocol{probe.UDP}}, pods...)
	deleted := l.byHand(run, times, func(time.Time) {}, "del-flows", "br0")
	rep := run.Stop()
	l.judge(rep, deleted)
	took := silences(rep, deleted)
	t.Logf("the last that was lost was sent so long after all flows were deleted: %v", took)
	what := fmt.Sprintf("all flows of a node deleted by hand %d times", times)
	l.costs(what, rep.Lost(), slices.Max(took), bar.String())
	l.held(what, took, bar, recovery) // the next look at the flows is up to 5 s away
	if known := len(rep.LostEvents); known < rep.Lost() {
		t.Errorf("%s: %d packets are lost, more than the %d that are known one by one", what, rep.Lost(), known)
	}
	other.untouched(what)
	l.waitFlows("flows are as they were", "n1", want, 10*time.Second)
	if n := l.metric("n1", "k8s_ovs_flow_repairs_total") - before; n < float64(times*len(want)) {
		t.Errorf("%v repairs are counted of %d flows that were deleted %d times", n, len(want), times)
	}
}

// TestGroupsAndMetersPutRightAtOnce: somebody deletes all groups of a node, and all meters, with which Open vSwitch
// deletes the flows that have them. They are back within a second: what pods send to services and what those with
// limits send arrives again, and the switch has what it had.
func TestGroupsAndMetersPutRightAtOnce(t *testing.T) {
	long(t)
	const bar, times, every = time.Second, 5, 5 * time.Millisecond
	l := up(t, netlab.Options{})
	l.pods(quartet)
	_, err := l.AddPod(t.Context(), "n1", "red", "limited", netlab.PodOptions{Annotations: map[string]string{ingressRate: "50M", egressRate: "50M"}})
	l.must(err)
	c := l.inCluster("red/limited", "red/b")
	c.waitGroups("n1", 2)
	pods, err := l.Pods()
	l.must(err)
	other := l.beside()
	for _, kind := range []string{"groups", "meters"} {
		run := l.runAs(probe.Exactly(redAndBlue.allowed), probe.RunOptions{Interval: every, Protocols: []probe.Protocol{probe.UDP}}, pods...)
		asked := l.asks(l.get("red/a"), "udp4", every, web)
		was := l.dumped(kind)
		if len(was) == 0 {
			t.Fatalf("n1 has no %s", kind)
		}
		var took []time.Duration
		deleted := l.byHand(run, times, func(begun time.Time) {
			l.eventuallyEach(2*time.Millisecond, kind+" are back", 10*time.Second, func() error {
				if diff := cmp.Diff(was, l.dumped(kind)); diff != "" {
					return fmt.Errorf("(-want +got):\n%s", diff)
				}
				return nil
			})
			took = append(took, time.Since(begun))
		}, "del-"+kind, "br0")
		sent, unanswered := asked.stop()
		rep := run.Stop()
		l.judge(rep, deleted)
		lost, services := silences(rep, deleted), lastAfter(unanswered, deleted)
		t.Logf("%s are back after %v; the last lost packet was sent after %v; %d of %d connections to a service not answered, the last made after %v", kind, took, lost, len(unanswered), sent, services)
		for i := range took {
			took[i] = max(took[i], lost[i], services[i])
		}
		what := fmt.Sprintf("all %s of a node deleted by hand %d times, until they are back", kind, times)
		l.costs(what, rep.Lost()+len(unanswered), slices.Max(took), bar.String())
		l.held(what, took, bar, recovery) // the next look at them is up to 5 s away
	}
	other.untouched("all groups and meters of a node deleted by hand")
	l.asItShould("groups and meters are back", "n1")
}

// dumped are all groups of n1's br0, or all meters, sorted.
func (l *lab) dumped(kind string) []string {
	l.t.Helper()
	out, err := l.OVS("n1").OFCtl(l.t.Context(), "dump-"+kind, "br0")
	l.must(err)
	all := strings.Split(strings.TrimSpace(out), "\n")
	all = slices.DeleteFunc(all, func(line string) bool { return strings.HasPrefix(line, "OFPST") || strings.TrimSpace(line) == "" })
	slices.Sort(all)
	return all
}

// TestAgentRestart: the agent is killed and started again under the probe:
// nothing is lost, nothing leaks, no flow is different afterwards.
func TestAgentRestart(t *testing.T) {
	l := up(t, netlab.Options{})
	l.pods(quartet)
	flows := l.flows("n1")
	other := l.beside()
	run := l.run(probe.Exactly(redAndBlue.allowed))
	l.traffic(run, 50)
	for range 3 {
		l.must(l.Agent("n1").Kill())
		l.traffic(run, 20) // without agent
		l.must(l.Agent("n1").Start(t.Context()))
		l.traffic(run, 20)
	}
	rep := run.Stop()
	if err := rep.Err(); err != nil {
		t.Errorf("restarts of the agent: %v", err)
	}
	other.untouched("agent killed three times")
	t.Logf("%d messages, %d lost", rep.Sent(), rep.Lost())
	l.waitFlows("flows after restarts", "n1", flows, 10*time.Second)
	// Pods that came before can go after, and their addresses are known.
	l.must(l.CNICheck(t.Context(), l.get("red/a")))
	fresh := l.pod("n1", "red/c")
	if fresh.IP == l.get("red/a").IP || fresh.IP == l.get("blue/a").IP {
		t.Errorf("%s has address %s of a pod from before the restart", fresh, fresh.IP)
	}
	l.requireMatrix("after restarts", redAndBlue.allowed)
	l.must(l.DelPod(t.Context(), l.get("red/a")))
	l.requireMatrix("after DEL", redAndBlue.allowed)
}

// TestAgentRestartAfterChanges: a change while the agent is down is taken up
// when it is back; flows of before that nothing accounts for are gone.
func TestAgentRestartAfterChanges(t *testing.T) {
	long(t)
	l := up(t, netlab.Options{})
	l.pods(quartet)
	l.must(l.Agent("n1").Kill())
	_, err := l.OVS("n1").OFCtl(t.Context(), "add-flow", "br0", "table=0,priority=64000,cookie=0x1234,actions=NORMAL")
	l.must(err)
	l.must(l.DeleteSandbox(l.get("blue/a")))
	_, err = l.Netns(t.Context(), "join", "red", "blue", "--no-wait")
	l.must(err)
	l.must(l.Agent("n1").Start(t.Context()))
	l.eventually("the stale flow goes", 10*time.Second, func() error {
		if f := l.flows("n1"); slices.ContainsFunc(f, func(s string) bool { return strings.Contains(s, "NORMAL") }) {
			return fmt.Errorf("it is there")
		}
		return nil
	})
	l.must(l.DelPod(t.Context(), l.get("blue/a")))
	l.waitMatrix("join while the agent was down", 10*time.Second, everybody)
}

// recovery is how long all may take to come back after Open vSwitch has. The bar
// is one second; the rest is for a busy machine and the race detector.
const recovery = 3 * time.Second

// TestVswitchdKilled: ovs-vswitchd dies and comes back; all works again at once.
func TestVswitchdKilled(t *testing.T) {
	l := up(t, netlab.Options{})
	l.pods(quartet)
	run := l.run(probe.Exactly(redAndBlue.allowed))
	var outages []span
	for range 2 {
		want := l.flows("n1")
		l.traffic(run, 20)
		outages = append(outages, during("ovs-vswitchd is away", func() {
			l.must(l.OVS("n1").KillVswitchd())
			l.must(l.OVS("n1").StartVswitchd(t.Context()))
		}))
		l.traffic(run, 20)
		l.waitFlowsOfPods("n1", want)
	}
	l.judge(run.Stop(), outages)
	l.pod("n1", "red/c")
	l.requireMatrix("with a new pod", redAndBlue.allowed)
}

// judge fails the test when a run has lost anything outside of outages and the
// time to recover after each, or seen anything forbidden.
func (l *lab) judge(rep probe.Report, outages []span) {
	l.t.Helper()
	l.judgeIn(rep, outages, recovery)
}

// judgeIn is judge with another time to recover.
func (l *lab) judgeIn(rep probe.Report, outages []span, recovery time.Duration) {
	l.t.Helper()
	for _, e := range rep.ForbiddenEvents {
		l.t.Errorf("forbidden: %s", e)
	}
	for _, e := range lostOutside(rep, outages, recovery) {
		l.t.Errorf("lost: %s", e)
	}
	for i, o := range outages {
		last, next := "nothing", time.Now()
		if i+1 < len(outages) {
			next = outages[i+1].began.Add(-time.Second)
		}
		for _, e := range rep.LostEvents {
			if d := e.Sent.Sub(o.done); e.Sent.After(o.began) && e.Sent.Before(next) {
				last = fmt.Sprintf("%s, %s after", e, d.Round(time.Millisecond))
			}
		}
		l.t.Logf("%s for %s; the last that was lost: %s", o.name, o.done.Sub(o.began).Round(time.Millisecond), last)
	}
}

// waitFlowsOfPods waits until a node has as many flows as before: a restarted
// switch gives ports other numbers, so the texts differ.
func (l *lab) waitFlowsOfPods(node string, want []string) {
	l.t.Helper()
	l.eventually("flows are complete", 10*time.Second, func() error {
		got, err := l.tryFlows(node) // br0 may not be back
		if err != nil {
			return err
		}
		if len(got) != len(want) {
			return fmt.Errorf("%d flows, want %d", len(got), len(want))
		}
		return nil
	})
}

// TestOVSDBKilled: ovsdb-server dies and comes back: all works again at once,
// and pods can be added. While its database is away ovs-vswitchd runs none of what
// its main thread does (bridge_run gives up without the database's lock), and the
// userspace datapath is part of that: so packets are lost until it is back.
func TestOVSDBKilled(t *testing.T) {
	l := up(t, netlab.Options{})
	l.pods(quartet)
	run := l.run(probe.Exactly(redAndBlue.allowed))
	l.traffic(run, 30)
	outage := during("ovsdb-server is away", func() {
		l.must(l.OVS("n1").KillOVSDB())
		l.must(l.OVS("n1").StartOVSDB(t.Context()))
	})
	l.traffic(run, 50)
	l.judge(run.Stop(), []span{outage})
	var p netlab.Pod
	l.eventually("a pod can be added", 10*time.Second, func() (err error) {
		p, err = l.AddPod(t.Context(), "n1", "red", "c", netlab.PodOptions{})
		return err
	})
	l.requireMatrix("with the new pod", redAndBlue.allowed)
	l.must(l.DelPod(t.Context(), p))
}

// TestEtcdAway: without etcd pods keep their network, and pods of known
// namespaces can be re-created; what changes meanwhile is caught up with.
func TestEtcdAway(t *testing.T) {
	long(t)
	l := up(t, netlab.Options{})
	l.pods(quartet)
	run := l.runBetween(probe.Exactly(redAndBlue.allowed), l.get("red/b"), l.get("blue/a"), l.get("blue/b"))
	l.traffic(run, 20)
	l.must(l.Controller().Kill())
	l.traffic(run, 20)
	l.must(l.DelPod(t.Context(), l.get("red/a")))
	l.pod("n1", "red/a")
	l.requireMatrix("re-created without etcd", redAndBlue.allowed)
	// Not even a restart of the agent needs etcd: it has a copy.
	l.must(l.Agent("n1").Kill())
	l.must(l.Agent("n1").StartUnready(t.Context()))
	l.traffic(run, 20)
	l.eventually("ADD by an agent started without etcd", 20*time.Second, func() error {
		_, err := l.AddPod(t.Context(), "n1", "red", "c", netlab.PodOptions{})
		return err
	})
	l.requireMatrix("added by an agent that was started without etcd", redAndBlue.allowed)
	// An unknown namespace must wait: nobody can say what it may reach.
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if p, err := l.AddPod(ctx, "n1", "unknown", "a", netlab.PodOptions{}); err == nil {
		t.Errorf("%s of an unknown namespace was added without etcd", p)
	}
	l.must(l.StartController(t.Context()))
	l.traffic(run, 20)
	if err := run.Stop().Err(); err != nil {
		t.Errorf("etcd's absence: %v", err)
	}
	l.eventually("the CLI works", 20*time.Second, func() error {
		_, err := l.Netns(t.Context(), "join", "red", "blue")
		return err
	})
	l.requireMatrix("after a join", everybody)
}
