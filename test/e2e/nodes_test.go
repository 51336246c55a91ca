package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/test/attacks"
	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/probe"
)

// TestAttackNodeGone: a peer whose record goes while the agent is down is
// no peer any more when it is back: its VXLAN is dropped (ancestors' failure 31).
func TestAttackNodeGone(t *testing.T) {
	l := up(t, netlab.Options{Nodes: 3})
	l.pods(map[string][]string{"n1": {"blue/a"}, "n2": {"blue/b"}, "n3": {"blue/c"}})
	e := l.listen()
	victim, partner := l.get("blue/a"), l.get("blue/b")
	vni, n1 := l.netID("blue"), l.vtep("n1")
	n2, n3 := ns.Path(l.Name()+"-n2"), ns.Path(l.Name()+"-n3")
	l.vxlanFrom(n2, n1, vni, partner, victim, "as a peer")
	if _, err := e.ports["blue/a"].WaitFor("as a peer", patience); err != nil {
		t.Fatalf("what a peer sends does not arrive, so this test sees nothing: %v", err)
	}
	l.must(l.Agent("n1").Kill())
	l.must(l.Agent("n2").Kill()) // else it would register again
	_, err := l.etcd().Delete(t.Context(), networkKey+"/subnets/198.18.0.2")
	l.must(err)
	l.must(l.Agent("n1").Start(t.Context()))
	// An agent may begin with the records it has on disk; etcd's follow at once.
	l.eventually("the node that left is forgotten", 5*time.Second, func() error {
		for _, f := range l.flows("n1") {
			if strings.Contains(f, "198.18.0.2") || strings.Contains(f, "0xc6120002") {
				return fmt.Errorf("there is the flow %s", f)
			}
		}
		return nil
	})
	l.attack(attacks.Node, "VXLAN after the node's record is gone", func() (int, int) {
		l.vxlanFrom(n2, n1, vni, partner, victim, "as nobody;")
		l.vxlanFrom(n3, n1, vni, l.get("blue/c"), victim, "as another peer")
		if _, err := e.ports["blue/a"].WaitFor("as another peer", patience); err != nil {
			t.Fatalf("the peer that stays is not heard: %v", err)
		}
		return 1, e.delivered([]forgery{{mark: "as nobody;"}})
	})
}

// TestNodeComesAndGoes: a node that joins reaches all; when it and its record
// are gone, the others' flows are what they were.
func TestNodeComesAndGoes(t *testing.T) {
	l := up(t, netlab.Options{})
	l.pods(quartet)
	before := l.flows("n1")
	n, err := l.AddNode(t.Context())
	l.must(err)
	l.pod(n.Name, "red/c")
	l.pod(n.Name, "blue/c")
	l.waitMatrix("with a third node", 5*time.Second, redAndBlue.allowed)
	l.must(l.RemoveNode(n.Name))
	_, err = l.etcd().Delete(t.Context(), networkKey+"/subnets/"+n.VTEP.String())
	l.must(err)
	l.waitFlows("after the third node", "n1", before, 10*time.Second)
	l.requireMatrix("after the third node", redAndBlue.allowed)
}

// TestRecordDeletedWithPods: somebody deletes the record of a namespace that has
// pods. They keep nothing of what they had; the namespace gets a new netID and
// works on by itself (ancestors' failures 12 and 13).
func TestRecordDeletedWithPods(t *testing.T) {
	l := up(t, netlab.Options{})
	l.pods(map[string][]string{"n1": {"red/a", "blue/a", "green/a"}, "n2": {"red/b", "blue/b", "green/b"}})
	l.netns("join", "red", "green")
	joined := tenants{"red": "g", "green": "g", "blue": "b"}
	l.requireMatrix("joined", joined.allowed)
	old := l.netID("red")
	run := l.run(probe.Exactly(joined.allowed))
	l.traffic(run, 20)
	alone := joined.with("red", "r")
	run.SetRule(probe.Rule{
		Must: func(a, b probe.Endpoint) bool { // blue and green notice nothing
			return a.Namespace != "red" && b.Namespace != "red" && joined.allowed(a, b)
		},
		May: joined.allowed,
	})
	c := l.etcd()
	_, err := c.Delete(t.Context(), networkKey+"/netnamespaces/red")
	l.must(err)
	l.eventually("red has a new record", 15*time.Second, func() error {
		r, err := l.tryRecord(c, "red")
		if err != nil {
			return err
		}
		if r.Effective == nil {
			return fmt.Errorf("it has no netID yet")
		}
		if *r.Effective == old {
			t.Fatalf("red has its old netID %d again: it inherits what its namesake had", old)
		}
		return nil
	})
	l.waitMatrix("with a new record", 10*time.Second, alone.allowed)
	if err := run.Stop().Err(); err != nil {
		t.Errorf("while the record was away: %v", err)
	}
}

// readdress gives a node another address in the underlay, as its operator
// would after changing it in DHCP.
func (l *lab) readdress(node, from, to string) {
	l.t.Helper()
	out, err := ns.Output(l.t.Context(), l.Name()+"-"+node, "-o", "-4", "addr", "show", "to", from)
	l.must(err)
	f := strings.Fields(out)
	if len(f) < 4 {
		l.t.Fatalf("%s does not have %s: %q", node, from, out)
	}
	link := f[1]
	l.must(ns.IP(l.t.Context(), l.Name()+"-"+node,
		fmt.Sprintf("addr del %s/24 dev %s", from, link),
		fmt.Sprintf("addr add %s/24 dev %s", to, link),
		fmt.Sprintf("route replace default via %s dev %s", netlab.Gateway, link)))
}

// TestNodesSwapAddresses: two nodes exchange their addresses and keep their
// subnets; all pods reach each other as before (ancestors' failure 30).
func TestNodesSwapAddresses(t *testing.T) {
	l := up(t, netlab.Options{Nodes: 3})
	l.pods(map[string][]string{"n1": {"red/a", "blue/a"}, "n2": {"red/b", "blue/b"}, "n3": {"red/c", "blue/c"}})
	l.requireMatrix("at first", redAndBlue.allowed)
	c := l.etcd()
	ctx := t.Context()
	type node struct {
		Host, HostIP, Subnet, Identity string
		Assign                         bool
	}
	addresses := map[string]string{"n1": "198.18.0.1", "n2": "198.18.0.2"}
	swapped := map[string]string{"n1": "198.18.0.2", "n2": "198.18.0.1"}
	var records []node
	for n, address := range addresses {
		l.must(l.Agent(n).Kill())
		key := networkKey + "/subnets/" + address
		got, err := c.Get(ctx, key)
		l.must(err)
		var r node
		l.must(json.Unmarshal(got.Kvs[0].Value, &r))
		_, err = c.Delete(ctx, key)
		l.must(err)
		r.HostIP = swapped[n]
		records = append(records, r)
	}
	for n := range addresses {
		l.readdress(n, addresses[n], swapped[n])
		l.must(l.SetNodeAddress(n, netip.MustParseAddr(swapped[n])))
	}
	slices.SortFunc(records, func(a, b node) int { return strings.Compare(a.Host, b.Host) })
	for _, r := range records {
		data, err := json.Marshal(r)
		l.must(err)
		_, err = c.Put(ctx, networkKey+"/subnets/"+r.HostIP, string(data))
		l.must(err)
	}
	for n := range addresses {
		l.must(l.Agent(n).Start(ctx))
	}
	l.waitMatrix("with swapped addresses", 15*time.Second, redAndBlue.allowed)
}
