package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

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
	if err := run.Stop().Err(); err != nil {
		t.Error(err)
	}
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
