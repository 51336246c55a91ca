package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/k8s-ovs/k8s-ovs/pkg/service"
)

// Parse reads a NetworkPolicy. What the API server fills in (directions, protocols) may be
// missing. The policy counts with an error too: what was not understood allows nothing, and
// a subject that was not understood is every pod of the namespace.
func Parse(np *networkingv1.NetworkPolicy) (Policy, error) {
	p := Policy{Key: Key{np.Namespace, np.Name}}
	var problems []error
	subject, err := NewSelector(np.Spec.PodSelector)
	if err != nil {
		problems = append(problems, fmt.Errorf("podSelector: %w", err))
	}
	p.Subject = subject
	p.Ingress.Isolates, p.Egress.Isolates = directions(np.Spec)
	// Rules of a direction that the policy does not have say nothing.
	if p.Ingress.Isolates {
		for i, r := range np.Spec.Ingress {
			rule, err := parseRule(np.Namespace, r.From, r.Ports)
			p.Ingress.Rules = append(p.Ingress.Rules, rule)
			problems = append(problems, at("ingress", i, err))
		}
	}
	if p.Egress.Isolates {
		for i, r := range np.Spec.Egress {
			rule, err := parseRule(np.Namespace, r.To, r.Ports)
			p.Egress.Rules = append(p.Egress.Rules, rule)
			problems = append(problems, at("egress", i, err))
		}
	}
	if err := errors.Join(problems...); err != nil {
		return p, fmt.Errorf("NetworkPolicy %s: %w", p.Key, err)
	}
	return p, nil
}

// at is where in the object the error is.
func at(list string, i int, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s[%d]: %w", list, i, err)
}

// directions are those in which the policy isolates. Without policyTypes it is always
// ingress, and egress where there are rules of egress.
func directions(s networkingv1.NetworkPolicySpec) (ingress, egress bool) {
	if len(s.PolicyTypes) == 0 {
		return true, len(s.Egress) > 0
	}
	return slices.Contains(s.PolicyTypes, networkingv1.PolicyTypeIngress), slices.Contains(s.PolicyTypes, networkingv1.PolicyTypeEgress)
}

// parseRule reads a rule of a policy in a namespace: an empty list is all.
func parseRule(namespace string, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) (Rule, error) {
	r := Rule{AnyPeer: len(peers) == 0, AnyPort: len(ports) == 0}
	var problems []error
	for i, p := range peers {
		peer, err := parsePeer(namespace, p)
		if err != nil {
			problems = append(problems, at("peers", i, err))
			continue
		}
		r.Peers = append(r.Peers, peer)
	}
	for i, p := range ports {
		port, err := parsePort(p)
		if err != nil {
			problems = append(problems, at("ports", i, err))
			continue
		}
		r.Ports = append(r.Ports, port)
	}
	return r, errors.Join(problems...)
}

func parsePeer(namespace string, p networkingv1.NetworkPolicyPeer) (Peer, error) {
	switch {
	case p.IPBlock != nil && (p.PodSelector != nil || p.NamespaceSelector != nil):
		return Peer{}, errors.New("a peer is either an ipBlock or chosen by selectors; this one is both")
	case p.IPBlock != nil:
		return parseBlock(*p.IPBlock)
	case p.PodSelector == nil && p.NamespaceSelector == nil:
		return Peer{}, errors.New("a peer needs an ipBlock, a podSelector or a namespaceSelector; this one has none")
	}
	var set Set
	var err error
	if p.NamespaceSelector == nil {
		set.Namespace = namespace
	} else if set.Namespaces, err = NewSelector(*p.NamespaceSelector); err != nil {
		return Peer{}, fmt.Errorf("namespaceSelector: %w", err)
	}
	// No podSelector beside a namespaceSelector is all pods there, as an empty one is.
	pods := metav1.LabelSelector{}
	if p.PodSelector != nil {
		pods = *p.PodSelector
	}
	if set.Pods, err = NewSelector(pods); err != nil {
		return Peer{}, fmt.Errorf("podSelector: %w", err)
	}
	return Peer{Set: &set}, nil
}

func parseBlock(b networkingv1.IPBlock) (Peer, error) {
	block, err := netip.ParsePrefix(b.CIDR)
	if err != nil {
		return Peer{}, fmt.Errorf("ipBlock: cidr: %w", err)
	}
	p := Peer{Block: block.Masked()}
	for _, e := range b.Except {
		except, err := netip.ParsePrefix(e)
		if err != nil {
			return Peer{}, fmt.Errorf("ipBlock: except: %w", err)
		}
		p.Except = append(p.Except, except.Masked())
	}
	return p, nil
}

func parsePort(p networkingv1.NetworkPolicyPort) (Port, error) {
	protocol := corev1.ProtocolTCP
	if p.Protocol != nil {
		protocol = *p.Protocol
	}
	port := Port{First: 0, Last: maxPort}
	switch protocol {
	case corev1.ProtocolTCP:
		port.Protocol = service.TCP
	case corev1.ProtocolUDP:
		port.Protocol = service.UDP
	case corev1.ProtocolSCTP:
		port.Protocol = service.SCTP
	default:
		return Port{}, fmt.Errorf("protocol %q is none of TCP, UDP, SCTP", protocol)
	}
	switch {
	case p.Port == nil && p.EndPort != nil:
		return Port{}, errors.New("endPort needs a port to begin with")
	case p.Port == nil:
		return port, nil // every port of the protocol
	case p.Port.Type == intstr.String:
		if p.EndPort != nil {
			return Port{}, fmt.Errorf("endPort needs a number to begin with, not the name %q", p.Port.StrVal)
		}
		if p.Port.StrVal == "" {
			return Port{}, errors.New("the name of the port is empty")
		}
		return Port{Protocol: port.Protocol, Name: p.Port.StrVal}, nil
	}
	first, last := p.Port.IntVal, p.Port.IntVal
	if p.EndPort != nil {
		last = *p.EndPort
	}
	numbers, err := portRange(first, last)
	if err != nil {
		return Port{}, err
	}
	port.First, port.Last = numbers.First, numbers.Last
	return port, nil
}

// portRange is the ports first to last, of no protocol yet.
func portRange(first, last int32) (Port, error) {
	if first < 1 || last > maxPort || first > last {
		return Port{}, fmt.Errorf("ports %d to %d are no range within 1 to %d", first, last, maxPort)
	}
	return Port{First: uint16(first), Last: uint16(last)}, nil
}

// maxPort is the highest number of a port.
const maxPort = 1<<16 - 1
