package e2e

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/probe"
)

// killable builds agent and plugin with their fault points, once, where nobody has built them beside the others. Without
// Go there is no folder.
var killable = sync.OnceValues(func() (dir string, err error) {
	if dir, err = filepath.Abs(filepath.Join(binDir, "faultpoints")); err != nil {
		return "", err
	}
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if _, err := exec.LookPath("go"); err != nil {
		return "", nil
	}
	dir = filepath.Join(scratch, "faultpoints")
	for _, name := range []string{"k8s-ovs-agent", "k8s-ovs"} {
		args := []string{"build", "-tags", "faultpoints", "-o", filepath.Join(dir, name)}
		if raceEnabled {
			args = append(args, "-race")
		}
		cmd := exec.Command("go", append(args, programs[name])...)
		cmd.Dir = "../.."
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("build %s: %w\n%s", name, err, out)
		}
	}
	return dir, nil
})

// faults kills programs of a node at their fault points (package faultpoint).
type faults struct {
	*lab
	// c is nil where no API server tells of policies, services and limits.
	c *cluster
	// node is the one whose agent is killed.
	node string
	// bin has programs of which those that can be killed are told by folders: the agents of nodes by
	// those of their names in agents.
	bin, agents, plugin string
	// whole are the options of a pod of which all is made that can be.
	whole   netlab.PodOptions
	probe   *probe.Run
	others  *others
	reached int
	spans   []span
}

// newFaults makes a lab whose agents and plugin can be killed, those of n1 first.
func newFaults(t *testing.T, o netlab.Options) *faults {
	t.Parallel()
	built, err := killable()
	if err != nil {
		t.Fatal(err)
	}
	if built == "" {
		t.Skip("no Go here to build programs with their fault points: `make test` has it")
	}
	own, err := filepath.Abs(binDir)
	if err != nil {
		t.Fatal(err)
	}
	f := &faults{node: "n1", bin: t.TempDir(), agents: t.TempDir(), plugin: filepath.Join(t.TempDir(), "plugin")}
	for name := range programs {
		if err := os.Symlink(filepath.Join(own, name), filepath.Join(f.bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	// The lab's first arguments for an agent are the name of its node.
	for name, folder := range map[string]string{"k8s-ovs-agent": f.agents + `/"$2"`, "k8s-ovs": f.plugin} {
		script := fmt.Sprintf("#!/bin/sh\nmkdir -p %s\nFAULTPOINTS=%s exec %s \"$@\"\n", folder, folder, filepath.Join(built, name))
		err := errors.Join(os.Remove(filepath.Join(f.bin, name)), os.WriteFile(filepath.Join(f.bin, name), []byte(script), 0o755))
		if err != nil {
			t.Fatal(err)
		}
	}
	o.BinDir = f.bin
	f.lab = upAlso(t, o)
	return f
}

// whole is a pod of which all is made that can be where no API server tells of limits.
var whole = netlab.PodOptions{IngressBandwidth: 5e6, EgressBandwidth: 5e6}

// upFaults makes such a lab; red/a and red/b run on n1, and red/c elsewhere, under the probe.
func upFaults(t *testing.T) *faults {
	f := newFaults(t, netlab.Options{})
	f.whole = whole
	f.pods(map[string][]string{"n1": {"red/a", "red/b"}, "n2": {"red/c"}})
	f.watch()
	return f
}

// upFaultsInCluster makes one that is a Kubernetes cluster: policies select all these pods, and a whole one
// besides, which only they may reach; services lead to them, and a whole one has limits.
func upFaultsInCluster(t *testing.T) *faults {
	long(t)
	f := newFaults(t, netlab.Options{Bare: true})
	f.c = f.policed(f.bin)
	f.whole = netlab.PodOptions{Labels: map[string]string{"app": "web"}, Annotations: map[string]string{ingressRate: "5M", egressRate: "5M"}}
	near := []netlab.Pod{f.c.labelled("n1", "red/a", "near"), f.c.labelled("n1", "red/b", "near"), f.c.labelled("n2", "red/c", "near")}
	f.c.labelled("n1", "pink/far", "far")
	f.c.manyServices(5, near)
	f.c.policy("red/near", `{podSelector: {matchLabels: {app: near}}, policyTypes: [Ingress, Egress], ingress: [{from: [{namespaceSelector: {}}]}], egress: [{}]}`)
	f.c.policy("red/web", onlyApp("near"))
	// A pod that is selected says that policies are in force.
	probed, err := f.AddPod(t.Context(), "n1", "red", "probed", f.whole)
	f.must(err)
	f.eventuallyEach(policyLooks, "policies in force", policyTime, func() error {
		if f.pings("pink/far", probed) {
			return errors.New("pink/far reaches red/probed")
		}
		return nil
	})
	f.must(f.DelPod(t.Context(), probed))
	f.watch()
	return f
}

// watch puts the pods of red under the probe, and somebody else's machines on another bridge.
func (f *faults) watch() {
	f.t.Helper()
	f.others = f.beside()
	f.probe = f.runBetween(probe.Exactly(everybody), f.get("red/a"), f.get("red/b"), f.get("red/c"))
	f.traffic(f.probe, 20)
}

// inScenes runs a test on a node that has pods only, and on one that has policies, services and limits, too: these
// make steps of their own.
func inScenes(t *testing.T, test func(t *testing.T, f *faults)) {
	t.Parallel()
	t.Run("pods", func(t *testing.T) { test(t, upFaults(t)) })
	t.Run("policies, services and limits", func(t *testing.T) { test(t, upFaultsInCluster(t)) })
}

// pings reports whether a pod reaches another one.
func (f *faults) pings(from string, to netlab.Pod) bool {
	f.t.Helper()
	_, err := f.PodExec(f.t.Context(), f.get(from), "ping", "-c1", "-W1", f.address(to).String())
	return err == nil
}

// address is that of a pod, though nobody lived to tell it.
func (f *faults) address(p netlab.Pod) netip.Addr {
	f.t.Helper()
	out, err := f.PodExec(f.t.Context(), p, "ip", "-4", "-o", "addr", "show", "dev", "eth0")
	f.must(err)
	for _, word := range strings.Fields(out) {
		if a, err := netip.ParsePrefix(word); err == nil {
			return a.Addr()
		}
	}
	f.t.Fatalf("%s has no address: %s", p, out)
	return netip.Addr{}
}

// told is the folder by which the agent is told.
func (f *faults) told() string { return filepath.Join(f.agents, f.node) }

// end ends the agent, and begin starts it, which may be killed meanwhile.
func (f *faults) end() {
	f.t.Helper()
	if f.c != nil { // by SIGTERM: what keeps it running would leave it
		f.must(f.Agent(f.node).Stop())
		return
	}
	f.must(f.Agent(f.node).Kill())
}

func (f *faults) begin() error {
	if f.c != nil {
		return f.Agent(f.node).StartInCluster(f.t.Context(), f.bin)
	}
	return f.Agent(f.node).Start(f.t.Context())
}

// again has the agent run that was killed; in a cluster somebody starts it who keeps it running.
func (f *faults) again() {
	f.t.Helper()
	if f.c != nil {
		f.eventually("the agent is back", time.Minute, func() error { return f.Agent(f.node).Ready(f.t.Context()) })
		return
	}
	f.eventually("the end of the agent", 10*time.Second, func() error {
		if f.Agent(f.node).Alive() {
			return errors.New("it lives")
		}
		return nil
	})
	f.must(f.begin())
}

// place is a fault point, to be killed at when the program comes by it for that time.
type place struct {
	name string
	time int
}

func (p place) String() string { return fmt.Sprintf("%s (%d)", p.name, p.time) }

// placeTimes is how often a program is killed at most at one place in one scenario.
const placeTimes = 3

// places are those that a program comes by while do runs, until it has come by last, or after
// has found the end of it where last is empty: nobody lists them by hand. Passes of the agent's loop have places of their own, which are the
// start's; CHECK and STATUS change nothing.
func (f *faults) places(folder, last string, do func(arm func()) (after func(killed bool))) (all []place) {
	f.t.Helper()
	seen := filepath.Join(folder, "seen")
	after := do(func() { _ = os.Remove(seen) })
	var data []byte
	f.eventually(last, 20*time.Second, func() (err error) {
		if data, err = os.ReadFile(seen); last == "" {
			return nil
		} else if err == nil && !strings.Contains(string(data), last+"\n") {
			return errors.New("it was not come by")
		}
		return err
	})
	if after(false); last == "" {
		var err error
		data, err = os.ReadFile(seen)
		f.must(err)
	}
	times := map[string]int{}
	for name := range strings.Lines(string(data)) {
		times[strings.TrimSpace(name)]++
	}
	for _, name := range slices.Sorted(maps.Keys(times)) {
		kind, _, _ := strings.Cut(name, ": ")
		if kind == "CHECK" || kind == "STATUS" || kind == "pass" && !strings.HasPrefix(last, "pass") {
			continue
		}
		for n := range min(times[name], placeTimes) {
			all = append(all, place{name, n + 1})
		}
	}
	if testing.Short() { // some of each kind
		all = slices.DeleteFunc(slices.Clone(all), func(p place) bool { return slices.Index(all, p)%6 != 1 })
	}
	return all
}

// arm has the program that comes by p die there.
func (f *faults) arm(folder string, p place) {
	f.t.Helper()
	_ = os.Remove(filepath.Join(folder, "died"))
	beside := filepath.Join(folder, "arming")
	f.must(os.WriteFile(beside, fmt.Appendf(nil, "%d %s", p.time, p.name), 0o600))
	f.must(os.Rename(beside, filepath.Join(folder, "armed")))
}

// died reports whether somebody did, or does within the time.
func (f *faults) died(folder string, within time.Duration) bool {
	for end := time.Now().Add(within); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(folder, "died")); err == nil {
			return true
		}
		if time.Now().After(end) {
			_ = os.Remove(filepath.Join(folder, "armed"))
			return false
		}
	}
}

// each kills the agent, once at each place, while do runs from where it calls arm, starts it
// again, and has after bring the node to where do began; then the node is what it should be.
func (f *faults) each(all []place, do func(arm func()) (after func(killed bool))) {
	f.t.Helper()
	for _, p := range all {
		began := time.Now()
		after := do(func() { f.arm(f.told(), p) })
		killed := f.died(f.told(), 3*time.Second)
		if killed {
			f.reached++
			f.again()
		} else {
			f.t.Logf("%s was not come by this time", p)
		}
		after(killed)
		f.asItShould("killed after "+p.String(), f.node)
		f.t.Logf("killed: %t after %s: %s", killed, p, time.Since(began).Round(time.Millisecond))
		f.spans = append(f.spans, span{name: p.String(), began: began, done: time.Now()})
		if f.t.Failed() {
			f.t.FailNow()
		}
	}
}

// finish holds the probe to what it is about, and the test to have killed somebody: killed says whom
// and when, for the table of what faults cost.
func (f *faults) finish(killed string, of int) {
	f.t.Helper()
	if f.reached*2 < of || of == 0 {
		f.t.Errorf("killed at %d of %d places", f.reached, of)
	}
	f.traffic(f.probe, 20)
	rep := f.probe.Stop()
	for _, e := range rep.LostEvents {
		for _, s := range f.spans {
			if e.Sent.After(s.began) && e.Sent.Before(s.done) {
				f.t.Logf("lost while killed after %s: %v", s.name, e)
			}
		}
	}
	if err := rep.Err(); err != nil {
		f.t.Errorf("pods beside: %v", err)
	}
	f.t.Logf("killed at %d of %d places", f.reached, of)
	if f.c != nil {
		killed += ", with policies, services and limits"
	}
	f.costs(fmt.Sprintf("%s: %d places", killed, f.reached), rep.Lost(), longestGap(rep, 20*time.Millisecond), "0 lost, nothing left")
	f.others.untouched(killed)
}

// TestKilledInADD: the agent is killed after every step of an ADD. What the runtime does
// then (DEL, or GC alone) leaves nothing; until then CHECK succeeds only for what is
// wholly attached.
func TestKilledInADD(t *testing.T) {
	inScenes(t, func(t *testing.T, f *faults) {
		n := 0
		add := func(arm func()) (after func(killed bool)) {
			n++
			p, err := f.NewSandbox(f.node, "red", fmt.Sprintf("new%d", n), f.whole)
			f.must(err)
			arm()
			_, err = f.CNIAdd(t.Context(), p)
			return func(killed bool) {
				if err != nil && !killed {
					t.Errorf("ADD: %v", err)
				}
				f.half(p)
				f.gone(p, n%2 == 0)
			}
		}
		all := f.places(f.told(), "ADD: answered", add)
		f.each(all, add)
		f.finish("agent killed after every step of ADD", len(all))
	})
}

// half fails the test where CHECK says that a pod is attached, and the pod reaches nobody, or whom policies keep
// from it.
func (f *faults) half(p netlab.Pod) {
	f.t.Helper()
	if f.CNICheck(f.t.Context(), p) != nil {
		return
	}
	if _, err := f.PodExec(f.t.Context(), p, "ping", "-c1", "-W2", f.get("red/a").IP.String()); err != nil {
		f.t.Errorf("CHECK of %s succeeds, and it reaches nobody: %v", p, err)
	}
	if f.c != nil && f.pings("pink/far", p) {
		f.t.Errorf("CHECK of %s succeeds, and pink/far reaches it, which no policy allows", p)
	}
}

// gone does what a runtime does with a pod that was not attached, or is to go: DEL until it
// succeeds; or its sandbox goes, and GC comes later.
func (f *faults) gone(p netlab.Pod, collect bool) {
	f.t.Helper()
	ctx := f.t.Context()
	if !collect {
		f.eventually("DEL", 20*time.Second, func() error { return f.CNIDel(ctx, p) })
		if f.CNICheck(ctx, p) == nil {
			f.t.Errorf("CHECK of %s succeeds after DEL", p)
		}
	}
	f.must(f.ForgetPod(p))
	if collect {
		stay, err := f.Pods()
		f.must(err)
		f.eventually("GC", 20*time.Second, func() error { return f.CNIGC(ctx, f.node, stay) })
	}
}

// TestKilledInDEL: the agent is killed after every step of a DEL, and of what follows it.
// Nothing is left, whether DEL comes again or not.
func TestKilledInDEL(t *testing.T) {
	long(t)
	inScenes(t, func(t *testing.T, f *faults) {
		n := 0
		del := func(arm func()) (after func(killed bool)) {
			n++
			p, err := f.AddPod(t.Context(), f.node, "red", fmt.Sprintf("goes%d", n), f.whole)
			f.must(err)
			arm()
			err = f.CNIDel(t.Context(), p)
			return func(killed bool) {
				if err != nil && !killed {
					t.Errorf("DEL: %v", err)
				}
				if err == nil { // nobody asks again
					f.must(f.ForgetPod(p))
					return
				}
				f.gone(p, n%2 == 0)
			}
		}
		all := f.places(f.told(), "attach: after DEL: addresses", del)
		f.each(all, del)
		f.finish("agent killed after every step of DEL", len(all))
	})
}

// TestKilledInChange: the agent is killed after every step of a tenant change. The change
// comes to its end all the same, and the flows are those of its outcome.
func TestKilledInChange(t *testing.T) {
	long(t)
	inScenes(t, func(t *testing.T, f *faults) {
		f.pods(map[string][]string{"n1": {"blue/a"}, "n2": {"blue/b"}})
		is, joined := tenants{"red": "1", "blue": "2", "pink": "1"}, false
		change := func(arm func()) (after func(killed bool)) {
			joined = !joined
			arm()
			done := make(chan error, 1)
			go func() { done <- f.join(joined) }()
			return func(bool) {
				if err := <-done; err != nil {
					t.Errorf("blue joins red: %t: %v", joined, err)
				}
				now := is
				if joined {
					now = is.with("blue", "1")
				}
				when := fmt.Sprintf("blue is with red: %t", joined)
				if f.c != nil { // nobody says when it is over
					f.waitMatrix(when, 20*time.Second, now.allowed)
				} else {
					f.requireMatrix(when, now.allowed)
				}
			}
		}
		all := f.places(f.told(), "", change)
		f.each(all, change)
		f.finish("agent killed after every step of a tenant change", len(all))
	})
}

// join has blue join the network of red, or leave it.
func (f *faults) join(joins bool) error {
	if f.c != nil {
		n := f.c.api.Object("namespaces", "", "blue").(*corev1.Namespace).DeepCopy()
		n.Annotations = map[string]string{topology.NetworkAnnotation: policyNetworks["blue"]}
		if joins {
			n.Annotations[topology.NetworkAnnotation] = policyNetworks["red"]
		}
		return f.c.api.Put(n)
	}
	args := []string{"isolate", "blue"}
	if joins {
		args = []string{"join", "blue", "red"}
	}
	_, err := f.Netns(f.t.Context(), args...)
	return err
}

// configured is the last step of a start.
const configured = "pass: the CNI configuration"

// TestKilledInStart: the agent is killed after every step of its start; the next start
// finds its way.
func TestKilledInStart(t *testing.T) {
	long(t)
	inScenes(t, func(t *testing.T, f *faults) {
		start := func(arm func()) func(bool) {
			f.end()
			arm()
			_ = f.begin() // it may be killed
			return func(bool) {}
		}
		all := f.places(f.told(), configured, start)
		f.each(all, start)
		f.finish("agent killed after every step of its start", len(all))
	})
}

// TestKilledInFirstStart: the agent of a node on which none has ever run is killed after every step of its start: there
// is no bridge before it, no file and no record. The next start makes all that there should be, and pods of the node reach
// others.
func TestKilledInFirstStart(t *testing.T) {
	long(t)
	f := upFaults(t)
	ctx, records := t.Context(), f.etcd()
	f.node = ""
	start := func(arm func()) func(bool) {
		if f.node != "" {
			n, err := f.Node(f.node)
			f.must(err)
			f.must(f.RemoveNode(n.Name))
			_, err = records.Delete(ctx, networkKey+"/subnets/"+n.VTEP.String())
			f.must(err)
		}
		n, err := f.NewNode(ctx)
		f.must(err)
		f.node = n.Name
		f.must(os.MkdirAll(f.told(), 0o700))
		arm()
		_ = f.begin() // it may be killed
		return func(bool) {
			if p := f.pod(f.node, "red/new"); !f.pings("red/a", p) {
				t.Errorf("red/a does not reach %s", p)
			}
		}
	}
	all := f.places(filepath.Join(f.agents, "n3"), configured, start)
	f.each(all, start)
	f.finish("agent killed after every step of the first start of a node", len(all))
}

// TestPluginKilled: the plugin is killed after it has asked, and after it has read the
// answer, which the runtime never sees.
func TestPluginKilled(t *testing.T) {
	long(t)
	f := upFaults(t)
	ctx := t.Context()
	n := 0
	both := func(arm func()) (after func(killed bool)) {
		n++
		p, err := f.NewSandbox(f.node, "red", fmt.Sprintf("new%d", n), f.whole)
		f.must(err)
		arm()
		_, added := f.CNIAdd(ctx, p)
		deleted := f.CNIDel(ctx, p)
		return func(killed bool) {
			if ok := added == nil && deleted == nil; ok == killed {
				t.Errorf("killed: %t; ADD: %v; DEL: %v", killed, added, deleted)
			}
			f.gone(p, n%2 == 0)
		}
	}
	all := f.places(f.plugin, "DEL: answer read", both)
	for _, at := range all {
		after := both(func() { f.arm(f.plugin, at) })
		killed := f.died(f.plugin, 0)
		if killed {
			f.reached++
		}
		after(killed)
		f.asItShould("the plugin is killed after "+at.String(), f.node)
	}
	f.finish("CNI plugin killed in ADD and DEL", len(all))
}
