package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/probe"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/world"
)

// TestSandboxesGone: a sandbox that goes before its DEL leaves nothing, and neither does one whose runtime never calls DEL:
// GC removes what is left of it, or the agent, which looks at what is really there. Pods beside lose nothing.
func TestSandboxesGone(t *testing.T) {
	long(t)
	l := up(t, netlab.Options{})
	ctx := t.Context()
	l.pods(map[string][]string{"n1": {"red/stays", "red/near"}, "n2": {"red/far"}})
	stay, err := l.Pods()
	l.must(err)
	for _, c := range []struct {
		fault string
		told  func(gone netlab.Pod) // what the runtime does then
	}{
		{"network namespace deleted before DEL", func(gone netlab.Pod) { l.must(l.CNIDel(ctx, gone)) }},
		{"DEL never called, then GC", func(netlab.Pod) { l.must(l.CNIGC(ctx, "n1", stay)) }},
		{"neither DEL nor GC called", func(netlab.Pod) {}},
	} {
		run := l.runBetween(probe.Exactly(everybody), stay...)
		l.traffic(run, 20)
		var gone []netlab.Pod
		for i := range 3 {
			p, err := l.AddPod(ctx, "n1", "red", fmt.Sprint("gone", i), whole)
			l.must(err)
			l.must(l.DeleteSandbox(p))
			c.told(p)
			gone = append(gone, p)
		}
		left := world.Node{Lab: l.Lab, Name: "n1", Pods: slices.DeleteFunc(slices.Clone(stay), func(p netlab.Pod) bool { return p.Node != "n1" })}
		if err := left.Await(ctx, time.Minute); err != nil {
			t.Errorf("%s: %v", c.fault, err)
		}
		for _, p := range gone {
			if l.CNICheck(ctx, p) == nil {
				t.Errorf("%s: CHECK of %s, which is gone, succeeds", c.fault, p)
			}
			l.must(l.CNIDel(ctx, p)) // late, and no error
			l.must(l.ForgetPod(p))
		}
		l.traffic(run, 20)
		l.nothingLost(run, c.fault+": pods beside")
		l.asItShould(c.fault, "n1")
	}
}

// TestAddressesLost: the file of addresses is deleted, while the agent runs and while it does
// not. It is there again, nobody's address is given to another, and no packet is lost.
func TestAddressesLost(t *testing.T) {
	long(t)
	l := up(t, netlab.Options{Nodes: 1})
	ctx := t.Context()
	l.pods(map[string][]string{"n1": {"red/a", "red/b"}})
	run := l.run(probe.Exactly(everybody))
	l.traffic(run, 20)
	file := filepath.Join(l.StateDir("n1"), "addresses.json")
	taken := map[netip.Addr]string{}
	distinct := func() {
		t.Helper()
		pods, err := l.Pods()
		l.must(err)
		for _, p := range pods {
			if other := taken[p.IP]; other != "" && other != p.String() {
				t.Errorf("%s and %s have %s", p, other, p.IP)
			}
			taken[p.IP] = p.String()
		}
	}
	distinct()
	l.must(os.Remove(file))
	l.asItShould("the file is deleted while the agent runs", "n1")
	l.pod("n1", "red/c")
	distinct()
	l.must(l.Agent("n1").Kill())
	l.must(os.Remove(file))
	l.must(l.Agent("n1").Start(ctx))
	l.asItShould("the file is deleted while the agent is away", "n1")
	l.pod("n1", "red/d")
	distinct()
	l.traffic(run, 20)
	l.nothingLost(run, "the file of addresses deleted with pods running, while the agent runs and while it does not")
}

// TestStateWiped: all files of the agent's state are deleted while it runs, and the bundle that the
// node was given is not kept either; then its connection to etcd is lost. Nobody loses a packet, the
// node comes to etcd again, and the files are back.
func TestStateWiped(t *testing.T) {
	l := up(t, netlab.Options{Nodes: 1})
	ctx := t.Context()
	l.pods(map[string][]string{"n1": {"red/a", "red/b"}})
	run := l.run(probe.Exactly(everybody))
	l.traffic(run, 20)
	files, err := filepath.Glob(filepath.Join(l.StateDir("n1"), "*"))
	l.must(err)
	l.must(l.LoseBundle("n1"))
	for _, file := range files {
		l.must(os.RemoveAll(file))
	}
	l.must(l.Controller().Kill())
	l.must(l.StartController(ctx))
	l.eventually("a pod of a new namespace", 60*time.Second, func() error {
		_, err := l.AddPod(ctx, "n1", "new", "a", netlab.PodOptions{})
		return err
	})
	l.eventually("the files are back", 60*time.Second, func() error {
		for _, file := range files {
			if _, err := os.Stat(file); err != nil {
				return err
			}
		}
		return nil
	})
	if err := run.Stop().Err(); err != nil {
		t.Error(err)
	}
}

// TestReboot: a node boots again, with all that was on its disk and no pod. Ports and leases of
// the boot before are reclaimed and nothing answers at their addresses; the runtime is not
// told that pods can have a network before they can. Pods of other nodes lose nothing.
func TestReboot(t *testing.T) {
	long(t)
	l := up(t, netlab.Options{Nodes: 3})
	ctx := t.Context()
	dir := t.TempDir()
	conf := filepath.Join(dir, "10-k8s-ovs.conflist")
	l.must(l.SetAgentArgs("n1", "--cni-conf-dir", dir))
	l.must(l.Agent("n1").Restart(ctx))
	l.pods(map[string][]string{"n1": {"red/a", "red/b"}, "n2": {"red/c", "red/d"}, "n3": {"red/e"}})
	limited, err := l.AddPod(ctx, "n1", "red", "limited", whole)
	l.must(err)
	if _, err := os.Stat(conf); err != nil {
		t.Fatal(err)
	}
	before := []netlab.Pod{l.get("red/a"), l.get("red/b"), limited}
	run := l.runBetween(probe.Exactly(everybody), l.get("red/c"), l.get("red/d"), l.get("red/e"))
	l.traffic(run, 20)
	l.must(l.PowerOff(ctx, "n1"))
	l.must(l.Agent("n1").StartUnready(ctx))
	if _, err := os.Stat(conf); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the agent has started and cannot serve, and the configuration of the boot before is there: %v", err)
	}
	l.must(l.OVS("n1").StartOVSDB(ctx))
	l.must(l.OVS("n1").StartVswitchd(ctx))
	l.eventually("the node is ready", 30*time.Second, func() error {
		_, offered := os.Stat(conf)
		if err := l.CNIStatus(ctx, "n1"); err != nil {
			if offered == nil {
				t.Errorf("pods are said to have a network, and STATUS says: %v", err)
			}
			return err
		}
		return offered
	})
	l.traffic(run, 20)
	l.nothingLost(run, "a node boots again, its pods gone: pods of other nodes")
	l.asItShould("after the boot", "n1")
	for _, p := range before {
		if _, err := l.PodExec(context.WithoutCancel(ctx), l.get("red/c"), "ping", "-c1", "-W1", p.IP.String()); err == nil {
			t.Errorf("%s of the boot before still answers at %s", p, p.IP)
		}
	}
	for i := range before {
		p := l.pod("n1", fmt.Sprintf("red/new%d", i))
		for _, old := range before {
			if p.IP == old.IP {
				t.Errorf("%s has the address that %s had before the boot", p, old)
			}
		}
	}
	l.requireMatrix("after the boot", everybody)
	l.asItShould("with new pods", "n1")
}
