package nodeflows

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
)

// TestPeerChanges: a change of one peer is a bundle of its flows only, and the flows follow
// the numbers and UDP ports of the tunnels.
func TestPeerChanges(t *testing.T) {
	o, table, obs := start(t)
	conn := connect(t, o, table)
	ports := desired.Ports{Tunnels: map[string]uint32{desired.NodeTunnel: 1}, Gateway: 2}
	udp := []tunnel.Port{4789}
	s := records(1, map[string]netid.ID{"a": 10})
	with := func(nodes ...int) topology.Snapshot {
		s.Revision++
		s.Nodes = map[netip.Addr]topology.Node{node(1).HostIP: node(1)}
		for _, n := range nodes {
			s.Nodes[node(n).HostIP] = node(n)
		}
		return s
	}
	moved := func() topology.Snapshot {
		s := with(2, 3, 4)
		n := s.Nodes[node(3).HostIP]
		n.Subnet = node(9).Subnet
		s.Nodes[n.HostIP] = n
		return s
	}
	records := func(s topology.Snapshot) func() error {
		return func() error { _, _, err := table.SetRecords(t.Context(), s); return err }
	}
	told := func(p desired.Ports) func() error {
		return func() error { ports = p; return table.SetPorts(t.Context(), p) }
	}
	two := desired.Ports{Tunnels: map[string]uint32{desired.NodeTunnel: 1, "vxlan1": 3}, Gateway: 2}
	if err := told(ports)(); err != nil {
		t.Fatal(err)
	}
	if err := records(with(2, 3, 4))(); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		name    string
		change  func() error
		changes int
	}{
		{"the same", records(with(2, 3, 4)), 0},
		{"one comes", records(with(2, 3, 4, 5)), 2},
		{"one goes", records(with(2, 3, 4)), 2},
		{"one gets another subnet", records(moved()), 4},
		{"another tunnel port", told(two), 2},
		{"its UDP port", func() error { udp = []tunnel.Port{4789, 8472}; return table.SetUDPPorts(t.Context(), udp) }, 1},
		{"the same ports", told(desired.Ports{Tunnels: map[string]uint32{"vxlan1": 3, desired.NodeTunnel: 1}, Gateway: 2}), 0},
		{"the peers' port has another number", told(desired.Ports{Tunnels: map[string]uint32{desired.NodeTunnel: 7, "vxlan1": 3}, Gateway: 2}), 2*2 + 3*3},
		{"the peers' port is gone", told(desired.Ports{Tunnels: map[string]uint32{"vxlan1": 3}, Gateway: 2}), 2 + 3*2},
	} {
		bundles, changes := obs.bundles, obs.changes
		if err := step.change(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if n := obs.changes - changes; n != step.changes || obs.bundles-bundles > 1 {
			t.Errorf("%s: %d changes in %d bundles, want %d in one", step.name, n, obs.bundles-bundles, step.changes)
		}
		m, _, err := desired.Node(*table.records, self, ports, udp, desired.Slots{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		var want []string
		for _, f := range m.Flows() {
			want = append(want, f.String())
		}
		slices.Sort(want)
		if diff := cmp.Diff(want, flows(t, conn)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", step.name, diff)
		}
	}
}

// A peer behind two tunnel ports has flows of both, and each its owner.
func TestPeerOwners(t *testing.T) {
	p := pipeline.Peer{Port: 1, VTEP: node(2).HostIP, Prefixes: []netip.Prefix{node(2).Subnet}}
	q := p
	q.Port = 3
	if a, b := peerOwner(p), peerOwner(q); a == b || a != peerOwner(p) {
		t.Errorf("owners %v and %v", a, b)
	}
}
