package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/probe"
)

// backUp copies the data of the lab's etcd aside, as a backup of its machine does. start
// starts the controller with it again. The function that it returns kills the controller
// and puts the backup in the place of its data.
func (l *lab) backUp(start func() error) (restore func()) {
	l.t.Helper()
	saved := filepath.Join(l.t.TempDir(), "backup")
	l.must(l.Controller().Stop())
	l.must(os.CopyFS(saved, os.DirFS(l.DataDir())))
	l.must(start())
	return func() {
		l.t.Helper()
		l.must(l.Controller().Kill())
		l.must(os.RemoveAll(l.DataDir()))
		l.must(os.CopyFS(l.DataDir(), os.DirFS(saved)))
		l.must(filepath.WalkDir(l.DataDir(), func(path string, _ os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return os.Chmod(path, 0o700) // CopyFS opens them to all
		}))
	}
}

// nothingLost ends a run in which nothing may be lost or arrive in excess.
func (l *lab) nothingLost(run *probe.Run, fault string) {
	l.t.Helper()
	rep := run.Stop()
	if err := rep.Err(); err != nil {
		l.t.Error(err)
	}
	l.costs(fault, rep.Lost(), longestGap(rep, 20*time.Millisecond), "0 lost")
}

// waitPutBack waits until the controller says that it has put back what etcd had lost.
func (l *lab) waitPutBack() {
	l.t.Helper()
	l.eventually("what etcd had lost is put back", time.Minute, func() error {
		log, err := l.Controller().Log()
		l.must(err)
		if !strings.Contains(log, "the records are whole again") {
			return fmt.Errorf("the controller does not say so")
		}
		return nil
	})
}

// TestEtcdRestored: etcd is restored from a backup that knows nothing of a node, of a namespace and
// of a tenant change that came later. Nobody loses a packet to it, nobody reaches whom they should
// not, all that is put back, and a node that joins at that moment gets a subnet of its own.
func TestEtcdRestored(t *testing.T) {
	l := up(t, netlab.Options{})
	l.pods(quartet)
	restore := l.backUp(func() error { return l.StartController(t.Context()) })
	late, err := l.AddNode(t.Context())
	l.must(err)
	l.pods(map[string][]string{"n1": {"green/a", "late/a"}, late.Name: {"red/c", "blue/c", "green/c", "late/c"}})
	l.netns("join", "green", "red")
	joined := tenants{"red": "r", "green": "r", "blue": "b", "late": "l"}
	l.waitMatrix("before", 10*time.Second, joined.allowed)
	ids := map[string]uint32{}
	for name := range joined {
		ids[name] = l.netID(name)
	}
	run := l.run(probe.Exactly(joined.allowed))
	l.traffic(run, 20)
	restore()
	l.traffic(run, 20)
	l.must(l.StartController(t.Context()))
	another, err := l.AddNode(t.Context()) // it asks at once
	l.must(err)
	l.waitPutBack()
	l.traffic(run, 20)
	for name, id := range ids {
		if now := l.netID(name); now != id {
			t.Errorf("%s has netID %d, had %d", name, now, id)
		}
	}
	subnets := map[string]string{}
	for _, n := range []string{"n1", "n2", late.Name, another.Name} {
		l.eventually(n+" is as it should be", 30*time.Second, func() error { return l.Agent(n).Ready(t.Context()) })
		subnet := l.subnet(n)
		if other, twice := subnets[subnet]; twice {
			t.Errorf("%s and %s have the subnet %s", n, other, subnet)
		}
		subnets[subnet] = n
	}
	l.nothingLost(run, "etcd restored from a backup that lacks a node, a namespace and a tenant change")
	// What comes now is taken up by all, and the new node is one of them.
	l.pod(another.Name, "red/d")
	l.netns("isolate", "green")
	l.waitMatrix("after an isolation", 10*time.Second, joined.with("green", "g").allowed)
}

// subnet is that of a node's record.
func (l *lab) subnet(node string) string {
	l.t.Helper()
	got, err := l.etcd().Get(l.t.Context(), networkKey+"/subnets/"+l.vtep(node).String())
	l.must(err)
	var n topology.Node
	if len(got.Kvs) == 0 {
		l.t.Fatalf("%s has no record", node)
	}
	l.must(json.Unmarshal(got.Kvs[0].Value, &n))
	return n.Subnet.String()
}

// TestEtcdRestoredPolicies: policies that came after the backup stay in force throughout, in nodes whose agents
// go on and in one whose agent starts meanwhile; and the controller, which finds them in the API server, puts
// them back before nodes take what etcd has.
func TestEtcdRestoredPolicies(t *testing.T) {
	long(t)
	c := policed(t, netlab.Options{})
	c.policyPods()
	start := func() error { return c.StartInCluster(t.Context(), binDir) }
	restore := c.backUp(start)
	c.policy("red/web", onlyApp("near"))
	allowed := toWeb("red/near", "pink/near")
	c.waitMatrix("a policy", policyTime, allowed)
	run := c.run(probe.Exactly(allowed))
	c.traffic(run, 10)
	restore()
	c.must(start())
	c.restartAgentUnready("n1")
	c.waitPutBack()
	c.traffic(run, 10)
	c.judgeAll(run)
	c.policy("red/web", onlyApp("far"))
	c.waitMatrix("the policy changes", policyTime, toWeb("red/far", "pink/far"))
}

// TestLeaderSuspended: a leading controller is stopped (SIGSTOP) while somebody asks for something, for longer than
// its lease lasts; another leads and carries it out. Continued, with what was asked for still before it, it writes
// nothing: each write of a leader has the ID of its term beside it.
func TestLeaderSuspended(t *testing.T) {
	long(t)
	l := up(t, netlab.Options{})
	l.pods(quartet)
	ctx := t.Context()
	for _, name := range []string{"controller-2", "controller-3"} {
		l.must(l.StartExtraController(ctx, name, "--leader-ttl=3s"))
	}
	// The one with etcd in it steps back behind the others, which lead in turn.
	l.must(l.Controller().Stop())
	l.must(l.StartController(ctx))
	c := l.etcd()
	now := networkKey + "/history/now"
	term := func() (id string, revision int64) {
		got, err := c.Get(ctx, now)
		l.must(err)
		return string(got.Kvs[0].Value), got.Kvs[0].ModRevision
	}
	leads := func(name string) bool {
		log, err := l.Process(name).Log()
		l.must(err)
		return strings.Count(log, "msg=leading") > strings.Count(log, "msg=\"not leading")
	}
	var old string
	l.eventually("another controller leads", time.Minute, func() error {
		for _, name := range []string{"controller-2", "controller-3"} {
			if leads(name) {
				old = name
				return nil
			}
		}
		return fmt.Errorf("none of them does")
	})
	// Red and blue change; within each of them all arrives throughout.
	run := l.run(probe.Rule{Must: redAndBlue.allowed, May: everybody})
	l.traffic(run, 20)
	l.netns("join", "red", "blue")
	l.waitMatrix("joined", 10*time.Second, everybody)
	before, rev := term()
	l.must(l.Process(old).Suspend())
	isolated := make(chan error, 1)
	go func() {
		_, err := l.Netns(ctx, "isolate", "red", "--timeout=60s")
		isolated <- err
	}()
	l.eventually("another term", time.Minute, func() error {
		if id, _ := term(); id == before {
			return fmt.Errorf("it is the same")
		}
		return nil
	})
	l.must(<-isolated)
	l.waitMatrix("isolated by the next leader", 10*time.Second, redAndBlue.allowed)
	run.SetRule(probe.Exactly(redAndBlue.allowed)) // the old leader's change was another: it brings nobody together again
	l.must(l.Process(old).Resume())
	l.eventually("the old leader notices", 30*time.Second, func() error {
		if leads(old) {
			return fmt.Errorf("it does not")
		}
		return nil
	})
	l.traffic(run, 20)
	l.nothingLost(run, "a leading controller suspended past its lease, and continued while another leads")
	l.netns("join", "red", "blue")
	l.netns("isolate", "red")
	l.waitMatrix("isolated again", 10*time.Second, redAndBlue.allowed)
	// All that was ever written of the term, and by whom.
	watched, cancel := context.WithCancel(ctx)
	defer cancel()
	_, newest := term()
	ended := false
	for r := range c.Watch(watched, now, clientv3.WithRev(rev)) {
		l.must(r.Err())
		for _, e := range r.Events {
			switch id := string(e.Kv.Value); {
			case id != before:
				ended = true
			case ended:
				t.Errorf("revision %d was written in the term that had ended", e.Kv.ModRevision)
			}
			if e.Kv.ModRevision >= newest {
				cancel()
			}
		}
	}
	if !ended {
		t.Error("there was one term only")
	}
}

// TestNodeRestartsAlone: a node whose agent and both daemons of Open vSwitch start anew while there is neither controller nor etcd
// serves the pods that it has, and new ones of namespaces that it knows; one of another namespace is refused, and why is said.
func TestNodeRestartsAlone(t *testing.T) {
	long(t)
	l := up(t, netlab.Options{})
	l.pods(map[string][]string{"n1": {"red/a", "blue/a"}, "n2": {"red/b", "red/c", "blue/b"}})
	run := l.runBetween(probe.Exactly(redAndBlue.allowed), l.get("red/b"), l.get("red/c"), l.get("blue/b"))
	own := l.runBetween(probe.Exactly(redAndBlue.allowed), l.get("red/a"), l.get("red/b"), l.get("blue/a"), l.get("blue/b"))
	l.traffic(run, 10)
	l.traffic(own, 10)
	l.must(l.Controller().Kill())
	ctx := t.Context()
	outage := during("the node is away", func() {
		l.must(l.Agent("n1").Kill())
		l.must(l.OVS("n1").KillVswitchd())
		l.must(l.OVS("n1").KillOVSDB())
		l.must(l.OVS("n1").StartOVSDB(ctx))
		l.must(l.OVS("n1").StartVswitchd(ctx))
		l.must(l.Agent("n1").StartUnready(ctx))
	})
	l.traffic(own, 20)
	rep := own.Stop()
	// An agent that starts waits for etcd before it goes by its copy of the records, which may name a peer that is gone; Open
	// vSwitch has no flows until then. The rest is for a busy machine: a whole start of an agent.
	const patience = 3 * time.Second
	l.judgeIn(rep, []span{outage}, patience+2*recovery)
	l.costs("a node starts anew without controller and etcd: its own pods", rep.Lost(), silences(rep, []span{outage})[0],
		fmt.Sprintf("%s from when its agent has started, which waits %s for etcd", patience+time.Second, patience))
	l.waitMatrix("after the start of the node", 30*time.Second, redAndBlue.allowed)
	l.eventually("ADD of a known namespace", 30*time.Second, func() error {
		_, err := l.AddPod(ctx, "n1", "red", "new", netlab.PodOptions{})
		return err
	})
	l.requireMatrix("with a new pod", redAndBlue.allowed)
	_, err := l.AddPod(ctx, "n1", "unknown", "a", netlab.PodOptions{})
	l.says("ADD of an unknown namespace", err, "namespace unknown has no netID")
	l.must(l.StartController(ctx))
	l.eventually("ADD of that namespace", 30*time.Second, func() error {
		_, err := l.AddPod(ctx, "n1", "unknown", "a", netlab.PodOptions{})
		return err
	})
	l.nothingLost(run, "a node starts anew without controller and etcd: pods of another node")
}
