package view

import (
	"net/netip"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// TestUnnamedPolicies: where a node does not name all policies of a pod, nobody takes the pod for
// one that a policy is not in force on.
func TestUnnamedPolicies(t *testing.T) {
	p := Policies{
		Isolation: topology.Isolation{
			Policies: []topology.IsolatingPolicy{{Name: "a", Ingress: true, Egress: true}, {Name: "z", Ingress: true}},
			Cluster:  []topology.SelectingPolicy{{Name: "c"}},
		},
		Pods: map[netip.Addr]topology.NodePods{netip.MustParseAddr("198.18.0.1"): {Host: "n1", Pods: []topology.NodePod{
			{Namespace: "shop", Name: "web-1", Ingress: []string{"a"}, Unnamed: topology.UnnamedPolicies{Ingress: 3, Cluster: 1}},
			{Namespace: "shop", Name: "web-2", Ingress: []string{"a"}},
			{Namespace: "other", Name: "x", Unnamed: topology.UnnamedPolicies{Ingress: 3, Egress: 3, Cluster: 3}},
		}}},
	}
	all := p.of("shop")
	for what, test := range map[string]struct{ got, want string }{
		"a, ingress": {all[0].Ingress.String(), "web-1 on n1, web-2 on n1"},
		"a, egress":  {all[0].Egress.String(), "-"},
		"z, ingress": {all[1].Ingress.String(), "perhaps 1 with more policies than their nodes name"},
		"c":          {p.cluster("shop")[0].String(), "perhaps 1 with more policies than their nodes name"},
		"both":       {(&Selected{Pods: []SelectedPod{{Pod: "db", Node: "n2"}}, Perhaps: 2}).String(), "db on n2, and perhaps 2 with more policies than their nodes name"},
	} {
		if test.got != test.want {
			t.Errorf("%s: %q, want %q", what, test.got, test.want)
		}
	}
}
