package openflow

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/test/ovstest"
)

// receive lets a packet, as ovs-ofctl writes datapath flows, come in by port n.
func receive(o *ovstest.OVS, n int, packet string) {
	o.AppCtl("netdev-dummy/receive", fmt.Sprintf("p%d", n),
		fmt.Sprintf("in_port(%d),eth(src=0a:58:0a:00:00:01,dst=0a:58:0a:00:00:02),%s", n, packet))
}

func ipv4Packet(src, dst string, proto uint8) string {
	return fmt.Sprintf("eth_type(0x0800),ipv4(src=%s,dst=%s,proto=%d,tos=0,ttl=64,frag=no)", src, dst, proto)
}

func udpPacket(src, dst string, sport, dport int) string {
	return fmt.Sprintf("%s,udp(src=%d,dst=%d)", ipv4Packet(src, dst, ProtoUDP), sport, dport)
}

func tcpPacket(src, dst string, sport, dport int) string {
	return fmt.Sprintf("%s,tcp(src=%d,dst=%d),tcp_flags(syn)", ipv4Packet(src, dst, ProtoTCP), sport, dport)
}

// tracked makes connections known in zones 1 and 2, the last one translated, and
// gives each the name of its source port.
func tracked(t *testing.T, o *ovstest.OVS, c *Conn) {
	t.Helper()
	commit := func(port uint32, family Field, zone uint16, nat *NATSpec) Mod {
		return AddFlow(Flow{Match: NewMatch(InPort(port), family), Actions: []Action{CT(CTSpec{Commit: true, Zone: zone, NAT: nat})}})
	}
	dnat := &NATSpec{DNAT: true, AddrMin: addr("10.0.0.9"), PortMin: 8080}
	if err := c.Commit(testContext(t), []Mod{commit(1, IP(), 1, nil), commit(1, IPv6(), 1, nil), commit(2, IP(), 2, nil), commit(3, IP(), 2, dnat)}); err != nil {
		t.Fatal(err)
	}
	receive(o, 1, udpPacket("10.0.0.1", "10.0.0.2", 1001, 53))
	receive(o, 2, udpPacket("10.0.0.1", "10.0.0.2", 1002, 53))
	receive(o, 1, udpPacket("10.0.0.1", "10.0.0.3", 1003, 54))
	receive(o, 1, "eth_type(0x86dd),ipv6(src=fd00::1,dst=fd00::2,label=0,proto=17,tclass=0,hlimit=64,frag=no),udp(src=1004,dst=53)")
	receive(o, 1, tcpPacket("10.0.0.1", "10.0.0.2", 1005, 53))
	receive(o, 1, ipv4Packet("10.0.0.1", "10.0.0.2", ProtoICMP)+",icmp(type=8,code=0)")
	receive(o, 3, udpPacket("10.0.0.1", "10.96.0.10", 1007, 80))
	waitFor(t, func() bool { return len(connections(o)) == 7 })
}

// connections are the source ports of those tracked, "icmp" for that without.
func connections(o *ovstest.OVS) []string {
	var names []string
	for line := range strings.Lines(o.AppCtl("dpctl/dump-conntrack")) {
		if strings.HasPrefix(line, "icmp") {
			names = append(names, "icmp")
			continue
		}
		if _, after, ok := strings.Cut(line, "sport="); ok {
			port, _, _ := strings.Cut(after, ",")
			names = append(names, port)
		}
	}
	slices.Sort(names)
	return names
}

// Each filter takes the connections that it chooses, and no others.
func TestFlushConnections(t *testing.T) {
	o, c := startBridge(t)
	one, two := uint16(1), uint16(2)
	all := []string{"1001", "1002", "1003", "1004", "1005", "1007", "icmp"}
	for name, tc := range map[string]struct {
		filter CTFilter
		gone   []string
	}{
		"all":                  {CTFilter{}, all},
		"zone":                 {CTFilter{Zone: &two}, []string{"1002", "1007"}},
		"protocol":             {CTFilter{Protocol: ProtoTCP}, []string{"1005"}},
		"protocol in zone":     {CTFilter{Zone: &two, Protocol: ProtoUDP}, []string{"1002", "1007"}},
		"destination":          {CTFilter{Orig: CTTuple{Dst: addr("10.0.0.2")}}, []string{"1001", "1002", "1005", "icmp"}},
		"IPv6":                 {CTFilter{Orig: CTTuple{Src: addr("fd00::1")}}, []string{"1004"}},
		"destination and port": {CTFilter{Protocol: ProtoUDP, Orig: CTTuple{Dst: addr("10.0.0.2"), DstPort: 53}}, []string{"1001", "1002"}},
		"port":                 {CTFilter{Protocol: ProtoUDP, Orig: CTTuple{DstPort: 53}}, []string{"1001", "1002", "1004"}},
		"whole":                {CTFilter{Zone: &one, Protocol: ProtoUDP, Orig: CTTuple{addr("10.0.0.1"), addr("10.0.0.2"), 1001, 53}}, []string{"1001"}},
		"whole, zone of none":  {CTFilter{Zone: &two, Protocol: ProtoUDP, Orig: CTTuple{addr("10.0.0.1"), addr("10.0.0.2"), 1001, 53}}, nil},
		"service":              {CTFilter{Protocol: ProtoUDP, Orig: CTTuple{Dst: addr("10.96.0.10"), DstPort: 80}}, []string{"1007"}},
		"backend":              {CTFilter{Zone: &two, Protocol: ProtoUDP, Orig: CTTuple{Dst: addr("10.96.0.10")}, Reply: CTTuple{Src: addr("10.0.0.9"), SrcPort: 8080}}, []string{"1007"}},
		"backend of no one":    {CTFilter{Protocol: ProtoUDP, Reply: CTTuple{Src: addr("10.0.0.9"), SrcPort: 8081}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			tracked(t, o, c)
			if err := c.FlushConnections(testContext(t), tc.filter); err != nil {
				t.Fatal(err)
			}
			left := slices.DeleteFunc(slices.Clone(all), func(s string) bool { return slices.Contains(tc.gone, s) })
			if d := cmp.Diff(left, connections(o), cmp.Transformer("text", func(s []string) string { return strings.Join(s, " ") })); d != "" {
				t.Errorf("after %s (-want +left):\n%s", tc.filter, d)
			}
		})
	}
}

// What Open vSwitch would take for something else is not sent.
func TestFlushConnectionsRefused(t *testing.T) {
	whole := CTTuple{addr("10.0.0.1"), addr("10.0.0.2"), 1001, 53}
	for name, tc := range map[string]struct {
		filter CTFilter
		want   string
	}{
		"ICMP":    {CTFilter{Protocol: ProtoICMP}, "(ct_nw_proto=1): connections of ICMP"},
		"ICMPv6":  {CTFilter{Protocol: ProtoICMPv6}, "of ICMP"},
		"port":    {CTFilter{Reply: CTTuple{Src: addr("fd00::1"), SrcPort: 1}}, "(reply(ct_ipv6_src=fd00::1,ct_tp_src=1)): a port"},
		"no zone": {CTFilter{Protocol: ProtoUDP, Orig: whole}, "give its zone"},
	} {
		if err := new(Conn).FlushConnections(t.Context(), tc.filter); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q in it", name, err, tc.want)
		}
	}
}

// A switch that does not know the message says so, and it can be told from other
// errors.
func TestUnknownMessageIsUnsupported(t *testing.T) {
	_, c := startBridge(t)
	err := c.confirm(testContext(t), func(b []byte, xid uint32) []byte {
		b = appendCTFlush(b, xid, CTFilter{})
		b[headerSize+7] = 99 // the subtype
		return b
	})
	if !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("error is %v, not ErrUnsupported", err)
	}
	if err := c.AddMeter(testContext(t), Meter{ID: 1, Bands: []Band{{Rate: 1}}}); err == nil || errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a meter twice: %v", err)
	}
}
