package view

import (
	"cmp"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/k8s-ovs/k8s-ovs/pkg/policy"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// Policies is what the records say of the policies of a namespace.
type Policies struct {
	Isolation topology.Isolation
	// Cluster are all ClusterNetworkPolicies.
	Cluster map[string]topology.ClusterPolicyRecord
	// Pods are those of all live nodes.
	Pods map[netip.Addr]topology.NodePods
}

// Policy is one NetworkPolicy of `netns show`.
type Policy struct {
	Policy string `json:"policy"`
	// Selector chooses the pods of the namespace that it is about; empty for all.
	Selector string `json:"selector"`
	// Ingress is of what pods receive, Egress of what they send; null where the policy
	// isolates nobody that way.
	Ingress *Selected `json:"ingress"`
	Egress  *Selected `json:"egress"`
}

// Selected are the pods on which the policy is in force in one direction.
type Selected struct {
	Pods []SelectedPod `json:"pods"`
	// Perhaps is how many others the policy may be in force on: they have so many policies that
	// their nodes do not name all of them.
	Perhaps int `json:"perhaps,omitempty"`
}

// SelectedPod is one of them.
type SelectedPod struct {
	Pod  string `json:"pod"`
	Node string `json:"node"`
}

// of are the policies of a namespace, in order.
func (p Policies) of(namespace string) []Policy {
	out := []Policy{}
	for _, i := range p.Isolation.Policies {
		row := Policy{Policy: i.Name, Selector: i.Selector}
		if i.Ingress {
			row.Ingress = p.selected(namespace, i.Name, func(pod topology.NodePod) ([]string, int) { return pod.Ingress, pod.Unnamed.Ingress })
		}
		if i.Egress {
			row.Egress = p.selected(namespace, i.Name, func(pod topology.NodePod) ([]string, int) { return pod.Egress, pod.Unnamed.Egress })
		}
		out = append(out, row)
	}
	return out
}

// selected are the pods of a namespace that a policy is in force on. policies are those of a pod:
// the names that its node tells, and how many it leaves out.
func (p Policies) selected(namespace, policy string, policies func(topology.NodePod) (names []string, unnamed int)) *Selected {
	s := &Selected{Pods: []SelectedPod{}}
	for _, n := range p.Pods {
		for _, pod := range n.Pods {
			if pod.Namespace != namespace {
				continue
			}
			switch names, unnamed := policies(pod); {
			case slices.Contains(names, policy):
				s.Pods = append(s.Pods, SelectedPod{Pod: pod.Name, Node: n.Host})
			case unnamed > 0:
				s.Perhaps++
			}
		}
	}
	slices.SortFunc(s.Pods, func(a, b SelectedPod) int { return cmp.Or(cmp.Compare(a.Pod, b.Pod), cmp.Compare(a.Node, b.Node)) })
	return s
}

// Names lists the policies for people.
func (p Policies) Names() string {
	var all []string
	for _, i := range p.Isolation.Policies {
		all = append(all, i.Name)
	}
	if len(all) == 0 {
		return "none"
	}
	return names(all, spelled)
}

// notEnforcing are the live nodes that do not enforce a kind of policies.
func notEnforcing(statuses Statuses, kind string) []string {
	out := []string{}
	for _, st := range statuses {
		if !slices.Contains(st.Enforces, kind) {
			out = append(out, st.Host)
		}
	}
	slices.Sort(out)
	return out
}

// policies is the line about them.
func (d Detail) policies() string {
	switch {
	case d.Policies == nil:
		return "none (no API server)"
	case len(d.Policies) == 0:
		return "none"
	case len(d.NotEnforcedOn) > 0:
		return fmt.Sprintf("%d; not enforced on %s", len(d.Policies), names(d.NotEnforcedOn, spelled))
	}
	return strconv.Itoa(len(d.Policies))
}

// writePolicies writes the table of a namespace's policies, a direction a line.
func writePolicies(w io.Writer, policies []Policy) error {
	table := [][]string{{"POLICY", "SELECTOR", "DIRECTION", "PODS"}}
	for _, p := range policies {
		if p.Ingress != nil {
			table = append(table, []string{p.Policy, selector(p.Selector), "ingress", p.Ingress.String()})
		}
		if p.Egress != nil {
			table = append(table, []string{p.Policy, selector(p.Selector), "egress", p.Egress.String()})
		}
	}
	return write(w, table)
}

func selector(s string) string { return cmp.Or(s, everybody) }

// String names the pods, with their nodes.
func (s *Selected) String() string {
	var pods []string
	for _, p := range s.Pods {
		pods = append(pods, p.Pod+" on "+p.Node)
	}
	text := names(pods, spelled)
	if s.Perhaps == 0 {
		return text
	}
	more := fmt.Sprintf("perhaps %d with more policies than their nodes name", s.Perhaps)
	if len(pods) == 0 {
		return more
	}
	return text + ", and " + more
}

// PolicyDetail is what `netns show NAMESPACE --policy NAME` shows.
type PolicyDetail struct {
	Namespace string `json:"namespace"`
	Policy
	// IngressRules and EgressRules allow what one of them allows.
	IngressRules []Rule `json:"ingressRules"`
	EgressRules  []Rule `json:"egressRules"`
}

// Rule allows all of its peers on all of its ports.
type Rule struct {
	// Action is what a rule of a ClusterNetworkPolicy does in place of that: Accept, Deny or
	// Pass.
	Action string `json:"action,omitempty"`
	// Peers and Ports are null where the rule is not bounded by them.
	Peers []RulePeer `json:"peers"`
	Ports []string   `json:"ports"`
}

// RulePeer is a set of pods or of nodes, or a block of addresses.
type RulePeer struct {
	Set *PeerSet `json:"set,omitempty"`
	// Block and Except are empty beside a set.
	Block  string   `json:"block,omitempty"`
	Except []string `json:"except,omitempty"`
}

// PeerSet is a set of pods, or of nodes, with its size.
type PeerSet struct {
	topology.PodSet
	// Members have an address in it; -1 for the set of all pods, which nobody counts.
	Members int `json:"members"`
	// Whole says that all members have been in it once.
	Whole bool `json:"whole"`
}

// PolicySets are the hashes of the sets that a policy names.
func PolicySets(r topology.PolicyRecord) []string { return setsOf(slices.Concat(r.Ingress, r.Egress)) }

func setsOf(rules []topology.PolicyRule) []string {
	var hashes []string
	for _, rule := range rules {
		for _, p := range rule.Peers {
			if p.Set != nil && *p.Set != (topology.PodSet{}) {
				hashes = append(hashes, policy.SetFromRecord(*p.Set).Hash())
			}
		}
	}
	slices.Sort(hashes)
	return slices.Compact(hashes)
}

// ShowPolicy is the detail of a policy whose record is r; sets are by hash. ok is false where
// the namespace has none of that name.
func ShowPolicy(namespace, name string, policies Policies, r topology.PolicyRecord, sets map[string]topology.SetMembers) (d PolicyDetail, ok bool) {
	all := policies.of(namespace)
	at := slices.IndexFunc(all, func(p Policy) bool { return p.Policy == name })
	if at < 0 {
		return PolicyDetail{}, false
	}
	return PolicyDetail{Namespace: namespace, Policy: all[at], IngressRules: rules(r.Ingress, sets), EgressRules: rules(r.Egress, sets)}, true
}

func rules(records []topology.PolicyRule, sets map[string]topology.SetMembers) []Rule {
	out := []Rule{}
	for _, r := range records {
		var rule Rule
		if r.Peers != nil {
			rule.Peers = []RulePeer{}
		}
		for _, p := range r.Peers {
			rule.Peers = append(rule.Peers, rulePeer(p, sets))
		}
		if r.Ports != nil {
			rule.Ports = []string{}
		}
		for _, p := range r.Ports {
			rule.Ports = append(rule.Ports, rulePort(p))
		}
		out = append(out, rule)
	}
	return out
}

func rulePeer(p topology.PolicyPeer, sets map[string]topology.SetMembers) RulePeer {
	switch {
	case p.Set == nil:
		out := RulePeer{Block: p.Block.String()}
		for _, e := range p.Except {
			out.Except = append(out.Except, e.String())
		}
		return out
	case *p.Set == topology.PodSet{}:
		return RulePeer{Set: &PeerSet{Members: -1, Whole: true}}
	}
	have := sets[policy.SetFromRecord(*p.Set).Hash()]
	set := PeerSet{PodSet: *p.Set, Whole: have.Of.Whole}
	for _, c := range have.Chunks {
		set.Members += c.Addresses.Len()
	}
	return RulePeer{Set: &set}
}

func rulePort(p topology.PolicyPort) string {
	switch {
	case p.Name != "":
		return p.Protocol + " " + p.Name
	case p.Port == 0:
		return p.Protocol
	case p.End == 0:
		return fmt.Sprintf("%s %d", p.Protocol, p.Port)
	}
	return fmt.Sprintf("%s %d-%d", p.Protocol, p.Port, p.End)
}

// String is the set in words: "pods app=web of namespaces team=a (12)".
func (s PeerSet) String() string {
	if s.Members < 0 {
		return "all pods"
	}
	text := fmt.Sprintf("%s (%d", words(s.PodSet), s.Members)
	if !s.Whole {
		text += ", not whole yet"
	}
	return text + ")"
}

// words name a set: "pods app=web of namespaces team=a".
func words(s topology.PodSet) string {
	switch {
	case s.OfNodes && s.Nodes == "":
		return "all nodes"
	case s.OfNodes:
		return "nodes " + s.Nodes
	}
	text := "all pods"
	if s.Pods != "" {
		text = "pods " + s.Pods
	}
	if s.Namespace != "" {
		text += " of namespace " + s.Namespace
	} else if s.Namespaces != "" {
		text += " of namespaces " + s.Namespaces
	}
	return text
}

func (p RulePeer) String() string {
	switch {
	case p.Set != nil:
		return p.Set.String()
	case len(p.Except) > 0:
		return p.Block + " except " + strings.Join(p.Except, ", ")
	}
	return p.Block
}

// WritePolicy writes what `netns show NAMESPACE --policy NAME` shows.
func WritePolicy(w io.Writer, d PolicyDetail) error {
	lines := [][]string{{"Policy:", d.Namespace + "/" + d.Policy.Policy}, {"Selector:", selector(d.Selector)}}
	table := [][]string{{"DIRECTION", "PEERS", "PORTS"}}
	for _, side := range []struct {
		name     string
		selected *Selected
		rules    []Rule
	}{{"ingress", d.Ingress, d.IngressRules}, {"egress", d.Egress, d.EgressRules}} {
		text := "not isolated by it"
		if side.selected != nil {
			text = "isolates " + side.selected.String()
		}
		lines = append(lines, []string{strings.ToUpper(side.name[:1]) + side.name[1:] + ":", text})
		for _, r := range side.rules {
			table = append(table, []string{side.name, r.peers(), r.ports()})
		}
	}
	return writeBoth(w, lines, table)
}

// writeBoth writes lines and, where it has more than its head, a table.
func writeBoth(w io.Writer, lines, table [][]string) error {
	if err := write(w, lines); err != nil || len(table) == 1 {
		return err
	}
	if _, err := fmt.Fprintln(w); err != nil {
		return err
	}
	return write(w, table)
}

func (r Rule) peers() string {
	if r.Peers == nil {
		return "all"
	}
	var out []string
	for _, p := range r.Peers {
		out = append(out, p.String())
	}
	return strings.Join(out, "; ")
}

func (r Rule) ports() string {
	if r.Ports == nil {
		return "all"
	}
	return strings.Join(r.Ports, ", ")
}
