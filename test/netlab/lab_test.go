package netlab

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

// bare brings up a lab of underlay and Open vSwitch only.
func bare(t *testing.T, suffix string, nodes int) *Lab {
	t.Helper()
	l, err := Up(t.Context(), Options{Name: labName(suffix), Nodes: nodes, Bare: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Down(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func labName(suffix string) string { return fmt.Sprintf("labtest-%d-%s", os.Getpid(), suffix) }

// nothingLeft fails the test if anything of the lab is still there.
func nothingLeft(t *testing.T, l *Lab) {
	t.Helper()
	if left := ns.List(l.Name() + "-"); len(left) > 0 {
		t.Errorf("namespaces left: %v", left)
	}
	for _, p := range l.marked() {
		if p.Alive() {
			t.Errorf("process %d left", p.PID)
		}
	}
	if _, err := os.Stat(l.Dir()); !os.IsNotExist(err) {
		t.Errorf("folder %s left (%v)", l.Dir(), err)
	}
}

func TestBareLab(t *testing.T) {
	ctx := t.Context()
	l := bare(t, "a", 2)
	other := bare(t, "b", 1) // has the same addresses and must not meet the first

	for _, to := range []string{"198.18.0.2", controllerIP.String(), Gateway.String(), Outside.String()} {
		if out, err := l.NodeExec(ctx, "n1", "ping", "-c1", "-w10", to); err != nil {
			t.Errorf("n1 does not reach %s: %v\n%s", to, err, out)
		}
	}
	if _, err := other.NodeExec(ctx, "n1", "ping", "-c1", "-W1", "198.18.0.2"); err == nil {
		t.Error("the second lab's n1 reaches a node that it does not have")
	}

	got, err := l.Status()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(Root, l.Name())
	want := Status{
		Name: l.Name(),
		Etcd: EtcdStatus{Endpoints: []string{}},
		Nodes: []Node{
			{"n1", l.Name() + "-n1", netip.MustParseAddr("198.18.0.1"), dir + "/n1/ovs"},
			{"n2", l.Name() + "-n2", netip.MustParseAddr("198.18.0.2"), dir + "/n2/ovs"},
		},
		Pods: []PodStatus{},
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
	if err := other.Down(); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, other)
	if _, err := l.NodeExec(ctx, "n1", "ping", "-c1", "-w10", "198.18.0.2"); err != nil {
		t.Errorf("after the other lab's end: %v", err)
	}
}

func TestStatusJSON(t *testing.T) {
	data, err := json.Marshal(Status{
		Name:  "netlab",
		Etcd:  EtcdStatus{Endpoints: []string{"http://127.0.0.1:2379"}, Prefix: EtcdPrefix},
		Nodes: []Node{{"n1", "netlab-n1", netip.MustParseAddr("198.18.0.1"), "/run/netlab/netlab/n1/ovs"}},
		Pods:  []PodStatus{{"a", "p", "n1", netip.MustParseAddr("172.11.0.2"), "netlab-a-p"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"name":"netlab","etcd":{"endpoints":["http://127.0.0.1:2379"],"prefix":"/k8s.ovs.com/ovs/network"},` +
		`"nodes":[{"name":"n1","netns":"netlab-n1","vtep":"198.18.0.1","ovsRunDir":"/run/netlab/netlab/n1/ovs"}],` +
		`"pods":[{"namespace":"a","name":"p","node":"n1","ip":"172.11.0.2","netns":"netlab-a-p"}]}`
	if diff := cmp.Diff(want, string(data)); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
}

func TestOVSDaemons(t *testing.T) {
	ctx := t.Context()
	l := bare(t, "ovs", 1)
	o := l.OVS("n1")
	if _, err := o.VSCtl(ctx, "add-br", "br9", "--", "set", "bridge", "br9", "datapath_type=netdev", "fail_mode=secure"); err != nil {
		t.Fatal(err)
	}
	if _, err := o.OFCtl(ctx, "add-flow", "br9", "priority=7,actions=drop"); err != nil {
		t.Fatal(err)
	}
	if err := o.StartVswitchd(ctx); err == nil || !strings.Contains(err.Error(), "runs already") {
		t.Errorf("second ovs-vswitchd: %v", err)
	}
	if err := o.KillVswitchd(); err != nil {
		t.Fatal(err)
	}
	if l.Process("n1/ovs-vswitchd").Alive() {
		t.Fatal("ovs-vswitchd lives after KillVswitchd")
	}
	if err := o.StartVswitchd(ctx); err != nil {
		t.Fatal(err)
	}
	// The bridge is in the database, its flows were in the process.
	if _, err := o.VSCtl(ctx, "br-exists", "br9"); err != nil {
		t.Error(err)
	}
	out, err := o.OFCtl(ctx, "dump-flows", "br9")
	if err != nil || strings.Contains(out, "priority=7") {
		t.Errorf("flows after a restart: %v\n%s", err, out)
	}
	if err := o.KillOVSDB(); err != nil {
		t.Fatal(err)
	}
	if _, err := o.VSCtl(ctx, "--timeout=1", "show"); err == nil {
		t.Error("ovs-vsctl works without ovsdb-server")
	}
	if err := o.StartOVSDB(ctx); err != nil {
		t.Fatal(err)
	}
	if out, err := o.AppCtl(ctx, "dpif/show"); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestCutAndNodes(t *testing.T) {
	ctx := t.Context()
	l := bare(t, "cut", 1)
	if n, err := l.AddNode(ctx); err != nil || n.Name != "n2" {
		t.Fatalf("AddNode = %v, %v", n, err)
	}
	ping := func() bool {
		_, err := l.NodeExec(ctx, "n1", "ping", "-c1", "-W1", "198.18.0.2")
		return err == nil
	}
	for _, step := range []struct {
		name string
		do   func() error
		want bool
	}{
		{"new", func() error { return nil }, true},
		{"cut", func() error { return l.Cut(ctx, "n2") }, false},
		{"healed", func() error { return l.Heal(ctx, "n2") }, true},
		{"unplugged", func() error { return l.SetCarrier(ctx, "n2", false) }, false},
		{"plugged", func() error { return l.SetCarrier(ctx, "n2", true) }, true},
		{"removed", func() error { return l.RemoveNode("n2") }, false},
	} {
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		got := ping()
		// A link that has just come up may lose the first.
		for end := time.Now().Add(10 * time.Second); step.want && !got && time.Now().Before(end); {
			got = ping()
		}
		if got != step.want {
			t.Errorf("%s: n1 reaches n2: %v, want %v", step.name, got, step.want)
		}
	}
	if err := l.Cut(ctx, "n7"); err == nil || !strings.Contains(err.Error(), "n7") {
		t.Errorf("cut a node that is not there: %v", err)
	}
	netns, err := l.NewStranger(ctx, "stranger", netip.MustParseAddr("198.18.0.240"))
	if err != nil {
		t.Fatal(err)
	}
	if out, err := l.execIn(ctx, netns, []string{"ping", "-c1", "-w10", "198.18.0.1"}); err != nil {
		t.Errorf("the stranger does not reach n1: %v\n%s", err, out)
	}
}

func TestUpAndDown(t *testing.T) {
	ctx := t.Context()
	l := bare(t, "ud", 1)
	if _, err := Up(ctx, Options{Name: l.Name(), Bare: true}); err == nil || !strings.Contains(err.Error(), "up already") {
		t.Errorf("second up: %v", err)
	}
	if got, err := Open(l.Name()); err != nil || got.id != l.id {
		t.Errorf("Open = %v, %v", got, err)
	}
	// A program that someone left running in the lab, and one that is not the lab's.
	if _, err := l.NodeExec(ctx, "n1", "sh", "-c", "sleep 1000 >/dev/null 2>&1 &"); err != nil {
		t.Fatal(err)
	}
	if err := l.Process("n1/ovs-vswitchd").Suspend(); err != nil { // must not keep it from ending
		t.Fatal(err)
	}
	for range 2 {
		if err := Down(l.Name()); err != nil {
			t.Fatal(err)
		}
		nothingLeft(t, l)
	}
	if _, err := Open(l.Name()); err == nil || !strings.Contains(err.Error(), "not up") {
		t.Errorf("Open of a lab that is down: %v", err)
	}
}

func TestUpCleansUpAfterItself(t *testing.T) {
	name := labName("fail")
	taken := name + "-n2" // someone else's, which must survive
	if err := ns.Create(taken); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Delete(taken) })
	_, err := Up(t.Context(), Options{Name: name, Nodes: 2, Bare: true})
	if err == nil || !strings.Contains(err.Error(), taken) {
		t.Errorf("up with a namespace taken: %v; want an error that names it", err)
	}
	if left := ns.List(name + "-"); !cmp.Equal(left, []string{taken}) {
		t.Errorf("namespaces left: %v, want the foreign one only", left)
	}
	if _, err := os.Stat(dirOf(name)); !os.IsNotExist(err) {
		t.Errorf("folder left: %v", err)
	}

	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	name = labName("late")
	if _, err := Up(ctx, Options{Name: name, Nodes: 2, Bare: true}); err == nil {
		t.Error("up with a context that ended gave no error")
	}
	if left := ns.List(name + "-"); len(left) > 0 {
		t.Errorf("namespaces left: %v", left)
	}
}

// TestComingAndGoing: labs that come while others go do not trip over what all
// of them share.
func TestComingAndGoing(t *testing.T) {
	var g errgroup.Group
	for i := range 4 {
		g.Go(func() error {
			for range 25 {
				unlock, err := lockRoot()
				if err != nil {
					return err
				}
				dir := dirOf(labName(fmt.Sprint("cg", i)))
				err = os.Mkdir(dir, 0o755)
				unlock()
				if err != nil {
					return err
				}
				if unlock, err = lockRoot(); err != nil {
					return err
				}
				err = os.Remove(dir)
				removeRoot()
				unlock()
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
}

// TestRunSaysWhy: a program that ends at once is an error with the end of its log.
func TestRunSaysWhy(t *testing.T) {
	l := bare(t, "why", 1)
	err := l.run(t.Context(), command{
		name: "n1/agent", netns: l.nodeNetns("n1"),
		args: []string{"sh", "-c", "echo the disk is full; exit 3"},
		log:  filepath.Join(l.Dir(), "log", "x.log"),
	}, 10*time.Second, func() (bool, error) { return false, nil })
	if err == nil || !strings.Contains(err.Error(), "the disk is full") || !strings.Contains(err.Error(), "n1/agent") {
		t.Errorf("error %v; want the program's name and its last words", err)
	}
}

func TestOptions(t *testing.T) {
	for _, o := range []Options{
		{Name: "UPPER"}, {Name: "a/b"}, {Name: "-a"}, {Name: strings.Repeat("a", 33)}, {Nodes: -1}, {Nodes: 201}, {Mode: "both"},
	} {
		if _, err := o.withDefaults(); err == nil {
			t.Errorf("options %+v were taken", o)
		}
	}
	for in, want := range map[string][2]string{"a/b": {"a", "b"}, "a": {}, "/b": {}, "a/": {}, "a/b/c": {}} {
		namespace, name, err := ParsePodName(in)
		if got := [2]string{namespace, name}; got != want && err == nil || (err != nil) != (want == [2]string{}) {
			t.Errorf("ParsePodName(%q) = %v, %v", in, got, err)
		}
	}
}
