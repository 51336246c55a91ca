package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/probe"
)

// trio are the pods of these tests, two of red and one of blue on each of three nodes.
var trio = map[string][]string{"n1": {"red/a", "red/a2", "blue/a"}, "n2": {"red/b", "red/b2", "blue/b"}, "n3": {"red/c", "red/c2", "blue/c"}}

// readdressable starts a Kubernetes cluster of three nodes with these pods, whose agents take the address of the
// default route.
func readdressable(t *testing.T) *cluster {
	t.Helper()
	c := policed(t, netlab.Options{Nodes: 3, AgentArgs: []string{"--node-ip="}})
	c.pods(trio)
	c.waitMatrix("at first", policyTime, withinTenants)
	return c
}

// awayFrom is whose packets must arrive while these nodes have lost their way to the others.
func awayFrom(nodes ...string) rule {
	return func(from, to probe.Endpoint) bool {
		lost := slices.Contains(nodes, from.Node) || slices.Contains(nodes, to.Node)
		return withinTenants(from, to) && (from.Node == to.Node || !lost)
	}
}

// isNow gives a node another address while all of it runs, and tells the API server, as its operator and kubelet do.
func (c *cluster) isNow(node, from, to string) {
	c.t.Helper()
	c.readdress(node, from, to)
	c.must(c.SetNodeAddress(node, netip.MustParseAddr(to)))
	c.putNode(node, to)
}

// putNode makes a Node with this address, or makes that its address.
func (c *cluster) putNode(node, address string) {
	c.t.Helper()
	c.must(c.api.Put(&corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: node, UID: types.UID("uid-" + node)},
		Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: address}}},
	}))
}

// waitStarted waits until a node's agent has started more than was times.
func (c *cluster) waitStarted(node string, was int) {
	c.t.Helper()
	c.eventually(node+": another agent", time.Minute, func() error {
		if c.starts(node) <= was {
			return errors.New("none has started")
		}
		return nil
	})
}

// starts is how often a node's agent has started.
func (c *cluster) starts(node string) int {
	c.t.Helper()
	log, err := c.Agent(node).Log()
	c.must(err)
	return strings.Count(log, `msg="k8s-ovs-agent starts"`)
}

// waitUnready waits until a node's agent is not ready for that reason.
func (c *cluster) waitUnready(node, reason string) {
	c.t.Helper()
	c.eventually(node+" says why it is not ready", time.Minute, func() error {
		if err := c.Agent(node).Ready(c.t.Context()); err == nil || !strings.Contains(err.Error(), reason) {
			return fmt.Errorf("it says: %v; want %q", err, reason)
		}
		return nil
	})
}

// confirmed has an operator say that a node has that address, as soon as that may be said.
func (c *cluster) confirmed(node, address string) {
	c.t.Helper()
	c.eventually(node+" is confirmed at "+address, time.Minute, func() error {
		out, err := c.atController("nodes", "confirm", node, address)
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

// waitForgotten waits until no flow of a node is about that address. The way there, which the userspace datapath was
// told, stays: to take it back would cost tunnel packets, and no flow leads to it.
func (l *lab) waitForgotten(node string, address netip.Addr) {
	l.t.Helper()
	b := address.As4()
	of := regexp.MustCompile(fmt.Sprintf(`\b(%s|0x%02x%02x%02x%02x)\b`, regexp.QuoteMeta(address.String()), b[0], b[1], b[2], b[3]))
	l.eventually(node+" has forgotten "+address.String(), time.Minute, func() error {
		flows, err := l.tryFlows(node)
		if err != nil {
			return err
		}
		for _, f := range flows {
			if of.MatchString(f) {
				return fmt.Errorf("there is the flow %s", f)
			}
		}
		return nil
	})
}

// allReady waits until these nodes are, and looks whether they are what they should be.
func (l *lab) allReady(nodes ...string) {
	l.t.Helper()
	for _, n := range nodes {
		l.eventually(n+" is ready", time.Minute, func() error { return l.Agent(n).Ready(l.t.Context()) })
	}
	for _, n := range nodes {
		l.exact(n)
	}
}

// TestNodeAddressChanges: a node gets another address while its pods talk. Its agent notices, starts anew with that address and says what it
// waits for; pods of the node reach each other throughout, and so do those of other nodes. When it is clear that the address is the node's, its
// peers follow, it has the subnet that it had, and nothing of the former address is left: what a stranger sends who has it now is dropped.
func TestNodeAddressChanges(t *testing.T) {
	long(t)
	c := readdressable(t)
	before, now := c.vtep("n1"), netip.MustParseAddr("198.18.0.101")
	subnet, starts := c.subnet("n1"), c.starts("n1")
	run := c.run(probe.Rule{Must: awayFrom("n1"), May: withinTenants})
	c.traffic(run, 20)
	c.isNow("n1", before.String(), now.String())
	c.waitStarted("n1", starts)
	c.waitUnready("n1", "its record is for "+before.String())
	c.waitEvent("n1", "NodeAddressWaiting", "netns nodes confirm n1 "+now.String())
	c.traffic(run, 20)
	c.confirmed("n1", now.String())
	c.waitMatrix("the peers follow", time.Minute, withinTenants)
	c.traffic(run, 20)
	for _, n := range []string{"n1", "n2", "n3"} {
		c.waitForgotten(n, before)
	}
	if got := c.subnet("n1"); got != subnet {
		t.Errorf("n1 has subnet %s, had %s", got, subnet)
	}
	c.nothingLost(run, "a node's address changed while it runs: pods of that node among themselves, and of others")
	c.allReady("n1", "n2", "n3")

	stranger, err := c.NewStranger(t.Context(), "stranger", before)
	c.must(err)
	e := c.listen()
	from, to := c.get("blue/a"), c.get("blue/b")
	c.vxlanFrom(ns.Path(stranger), c.vtep("n2"), c.netID("blue"), from, to, "from the former address;")
	c.vxlanFrom(ns.Path(c.Name()+"-n1"), c.vtep("n2"), c.netID("blue"), from, to, "from the node")
	if _, err := e.ports["blue/b"].WaitFor("from the node", patience); err != nil {
		t.Fatalf("what the node sends does not arrive, so this test sees nothing: %v", err)
	}
	if e.delivered([]forgery{{mark: "from the former address;"}}) > 0 {
		t.Error("what a stranger sends from the former address is delivered")
	}
}

// waitEvent waits for an Event about a Node.
func (c *cluster) waitEvent(node, reason, text string) {
	c.t.Helper()
	c.eventually("Event "+reason, time.Minute, func() error {
		for _, e := range c.api.Events() {
			if e.InvolvedObject.Name == node && e.Reason == reason && strings.Contains(e.Message, text) {
				return nil
			}
		}
		return fmt.Errorf("there is none about %s with %q", node, text)
	})
}

// TestNodesSwapAddressesLive: two nodes change places while their pods talk, which nobody can tell from a node that lies. No packet gets to another
// tenant, pods of one node reach each other, both nodes say what is wrong, and what the documents tell to do mends it: one of the Nodes is deleted,
// the other confirmed, and the first, drained, registered anew.
func TestNodesSwapAddressesLive(t *testing.T) {
	long(t)
	c := readdressable(t)
	ctx := t.Context()
	one, two := c.vtep("n1").String(), c.vtep("n2").String()
	subnet := c.subnet("n2")
	run := c.run(probe.Rule{Must: awayFrom("n1", "n2"), May: withinTenants})
	c.traffic(run, 20)
	starts := map[string]int{"n1": c.starts("n1"), "n2": c.starts("n2")}
	const between = "198.18.0.110" // no two machines have one address at a time
	c.readdress("n1", one, between)
	c.isNow("n2", two, one)
	c.isNow("n1", between, two)
	for n, was := range starts {
		c.waitStarted(n, was)
	}
	c.waitUnready("n1", fmt.Sprintf("node address %s is still n2's in the records", two))
	c.waitUnready("n2", fmt.Sprintf("node address %s is still n1's in the records", one))
	c.waitEvent("n1", "NodeRefused", "n2")
	c.waitEvent("n2", "NodeRefused", "n1")
	c.traffic(run, 20)
	c.nothingLost(run, "two nodes swap addresses while they run: pods of one node among themselves, and of others")

	c.must(c.api.Delete(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}))
	c.confirmed("n2", one)
	c.eventually("n2 is ready", time.Minute, func() error { return c.Agent("n2").Ready(ctx) })
	if got := c.subnet("n2"); got != subnet {
		t.Errorf("n2 has subnet %s, had %s", got, subnet)
	}
	for _, name := range trio["n1"] {
		c.must(c.DelPod(ctx, c.get(name)))
	}
	c.waitMatrix("n2 is back", time.Minute, withinTenants)
	c.putNode("n1", two)
	c.eventually("n1 is ready", time.Minute, func() error { return c.Agent("n1").Ready(ctx) })
	c.pods(map[string][]string{"n1": trio["n1"]})
	c.waitMatrix("all are back", time.Minute, withinTenants)
	c.allReady("n1", "n2", "n3")
}

// TestNodeRemovedWhilePeersAway: a node is removed, and its subnet given to another one, while the agents of its peers do not run. When they are back
// they know nothing of the one that was removed, take nothing from it, and send what is for its subnet to the node that has it now. Nobody has a
// subnet twice.
func TestNodeRemovedWhilePeersAway(t *testing.T) {
	long(t)
	// There are four subnets: the fifth node gets the one that is freed.
	l := up(t, netlab.Options{Nodes: 3, Network: netip.MustParsePrefix("172.11.0.0/22"), HostSubnetLength: 8})
	ctx := t.Context()
	l.pods(map[string][]string{"n1": {"blue/a", "red/a"}, "n2": {"blue/b", "red/b"}, "n3": {"blue/c", "red/c"}})
	l.waitMatrix("at first", policyTime, redAndBlue.allowed)
	removed, gone, subnet := l.vtep("n1"), l.get("blue/a"), l.subnet("n1")
	peers := []string{"n2", "n3"}
	run := l.runBetween(probe.Exactly(redAndBlue.allowed), l.get("blue/b"), l.get("red/b"), l.get("blue/c"), l.get("red/c"))
	l.traffic(run, 20)
	for _, n := range append([]string{"n1"}, peers...) {
		l.must(l.Agent(n).Kill())
	}
	_, err := l.etcd().Delete(ctx, networkKey+"/subnets/"+removed.String())
	l.must(err)
	for range 2 {
		n, err := l.AddNode(ctx)
		l.must(err)
		l.pods(map[string][]string{n.Name: {"blue/" + n.Name, "red/" + n.Name}})
	}
	subnets := map[string]string{}
	for _, n := range []string{"n2", "n3", "n4", "n5"} {
		s := l.subnet(n)
		if other, twice := subnets[s]; twice {
			t.Errorf("%s and %s have the subnet %s", n, other, s)
		}
		subnets[s] = n
	}
	if subnets[subnet] != "n5" {
		t.Fatalf("%s, the subnet of the node that was removed, is %q's, so this test sees nothing", subnet, subnets[subnet])
	}
	l.traffic(run, 20)
	for _, n := range peers {
		l.must(l.Agent(n).Start(ctx))
	}
	for _, n := range peers {
		l.waitForgotten(n, removed)
	}
	e := l.listen()
	l.vxlanFrom(ns.Path(l.Name()+"-n1"), l.vtep("n2"), l.netID("blue"), gone, l.get("blue/b"), "from the removed node;")
	l.vxlanFrom(ns.Path(l.Name()+"-n3"), l.vtep("n2"), l.netID("blue"), l.get("blue/c"), l.get("blue/b"), "from a peer")
	if _, err := e.ports["blue/b"].WaitFor("from a peer", patience); err != nil {
		t.Fatalf("the peer that stays is not heard: %v", err)
	}
	if e.delivered([]forgery{{mark: "from the removed node;"}}) > 0 {
		t.Error("what the removed node sends is delivered")
	}
	l.nothingLost(run, "a node removed, and its subnet given to another one, while its peers' agents are away: pods of the peers")
	l.must(l.RemoveNode("n1"))
	l.waitMatrix("with the new nodes", time.Minute, redAndBlue.allowed)
	l.allReady("n2", "n3", "n4", "n5")
}
