package pipeline

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
	"github.com/k8s-ovs/k8s-ovs/pkg/service"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
)

var update = flag.Bool("update", false, "write the golden file anew")

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// pod is one with the MAC that follows from its address.
func pod(address string, port, slot uint32) Pod {
	return Pod{Port: port, MAC: topology.MAC(addr(address)), Addresses: []netip.Addr{addr(address)}, Slot: slot}
}

// sample has one of everything.
func sample() Model {
	return Model{
		Nets:        []Net{{Cluster: prefix("172.11.0.0/16"), Subnet: prefix("172.11.0.0/22"), Gateway: addr("172.11.0.1")}},
		TunnelPorts: []uint32{1}, GatewayPort: 2, UDPPorts: []tunnel.Port{4789}, Host: addr("198.18.0.1"),
		Peers: []Peer{
			node("198.18.0.2", "172.11.4.0/22", 0),
			node("198.18.0.3", "172.11.8.0/22", 0),
			node("198.18.0.4", "172.11.12.0/22", 1350),
		},
		Tenants: []Tenant{
			{Slot: 101, NetID: 300924, Known: true, Meters: MetersOf(0)},
			{Slot: 102, NetID: netid.Global, Known: true},
			{Slot: 103},
		},
		Pods: []Pod{
			pod("172.11.0.2", 12, 101),
			{Port: 13, MAC: topology.MAC(addr("172.11.0.3")), Addresses: []netip.Addr{addr("172.11.0.3")}, Slot: 102, Meter: 13, Queue: 7},
			pod("172.11.0.4", 14, 103),
		},
	}
}

// node is a peer as nodes are.
func node(vtep, subnet string, pathMTU uint16) Peer {
	return Peer{Port: 1, VTEP: addr(vtep), Prefixes: []netip.Prefix{prefix(subnet)}, NetIDs: NetIDs{All: true}, PathMTU: pathMTU}
}

// withPeers is m with a second tunnel port, and peers on each that are no nodes: with
// several prefixes, with lists of netIDs, with an empty one.
func withPeers(m Model) Model {
	m.TunnelPorts, m.UDPPorts = []uint32{1, 3}, []tunnel.Port{4789, 8472}
	m.Peers = append(m.Peers,
		Peer{Port: 1, VTEP: addr("198.18.0.20"), Prefixes: []netip.Prefix{prefix("172.11.20.0/22"), prefix("192.0.2.20/32")}, NetIDs: NetIDs{All: true}},
		Peer{Port: 1, VTEP: addr("198.18.0.21"), Prefixes: []netip.Prefix{prefix("192.0.2.21/32")}, NetIDs: NetIDs{List: []netid.ID{300924}}},
		Peer{Port: 3, VTEP: addr("198.18.0.22"), Prefixes: []netip.Prefix{prefix("192.0.2.128/28"), prefix("172.11.24.0/26")}, NetIDs: NetIDs{List: []netid.ID{300924, 400000}}},
		Peer{Port: 3, VTEP: addr("198.18.0.23"), Prefixes: []netip.Prefix{prefix("192.0.2.23/32")}},
		Peer{Port: 3, VTEP: addr("198.18.0.24"), Prefixes: []netip.Prefix{prefix("172.11.28.0/22")}, NetIDs: NetIDs{All: true}})
	return m
}

// withPolicies is m with policies for its first two pods.
func withPolicies(m Model) Model {
	m.Pods = slices.Clone(m.Pods)
	m.Pods[0].Policy, m.Pods[0].Connections = PodPolicy{Ingress: true, Egress: true, Midstream: true}, ConnectionsOf(m.Pods[0].Port)
	m.Pods[1].Policy = PodPolicy{Ingress: true}
	return m
}

// with is the sample with services.
func with(proxy ServiceProxy) Model {
	m := sample()
	m.Nets[0].Services, m.ServiceProxy = prefix("10.96.0.0/12"), proxy
	if proxy != NoServices {
		for i := range m.Tenants {
			m.Tenants[i].Serves = true
		}
	}
	return m
}

// sampleServices are the flows and groups of a service of every kind.
func sampleServices(m Model) (flows []of.Flow, groups []of.GroupEntry) {
	two := []service.Endpoint{{Address: addr("172.11.0.2"), Port: 8080}, {Address: addr("172.11.4.9"), Port: 8080}}
	flows = append(flows, m.ServiceAddress(ServiceAddress{VIP: addr("10.96.0.10"), Slot: 101})...)
	flows = append(flows, m.ServiceAddress(ServiceAddress{VIP: addr("10.96.0.1"), Public: true})...)
	flows = append(flows, m.ServiceAddress(ServiceAddress{VIP: addr("192.0.2.10"), Slot: 101})...) // outside of the service network
	for _, p := range []ServicePort{
		{ID: 1, Port: service.Port{VIP: addr("10.96.0.10"), Protocol: service.TCP, Port: 80, Endpoints: two}},
		{ID: 2, Port: service.Port{VIP: addr("10.96.0.10"), Protocol: service.UDP, Port: 53, Endpoints: two[1:]}, OnlyUDP: true},
		{ID: 4, Port: service.Port{VIP: addr("10.96.0.1"), Protocol: service.SCTP, Port: 443, Endpoints: two}, Affinity: 3 * time.Hour},
	} {
		if m.ServiceProxy == KubeProxy {
			break // chooses by itself
		}
		f, g := m.ServicePort(p)
		flows, groups = append(flows, f...), append(groups, g)
	}
	for _, p := range []service.Protocol{service.TCP, service.UDP, service.SCTP} {
		flows = append(flows, m.Endpoint(p, two[1])...)
	}
	return append(append(flows, m.Endpoint(service.TCP, two[0])...), Lingering(m.Endpoint(service.TCP, service.Endpoint{Address: addr("172.11.4.8"), Port: 80})[0])), groups
}

// TestGolden holds the flows as text. Whoever changes them raises Version, so
// that flows of one generation always mean the same.
func TestGolden(t *testing.T) {
	var b strings.Builder
	for _, proxy := range []ServiceProxy{NoServices, OVS, KubeProxy} {
		m := with(proxy)
		flows := m.Flows()
		var groups []of.GroupEntry
		if proxy != NoServices {
			fmt.Fprintf(&b, "\nservices by %s\n", proxy)
			var more []of.Flow
			more, groups = sampleServices(m)
			flows = append(flows, more...)
		}
		for _, f := range flows {
			b.WriteString(f.String() + "\n")
		}
		for _, g := range groups {
			b.WriteString(g.String() + "\n")
		}
	}
	goldenFlows(t, "testdata/flows.golden", b.String())
}

// TestGoldenPeers does so for peers that are no nodes, and a second tunnel port: all that
// they add to a node.
func TestGoldenPeers(t *testing.T) {
	nodes := map[string]bool{}
	for _, f := range with(OVS).Flows() {
		nodes[f.String()] = true
	}
	var b strings.Builder
	for _, f := range withPeers(with(OVS)).Flows() {
		if !nodes[f.String()] {
			b.WriteString(f.String() + "\n")
		}
	}
	goldenFlows(t, "testdata/peers.golden", b.String())
}

// TestGoldenPolicies does so for policies: all that they add to a node's own flows and its pods'.
func TestGoldenPolicies(t *testing.T) {
	var b strings.Builder
	for _, proxy := range []ServiceProxy{NoServices, OVS, KubeProxy} {
		without := map[string]bool{}
		for _, f := range with(proxy).Flows() {
			without[f.String()] = true
		}
		fmt.Fprintf(&b, "\nservices by %q\n", proxy)
		for _, f := range withPolicies(with(proxy)).Flows() {
			if !without[f.String()] {
				b.WriteString(f.String() + "\n")
			}
		}
	}
	goldenFlows(t, "testdata/policies.golden", b.String())
}

// goldenFlows compares flows with a file, which has their generation in its first line.
func goldenFlows(t *testing.T, path, flows string) {
	t.Helper()
	got := fmt.Sprintf("version %d\n%s", Version, flows)
	want, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	oldVersion, _, _ := strings.Cut(string(want), "\n")
	sameVersion := oldVersion == fmt.Sprintf("version %d", Version)
	switch {
	case string(want) == got:
	case sameVersion:
		t.Errorf("the flows changed and Version is still %d: raise it, change PIPELINE.md, run the test with -update:\n%s", Version, cmp.Diff(string(want), got))
	case *update:
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	default:
		t.Errorf("Version is %d, %s is of %q: run the test with -update", Version, path, oldVersion)
	}
}

// TestCounts: the counts that PIPELINE.md promises, and that nothing else grows.
func TestCounts(t *testing.T) {
	m := sample()
	s, k := with(OVS), with(KubeProxy)
	port := ServicePort{ID: 1, Port: service.Port{VIP: addr("10.96.0.10"), Protocol: service.TCP, Port: 80, Endpoints: make([]service.Endpoint, 10)}}
	for i := range port.Endpoints {
		port.Endpoints[i] = service.Endpoint{Address: addr(fmt.Sprintf("172.11.4.%d", i+2)), Port: 8080}
	}
	once, _ := s.ServicePort(port)
	port.Affinity = time.Minute
	sticky, _ := s.ServicePort(port)
	local := service.Endpoint{Address: addr("172.11.0.2"), Port: 80}
	for name, tc := range map[string]struct{ got, want int }{
		"services: fixed":          {len(s.Fixed()), 68},
		"services: tenant":         {len(s.Tenant(s.Tenants[0])), 9}, // one of them while a path carries less
		"services: global":         {len(s.Tenant(s.Tenants[1])), 3},
		"services: address":        {len(s.ServiceAddress(ServiceAddress{VIP: port.VIP})), 1},
		"services: port":           {len(once), 1},
		"services: port, affinity": {len(sticky), 13},
		"services: endpoint":       {len(s.Endpoint(service.TCP, port.Endpoints[0])), 1},
		"services: local endpoint": {len(s.Endpoint(service.TCP, local)), 2},
		"kube-proxy: fixed":        {len(k.Fixed()), 62},
		"kube-proxy: pod":          {len(k.Pod(k.Pods[0])), 5},
		"kube-proxy: endpoint":     {len(k.Endpoint(service.TCP, local)), 1},

		"fixed":                             {len(m.Fixed()), 50},
		"tunnels":                           {len(withPeers(m).Fixed()), 50 + 3},
		"peer":                              {len(m.Peer(m.Peers[0])), 2},
		"several":                           {len(m.Peer(withPeers(m).Peers[3])), 2 * 2},
		"listed":                            {len(m.Peer(withPeers(m).Peers[5])), 2*2 + 2 + 2},
		"nothing":                           {len(m.Peer(withPeers(m).Peers[6])), 2 + 2},
		"pod":                               {len(m.Pod(m.Pods[0])), 3},
		"isolated both ways, and midstream": {len(m.Pod(withPolicies(m).Pods[0])), 3 + 11 + 4},
		"isolated":                          {len(m.Pod(withPolicies(m).Pods[1])), 3 + 7},
		"isolated beside kube-proxy":        {len(k.Pod(withPolicies(k).Pods[1])), 5 + 8},
		"tenant":                            {len(m.Tenant(m.Tenants[0])), 5}, // one of them while a path carries less
		"global":                            {len(m.Tenant(m.Tenants[1])), 2},
		"unknown":                           {len(m.Tenant(m.Tenants[2])), 1},
	} {
		if tc.got != tc.want {
			t.Errorf("%s: %d flows, want %d", name, tc.got, tc.want)
		}
	}
}

// TestUnique: no two flows have the same key, or one would silently replace the other.
func TestUnique(t *testing.T) {
	seen := map[string]of.Flow{}
	m := withPolicies(withPeers(with(OVS)))
	services, _ := sampleServices(m)
	for _, f := range slices.Concat(m.Flows(), services, flowsOf(NewRules().Set(samplePolicies()))) {
		if g, dup := seen[f.Key()]; dup {
			t.Errorf("two flows with one key:\n%s\n%s", f, g)
		}
		seen[f.Key()] = f
	}
}

// TestDropsHaveReasons: every flow without an action says why, and no other does.
func TestDropsHaveReasons(t *testing.T) {
	used := map[Reason]bool{}
	for _, f := range withPolicies(withPeers(with(OVS))).Flows() {
		c := DecodeCookie(f.Cookie)
		drops := len(f.Actions) == 0 && f.Goto == nil
		if drops != (c.Reason != 0) {
			t.Errorf("drops is %t, reason is %q: %s", drops, c.Reason, f)
		}
		if c.Generation != Version {
			t.Errorf("generation %d, want %d: %s", c.Generation, Version, f)
		}
		used[c.Reason] = true
	}
	for _, r := range Reasons() {
		if !used[r] && r != TooLarge {
			t.Errorf("no flow drops for reason %s", r)
		}
	}
}

// TestReasons: each has a name, which is explained, and all are counted from the agent's start.
func TestReasons(t *testing.T) {
	text, err := os.ReadFile("PIPELINE.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range Reasons() {
		if reasonNames[r] == "" {
			t.Errorf("%s has no name", r)
		}
		if !regexp.MustCompile("(?m)^\\| [^|]*`" + regexp.QuoteMeta(r.String()) + "`").Match(text) {
			t.Errorf("PIPELINE.md does not explain reason %s", r)
		}
	}
	if len(reasonNames) != len(Reasons()) {
		t.Errorf("%d reasons have names and %d are counted: one is behind endOfReasons", len(reasonNames), len(Reasons()))
	}
}

func TestCookie(t *testing.T) {
	c := Cookie{Generation: Version, Kind: KindPod, Reason: OtherTenant, Object: 12}
	if diff := cmp.Diff(c, DecodeCookie(c.Encode())); diff != "" {
		t.Error(diff)
	}
	m := withPolicies(sample())
	var mine []of.Flow
	for _, f := range m.Flows() {
		if c := DecodeCookie(f.Cookie); c.Kind == KindPod && c.Object == 12 {
			mine = append(mine, f)
		}
	}
	if diff := cmp.Diff(texts(m.Pod(m.Pods[0])), texts(mine)); diff != "" {
		t.Errorf("selected by the pod's cookie (-want +got):\n%s", diff)
	}
}

// TestAreas: each flow is of one area, by its kind, and any flow of somebody else's is of one.
func TestAreas(t *testing.T) {
	m := withPolicies(with(OVS))
	services, _ := sampleServices(m)
	areas := map[string]func() (cookie, mask uint64){"others": Others, "services": Services, "policies": Policies}
	in := func(cookie uint64) (names []string) {
		for name, area := range areas {
			if bits, mask := area(); cookie&mask == bits {
				names = append(names, name)
			}
		}
		return names
	}
	for name, flows := range map[string][]of.Flow{"others": m.Flows(), "services": services, "policies": flowsOf(NewRules().Set(samplePolicies()))} {
		for _, f := range flows {
			if got := in(f.Cookie); !slices.Equal(got, []string{name}) {
				t.Errorf("of %s: it is in %v: %s", name, got, f)
			}
		}
	}
	for kind := range 256 {
		if got := in(uint64(kind) << 40); len(got) != 1 {
			t.Errorf("a flow of kind %#x is in %v", kind, got)
		}
	}
}

func texts(flows []of.Flow) (out []string) {
	for _, f := range flows {
		out = append(out, f.String())
	}
	return out
}

// TestPodAddresses: a pod is its port and its MAC, whatever addresses it has; IPv6 has no
// flows yet, and keeps no IPv4 from its own.
func TestPodAddresses(t *testing.T) {
	m := sample()
	p := pod("172.11.0.2", 12, 101)
	want := texts(m.Pod(p))
	p.Addresses = append(p.Addresses, addr("fd00::ac0b:2"))
	if diff := cmp.Diff(want, texts(m.Pod(p))); diff != "" {
		t.Errorf("with an IPv6 address besides (-without +with):\n%s", diff)
	}
	p.Addresses = p.Addresses[1:]
	want = texts(m.Own())
	m.Nets = append(m.Nets, Net{Cluster: prefix("fd00::/48"), Subnet: prefix("fd00::/64"), Gateway: addr("fd00::ac0b:1"), Services: prefix("fd00:9::/108")})
	if diff := cmp.Diff(want, texts(m.Own())); diff != "" || m.Of(addr("fd00::2")) != m.Nets[1] || m.Of(addr("10.0.0.1")) != m.Nets[0] || m.Of(netip.Addr{}) != (Net{}) {
		t.Errorf("of a node with a subnet of IPv6 besides (-without +with):\n%s", diff)
	}
	if got := m.Pod(p); len(got) > 0 {
		t.Errorf("with an IPv6 address only: %q", texts(got))
	}
	p.Addresses, p.MAC = []netip.Addr{addr("172.11.0.9")}, net.HardwareAddr{2, 0, 0, 0, 0, 1}
	for _, f := range m.Pod(p) {
		if !strings.Contains(f.String(), "02:00:00:00:00:01") || DecodeCookie(f.Cookie).Object != 12 {
			t.Errorf("not of its MAC and port: %s", f)
		}
	}
}
