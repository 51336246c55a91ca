package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/probe"
)

// ovsScripts start Open vSwitch in its containers.
const ovsScripts = "../../manifests/image"

// TestOpenVSwitchCrashes: ovs-vswitchd and ovsdb-server, run as their containers run them, crash
// again and again, by whatever signal. Each time they are back and pods talk to each other in under
// a second, nothing passes that is forbidden, and all is counted and told with its reason.
func TestOpenVSwitchCrashes(t *testing.T) {
	rounds, signals := 10, []syscall.Signal{syscall.SIGKILL, syscall.SIGSEGV, syscall.SIGABRT}
	if testing.Short() {
		rounds, signals = 1, []syscall.Signal{syscall.SIGSEGV}
	}
	l := up(t, netlab.Options{})
	l.pods(quartet)
	c := l.inCluster("red/b")
	l.must(l.OVS("n1").Supervise(t.Context(), ovsScripts))
	l.waitMatrix("Open vSwitch is supervised", 10*time.Second, redAndBlue.allowed)
	other := l.beside()
	for _, daemon := range []string{"ovs-vswitchd", "ovsdb-server"} {
		var all []span
		for _, sig := range signals {
			all = append(all, l.crashes(daemon, sig, rounds)...)
		}
		other.back(daemon+" crashed again and again in its container", barCrash, silenceAtMost, all...)
		other.begin()
	}
	l.eventually("all crashes are counted", 10*time.Second, func() error {
		if n, _, text := l.findMetric("n1", "k8s_ovs_openvswitch_crashes_total"); n != float64(2*len(signals)*rounds) ||
			!strings.Contains(text, fmt.Sprintf(`k8s_ovs_openvswitch_crashes_total{cause="SIGSEGV",daemon="ovsdb-server"} %d`, rounds)) {
			return fmt.Errorf("%v of %d", n, 2*len(signals)*rounds)
		}
		return nil
	})
	l.eventually("they are told", 15*time.Second, func() error {
		for _, daemon := range []string{"ovs-vswitchd", "ovsdb-server"} {
			if !slices.ContainsFunc(c.api.Events(), func(e *corev1.Event) bool {
				return e.Reason == "OpenVSwitchCrashed" && e.InvolvedObject.Name == "n1" && strings.HasPrefix(e.Message, daemon+" ended (SIG")
			}) {
				return fmt.Errorf("%s is not among %v", daemon, c.api.Events())
			}
		}
		return nil
	})
	l.pod("n1", "red/c")
	l.requireMatrix("with a new pod", redAndBlue.allowed)
}

// barCrash is the bar of a daemon that crashes in its container.
const barCrash = "1 s from the crash"

// silenceAtMost is how long packets may be lost by a crash: one each second or two leaves a busy machine no less.
const silenceAtMost = 2 * recovery

// crashes has a daemon of n1 crash so many times under the probe, each time as soon as pods have traffic again, and
// returns when that was.
func (l *lab) crashes(daemon string, sig syscall.Signal, times int) (all []span) {
	l.t.Helper()
	run := l.run(probe.Exactly(redAndBlue.allowed))
	l.traffic(run, 10)
	var served []time.Duration
	for range times {
		crash := during(daemon+" crashes", func() { l.must(l.OVS("n1").Crash(l.t.Context(), daemon, sig)) })
		l.eventuallyEach(5*time.Millisecond, daemon+" serves again", recovery, func() error { return l.daemonServes(daemon) })
		crash.done = crash.began // one that still starts was waited for
		all, served = append(all, crash), append(served, time.Since(crash.began).Round(time.Millisecond))
		l.traffic(run, 20)
	}
	rep := run.Stop()
	what := fmt.Sprintf("%s crashed %d times by %s in its container", daemon, times, sig)
	for _, e := range rep.ForbiddenEvents {
		l.t.Errorf("%s: forbidden: %s", what, e)
	}
	silent := silences(rep, all)
	l.t.Logf("%s: it serves again after %v; %d of %d lost, the last that was lost was sent after %v", what, served, rep.Lost(), rep.Sent(), silent)
	l.costs(what, rep.Lost(), slices.Max(silent), barCrash)
	l.held(what+": it serves again", served, time.Second, recovery)
	l.held(what+": packets", silent, time.Second, silenceAtMost)
	return all
}

// daemonServes is nil while a daemon of n1 serves: ovs-vswitchd the bridge.
func (l *lab) daemonServes(daemon string) error {
	o := l.OVS("n1")
	if daemon == "ovsdb-server" {
		_, err := o.VSCtl(l.t.Context(), "--no-wait", "br-exists", "br0")
		return err
	}
	list, err := o.AppCtl(l.t.Context(), "ofproto/list")
	if err == nil && !strings.Contains(list, "br0") {
		err = errors.New("it has no bridge br0")
	}
	return err
}

// TestOpenVSwitchFaults: what becomes of a node whose Open vSwitch loses its configuration, its
// database, both daemons, or room on its disk. When Open vSwitch serves again pods talk to each other
// within a second with the addresses that they had, the node becomes exactly what it should be, and
// somebody else's bridge and ports are as they were.
func TestOpenVSwitchFaults(t *testing.T) {
	long(t)
	l := up(t, netlab.Options{})
	l.pods(quartet)
	o := l.OVS("n1")
	other := l.beside()
	var copied []byte
	for _, f := range []struct {
		name string
		do   func(ctx context.Context) error
		// lost is that what is somebody else's goes, too: it has to make it anew.
		lost bool
		// hitless is that ovs-vswitchd goes on, and finds all of the node's own when it asks the database again.
		hitless bool
	}{
		{name: "ovs-vsctl emer-reset", do: func(ctx context.Context) error {
			_, err := o.VSCtl(ctx, "emer-reset")
			return err
		}},
		{name: "both daemons killed", do: func(ctx context.Context) error {
			return errors.Join(o.KillVswitchd(), o.KillOVSDB(), o.StartOVSDB(ctx), o.StartVswitchd(ctx))
		}},
		{name: "the database rolled back", hitless: true, do: func(ctx context.Context) error {
			return errors.Join(o.WithoutServer(ctx, func(path string) error { return os.WriteFile(path, copied, 0o644) }), l.sync("n1"))
		}},
		{name: "the database rolled back while all are away", do: func(ctx context.Context) error {
			err := errors.Join(l.Agent("n1").Kill(), o.KillVswitchd(),
				o.WithoutServer(ctx, func(path string) error { return os.WriteFile(path, copied, 0o644) }),
				o.StartVswitchd(ctx))
			return errors.Join(err, l.Agent("n1").Start(ctx))
		}},
		{name: "the database wiped", lost: true, do: func(ctx context.Context) error { return o.WithoutServer(ctx, o.WipeDatabase) }},
		{name: "the database wiped, and ovs-vswitchd killed", lost: true, do: func(ctx context.Context) error {
			return errors.Join(o.KillVswitchd(), o.WithoutServer(ctx, o.WipeDatabase), o.StartVswitchd(ctx))
		}},
	} {
		ctx := t.Context()
		// A copy from when red/old was there and red/new was not.
		old := l.pod("n1", "red/old")
		l.asItShould("before: "+f.name, "n1")
		var err error
		copied, err = os.ReadFile(o.Database()) // it only ever grows at its end (ovsdb(5))
		l.must(err)
		fresh := l.pod("n1", "red/new")
		l.must(l.DelPod(ctx, old))
		l.asItShould("pods came and went: "+f.name, "n1")
		l.requireMatrix("before: "+f.name, redAndBlue.allowed)

		run := l.run(probe.Exactly(redAndBlue.allowed))
		l.traffic(run, 20)
		outage := during(f.name, func() { l.must(f.do(ctx)) })
		l.traffic(run, 20)
		rep := run.Stop()
		l.judge(rep, []span{outage})
		bar := barServes
		if f.hitless {
			bar = "0 lost"
		}
		l.costs(f.name, rep.Lost(), silences(rep, []span{outage})[0], bar)
		if f.hitless && rep.Lost() > 0 {
			t.Errorf("%s: %d packets are lost", f.name, rep.Lost())
		}
		l.asItShould(f.name, "n1")
		if f.lost {
			other.run.Stop()
			other.configure()
			l.asItShould(f.name+", and others came back", "n1")
		} else {
			other.back(f.name, barServes, recovery, outage)
		}
		other.begin()
		l.requireMatrix(f.name, redAndBlue.allowed)
		l.must(l.DelPod(ctx, fresh))
	}
}

// TestOpenVSwitchDiskFull: the disk of Open vSwitch's database is full. Pods that run lose nothing, pods
// can go, and new ones are asked to come again; the node says why it takes none. When there is room it
// does, and is what it should be.
func TestOpenVSwitchDiskFull(t *testing.T) {
	long(t)
	l := up(t, netlab.Options{})
	ctx := t.Context()
	l.pods(quartet)
	leaves := l.pod("n1", "red/leaves")
	other := l.beside()
	o := l.OVS("n1")
	free, end, err := o.FillDisk(ctx)
	l.must(err)
	end = sync.OnceValue(end)
	t.Cleanup(func() { _ = end() })
	l.must(l.sync("n1"))
	l.waitMatrix("the database is elsewhere", 10*time.Second, redAndBlue.allowed)
	other.run.Stop()
	other.begin()
	l.eventually("the database takes nothing more", time.Minute, func() error { // its last page has room
		if _, err := o.VSCtl(ctx, "--timeout=2", "--no-wait", "set", "Open_vSwitch", ".", "external_ids:pad="+fmt.Sprint(time.Now().UnixNano())); err == nil {
			return errors.New("it did")
		}
		return nil
	})
	pods, err := l.Pods()
	l.must(err)
	run := l.runBetween(probe.Exactly(redAndBlue.allowed), slices.DeleteFunc(pods, func(p netlab.Pod) bool { return p.Name == "leaves" })...)
	const why = "free some space there"
	_, err = l.AddPod(ctx, "n1", "red", "comes", netlab.PodOptions{})
	if err == nil || !strings.Contains(err.Error(), why) {
		t.Errorf("ADD on a full disk: %v", err)
	}
	l.eventually("the node is not ready", 10*time.Second, func() error {
		if err := l.CNIStatus(ctx, "n1"); err == nil || !strings.Contains(err.Error(), why) {
			return fmt.Errorf("it says: %v", err)
		}
		return nil
	})
	l.must(l.DelPod(ctx, leaves))
	l.traffic(run, 20)
	rep := run.Stop()
	if err := rep.Err(); err != nil {
		t.Error(err)
	}
	l.costs("the disk of Open vSwitch's database is full", rep.Lost(), 0, "0 lost")
	other.untouched("the disk of Open vSwitch's database is full")
	l.must(free())
	l.eventually("a pod can be added", 10*time.Second, func() error {
		_, err := l.AddPod(ctx, "n1", "red", "comes", netlab.PodOptions{})
		return err
	})
	l.asItShould("there is room", "n1")
	l.must(end())
	l.must(l.sync("n1"))
	l.asItShould("the database is where it was", "n1")
	if after := l.foreignRows(); after != other.rows {
		t.Errorf("what is somebody else's was:\n%s\nand is:\n%s", other.rows, after)
	}
	l.requireMatrix("with a new pod", redAndBlue.allowed)
}

// cachedRuns are probes of what the kernel's datapath has cached: nothing of it begins anew.
type cachedRuns struct {
	*lab
	within, between *probe.Run
}

// runCached puts pods of n1 under the probe, and pods of both nodes.
func (l *lab) runCached() cachedRuns {
	l.t.Helper()
	o := probe.RunOptions{Protocols: []probe.Protocol{probe.UDP, probe.Ping, probe.Stream}}
	rule := probe.Exactly(redAndBlue.allowed)
	return cachedRuns{l, l.runAs(rule, o, l.get("red/a"), l.get("red/near"), l.get("blue/a")), l.runAs(rule, o, l.get("red/a"), l.get("red/b"), l.get("blue/b"))}
}

func (r cachedRuns) traffic(n int) {
	r.t.Helper()
	r.lab.traffic(r.within, n)
	r.lab.traffic(r.between, n)
}

// tunnelsAnew is how long Open vSwitch before 3.1.1 takes at most, in each start, to make the tunnels' port of the
// datapath anew, which it takes for one that nobody needs (fixed by its commit 87249e136).
const tunnelsAnew = 200 * time.Millisecond

// costs ends the probes, and holds them to what a fault may cost.
func (r cachedRuns) costs(fault string) {
	r.t.Helper()
	within, between := r.within.Stop(), r.between.Stop()
	if err := within.Err(); err != nil {
		r.t.Errorf("%s: within the node: %v", fault, err)
	}
	for _, e := range between.ForbiddenEvents {
		r.t.Errorf("%s: forbidden: %s", fault, e)
	}
	gap := longestGap(between, 20*time.Millisecond)
	if gap > tunnelsAnew {
		r.t.Errorf("%s: between nodes nothing arrives for %s", fault, gap)
	}
	r.lab.costs(fault+", cached connections within the node", within.Lost(), longestGap(within, 20*time.Millisecond), "0 lost")
	r.lab.costs(fault+", cached connections between nodes", between.Lost(), gap, "200 ms; Open vSwitch from 3.1.1 on: 0 lost")
}

// restoring reports whether ovs-vswitchd of n1 was started to wait for its flows, and still does.
func (l *lab) restoring() bool {
	l.t.Helper()
	config, err := l.OVS("n1").VSCtl(l.t.Context(), "--no-wait", "get", "Open_vSwitch", ".", "other_config")
	l.must(err)
	return strings.Contains(config, "restor")
}

// forwards waits until n1 is ready and its ovs-vswitchd forwards by its flows.
func (l *lab) forwards() {
	l.t.Helper()
	l.eventually("ovs-vswitchd is back", 20*time.Second, func() error { return l.daemonServes("ovs-vswitchd") })
	l.eventually("the agent has brought the flows back", 20*time.Second, func() error {
		if err := l.Agent("n1").Ready(l.t.Context()); err != nil {
			return err
		}
		if l.restoring() {
			return errors.New("ovs-vswitchd waits for them")
		}
		return nil
	})
}

// supervised is a lab whose n1 runs Open vSwitch as its containers do.
func supervised(t *testing.T) *lab {
	t.Helper()
	l := up(t, netlab.Options{})
	l.pods(map[string][]string{"n1": {"red/a", "red/near", "blue/a"}, "n2": {"red/b", "blue/b"}})
	l.must(l.OVS("n1").Supervise(t.Context(), ovsScripts))
	l.waitMatrix("Open vSwitch is supervised", 20*time.Second, redAndBlue.allowed)
	l.forwards()
	return l
}

// TestOpenVSwitchReplaced: the pod of Open vSwitch is replaced, as by a rolling update of its DaemonSet. What the
// kernel's datapath has cached loses no packet within the node, and between nodes none that Open vSwitch does not lose
// itself. In userspace pods talk to each other within a second of when Open vSwitch serves again.
func TestOpenVSwitchReplaced(t *testing.T) {
	long(t)
	const away = 2 * time.Second // of what a kubelet takes between two pods the specs of a real cluster tell
	fault := fmt.Sprintf("the pod of Open vSwitch replaced, the next one %s after it", away)
	l := supervised(t)
	replace := func() {
		l.must(l.OVS("n1").Replace(t.Context(), ovsScripts, away))
		l.eventuallyEach(5*time.Millisecond, "ovs-vswitchd serves", 20*time.Second, func() error { return l.daemonServes("ovs-vswitchd") })
	}
	if onKernel {
		runs := l.runCached()
		runs.traffic(20)
		replace()
		l.forwards()
		runs.traffic(20)
		runs.costs(fault)
	} else {
		other := l.beside()
		run := l.run(probe.Exactly(redAndBlue.allowed))
		l.traffic(run, 20)
		outage := during("the pod of Open vSwitch is away", replace)
		l.forwards()
		l.traffic(run, 20)
		rep := run.Stop()
		l.judge(rep, []span{outage})
		other.back(fault, barServes, recovery, outage)
		l.costs(fault, rep.Lost(), silences(rep, []span{outage})[0], barServes)
	}
	l.asItShould("Open vSwitch is replaced", "n1")
	l.requireMatrix("Open vSwitch is replaced", redAndBlue.allowed)
}

// TestNodeWithoutOpenVSwitch: a node of the userspace datapath, whose own address is on a bridge, can be reached while
// Open vSwitch is away, however that ended, also by an agent that starts meanwhile: kubelet needs that to make the next
// pod of it. The next Open vSwitch makes all as it was.
func TestNodeWithoutOpenVSwitch(t *testing.T) {
	if onKernel {
		t.Skip("the kernel datapath leaves the node's address on its uplink")
	}
	l := supervised(t)
	ctx := t.Context()
	o := l.OVS("n1")
	n1, err := l.Node("n1")
	l.must(err)
	reachable := func() error {
		_, err := l.NodeExec(ctx, "n2", "ping", "-c", "1", "-W", "1", n1.VTEP.String())
		return err
	}
	before, err := l.NodeExec(ctx, "n1", "ip", "route", "show")
	l.must(err)
	for _, way := range []struct {
		how string
		end func() error
	}{
		{"asked to end", o.End},
		{"killed", func() error { return errors.Join(o.KillVswitchd(), o.KillOVSDB()) }},
		{"killed, and its agent starts anew", func() error {
			return errors.Join(o.KillVswitchd(), o.KillOVSDB(), l.Agent("n1").Kill(), l.Agent("n1").StartUnready(ctx))
		}},
	} {
		l.must(way.end())
		l.eventually("Open vSwitch is "+way.how+": the node can be reached", 20*time.Second, reachable)
		if err := l.Agent("n1").Ready(ctx); err == nil {
			t.Errorf("Open vSwitch is %s: the agent is ready", way.how)
		}
		l.must(o.Supervise(ctx, ovsScripts))
		l.forwards()
		l.waitMatrix("Open vSwitch is back", 20*time.Second, redAndBlue.allowed)
		l.must(reachable())
		l.asItShould("Open vSwitch is back", "n1")
		l.eventually("the node's routes are as they were", 10*time.Second, func() error {
			after, err := l.NodeExec(ctx, "n1", "ip", "route", "show")
			if err == nil && after != before {
				err = fmt.Errorf("%s\nbefore:\n%s", after, before)
			}
			return err
		})
	}
}

// TestOpenVSwitchGraceful: on the kernel datapath a crash of ovs-vswitchd, and its end on request, lose no packet of
// what the datapath has cached: it goes on until the flows are back. Where no agent brings flows, ovs-vswitchd forwards
// by what it has after ten seconds; where it has a port to add, at once.
func TestOpenVSwitchGraceful(t *testing.T) {
	if !onKernel {
		t.Skip("the userspace datapath ends with ovs-vswitchd: `make test-kernel` runs it")
	}
	const times = 2
	l := supervised(t)
	ctx := t.Context()
	o := l.OVS("n1")
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		runs := l.runCached()
		for range times {
			runs.traffic(20)
			l.must(o.Crash(ctx, "ovs-vswitchd", sig))
			l.forwards()
		}
		runs.traffic(20)
		runs.costs(fmt.Sprintf("ovs-vswitchd ended %d times by %s in its container", times, sig))
	}
	l.must(l.Agent("n1").Kill())
	l.must(o.Crash(ctx, "ovs-vswitchd", syscall.SIGKILL))
	for _, waits := range []bool{true, false} {
		l.eventually(fmt.Sprintf("no agent is there: ovs-vswitchd waits for flows: %t", waits), 20*time.Second, func() error {
			if l.restoring() != waits {
				return errors.New("it is otherwise")
			}
			return nil
		})
	}
	l.must(o.KillVswitchd())
	_, err := o.VSCtl(ctx, "--no-wait", "add-port", "br0", "stray0", "--", "set", "Interface", "stray0", "type=internal")
	l.must(err)
	l.must(o.Supervise(ctx, ovsScripts))
	if l.restoring() {
		t.Error("with a port that is new to the datapath it waits for flows")
	}
	l.must(l.Agent("n1").Start(ctx))
	l.forwards()
	l.forwards()
	l.asItShould("the agent is back", "n1")
	l.requireMatrix("the agent is back", redAndBlue.allowed)
}
