package bridge

import (
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
	"github.com/k8s-ovs/k8s-ovs/test/ovstest"
)

// TestEnsure makes the bridge on a real Open vSwitch, and again: the second
// time, and with foreign settings, nothing changes that need not.
func TestEnsure(t *testing.T) {
	o := ovstest.Start(t)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	client, err := ovs.Connect(ctx, ovs.Config{Endpoint: "unix:" + o.DB, RunDir: o.RunDir, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	spec := Spec{
		Name: "br0", Datapath: "dummy", VTEP: netip.MustParseAddr("198.18.0.1"), Gateway: netip.MustParseAddr("172.11.0.1"), MTU: 1450, VXLANPort: 4790,
	}
	ports, changed, err := Ensure(ctx, client, spec)
	if err != nil {
		t.Fatal(err)
	}
	if !changed || ports != (desired.Ports{Tunnel: 1, Gateway: 2}) {
		t.Errorf("changed %t, ports %+v", changed, ports)
	}
	if p, _ := client.Port(TunnelPort); VXLANPort(p) != spec.VXLANPort {
		t.Errorf("read back: port %d, want %d", VXLANPort(p), spec.VXLANPort)
	}
	o.VSCtl("set", "bridge", "br0", "external_ids:somebody=else", "other_config:mac-table-size=100")
	o.VSCtl("add-port", "br0", "foreign", "--", "set", "interface", "foreign", "type=internal")
	if _, changed, err = Ensure(ctx, client, spec); err != nil || changed {
		t.Errorf("again: changed %t, %v", changed, err)
	}
	o.VSCtl("set", "bridge", "br0", "fail_mode=standalone")
	o.VSCtl("del-port", "tun0")
	if _, changed, err = Ensure(ctx, client, spec); err != nil || !changed {
		t.Errorf("after damage: changed %t, %v", changed, err)
	}
	if got := o.VSCtl("get", "interface", "vxlan0", "options"); strings.Contains(got, "local_ip") {
		t.Errorf("options of vxlan0 are %s: bound to an address without a source", got)
	}
	spec.TunnelSource = spec.VTEP
	if _, changed, err = Ensure(ctx, client, spec); err != nil || !changed {
		t.Errorf("with a source: changed %t, %v", changed, err)
	}
	for _, tc := range []struct{ want, table, record, column string }{
		{"198.18.0.1", "interface", "vxlan0", "options:local_ip"},
		{"secure", "bridge", "br0", "fail_mode"},
		{"else", "bridge", "br0", "external_ids:somebody"},
		{"100", "bridge", "br0", "other_config:mac-table-size"},
		{"4790", "interface", "vxlan0", "options:dst_port"},
		{"flow", "interface", "vxlan0", "options:remote_ip"},
		{"1450", "interface", "tun0", "mtu_request"},
		{"1450", "interface", "br0", "mtu_request"},
		{"2", "interface", "tun0", "ofport"},
		{"internal", "interface", "foreign", "type"},
	} {
		got := strings.Trim(strings.TrimSpace(o.VSCtl("get", tc.table, tc.record, tc.column)), `"`)
		if got != tc.want {
			t.Errorf("%s %s %s is %s, want %s", tc.table, tc.record, tc.column, got, tc.want)
		}
	}
}

// Open vSwitch has VXLAN at 4789 where nobody says another port.
func TestVXLANPort(t *testing.T) {
	for option, want := range map[string]tunnel.Port{"": 4789, "8472": 8472, "many": 4789} {
		if got := VXLANPort(ovs.Port{Options: map[string]string{"dst_port": option}}); got != want {
			t.Errorf("%q: %d, want %d", option, got, want)
		}
	}
}

func TestPodOfport(t *testing.T) {
	p := netip.MustParsePrefix
	a := netip.MustParseAddr
	for _, tc := range []struct {
		subnet netip.Prefix
		addr   netip.Addr
		want   uint32
	}{
		{p("172.11.0.0/22"), a("172.11.0.2"), 12},
		{p("172.11.4.0/22"), a("172.11.7.254"), 10 + 1022},
		{p("10.0.0.0/8"), a("10.0.1.0"), 266},
		{p("10.0.0.0/8"), a("10.0.254.245"), 65279},
		{p("10.0.0.0/8"), a("10.0.254.246"), 0},
		{p("10.0.0.0/8"), a("10.200.0.1"), 0},
	} {
		if got := PodOfport(tc.subnet, tc.addr); got != tc.want {
			t.Errorf("%s in %s: %d, want %d", tc.addr, tc.subnet, got, tc.want)
		}
	}
}
