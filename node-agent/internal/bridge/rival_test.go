package bridge

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
)

// TestRival: a tunnel of somebody's that Open vSwitch gives other nodes' packets to is named, on whatever bridge; one that
// gets its own only is nobody's business.
func TestRival(t *testing.T) {
	o, client, ctx := connected(t)
	vtep, peer := netip.MustParseAddr("198.18.0.1"), netip.MustParseAddr("198.18.0.2")
	o.AddBridge("br9", "dummy")
	o.AddBridge("br8", "netdev")
	spec := Spec{
		Name: "br0", Datapath: "dummy", VTEP: vtep, Gateway: netip.MustParseAddr("172.11.0.1"), MTU: 1450, Tunnels: desired.NodeTunnels(vtep, tunnel.Encap{Type: tunnel.VXLAN, Port: 4789}),
		Peer: func(a netip.Addr) bool { return a == peer }, Carries: func(vni uint32) bool { return vni == 0 || vni == 7 },
	}
	for _, tc := range []struct {
		bridge, options string
		source          bool
		want            bool
	}{
		{"br0", "type=vxlan options:remote_ip=198.18.0.2 options:key=flow", false, true},
		{"br9", "type=vxlan options:remote_ip=198.18.0.2 options:key=flow options:dst_port=4789", true, true},
		{"br9", "type=vxlan options:remote_ip=198.18.0.2 options:key=7", false, true},
		{"br9", "type=vxlan options:remote_ip=198.18.0.2", false, true},
		{"br9", "type=vxlan options:remote_ip=flow options:key=7", true, true},
		{"br9", "type=vxlan options:remote_ip=flow options:in_key=0x7 options:out_key=flow", false, true},
		{"br9", "type=vxlan options:remote_ip=flow options:key=flow options:local_ip=198.18.0.1", false, true},
		{"br9", "type=vxlan options:remote_ip=198.18.0.9 options:key=flow", false, false},
		{"br9", "type=vxlan options:remote_ip=198.18.0.2 options:key=8", false, false},
		{"br9", "type=vxlan options:remote_ip=198.18.0.2 options:key=flow options:dst_port=4799", false, false},
		{"br9", "type=vxlan options:remote_ip=198.18.0.2 options:key=flow options:local_ip=198.18.0.77", false, false},
		{"br9", "type=vxlan options:remote_ip=flow options:key=flow", true, false},
		{"br8", "type=vxlan options:remote_ip=198.18.0.2 options:key=flow", false, false}, // another datapath
		{"br9", "type=geneve options:remote_ip=198.18.0.2 options:key=flow options:dst_port=4789", false, false},
	} {
		spec.TunnelSource = netip.Addr{}
		if tc.source {
			spec.TunnelSource = vtep
		}
		if _, _, refused, err := Ensure(ctx, client, spec); err != nil || refused != nil {
			t.Fatalf("before %s: %v, refused %v", tc.options, err, refused)
		}
		o.VSCtl(append(strings.Fields("add-port "+tc.bridge+" vx9 -- set interface vx9"), strings.Fields(tc.options)...)...)
		if err := client.Sync(ctx); err != nil {
			t.Fatal(err)
		}
		_, _, refused, err := Ensure(ctx, client, spec)
		if err != nil || (refused != nil) != tc.want || refused != nil && !strings.Contains(refused.Error(), "port vx9 of bridge "+tc.bridge) {
			t.Errorf("%s %s, source %t: refused %v (%v), want %t", tc.bridge, tc.options, tc.source, refused, err, tc.want)
		}
		if ports := o.VSCtl("list-ports", tc.bridge); !strings.Contains(ports, "vx9") {
			t.Errorf("%s: it is gone, there are %s", tc.options, ports)
		}
		o.VSCtl("del-port", "vx9")
		if err := client.Sync(ctx); err != nil {
			t.Fatal(err)
		}
	}
}
