package e2e

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/probe"
)

// TestUpgradeToIdentities: a network without Kubernetes whose etcd is at http:// gets
// identities as docs/identities.md says, and no pod loses a packet.
func TestUpgradeToIdentities(t *testing.T) {
	long(t)
	l := up(t, netlab.Options{Insecure: true})
	l.pods(quartet)
	run := l.run(probe.Exactly(redAndBlue.allowed))
	l.traffic(run, 20)
	before := l.record("red")
	l.must(l.Controller().Stop())
	l.must(l.UseIdentities())
	l.must(l.StartController(t.Context()))
	l.traffic(run, 20) // nobody has access yet
	for _, node := range []string{"n1", "n2"} {
		l.must(l.Agent(node).Restart(t.Context()))
		l.traffic(run, 10)
	}
	if err := run.Stop().Err(); err != nil {
		t.Errorf("the upgrade: %v", err)
	}
	if after := l.record("red"); after.NetID != before.NetID {
		t.Errorf("red has netID %v, had %v", after.NetID, before.NetID)
	}
	l.pod("n1", "green/a") // asked for by its node, and given by the leader
	l.netns("join", "green", "red")
	l.reaches("green/a", "red/b")
}

// TestOperatorEnv: the operator's identity does what netns does, and no more.
func TestOperatorEnv(t *testing.T) {
	l := up(t, netlab.Options{Nodes: 1})
	l.pods(map[string][]string{"n1": {"red/a", "blue/b"}})
	l.netns("join", "red", "blue")
	l.reaches("red/a", "blue/b")
	st, err := l.Status()
	l.must(err)
	var bundle string
	for _, v := range l.Env(st.Etcd) {
		if path, ok := strings.CutPrefix(v, "K8S_OVS_ETCD_BUNDLE="); ok {
			bundle = path
		}
	}
	info, err := os.Stat(bundle)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the operator's bundle: %v, %v", info, err)
	}
	if _, err := l.Admin(t.Context(), "bundle", "operator", "netlab", "--revoke"); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Netns(t.Context(), "list"); err == nil || !strings.Contains(err.Error(), "etcd refuses access") {
		t.Errorf("an operator who was revoked: %v", errors.Unwrap(err))
	}
}
