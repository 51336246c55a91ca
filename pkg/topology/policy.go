package topology

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// This file has the records of NetworkPolicies: docs/policy.md, "Records". The leader
// writes them, and nodes read them; only [NodePods] a node writes itself. Selectors stand in
// them as package policy writes them, and are not looked into here.

// EnforcesNetworkPolicy is the word in [NodeStatus.Enforces] for NetworkPolicy of
// networking.k8s.io/v1, EnforcesClusterNetworkPolicy that for ClusterNetworkPolicy of
// policy.networking.k8s.io.
const (
	EnforcesNetworkPolicy        = "NetworkPolicy"
	EnforcesClusterNetworkPolicy = "ClusterNetworkPolicy"
)

// LacksSCTPPorts is the word in [NodeStatus.Lacks] for the ports of SCTP.
const LacksSCTPPorts = "SCTPPorts"

// Isolation is the record isolation/<namespace>: which pods of the namespace its policies
// select, and which way. Every agent reads all of them. Only namespaces with policies have
// one; but while there are ClusterNetworkPolicies every namespace has: one without is not known
// to the leader yet. It is written in one transaction with the policies that changed: what agents have of policies/<namespace>/ and of
// clusterpolicies/ is new enough once they have it up to this record's etcd revision.
type Isolation struct {
	// Policies are sorted by name. A policy that is not named here counts for nothing,
	// whatever its own record says.
	Policies []IsolatingPolicy `json:"Policies"`
	// Cluster are the ClusterNetworkPolicies whose subject has pods of the namespace, sorted
	// by name.
	Cluster []SelectingPolicy `json:"Cluster,omitempty"`
}

// SelectingPolicy is a ClusterNetworkPolicy in [Isolation].
type SelectingPolicy struct {
	Name string `json:"Name"`
	// Selector chooses pods of the namespace; the empty one all.
	Selector string `json:"Selector"`
}

// IsolatingPolicy is a policy in [Isolation].
type IsolatingPolicy struct {
	Name string `json:"Name"`
	// Selector chooses pods of the namespace; the empty one all.
	Selector string `json:"Selector"`
	// Ingress and Egress are the directions in which these are isolated.
	Ingress bool `json:"Ingress,omitempty"`
	Egress  bool `json:"Egress,omitempty"`
}

// PolicyRecord is the record policies/<namespace>/<name>: a NetworkPolicy as the leader
// understood it. Agents with pods of the namespace read it.
type PolicyRecord struct {
	// Selector chooses the pods that it is about.
	Selector string `json:"Selector"`
	// Ingress and Egress allow what some rule allows. nil (null) isolates nobody that way,
	// and an empty list allows nothing.
	Ingress []PolicyRule `json:"Ingress"`
	Egress  []PolicyRule `json:"Egress"`
}

// The tiers and actions of [ClusterPolicyRecord].
const (
	TierAdmin    = "Admin"
	TierBaseline = "Baseline"

	ActionAccept = "Accept"
	ActionDeny   = "Deny"
	ActionPass   = "Pass"
)

// ClusterPolicyRecord is the record clusterpolicies/<name>: a ClusterNetworkPolicy as the
// leader understood it. Every agent reads all of them.
type ClusterPolicyRecord struct {
	// Tier is [TierAdmin] or [TierBaseline]; within it the lowest Priority is asked first.
	Tier     string `json:"Tier"`
	Priority int32  `json:"Priority"`
	// Subject are the pods that it is about; the one with no field is all of them.
	Subject PodSet `json:"Subject"`
	// Ingress and Egress are asked in their order.
	Ingress []ClusterPolicyRule `json:"Ingress,omitempty"`
	Egress  []ClusterPolicyRule `json:"Egress,omitempty"`
}

// ClusterPolicyRule says what becomes of the packets that a rule is about.
type ClusterPolicyRule struct {
	// Action is [ActionAccept], [ActionDeny] or [ActionPass].
	Action string `json:"Action"`
	PolicyRule
}

// PolicyRule is about some peers on some ports, and allows them where it stands in a
// [PolicyRecord]. A list that is absent bounds nothing; an empty one has nobody in it.
type PolicyRule struct {
	Peers []PolicyPeer `json:"Peers,omitzero"`
	Ports []PolicyPort `json:"Ports,omitzero"`
}

// PolicyPeer is a set of pods or a block of addresses: one of Set and Block is there.
type PolicyPeer struct {
	// Set names pods; the one with no field is all pods, and has no record.
	Set *PodSet `json:"Set,omitempty"`
	// Block are addresses, Except those of them that are left out. Of either family.
	Block  netip.Prefix   `json:"Block,omitzero"`
	Except []netip.Prefix `json:"Except,omitempty"`
}

// PolicyPort is a protocol and all its ports, some of them, or one by its name.
type PolicyPort struct {
	// Protocol is TCP, UDP or SCTP.
	Protocol string `json:"Protocol"`
	// Port to End are the numbers, End only where there are several. Both absent are all.
	Port uint16 `json:"Port,omitempty"`
	End  uint16 `json:"End,omitempty"`
	// Name is that of a port of the pod that is reached, in place of numbers.
	Name string `json:"Name,omitempty"`
}

// PodSet names a set of pods by what chooses them: see policy.Set.
type PodSet struct {
	Namespace  string `json:"Namespace,omitempty"`
	Namespaces string `json:"Namespaces,omitempty"`
	Pods       string `json:"Pods,omitempty"`
	PortName   string `json:"PortName,omitempty"`
	// OfNodes says that it is a set of nodes, which Nodes chooses; the rest is absent then.
	OfNodes bool   `json:"OfNodes,omitempty"`
	Nodes   string `json:"Nodes,omitempty"`
}

// AddressSet is the record sets/<hash>/of. The hash is policy.Set.Hash of the PodSet; agents
// read the sets that the policies of their pods name.
type AddressSet struct {
	PodSet
	// Whole says that the members below sets/<hash>/ have been all there are once; they
	// are kept up to date from then on. Until then some may be missing.
	Whole bool `json:"Whole,omitempty"`
}

// SetChunk is the record sets/<hash>/<a.b.c.0>: the members of a set in that /24. A /24
// without members has none.
type SetChunk struct {
	Addresses Octets `json:"Addresses"`
	// Ports are those of members' containers that have names which policies look up in the set.
	Ports []ChunkPort `json:"Ports,omitempty"`
}

// ChunkPort is a port that some members of a [SetChunk] have.
type ChunkPort struct {
	Name     string `json:"Name"`
	Protocol string `json:"Protocol"`
	Port     uint16 `json:"Port"`
	// Addresses are the members that have it.
	Addresses Octets `json:"Addresses"`
}

// SetMembers is a set as far as it is known: its record and its chunks by their keys.
type SetMembers struct {
	Of     AddressSet              `json:"Of"`
	Chunks map[netip.Addr]SetChunk `json:"Chunks"`
}

// PolicyRecords are the records of policies that a node holds, as they stand in its copy on
// disk. They are not changed once handed out.
type PolicyRecords struct {
	// Isolation by namespace, Policies by namespace and name, Sets by hash.
	Isolation map[string]Isolation               `json:"Isolation"`
	Policies  map[string]map[string]PolicyRecord `json:"Policies"`
	Sets      map[string]SetMembers              `json:"Sets"`
	// Cluster are ClusterNetworkPolicies, by name.
	Cluster map[string]ClusterPolicyRecord `json:"Cluster,omitempty"`
}

// NodePods is the record pods/<nodeIP>: which addresses a node's pods have, from ADD on. The
// node writes it under a lease and it goes with the node's agent; the leader reads it and
// keeps the node's members in sets for as long as the node has a subnet.
type NodePods struct {
	Host   string     `json:"Host"`
	HostIP netip.Addr `json:"HostIP"`
	Pods   []NodePod  `json:"Pods"`
}

// NodePod is an address in use. A pod of the node's network has none here.
type NodePod struct {
	Namespace string `json:"Namespace"`
	Name      string `json:"Name"`
	// UID is the pod's as the runtime said it; empty where it did not.
	UID     string     `json:"UID,omitempty"`
	Address netip.Addr `json:"Address"`
	// Ingress and Egress name the policies that isolate it in force on the node, sorted.
	Ingress []string `json:"Ingress,omitempty"`
	Egress  []string `json:"Egress,omitempty"`
	// Cluster names the ClusterNetworkPolicies that are about it, sorted.
	Cluster []string `json:"Cluster,omitempty"`
	// Unnamed counts those that the lists above leave out, so that the record stays small.
	Unnamed UnnamedPolicies `json:"Unnamed,omitzero"`
}

// UnnamedPolicies is how many policies the lists of a [NodePod] leave out.
type UnnamedPolicies struct {
	Ingress int `json:"Ingress,omitempty"`
	Egress  int `json:"Egress,omitempty"`
	Cluster int `json:"Cluster,omitempty"`
}

// Acknowledged is the record acknowledged/<nodeIP>: up to which etcd revision of its
// pods/<nodeIP> a node's addresses are in the sets, and those that it lacks no longer are.
type Acknowledged struct {
	Revision int64 `json:"Revision"`
}

// parse decodes a record of a kind that stands under key.
func parse[T any](what, key string, data []byte, valid func(T) error) (T, error) {
	var v, none T
	if err := json.Unmarshal(data, &v); err != nil {
		return none, fmt.Errorf("%s %s is not valid JSON of its form: %w", what, key, err)
	}
	if err := valid(v); err != nil {
		return none, fmt.Errorf("%s %s: %w", what, key, err)
	}
	return v, nil
}

// ParseIsolation decodes the record that stands under key, the namespace.
func ParseIsolation(key string, data []byte) (Isolation, error) {
	return parse("isolation record", key, data, func(i Isolation) error {
		if err := ValidateNamespaceName(key); err != nil {
			return err
		}
		for _, p := range i.Cluster {
			if err := validPolicyName(p.Name); err != nil {
				return err
			}
		}
		for _, p := range i.Policies {
			if err := validPolicyName(p.Name); err != nil {
				return err
			}
		}
		return nil
	})
}

// ParsePolicy decodes the record that stands under key, <namespace>/<name>.
func ParsePolicy(key string, data []byte) (PolicyRecord, error) {
	return parse("policy record", key, data, func(p PolicyRecord) error {
		namespace, name, _ := strings.Cut(key, "/")
		if err := ValidateNamespaceName(namespace); err != nil {
			return err
		}
		if err := validPolicyName(name); err != nil {
			return err
		}
		if err := validRules("Ingress", p.Ingress); err != nil {
			return err
		}
		return validRules("Egress", p.Egress)
	})
}

// ParseClusterPolicy decodes the record that stands under key, the policy's name.
func ParseClusterPolicy(key string, data []byte) (ClusterPolicyRecord, error) {
	return parse("cluster policy record", key, data, func(p ClusterPolicyRecord) error {
		if err := validPolicyName(key); err != nil {
			return err
		}
		if p.Tier != TierAdmin && p.Tier != TierBaseline {
			return fmt.Errorf("its Tier %q is none of %s, %s", p.Tier, TierAdmin, TierBaseline)
		}
		if err := p.Subject.valid(); err != nil {
			return fmt.Errorf("its Subject: %w", err)
		}
		if p.Subject.OfNodes {
			return errors.New("its Subject is a set of nodes; it must be one of pods")
		}
		if err := validClusterRules("Ingress", p.Ingress); err != nil {
			return err
		}
		return validClusterRules("Egress", p.Egress)
	})
}

func validClusterRules(side string, rules []ClusterPolicyRule) error {
	var plain []PolicyRule
	for i, r := range rules {
		if r.Action != ActionAccept && r.Action != ActionDeny && r.Action != ActionPass {
			return fmt.Errorf("%s[%d]: its Action %q is none of %s, %s, %s", side, i, r.Action, ActionAccept, ActionDeny, ActionPass)
		}
		plain = append(plain, r.PolicyRule)
	}
	return validRules(side, plain)
}

func validRules(side string, rules []PolicyRule) error {
	for i, r := range rules {
		for j, p := range r.Peers {
			if err := p.valid(); err != nil {
				return fmt.Errorf("%s[%d]: Peers[%d]: %w", side, i, j, err)
			}
		}
		for j, p := range r.Ports {
			if err := p.valid(); err != nil {
				return fmt.Errorf("%s[%d]: Ports[%d]: %w", side, i, j, err)
			}
		}
	}
	return nil
}

func (p PolicyPeer) valid() error {
	switch {
	case (p.Set != nil) == p.Block.IsValid():
		return errors.New("it needs one of Set and Block, and not both")
	case p.Set != nil && len(p.Except) > 0:
		return errors.New("with Set there is no Except")
	case p.Set != nil:
		return p.Set.valid()
	}
	for _, e := range p.Except {
		if !e.IsValid() {
			return errors.New("a prefix of Except is empty")
		}
	}
	return nil
}

func (p PolicyPort) valid() error {
	switch {
	case !isTransport(p.Protocol):
		return fmt.Errorf("its Protocol %q is none of TCP, UDP, SCTP", p.Protocol)
	case p.Name != "" && (p.Port != 0 || p.End != 0):
		return fmt.Errorf("it has the name %q and a number; only one of them can be", p.Name)
	case p.End != 0 && (p.Port == 0 || p.End < p.Port):
		return fmt.Errorf("ports %d to %d are no range within 1 to 65535", p.Port, p.End)
	}
	return nil
}

func isTransport(protocol string) bool {
	return protocol == "TCP" || protocol == "UDP" || protocol == "SCTP"
}

func (s PodSet) valid() error {
	switch {
	case !s.OfNodes && s.Nodes != "":
		return errors.New("without OfNodes there are no Nodes")
	case s.OfNodes && s != (PodSet{OfNodes: true, Nodes: s.Nodes}):
		return errors.New("it has OfNodes and what chooses pods; only one of them can be")
	}
	if s.Namespace == "" {
		return nil
	}
	if s.Namespaces != "" {
		return errors.New("it has Namespace and Namespaces; only one of them can be")
	}
	return ValidateNamespaceName(s.Namespace)
}

// ParseAddressSet decodes the record sets/<hash>/of; key is the hash.
func ParseAddressSet(key string, data []byte) (AddressSet, error) {
	return parse("set record", key, data, func(s AddressSet) error {
		if err := ValidateSetHash(key); err != nil {
			return err
		}
		return s.valid()
	})
}

// ParseSetChunk decodes a record below sets/<hash>/; key is <hash>/<a.b.c.0>. base is the
// network address of the chunk's /24.
func ParseSetChunk(key string, data []byte) (base netip.Addr, c SetChunk, err error) {
	hash, last, _ := strings.Cut(key, "/")
	base, err = netip.ParseAddr(last)
	if err != nil || !base.Is4() || ChunkOf(base) != base {
		return netip.Addr{}, SetChunk{}, fmt.Errorf("set record %s: its key ends in %q and not in the network address of an IPv4 /24", key, last)
	}
	c, err = parse("set record", key, data, func(c SetChunk) error {
		for _, p := range c.Ports {
			if p.Name == "" || p.Port == 0 || !isTransport(p.Protocol) {
				return fmt.Errorf("port %q, %s %d, needs a name, a number and one of TCP, UDP, SCTP", p.Name, p.Protocol, p.Port)
			}
		}
		return ValidateSetHash(hash)
	})
	return base, c, err
}

// ChunkOf is the network address of the /24 that an IPv4 address is in: under it the address
// stands in a [SetChunk], by its last octet.
func ChunkOf(a netip.Addr) netip.Addr {
	b := a.As4()
	b[3] = 0
	return netip.AddrFrom4(b)
}

// ParseNodePods decodes the record that stands under key, the node's address.
func ParseNodePods(key string, data []byte) (NodePods, error) {
	return parse("record of the pods of node", key, data, func(n NodePods) error {
		if n.HostIP.String() != key {
			return fmt.Errorf("HostIP is %s; it must be the address in the key", n.HostIP)
		}
		for _, p := range n.Pods {
			if p.Namespace == "" || p.Name == "" || !p.Address.Is4() {
				return fmt.Errorf("pod %s/%s at %s needs a namespace, a name and an IPv4 address", p.Namespace, p.Name, p.Address)
			}
		}
		return nil
	})
}

// ParseAcknowledged decodes the record that stands under key, the node's address.
func ParseAcknowledged(key string, data []byte) (Acknowledged, error) {
	return parse("acknowledgement for node", key, data, func(Acknowledged) error { return nil })
}

// maxPolicyName is the length of the names of objects in Kubernetes.
const maxPolicyName = 253

// validPolicyName checks what stands in keys: a DNS subdomain (RFC 1123, section 2.1).
func validPolicyName(name string) error {
	if len(name) > maxPolicyName {
		return fmt.Errorf("the name %q has %d characters; at most %d are allowed", name, len(name), maxPolicyName)
	}
	for label := range strings.SplitSeq(name, ".") {
		if !isLabel(label) {
			return fmt.Errorf("the name %q is not a DNS subdomain", name)
		}
	}
	return nil
}

// setHashDigits is the length of the name of a set: 64 bits.
const setHashDigits = 16

// ValidateSetHash checks the name of a set: 16 hexadecimal digits, in lower case.
func ValidateSetHash(hash string) error {
	if len(hash) != setHashDigits || strings.Trim(hash, "0123456789abcdef") != "" {
		return fmt.Errorf("the name %q of a set is not %d hexadecimal digits", hash, setHashDigits)
	}
	return nil
}
