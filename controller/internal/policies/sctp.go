package policies

import (
	"fmt"
	"slices"

	"github.com/k8s-ovs/k8s-ovs/pkg/policy"
	"github.com/k8s-ovs/k8s-ovs/pkg/service"
)

// portsOfSCTP are the rules of a policy that ask for ports of SCTP, as the policy numbers them:
// "ingress[0]". A rule with all ports of SCTP asks for none.
func portsOfSCTP(p policy.Policy) (rules []string) {
	for _, side := range []struct {
		name  string
		rules []policy.Rule
	}{{"ingress", p.Ingress.Rules}, {"egress", p.Egress.Rules}} {
		for i, r := range side.rules {
			if slices.ContainsFunc(r.Ports, isSCTPPort) {
				rules = append(rules, fmt.Sprintf("%s[%d]", side.name, i))
			}
		}
	}
	return rules
}

// clusterPortsOfSCTP reports whether a ClusterNetworkPolicy asks for ports of SCTP. One that it
// names is of every protocol, and asks for none.
func clusterPortsOfSCTP(p policy.ClusterPolicy) bool {
	return slices.ContainsFunc(slices.Concat(p.Ingress, p.Egress), func(r policy.ClusterRule) bool {
		return slices.ContainsFunc(r.Ports, func(p policy.Port) bool { return p.Name == "" && isSCTPPort(p) })
	})
}

func isSCTPPort(p policy.Port) bool {
	const last = 1<<16 - 1
	return p.Protocol == service.SCTP && (p.Name != "" || p.First > 0 || p.Last < last)
}
