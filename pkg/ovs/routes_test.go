package ovs

import (
	"net/netip"
	"testing"
)

func TestParseTunnelRoute(t *testing.T) {
	a, p := netip.MustParseAddr, netip.MustParsePrefix
	for line, want := range map[string]TunnelRoute{
		"User: 192.0.2.7/32 dev br-phy SRC 192.0.2.1\n":                {Dst: p("192.0.2.7/32"), Device: "br-phy", Src: a("192.0.2.1")},
		"User: 203.0.113.3/32 dev br-phy GW 192.0.2.254 SRC 192.0.2.1": {Dst: p("203.0.113.3/32"), Device: "br-phy", Via: a("192.0.2.254"), Src: a("192.0.2.1")},
		"User: 192.0.2.7/32 MARK 5 dev br-phy SRC 192.0.2.1":           {},
		"Cached: 192.0.2.0/24 dev br-phy SRC 192.0.2.1":                {},
		"Route Table:":              {},
		"User: nonsense dev br-phy": {},
		"User: 2001:db8::7/128 dev br-phy GW fe80::1 SRC 2001:db8::1":              {Dst: p("2001:db8::7/128"), Device: "br-phy", Via: a("fe80::1"), Src: a("2001:db8::1")},
		"User: 192.0.2.7/32 dev br-phy SRC 192.0.2.1 something that comes one day": {Dst: p("192.0.2.7/32"), Device: "br-phy", Src: a("192.0.2.1")},
		"":                   {},
		"User: 192.0.2.7/32": {},
	} {
		got, ok := parseTunnelRoute(line)
		if ok != want.Dst.IsValid() || ok && got != want {
			t.Errorf("%q is %+v, %t; want %+v", line, got, ok, want)
		}
	}
}

func TestParseTunnelListener(t *testing.T) {
	for line, want := range map[string]string{
		"vxlan_sys_4789 (4) : eth(dst=02:00:c6:12:00:01),eth_type(0x0800),ipv4(dst=198.18.0.1,proto=17,frag=no),udp(dst=4789)": "198.18.0.1",
		"vxlan_sys_4789 (4) : eth_type(0x86dd),ipv6(dst=2001:db8::1,proto=17,frag=no),udp(dst=4789)":                           "2001:db8::1",
		"genev_sys_6081 (4) : eth_type(0x0800),ipv4(dst=198.18.0.1,proto=17,frag=no),udp(dst=6081)":                            "",
		"vxlan_sys_4789 (4) ref_cnt=1": "",
		"Listening ports:":             "",
	} {
		got, ok := parseTunnelListener(line, 4789)
		if ok != (want != "") || ok && got.String() != want {
			t.Errorf("%q: %s, %t; want %q", line, got, ok, want)
		}
	}
}
