package bridge

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
	"github.com/k8s-ovs/k8s-ovs/test/ovstest"
)

// connected is a client of a real Open vSwitch, and a context for some seconds with it.
func connected(t *testing.T) (*ovstest.OVS, *ovs.Client, context.Context) {
	t.Helper()
	o := ovstest.Start(t)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	client, err := ovs.Connect(ctx, ovs.Config{Endpoint: "unix:" + o.DB, RunDir: o.RunDir, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return o, client, ctx
}

// TestEnsure makes the bridge on a real Open vSwitch, and again: the second
// time, and with foreign settings, nothing changes that need not.
func TestEnsure(t *testing.T) {
	o, client, ctx := connected(t)
	spec := Spec{
		Name: "br0", Datapath: "dummy", VTEP: netip.MustParseAddr("198.18.0.1"), Gateway: netip.MustParseAddr("172.11.0.1"), MTU: 1450, Tunnels: desired.NodeTunnels(netip.MustParseAddr("198.18.0.1"), tunnel.Encap{Type: tunnel.VXLAN, Port: 4790}),
	}
	ports, changed, refused, err := Ensure(ctx, client, spec)
	if err != nil || refused != nil {
		t.Fatal(err, refused)
	}
	if !changed || !ports.Equal(desired.Ports{Tunnels: map[string]uint32{"vxlan0": 1}, Gateway: 2}) {
		t.Errorf("changed %t, ports %+v", changed, ports)
	}
	if p, _ := client.Port("vxlan0"); UDPPort(p) != 4790 {
		t.Errorf("read back: port %d, want 4790", UDPPort(p))
	}
	o.VSCtl("set", "bridge", "br0", "external_ids:somebody=else", "other_config:mac-table-size=100")
	o.VSCtl("add-port", "br0", "foreign", "--", "set", "interface", "foreign", "type=internal")
	if _, changed, refused, err = Ensure(ctx, client, spec); err != nil || refused != nil || changed {
		t.Errorf("again: changed %t, %v", changed, err)
	}
	o.VSCtl("set", "bridge", "br0", "fail_mode=standalone")
	o.VSCtl("del-port", "tun0")
	if _, changed, refused, err = Ensure(ctx, client, spec); err != nil || refused != nil || !changed {
		t.Errorf("after damage: changed %t, %v", changed, err)
	}
	if got := o.VSCtl("get", "interface", "vxlan0", "options"); strings.Contains(got, "local_ip") {
		t.Errorf("options of vxlan0 are %s: bound to an address without a source", got)
	}
	spec.TunnelSource = spec.VTEP
	if _, changed, refused, err = Ensure(ctx, client, spec); err != nil || refused != nil || !changed {
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

// TestTunnels: the bridge has the tunnels that it is to have, each with its number, whatever
// it had before; those of others stay, and so does one that an agent before this has made.
func TestTunnels(t *testing.T) {
	o, client, ctx := connected(t)
	vtep := netip.MustParseAddr("198.18.0.1")
	one := desired.NodeTunnels(vtep, tunnel.Encap{Type: tunnel.VXLAN, Port: 4789})
	made := func(name string, port tunnel.Port, f tunnel.Family, number uint32) desired.Tunnel {
		return desired.Tunnel{Tunnel: tunnel.Tunnel{Name: name, Type: tunnel.VXLAN, Port: port, Family: f}, Ofport: number}
	}
	second, sixth := made("vxlan1", 8472, tunnel.IPv4, 3), made("vxlan6", 4790, tunnel.IPv6, 4)
	again := made("vxlan2", 8472, tunnel.IPv4, 5) // at the UDP port of one that goes
	o.AddBridge("br0", "dummy")
	o.VSCtl("add-port", "br0", "vxlan0", "--", "set", "interface", "vxlan0", "type=vxlan", "options:key=flow", "options:remote_ip=flow", "options:dst_port=4789", "ofport_request=1")
	o.VSCtl("add-port", "br0", "theirs", "--", "set", "interface", "theirs", "type=vxlan", "options:key=flow", "options:remote_ip=flow", "options:dst_port=5000", "ofport_request=9")
	for _, step := range []struct {
		name    string
		tunnels desired.Tunnels
		want    map[string]uint32
		changed bool
	}{
		{"as an agent before had it", one, map[string]uint32{"vxlan0": 1}, true},
		{"the same", one, map[string]uint32{"vxlan0": 1}, false},
		{"two more", append(slices.Clone(one), second, sixth), map[string]uint32{"vxlan0": 1, "vxlan1": 3, "vxlan6": 4}, true},
		{"again", append(slices.Clone(one), second, sixth), map[string]uint32{"vxlan0": 1, "vxlan1": 3, "vxlan6": 4}, false},
		{"another instead of one", append(slices.Clone(one), sixth, again), map[string]uint32{"vxlan0": 1, "vxlan6": 4, "vxlan2": 5}, true},
		{"none but the second", desired.Tunnels{second}, map[string]uint32{"vxlan1": 3}, true},
		{"one", one, map[string]uint32{"vxlan0": 1}, true},
	} {
		ports, changed, refused, err := Ensure(ctx, client, Spec{
			Name: "br0", Datapath: "dummy", VTEP: vtep, Gateway: netip.MustParseAddr("172.11.0.1"), MTU: 1450, Tunnels: step.tunnels, TunnelSource: vtep,
		})
		if err != nil || refused != nil {
			t.Fatalf("%s: %v, refused %v", step.name, err, refused)
		}
		if want := (desired.Ports{Tunnels: step.want, Gateway: 2}); !ports.Equal(want) || changed != step.changed {
			t.Errorf("%s: ports %+v, want %+v; changed: %t", step.name, ports, want, changed)
		}
		has := map[string]string{}
		for name := range strings.FieldsSeq(o.VSCtl("list-ports", "br0")) {
			if p, _ := client.Port(name); p.Type == string(tunnel.VXLAN) {
				has[name] = UDPPort(p).String() + " " + p.Options["local_ip"]
			}
		}
		want := map[string]string{"theirs": "5000 "}
		for _, tun := range step.tunnels {
			want[tun.Name] = tun.Port.String() + " "
			if tun.Family == tunnel.IPv4 {
				want[tun.Name] += vtep.String()
			}
		}
		if diff := cmp.Diff(want, has); diff != "" {
			t.Errorf("%s: tunnels of the bridge (-want +got):\n%s", step.name, diff)
		}
	}
}

// TestTunnelRefused: a tunnel that Open vSwitch cannot have keeps the number that it asks for, and is no reason to leave
// the rest of the bridge as it was.
func TestTunnelRefused(t *testing.T) {
	o, client, ctx := connected(t)
	vtep := netip.MustParseAddr("198.18.0.1")
	o.AddBridge("br9", "dummy")
	// Of two tunnels that differ in nothing the second is refused.
	o.VSCtl("add-port", "br9", "theirs", "--", "set", "interface", "theirs", "type=vxlan", "options:key=flow", "options:remote_ip=flow", "options:dst_port=4789")
	spec := Spec{
		Name: "br0", Datapath: "dummy", VTEP: vtep, Gateway: netip.MustParseAddr("172.11.0.1"), MTU: 1450, Tunnels: desired.NodeTunnels(vtep, tunnel.Encap{Type: tunnel.VXLAN, Port: 4789}),
	}
	want := desired.Ports{Tunnels: map[string]uint32{"vxlan0": 1}, Gateway: 2}
	for range 2 {
		ports, _, refused, err := Ensure(ctx, client, spec)
		if err != nil || !isRefused(refused) || !strings.Contains(refused.Error(), "UDP port 4789") || !ports.Equal(want) {
			t.Fatalf("ports %+v, refused %v, %v; want %+v", ports, refused, err, want)
		}
	}
	o.VSCtl("del-port", "theirs")
	if err := client.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	if ports, _, refused, err := Ensure(ctx, client, spec); err != nil || refused != nil || !ports.Equal(want) {
		t.Errorf("when it can have it: ports %+v, refused %v, %v; want %+v", ports, refused, err, want)
	}
}

// Open vSwitch has VXLAN at 4789 where nobody says another port.
func TestUDPPort(t *testing.T) {
	for option, want := range map[string]tunnel.Port{"": 4789, "8472": 8472, "many": 4789} {
		if got := UDPPort(ovs.Port{Type: "vxlan", Options: map[string]string{"dst_port": option}}); got != want {
			t.Errorf("%q: %d, want %d", option, got, want)
		}
	}
	if got := UDPPort(ovs.Port{Type: "internal"}); got != 0 {
		t.Errorf("no tunnel: %d", got)
	}
}

// TestNodeEncap: what nodes reach each other by is read by the mark of whoever made it, and its number: not by its
// name, nor by what somebody made of its row.
func TestNodeEncap(t *testing.T) {
	port := func(name, made, is, dst string, request uint32) ovs.Port {
		p := ovs.Port{Name: name, Type: is, OfportRequest: request, Options: map[string]string{"dst_port": dst}}
		if made != "" {
			p.ExternalIDs = map[string]string{keyTunnel: made}
		}
		return p
	}
	marked := func(p ovs.Port, at string) ovs.Port {
		p.ExternalIDs[keyTunnelPort] = at
		return p
	}
	theirs := port("theirs", "", "vxlan", "5000", 1)
	for name, tc := range map[string]struct {
		ports []ovs.Port
		want  tunnel.Encap
	}{
		"none":                            {[]ovs.Port{theirs, {Name: GatewayPort, Type: "internal"}}, tunnel.Encap{}},
		"ours":                            {[]ovs.Port{theirs, port("vxlan0", "vxlan", "vxlan", "8472", 1)}, tunnel.Encap{Type: tunnel.VXLAN, Port: 8472}},
		"of another release":              {[]ovs.Port{theirs, port("geneve0", "geneve", "geneve", "6081", 1)}, tunnel.Encap{Type: "geneve", Port: 6081}},
		"beside another":                  {[]ovs.Port{port("a6", "geneve", "geneve", "6081", 3), port("vxlan0", "vxlan", "vxlan", "4789", 1)}, tunnel.Encap{Type: tunnel.VXLAN, Port: 4789}},
		"whose type somebody changed":     {[]ovs.Port{port("vxlan0", "vxlan", "geneve", "4789", 1)}, tunnel.Encap{Type: tunnel.VXLAN, Port: 4789}},
		"whose number somebody changed":   {[]ovs.Port{port("vxlan0", "vxlan", "vxlan", "4789", 77)}, tunnel.Encap{Type: tunnel.VXLAN, Port: 4789}},
		"whose UDP port somebody changed": {[]ovs.Port{marked(port("vxlan0", "vxlan", "vxlan", "4799", 1), "8472")}, tunnel.Encap{Type: tunnel.VXLAN, Port: 8472}},
		"whose UDP port is taken away":    {[]ovs.Port{marked(port("vxlan0", "vxlan", "vxlan", "", 1), "8472")}, tunnel.Encap{Type: tunnel.VXLAN, Port: 8472}},
		"that a release moved which did not mark its UDP port": {[]ovs.Port{marked(port("vxlan0", "vxlan", "vxlan", "4790", 1), "8472")}, tunnel.Encap{Type: tunnel.VXLAN, Port: 4790}},
		"with a mark that is none":                             {[]ovs.Port{marked(port("vxlan0", "vxlan", "vxlan", "4789", 1), "many")}, tunnel.Encap{Type: tunnel.VXLAN, Port: 4789}},
		"of a release that did not mark it":                    {[]ovs.Port{port("vxlan0", "", "vxlan", "4789", 1)}, tunnel.Encap{Type: tunnel.VXLAN, Port: 4789}},
	} {
		if got := NodeEncap(tc.ports, 4790); got != tc.want {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
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
		{p("fd00:1:2:3::/64"), a("fd00:1:2:3::2"), 12},
	} {
		if got := PodOfport(tc.subnet, tc.addr); got != tc.want {
			t.Errorf("%s in %s: %d, want %d", tc.addr, tc.subnet, got, tc.want)
		}
	}
}
