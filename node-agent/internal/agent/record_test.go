package agent

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/attach"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// pods are so many, and asks what was asked for last.
type (
	pods int
	asks struct{ subnet bool }
)

func (p pods) List() []attach.Attachment { return make([]attach.Attachment, p) }
func (a *asks) Subnet(yes bool)          { a.subnet = yes }

// TestPlace: a node has its place only by a record of its own with a valid subnet; else it is told what is
// missing and, outside of Kubernetes, asks for it.
func TestPlace(t *testing.T) {
	change := func(fn func(*topology.Node)) topology.Snapshot {
		n := labSelf
		fn(&n)
		return snapshot(1, 0, n, labPeer)
	}
	other := labPeer.Subnet
	broken := snapshot(1, 0, labPeer)
	broken.Invalid = map[string]string{"subnets/198.18.0.1": "not JSON"}
	moved := snapshot(1, 0, topology.Node{Host: "n1", HostIP: netip.MustParseAddr("198.18.0.9"), Subnet: labSelf.Subnet})
	for name, c := range map[string]struct {
		records *topology.Snapshot
		copied  bool
		started netip.Prefix
		pods    pods
		cluster bool
		why     string
		asks    bool
	}{
		"no records":              {why: "no records yet from etcd"},
		"there":                   {records: new(snapshot(1, 0, labSelf, labPeer))},
		"none":                    {records: new(snapshot(1, 0, labPeer)), why: "the controller has not given it one", asks: true},
		"none, in Kubernetes":     {records: new(snapshot(1, 0, labPeer)), cluster: true, why: "the controller has not given it one"},
		"none in the copy":        {records: new(snapshot(1, 0, labPeer)), copied: true, why: "has no subnet"},
		"broken":                  {records: &broken, why: "not JSON", asks: true},
		"another address":         {records: &moved, cluster: true, why: "its record is for 198.18.0.9"},
		"somebody else's":         {records: new(change(func(n *topology.Node) { n.Host = "n9" })), why: "is still n9's", asks: true},
		"no subnet":               {records: new(change(func(n *topology.Node) { n.Subnet = netip.Prefix{} })), why: "has no subnet", asks: true},
		"asked for already":       {records: new(change(func(n *topology.Node) { n.Subnet, n.Assign = netip.Prefix{}, true })), why: "has no subnet"},
		"refused":                 {records: new(change(func(n *topology.Node) { n.Subnet, n.Status = netip.Prefix{}, &topology.Status{Message: "none is free"} })), why: "none is free"},
		"not of the network":      {records: new(change(func(n *topology.Node) { n.Subnet = netip.MustParsePrefix("192.0.2.0/24") })), why: "192.0.2.0/24"},
		"another one, with pods":  {records: new(snapshot(1, 0, labSelf)), started: other, pods: 2, why: "2 pods have addresses of 172.11.4.0/22: drain the node"},
		"another one, and no pod": {records: new(snapshot(1, 0, labSelf)), started: other},
	} {
		t.Run(name, func(t *testing.T) {
			a, p := &asks{}, &pass{}
			n := &ownRecord{picture: &picture{name: "n1", self: labSelf.HostIP, records: c.records, fromEtcd: !c.copied, started: c.started}, etcd: &etcd{}, inCluster: c.cluster, attached: c.pods}
			if !c.cluster {
				n.asking = a
			}
			err := n.place(t.Context(), p)
			if (err == nil) != (c.why == "") || err != nil && !strings.Contains(err.Error(), c.why) {
				t.Errorf("error %v, want one with %q", err, c.why)
			}
			if err == nil && (p.me.Subnet != labSelf.Subnet || n.started.IsValid() && n.started != labSelf.Subnet) {
				t.Errorf("place %+v, started as %s", p.me, n.started)
			}
			if a.subnet != c.asks {
				t.Errorf("asks for a subnet: %t", a.subnet)
			}
		})
	}
}
