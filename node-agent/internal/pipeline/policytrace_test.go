package pipeline

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
	"github.com/k8s-ovs/k8s-ovs/pkg/policy"
	"github.com/k8s-ovs/k8s-ovs/pkg/service"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// policyModel is a node with the subjects of random policies as pods, of one tenant.
func policyModel(proxy ServiceProxy) Model {
	m := with(proxy)
	m.Peers = []Peer{node("198.18.0.2", "172.11.4.0/22", 0)}
	m.Tenants, m.Pods = []Tenant{{Slot: 1, NetID: 300924, Known: true, Serves: proxy != NoServices}}, nil
	for i, a := range ruleSubjects {
		m.Pods = append(m.Pods, pod(a.String(), uint32(20+i), 1))
	}
	return m
}

// judging is the model with what policies say of its pods, and the flows of what they allow.
func judging(m Model, c policy.Compiled) (Model, []of.Flow) {
	m.Pods = slices.Clone(m.Pods)
	for i, p := range m.Pods {
		m.Pods[i].Policy = PodPolicy{
			Ingress: slices.Contains(c.Ingress.Isolated, p.Addresses[0]), Egress: slices.Contains(c.Egress.Isolated, p.Addresses[0]),
			Cluster: slices.ContainsFunc(slices.Concat(c.Ingress.Admin, c.Ingress.Baseline, c.Egress.Admin, c.Egress.Baseline), func(d policy.Decision) bool {
				return slices.Contains(d.Subjects, p.Addresses[0])
			}),
		}
	}
	return m, flowsOf(NewRules().Set(map[policy.Key]policy.Compiled{{Namespace: "n", Name: "p"}: c}))
}

// TestTracePolicies: of random policies and connections, Open vSwitch lets through exactly
// what the policies allow, requests and answers, and says which direction refused.
func TestTracePolicies(t *testing.T) {
	reasons := map[policy.Verdict]Reason{policy.DeniedEgress: PolicyEgress, policy.DeniedIngress: PolicyIngress}
	for _, proxy := range []ServiceProxy{NoServices, OVS, KubeProxy} {
		const seed = 20261129
		rnd := rand.New(rand.NewPCG(seed, seed))
		br := newBridge(t, policyModel(proxy))
		seen := map[string]int{}
		for round := range 5 {
			c := merged(randomCompiled(rnd), randomCompiled(rnd), randomCompiled(rnd))
			switch round {
			case 0:
				c = merged()
			case 1, 2:
				c = merged(c, randomCluster(rnd))
			}
			m, rules := judging(policyModel(proxy), c)
			br.install(m, rules...)
			for range 40 {
				p := randomPacket(rnd)
				there, known := connection(m, p, false)
				back, _ := connection(m, p, true)
				if !known {
					continue
				}
				want := c.Verdict(p)
				judged := slices.ContainsFunc(m.Pods, func(pod Pod) bool {
					return pod.Policy.Selected() && (pod.Addresses[0] == p.Src || pod.Addresses[0] == p.Dst)
				})
				for _, w := range []struct {
					packet string
					to     netip.Addr
					state  string
				}{{there, p.Dst, "trk,new"}, {back, p.Src, "trk,est,rpl"}} {
					where, reason := portOf(m, w.to), Reason(0)
					if want != policy.Allowed {
						where, reason = "drop", reasons[want]
					}
					got, text := br.trace(w.packet, w.state, w.state, w.state)
					if got != where || dropReason(text) != reason || strings.Contains(text, "zone=65519") != judged {
						t.Fatalf("services by %q, seed %d, round %d: %+v (%s) goes to %s for %q, want %s for %q, judged: %t; policies %+v\n%s",
							proxy, seed, round, p, w.state, got, dropReason(text), where, reason, judged, c, text)
					}
				}
				seen[fmt.Sprint(want, ", judged: ", judged)]++
			}
		}
		for _, what := range []string{"allowed, judged: false", "allowed, judged: true", "denied by egress, judged: true", "denied by ingress, judged: true"} {
			if seen[what] < 5 {
				t.Errorf("services by %q: only %d connections are %s: the test shows little", proxy, seen[what], what)
			}
		}
	}
}

// connection is the first packet of a connection or, back, the answer to it, as it comes into
// the bridge with what its zone says of the connection; false for one that never comes there.
func connection(m Model, p policy.Packet, back bool) (packet string, known bool) {
	from, to := p.Src, p.Dst
	srcPort, dstPort := uint16(40001), p.DstPort
	if back {
		from, to, srcPort, dstPort = to, from, dstPort, srcPort
	}
	var in string
	local := slices.IndexFunc(m.Pods, func(pod Pod) bool { return pod.Addresses[0] == from })
	switch net := m.ipv4(); {
	case local >= 0:
		in = fmt.Sprintf("in_port=%d,dl_src=%s,dl_dst=0a:58:ac:0b:00:01", m.Pods[local].Port, m.Pods[local].MAC)
	case m.Peers[0].Prefixes[0].Contains(from):
		in = "in_port=1,tun_id=300924,tun_src=198.18.0.2,tun_dst=198.18.0.1"
	case net.Cluster.Contains(from) && from != net.Gateway && from != topology.ForwarderOf(net.Subnet):
		return "", false
	default:
		in = "in_port=2"
	}
	here := func(a netip.Addr) bool {
		return slices.ContainsFunc(m.Pods, func(pod Pod) bool { return pod.Addresses[0] == a })
	}
	if p.Src == p.Dst || !here(p.Src) && !here(p.Dst) {
		return "", false
	}
	l4 := map[uint8]string{
		1: "icmp,icmp_type=8", 6: fmt.Sprintf("tcp,tcp_src=%d,tcp_dst=%d", srcPort, dstPort),
		17: fmt.Sprintf("udp,udp_src=%d,udp_dst=%d", srcPort, dstPort), 132: fmt.Sprintf("sctp,sctp_src=%d,sctp_dst=%d", srcPort, dstPort),
	}[p.Protocol]
	state := "new|trk"
	if back {
		state = "est|trk|rpl"
	}
	tuple := fmt.Sprintf("ct_state=%s,ct_nw_src=%s,ct_nw_dst=%s,ct_nw_proto=%d", state, p.Src, p.Dst, p.Protocol)
	if p.Protocol != 1 {
		tuple += fmt.Sprintf(",ct_tp_src=40001,ct_tp_dst=%d", p.DstPort)
	}
	return fmt.Sprintf("%s,%s,nw_ttl=64,nw_src=%s,nw_dst=%s,%s", in, l4, from, to, tuple), true
}

// portOf is the port that leads to an address.
func portOf(m Model, a netip.Addr) string {
	for _, p := range m.Pods {
		if p.Addresses[0] == a {
			return port(p.Port)
		}
	}
	if m.Peers[0].Prefixes[0].Contains(a) {
		return port(m.TunnelPorts[0])
	}
	return port(m.GatewayPort)
}

// TestTraceIsolated: where packets of an isolated pod go, one by one.
func TestTraceIsolated(t *testing.T) {
	for _, proxy := range []ServiceProxy{NoServices, OVS, KubeProxy} {
		m := policyModel(proxy)
		a, b := m.Pods[0], m.Pods[1]
		m.Pods[0].Policy = PodPolicy{Ingress: true, Egress: true}
		m.Tenants = append(m.Tenants, Tenant{Slot: 2, NetID: 400000, Known: true})
		stranger := pod("172.11.0.9", 29, 2)
		m.Pods = append(m.Pods, stranger)
		allowed := merged(compiled(policy.Table{}, policy.Table{Allows: []policy.Allow{{
			Name: "strangers", Subjects: a.Addresses, Peers: policy.Peers{Prefixes: []netip.Prefix{host(stranger.Addresses[0])}}, AnyPort: true,
		}}}))
		br := newBridge(t, m)
		br.install(m, flowsOf(NewRules().Set(map[policy.Key]policy.Compiled{{}: allowed}))...)
		with := func(src, dst Pod, l4, state string) string {
			packet := strings.Replace(fromPod(src, dst.Addresses[0].String(), ""), ",udp,", ","+l4+",", 1)
			return packet + fmt.Sprintf(",ct_state=%s,ct_nw_src=%s,ct_nw_dst=%s,ct_nw_proto=17,ct_tp_src=1,ct_tp_dst=2", strings.ReplaceAll(state, ",", "|"), src.Addresses[0], dst.Addresses[0])
		}
		midstream := m
		midstream.Pods = slices.Clone(m.Pods)
		midstream.Pods[0].Policy.Midstream = true
		for _, tc := range []struct {
			name, packet string
			states       []string
			m            Model
			want         string
			reason       Reason
		}{
			{"to another", with(a, b, "udp", "trk,new"), nil, m, "drop", PolicyEgress},
			{"from another", with(b, a, "udp", "trk,new"), nil, m, "drop", PolicyIngress},
			{"of no connection that can be", strings.Split(with(a, b, "udp", "trk,new"), ",ct_state")[0], []string{"trk,inv"}, m, "drop", PolicyState},
			{"of no connection that can be, to it", strings.Split(with(b, a, "udp", "trk,new"), ",ct_state")[0], []string{"trk,inv"}, m, "drop", PolicyState},
			{"allowed, but another tenant's", with(stranger, a, "udp", "trk,new"), nil, m, "drop", OtherTenant},
			{"a later fragment", with(a, b, "udp,nw_frag=later", "trk,new"), nil, m, port(b.Port), 0},
			{"a segment of a server", with(a, b, "tcp,tcp_src=80,tcp_dst=40000,tcp_flags=0x10", "trk,new"), nil, m, "drop", PolicyEgress},
			{"a segment of a server, midstream", with(a, b, "tcp,tcp_src=80,tcp_dst=40000,tcp_flags=0x10", "trk,new"), nil, midstream, port(b.Port), 0},
			{"a segment of a client, midstream", with(a, b, "tcp,tcp_src=40000,tcp_dst=80,tcp_flags=0x10", "trk,new"), nil, midstream, "drop", PolicyEgress},
			{"a request, midstream", with(a, b, "tcp,tcp_src=80,tcp_dst=40000,tcp_flags=0x02", "trk,new"), nil, midstream, "drop", PolicyEgress},
			{"a segment of its server, midstream", with(b, a, "tcp,tcp_src=80,tcp_dst=40000,tcp_flags=0x10", "trk,new"), nil, midstream, port(a.Port), 0},
		} {
			br.install(tc.m, flowsOf(NewRules().Set(map[policy.Key]policy.Compiled{{}: allowed}))...)
			got, text := br.trace(tc.packet, tc.states...)
			if got != tc.want || dropReason(text) != tc.reason {
				t.Errorf("services by %q, %s: goes to %s for %q, want %s for %q\n%s", proxy, tc.name, got, dropReason(text), tc.want, tc.reason, text)
			}
		}
	}
}

// TestTraceCommits: a connection of a selected pod becomes known once, by the sender's side
// where that is selected, and by the receiver's only behind the tenant check.
func TestTraceCommits(t *testing.T) {
	const judge, fromSender, toReceiver = "ct(table=12,zone=65519)", "ct(commit,table=20,zone=65519,exec(", "ct(commit,table=60,zone=65519,exec("
	m := policyModel(NoServices)
	a, b := m.Pods[0], m.Pods[1]
	stranger := pod("172.11.0.9", 29, 2)
	m.Tenants = append(m.Tenants, Tenant{Slot: 2, NetID: 400000, Known: true})
	m.Pods = append(m.Pods, stranger)
	br := newBridge(t, m)
	everything := func(subjects ...netip.Addr) []policy.Allow {
		return []policy.Allow{{Name: "everything", Subjects: subjects, Peers: policy.Peers{Any: true}, AnyPort: true}}
	}
	for _, tc := range []struct {
		name     string
		src, dst Pod
		selected []Pod
		mark     int
		want     []string
	}{
		{"nobody is selected", a, b, nil, 0, nil},
		{"another is selected", a, b, []Pod{stranger}, 0, nil},
		{"the sender", a, b, []Pod{a}, 0, []string{judge, fromSender}},
		{"the receiver", a, b, []Pod{b}, 0, []string{judge, toReceiver}},
		{"both", a, b, []Pod{a, b}, 0, []string{judge, fromSender}},
		{"the receiver, of another tenant", a, stranger, []Pod{stranger}, 0, []string{judge}},
		{"the sender, known and never answered", a, b, []Pod{a}, 1, []string{judge}},
		{"the receiver, known and never answered", a, b, []Pod{b}, 1, []string{judge}},
	} {
		policed := m
		policed.Pods = slices.Clone(m.Pods)
		var list []netip.Addr
		for i, p := range policed.Pods {
			if slices.ContainsFunc(tc.selected, func(s Pod) bool { return s.Port == p.Port }) {
				policed.Pods[i].Policy = PodPolicy{Ingress: true, Egress: true}
				list = append(list, p.Addresses[0])
			}
		}
		c := compiled(policy.Table{Allows: everything(list...)}, policy.Table{Allows: everything(list...)})
		br.install(policed, flowsOf(NewRules().Set(map[policy.Key]policy.Compiled{{}: c}))...)
		packet := fromPod(tc.src, tc.dst.Addresses[0].String(), "") + fmt.Sprintf(",ct_state=new|trk,ct_mark=%d,ct_nw_src=%s,ct_nw_dst=%s,ct_nw_proto=17", tc.mark, tc.src.Addresses[0], tc.dst.Addresses[0])
		_, text := br.trace(packet)
		var got []string
		for line := range strings.Lines(text) {
			for _, action := range []string{judge, fromSender, toReceiver} {
				if strings.HasPrefix(strings.TrimSpace(line), action) {
					got = append(got, action)
				}
			}
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%s: %q, want %q\n%s", tc.name, got, tc.want, text)
		}
	}
}

// TestFullClause: the flow of a clause that belongs to as many rules as it may fits into a
// message, and one more rule has another priority.
func TestFullClause(t *testing.T) {
	a := compiled(policy.Table{}, policy.Table{})
	for i := range maxConjunctions + 1 {
		a.Egress.Allows = append(a.Egress.Allows, policy.Allow{
			Name: fmt.Sprint(i), Subjects: ruleSubjects[:1], Peers: policy.Peers{Any: true}, Ports: []policy.PortRange{{Protocol: service.TCP, First: uint16(1000 + i), Last: uint16(1000 + i)}},
		})
	}
	flows := flowsOf(NewRules().Set(map[policy.Key]policy.Compiled{{}: a}))
	m := policyModel(NoServices)
	m.Tenants[0].NetID = netid.Global
	m.Pods[0].Policy = PodPolicy{Egress: true}
	br := newBridge(t, m)
	br.install(m, flows...)
	stats, err := br.conn.Flows(context.Background(), of.FlowFilter{})
	if err != nil {
		t.Fatal(err)
	}
	if want := len(m.Flows()) + len(flows); len(stats) != want {
		t.Errorf("the switch has %d flows, want %d", len(stats), want)
	}
	for number, want := range map[int]string{1000: "21", 1000 + maxConjunctions: "21", 1001 + maxConjunctions: "drop"} {
		packet, _ := connection(m, policy.Packet{Src: ruleSubjects[0], Dst: ruleSubjects[1], Protocol: 6, DstPort: uint16(number)}, false)
		if got, text := br.trace(packet); got != want {
			t.Errorf("port %d goes to %s, want %s\n%s", number, got, want, text)
		}
	}
}

// TestTraceSentTo: a selected pod's packet to a service keeps where it was sent, for who is told
// that it was too large; other packets keep nothing.
func TestTraceSentTo(t *testing.T) {
	m := withPolicies(with(OVS))
	m.Pods[0].Policy.Egress = false
	br := newBridge(t, m)
	toPeer := strings.Replace(fromPod(m.Pods[0], "172.11.12.9", ""), ",udp,", ",udp,udp_src=1,udp_dst=8080,", 1)
	for packet, want := range map[string]string{
		toPeer + ",ct_state=trk|est|dnat,ct_nw_proto=17,ct_nw_src=172.11.0.2,ct_nw_dst=10.96.0.10,ct_tp_dst=80": "metadata=0xa60000a0050,",
		toPeer + ",ct_state=trk|est,ct_nw_proto=17,ct_nw_src=172.11.0.2,ct_nw_dst=172.11.12.9,ct_tp_dst=8080":   "",
	} {
		_, text := br.trace(packet, "trk,est")
		final := text[strings.LastIndex(text, "Final flow:"):]
		if !strings.Contains(final, want) || want == "" && strings.Contains(final, "metadata") || !strings.Contains(text, "check_pkt_len") {
			t.Errorf("%s: no %q, or not measured:\n%s", packet, want, text)
		}
	}
}
