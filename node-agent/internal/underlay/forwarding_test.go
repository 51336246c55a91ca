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

// forwarding calls EnsureForwarding and checks whether it found something to do.
func (n *node) forwarding(when string, u Underlay, want bool) {
	n.t.Helper()
	n.setup.cfg.Dial = func(ctx context.Context, bridge string) (Switch, error) {
		return of.Dial(ctx, n.client.MgmtSocket(bridge))
	}
	mended, err := n.setup.EnsureForwarding(within(n.t, 10*time.Second), u)
	if err != nil || mended != want {
		n.t.Errorf("%s: mended %t (%v), want %t", when, mended, err, want)
	}
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
		if got := n.pings(1, "203.0.113.1"); got != 0 {
			t.Errorf("%s: a packet is answered: this test shows nothing", name)
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
	n.forwarding("others' flows", u, false)
	n.vswitch.OFCtl("del-flows", "br-phy")
	n.forwarding("no flows again", u, true)
	n.vswitch.VSCtl("set-controller", "br-phy", "ptcp:0:127.0.0.1")
	n.vswitch.OFCtl("del-flows", "br-phy")
	if err := n.client.Sync(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	n.forwarding("a controller's flows", u, false)
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
