package store

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

func TestMTUs(t *testing.T) {
	e, s := network(t)
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	of := func(ip netip.Addr, size int) topology.NodeMTU {
		return topology.NodeMTU{Host: "n", HostIP: ip, Carries: size, Receives: size, Sends: size, Limit: "eth0"}
	}
	put := func(m topology.NodeMTU) int64 {
		t.Helper()
		rev, err := s.PutNodeMTU(ctxOf(t), m)
		if err != nil {
			t.Fatal(err)
		}
		return rev
	}
	ch := s.WatchMTUs(ctxOf(t))
	rev := put(of(a, 1450))
	until(t, ch, "the view has the write", func(m topology.MTUs) bool {
		if len(m.Nodes) != 0 {
			t.Errorf("the MTU of a node without record counts: %+v", m.Nodes)
		}
		return m.Revision >= rev
	})
	for _, ip := range []netip.Addr{a, b} {
		if err := s.EnsureNode(ctxOf(t), "n", ip); err != nil {
			t.Fatal(err)
		}
	}
	rev = put(of(b, 1400))
	if again := put(of(b, 1400)); again <= rev {
		t.Errorf("the same record was not written anew: %d, then %d", rev, again)
	}
	e.Put(DefaultPrefix+"/k8ssdn/mtu/192.0.2.3", `{"HostIP":"192.0.2.3"}`)
	want := map[netip.Addr]topology.NodeMTU{a: of(a, 1450), b: of(b, 1400)}
	got := until(t, ch, "both nodes", func(m topology.MTUs) bool { return m.Revision > rev && len(m.Nodes) == 2 })
	if d := cmp.Diff(want, got.Nodes, byValue); d != "" {
		t.Errorf("watched (-want +got):\n%s", d)
	}
	read, err := s.MTUs(ctxOf(t))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, read.Nodes, byValue); d != "" {
		t.Errorf("read (-want +got):\n%s", d)
	}
	if err := s.DeleteNode(ctxOf(t), a); err != nil {
		t.Fatal(err)
	}
	until(t, ch, "the node that went", func(m topology.MTUs) bool { _, ok := m.Nodes[a]; return !ok })
	for range 2 { // none is no error
		if err := s.DeleteNodeMTU(ctxOf(t), b); err != nil {
			t.Fatal(err)
		}
	}
	until(t, ch, "the record that went", func(m topology.MTUs) bool { return len(m.Nodes) == 0 })
}
