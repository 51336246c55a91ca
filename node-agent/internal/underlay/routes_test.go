package underlay

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
)

// told is what ovs-vswitchd was told: peers, and by which hop.
func (n *node) told() string {
	n.t.Helper()
	routes, err := n.client.TunnelRoutes(within(n.t, 5*time.Second))
	if err != nil {
		n.t.Fatal(err)
	}
	var out []string
	for _, r := range routes {
		hop := "link"
		if r.Via.IsValid() {
			hop = r.Via.String()
		}
		out = append(out, fmt.Sprintf("%s by %s via %s from %s", r.Dst, r.Device, hop, r.Src))
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

func TestRoutes(t *testing.T) {
	n := newNode(t, newWire(t), 1)
	u := n.ensure(true)
	ctx := within(t, 20*time.Second)
	near, far, lost := netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.2")
	r := NewRoutes(n.client)
	ensure := func(when, want string, peers ...netip.Addr) {
		t.Helper()
		paths := n.ns.PathsTo(u.VTEP, peers)
		fromVTEP, err := r.Ensure(ctx, u.Link, u.VTEP, paths)
		if err != nil || !fromVTEP {
			t.Errorf("%s: from the VTEP: %t, %v", when, fromVTEP, err)
		}
		if d := cmp.Diff(want, n.told()); d != "" {
			t.Errorf("%s (-want +got):\n%s", when, d)
		}
	}
	const one, two = "192.0.2.2/32 by br-phy via link from 192.0.2.1", "203.0.113.1/32 by br-phy via 192.0.2.254 from 192.0.2.1"
	ensure("two peers", one+"\n"+two, near, far)
	ensure("again", one+"\n"+two, near, far)
	ip(t, n.name, "route add 203.0.113.1 via 192.0.2.253")
	ensure("another hop", one+"\n"+strings.Replace(two, "254", "253", 1), near, far)
	ip(t, n.name, "route replace 203.0.113.1 dev lo")
	ensure("one peer leaves by another device, and is left as it was", one+"\n"+strings.Replace(two, "254", "253", 1), near, far)
	ensure("a peer is gone", one+"\n"+strings.Replace(two, "254", "253", 1), near)
	ip(t, n.name, "route del 203.0.113.1")

	// Another address of the node, as if it had moved there: what leaves from the old one
	// is set anew, and where that does not help it is said.
	for _, tt := range []struct {
		vtep string
		want bool
	}{{"192.0.2.77", false}, {"192.0.2.1", true}} {
		got, err := r.Ensure(ctx, u.Link, netip.MustParseAddr(tt.vtep), n.ns.PathsTo(u.VTEP, []netip.Addr{near, lost}))
		if err != nil || got != tt.want {
			t.Errorf("packets leave from %s: %t, %v; want %t", tt.vtep, got, err, tt.want)
		}
	}
	ip(t, n.name, "addr del 192.0.2.1/24 dev br-phy", "addr add 192.0.2.9/24 dev br-phy")
	moved := netip.MustParseAddr("192.0.2.9")
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		ok, err := r.Ensure(ctx, u.Link, moved, n.ns.PathsTo(moved, []netip.Addr{near}))
		if err == nil && ok && strings.Contains(n.told(), "192.0.2.2/32 by br-phy via link from 192.0.2.9") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("after the address changed: %t, %v; told\n%s", ok, err, n.told())
		}
	}
	ip(t, n.name, "addr del 192.0.2.9/24 dev br-phy", "addr add 192.0.2.1/24 dev br-phy", "route add default via 192.0.2.254")

	n.vswitch.KillVswitchd()
	n.vswitch.StartVswitchd()
	if _, _, err := n.setup.Ensure(ctx); err != nil {
		t.Fatal(err)
	}
	if got := n.told(); got != "" {
		t.Errorf("told after a start: %s", got)
	}
	r.Forget()
	ensure("after ovs-vswitchd has started anew", one+"\n"+two, near, far)

	n.vswitch.AppCtl("ovs/route/add", "198.51.100.0/24", u.Link, "192.0.2.254")
	if err := NewRoutes(n.client).Remove(ctx, u.Link); err != nil {
		t.Fatal(err)
	}
	if got := n.told(); !strings.HasPrefix(got, "198.51.100.0/24") || strings.Contains(got, "\n") {
		t.Errorf("after removal there is %q, want what somebody else said, and nothing more", got)
	}

	n.vswitch.PauseVswitchd()
	if _, err := NewRoutes(n.client).Ensure(within(t, 100*time.Millisecond), u.Link, u.VTEP, n.ns.PathsTo(u.VTEP, []netip.Addr{near})); err == nil {
		t.Error("no error while ovs-vswitchd does not answer")
	}
}

// ovs-vswitchd that reads no routes of the kernel forgets its tunnels' address with the
// device's, and does not see it come back.
func TestListen(t *testing.T) {
	n := newNode(t, newWire(t), 1)
	n.vswitch.KillVswitchd()
	n.vswitch.StartVswitchd("--disable-system-route")
	u := n.ensure(true)
	ctx := within(t, 20*time.Second)
	if _, err := n.client.EnsureBridge(ctx, ovs.BridgeSpec{Name: "br0", DatapathType: ovs.DatapathNetdev, FailMode: ovs.FailSecure}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.client.EnsurePort(ctx, "br0", ovs.PortSpec{Name: "vxlan0", Type: "vxlan", Options: map[string]string{"remote_ip": "flow", "key": "flow"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.client.EnsurePort(ctx, "br0", ovs.PortSpec{Name: "vxlan1", Type: "vxlan", Options: map[string]string{"remote_ip": "flow", "key": "flow", "dst_port": "8472"}}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"vxlan0", "vxlan1"} {
		if _, err := n.client.WaitOfport(ctx, name); err != nil {
			t.Fatal(err)
		}
	}
	both := []tunnel.Port{4789, 8472}
	r := NewRoutes(n.client)
	// heard are the ports at which tunnel packets are taken.
	heard := func() (ports []tunnel.Port) {
		for _, port := range both {
			at, err := n.client.TunnelListeners(ctx, uint16(port))
			if err != nil {
				t.Fatal(err)
			}
			if slices.Contains(at, u.VTEP) {
				ports = append(ports, port)
			}
		}
		return ports
	}
	listen := func(when string, want bool) {
		t.Helper()
		if _, err := r.Ensure(ctx, u.Link, u.VTEP, n.ns.PathsTo(u.VTEP, []netip.Addr{netip.MustParseAddr("192.0.2.2")})); err != nil {
			t.Fatal(err)
		}
		if mended, err := r.Listen(ctx, u.Link, u.VTEP, both); mended != want || err != nil {
			t.Errorf("%s: mended %t, want %t (%v)", when, mended, want, err)
		}
		if got := heard(); !slices.Equal(got, both) {
			t.Errorf("%s: at %s tunnel packets are taken at ports %d, want %d", when, u.VTEP, got, both)
		}
	}
	listen("at first", false)
	for range 2 {
		ip(t, n.name, "addr flush dev br-phy") // IPv6's too: any address that is left makes it look again
		for len(heard()) > 0 {                 // until ovs-vswitchd has noticed
			if ctx.Err() != nil {
				t.Fatal(ctx.Err())
			}
		}
		ip(t, n.name, "addr add 192.0.2.1/24 dev br-phy")
		listen("after the loss", true)
		listen("again", false)
	}
	ip(t, n.name, "addr del 192.0.2.1/24 dev br-phy")
	if _, err := r.Listen(ctx, u.Link, u.VTEP, both); err == nil || !strings.Contains(err.Error(), "no tunnel packets at 192.0.2.1") && !strings.Contains(err.Error(), "tunnel route") {
		t.Errorf("without the address: %v", err)
	}
}
