package cli

import (
	"testing"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// follows makes a record as the controller does for a Node.
func (l *lab) follows(host string, i int) {
	l.t.Helper()
	lead, err := l.store.Campaign(l.t.Context(), l.name, "setup", 0)
	if err != nil {
		l.t.Fatal(err)
	}
	n := topology.Node{Host: host, HostIP: address(i), UID: "u-" + host, Assign: true}
	if _, err := lead.PutNode(l.t.Context(), n.HostIP.String(), n, 0); err != nil {
		l.t.Fatal(err)
	}
	if err := lead.Resign(); err != nil {
		l.t.Fatal(err)
	}
}

// TestConfirm: what an operator may say of a node's address, and what not.
func TestConfirm(t *testing.T) {
	l := newLab(t, topology.DefaultConfig(), 1) // n1 registered itself
	l.netns("nodes", "confirm", "n2", "192.0.2.9").expect(t, ExitFailed, nil, []string{"a host that registers itself needs no confirmation"})
	l.follows("node-a", 11)
	l.follows("node-b", 12)
	l.netns("nodes", "confirm", "node-a", "192.0.2.9").expect(t, ExitDone, []string{"192.0.2.9 is confirmed as an address of node node-a: its place in the network is there as soon as"}, nil)
	n, err := l.store.Node(t.Context(), address(9))
	if err != nil || n.Value.Host != "node-a" || n.Value.Status == nil || n.Value.Status.By != author() {
		t.Errorf("record %+v, %+v, %v; want it by %s", n.Value, n.Value.Status, err, author())
	}
	l.netns("nodes").expect(t, ExitDone, []string{"no subnet: confirmed as an address of node node-a by " + author()}, nil)
	l.netns("nodes", "confirm", "node-a", "192.0.2.9", "-o", "json").expect(t, ExitDone, []string{`"result": "nothingToDo"`, `"address": "192.0.2.9"`}, nil)
	l.netns("nodes", "confirm", "node-a", "192.0.2.11").expect(t, ExitDone, []string{"has its place in the network at 192.0.2.11 already"}, nil)
	l.netns("nodes", "confirm", "node-a", "192.0.2.12").expect(t, ExitFailed, nil, []string{"kubectl delete node node-b"})
	l.netns("nodes", "confirm", "node-a", "192.0.2.1").expect(t, ExitFailed, nil, []string{`the address of host "n1"`, "--force"})
	l.netns("nodes", "confirm", "node-c", "192.0.2.77").expect(t, ExitFailed, nil, []string{`there is no node "node-c"; did you mean "node-a"`})
	l.netns("nodes", "confirm", "node-c", "192.0.2.1", "--force", "-o", "yaml").expect(t, ExitDone, []string{"result: confirmed\n"}, nil)
	l.netns("nodes", "confirm", "node-a", "192.0.2.9", "--withdraw").expect(t, ExitDone, []string{"no longer confirmed"}, nil)
	l.netns("nodes", "confirm", "node-a", "192.0.2.9", "--withdraw").expect(t, ExitDone, []string{"nothing to do"}, nil)
	for _, wrong := range [][]string{{"node-a", "here"}, {"node-a"}, {"node-a", "192.0.2.9", "--force", "--withdraw"}} {
		if o := l.netns(append([]string{"nodes", "confirm"}, wrong...)...); o.code != ExitUsage {
			t.Errorf("%q: exit code %d, want %d: %s", wrong, o.code, ExitUsage, o.err)
		}
	}
}
