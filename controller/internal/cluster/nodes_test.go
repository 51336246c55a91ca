package cluster

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

func (s *scene) node(name, cidr string, addresses ...string) *scene {
	s.age++
	n := kube.Node{Name: name, UID: "u-" + name, Created: time.Unix(s.age, 0)}
	for _, a := range addresses {
		n.Addresses = append(n.Addresses, netip.MustParseAddr(a))
	}
	if cidr != "" {
		n.PodCIDR = netip.MustParsePrefix(cidr)
	}
	s.cluster.Nodes[name] = n
	return s
}

func (s *scene) nodeRecord(host, ip, subnet, uid string) *scene {
	s.age++
	n := topology.Node{Host: host, HostIP: netip.MustParseAddr(ip), UID: uid}
	if subnet != "" {
		n.Subnet = netip.MustParsePrefix(subnet)
	}
	s.records.Nodes[n.HostIP] = n
	s.records.Revs.Nodes[n.HostIP] = store.Rev{Mod: s.age, Create: s.age}
	return s
}

// reportsAt has the agents at these addresses report.
func (s *scene) reportsAt(ips ...string) *scene {
	for _, ip := range ips {
		s.reporting[netip.MustParseAddr(ip)] = true
	}
	return s
}

func TestNodes(t *testing.T) {
	tests := map[string]struct {
		scene  *scene
		source SubnetSource
		want   []string
		event  string
	}{
		"new":        {newScene().node("n1", "", "192.0.2.1"), FromRecords, []string{"192.0.2.1 n1 uid=u-n1 assign (new)"}, ""},
		"settled":    {newScene().node("n1", "", "192.0.2.1").nodeRecord("n1", "192.0.2.1", "172.11.0.0/22", "u-n1"), FromRecords, nil, ""},
		"adopted":    {newScene().node("n1", "", "192.0.2.1").nodeRecord("n1", "192.0.2.1", "172.11.0.0/22", ""), FromRecords, []string{"192.0.2.1 n1 uid=u-n1 172.11.0.0/22"}, ""},
		"asks again": {newScene().node("n1", "", "192.0.2.1").nodeRecord("n1", "192.0.2.1", "", "u-n1"), FromRecords, []string{"192.0.2.1 n1 uid=u-n1 assign"}, ""},
		"gone":       {newScene().nodeRecord("n1", "192.0.2.1", "172.11.0.0/22", "u-n1"), FromRecords, []string{"192.0.2.1 deleted"}, ""},
		"not ours":   {newScene().nodeRecord("n1", "192.0.2.1", "172.11.0.0/22", ""), FromRecords, nil, ""},
		"registered anew": {newScene().node("n1", "", "192.0.2.1").nodeRecord("n1", "192.0.2.1", "172.11.0.0/22", "old"), FromRecords,
			[]string{"192.0.2.1 n1 uid=u-n1 172.11.0.0/22"}, ""},
		"one more address, first": {newScene().node("n1", "", "192.0.2.9", "192.0.2.1").nodeRecord("n1", "192.0.2.1", "172.11.0.0/22", "u-n1"), FromRecords, nil, ""},
		"no address":              {newScene().node("n1", ""), FromRecords, nil, "--node-ip"},
		"no address for a while":  {newScene().node("n1", "").nodeRecord("n1", "192.0.2.1", "172.11.0.0/22", "u-n1"), FromRecords, nil, "InternalIP"},
		"inside the pod network":  {newScene().node("n1", "", "172.11.3.4"), FromRecords, nil, "inside the pod network"},
		"two with one address": {newScene().node("n1", "", "192.0.2.1").node("n2", "", "192.0.2.1"), FromRecords,
			[]string{"192.0.2.1 n1 uid=u-n1 assign (new)"}, "that of node n1 too"},
		"podCIDR": {newScene().node("n1", "172.11.8.0/22", "192.0.2.1"), FromNode, []string{"192.0.2.1 n1 uid=u-n1 172.11.8.0/22 (new)"}, ""},
		"podCIDR of a record that waits": {newScene().node("n1", "172.11.8.0/22", "192.0.2.1").nodeRecord("n1", "192.0.2.1", "", "u-n1"), FromNode,
			[]string{"192.0.2.1 n1 uid=u-n1 172.11.8.0/22"}, ""},
		"podCIDR too long":  {newScene().node("n1", "172.11.8.0/24", "192.0.2.1"), FromNode, nil, "172.11.8.0/24 is not a /22 of the pod network 172.11.0.0/16"},
		"podCIDR elsewhere": {newScene().node("n1", "10.0.0.0/22", "192.0.2.1"), FromNode, nil, "--cluster-cidr"},
		"no podCIDR":        {newScene().node("n1", "", "192.0.2.1"), FromNode, nil, "--allocate-node-cidrs"},
		"another podCIDR":   {newScene().node("n1", "172.11.8.0/22", "192.0.2.1").nodeRecord("n1", "192.0.2.1", "172.11.0.0/22", "u-n1"), FromNode, nil, "drain"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			plan := New(test.source).Plan(test.scene.state(), now)
			if diff := cmp.Diff(test.want, words(plan)); diff != "" {
				t.Errorf("writes (-want +got):\n%s", diff)
			}
			said := ""
			for _, e := range plan.Events {
				said += e.Message
			}
			if !strings.Contains(said, test.event) || (said == "") != (test.event == "") {
				t.Errorf("events %q, want %q", said, test.event)
			}
		})
	}
}

func TestCheck(t *testing.T) {
	small := topology.DefaultConfig()
	small.HostSubnetLength = 16
	tests := map[string]struct {
		cfg   topology.Config
		scene *scene
		want  string
	}{
		"fits":            {topology.DefaultConfig(), newScene().node("n1", "", "192.0.2.1"), ""},
		"pod network":     {topology.DefaultConfig(), newScene().node("n1", "", "172.11.0.9"), "node n1: HostIP 172.11.0.9 is inside the pod network 172.11.0.0/16"},
		"service network": {topology.DefaultConfig(), newScene().node("n1", "", "10.97.0.9"), "inside the service network"},
		"too few subnets": {small, newScene().node("n1", "", "192.0.2.1").node("n2", "", "192.0.2.2"), "1 subnets of /16 for 2 nodes"},
		"services":        {topology.DefaultConfig(), newScene().own("172.20.0.1"), "does not contain 172.20.0.1"},
	}
	for name, test := range tests {
		err := Check(test.cfg, test.scene.cluster)
		switch {
		case test.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case test.want != "" && (!errors.Is(err, ErrMisfit) || !strings.Contains(err.Error(), test.want)):
			t.Errorf("%s: error %v, want one with %q", name, err, test.want)
		}
	}
}

func (s *scene) own(address string) *scene {
	s.cluster.KubernetesService = netip.MustParseAddr(address)
	return s
}

// TestBundleOfAdoptedNode: the record of a node that joined by a bundle, and is a Node of the
// cluster now, has the Node's identity.
func TestBundleOfAdoptedNode(t *testing.T) {
	s := newScene().node("n1", "", "192.0.2.1").nodeRecord("n1", "192.0.2.1", "172.11.0.0/22", "u-n1")
	ip := netip.MustParseAddr("192.0.2.1")
	rec := s.records.Nodes[ip]
	rec.Identity = "of-its-bundle"
	s.records.Nodes[ip] = rec
	plan := New(FromRecords).Plan(State{Cluster: s.cluster, Records: s.records}, now)
	if len(plan.Writes) != 1 || plan.Writes[0].Node.ID() != "u-n1" {
		t.Fatalf("plan %+v", plan.Writes)
	}
	s.records.Nodes[ip] = *plan.Writes[0].Node
	if again := New(FromRecords).Plan(State{Cluster: s.cluster, Records: s.records}, now); len(again.Writes) != 0 {
		t.Errorf("then %+v", again.Writes)
	}
}

// TestNodeWhole: a record is written when any field of it is not as it should be, and with all that it has beside
// what the Node says.
func TestNodeWhole(t *testing.T) {
	s := newScene().node("n1", "", "192.0.2.1").confirmed("n1", "192.0.2.1")
	ip := netip.MustParseAddr("192.0.2.1")
	n := s.records.Nodes[ip]
	n.UID, n.Assign, n.Rest = "u-n1", true, `"Color":"red"`
	s.records.Nodes[ip] = n
	want := n
	want.Status = nil // what was confirmed is so
	if plan := s.plan(); len(plan.Writes) != 1 || !plan.Writes[0].Node.Equal(want) {
		t.Errorf("%+v", plan.Writes)
	}
	s.records.Nodes[ip] = want
	if plan := s.plan(); len(plan.Writes) != 0 {
		t.Errorf("as it should be: %+v", plan.Writes)
	}
}
