package policy

import (
	"errors"
	"fmt"
	"net/netip"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	npav1beta1 "sigs.k8s.io/network-policy-api/apis/v1beta1"

	"github.com/k8s-ovs/k8s-ovs/pkg/service"
)

// ParseCluster reads a ClusterNetworkPolicy. The policy counts with an error too, and then
// closes, as the API asks of peers: a rule that was not understood accepts nothing if it is
// to accept, and else denies all. A subject that was not understood is every pod, and a tier
// Admin; rules of such a policy accept nothing, or deny what they name.
func ParseCluster(cnp *npav1beta1.ClusterNetworkPolicy) (ClusterPolicy, error) {
	p := ClusterPolicy{Name: cnp.Name, Priority: cnp.Spec.Priority}
	var problems []error
	for i, r := range cnp.Spec.Ingress {
		rule, err := parseClusterRule(r.Action, "from", ingressPeers(r.From), r.Protocols)
		p.Ingress = append(p.Ingress, rule...)
		problems = append(problems, at("ingress", i, err))
	}
	for i, r := range cnp.Spec.Egress {
		rule, err := parseClusterRule(r.Action, "to", r.To, r.Protocols)
		p.Egress = append(p.Egress, rule...)
		problems = append(problems, at("egress", i, err))
	}
	var tierProblem, subjectProblem error
	p.Baseline, tierProblem = parseTier(cnp.Spec.Tier)
	p.Subject, subjectProblem = parseSubject(cnp.Spec.Subject)
	if tierProblem != nil || subjectProblem != nil {
		p.Ingress, p.Egress = closed(p.Ingress), closed(p.Egress)
	}
	if err := errors.Join(append(problems, tierProblem, subjectProblem)...); err != nil {
		return p, fmt.Errorf("ClusterNetworkPolicy %s: %w", p.Name, err)
	}
	return p, nil
}

func parseTier(t npav1beta1.Tier) (baseline bool, err error) {
	switch t {
	case npav1beta1.AdminTier:
		return false, nil
	case npav1beta1.BaselineTier:
		return true, nil
	}
	return false, fmt.Errorf("tier %q is none of Admin, Baseline", t)
}

func parseSubject(s npav1beta1.ClusterNetworkPolicySubject) (Set, error) {
	set, err := parseNamespaced(s.Namespaces, s.Pods)
	if err != nil {
		return Set{}, fmt.Errorf("subject: %w", err)
	}
	return set, nil
}

// parseNamespaced reads what subjects and peers have in common: pods by their namespaces, and
// by their own labels too.
func parseNamespaced(namespaces *metav1.LabelSelector, pods *npav1beta1.NamespacedPod) (Set, error) {
	var set Set
	var err error
	switch {
	case (namespaces == nil) == (pods == nil):
		return set, errors.New("it needs one of namespaces and pods, and not both")
	case namespaces != nil:
		if set.Namespaces, err = NewSelector(*namespaces); err != nil {
			return Set{}, fmt.Errorf("namespaces: %w", err)
		}
		return set, nil
	}
	if set.Namespaces, err = NewSelector(pods.NamespaceSelector); err != nil {
		return Set{}, fmt.Errorf("pods: namespaceSelector: %w", err)
	}
	if set.Pods, err = NewSelector(pods.PodSelector); err != nil {
		return Set{}, fmt.Errorf("pods: podSelector: %w", err)
	}
	return set, nil
}

// ingressPeers are peers as those of egress, which can be more.
func ingressPeers(peers []npav1beta1.ClusterNetworkPolicyIngressPeer) []npav1beta1.ClusterNetworkPolicyEgressPeer {
	var out []npav1beta1.ClusterNetworkPolicyEgressPeer
	for _, p := range peers {
		out = append(out, npav1beta1.ClusterNetworkPolicyEgressPeer{Namespaces: p.Namespaces, Pods: p.Pods})
	}
	return out
}

// parseClusterRule reads a rule, whose peers are in a list of that name. There is none where
// it is to accept and was not understood.
func parseClusterRule(action npav1beta1.ClusterNetworkPolicyRuleAction, list string, peers []npav1beta1.ClusterNetworkPolicyEgressPeer, protocols []npav1beta1.ClusterNetworkPolicyProtocol) ([]ClusterRule, error) {
	r := ClusterRule{Rule: Rule{AnyPort: len(protocols) == 0}}
	var problems []error
	var err error
	if r.Action, err = parseAction(action); err != nil {
		problems = append(problems, err)
	}
	if len(peers) == 0 {
		problems = append(problems, fmt.Errorf("%s is empty; a rule needs a peer", list))
	}
	for i, p := range peers {
		these, err := parseClusterPeer(p)
		r.Peers = append(r.Peers, these...)
		problems = append(problems, at(list, i, err))
	}
	for i, p := range protocols {
		these, err := parseProtocol(p)
		r.Ports = append(r.Ports, these...)
		problems = append(problems, at("protocols", i, err))
	}
	if err := errors.Join(problems...); err != nil {
		r.Rule = Rule{AnyPeer: true, AnyPort: true}
		return closed([]ClusterRule{r}), err
	}
	return []ClusterRule{r}, nil
}

func parseAction(a npav1beta1.ClusterNetworkPolicyRuleAction) (Action, error) {
	switch a {
	case npav1beta1.ClusterNetworkPolicyRuleActionAccept:
		return Accept, nil
	case npav1beta1.ClusterNetworkPolicyRuleActionDeny:
		return Deny, nil
	case npav1beta1.ClusterNetworkPolicyRuleActionPass:
		return Pass, nil
	}
	return Deny, fmt.Errorf("action %q is none of Accept, Deny, Pass", a)
}

func parseClusterPeer(p npav1beta1.ClusterNetworkPolicyEgressPeer) ([]Peer, error) {
	kinds := 0
	for _, is := range []bool{p.Namespaces != nil, p.Pods != nil, p.Nodes != nil, len(p.Networks) > 0, len(p.DomainNames) > 0} {
		if is {
			kinds++
		}
	}
	switch {
	case kinds == 0:
		return nil, errors.New("this peer is of a kind that k8s-ovs does not know; it knows namespaces, pods, nodes and networks")
	case kinds > 1:
		return nil, errors.New("a peer is of one kind; this one is of several")
	case len(p.DomainNames) > 0:
		return nil, errors.New("k8s-ovs does not support domainNames yet; name the addresses in networks")
	case len(p.Networks) > 0:
		return parseNetworks(p.Networks)
	case p.Nodes != nil:
		nodes, err := NewSelector(*p.Nodes)
		if err != nil {
			return nil, fmt.Errorf("nodes: %w", err)
		}
		return []Peer{{Set: &Set{OfNodes: true, Nodes: nodes}}}, nil
	}
	set, err := parseNamespaced(p.Namespaces, p.Pods)
	if err != nil {
		return nil, err
	}
	return []Peer{{Set: &set}}, nil
}

func parseNetworks(networks []npav1beta1.CIDR) ([]Peer, error) {
	var peers []Peer
	for _, n := range networks {
		block, err := netip.ParsePrefix(string(n))
		if err != nil {
			return nil, fmt.Errorf("networks: %w", err)
		}
		peers = append(peers, Peer{Block: block.Masked()})
	}
	return peers, nil
}

// parseProtocol reads an entry of protocols. A named port is that of every protocol.
func parseProtocol(p npav1beta1.ClusterNetworkPolicyProtocol) ([]Port, error) {
	var ports []Port
	var problems []error
	add := func(protocol service.Protocol, p *npav1beta1.Port) {
		port, err := parseDestination(p)
		if err != nil {
			problems = append(problems, fmt.Errorf("%v: %w", protocol, err))
		}
		port.Protocol = protocol
		ports = append(ports, port)
	}
	if p.TCP != nil {
		add(service.TCP, p.TCP.DestinationPort)
	}
	if p.UDP != nil {
		add(service.UDP, p.UDP.DestinationPort)
	}
	if p.SCTP != nil {
		add(service.SCTP, p.SCTP.DestinationPort)
	}
	if name := p.DestinationNamedPort; name != "" {
		ports = append(ports, Port{Protocol: service.TCP, Name: name}, Port{Protocol: service.UDP, Name: name}, Port{Protocol: service.SCTP, Name: name})
	}
	if len(ports) == 0 {
		return nil, errors.New("this is of a kind that k8s-ovs does not know; it knows tcp, udp, sctp and destinationNamedPort")
	}
	return ports, errors.Join(problems...)
}

// parseDestination reads a number or a range. The API server lets no entry through that says
// neither: it says something that this version does not know.
func parseDestination(p *npav1beta1.Port) (Port, error) {
	if p == nil || (p.Number == 0) == (p.Range == nil) {
		return Port{}, errors.New("destinationPort needs one of number and range")
	}
	first, last := p.Number, p.Number
	if p.Range != nil {
		first, last = p.Range.Start, p.Range.End
	}
	return portRange(first, last)
}
