package policies

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/policy"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// TestAddressesOfOthers: a kubelet that lists addresses of pods, services and other nodes in its
// Node's status has none of them in the sets of nodes, so that rules for nodes neither cut off nor
// open what is there.
func TestAddressesOfOthers(t *testing.T) {
	ip := netip.MustParseAddr
	host := func(name, zone string, age int, internal netip.Addr, others ...netip.Addr) *kube.NodeLabels {
		return &kube.NodeLabels{Labels: map[string]string{"zone": zone}, Node: kube.Node{
			Name: name, UID: "u-" + name, Created: time.Unix(int64(1000-age), 0), Addresses: []netip.Addr{internal}, Every: append([]netip.Addr{internal}, others...), Internal: 1,
		}}
	}
	set := policy.Set{OfNodes: true, Nodes: "zone=b"}
	s := newState()
	s.keep(set)
	members := func(base string) (out []string) {
		t.Helper()
		s.take()
		for _, m := range s.index.Members(policy.Chunk{Set: set, Base: ip(base)}) {
			out = append(out, m.Address.String())
		}
		return out
	}
	expect := func(what, base string, want ...string) {
		t.Helper()
		if diff := cmp.Diff(want, members(base)); diff != "" {
			t.Errorf("%s (-want +got)\n%s", what, diff)
		}
	}
	records := map[netip.Addr]topology.Node{
		ip("192.0.2.2"): {Host: "honest", UID: "u-honest", HostIP: ip("192.0.2.2")}, ip("192.0.2.3"): {Host: "young", UID: "u-young", HostIP: ip("192.0.2.3")},
	}
	s.setNetwork(topology.DefaultConfig(), records)
	s.setHost("honest", host("honest", "a", 1, ip("192.0.2.2")))
	s.setHost("young", host("young", "a", 1, ip("192.0.2.3")))
	s.setHost("stolen", host("stolen", "b", 99, ip("192.0.2.9"), ip("172.11.0.5"), ip("10.96.0.1"), ip("192.0.2.2"), ip("192.0.2.3")))
	expect("pods", "172.11.0.0")
	expect("services", "10.96.0.0")
	expect("nodes", "192.0.2.0", "192.0.2.9")

	// An address is the node's again whose other one is gone, and no more one's that another has by now.
	s.setHost("young", nil)
	expect("a node that is gone", "192.0.2.0", "192.0.2.3", "192.0.2.9")
	records[ip("192.0.2.9")] = topology.Node{Host: "honest", UID: "u-honest", HostIP: ip("192.0.2.9")}
	s.setNetwork(topology.DefaultConfig(), records)
	expect("a record that came", "192.0.2.0", "192.0.2.3")
}
