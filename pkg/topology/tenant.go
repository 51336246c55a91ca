package topology

import (
	"fmt"
	"math"
	"strings"

	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
)

// Action asks the controller to change a namespace's netID.
type Action string

const (
	// None asks for nothing.
	None Action = ""
	// Join gives the namespace the netID of the one named in Namespace.
	Join Action = "join"
	// Isolate gives the namespace a netID of its own.
	Isolate Action = "isolate"
	// MakeGlobal gives the namespace netID 0.
	MakeGlobal Action = "global"
)

// Namespace is the record netnamespaces/<name>: a namespace and its tenant.
type Namespace struct {
	// NetName is the namespace's name and the last part of the record's key.
	NetName string `json:"NetName"`
	// NetID is what the record says, confirmed or not; nil where it is absent,
	// which asks for one. It may be out of range: people write it by hand.
	NetID *int64 `json:"NetID,omitempty"`
	// Action and Namespace ask for a change; Namespace is the target of Join.
	Action    Action `json:"Action"`
	Namespace string `json:"Namespace"`
	// By is who made the request, such as "alice@host", as their program says; empty
	// where that is not known, or nothing is asked for.
	By string `json:"By,omitempty"`
	// Effective is the netID that the controller confirmed and that nodes
	// program; nil as long as it has confirmed none.
	Effective *netid.ID `json:"Effective,omitempty"`
	// Change is the change of Effective that is under way.
	Change Change `json:"Change,omitzero"`
	// Status says what became of the last request.
	Status *Status `json:"Status,omitempty"`
	// UID is that of the Kubernetes Namespace that the record follows; empty for
	// a record that people or a standalone agent made.
	UID string `json:"UID,omitempty"`
	// Declared is the value of the Namespace's network annotation as it was last
	// applied; empty where there was none.
	Declared string `json:"Declared,omitempty"`
	// Forced says that a change by hand stands over Declared until the annotation
	// changes.
	Forced bool `json:"Forced,omitempty"`
	// Rest is what a newer release has written beside that.
	Rest Rest `json:"-"`
}

// Annotations of Kubernetes Namespaces.
const (
	// NetworkAnnotation names the network that a namespace is to be on; people
	// write it.
	NetworkAnnotation = "k8s-ovs.io/network"
	// NetIDAnnotation is the netID that it has; the controller writes it.
	NetIDAnnotation = "k8s-ovs.io/netid"
)

// StaticPodsLabel, where a Kubernetes Namespace has it with the value [StaticPodsAllowed], says that
// any node may make pods there, as kubelets do for static pods, and that those are chosen by their
// labels. Admins write it; manifests/policy reads it too.
const (
	StaticPodsLabel   = "k8s-ovs.io/static-pods"
	StaticPodsAllowed = "allowed"
)

// namespaceRecord is a namespace without its rest. What it has in etcd is what the first k8s-ovs had, with
// optional fields.
type namespaceRecord Namespace

var namespaceFields = fieldsOf[Namespace]()

// MarshalJSON writes the form in etcd.
func (n Namespace) MarshalJSON() ([]byte, error) { return n.Rest.written(namespaceRecord(n)) }

// UnmarshalJSON reads the form in etcd.
func (n *Namespace) UnmarshalJSON(data []byte) error {
	var p namespaceRecord
	rest, err := namespaceFields.read(data, &p)
	if err != nil {
		return err
	}
	*n = Namespace(p)
	n.Rest = rest
	return nil
}

// Claim is what nodes that hold the record must agree on for it to be put back in an etcd that has lost it:
// docs/restored-etcd.md. A field belongs to it only when every release that reports what it holds knows it.
func (n Namespace) Claim() Namespace {
	return Namespace{
		NetName: n.NetName, Effective: n.Effective, Change: n.Change, UID: n.UID, Declared: n.Declared, Forced: n.Forced,
		Action: n.Action, Namespace: n.Namespace,
	}
}

// SameTenancy reports whether the records have the same confirmed netID, and the same change of it under way.
func (n Namespace) SameTenancy(o Namespace) bool {
	same := n.Effective == o.Effective || n.Effective != nil && o.Effective != nil && *n.Effective == *o.Effective
	return same && n.Change == o.Change
}

// ParseNamespace decodes the record that stands under key (the namespace's
// name). Its request may still be impossible: see [Namespace.ValidateRequest].
func ParseNamespace(key string, data []byte) (Namespace, error) {
	var n Namespace
	if err := n.UnmarshalJSON(data); err != nil {
		return Namespace{}, fmt.Errorf("namespace record %s is not valid JSON of its form: %w", key, err)
	}
	if n.NetName != key {
		return Namespace{}, fmt.Errorf("namespace record %s: NetName is %q; it must be the name in the key", key, n.NetName)
	}
	if err := ValidateNamespaceName(key); err != nil {
		return Namespace{}, fmt.Errorf("namespace record %s: %w", key, err)
	}
	if n.Effective != nil {
		if err := n.Effective.Validate(); err != nil {
			return Namespace{}, fmt.Errorf("namespace record %s: Effective: %w", key, err)
		}
	}
	switch {
	case !n.Change.UnderWay():
		n.Change = Change{} // of a newer release: what it is about is not known, so only Effective counts
	case n.Change.NetID.Validate() != nil:
		return Namespace{}, fmt.Errorf("namespace record %s: NetID of Change: %w", key, n.Change.NetID.Validate())
	}
	return n, nil
}

// Request is what the record asks for, as it is typed after the namespace's name:
// "join b"; empty where it asks for nothing.
func (n Namespace) Request() string {
	if n.Action == Join {
		return string(n.Action) + " " + n.Namespace
	}
	return string(n.Action)
}

// ValidateRequest says whether what the record asks for is well formed.
// Whether it can be carried out depends on the other records.
func (n Namespace) ValidateRequest() error {
	switch n.Action {
	case None:
		if n.NetID == nil {
			return nil
		}
		if *n.NetID < 0 || *n.NetID > math.MaxUint32 {
			return fmt.Errorf("NetID %d is not a 24-bit number", *n.NetID)
		}
		return netid.ID(*n.NetID).Validate()
	case Join:
		if n.Namespace == "" {
			return fmt.Errorf("action join needs Namespace, the name of the namespace to join")
		}
		if n.Namespace == n.NetName {
			return fmt.Errorf("namespace %s cannot join itself", n.NetName)
		}
		return nil
	case Isolate, MakeGlobal:
		return nil
	}
	return fmt.Errorf("action %q is none of join, isolate, global", string(n.Action))
}

// maxNamespaceName is the length of Kubernetes namespace names, and leaves room for a
// prefix wherever a name is made of one (nftables' chains, files).
const maxNamespaceName = 63

// ValidateNamespaceName checks name against what is safe as a key everywhere: a DNS
// subdomain (RFC 1123, section 2.1) of at most 63 characters. Those of Kubernetes are
// labels; other runtimes' names have dots as well. A name can be no path ("..", "a/b"),
// no option and no pattern. Capitals and underscores are refused because records also
// stand in SQL databases behind etcd's API, where "A" may find the record of "a", and
// "a_b" that of "axb".
func ValidateNamespaceName(name string) error {
	if name == "" {
		return fmt.Errorf("namespace name is empty")
	}
	if len(name) > maxNamespaceName {
		return fmt.Errorf("namespace name %q has %d characters; at most %d are allowed", name, len(name), maxNamespaceName)
	}
	for label := range strings.SplitSeq(name, ".") {
		if !isLabel(label) {
			return fmt.Errorf("namespace name %q is not a DNS subdomain: lower-case letters, digits, and dashes and dots between them only", name)
		}
	}
	return nil
}

// isLabel is the form of a DNS label.
func isLabel(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		alnum := c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		if !alnum && (c != '-' || i == 0 || i == len(s)-1) {
			return false
		}
	}
	return s != ""
}
