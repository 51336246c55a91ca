package service

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var (
	key  = Key{"a", "web"}
	here = Node{Name: "n1", Zone: "z1"}
)

func addr(n int) netip.Addr { return netip.AddrFrom4([4]byte{172, 11, 0, byte(n)}) }

// end is ready endpoint n on a node.
func end(n int, node string) SliceEndpoint {
	return SliceEndpoint{Address: addr(n), Node: node, Ready: true, Serving: true}
}

// leaving is end while it terminates.
func leaving(n int, node string) SliceEndpoint {
	return SliceEndpoint{Address: addr(n), Node: node, Serving: true, Terminating: true}
}

func zones(e SliceEndpoint, zones ...string) SliceEndpoint { e.ForZones = zones; return e }
func nodes(e SliceEndpoint, nodes ...string) SliceEndpoint { e.ForNodes = nodes; return e }

func slice(endpoints ...SliceEndpoint) Slice {
	return Slice{Service: key, Ports: []SlicePort{{Name: "http", Protocol: TCP, Port: 8080}}, Endpoints: endpoints}
}

// TestEndpoints: which endpoints a node sends to.
func TestEndpoints(t *testing.T) {
	other := slice(end(9, "n1"))
	other.Service.Name = "other"
	unnamed := slice(end(9, "n1"))
	unnamed.Ports[0].Name = ""
	udp := slice(end(9, "n1"))
	udp.Ports[0].Protocol = UDP
	v6 := end(9, "n1")
	v6.Address = netip.MustParseAddr("fd00::9")
	nowhere := slice(end(9, "n1"))
	nowhere.Ports[0].Port = 0
	var special []SliceEndpoint
	for _, a := range []string{"0.0.0.0", "255.255.255.255", "127.0.0.1", "224.0.0.1", "169.254.77.2"} {
		special = append(special, SliceEndpoint{Address: netip.MustParseAddr(a), Node: "n1", Ready: true, Serving: true})
	}
	notReady := end(9, "n1")
	notReady.Ready, notReady.Serving = false, false
	gone := leaving(9, "n1")
	gone.Serving = false

	for _, tc := range []struct {
		name   string
		local  bool
		slices []Slice
		want   []int
	}{
		{"none", false, nil, nil},
		{"all slices, in order, once", false, []Slice{slice(end(3, "n1"), end(2, "n2")), slice(end(1, ""), end(3, "n1"))}, []int{1, 2, 3}},
		{"another service, port name, protocol, family", false, []Slice{other, unnamed, udp, slice(v6)}, nil},
		{"nothing can be sent to", false, []Slice{nowhere, slice(special...)}, nil},
		{"ready ones only", false, []Slice{slice(end(1, "n1"), notReady, leaving(2, "n1"))}, []int{1}},
		{"those that still serve when none is ready", false, []Slice{slice(notReady, leaving(2, "n1"), gone)}, []int{2}},
		{"only this node's", true, []Slice{slice(end(1, "n1"), end(2, "n2"))}, []int{1}},
		{"none on this node", true, []Slice{slice(end(2, "n2"))}, nil},
		{"this node's that still serves", true, []Slice{slice(end(2, "n2"), leaving(3, "n1"))}, []int{3}},
		{"hints for this zone", false, []Slice{slice(zones(end(1, "n2"), "z1"), zones(end(2, "n1"), "z2"))}, []int{1}},
		{"hints do not narrow this node's own", true, []Slice{slice(zones(end(1, "n2"), "z1"), zones(end(2, "n1"), "z2"))}, []int{2}},
		{"one without a hint", false, []Slice{slice(zones(end(1, "n2"), "z1"), end(2, "n1"))}, []int{1, 2}},
		{"one that is not ready has no say", false, []Slice{slice(zones(end(1, "n2"), "z1"), zones(end(2, "n1"), "z2"), leaving(3, "n1"))}, []int{1}},
		{"no hint for this zone", false, []Slice{slice(zones(end(1, "n2"), "z2"), zones(end(2, "n1"), "z3"))}, []int{1, 2}},
		{"hints for this node first", false, []Slice{slice(nodes(zones(end(1, "n2"), "z1"), "n2"), nodes(zones(end(2, "n1"), "z1"), "n1"))}, []int{2}},
		{"no hint for this node: its zone", false, []Slice{slice(nodes(zones(end(1, "n2"), "z1"), "n2"), nodes(zones(end(2, "n3"), "z2"), "n3"))}, []int{1}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			spec := Spec{Key: key, VIPs: []netip.Addr{netip.MustParseAddr("10.96.0.10")}, Ports: []PortSpec{{"http", TCP, 80}}, InternalLocal: tc.local}
			var want []Endpoint
			for _, n := range tc.want {
				want = append(want, Endpoint{addr(n), 8080})
			}
			got := For(spec, tc.slices, here, MostKept).Ports[0].Endpoints
			if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// TestLeftOut: what is named and nobody is sent to is told by its reason, once, and
// does not count when endpoints are chosen.
func TestLeftOut(t *testing.T) {
	var named []SliceEndpoint
	want := []LeftOut{}
	for _, tc := range []struct {
		address string
		reason  Reason
	}{
		{"0.0.0.0", Unspecified}, {"0.1.2.3", Unspecified}, {"127.0.0.1", Loopback}, {"127.255.0.1", Loopback}, {"169.254.77.2", LinkLocal}, {"169.254.169.254", LinkLocal},
		{"224.0.0.1", Multicast}, {"239.1.2.3", Multicast}, {"240.0.0.1", Reserved}, {"255.255.255.255", Reserved},
		{"10.0.0.1", ""}, {"223.255.255.255", ""}, {"192.0.2.1", ""},
	} {
		a := netip.MustParseAddr(tc.address)
		if got := Unreachable(a); got != tc.reason {
			t.Errorf("%v is left out as %q, want %q", a, got, tc.reason)
		}
		if tc.reason != "" {
			named = append(named, SliceEndpoint{Address: a, Node: "n1", Ready: true, Serving: true})
			want = append(want, LeftOut{TCP, Endpoint{a, 8080}, tc.reason})
		}
	}
	spec := Spec{Key: key, UID: "u", VIPs: []netip.Addr{netip.MustParseAddr("10.96.0.10")}, Ports: []PortSpec{{"http", TCP, 80}}}
	got := For(spec, []Slice{slice(named...), slice(append(named, leaving(1, "n1"))...)}, here, MostKept)
	if diff := cmp.Diff(want, got.LeftOut, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if diff := cmp.Diff([]Endpoint{{addr(1), 8080}}, got.Ports[0].Endpoints, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("endpoints (-want +got)\n%s", diff)
	}
	if got.UID != "u" || got.Equal(For(spec, nil, here, MostKept)) {
		t.Errorf("%v is equal to a service that names none", got)
	}
}

// TestPorts: every IPv4 address with every port, in order.
func TestPorts(t *testing.T) {
	a, b := netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("10.96.0.9")
	spec := Spec{Key: key, VIPs: []netip.Addr{a, netip.MustParseAddr("fd00::1"), b}, Affinity: 5, Ports: []PortSpec{{"dns", UDP, 53}, {"http", TCP, 80}, {"dns-tcp", TCP, 53}}}
	got := For(spec, []Slice{slice(end(1, "n1"))}, here, MostKept)
	web := []Endpoint{{addr(1), 8080}}
	want := Service{Key: key, Affinity: 5, Ports: []Port{
		{b, TCP, 53, nil}, {b, TCP, 80, web}, {b, UDP, 53, nil},
		{a, TCP, 53, nil}, {a, TCP, 80, web}, {a, UDP, 53, nil},
	}}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if diff := cmp.Diff(fmt.Sprint([]netip.Addr{b, a}), fmt.Sprint(got.Addresses())); diff != "" {
		t.Errorf("addresses (-want +got)\n%s", diff)
	}
	spec.VIPs = nil
	if got := For(spec, nil, here, MostKept); len(got.Ports) != 0 {
		t.Errorf("a headless service has ports: %v", got.Ports)
	}
}
