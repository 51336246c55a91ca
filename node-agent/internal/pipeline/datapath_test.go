package pipeline

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
	"github.com/k8s-ovs/k8s-ovs/pkg/service"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// What a node of the datapath's tests has besides its bridge: an uplink with the node's
// address, through which tunnel packets go.
const (
	nodeMAC   = "aa:55:aa:55:00:01"
	routerMAC = "aa:55:aa:55:00:02"
)

// datapathModel is a node with two tenants, a peer whose path carries all, one whose path
// carries less, and services.
func datapathModel(proxy ServiceProxy) Model {
	m := with(proxy)
	m.Tenants = []Tenant{
		{Slot: 101, NetID: 300924, Known: true, Serves: true, Meters: MetersOf(0)},
		{Slot: 102, NetID: 400000, Known: true, Serves: true, Meters: MetersOf(1)},
	}
	m.Pods = []Pod{
		pod("172.11.0.2", 12, 101),
		pod("172.11.0.3", 13, 101),
		pod("172.11.0.4", 14, 102),
	}
	return m
}

// datapathServices have one endpoint each: one here, one on a peer, and one with affinity.
func datapathServices() []ServicePort {
	port := func(id uint32, vip string, endpoint string) ServicePort {
		return ServicePort{ID: id, Port: service.Port{
			VIP: addr(vip), Protocol: service.UDP, Port: 80, Endpoints: []service.Endpoint{{Address: addr(endpoint), Port: 8080}},
		}}
	}
	sticky := port(3, "10.96.0.12", "172.11.0.3")
	sticky.Affinity = affinity
	return []ServicePort{port(1, "10.96.0.10", "172.11.0.3"), port(2, "10.96.0.11", "172.11.4.9"), sticky}
}

const affinity = 10800e9

// datapath is a bridge through which packets go.
type datapath struct{ *bridge }

// newDatapath has the model's flows and those of the services, and an underlay.
func newDatapath(t *testing.T, m Model, ports []ServicePort) *datapath {
	t.Helper()
	d := &datapath{newBridge(t, m)}
	if v := strings.TrimSpace(d.AppCtl("version")); !strings.Contains(v, "(Open vSwitch) 3.1.") {
		t.Skipf("what is cached is written down for Open vSwitch 3.1, not for %s", v)
	}
	d.VSCtl("set", "Open_vSwitch", ".", "other_config:max-idle=600000") // ms: a slow test loses none
	d.AddBridge("br-phy", "dummy")
	d.VSCtl("set", "bridge", "br-phy", "fail-mode=standalone", fmt.Sprintf("other-config:hwaddr=%q", nodeMAC))
	d.AddDummyPort("br-phy", "uplink", 1)
	d.AppCtl("netdev-dummy/ip4addr", "br-phy", "198.18.0.1/24")
	d.AppCtl("ovs/route/add", "198.18.0.0/24", "br-phy")
	for _, p := range m.Peers {
		d.AppCtl("tnl/arp/set", "br-phy", p.VTEP.String(), routerMAC)
	}
	var mods []of.Mod
	for _, p := range ports {
		var flows []of.Flow
		if m.ServiceProxy == OVS {
			chosen, group := m.ServicePort(p)
			flows, mods = chosen, append(mods, of.SetGroup(group))
		}
		flows = append(flows, m.ServiceAddress(ServiceAddress{VIP: p.VIP, Slot: 101})...)
		for _, e := range p.Endpoints {
			flows = append(flows, m.Endpoint(p.Protocol, e)...)
		}
		for _, f := range flows {
			mods = append(mods, of.AddFlow(f))
		}
	}
	if err := d.conn.Commit(context.Background(), mods); err != nil {
		t.Fatal(err)
	}
	return d
}

// packet is one of UDP with a payload of so many bytes.
type packet struct {
	port             string
	srcMAC, dstMAC   string
	src, dst         string
	srcPort, dstPort uint16
	size             int
	vtep             string
	vni              uint32
	udp              uint16 // where the tunnel packet goes to
}

// fromPodAt is a packet of the pod with that port, as its wire brings it.
func fromPodAt(n uint32, src, dst string, srcPort, dstPort uint16) packet {
	return packet{port: fmt.Sprintf("p%d", n), srcMAC: topology.MAC(addr(src)).String(), dstMAC: "0a:58:ac:0b:00:01", src: src, dst: dst, srcPort: srcPort, dstPort: dstPort}
}

// fromHost is one that the node routes into the bridge.
func fromHost(src, dst string) packet {
	return packet{port: "tun0", srcMAC: "0a:58:ac:0b:00:01", dstMAC: "0a:58:a9:fe:4d:01", src: src, dst: dst, srcPort: 1000, dstPort: 2000}
}

// fromPeer is one that comes through the tunnel.
func fromPeer(vtep string, vni uint32, src, dst string, srcPort, dstPort uint16) packet {
	p := fromPodAt(0, src, dst, srcPort, dstPort)
	p.port, p.vtep, p.vni, p.udp = "uplink", vtep, vni, 4789
	return p
}

// receive lets packets come in, one after the other: what the switch gets at once may miss
// the cache together.
func (d *datapath) receive(packets ...packet) {
	d.t.Helper()
	for _, p := range packets {
		d.AppCtl("netdev-dummy/receive", p.port, hex.EncodeToString(p.frame()))
	}
}

// frame is the packet as the port gets it.
func (p packet) frame() []byte {
	f := ethernet(p.srcMAC, p.dstMAC, udp(p.src, p.dst, p.srcPort, p.dstPort, make([]byte, p.size)))
	if p.vtep == "" {
		return f
	}
	vxlan := binary.BigEndian.AppendUint32([]byte{8, 0, 0, 0}, p.vni<<8) // RFC 7348, section 5
	return ethernet(routerMAC, nodeMAC, udp(p.vtep, "198.18.0.1", 50000, p.udp, append(vxlan, f...)))
}

func ethernet(src, dst string, ip []byte) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(dst+src, ":", "") + "0800")
	if err != nil {
		panic(err)
	}
	return append(b, ip...)
}

// udp is an IPv4 packet (RFC 791, RFC 768), the checksum of UDP left out.
func udp(src, dst string, srcPort, dstPort uint16, payload []byte) []byte {
	b := []byte{0: 0x45, 8: 64, 9: 17, 19: 0}
	binary.BigEndian.PutUint16(b[2:], uint16(28+len(payload)))
	copy(b[12:], netip.MustParseAddr(src).AsSlice())
	copy(b[16:], netip.MustParseAddr(dst).AsSlice())
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum+sum>>16))
	b = binary.BigEndian.AppendUint16(b, srcPort)
	b = binary.BigEndian.AppendUint16(b, dstPort)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(payload)))
	return append(append(b, 0, 0), payload...)
}

// Parts of datapath flows that another run, machine or generation has otherwise.
var (
	statistics = regexp.MustCompile(`packets:.*, actions:`)
	numbers    = regexp.MustCompile(`(recirc\(|recirc_id\(|recirc_id=|dp_hash\(|rule_cookie=)(?:0x[0-9a-f]+|[1-9][0-9]*)`)
)

// flows are what the datapath has cached, without counters and numbers that are drawn.
func (d *datapath) flows() []string {
	d.t.Helper()
	var out []string
	for line := range strings.Lines(d.AppCtl("dpctl/dump-flows", "--names")) {
		if !strings.Contains(line, "actions:") {
			continue // says which thread is asked
		}
		line = numbers.ReplaceAllString(strings.TrimSpace(line), "${1}N")
		out = append(out, statistics.ReplaceAllString(line, "actions:"))
	}
	slices.Sort(out)
	return out
}

// forget empties the datapath's cache.
func (d *datapath) forget() {
	d.t.Helper()
	d.AppCtl("revalidator/purge")
}

// settle returns when the switch has compared what the datapath caches with its tables: of
// two rounds, as the first may have begun before.
func (d *datapath) settle() {
	d.t.Helper()
	for range 2 {
		d.AppCtl("revalidator/wait")
	}
}

// after is what is cached after the packets of a way.
func (d *datapath) after(w way) []string {
	d.t.Helper()
	d.forget()
	for _, p := range w.packets {
		d.receive(p)
		if strings.Contains(w.name, "affinity") { // what the switch learned from the packet is for the next
			d.settle()
		}
	}
	return d.flows()
}

// TestDatapath holds, as text, what the datapath caches for the packets of every way
// through the bridge: what it matches decides how many such flows there are, what it
// carries out is the price of a packet. A change of the pipeline that only moves decisions
// around leaves both alone.
func TestDatapath(t *testing.T) {
	var b strings.Builder
	for _, proxy := range []ServiceProxy{OVS, KubeProxy} {
		d := newDatapath(t, datapathModel(proxy), datapathServices())
		fmt.Fprintf(&b, "services by %s\n\n", proxy)
		for _, w := range ways(proxy) {
			fmt.Fprintf(&b, "%s\n\t%s\n\n", w.name, strings.Join(d.after(w), "\n\t"))
		}
	}
	golden(t, "testdata/datapath.golden", b.String())
}

// TestDatapathPeers: what comes from a peer is taken by its own tunnel port only, of two that
// real packets come to, and with a netID of its list only.
func TestDatapathPeers(t *testing.T) {
	m := withPeers(datapathModel(OVS))
	d := newDatapath(t, m, nil)
	for name, tc := range map[string]struct {
		vtep, src string
		vni       uint32
		udp       uint16
		want      string
	}{
		"a node":                        {"198.18.0.2", "172.11.4.9", 300924, 4789, "p12"},
		"a node, by the second port":    {"198.18.0.2", "172.11.4.9", 300924, 8472, "drop"},
		"listed, the first prefix":      {"198.18.0.22", "192.0.2.130", 300924, 8472, "p12"},
		"listed, the second":            {"198.18.0.22", "172.11.24.5", 300924, 8472, "p12"},
		"listed, by the first port":     {"198.18.0.22", "192.0.2.130", 300924, 4789, "drop"},
		"listed, the global netID":      {"198.18.0.22", "192.0.2.130", 0, 8472, "drop"},
		"listed by the first port":      {"198.18.0.21", "192.0.2.21", 300924, 4789, "p12"},
		"the same, by the second":       {"198.18.0.21", "192.0.2.21", 300924, 8472, "drop"},
		"the same, another netID":       {"198.18.0.21", "192.0.2.21", 400000, 4789, "drop"},
		"all netIDs by the second port": {"198.18.0.24", "172.11.28.9", 0, 8472, "p12"},
	} {
		d.forget()
		p := fromPeer(tc.vtep, tc.vni, tc.src, "172.11.0.2", 1000, 2000)
		p.udp = tc.udp
		d.receive(p)
		flows := d.flows()
		inner := slices.IndexFunc(flows, func(f string) bool { return strings.Contains(f, "src="+tc.vtep+",") && strings.Contains(f, "tunnel(") })
		if inner < 0 || !strings.HasSuffix(flows[inner], tc.want) {
			t.Errorf("%s: not %s, but\n\t%s", name, tc.want, strings.Join(flows, "\n\t"))
		}
	}
}

// way is what packets go through the bridge.
type way struct {
	name    string
	packets []packet
}

// ways are all, and those of services as they are with that proxy.
func ways(proxy ServiceProxy) []way {
	to := func(dst string) packet { return fromPodAt(12, "172.11.0.2", dst, 1000, 2000) }
	large := to("172.11.12.9")
	large.size = 1400
	plain := []way{
		{"pod to pod, same node", []packet{to("172.11.0.3")}},
		{"pod to another tenant's, same node", []packet{to("172.11.0.4")}},
		{"pod to a peer", []packet{to("172.11.4.9"), to("172.11.4.10"), to("172.11.5.10")}},
		{"pod to a peer whose path carries less", []packet{to("172.11.12.9"), large}},
		{"peer to pod", []packet{fromPeer("198.18.0.2", 300924, "172.11.4.9", "172.11.0.2", 1000, 2000)}},
		{"peer to another tenant's pod", []packet{fromPeer("198.18.0.2", 300924, "172.11.4.9", "172.11.0.4", 1000, 2000)}},
		{"peer to the gateway", []packet{fromPeer("198.18.0.2", 300924, "172.11.4.9", "172.11.0.1", 1000, 2000)}},
		{"pod to the outside", []packet{to("203.0.113.9"), to("198.51.100.7")}},
		{"pod to the gateway", []packet{to("172.11.0.1")}},
		{"outside to pod", []packet{fromHost("203.0.113.9", "172.11.0.2")}},
		{"host to pod", []packet{fromHost("172.11.0.1", "172.11.0.2")}},
		{"host to a peer", []packet{fromHost("172.11.0.1", "172.11.4.9")}},
	}
	if proxy == KubeProxy {
		return append(plain, waysByKubeProxy()...)
	}
	return append(plain, []way{
		{"pod to a service, endpoint on this node, and back", []packet{
			fromPodAt(12, "172.11.0.2", "10.96.0.10", 1001, 80), fromPodAt(12, "172.11.0.2", "10.96.0.10", 1001, 80),
			fromPodAt(13, "172.11.0.3", "172.11.0.2", 8080, 1001),
		}},
		{"pod to a service, endpoint on a peer, and back", []packet{
			fromPodAt(12, "172.11.0.2", "10.96.0.11", 1002, 80), fromPodAt(12, "172.11.0.2", "10.96.0.11", 1002, 80),
			fromPeer("198.18.0.2", 300924, "172.11.4.9", "172.11.0.2", 8080, 1002),
		}},
		{"pod to a service with affinity", []packet{fromPodAt(12, "172.11.0.2", "10.96.0.12", 1003, 80), fromPodAt(12, "172.11.0.2", "10.96.0.12", 1004, 80)}},
		{"pod to itself by a service, and back", []packet{
			fromPodAt(13, "172.11.0.3", "10.96.0.10", 1005, 80), fromPodAt(13, "172.11.0.3", "10.96.0.10", 1005, 80),
			fromPodAt(13, "172.11.0.3", "169.254.77.2", 8080, 1005),
		}},
		{"pod to another tenant's service", []packet{fromPodAt(14, "172.11.0.4", "10.96.0.10", 1006, 80)}},
		{"pod to a service's address, without such a port", []packet{fromPodAt(12, "172.11.0.2", "10.96.0.10", 1007, 81)}},
	}...)
}

// waysByKubeProxy are a request, as the node translated it, and its answer.
func waysByKubeProxy() []way {
	request := fromHost("172.11.0.2", "172.11.0.3")
	request.srcPort, request.dstPort = 1001, 8080
	return []way{
		{"pod to a service", []packet{fromPodAt(12, "172.11.0.2", "10.96.0.10", 1001, 80)}},
		{"the request, translated, and its answer", []packet{request, fromPodAt(13, "172.11.0.3", "172.11.0.2", 8080, 1001)}},
		{"the answer, translated back", []packet{fromHost("10.96.0.10", "172.11.0.2")}},
		{"pod to another tenant's service", []packet{fromPodAt(14, "172.11.0.4", "10.96.0.10", 1006, 80)}},
	}
}

// golden compares text with a file.
func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); diff != "" {
		t.Errorf("%s is another (run the test with -update where that is meant):\n%s", path, diff)
	}
}

// TestDatapathFlows counts what the datapath caches while pods, peers, the host and the
// outside all talk to each other, so that a change that matches more of packets is seen
// by what it costs. A field too many multiplies the number.
func TestDatapathFlows(t *testing.T) {
	m := datapathModel(OVS)
	m.Pods = nil
	for i := range uint32(8) {
		m.Pods = append(m.Pods, pod(fmt.Sprintf("172.11.0.%d", 2+i), 12+i, 101+i%2))
	}
	packets := mixed(m)
	for name, m := range map[string]Model{"nodes only": m, "beside other peers and a second tunnel port": withPeers(m)} {
		d := newDatapath(t, m, datapathServices())
		d.receive(packets...)
		if n := len(d.flows()); n != mixedFlows {
			t.Errorf("%s: %d flows are cached after %d packets, want %d", name, n, len(packets), mixedFlows)
		}
	}
}

// mixedFlows is their number.
const mixedFlows = 194

// mixed is a load of everything that pods do.
func mixed(m Model) []packet {
	var packets []packet
	for _, p := range m.Pods {
		send := func(dst string, srcPort, dstPort uint16) {
			packets = append(packets, fromPodAt(p.Port, p.Addresses[0].String(), dst, srcPort, dstPort))
		}
		for i := range uint16(2) {
			for _, other := range m.Pods {
				if other.Port != p.Port {
					send(other.Addresses[0].String(), 40000+i, 5000+i)
				}
			}
			for k := range 5 {
				send(fmt.Sprintf("172.11.4.%d", 2+k), 41000+i, 6000+i)
				send(fmt.Sprintf("172.11.%d.9", 8+k), 42000+i, 7000+i)
				send(fmt.Sprintf("203.0.113.%d", 2+k), 43000+i, 8000+1000*i)
			}
			send("172.11.0.1", 44000+i, 53)
			for _, vip := range []string{"10.96.0.10", "10.96.0.11", "10.96.0.12"} {
				send(vip, 45000+i, 80)
				send(vip, 45000+i, 80)
			}
		}
	}
	for _, p := range m.Pods {
		for i := range 6 {
			packets = append(packets, fromHost(fmt.Sprintf("203.0.113.%d", 2+i), p.Addresses[0].String()), fromHost("172.11.0.1", fmt.Sprintf("172.11.4.%d", 2+i)))
		}
	}
	for _, p := range m.Pods {
		for i := range uint16(6) {
			packets = append(packets, fromPeer("198.18.0.2", 300924, fmt.Sprintf("172.11.4.%d", 2+i), p.Addresses[0].String(), 46000+i, 5000+i))
			packets = append(packets, fromPeer("198.18.0.3", 400000, fmt.Sprintf("172.11.8.%d", 2+i), p.Addresses[0].String(), 46000+i, 5000+i))
		}
	}
	return packets
}
