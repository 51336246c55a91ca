package policies

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/policy"
	"github.com/k8s-ovs/k8s-ovs/pkg/service"
)

// TestSCTPNotices: a policy that asks for ports of SCTP is told of while some node does not know
// them, by rule and node, and once whichever nodes those are.
func TestSCTPNotices(t *testing.T) {
	rule := func(ports ...policy.Port) policy.Rule { return policy.Rule{AnyPeer: true, Ports: ports} }
	all := policy.Port{Protocol: service.SCTP, Last: 1<<16 - 1}
	one := policy.Port{Protocol: service.SCTP, First: 9, Last: 9}
	named := policy.Port{Protocol: service.SCTP, Name: "diameter"}
	tcp := policy.Port{Protocol: service.TCP, First: 9, Last: 9}
	x := policy.Key{Namespace: "shop", Name: "x"}
	policies := func(ingress, egress []policy.Rule) map[policy.Key]kube.NetworkPolicy {
		return map[policy.Key]kube.NetworkPolicy{x: {UID: "x", Policy: policy.Policy{Key: x, Ingress: policy.Side{Rules: ingress}, Egress: policy.Side{Rules: egress}}}}
	}
	for _, test := range []struct {
		about           string
		ingress, egress []policy.Rule
		nodes           []string
		want            []string
	}{
		{"numbers and names", []policy.Rule{rule(tcp), rule(tcp, one)}, []policy.Rule{rule(named)}, []string{"n1", "n2"}, []string{"ingress[1], egress[0]: ", "nodes", ": n1, n2. "}},
		{"all of SCTP", []policy.Rule{rule(all), {AnyPeer: true, AnyPort: true}}, nil, []string{"n1"}, nil},
		{"TCP", []policy.Rule{rule(tcp)}, nil, []string{"n1"}, nil},
		{"all nodes know it", []policy.Rule{rule(one)}, nil, nil, nil},
	} {
		got := wanted(policies(test.ingress, test.egress), lacking{sctp: test.nodes})
		if len(got) > 1 || (len(got) == 1) != (test.want != nil) || len(got) == 1 && got[0].reason != NotHonoured {
			t.Errorf("%s: %+v", test.about, got)
			continue
		}
		for _, say := range test.want {
			if !strings.Contains(got[0].text(), say) {
				t.Errorf("%s: %q does not say %q", test.about, got[0].text(), say)
			}
		}
	}
	odd := policies([]policy.Rule{rule(one)}, nil)
	p := odd[x]
	p.Problem = "ingress[1]: what is that?"
	odd[x] = p
	n := newNotices()
	var told []int
	for _, nodes := range [][]string{{"n1"}, {"n1", "n2"}, {"n2"}, nil, {"n1"}} {
		due, _ := n.due(wanted(odd, lacking{sctp: nodes}), start)
		told = append(told, len(due))
	}
	if diff := cmp.Diff([]int{2, 0, 0, 0, 1}, told); diff != "" { // the problem, and SCTP; SCTP again
		t.Errorf("notices (-want +got):\n%s", diff)
	}
}
