package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

// tool runs bin/netlab as a person does.
func tool(t *testing.T, args ...string) (stdout string, err error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(binDir, "netlab"), args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err = cmd.Run(); err != nil {
		err = fmt.Errorf("netlab %s: %w: %s", strings.Join(args, " "), err, errs.String())
	}
	return out.String(), err
}

// nothingLeft fails the test if a lab of that name has left something.
func nothingLeft(t *testing.T, name string) {
	t.Helper()
	if left := ns.List(name + "-"); len(left) > 0 {
		t.Errorf("namespaces left: %v", left)
	}
	if slices.Contains(netlab.List(), name) {
		t.Errorf("lab %s is left", name)
	}
	procs, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		args, err := os.ReadFile(filepath.Join("/proc", p.Name(), "cmdline"))
		if err == nil && bytes.Contains(args, []byte("/"+name+"/")) {
			t.Errorf("process %s left: %q", p.Name(), args)
		}
	}
}

// TestTool: the lab by its command line, with the output that others read.
func TestTool(t *testing.T) {
	name := fmt.Sprintf("e2e-%d-tool", os.Getpid())
	t.Cleanup(func() {
		if err := netlab.Down(name); err != nil {
			t.Error(err)
		}
	})
	run := func(args ...string) string {
		t.Helper()
		out, err := tool(t, append([]string{"--name", name}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	run("up", "--nodes", "2")
	run("pod", "red/a", "--node", "n1", "--egress-bandwidth", "10M")
	run("pod", "red/b", "--node", "n2")
	var got netlab.Status
	if err := json.Unmarshal([]byte(run("status", "-o", "json")), &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Etcd.Endpoints) != 1 {
		t.Fatalf("status %+v: want one etcd endpoint", got)
	}
	dir := filepath.Join(netlab.Root, name)
	want := netlab.Status{
		Name: name,
		Etcd: netlab.EtcdStatus{Endpoints: got.Etcd.Endpoints, Prefix: "/k8s.ovs.com/ovs/network"},
		Nodes: []netlab.Node{
			{Name: "n1", Netns: name + "-n1", VTEP: netip.MustParseAddr("198.18.0.1"), OVSRunDir: dir + "/n1/ovs"},
			{Name: "n2", Netns: name + "-n2", VTEP: netip.MustParseAddr("198.18.0.2"), OVSRunDir: dir + "/n2/ovs"},
		},
		Pods: []netlab.PodStatus{
			{Namespace: "red", Name: "a", Node: "n1", Netns: name + "-red-a"},
			{Namespace: "red", Name: "b", Node: "n2", Netns: name + "-red-b"},
		},
	}
	ipB := got.Pods[1].IP
	for i := range got.Pods {
		if !netip.MustParsePrefix("172.11.0.0/16").Contains(got.Pods[i].IP) {
			t.Errorf("pod %+v has no address of the network", got.Pods[i])
		}
		got.Pods[i].IP = netip.Addr{}
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
	run("exec", "red/a", "--", "ping", "-c1", "-W3", ipB.String())
	if _, err := tool(t, "--name", name, "exec", "red/a", "--", "sh", "-c", "exit 7"); err == nil || !strings.Contains(err.Error(), "exit status 7") {
		t.Errorf("exec of a command that exits 7: %v", err)
	}
	if out := run("netns", "--", "list"); !strings.Contains(out, "red") {
		t.Errorf("netns list:\n%s", out)
	}
	if out := run("node", "exec", "n1", "--", "ovs-vsctl", "show"); !strings.Contains(out, "br0") {
		t.Errorf("ovs-vsctl show on n1:\n%s", out)
	}
	// Any client reaches etcd from the namespace that the lab was started in.
	if out, err := exec.Command("etcdctl", "version").CombinedOutput(); err == nil {
		cmd := exec.CommandContext(t.Context(), "etcdctl", "get", "--keys-only", "--prefix", want.Etcd.Prefix+"/")
		cmd.Env = os.Environ()
		for _, line := range strings.Split(strings.TrimSpace(run("env")), "\n") {
			cmd.Env = append(cmd.Env, strings.TrimPrefix(line, "export "))
		}
		keys, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(keys), "/netnamespaces/red") {
			t.Errorf("etcdctl (%s): %v\n%s", out, err, keys)
		}
	}
	restartUnderEnv(t, name, run)
	run("delete", "pod", "red/a", "red/b")
	if _, err := tool(t, "up", "--name", name); err == nil || !strings.Contains(err.Error(), "up already") {
		t.Errorf("second up: %v", err)
	}
	run("down")
	nothingLeft(t, name)
}

// restartUnderEnv: what `eval $(netlab env)` sets is for people's netns: a controller that
// is started in such a shell is the lab's as before, with etcd in it. While it is away netns
// says what is wrong.
func restartUnderEnv(t *testing.T, name string, run func(args ...string) string) {
	t.Helper()
	for line := range strings.Lines(run("env")) {
		key, value, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "export "), "=")
		if !ok {
			t.Fatalf("netlab env prints %q", line)
		}
		t.Setenv(key, value)
	}
	run("stop", "controller")
	_, err := tool(t, "--name", name, "netns", "--", "--etcd-dial-timeout", "500ms", "list")
	if err == nil || !strings.Contains(err.Error(), "k8s-ovs-controller with etcd in it, running behind that address") {
		t.Errorf("netns list without a controller: %v", err)
	}
	run("start", "controller")
	if out := run("netns", "--", "list"); !strings.Contains(out, "red") {
		t.Errorf("netns list after a restart:\n%s", out)
	}
}

// TestUpSaysWhy: an agent that cannot start is named, with the end of its log,
// and nothing is left.
func TestUpSaysWhy(t *testing.T) {
	name := fmt.Sprintf("e2e-%d-why", os.Getpid())
	_, err := netlab.Up(t.Context(), netlab.Options{Name: name, BinDir: binDir, AgentArgs: []string{"--no-such-flag"}})
	if err == nil || !strings.Contains(err.Error(), "/agent") || !strings.Contains(err.Error(), "no-such-flag") {
		t.Errorf("up with agents that cannot start: %v; want an error with the agent's own words", err)
	}
	nothingLeft(t, name)
}

// TestDemo: the demonstration succeeds, shows its tables, and leaves nothing.
func TestDemo(t *testing.T) {
	name := fmt.Sprintf("e2e-%d-demo", os.Getpid())
	t.Cleanup(func() { _ = netlab.Down(name) })
	out, err := tool(t, "demo", "--name", name)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{
		"netns join helloworld1 helloworld2", "netns isolate helloworld1", "netns global helloworld3",
		"1  helloworld1/a  ·  ✓  ✗  ✗  ✗  ✗\n", // at first: its own namespace
		"1  helloworld1/a  ·  ✓  ✓  ✓  ✗  ✗\n", // joined
		"1  helloworld1/a  ·  ✓  ✗  ✗  ✓  ✓\n", // helloworld3 is global
	} {
		if !strings.Contains(out, want) {
			t.Errorf("the demo does not show %q:\n%s", want, out)
		}
	}
	nothingLeft(t, name)
}

// TestDemoKept: --keep leaves the lab up and says what to do with it; another demo
// of the same name says that it is in the way.
func TestDemoKept(t *testing.T) {
	long(t)
	name := fmt.Sprintf("e2e-%d-kept", os.Getpid())
	t.Cleanup(func() {
		if err := netlab.Down(name); err != nil {
			t.Error(err)
		}
		nothingLeft(t, name)
	})
	out, err := tool(t, "demo", "--name", name, "--keep")
	if err != nil || !strings.Contains(out, "Try next") || !strings.Contains(out, "down") {
		t.Fatalf("%v\n%s", err, out)
	}
	if _, err := tool(t, "demo", "--name", name); err == nil || !strings.Contains(err.Error(), "is up") {
		t.Errorf("demo with a lab of its name up: %v", err)
	}
}
