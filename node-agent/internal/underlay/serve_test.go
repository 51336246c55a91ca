package underlay

import (
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestLocalPortLost: ovs-vswitchd runs on with a bridge whose device somebody took away; the node has its address again at
// once, before the uplink is lent it or after, and flows and ports that somebody has given the bridge stay.
func TestLocalPortLost(t *testing.T) {
	for name, tc := range map[string]struct {
		lose func(n *node)
		lent bool
	}{
		"deleted":           {lose: func(n *node) { ip(n.t, n.name, "link del br-phy") }},
		"deleted, and lent": {lose: func(n *node) { ip(n.t, n.name, "link del br-phy") }, lent: true},
		"in another network namespace": {lose: func(n *node) {
			create(n.t, n.name+"-other")
			ip(n.t, n.name, "link set br-phy netns "+n.name+"-other")
		}},
		"called otherwise":     {lose: func(n *node) { ip(n.t, n.name, "link set br-phy down", "link set br-phy name foo") }},
		"without a carrier":    {lose: func(n *node) { ip(n.t, n.name, "link set br-phy carrier off") }, lent: true},
		"of the kernel's type": {lose: func(n *node) { n.vswitch.VSCtl("set", "bridge", "br-phy", "datapath_type=system") }},
		"not in the database": {lose: func(n *node) {
			n.vswitch.VSCtl("remove", "bridge", "br-phy", "ports", strings.TrimSpace(n.vswitch.VSCtl("get", "port", "br-phy", "_uuid")))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, newWire(t), 1)
			l := n.withLender(t.TempDir(), "boot")
			n.ensure(true)
			before := n.state4()
			ip(t, n.name, "link add more0 type veth peer name more1")
			n.vswitch.VSCtl("add-port", "br-phy", "more0")
			n.vswitch.OFCtl("add-flow", "br-phy", "priority=7,dl_type=0x1234,actions=drop")
			n.vswitch.VSCtl("set", "port", "br-phy", "other_config:whose=mine")
			tc.lose(n)
			if tc.lent {
				n.looksLong(l)
			}
			n.ensure(true)
			if after := n.state4(); after != before {
				t.Errorf("before:\n%s\nafter:\n%s", before, after)
			}
			n.ensure(false)
			if got := n.reaches("203.0.113.1"); got != 5 {
				t.Errorf("%d answers to 5 packets", got)
			}
			if ports := strings.Fields(n.vswitch.VSCtl("list-ports", "br-phy")); len(ports) != 2 {
				t.Errorf("ports %v", ports)
			}
			lost := strings.Contains(name, "database")
			if kept := n.vswitch.VSCtl("get", "port", "br-phy", "other_config"); !lost && !strings.Contains(kept, "mine") {
				t.Errorf("of what somebody set at the port there is %s", kept)
			}
			typed := strings.Contains(name, "type")
			if flows := n.vswitch.OFCtl("dump-flows", "br-phy"); !typed && !strings.Contains(flows, "priority=7") {
				t.Errorf("flows are\n%s", flows)
			}
		})
	}
}

// TestLocalPortWithoutQueue: what leaves by a device whose queue has no room does not get to ovs-vswitchd.
func TestLocalPortWithoutQueue(t *testing.T) {
	n := newNode(t, newWire(t), 1)
	n.ensure(true)
	ip(t, n.name, "link set br-phy txqueuelen 0")
	if !n.silent("203.0.113.1") {
		t.Error("a packet is answered: this test shows nothing")
	}
	n.ensure(true)
	n.ensure(false)
	if got := n.reaches("203.0.113.1"); got != 5 {
		t.Errorf("%d answers to 5 packets", got)
	}
}

// TestLocalPortLostOfGivenBridge: a bridge that somebody else made is left as it is, and named.
func TestLocalPortLostOfGivenBridge(t *testing.T) {
	n := newNode(t, newWire(t), 1)
	n.vswitch.VSCtl("add-br", "br-ex", "--", "set", "bridge", "br-ex", "datapath_type=netdev", "--", "add-port", "br-ex", "eth0")
	ip(t, n.name, "addr flush dev eth0", "link set br-ex up", "addr add 192.0.2.1/24 dev br-ex", "route add default via 192.0.2.254")
	n.ensure(false)
	port := n.vswitch.VSCtl("get", "port", "br-ex", "_uuid")
	if out, err := exec.Command("ip", "-n", n.name, "link", "del", "br-ex").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	_, _, err := n.setup.Ensure(within(t, 10*time.Second))
	if err == nil || !strings.Contains(err.Error(), "bridge br-ex: ovs-vswitchd runs") || !strings.Contains(err.Error(), "restart ovs-vswitchd") {
		t.Errorf("it says %v", err)
	}
	if now := n.vswitch.VSCtl("get", "port", "br-ex", "_uuid"); now != port {
		t.Errorf("its local port was %s, and is %s", port, now)
	}
}
