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

// matcher is the selector, ready to be asked. One that is written otherwise than
// [NewSelector] writes it, as in a record made by hand, may be an error.
func (s Selector) matcher() (labels.Selector, error) {
	parsed, err := labels.Parse(string(s))
	if err != nil {
		return nil, fmt.Errorf("selector %q: %w", string(s), err)
	}
	return parsed, nil
}

// Set is a set of pods, named by what chooses them. The zero value is all pods.
type Set struct {
	// Namespace is the only namespace whose pods are chosen; where it is empty,
	// Namespaces chooses namespaces by their labels.
	Namespace  string
	Namespaces Selector
	// Pods chooses among the pods of those namespaces.
	Pods Selector
	// PortName, where it is not empty, leaves only pods with a port of this name.
	PortName string
}

// AllPods reports whether the set is all pods there are. Nobody has to list those: they are
// the addresses of the cluster network that are no node's.
func (s Set) AllPods() bool { return s == Set{} }

// Hash names the set: 16 hexadecimal digits of SHA-256.
func (s Set) Hash() string {
	sum := sha256.Sum256([]byte(Peer{Set: &s}.String()))
	return hex.EncodeToString(sum[:8])
}

// Compare orders sets, by what they are written as.
func (s Set) Compare(t Set) int {
	return cmp.Or(cmp.Compare(s.Namespace, t.Namespace), cmp.Compare(s.Namespaces, t.Namespaces),
		cmp.Compare(s.Pods, t.Pods), cmp.Compare(s.PortName, t.PortName))
}

// Pod is a pod on the pod network; one on its node's network is none here.
type Pod struct {
	Key
	Labels map[string]string
	Member
}

// Member is what is known of a pod in a set.
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

// Members are those of pods that the set chooses, in their order. namespaces are the labels
// of namespaces by name; the pods of others are in no set that chooses namespaces by labels.
// A selector that cannot be read is an error.
func (s Set) Members(namespaces map[string]map[string]string, pods []Pod) ([]Member, error) {
	ns, err := s.Namespaces.matcher()
	if err != nil {
		return nil, fmt.Errorf("set %s: namespaces: %w", s.Hash(), err)
	}
	match, err := s.Pods.matcher()
	if err != nil {
		return nil, fmt.Errorf("set %s: pods: %w", s.Hash(), err)
	}
	var members []Member
	for _, p := range pods {
		if s.Namespace != "" && p.Namespace != s.Namespace {
			continue
		}
		have, known := namespaces[p.Namespace]
		if s.Namespace == "" && (!known || !ns.Matches(labels.Set(have))) {
			continue
		}
		if match.Matches(labels.Set(p.Labels)) && (s.PortName == "" || p.has(s.PortName)) {
			members = append(members, p.Member)
		}
	}
	return members, nil
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
