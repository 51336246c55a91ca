package policyoracle

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
	"github.com/k8s-ovs/k8s-ovs/pkg/policy"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
	"github.com/k8s-ovs/k8s-ovs/test/ovstest"
)

const (
	// flowCases are how many clusters TestFlows draws, traced how many connections in each:
	// Open vSwitch takes some 10 ms to say what becomes of a packet.
	flowCases, traced = 40, 6
	gatewayPort       = 2
	firstPodPort      = 20
)

// TestFlows: what Open vSwitch does by our flows is what the engine says, of both directions of
// each connection, with services by the bridge, beside kube-proxy, and without.
func TestFlows(t *testing.T) {
	b := newBridge(t)
	count := map[policy.Verdict]int{}
	for seed := range uint64(flowCases) {
		b.compare(t, seed, count)
	}
	for v := policy.Allowed; v <= policy.DeniedIngress; v++ {
		if count[v] < flowCases*traced/10 {
			t.Errorf("only %d connections were %v: what is drawn asks too little", count[v], v)
		}
	}
}

// FuzzFlows goes on where TestFlows ends.
func FuzzFlows(f *testing.F) {
	f.Add(uint64(flowCases))
	b := newBridge(f)
	f.Fuzz(func(t *testing.T, seed uint64) { b.compare(t, seed, map[policy.Verdict]int{}) })
}

// bridge is a node's, with a port for each pod of a drawn cluster, in their order.
type bridge struct {
	dir  string
	conn *of.Conn
}

func newBridge(t testing.TB) bridge {
	o := ovstest.Start(t)
	o.AddBridge("br0", "dummy")
	o.VSCtl("set-fail-mode", "br0", "secure")
	o.VSCtl("add-port", "br0", "vxlan0", "--", "set", "interface", "vxlan0", "type=vxlan", "options:key=flow", "options:remote_ip=flow", "ofport_request=1")
	o.AddDummyPort("br0", "tun0", gatewayPort)
	for i := range podsDrawn {
		o.AddDummyPort("br0", fmt.Sprint("p", i), firstPodPort+i)
	}
	conn, err := of.Dial(context.Background(), o.Mgmt("br0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return bridge{o.RunDir, conn}
}

// compare draws a cluster and connections in it, and asks the engine and Open vSwitch.
func (b bridge) compare(t *testing.T, seed uint64, count map[policy.Verdict]int) {
	t.Helper()
	d := draw{rand.New(rand.NewPCG(seed, 1))}
	c := one(d, draw.withPolicies, draw.withClusterPolicies)(d)
	m := c.model(one(d, pipeline.NoServices, pipeline.OVS, pipeline.KubeProxy))
	theirs := c.theirs(t)
	b.install(t, m, c.ours(t))
	for range traced {
		p := d.packet(c)
		for podAt(m, p.Src) < 0 && podAt(m, p.Dst) < 0 { // it never comes to the bridge
			p = d.packet(c)
		}
		want := theirs.verdict(t, p, map[string]int{})
		count[want]++
		for _, back := range []bool{false, true} {
			if got, text := b.trace(t, m, p, back); got != want {
				t.Fatalf("seed %d, services by %q, %v to %v, protocol %d, port %d, answer: %t: %v; the engine says %v, with\n%s\n%s", seed, m.ServiceProxy, p.Src, p.Dst, p.Protocol, p.DstPort, back, got, want, c, text)
			}
		}
	}
}

// model is a node that has all pods, of one tenant.
func (c cluster) model(proxy pipeline.ServiceProxy) pipeline.Model {
	m := pipeline.Model{
		Nets:        []pipeline.Net{{Cluster: clusterNetwork, Subnet: netip.MustParsePrefix("10.0.0.0/22"), Gateway: netip.MustParseAddr("10.0.0.1"), Services: netip.MustParsePrefix("10.96.0.0/12")}},
		TunnelPorts: []uint32{1}, GatewayPort: gatewayPort, UDPPorts: []tunnel.Port{4789}, Host: netip.MustParseAddr("198.18.0.1"),
		Tenants: []pipeline.Tenant{{Slot: 1, NetID: 300924, Known: true, Serves: proxy != pipeline.NoServices}}, ServiceProxy: proxy,
	}
	for i, p := range c.pods {
		m.Pods = append(m.Pods, pipeline.Pod{Port: uint32(firstPodPort + i), MAC: topology.MAC(p.Address), Addresses: []netip.Addr{p.Address}, Slot: 1})
	}
	return m
}

// install makes the flows of the model and of its policies all that the bridge has.
func (b bridge) install(t *testing.T, m pipeline.Model, c policy.Compiled) {
	t.Helper()
	for i, p := range m.Pods {
		m.Pods[i].Policy = pipeline.PodPolicy{
			Ingress: slices.Contains(c.Ingress.Isolated, p.Addresses[0]), Egress: slices.Contains(c.Egress.Isolated, p.Addresses[0]),
			Cluster: slices.ContainsFunc(slices.Concat(c.Ingress.Admin, c.Ingress.Baseline, c.Egress.Admin, c.Egress.Baseline), func(d policy.Decision) bool {
				return slices.Contains(d.Subjects, p.Addresses[0])
			}),
		}
	}
	flows := m.Flows()
	for _, o := range pipeline.NewRules().Set(map[policy.Key]policy.Compiled{{}: c}) {
		flows = append(flows, o.Flows...)
	}
	mods := []of.Mod{of.DeleteFlows(of.FlowFilter{})}
	for _, f := range flows {
		mods = append(mods, of.AddFlow(f))
	}
	if err := b.conn.Commit(context.Background(), mods); err != nil {
		t.Fatal(err)
	}
}

// podAt is which of the model's pods has an address; -1 for none.
func podAt(m pipeline.Model, a netip.Addr) int {
	return slices.IndexFunc(m.Pods, func(p pipeline.Pod) bool { return p.Addresses[0] == a })
}

var (
	output = regexp.MustCompile(`output:(\d+)|output port is (\d+)`)
	cookie = regexp.MustCompile(`cookie (0x[0-9a-f]+)`)
)

// trace is what becomes of a connection's first packet or, back, of the answer to it. What goes
// anywhere but to where it should, or is dropped for anything but a policy, fails the test.
func (b bridge) trace(t *testing.T, m pipeline.Model, p policy.Packet, back bool) (v policy.Verdict, text string) {
	t.Helper()
	from, to, state := p.Src, p.Dst, "trk,new"
	srcPort, dstPort := 40001, int(p.DstPort)
	if back {
		from, to, srcPort, dstPort, state = to, from, dstPort, srcPort, "trk,est,rpl"
	}
	in := fmt.Sprintf("in_port=%d", m.GatewayPort)
	if i := podAt(m, from); i >= 0 {
		in = fmt.Sprintf("in_port=%d,dl_src=%s,dl_dst=%s", m.Pods[i].Port, m.Pods[i].MAC, topology.MAC(m.Nets[0].Gateway))
	}
	name := strings.ToLower(string(protocols[p.Protocol]))
	l4, tuple := name+",icmp_type=8", ""
	if p.Protocol != 1 {
		l4 = fmt.Sprintf("%s,%s_src=%d,%s_dst=%d", name, name, srcPort, name, dstPort)
		tuple = fmt.Sprintf(",ct_tp_src=40001,ct_tp_dst=%d", p.DstPort)
	}
	packet := fmt.Sprintf("%s,%s,nw_ttl=64,nw_src=%s,nw_dst=%s,ct_state=%s,ct_nw_src=%s,ct_nw_dst=%s,ct_nw_proto=%d%s", in, l4, from, to, strings.ReplaceAll(state, ",", "|"), p.Src, p.Dst, p.Protocol, tuple)
	out, err := exec.Command("ovs-appctl", "--target="+filepath.Join(b.dir, "ovs-vswitchd.ctl"), "ofproto/trace", "br0", packet, "--ct-next", state, "--ct-next", state, "--ct-next", state).CombinedOutput()
	if text = packet + "\n" + string(out); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if strings.Contains(text, "Datapath actions: drop") {
		return denied(t, text), text
	}
	want := m.GatewayPort
	if i := podAt(m, to); i >= 0 {
		want = m.Pods[i].Port
	}
	if sent := output.FindAllStringSubmatch(text, -1); len(sent) != 1 || sent[0][1]+sent[0][2] != fmt.Sprint(want) {
		t.Fatalf("it does not leave by port %d:\n%s", want, text)
	}
	return policy.Allowed, text
}

// denied is which direction refused, by the last flow of a trace.
func denied(t *testing.T, text string) policy.Verdict {
	t.Helper()
	if cookies := cookie.FindAllStringSubmatch(text, -1); len(cookies) > 0 {
		last, err := strconv.ParseUint(cookies[len(cookies)-1][1], 0, 64)
		if err != nil {
			t.Fatal(err)
		}
		switch pipeline.DecodeCookie(last).Reason {
		case pipeline.PolicyEgress:
			return policy.DeniedEgress
		case pipeline.PolicyIngress:
			return policy.DeniedIngress
		}
	}
	t.Fatalf("it is dropped, but by no policy:\n%s", text)
	return 0
}
