package nodeflows

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/test/ovstest"
)

// large is a table with 250 pods of as many namespaces, among 500 nodes and 1,000
// namespaces.
func large(b *testing.B) (*Table, topology.Snapshot) {
	b.Helper()
	o := ovstest.Start(b)
	o.AddBridge("br0", "dummy")
	table := newTable(&observer{})
	table.SetServiceProxy(pipeline.OVS)
	s := records(1, nil)
	for i := range 1000 {
		name := fmt.Sprint("tenant", i)
		s.Namespaces[name] = topology.Namespace{NetName: name, Effective: id(netid.ID(10 + i))}
	}
	s.Config.Network = netip.MustParsePrefix("172.0.0.0/8")
	for i := range 500 {
		a := netip.AddrFrom4([4]byte{198, 18, byte((i + 1) >> 8), byte(i + 1)})
		s.Nodes[a] = topology.Node{Host: fmt.Sprint("n", i+1), HostIP: a, Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{172, byte(11 + i>>6), byte(4 * (i & 63)), 0}), 22)}
	}
	var pods []desired.Attached
	for i := range 250 {
		p := pod(fmt.Sprint("tenant", i), 2+i)
		pods = append(pods, p)
	}
	table.Load(pods)
	_, _, _ = table.SetRecords(b.Context(), s)
	_ = table.SetPorts(b.Context(), desired.Ports{Tunnels: map[string]uint32{desired.NodeTunnel: 1}, Gateway: 2})
	conn, err := of.Dial(b.Context(), o.Mgmt("br0"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { conn.Close() })
	if err := reconnect(b.Context(), table, conn); err != nil {
		b.Fatal(err)
	}
	return table, s
}

// BenchmarkAttach attaches a pod of a namespace that has none here, and detaches it.
func BenchmarkAttach(b *testing.B) {
	table, _ := large(b)
	address := netip.MustParseAddr("172.11.1.9")
	p := desired.Attached{Port: 999, Namespace: "tenant900", MAC: topology.MAC(address), Addresses: []netip.Addr{address}}
	var took []time.Duration
	for b.Loop() {
		start := time.Now()
		if err := table.Attach(b.Context(), p); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(start))
		if err := table.Detach(b.Context(), p.Port, p.MAC); err != nil {
			b.Fatal(err)
		}
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "attach-p50-us")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "attach-p99-us")
}

// BenchmarkResync reads all back.
func BenchmarkResync(b *testing.B) {
	table, _ := large(b)
	for b.Loop() {
		if err := table.Resync(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkTenant changes the netID of one namespace with a pod here.
func BenchmarkTenant(b *testing.B) {
	table, s := large(b)
	for i := 0; b.Loop(); i++ {
		s.Namespaces = maps.Clone(s.Namespaces) // snapshots share nothing that changes
		s.Namespaces["tenant7"] = topology.Namespace{NetName: "tenant7", Effective: id(netid.ID(5000 + i%2))}
		if _, _, err := table.SetRecords(b.Context(), s); err != nil {
			b.Fatal(err)
		}
	}
}
