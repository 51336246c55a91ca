package pipeline

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
	"github.com/k8s-ovs/k8s-ovs/test/ovstest"
)

// bridge is a real bridge with the model's ports and flows.
type bridge struct {
	*ovstest.OVS
	t    *testing.T
	conn *of.Conn
	m    Model
}

func newBridge(t *testing.T, m Model) *bridge {
	t.Helper()
	o := ovstest.Start(t)
	o.AddBridge("br0", "dummy")
	o.VSCtl("set-fail-mode", "br0", "secure")
	for i, n := range m.TunnelPorts {
		name := fmt.Sprintf("vxlan%d", i)
		o.VSCtl("add-port", "br0", name, "--", "set", "interface", name, "type=vxlan", "options:key=flow", "options:remote_ip=flow",
			fmt.Sprintf("options:dst_port=%d", m.UDPPorts[i]), fmt.Sprintf("ofport_request=%d", n))
	}
	o.AddDummyPort("br0", "tun0", int(m.GatewayPort))
	for _, p := range m.Pods {
		o.AddDummyPort("br0", fmt.Sprintf("p%d", p.Port), int(p.Port))
	}
	conn, err := of.Dial(context.Background(), o.Mgmt("br0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	b := &bridge{OVS: o, t: t, conn: conn, m: m}
	meters := m.Meters()
	for _, t := range m.Tenants {
		meters = append(meters, m.TenantMeters(t, Allowance{Rate: 1000, Burst: 1000})...)
	}
	for _, p := range m.Pods {
		if p.Meter > 0 {
			meters = append(meters, of.Meter{ID: p.Meter, Flags: of.MeterKbps, Bands: []of.Band{{Rate: 1000}}})
		}
		if p.Connections > 0 {
			meters = append(meters, ConnectionsMeter(p.Port, Allowance{Rate: 1000, Burst: 1000}))
		}
	}
	for _, meter := range meters {
		if err := conn.AddMeter(context.Background(), meter); err != nil {
			t.Fatal(err)
		}
	}
	b.install(m)
	return b
}

// install makes the model's flows, and more, all that the bridge has.
func (b *bridge) install(m Model, more ...of.Flow) {
	b.t.Helper()
	mods := []of.Mod{of.DeleteFlows(of.FlowFilter{})}
	for _, f := range append(m.Flows(), more...) {
		mods = append(mods, of.AddFlow(f))
	}
	if err := b.conn.Commit(context.Background(), mods); err != nil {
		b.t.Fatal(err)
	}
	b.m = m
}

var (
	outputPort = regexp.MustCompile(`(?m)^\s+(?:\d+\. )?(?:output:(\d+)|output:NXM_NX_REG2\[\]\n\s+-> output port is (\d+))`)
	inPort     = fmt.Sprint(portIn)
)

// trace is where Open vSwitch itself sends the packet: "drop", "in_port", or
// the port's number; and the whole trace. (Without an underlay it cannot send
// what the pipeline put into the tunnel; that the pipeline did so is what counts.)
// states are what connection tracking says, each time that it is asked; a trace
// translates no address.
func (b *bridge) trace(packet string, states ...string) (where, text string) {
	b.t.Helper()
	args := []string{"ofproto/trace", "br0", packet}
	for _, s := range states {
		args = append(args, "--ct-next", s)
	}
	text = b.AppCtl(args...)
	out := outputPort.FindAllStringSubmatch(text, -1)
	switch {
	case len(out) == 1 && out[0][1]+out[0][2] == inPort:
		return "in_port", text
	case strings.Contains(text, "skipping output to input port"):
		return "drop", text
	case len(out) == 1:
		return out[0][1] + out[0][2], text
	case len(out) == 0 && strings.Contains(text, "Datapath actions: drop"):
		return "drop", text
	}
	b.t.Fatalf("trace of %s is not understood:\n%s", packet, text)
	return "", ""
}

func port(n uint32) string { return fmt.Sprint(n) }

func fromPod(p Pod, dst string, extra string) string {
	return fmt.Sprintf("in_port=%d,udp,dl_src=%s,dl_dst=0a:58:ac:0b:00:01,nw_src=%s,nw_dst=%s%s", p.Port, p.MAC, p.Addresses[0], dst, extra)
}

// icmpOf makes a packet of UDP one of ICMP "fragmentation needed".
func icmpOf(packet string) string {
	return strings.Replace(packet, ",udp,", ",icmp,", 1) + ",icmp_type=3,icmp_code=4"
}

// TestTrace asks Open vSwitch where packets of every kind go.
func TestTrace(t *testing.T) {
	m := sample()
	const v1, v2 = netid.ID(300924), netid.ID(400000)
	a := pod("172.11.0.2", 12, 1)
	a2 := pod("172.11.0.5", 15, 1)
	b := pod("172.11.0.6", 16, 2)
	g := pod("172.11.0.3", 13, 3)
	u := pod("172.11.0.4", 14, 4)
	j := pod("172.11.0.7", 17, 5) // another namespace that joined a's
	m.Pods = []Pod{a, a2, b, g, u, j}
	m.Tenants = []Tenant{{Slot: 1, NetID: v1, Known: true}, {Slot: 2, NetID: v2, Known: true}, {Slot: 3, NetID: netid.Global, Known: true}, {Slot: 4}, {Slot: 5, NetID: v1, Known: true}}
	br := newBridge(t, m)

	const pods = "in_port=12,dl_src=0a:58:ac:0b:00:02,dl_dst=0a:58:ac:0b:00:01"
	tunnel := func(vni netid.ID, vtep, src, dst string) string {
		return fmt.Sprintf("in_port=1,tun_id=%d,tun_src=%s,tun_dst=198.18.0.1,udp,nw_src=%s,nw_dst=%s", vni, vtep, src, dst)
	}
	for _, tc := range []struct{ name, packet, want string }{
		{"same tenant, same node", fromPod(a, "172.11.0.5", ""), "15"},
		{"joined namespace, same node", fromPod(a, "172.11.0.7", ""), "17"},
		{"joined namespace, back", fromPod(j, "172.11.0.2", ""), "12"},
		{"other tenant, same node", fromPod(a, "172.11.0.6", ""), "drop"},
		{"to a global pod", fromPod(a, "172.11.0.3", ""), "13"},
		{"from a global pod", fromPod(g, "172.11.0.6", ""), "16"},
		{"tenant not known: sends", fromPod(u, "172.11.0.3", ""), "drop"},
		{"tenant not known: receives", fromPod(g, "172.11.0.4", ""), "drop"},
		{"address that no pod has", fromPod(a, "172.11.0.99", ""), "drop"},
		{"to a peer", fromPod(a, "172.11.4.9", ""), "1"},
		{"to a subnet that no node has", fromPod(a, "172.11.200.9", ""), "drop"},
		{"to the own gateway", fromPod(a, "172.11.0.1", ""), "2"},
		{"to a peer's gateway", fromPod(a, "172.11.4.1", ""), "1"},
		{"to the outside", fromPod(a, "203.0.113.9", ""), "2"},
		{"multicast", fromPod(a, "224.0.0.251", ""), "drop"},
		{"broadcast", fromPod(a, "255.255.255.255", ""), "drop"},
		{"the node's loopback", fromPod(a, "127.0.0.1", ""), "drop"},
		{"VXLAN to a node", fromPod(a, "198.18.0.2", ",udp_dst=4789"), "drop"},
		{"VXLAN to the own node", fromPod(a, "198.18.0.1", ",udp_dst=4789"), "drop"},
		{"VXLAN to the gateway", fromPod(a, "172.11.0.1", ",udp_dst=4789"), "drop"},
		{"UDP 4789 inside the tenant is the tenant's own", fromPod(a, "172.11.0.5", ",udp_dst=4789"), "15"},
		{"a path's MTU to the own node", icmpOf(fromPod(a, "198.18.0.1", "")), "drop"},
		{"a path's MTU to the gateway", icmpOf(fromPod(a, "172.11.0.1", "")), "drop"},
		{"a path's MTU to a peer", icmpOf(fromPod(a, "198.18.0.2", "")), "drop"},
		{"a path's MTU from a peer's pod", icmpOf(tunnel(v1, "198.18.0.2", "172.11.4.9", "172.11.0.1")), "drop"},
		{"a path's MTU inside the tenant is the tenant's own", icmpOf(fromPod(a, "172.11.0.5", "")), "15"},
		{"other ICMP to the own node", strings.Replace(icmpOf(fromPod(a, "198.18.0.1", "")), "icmp_code=4", "icmp_code=3", 1), "2"},
		{"TCP 4789 to the outside", strings.Replace(fromPod(a, "203.0.113.9", ",tcp_dst=4789"), ",udp,", ",tcp,", 1), "2"},

		{"forged MAC", "in_port=12,udp,dl_src=0a:58:ac:0b:00:05,nw_src=172.11.0.2,nw_dst=172.11.0.5", "drop"},
		{"forged address", pods + ",udp,nw_src=172.11.0.5,nw_dst=172.11.0.5", "drop"},
		{"forged address of the gateway", pods + ",udp,nw_src=172.11.0.1,nw_dst=172.11.0.6", "drop"},
		{"another pod's address and MAC", "in_port=12,udp,dl_src=0a:58:ac:0b:00:06,nw_src=172.11.0.6,nw_dst=172.11.0.6", "drop"},
		{"IPv6", pods + ",ipv6", "drop"},
		{"other Ethernet", pods + ",dl_type=0x88cc", "drop"},
		{"a VLAN tag", pods + ",dl_vlan=5,udp,nw_src=172.11.0.2,nw_dst=172.11.0.5", "drop"},

		{"ARP for the gateway", pods + ",arp,arp_op=1,arp_spa=172.11.0.2,arp_tpa=172.11.0.1,arp_sha=0a:58:ac:0b:00:02", "in_port"},
		{"ARP for anybody in the overlay", pods + ",arp,arp_op=1,arp_spa=172.11.0.2,arp_tpa=172.11.77.1,arp_sha=0a:58:ac:0b:00:02", "in_port"},
		{"ARP for outside", pods + ",arp,arp_op=1,arp_spa=172.11.0.2,arp_tpa=198.18.0.1,arp_sha=0a:58:ac:0b:00:02", "drop"},
		{"ARP with a forged sender", pods + ",arp,arp_op=1,arp_spa=172.11.0.5,arp_tpa=172.11.0.1,arp_sha=0a:58:ac:0b:00:02", "drop"},
		{"ARP with a forged sender MAC", pods + ",arp,arp_op=1,arp_spa=172.11.0.2,arp_tpa=172.11.0.1,arp_sha=0a:58:ac:0b:00:05", "drop"},
		{"an ARP answer nobody asked for", pods + ",arp,arp_op=2,arp_spa=172.11.0.2,arp_tpa=172.11.0.5,arp_sha=0a:58:ac:0b:00:02", "drop"},
		{"ARP by the host", "in_port=2,arp,arp_op=1,arp_spa=172.11.0.1,arp_tpa=169.254.77.1", "in_port"},

		{"tunnel: same tenant", tunnel(v1, "198.18.0.2", "172.11.4.9", "172.11.0.2"), "12"},
		{"tunnel: other tenant", tunnel(v1, "198.18.0.2", "172.11.4.9", "172.11.0.6"), "drop"},
		{"tunnel: from global", tunnel(netid.Global, "198.18.0.2", "172.11.4.9", "172.11.0.6"), "16"},
		{"tunnel: to global", tunnel(v2, "198.18.0.2", "172.11.4.9", "172.11.0.3"), "13"},
		{"tunnel: to the gateway", tunnel(v2, "198.18.0.2", "172.11.4.9", "172.11.0.1"), "2"},
		{"tunnel: stranger", tunnel(v1, "198.18.0.77", "172.11.4.9", "172.11.0.2"), "drop"},
		{"tunnel: a peer with another's source", tunnel(v1, "198.18.0.2", "172.11.8.9", "172.11.0.2"), "drop"},
		{"tunnel: a peer with our source", tunnel(v1, "198.18.0.2", "172.11.0.5", "172.11.0.2"), "drop"},
		{"tunnel: to the outside", tunnel(v1, "198.18.0.2", "172.11.4.9", "203.0.113.9"), "drop"},
		{"tunnel: to another peer", tunnel(v1, "198.18.0.2", "172.11.4.9", "172.11.8.9"), "drop"},
		{"tunnel: ARP", "in_port=1,tun_id=300924,tun_src=198.18.0.2,arp,arp_op=1,arp_tpa=172.11.0.2", "drop"},

		{"host to a pod", "in_port=2,udp,nw_src=172.11.0.1,nw_dst=172.11.0.6", "16"},
		{"host to a remote pod", "in_port=2,udp,nw_src=172.11.0.1,nw_dst=172.11.4.9", "1"},
		{"outside to a pod, answered", "in_port=2,tcp,nw_src=203.0.113.9,nw_dst=172.11.0.2", "12"},
		{"a pod's packet turned back by the host", "in_port=2,udp,nw_src=172.11.0.2,nw_dst=172.11.0.6", "drop"},
		{"a remote pod's address from the host", "in_port=2,udp,nw_src=172.11.4.9,nw_dst=172.11.0.6", "drop"},
		{"host to the outside through br0", "in_port=2,udp,nw_src=172.11.0.1,nw_dst=203.0.113.9", "drop"},
		{"a port nobody attached", "in_port=77,udp,nw_src=172.11.0.2,nw_dst=172.11.0.5", "drop"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			br.t = t
			if got, text := br.trace(tc.packet); got != tc.want {
				t.Errorf("goes to %s, want %s\n%s", got, tc.want, text)
			}
		})
	}

	t.Run("what the packet carries", func(t *testing.T) {
		br.t = t
		_, text := br.trace(fromPod(a, "172.11.4.9", ""))
		for _, want := range []string{"NXM_NX_TUN_ID[0..31] is now 0x4977c", "tun_dst=198.18.0.2"} {
			if !strings.Contains(text, want) {
				t.Errorf("no %s in\n%s", want, text)
			}
		}
		_, text = br.trace(fromPod(a, "172.11.0.5", ""))
		if want := "dst=0a:58:ac:0b:00:05"; !strings.Contains(text, want) {
			t.Errorf("no %s in\n%s", want, text)
		}
	})
}

// TestTraceARP reads the answer's fields.
func TestTraceARP(t *testing.T) {
	br := newBridge(t, sample())
	_, text := br.trace("in_port=12,dl_src=0a:58:ac:0b:00:02,arp,arp_op=1,arp_spa=172.11.0.2,arp_tpa=172.11.9.7,arp_sha=0a:58:ac:0b:00:02")
	final := text[strings.Index(text, "Final flow:"):]
	for _, want := range []string{
		"dl_src=0a:58:ac:0b:09:07", "dl_dst=0a:58:ac:0b:00:02", "arp_spa=172.11.9.7", "arp_tpa=172.11.0.2", "arp_op=2",
		"arp_sha=0a:58:ac:0b:09:07", "arp_tha=0a:58:ac:0b:00:02",
	} {
		if !strings.Contains(final, want) {
			t.Errorf("no %s in the answer:\n%s", want, final)
		}
	}
}

// TestTraceProperty: for random pods and tenants, Open vSwitch delivers exactly
// what netid.Allowed allows, between all pairs, locally and from a peer.
func TestTraceProperty(t *testing.T) {
	const seed = 20170401
	rnd := rand.New(rand.NewPCG(seed, seed))
	m := sample()
	m.Pods = nil
	for i := range 8 {
		m.Pods = append(m.Pods, pod(fmt.Sprintf("172.11.0.%d", 10+i), uint32(20+i), 0))
	}
	m.Tenants = make([]Tenant, 5)
	br := newBridge(t, m)
	ids := []netid.ID{netid.Global, 10, 300924, netid.Max}
	for round := range 3 {
		for i := range m.Tenants {
			m.Tenants[i] = Tenant{Slot: rnd.Uint32(), NetID: ids[rnd.IntN(len(ids))], Known: rnd.IntN(6) > 0}
		}
		of := make([]Tenant, len(m.Pods)) // each pod's
		for i := range m.Pods {
			of[i] = m.Tenants[rnd.IntN(len(m.Tenants))]
			m.Pods[i].Slot = of[i].Slot
		}
		br.install(m)
		for i, from := range m.Pods {
			for k, dest := range m.Pods {
				if i == k {
					continue
				}
				want := "drop"
				if of[i].Known && of[k].Known && netid.Allowed(of[i].NetID, of[k].NetID) {
					want = port(dest.Port)
				}
				if got, text := br.trace(fromPod(from, dest.Addresses[0].String(), "")); got != want {
					t.Fatalf("seed %d round %d: %+v %+v -> %+v %+v goes to %s, want %s\n%s", seed, round, from, of[i], dest, of[k], got, want, text)
				}
			}
		}
		for k, dest := range m.Pods {
			for _, vni := range ids {
				want := "drop"
				if of[k].Known && netid.Allowed(vni, of[k].NetID) {
					want = port(dest.Port)
				}
				packet := fmt.Sprintf("in_port=1,tun_id=%d,tun_src=198.18.0.2,udp,nw_src=172.11.4.9,nw_dst=%s", vni, dest.Addresses[0])
				if got, text := br.trace(packet); got != want {
					t.Fatalf("seed %d round %d: VNI %s -> %+v %+v goes to %s, want %s\n%s", seed, round, vni, dest, of[k], got, want, text)
				}
			}
		}
	}
}

// TestTracePeers asks where packets of peers go that are no nodes, or behind the second of
// two tunnel ports.
func TestTracePeers(t *testing.T) {
	m := withPeers(sample())
	const v1, v2 = netid.ID(300924), netid.ID(400000)
	a, b, g := pod("172.11.0.2", 12, 1), pod("172.11.0.6", 16, 2), pod("172.11.0.3", 13, 3)
	m.Pods = []Pod{a, b, g}
	m.Tenants = []Tenant{{Slot: 1, NetID: v1, Known: true}, {Slot: 2, NetID: v2, Known: true}, {Slot: 3, NetID: netid.Global, Known: true}}
	br := newBridge(t, m)
	const several, one, two, none, other = "198.18.0.20", "198.18.0.21", "198.18.0.22", "198.18.0.23", "198.18.0.24"
	from := func(in uint32, vtep string, vni netid.ID, src, dst string) string {
		return fmt.Sprintf("in_port=%d,tun_id=%d,tun_src=%s,tun_dst=198.18.0.1,udp,nw_src=%s,nw_dst=%s", in, vni, vtep, src, dst)
	}
	arp := func(in uint32, vtep string, vni netid.ID) string {
		return fmt.Sprintf("in_port=%d,tun_id=%d,tun_src=%s,arp,arp_op=1,arp_tpa=172.11.0.2", in, vni, vtep)
	}
	for _, tc := range []struct {
		name, packet, want string
		reason             Reason
	}{
		{"several prefixes, the first", from(1, several, v1, "172.11.20.9", "172.11.0.2"), "12", 0},
		{"several prefixes, the last", from(1, several, v2, "192.0.2.20", "172.11.0.6"), "16", 0},
		{"several prefixes, none of them", from(1, several, v1, "192.0.2.21", "172.11.0.2"), "drop", UnknownPeer},
		{"several prefixes, other tenant", from(1, several, v1, "192.0.2.20", "172.11.0.6"), "drop", OtherTenant},
		{"listed netID", from(1, one, v1, "192.0.2.21", "172.11.0.2"), "12", 0},
		{"listed netID to a global pod", from(1, one, v1, "192.0.2.21", "172.11.0.3"), "13", 0},
		{"listed netID to another tenant's", from(1, one, v1, "192.0.2.21", "172.11.0.6"), "drop", OtherTenant},
		{"listed netID, another's address", from(1, one, v1, "192.0.2.20", "172.11.0.2"), "drop", UnknownPeer},
		{"listed netID, a pod's address", from(1, one, v1, "172.11.0.6", "172.11.0.2"), "drop", UnknownPeer},
		{"listed netID, ARP", arp(1, one, v1), "drop", UnknownPeer},
		{"another netID", from(1, one, v2, "192.0.2.21", "172.11.0.6"), "drop", ForeignNetID},
		{"another netID, another's address", from(1, one, v2, "192.0.2.20", "172.11.0.6"), "drop", ForeignNetID},
		{"another netID, ARP", arp(1, one, v2), "drop", ForeignNetID},
		{"the global netID", from(1, one, netid.Global, "192.0.2.21", "172.11.0.2"), "drop", ForeignNetID},
		{"the global netID to the gateway", from(1, one, netid.Global, "192.0.2.21", "172.11.0.1"), "drop", ForeignNetID},
		{"two netIDs, the first", from(3, two, v1, "192.0.2.129", "172.11.0.2"), "12", 0},
		{"two netIDs, the second", from(3, two, v2, "172.11.24.5", "172.11.0.6"), "16", 0},
		{"two netIDs, beside its prefix", from(3, two, v2, "172.11.24.65", "172.11.0.6"), "drop", UnknownPeer},
		{"an empty list", from(3, none, v1, "192.0.2.23", "172.11.0.2"), "drop", ForeignNetID},
		{"all netIDs by the second port", from(3, other, netid.Global, "172.11.28.9", "172.11.0.6"), "16", 0},
		{"a peer of the second port by the first", from(1, other, v1, "172.11.28.9", "172.11.0.2"), "drop", UnknownPeer},
		{"a listed peer of the second port by the first", from(1, two, v1, "192.0.2.129", "172.11.0.2"), "drop", UnknownPeer},
		{"a node by the second port", from(3, "198.18.0.2", v1, "172.11.4.9", "172.11.0.2"), "drop", UnknownPeer},
		{"a listed peer of the first port by the second", from(3, one, v1, "192.0.2.21", "172.11.0.2"), "drop", UnknownPeer},
		{"a peer to another peer", from(1, several, v1, "172.11.20.9", "192.0.2.21"), "drop", NoPod},
		{"to a second prefix", fromPod(a, "192.0.2.20", ""), "1", 0},
		{"to a peer of the second port", fromPod(a, "192.0.2.130", ""), "3", 0},
		{"to its other prefix", fromPod(a, "172.11.24.5", ""), "3", 0},
		{"beside it", fromPod(a, "172.11.24.65", ""), "drop", NoNode},
		{"the second UDP port to a node", fromPod(a, "198.18.0.2", ",udp_dst=8472"), "drop", VXLANToHost},
	} {
		t.Run(tc.name, func(t *testing.T) {
			br.t = t
			got, text := br.trace(tc.packet)
			if got != tc.want || dropReason(text) != tc.reason {
				t.Errorf("goes to %s for %q, want %s for %q\n%s", got, dropReason(text), tc.want, tc.reason, text)
			}
		})
	}
	for dst, want := range map[string]string{"192.0.2.20": several, "192.0.2.21": one, "172.11.24.5": two, "172.11.28.9": other, "172.11.4.9": "198.18.0.2"} {
		if _, text := br.trace(fromPod(a, dst, "")); !strings.Contains(text, "tun_dst="+want) || !strings.Contains(text, "NXM_NX_TUN_ID[0..31] is now 0x4977c") {
			t.Errorf("to %s: not to peer %s\n%s", dst, want, text)
		}
	}
}

// dropReason is that of the last flow of a trace.
func dropReason(trace string) Reason {
	cookies := regexp.MustCompile(`cookie (0x[0-9a-f]+)`).FindAllStringSubmatch(trace, -1)
	if len(cookies) == 0 {
		return 0
	}
	v, err := strconv.ParseUint(cookies[len(cookies)-1][1], 0, 64)
	if err != nil {
		panic(err)
	}
	return DecodeCookie(v).Reason
}

// TestTracePeersProperty: of random peers on two tunnel ports, Open vSwitch takes exactly
// what comes by the peer's own port with a netID that it may bring, from one of its
// prefixes, and sends what is for them that way.
func TestTracePeersProperty(t *testing.T) {
	const seed = 20261128
	rnd := rand.New(rand.NewPCG(seed, seed))
	ids := []netid.ID{netid.Global, 10, 300924, netid.Max}
	m := sample()
	m.TunnelPorts, m.UDPPorts = []uint32{1, 3}, []tunnel.Port{4789, 8472}
	m.Tenants, m.Pods = nil, nil
	for i, id := range ids {
		m.Tenants = append(m.Tenants, Tenant{Slot: uint32(i + 1), NetID: id, Known: true})
		m.Pods = append(m.Pods, pod(fmt.Sprintf("172.11.0.%d", 10+i), uint32(20+i), uint32(i+1)))
	}
	br := newBridge(t, m)
	seen := map[Reason]int{}
	type behind struct {
		peer    Peer
		address netip.Addr
	}
	for round := range 3 {
		// Peers share nothing but the VTEP addresses, one by each port.
		m.Peers = nil
		var all []behind
		for n := range 6 {
			p := Peer{Port: m.TunnelPorts[n%2], VTEP: addr(fmt.Sprintf("198.18.0.%d", 2+n/2)), NetIDs: NetIDs{All: rnd.IntN(3) == 0}}
			for _, id := range ids {
				if !p.NetIDs.All && rnd.IntN(2) == 0 {
					p.NetIDs.List = append(p.NetIDs.List, id)
				}
			}
			for k := range 1 + rnd.IntN(3) {
				a := addr(fmt.Sprintf("192.0.%d.%d", 10+n, 64*k))
				p.Prefixes = append(p.Prefixes, netip.PrefixFrom(a, 26+rnd.IntN(7)))
				all = append(all, behind{p, a})
			}
			m.Peers = append(m.Peers, p)
		}
		br.install(m)
		for _, to := range all {
			way := to.peer.VTEP.String()
			if got, text := br.trace(fromPod(m.Pods[0], to.address.String(), "")); got != port(to.peer.Port) || !strings.Contains(text, "tun_dst="+way) {
				t.Fatalf("seed %d round %d: to %s goes to %s, want %d to %s\n%s", seed, round, to.address, got, to.peer.Port, way, text)
			}
		}
		for range 150 {
			sender, from := all[rnd.IntN(len(all))], all[rnd.IntN(len(all))]
			in, k, vni := m.TunnelPorts[rnd.IntN(2)], rnd.IntN(len(ids)), ids[rnd.IntN(len(ids))]
			if rnd.IntN(2) == 0 {
				from, in = sender, sender.peer.Port
			}
			want, reason := wantFromPeer(m.Peers, in, sender.peer.VTEP, vni, from.address, ids[k])
			seen[reason]++
			if want == "" {
				want = port(m.Pods[k].Port)
			}
			packet := fmt.Sprintf("in_port=%d,tun_id=%d,tun_src=%s,udp,nw_src=%s,nw_dst=%s", in, vni, sender.peer.VTEP, from.address, m.Pods[k].Addresses[0])
			if got, text := br.trace(packet); got != want || dropReason(text) != reason {
				t.Fatalf("seed %d round %d: %s goes to %s for %q, want %s for %q; peers %+v\n%s", seed, round, packet, got, dropReason(text), want, reason, m.Peers, text)
			}
		}
	}
	for _, r := range []Reason{0, UnknownPeer, ForeignNetID, OtherTenant} {
		if seen[r] < 20 {
			t.Errorf("only %d packets end with %q: the test shows little", seen[r], r)
		}
	}
}

// wantFromPeer is what becomes of a packet that comes by port in from vtep, from src with
// vni, for a pod of tenant to: "drop" and why, or nothing where the pod gets it.
func wantFromPeer(peers []Peer, in uint32, vtep netip.Addr, vni netid.ID, src netip.Addr, to netid.ID) (string, Reason) {
	i := slices.IndexFunc(peers, func(p Peer) bool { return p.Port == in && p.VTEP == vtep })
	switch {
	case i < 0:
		return "drop", UnknownPeer
	case !peers[i].NetIDs.All && !slices.Contains(peers[i].NetIDs.List, vni):
		return "drop", ForeignNetID
	case !slices.ContainsFunc(peers[i].Prefixes, func(p netip.Prefix) bool { return p.Contains(src) }):
		return "drop", UnknownPeer
	case !netid.Allowed(vni, to):
		return "drop", OtherTenant
	}
	return "", 0
}

// TestTraceICMPErrors: ICMP errors about connections to services are translated, once,
// and those of another tenant go nowhere, whatever connection tracking says.
func TestTraceICMPErrors(t *testing.T) {
	m := with(OVS)
	client := pod("172.11.0.5", 15, 101)
	stranger := pod("172.11.0.6", 16, 104)
	m.Pods = append(m.Pods, client, stranger)
	m.Tenants = append(m.Tenants, Tenant{Slot: 104, NetID: 400000, Known: true, Serves: true})
	br := newBridge(t, m)
	const vip = "10.96.0.10"
	for _, f := range m.ServiceAddress(ServiceAddress{VIP: addr(vip), Slot: 101}) {
		if err := br.conn.Commit(context.Background(), []of.Mod{of.AddFlow(f)}); err != nil {
			t.Fatal(err)
		}
	}
	failed := func(from Pod, dst string, icmp int) string {
		return strings.Replace(fromPod(from, dst, ""), ",udp,", ",icmp,", 1) + fmt.Sprintf(",icmp_type=%d,icmp_code=1", icmp)
	}
	const back, there, again = "ct(table=40,zone=65520,nat)", "ct(table=20,zone=65520,nat)", "ct(commit,table=20,zone=65520,nat)"
	endpoint := m.Pods[0]
	for _, icmp := range []int{3, 11, 12} {
		for _, tc := range []struct {
			name, packet string
			states       []string
			want         string
			tracked      []string
		}{
			{"an endpoint's", failed(endpoint, client.Addresses[0].String(), icmp), []string{"trk,rel,rpl"}, "15", []string{back}},
			{"about nothing known", failed(endpoint, client.Addresses[0].String(), icmp), []string{"trk,inv"}, "15", []string{back}},
			{"another tenant's", failed(stranger, client.Addresses[0].String(), icmp), []string{"trk,rel,rpl,snat"}, "drop", []string{back}},
			{"a client's, translated at once (userspace)", failed(client, vip, icmp), []string{"trk,rel,dnat"}, "drop", []string{there}},
			{"a client's, translated when committed (kernel)", failed(client, vip, icmp), []string{"trk,rel", "trk,rel,dnat"}, "drop", []string{there, again}},
			{"a client's, never translated", failed(client, vip, icmp), []string{"trk,rel", "trk,rel", "trk,rel"}, "drop", []string{there, again}},
			{"another tenant's to the service", failed(stranger, vip, icmp), []string{"trk,rel", "trk,rel,dnat"}, "drop", nil},
		} {
			got, text := br.trace(tc.packet, tc.states...)
			if tracked := trackedBy.FindAllString(text, -1); got != tc.want || !slices.Equal(tracked, tc.tracked) {
				t.Errorf("%s (ICMP %d) goes to %s by %q, want %s by %q\n%s", tc.name, icmp, got, tracked, tc.want, tc.tracked, text)
			}
		}
	}
}

// trackedBy finds what a packet is tracked by in a trace.
var trackedBy = regexp.MustCompile(`ct\((?:commit,)?table=\d+,[^)]*\)`)

// TestSize: only packets to a peer whose path carries less are measured, and only
// what is larger comes to the agent, by way of its meter.
func TestSize(t *testing.T) {
	m := sample()
	br := newBridge(t, m)
	const want = "check_pkt_len(size=1364,gt(meter("
	for dst, measured := range map[string]bool{"172.11.12.9": true, "172.11.8.9": false, "172.11.0.3": false, "203.0.113.9": false} {
		_, text := br.trace(fromPod(m.Pods[0], dst, ""))
		if strings.Contains(text, want) != measured || strings.Contains(text, "CONTROLLER") != measured {
			t.Errorf("to %s: measured is not %t:\n%s", dst, measured, text)
		}
	}
	if where, text := br.trace(fromPod(m.Pods[0], "172.11.12.9", "")); where != port(m.TunnelPorts[0]) {
		t.Errorf("a small packet goes to %s\n%s", where, text)
	}
}

// TestReadBack: what the switch says it has compares equal with what was
// written, and ovs-ofctl reads our text as the same flows.
func TestReadBack(t *testing.T) {
	m := withPolicies(with(OVS))
	rules := flowsOf(NewRules().Set(samplePolicies()))
	br := newBridge(t, m)
	br.install(m, rules...)
	stats, err := br.conn.Flows(context.Background(), of.FlowFilter{})
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]of.Flow{}
	for _, s := range stats {
		have[s.Key()] = s.Flow
	}
	want := append(m.Flows(), rules...)
	for _, f := range want {
		if got, ok := have[f.Key()]; !ok || !got.Equal(f) {
			t.Errorf("wrote %s\n read %s", f, got)
		}
	}
	if len(have) != len(want) {
		t.Errorf("%d flows, want %d", len(have), len(want))
	}
	dump := func() []string {
		// In an order of its own: flows of one priority come as they went in.
		return slices.Sorted(strings.Lines(br.OFCtl("-O", "OpenFlow14", "dump-flows", "br0", "--no-stats", "--no-names")))
	}
	native := dump()
	br.OFCtl("-O", "OpenFlow14", "del-flows", "br0")
	for _, f := range want {
		br.OFCtl("-O", "OpenFlow14", "add-flow", "br0", f.String())
	}
	if diff := cmp.Diff(native, dump()); diff != "" {
		t.Errorf("ovs-ofctl makes other flows of the same text (-want +got):\n%s", diff)
	}
}
