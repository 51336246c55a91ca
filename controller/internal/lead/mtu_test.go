package lead

import (
	"net/netip"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/test/etcdtest"
)

// A node that went does not hold the cluster's MTU back, whether it went while a
// controller led or before.
func TestMTUsGoWithNodes(t *testing.T) {
	e := etcdtest.Start(t)
	c := start(t, e, "one", nil)
	s := ready(t, c)
	client := e.Client()
	key := func(kind string, ip netip.Addr) string {
		return store.DefaultPrefix + "/k8ssdn/" + kind + "/" + ip.String()
	}
	join := func(ip netip.Addr) {
		t.Helper()
		if err := s.EnsureNode(ctxOf(t), "n", ip); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the leader has seen the node", func() bool {
			snapshot, _, err := s.Snapshot(ctxOf(t))
			return err == nil && snapshot.Nodes[ip].Ready()
		})
		if _, err := s.PutNodeMTU(ctxOf(t), topology.NodeMTU{Host: "n", HostIP: ip, Carries: 1400, Receives: 1400, Sends: 1400, Limit: "eth0"}); err != nil {
			t.Fatal(err)
		}
	}
	kept := func(ip netip.Addr) bool {
		resp, err := client.Get(ctxOf(t), key("mtu", ip))
		if err != nil {
			t.Fatal(err)
		}
		return len(resp.Kvs) == 1
	}
	a, b := netip.MustParseAddr("198.18.0.1"), netip.MustParseAddr("198.18.0.2")
	join(a)
	join(b)
	if err := s.DeleteNode(ctxOf(t), a); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the record of the node that went", func() bool { return !kept(a) })
	if !kept(b) {
		t.Error("the record of the other node went, too")
	}
	c.stop()
	if err := s.DeleteNode(ctxOf(t), b); err != nil {
		t.Fatal(err)
	}
	ready(t, start(t, e, "two", nil))
	eventually(t, "the record of the node that went meanwhile", func() bool { return !kept(b) })
}
