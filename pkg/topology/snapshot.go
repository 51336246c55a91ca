package topology

import (
	"net/netip"

	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
)

// Snapshot is all records at one revision. It is not changed once handed out.
type Snapshot struct {
	// Revision is the etcd revision at which it was whole.
	Revision int64
	Config   Config
	// Nodes by HostIP; only records that parse.
	Nodes map[netip.Addr]Node
	// Namespaces by name; only records that parse.
	Namespaces map[string]Namespace
	// Invalid names the keys that do not parse, and why.
	Invalid map[string]string
	// History says which leaders wrote them.
	History History
}

// NetID is the confirmed netID of a namespace; ok is false where there is none.
// In a single-tenant network every namespace is global.
func (s Snapshot) NetID(namespace string) (id netid.ID, ok bool) {
	if s.Config.Single() {
		return netid.Global, true
	}
	n, ok := s.Namespaces[namespace]
	if !ok || n.Effective == nil {
		return 0, false
	}
	return *n.Effective, true
}
