package view

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// ClusterPolicy is one ClusterNetworkPolicy of `netns show`, whose subject has pods of the
// namespace.
type ClusterPolicy struct {
	Policy string `json:"policy"`
	// Tier is Admin or Baseline; within it the lowest Priority is asked first. Without a record
	// of the policy it is empty.
	Tier     string `json:"tier"`
	Priority int32  `json:"priority"`
	// Selector chooses the pods of the namespace that it is about; empty for all.
	Selector string `json:"selector"`
	// Selected are those on which it is in force.
	Selected
}

// cluster are the ClusterNetworkPolicies of a namespace, in the order in which they are asked.
func (p Policies) cluster(namespace string) []ClusterPolicy {
	out := []ClusterPolicy{}
	for _, i := range p.Isolation.Cluster {
		r := p.Cluster[i.Name]
		selected := p.selected(namespace, i.Name, func(pod topology.NodePod) ([]string, int) { return pod.Cluster, pod.Unnamed.Cluster })
		out = append(out, ClusterPolicy{Policy: i.Name, Tier: r.Tier, Priority: r.Priority, Selector: i.Selector, Selected: *selected})
	}
	slices.SortStableFunc(out, func(a, b ClusterPolicy) int {
		if a.Tier != b.Tier {
			return strings.Compare(a.Tier, b.Tier) // Admin is before Baseline
		}
		return int(a.Priority - b.Priority)
	})
	return out
}

// ClusterNames lists the ClusterNetworkPolicies of the namespace for people.
func (p Policies) ClusterNames() string {
	var all []string
	for _, i := range p.Isolation.Cluster {
		all = append(all, i.Name)
	}
	if len(all) == 0 {
		return "none"
	}
	return names(all, spelled)
}

// clusterPolicies is the line about them.
func (d Detail) clusterPolicies() string {
	text := strconv.Itoa(len(d.ClusterPolicies))
	if len(d.ClusterNotEnforcedOn) > 0 {
		text += "; not enforced on " + names(d.ClusterNotEnforcedOn, spelled)
	}
	return text
}

// writeClusterPolicies writes the table of the ClusterNetworkPolicies of a namespace.
func writeClusterPolicies(w io.Writer, policies []ClusterPolicy) error {
	table := [][]string{{"CLUSTER POLICY", "TIER", "PRIORITY", "SELECTOR", "PODS"}}
	for _, p := range policies {
		table = append(table, []string{p.Policy, p.Tier, strconv.Itoa(int(p.Priority)), selector(p.Selector), p.Selected.String()})
	}
	return write(w, table)
}

// ClusterPolicyDetail is what `netns show NAMESPACE --cluster-policy NAME` shows.
type ClusterPolicyDetail struct {
	Namespace string `json:"namespace"`
	ClusterPolicy
	// Subject are the pods of all namespaces that it is about.
	Subject topology.PodSet `json:"subject"`
	// IngressRules and EgressRules are asked in their order.
	IngressRules []Rule `json:"ingressRules"`
	EgressRules  []Rule `json:"egressRules"`
}

// ShowClusterPolicy is the detail of a ClusterNetworkPolicy; sets are by hash. ok is false where
// it is about no pods of the namespace.
func ShowClusterPolicy(namespace, name string, policies Policies, sets map[string]topology.SetMembers) (d ClusterPolicyDetail, ok bool) {
	all := policies.cluster(namespace)
	at := slices.IndexFunc(all, func(p ClusterPolicy) bool { return p.Policy == name })
	if at < 0 {
		return ClusterPolicyDetail{}, false
	}
	r := policies.Cluster[name]
	return ClusterPolicyDetail{
		Namespace: namespace, ClusterPolicy: all[at], Subject: r.Subject,
		IngressRules: clusterRules(r.Ingress, sets), EgressRules: clusterRules(r.Egress, sets),
	}, true
}

func clusterRules(records []topology.ClusterPolicyRule, sets map[string]topology.SetMembers) []Rule {
	out := rules(plainRules(records), sets)
	for i, r := range records {
		out[i].Action = r.Action
	}
	return out
}

// plainRules are rules without their actions.
func plainRules(records []topology.ClusterPolicyRule) (plain []topology.PolicyRule) {
	for _, r := range records {
		plain = append(plain, r.PolicyRule)
	}
	return plain
}

// ClusterPolicySets are the hashes of the sets that a ClusterNetworkPolicy names.
func ClusterPolicySets(r topology.ClusterPolicyRecord) []string {
	return setsOf(plainRules(slices.Concat(r.Ingress, r.Egress)))
}

// WriteClusterPolicy writes what `netns show NAMESPACE --cluster-policy NAME` shows.
func WriteClusterPolicy(w io.Writer, d ClusterPolicyDetail) error {
	lines := [][]string{
		{"Cluster policy:", d.Policy}, {"Tier:", fmt.Sprintf("%s, priority %d", d.Tier, d.Priority)},
		{"Subject:", words(d.Subject)}, {"Of " + d.Namespace + ":", d.Selected.String()},
	}
	table := [][]string{{"DIRECTION", "ACTION", "PEERS", "PORTS"}}
	for _, side := range []struct {
		name  string
		rules []Rule
	}{{"ingress", d.IngressRules}, {"egress", d.EgressRules}} {
		for _, r := range side.rules {
			table = append(table, []string{side.name, r.Action, r.peers(), r.ports()})
		}
	}
	return writeBoth(w, lines, table)
}
