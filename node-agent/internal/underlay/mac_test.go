package underlay

import (
	"strings"
	"testing"
	"time"
)

// macs checks the hardware address of the bridge's local port, and what the database says.
func (n *node) macs(when, want string) {
	n.t.Helper()
	l, _, err := n.ns.Link("br-phy")
	if hwaddr := strings.Trim(strings.TrimSpace(n.vswitch.VSCtl("get", "bridge", "br-phy", "other_config:hwaddr")), `"`); err != nil || l.MAC.String() != want || hwaddr != want {
		n.t.Errorf("%s: br-phy has %s, hwaddr %s (%v), want %s", when, l.MAC, hwaddr, err, want)
	}
}

// TestUplinkMACChanges: the bridge follows the uplink's hardware address, keeps its addresses and
// routes, and tells its neighbours; also where that changed while ovs-vswitchd or the agent was away.
func TestUplinkMACChanges(t *testing.T) {
	wire := newWire(t)
	n := newNode(t, wire, 1)
	state := t.TempDir()
	n.again(state, "1")
	ip(t, n.name, "addr add 2001:db8::1/64 dev eth0 nodad")
	n.ensure(true)
	if got := n.reaches("203.0.113.1"); got != 5 {
		t.Fatalf("%d answers to 5 packets", got)
	}
	before := n.state4()
	ip(t, n.name, "link set eth0 address 02:00:00:00:01:02")
	n.ensure(true)
	n.macs("changed", "02:00:00:00:01:02")
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if strings.Contains(show(t, wire, "neigh show 192.0.2.1"), "02:00:00:00:01:02") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the wire is not told: %s", show(t, wire, "neigh show 192.0.2.1"))
		}
	}
	n.ensure(false)
	if after := n.state4(); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	n.has("changed", "-6 addr show dev br-phy", []string{"2001:db8::1/64"}, nil)
	n.again(state, "1")
	ip(t, n.name, "link set eth0 address 02:00:00:00:01:03")
	n.ensure(true)
	n.macs("changed while the agent was away", "02:00:00:00:01:03")
	n.stopVswitchd("br-phy")
	ip(t, n.name, "link set eth0 address 02:00:00:00:01:04")
	n.vswitch.StartVswitchd()
	n.ensure(true)
	n.ensure(false)
	n.macs("changed while ovs-vswitchd was away", "02:00:00:00:01:04")
	if after := n.state4(); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	// A bridge of an older release.
	n.vswitch.VSCtl("remove", "bridge", "br-phy", "external_ids", keyMAC)
	ip(t, n.name, "link set eth0 address 02:00:00:00:01:06")
	if err := n.client.Sync(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	n.ensure(true)
	n.macs("an older release's", "02:00:00:00:01:06")
	// Somebody else's.
	n.vswitch.VSCtl("set", "bridge", "br-phy", `other_config:hwaddr="02:00:00:00:00:55"`)
	ip(t, n.name, "route replace default via 192.0.2.254 dev br-phy metric 100 proto dhcp") // which went with that
	if err := n.client.Sync(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	n.ensure(false)
	ip(t, n.name, "link set eth0 address 02:00:00:00:01:05")
	for range 2 {
		n.ensure(false)
	}
	n.macs("set by hand", "02:00:00:00:00:55")
	for _, release := range []string{"this release's", "an older release's"} {
		if release == "an older release's" {
			n.vswitch.VSCtl("remove", "bridge", "br-phy", "external_ids", keyMAC)
		}
		n.stopVswitchd("br-phy") // and a boot, at which the machine gives the uplink its address
		ip(t, n.name, "addr add 192.0.2.1/24 dev eth0")
		n.vswitch.StartVswitchd()
		n.ensure(true)
		n.macs("set by hand, after a boot, "+release, "02:00:00:00:00:55")
	}
}

// TestBridgeMACOfPorts: a bridge of the kernel has the least MAC of its ports', which changes as others
// come and go; what the wire knows stays.
func TestBridgeMACOfPorts(t *testing.T) {
	n := newNode(t, newWire(t), 1)
	ip(t, n.name, "link set eth0 address 02:00:00:00:00:80", "link add name host0 type bridge", "addr flush dev eth0", "link set eth0 master host0", "link set host0 up",
		"addr add 192.0.2.1/24 dev host0", "route add default via 192.0.2.254",
		"link add more0 address 02:00:00:00:00:01 type veth peer name more1", "link set more0 up")
	n.ensure(true)
	n.macs("one port", "02:00:00:00:00:80")
	ip(t, n.name, "link set more0 master host0")
	if l, _, _ := n.ns.Link("host0"); l.MAC.String() != "02:00:00:00:00:01" {
		t.Fatalf("host0 has %s: this test shows nothing", l.MAC)
	}
	n.ensure(false)
	n.macs("another port", "02:00:00:00:00:80")
	ip(t, n.name, "link set more0 nomaster", "link set eth0 address 02:00:00:00:00:90")
	n.ensure(true)
	n.macs("another card", "02:00:00:00:00:90")
}
