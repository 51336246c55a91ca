package bridge

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
	"github.com/k8s-ovs/k8s-ovs/test/ovstest"
)

// TestNothingPastFlows: whatever somebody gives the bridge by which packets reach pods beside the flows, or flows come
// from elsewhere, is without effect or taken away; in a bridge of others it stays, and so does what only copies to others.
func TestNothingPastFlows(t *testing.T) {
	o, client, ctx := connected(t)
	vtep := netip.MustParseAddr("198.18.0.1")
	spec := Spec{
		Name: "br0", Datapath: "dummy", VTEP: vtep, Gateway: netip.MustParseAddr("172.11.0.1"), MTU: 1450, Pods: "kov",
		Tunnels: desired.NodeTunnels(vtep, tunnel.Encap{Type: tunnel.VXLAN, Port: 4789}),
	}
	ensure := func() (changed bool) {
		t.Helper()
		_, changed, refused, err := Ensure(ctx, client, spec)
		if err != nil || refused != nil {
			t.Fatal(err, refused)
		}
		if err := client.Sync(ctx); err != nil {
			t.Fatal(err)
		}
		return changed
	}
	ensure()
	o.AddBridge("br9", "dummy")
	for _, port := range []string{"kov1", "kov2", "probe"} {
		o.VSCtl("add-port", "br0", port, "--", "set", "interface", port, "type=dummy")
	}
	// set does something and waits until the agent has heard of it.
	set := func(args ...string) {
		t.Helper()
		o.VSCtl(args...)
		if err := client.Sync(ctx); err != nil {
			t.Fatal(err)
		}
	}
	hidden := func(bridge string) bool {
		return strings.Contains(o.AppCtl("bridge/dump-flows", bridge), "priority=18000")
	}

	set("set-manager", "tcp:10.0.0.5:6640")
	if hidden("br0") || !hidden("br9") {
		t.Errorf("with a manager Open vSwitch has flows of its own in br0: %t, in br9: %t; want them in br9 only", hidden("br0"), hidden("br9"))
	}
	set("remove", "bridge", "br0", "other_config", "disable-in-band")
	if !hidden("br0") {
		t.Fatal("Open vSwitch has no flows of its own in any case: this test sees nothing")
	}
	if !ensure() || hidden("br0") {
		t.Error("somebody switched in-band control on, and it stays on")
	}

	set("set-controller", "br0", "ptcp:0:127.0.0.1")
	set("set-controller", "br9", "ptcp:0:127.0.0.1")
	if !ensure() || strings.TrimSpace(o.VSCtl("get-controller", "br0")) != "" || strings.TrimSpace(o.VSCtl("get-controller", "br9")) == "" {
		t.Errorf("controllers are %q in br0, %q in br9; want none in br0, and that of br9", o.VSCtl("get-controller", "br0"), o.VSCtl("get-controller", "br9"))
	}

	for name, to := range map[string]string{"pod": "output_port=kov2", "gateway": "output_port=tun0", "tunnel": "output_port=vxlan0", "all": "output_vlan=7", "others": "output_port=probe"} {
		set(mirror("br0", name, to)...)
	}
	set(mirror("br9", "br9", "output_vlan=7")...)
	if got := mirrors(o, "br0"); len(got) != 5 {
		t.Fatalf("br0 has mirrors %q", got)
	}
	if changed, got := ensure(), mirrors(o, "br0"); !changed || !slices.Equal(got, []string{"others"}) {
		t.Errorf("mirrors of br0 are %q, want that into others' port alone", got)
	}
	if got := mirrors(o, "br9"); !slices.Equal(got, []string{"br9"}) {
		t.Errorf("mirrors of br9 are %q", got)
	}
	if ensure() {
		t.Error("there is nothing to do any more, and something was done")
	}
}

// mirror is the command that adds a mirror of all packets to the bridge.
func mirror(bridge, name, to string) []string {
	args := []string{"--", "--id=@m", "create", "mirror", "name=" + name, "select_all=true", to, "--", "add", "bridge", bridge, "mirrors", "@m"}
	if port, is := strings.CutPrefix(to, "output_port="); is {
		args[6] = "output_port=@p"
		args = append([]string{"--", "--id=@p", "get", "port", port}, args...)
	}
	return args
}

// mirrors are the names of those that the bridge has.
func mirrors(o *ovstest.OVS, bridge string) (names []string) {
	for uuid := range strings.FieldsFuncSeq(o.VSCtl("get", "bridge", bridge, "mirrors"), func(r rune) bool { return strings.ContainsRune("[], \n", r) }) {
		names = append(names, strings.Trim(strings.TrimSpace(o.VSCtl("get", "mirror", uuid, "name")), `"`))
	}
	slices.Sort(names)
	return names
}
