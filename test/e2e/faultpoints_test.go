package e2e

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/probe"
)

// killable builds agent and plugin with their fault points, once.
var killable = sync.OnceValues(func() (dir string, err error) {
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

// faults kills programs of n1 at their fault points (package faultpoint).
type faults struct {
	*lab
	// agent and plugin are the folders by which they are told.
	agent, plugin string
	probe         *probe.Run
	reached       int
	spans         []span
}

// upFaults makes a lab whose n1 has an agent and a plugin that can be killed; red/a and
// red/b run there, and red/c elsewhere, under the probe.
func upFaults(t *testing.T) *faults {
	t.Parallel()
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("no Go here to build programs with their fault points: `make test` has it")
	}
	built, err := killable()
	if err != nil {
		t.Fatal(err)
	}
	own, err := filepath.Abs(binDir)
	if err != nil {
		t.Fatal(err)
	}
	f := &faults{agent: filepath.Join(t.TempDir(), "n1"), plugin: filepath.Join(t.TempDir(), "plugin")}
	bin := t.TempDir()
	for name := range programs {
		if err := os.Symlink(filepath.Join(own, name), filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	// The lab's first arguments for an agent are the name of its node.
	for name, folder := range map[string]string{"k8s-ovs-agent": filepath.Dir(f.agent) + `/"$2"`, "k8s-ovs": f.plugin} {
		script := fmt.Sprintf("#!/bin/sh\nmkdir -p %s\nFAULTPOINTS=%s exec %s \"$@\"\n", folder, folder, filepath.Join(built, name))
		err := errors.Join(os.Remove(filepath.Join(bin, name)), os.WriteFile(filepath.Join(bin, name), []byte(script), 0o755))
		if err != nil {
			t.Fatal(err)
		}
	}
	f.lab = upAlso(t, netlab.Options{BinDir: bin})
	f.pods(map[string][]string{"n1": {"red/a", "red/b"}, "n2": {"red/c"}})
	f.probe = f.run(probe.Exactly(everybody))
	f.traffic(f.probe, 20)
	return f
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

// each kills the agent of n1, once at each place, while do runs from where it calls arm,
// starts it again, and has after bring the node to where do began; then the node is what it
// should be.
func (f *faults) each(all []place, do func(arm func()) (after func(killed bool))) {
	f.t.Helper()
	for _, p := range all {
		began := time.Now()
		after := do(func() { f.arm(f.agent, p) })
		killed := f.died(f.agent, 3*time.Second)
		if killed {
			f.reached++
			f.eventually("the end of the agent", 10*time.Second, func() error {
				if f.Agent("n1").Alive() {
					return errors.New("it lives")
				}
				return nil
			})
			f.must(f.Agent("n1").Start(f.t.Context()))
		} else {
			f.t.Logf("%s was not come by this time", p)
		}
		after(killed)
		f.asItShould("killed after "+p.String(), "n1")
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
	f.costs(fmt.Sprintf("%s: %d places", killed, f.reached), rep.Lost(), longestGap(rep, 20*time.Millisecond), "0 lost, nothing left")
}

// whole is a pod of which all is made that can be.
var whole = netlab.PodOptions{IngressBandwidth: 5e6, EgressBandwidth: 5e6}

// TestKilledInADD: the agent is killed after every step of an ADD. What the runtime does
// then (DEL, or GC alone) leaves nothing; until then CHECK succeeds only for what is
// wholly attached.
func TestKilledInADD(t *testing.T) {
	f := upFaults(t)
	ctx := t.Context()
	n := 0
	add := func(arm func()) (after func(killed bool)) {
		n++
		p, err := f.NewSandbox("n1", "red", fmt.Sprintf("new%d", n), whole)
		f.must(err)
		arm()
		_, err = f.CNIAdd(ctx, p)
		return func(killed bool) {
			if err != nil && !killed {
				t.Errorf("ADD: %v", err)
			}
			f.half(p)
			f.gone(p, n%2 == 0)
		}
	}
	all := f.places(f.agent, "ADD: answered", add)
	f.each(all, add)
	f.finish("agent killed after every step of ADD", len(all))
}

// half fails the test where CHECK says that a pod is attached and the pod reaches nobody.
func (f *faults) half(p netlab.Pod) {
	f.t.Helper()
	if f.CNICheck(f.t.Context(), p) != nil {
		return
	}
	if _, err := f.PodExec(f.t.Context(), p, "ping", "-c1", "-W2", f.get("red/a").IP.String()); err != nil {
		f.t.Errorf("CHECK of %s succeeds, and it reaches nobody: %v", p, err)
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
		f.eventually("GC", 20*time.Second, func() error { return f.CNIGC(ctx, "n1", stay) })
	}
}

// TestKilledInDEL: the agent is killed after every step of a DEL, and of what follows it.
// Nothing is left, whether DEL comes again or not.
func TestKilledInDEL(t *testing.T) {
	long(t)
	f := upFaults(t)
	ctx := t.Context()
	n := 0
	del := func(arm func()) (after func(killed bool)) {
		n++
		p, err := f.AddPod(ctx, "n1", "red", fmt.Sprintf("goes%d", n), whole)
		f.must(err)
		arm()
		err = f.CNIDel(ctx, p)
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
	all := f.places(f.agent, "attach: after DEL: addresses", del)
	f.each(all, del)
	f.finish("agent killed after every step of DEL", len(all))
}

// TestKilledInChange: the agent is killed after every step of a tenant change. The change
// comes to its end all the same, and the flows are those of its outcome.
func TestKilledInChange(t *testing.T) {
	long(t)
	f := upFaults(t)
	f.pods(map[string][]string{"n1": {"blue/a"}, "n2": {"blue/b"}})
	is, joined := tenants{"red": "1", "blue": "2"}, false
	change := func(arm func()) (after func(killed bool)) {
		args := []string{"join", "blue", "red"}
		if joined {
			args = []string{"isolate", "blue"}
		}
		joined = !joined
		arm()
		done := make(chan error, 1)
		go func() {
			_, err := f.Netns(f.t.Context(), args...)
			done <- err
		}()
		return func(bool) {
			if err := <-done; err != nil {
				t.Errorf("netns %s: %v", strings.Join(args, " "), err)
			}
			now := is
			if joined {
				now = is.with("blue", "1")
			}
			f.requireMatrix("after "+strings.Join(args, " "), now.allowed)
		}
	}
	all := f.places(f.agent, "", change)
	f.each(all, change)
	f.finish("agent killed after every step of a tenant change", len(all))
}

// TestKilledInStart: the agent is killed after every step of its start; the next start
// finds its way.
func TestKilledInStart(t *testing.T) {
	long(t)
	f := upFaults(t)
	ctx := t.Context()
	start := func(arm func()) func(bool) {
		f.must(f.Agent("n1").Kill())
		arm()
		_ = f.Agent("n1").Start(ctx) // it may be killed
		return func(bool) {}
	}
	all := f.places(f.agent, "pass: the CNI configuration", start)
	f.each(all, start)
	f.finish("agent killed after every step of its start", len(all))
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
		p, err := f.NewSandbox("n1", "red", fmt.Sprintf("new%d", n), whole)
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
		f.asItShould("the plugin is killed after "+at.String(), "n1")
	}
	f.finish("CNI plugin killed in ADD and DEL", len(all))
}
