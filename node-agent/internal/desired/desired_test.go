package desired

import (
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
)

func ip(s string) netip.Addr     { return netip.MustParseAddr(s) }
func net4(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func snapshot(nodes ...topology.Node) topology.Snapshot {
	seven := netid.ID(77)
	s := topology.Snapshot{
		Config: topology.DefaultConfig(), Nodes: map[netip.Addr]topology.Node{},
		Namespaces: map[string]topology.Namespace{
			"confirmed": {NetName: "confirmed", Effective: &seven},
			"changing":  {NetName: "changing", Effective: &seven, Change: topology.Change{Step: topology.StepAccept, NetID: 78}},
			"asked":     {NetName: "asked"},
		},
	}
	for _, n := range nodes {
		s.Nodes[n.HostIP] = n
	}
	return s
}

// twoPorts are those of a bridge with one tunnel.
var twoPorts = Ports{Tunnels: map[string]uint32{NodeTunnel: 1}, Gateway: 2}

var (
	n1 = topology.Node{Host: "n1", HostIP: ip("198.18.0.1"), Subnet: net4("172.11.0.0/22")}
	n2 = topology.Node{Host: "n2", HostIP: ip("198.18.0.2"), Subnet: net4("172.11.4.0/22")}
	n3 = topology.Node{Host: "n3", HostIP: ip("198.18.0.3"), Subnet: net4("172.11.8.0/22")}
)

func TestPeers(t *testing.T) {
	peer := func(n topology.Node) pipeline.Peer {
		return pipeline.Peer{Port: 1, VTEP: n.HostIP, Prefixes: []netip.Prefix{n.Subnet}, NetIDs: pipeline.NetIDs{All: true}}
	}
	twin := topology.Node{Host: "n4", HostIP: ip("198.18.0.4"), Subnet: n3.Subnet}
	waiting := topology.Node{Host: "n5", HostIP: ip("198.18.0.5"), Assign: true}
	wrong := topology.Node{Host: "n6", HostIP: ip("198.18.0.6"), Subnet: net4("172.11.0.0/20")}
	inside := topology.Node{Host: "n7", HostIP: ip("172.11.9.9"), Subnet: net4("172.11.12.0/22")}
	thief := topology.Node{Host: "n8", HostIP: ip("198.18.0.8"), Subnet: n1.Subnet}
	for name, tc := range map[string]struct {
		nodes    []topology.Node
		peers    []pipeline.Peer
		problems []string
	}{
		"alone":                  {nodes: []topology.Node{n1}},
		"others, in order":       {nodes: []topology.Node{n3, n1, n2}, peers: []pipeline.Peer{peer(n2), peer(n3)}},
		"one without a subnet":   {nodes: []topology.Node{n1, waiting}},
		"two with one subnet":    {nodes: []topology.Node{n1, n2, n3, twin}, peers: []pipeline.Peer{peer(n2)}, problems: []string{"subnets/198.18.0.3", "subnets/198.18.0.4"}},
		"a subnet of wrong size": {nodes: []topology.Node{n1, wrong}, problems: []string{"subnets/198.18.0.6"}},
		"an address of a pod":    {nodes: []topology.Node{n1, inside}, problems: []string{"subnets/172.11.9.9"}},
		"one with our subnet":    {nodes: []topology.Node{n1, thief}, problems: []string{"subnets/198.18.0.8"}},
	} {
		t.Run(name, func(t *testing.T) {
			m, problems, err := Node(snapshot(tc.nodes...), n1.HostIP, twoPorts, []tunnel.Port{4789}, Slots{}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.peers, m.Peers, cmpopts.EquateEmpty(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
				t.Error(diff)
			}
			var names []string
			for _, p := range problems {
				names = append(names, p.Record)
				if p.Why == "" {
					t.Errorf("%s: no reason", p.Record)
				}
			}
			if diff := cmp.Diff(tc.problems, names); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// A peer whose tunnel the bridge has not got yet is left out, and no problem.
func TestPeersWithoutTunnel(t *testing.T) {
	m, problems, err := Node(snapshot(n1, n2), n1.HostIP, Ports{Gateway: 2}, nil, Slots{}, nil)
	if err != nil || len(m.Peers)+len(problems)+len(m.TunnelPorts) > 0 {
		t.Errorf("peers %v, tunnel ports %d, problems %v, %v", m.Peers, m.TunnelPorts, problems, err)
	}
}

// A way is needed to all other nodes, also to one that has no subnet yet.
func TestEnds(t *testing.T) {
	waiting := topology.Node{Host: "n5", HostIP: ip("198.18.0.5"), Assign: true}
	inside := topology.Node{Host: "n7", HostIP: ip("172.11.9.9"), Subnet: net4("172.11.12.0/22")}
	got := map[End]bool{}
	for _, e := range Ends(snapshot(n1, n2, waiting, inside), n1.HostIP) {
		got[e] = true
	}
	if want := map[End]bool{{n2.HostIP, NodeTunnel}: true, {waiting.HostIP, NodeTunnel}: true}; !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// Each of several prefixes counts, whichever has the other.
func TestContested(t *testing.T) {
	peer := func(prefixes ...string) (p pipeline.Peer) {
		for _, text := range prefixes {
			p.Prefixes = append(p.Prefixes, net4(text))
		}
		return p
	}
	for name, tc := range map[string]struct {
		peers []pipeline.Peer
		want  []int
	}{
		"apart":                      {[]pipeline.Peer{peer("10.0.0.0/24", "10.0.2.0/24"), peer("10.0.1.0/24")}, nil},
		"one's own":                  {[]pipeline.Peer{peer("10.0.0.0/16", "10.0.2.0/24", "10.0.2.1/32"), peer("10.1.0.0/16")}, nil},
		"equal":                      {[]pipeline.Peer{peer("10.0.0.0/24"), peer("10.0.0.0/24"), peer("10.0.1.0/24")}, []int{0, 1}},
		"one has the other's":        {[]pipeline.Peer{peer("10.0.0.128/25"), peer("10.0.0.0/16")}, []int{0, 1}},
		"the second of several":      {[]pipeline.Peer{peer("10.5.0.0/24", "10.0.7.0/24"), peer("10.0.0.0/24", "10.0.7.9/32"), peer("10.0.8.0/24")}, []int{0, 1}},
		"two within a third":         {[]pipeline.Peer{peer("10.0.0.0/16"), peer("10.0.1.0/24"), peer("10.0.2.0/24")}, []int{0, 1, 2}},
		"behind one's own, narrower": {[]pipeline.Peer{peer("10.0.0.0/16", "10.0.1.0/24"), peer("10.0.1.1/32"), peer("10.1.0.0/32")}, []int{0, 1}},
	} {
		if got := slices.Sorted(maps.Keys(contested(tc.peers))); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}

func TestSwappedAddresses(t *testing.T) {
	a, b := n2, n3
	a.HostIP, b.HostIP = n3.HostIP, n2.HostIP
	m, problems, err := Node(snapshot(n1, a, b), n1.HostIP, twoPorts, []tunnel.Port{4789}, Slots{}, nil)
	if err != nil || len(problems) > 0 {
		t.Fatal(err, problems)
	}
	for _, p := range m.Peers {
		if want := map[netip.Addr]netip.Prefix{n2.HostIP: n3.Subnet, n3.HostIP: n2.Subnet}[p.VTEP]; !slices.Equal(p.Prefixes, []netip.Prefix{want}) {
			t.Errorf("peer %s has %s, want %s", p.VTEP, p.Prefixes, want)
		}
	}
}

func TestNotPlaced(t *testing.T) {
	for name, tc := range map[string]struct {
		nodes []topology.Node
		want  string
	}{
		"no record":     {nil, "no subnet record"},
		"no subnet yet": {[]topology.Node{{Host: "n1", HostIP: n1.HostIP, Assign: true}}, "has no subnet yet"},
		"not valid":     {[]topology.Node{{Host: "n1", HostIP: n1.HostIP, Subnet: net4("10.0.0.0/22")}}, "is not a /22"},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := Node(snapshot(tc.nodes...), n1.HostIP, twoPorts, []tunnel.Port{4789}, Slots{}, nil)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
		})
	}
}

func TestTenant(t *testing.T) {
	s := snapshot(n1)
	single := s
	single.Config.PluginName = topology.SingleTenant
	slots := Slots{}
	for name, tc := range map[string]struct {
		s         topology.Snapshot
		namespace string
		want      pipeline.Tenant
	}{
		"confirmed":                {s, "confirmed", pipeline.Tenant{NetID: 77, Known: true}},
		"changing":                 {s, "changing", pipeline.Tenant{NetID: 77, Other: 78, Both: true, Known: true}},
		"asked for, not confirmed": {s, "asked", pipeline.Tenant{}},
		"no record":                {s, "nobody", pipeline.Tenant{}},
		"single tenant":            {single, "nobody", pipeline.Tenant{Known: true}},
	} {
		tc.want.Slot = slots.Assign(tc.namespace)
		if got := Tenant(tc.s, slots, tc.namespace); got != tc.want {
			t.Errorf("%s: %+v, want %+v", name, got, tc.want)
		}
		a := Attached{Port: 12, Namespace: tc.namespace, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, Addresses: []netip.Addr{ip("172.11.0.2"), ip("fd00::2")}}
		want := pipeline.Pod{Port: 12, MAC: a.MAC, Addresses: a.Addresses, Slot: tc.want.Slot}
		sameAddr := cmp.Comparer(func(x, y netip.Addr) bool { return x == y })
		if diff := cmp.Diff(want, Pod(slots, a), sameAddr); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		a.Queue, a.Meter = 7, Meter{Rate: 1000, Burst: 100}
		want.Queue, want.Meter = 7, 12
		if diff := cmp.Diff(want, Pod(slots, a), sameAddr); diff != "" {
			t.Errorf("%s, with a limit (-want +got):\n%s", name, diff)
		}
	}
}

func TestSlots(t *testing.T) {
	a, b := Slots{}, Slots{}
	for _, n := range []string{"x", "y", "z"} {
		a.Assign(n)
	}
	for _, n := range []string{"z", "x", "y"} {
		b.Assign(n)
	}
	if diff := cmp.Diff(a, b); diff != "" {
		t.Errorf("slots depend on the order:\n%s", diff)
	}
	if a.Assign("x") != b["x"] {
		t.Error("a slot changed")
	}
	// Two names that hash alike (FNV-1a, 32 bits) get different slots.
	if (Slots{}).Assign("costarring") != (Slots{}).Assign("liquid") {
		t.Fatal("the two names do not hash alike: this test shows nothing")
	}
	c := Slots{}
	if c.Assign("costarring") == c.Assign("liquid") {
		t.Error("two namespaces share a slot")
	}
}

// Two are the same when all that flows are made of is.
func TestAttachedEqual(t *testing.T) {
	pod := func() Attached {
		return Attached{Port: 12, Namespace: "a", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, Addresses: []netip.Addr{ip("172.11.0.2"), ip("fd00::2")}, Meter: Meter{1, 2}, Queue: 7}
	}
	if !pod().Equal(pod()) || !pod().Shares(pod()) {
		t.Error("a pod is not the same as itself")
	}
	for name, change := range map[string]func(*Attached){
		"Port": func(a *Attached) { a.Port++ }, "Namespace": func(a *Attached) { a.Namespace = "b" }, "MAC": func(a *Attached) { a.MAC[5]++ },
		"Addresses": func(a *Attached) { a.Addresses = a.Addresses[:1] }, "Meter": func(a *Attached) { a.Meter.Burst++ }, "Queue": func(a *Attached) { a.Queue++ },
	} {
		a := pod()
		if change(&a); a.Equal(pod()) || !a.Shares(pod()) {
			t.Errorf("another %s: equal %t, shares an address %t", name, a.Equal(pod()), a.Shares(pod()))
		}
	}
	other := pod()
	if other.Addresses = []netip.Addr{ip("172.11.0.3")}; other.Shares(pod()) {
		t.Error("pods with different addresses share one")
	}
}

// A node has a net of each family that its record has a subnet of.
func TestNets(t *testing.T) {
	s := snapshot(n1)
	s.Config.Networks = []netip.Prefix{s.Config.Network, net4("fd00:1:2::/48")}
	s.Config.ServiceNetworks = []netip.Prefix{s.Config.ServiceNetwork, net4("fd00:9::/108")}
	four := pipeline.Net{Cluster: s.Config.Network, Subnet: n1.Subnet, Gateway: ip("172.11.0.1"), Services: s.Config.ServiceNetwork}
	six := pipeline.Net{Cluster: net4("fd00:1:2::/48"), Subnet: net4("fd00:1:2:3::/64"), Gateway: ip("fd00:1:2:3::ac0b:1"), Services: net4("fd00:9::/108")}
	dual := n1
	dual.Subnets = []netip.Prefix{four.Subnet, six.Subnet}
	for want, me := range map[int]topology.Node{1: n1, 2: dual} {
		s.Nodes[n1.HostIP] = me
		m, _, err := Node(s, n1.HostIP, Ports{Tunnels: map[string]uint32{NodeTunnel: 1}, Gateway: 2}, []tunnel.Port{4789}, Slots{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(m.Nets, []pipeline.Net{four, six}[:want]) {
			t.Errorf("%d subnets: nets %+v", want, m.Nets)
		}
	}
}
