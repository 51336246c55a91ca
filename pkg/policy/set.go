package policy

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/k8s-ovs/k8s-ovs/pkg/service"
)

// Selector chooses by labels. It is written as Kubernetes' tools write it ("app=web,tier in
// (a,b)"), its requirements in order, so that equal ones are equal as text. The empty one
// chooses all.
type Selector string

// NewSelector is what the API's selector s chooses by. A selector that the API server would
// refuse is an error.
func NewSelector(s metav1.LabelSelector) (Selector, error) {
	parsed, err := metav1.LabelSelectorAsSelector(&s)
	if err != nil {
		return "", err
	}
	requirements, _ := parsed.Requirements()
	var text []string
	for _, r := range requirements {
		text = append(text, r.String())
	}
	slices.Sort(text)
	return Selector(strings.Join(slices.Compact(text), ",")), nil
}

// parsed is the selector, ready to be asked. One that is written otherwise than
// [NewSelector] writes it, as in a record made by hand, may be an error.
func (s Selector) parsed() (labels.Selector, error) {
	parsed, err := labels.Parse(string(s))
	if err != nil {
		return nil, fmt.Errorf("selector %q: %w", string(s), err)
	}
	return parsed, nil
}

// Matcher says of labels whether the selector of a NetworkPolicy's subject chooses them, as
// often as it is asked. One that cannot be read chooses all, and so closes.
func (s Selector) Matcher() func(have map[string]string) bool {
	parsed, err := s.parsed()
	return func(have map[string]string) bool { return err != nil || parsed.Matches(labels.Set(have)) }
}

// Set is a set of pods, or of nodes, named by what chooses them. The zero value is all pods.
type Set struct {
	// Namespace is the only namespace whose pods are chosen; where it is empty,
	// Namespaces chooses namespaces by their labels.
	Namespace  string
	Namespaces Selector
	// Pods chooses among the pods of those namespaces.
	Pods Selector
	// PortName, where it is not empty, leaves only pods with a port of this name.
	PortName string
	// OfNodes says that the set is of nodes, which Nodes chooses by their labels; the rest
	// is empty then.
	OfNodes bool
	Nodes   Selector
}

// String names the set, and no other by the same name.
func (s Set) String() string {
	if s.OfNodes {
		return fmt.Sprintf("nodes %q", string(s.Nodes))
	}
	return fmt.Sprintf("%q", []string{s.Namespace, string(s.Namespaces), string(s.Pods), s.PortName})
}

// with are those of the set that have a port of that name.
func (s Set) with(port string) Set {
	s.PortName = port
	return s
}

// AllPods reports whether the set is all pods there are. Nobody has to list those: they are
// the addresses of the cluster network that are no node's.
func (s Set) AllPods() bool { return s == Set{} }

// Hash names the set: 16 hexadecimal digits of SHA-256.
func (s Set) Hash() string {
	sum := sha256.Sum256([]byte(s.String()))
	return hex.EncodeToString(sum[:8])
}

// Compare orders sets, by what they are written as; those of nodes are last.
func (s Set) Compare(t Set) int {
	if s.OfNodes != t.OfNodes {
		if t.OfNodes {
			return -1
		}
		return 1
	}
	return cmp.Or(cmp.Compare(s.Namespace, t.Namespace), cmp.Compare(s.Namespaces, t.Namespaces),
		cmp.Compare(s.Pods, t.Pods), cmp.Compare(s.PortName, t.PortName), cmp.Compare(s.Nodes, t.Nodes))
}

// Pod is a pod on the pod network; one on its node's network is none here.
type Pod struct {
	Key
	Labels map[string]string
	Member
}

// Member is what is known of a pod in a set. An address of a node has no ports.
type Member struct {
	Address netip.Addr
	// Ports are the ports of its containers that have names.
	Ports []NamedPort
}

// NamedPort is a port of a container.
type NamedPort struct {
	Name     string
	Protocol service.Protocol
	Port     uint16
}

// has reports whether the pod has a port of that name.
func (m Member) has(port string) bool {
	return slices.ContainsFunc(m.Ports, func(p NamedPort) bool { return p.Name == port })
}

// numbers are those that p names at this pod.
func (m Member) numbers(p Port) []uint16 {
	var out []uint16
	for _, have := range m.Ports {
		if have.Name == p.Name && have.Protocol == p.Protocol {
			out = append(out, have.Port)
		}
	}
	return out
}
