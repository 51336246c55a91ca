package underlay

import (
	"bytes"
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
)

// forwarding calls EnsureForwarding and checks whether it found something to do, and nothing that it cannot put right.
func (n *node) forwarding(when string, u Underlay, want bool) {
	n.t.Helper()
	if closed := n.closed(when, u, netip.AddrPort{}, want); closed != nil {
		n.t.Errorf("%s: closed: %v", when, closed)
	}
}

// silent reports whether packets are not answered, once the datapath has looked at its flows again.
func (n *node) silent(address string) bool {
	n.t.Helper()
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); {
		if n.pings(20, "-w", "1", address) == 0 {
			return true
		}
	}
	return false
}

// closed is what EnsureForwarding says of what it does not put right.
func (n *node) closed(when string, u Underlay, peer netip.AddrPort, want bool) error {
	n.t.Helper()
	n.setup.cfg.Dial = func(ctx context.Context, bridge string) (Switch, error) {
		return of.Dial(ctx, n.client.MgmtSocket(bridge))
	}
	mended, closed, err := n.setup.EnsureForwarding(within(n.t, 10*time.Second), u, peer)
	if err != nil || mended != want {
		n.t.Errorf("%s: mended %t (%v), want %t", when, mended, err, want)
	}
	return closed
}

// TestForwards: what somebody has the bridge keep back goes again; what he has it do otherwise stays.
func TestForwards(t *testing.T) {
	n := newNode(t, newWire(t), 1)
	u := n.ensure(true)
	n.forwarding("made", u, false)
	before := n.vswitch.OFCtl("dump-flows", "--no-stats", "br-phy")
	for name, args := range map[string][]string{
		"no flows":          {"del-flows", "br-phy"},
		"uplink's packets":  {"mod-port", "br-phy", "eth0", "no-forward"},
		"uplink's, taken":   {"mod-port", "br-phy", "eth0", "no-receive"},
		"node's packets":    {"mod-port", "br-phy", "br-phy", "no-receive"},
		"node's, forwarded": {"mod-port", "br-phy", "br-phy", "no-forward"},
	} {
		n.vswitch.OFCtl(args...)
		if !n.silent("203.0.113.1") {
			t.Errorf("%s: packets are answered: this test shows nothing", name)
		}
		n.ensure(false) // the address is where it should be
		n.forwarding(name, u, true)
		n.forwarding(name+", again", u, false)
		if got := n.reaches("203.0.113.1"); got != 5 {
			t.Errorf("%s: %d answers to 5 packets afterwards", name, got)
		}
	}
	if after := n.vswitch.OFCtl("dump-flows", "--no-stats", "br-phy"); after != before {
		t.Errorf("flows before:\n%s\nafter:\n%s", before, after)
	}
	// Somebody's own flows.
	n.vswitch.OFCtl("del-flows", "br-phy")
	n.vswitch.OFCtl("add-flow", "br-phy", "priority=7,in_port=eth0,actions=LOCAL")
	if closed := n.closed("others' flows", u, netip.AddrPort{}, false); closed == nil || !strings.Contains(closed.Error(), "does not get out by its uplink eth0") {
		t.Errorf("others' flows: %v", closed)
	}
	n.vswitch.OFCtl("del-flows", "br-phy")
	n.forwarding("no flows again", u, true)
	n.vswitch.VSCtl("set-controller", "br-phy", "ptcp:0:127.0.0.1")
	n.vswitch.OFCtl("del-flows", "br-phy")
	if err := n.client.Sync(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	if closed := n.closed("a controller's flows", u, netip.AddrPort{}, false); closed == nil {
		t.Error("a controller that gives no flows: nothing is said")
	}
}

// TestClosed: what somebody has given the ports of the bridge stays, and is said where it keeps the node off the network.
func TestClosed(t *testing.T) {
	const out, in = "what the node sends does not get out", "what comes in by its uplink eth0 for the node does not get to it"
	n := newNode(t, newWire(t), 1)
	u := n.ensure(true)
	peer := netip.MustParseAddrPort("192.0.2.2:4789")
	for _, tc := range []struct{ name, set, undo, want string }{
		{"the uplink in a VLAN", "set port eth0 tag=5", "clear port eth0 tag", out},
		{"the uplink with some VLANs", "set port eth0 trunks=5", "clear port eth0 trunks", out},
		{"the node in a VLAN where nobody is", "set port br-phy tag=5", "clear port br-phy tag", "nobody is heard there"},
		{"both in a VLAN", "set port br-phy tag=5 -- set port eth0 tag=5", "clear port br-phy tag -- clear port eth0 tag", ""},
		{"a mirror into the uplink", "-- --id=@p get port eth0 -- --id=@m create mirror name=m select_all=true output_port=@p -- set bridge br-phy mirrors=@m", "clear bridge br-phy mirrors", in},
		{"a mirror into another port", "add-port br-phy more0 -- set interface more0 type=internal -- --id=@p get port more0 -- --id=@m create mirror name=m select_all=true output_port=@p -- set bridge br-phy mirrors=@m", "clear bridge br-phy mirrors -- del-port more0", ""},
	} {
		n.vswitch.VSCtl(strings.Fields(tc.set)...)
		n.vswitch.AppCtl("revalidator/purge") // flows in use go on with a mirror as before
		if tc.want != "" && !n.silent("203.0.113.1") || tc.want == "" && n.reaches("203.0.113.1") == 0 {
			t.Errorf("%s: packets are answered, or not, as this test does not expect", tc.name)
		}
		for _, peer := range []netip.AddrPort{peer, {}} {
			closed := n.closed(tc.name, u, peer, false)
			if (closed == nil) != (tc.want == "") || closed != nil && !strings.Contains(closed.Error(), tc.want) {
				t.Errorf("%s: %v, want %q", tc.name, closed, tc.want)
			}
		}
		n.vswitch.VSCtl(strings.Fields(tc.undo)...)
		n.forwarding(tc.name+", undone", u, false)
		if got := n.reaches("203.0.113.1"); got != 5 {
			t.Errorf("%s, undone: %d answers to 5 packets", tc.name, got)
		}
	}
	n.vswitch.OFCtl("add-flow", "br-phy", "priority=9,udp,in_port=eth0,tp_dst=4789,actions=drop")
	if closed := n.closed("somebody's flow", u, peer, false); closed == nil || !strings.Contains(closed.Error(), in) {
		t.Errorf("somebody's flow: %v", closed)
	}
	n.vswitch.OFCtl("del-flows", "br-phy", "udp,in_port=eth0")
	n.vswitch.OFCtl("-O", "OpenFlow10", "mod-port", "br-phy", "eth0", "no-flood") // later versions have it not
	if err := n.client.Sync(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	if closed := n.closed("no-flood", u, peer, false); closed == nil || !strings.Contains(closed.Error(), out) {
		t.Errorf("no-flood: %v", closed)
	}
}

// TestNodeInAVLAN: a node whose owner has put it into a VLAN that the network carries is on the network.
func TestNodeInAVLAN(t *testing.T) {
	wire := newWire(t)
	n, other := newNode(t, wire, 1), newNode(t, wire, 2)
	u := n.ensure(true)
	other.ensure(true)
	for _, node := range []*node{n, other} {
		node.vswitch.VSCtl("set", "port", "br-phy", "tag=5")
	}
	if got := n.reaches("192.0.2.2"); got != 5 {
		t.Errorf("%d answers to 5 packets: this test shows nothing", got)
	}
	n.forwarding("in a VLAN", u, false)
}

// TestSpanningTree: where there is one way outside nothing waits for a spanning tree; where somebody
// has added another one it may keep a loop away.
func TestSpanningTree(t *testing.T) {
	n := newNode(t, newWire(t), 1)
	n.ensure(true)
	set := func(when, config string, want bool) {
		t.Helper()
		n.vswitch.VSCtl("set", "bridge", "br-phy", config)
		if err := n.client.Sync(within(t, 5*time.Second)); err != nil {
			t.Fatal(err)
		}
		n.ensure(want)
		key, _, _ := strings.Cut(config, "=")
		if got := strings.TrimSpace(n.vswitch.VSCtl("get", "bridge", "br-phy", key)); got != map[bool]string{true: "false", false: "true"}[want] {
			t.Errorf("%s: %s is %s", when, key, got)
		}
	}
	set("one way", "stp_enable=true", true)
	set("one way", "rstp_enable=true", true)
	ip(t, n.name, "link add more0 type veth peer name more1")
	n.vswitch.VSCtl("add-port", "br-phy", "more0")
	set("two ways", "rstp_enable=true", false)
}

// TestForwardsOfGivenBridge: what a bridge that somebody else made keeps back is said, once, and left.
func TestForwardsOfGivenBridge(t *testing.T) {
	n := newNode(t, newWire(t), 1)
	n.vswitch.VSCtl("add-br", "br-ex", "--", "set", "bridge", "br-ex", "datapath_type=netdev", "--", "add-port", "br-ex", "eth0")
	ip(t, n.name, "addr flush dev eth0", "link set br-ex up", "addr add 192.0.2.1/24 dev br-ex", "route add default via 192.0.2.254")
	if err := n.client.Sync(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	n.setup = New(Config{Datapath: ovs.DatapathNetdev, NodeIP: netip.MustParseAddr("192.0.2.1"), Logger: slog.New(slog.NewTextHandler(&said, nil))}, n.ns, n.client)
	u := n.ensure(false)
	n.forwarding("given", u, false)
	if said.Len() > 0 {
		t.Errorf("where nothing is wrong: %s", said.String())
	}
	n.vswitch.OFCtl("del-flows", "br-ex")
	n.vswitch.OFCtl("mod-port", "br-ex", "eth0", "no-forward")
	for range 3 {
		n.forwarding("given, without flows", u, false)
	}
	if flows := n.vswitch.OFCtl("dump-flows", "--no-stats", "br-ex"); strings.TrimSpace(flows) != "" {
		t.Errorf("flows were added:\n%s", flows)
	}
	if got := said.String(); strings.Count(got, "it has no flows") != 1 || strings.Count(got, "port eth0 is kept from its packets") != 1 {
		t.Errorf("said:\n%s", got)
	}
}
