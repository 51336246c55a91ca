package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/attach"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/etcdaccess"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// ownRecord finds this node's record among the records.
type ownRecord struct {
	*picture
	etcd     etcdState
	identity etcdaccess.Own
	// inCluster is that the controller makes a record for every Node.
	inCluster bool
	// asking is nil in Kubernetes.
	asking   subnetAsker
	attached interface{ List() []attach.Attachment }
}

// etcdState is what is known of etcd; [store.Store] is one.
type etcdState interface {
	Endpoints() []string
	// Healthy is nil where etcd answers, else why it does not.
	Healthy() error
}

// subnetAsker asks the controller for a record with a subnet, or no longer does.
type subnetAsker interface{ Subnet(yes bool) }

// place is this node's record; outside of Kubernetes, where the controller makes
// one for every Node, it asks for one where there is none.
func (n *ownRecord) place(_ context.Context, p *pass) error {
	if n.records == nil {
		return fmt.Errorf("no records yet from etcd at %v", n.etcd.Endpoints())
	}
	health := n.etcd.Healthy()
	if err := n.identity.LockedOut(health, n.self); err != nil {
		return err
	}
	if errors.Is(health, store.ErrCredentials) { // what pods have is kept up by the records that there were
		p.unwell = cmp.Or(p.unwell, fmt.Errorf("this node does not follow the records, and pods keep their network as it was: put the file back: %w", health))
	}
	me, ok := n.records.Nodes[n.self]
	if n.asking != nil && n.fromEtcd {
		// One that has an identity got it together with its record: it was removed.
		n.asking.Subnet(!n.identity.Exists() && (!ok || me.Host != n.name) || ok && me.Host == n.name && !me.Ready() && !me.Assign && me.Status == nil)
	}
	// The copy on disk may be from before this node got its address; the
	// subnet of who had it then is not this node's, and its own pods are not gone.
	if ok && me.Host != n.name {
		return fmt.Errorf("node address %s is still %s's in the records, not %s's", n.self, me.Host, n.name)
	}
	if !ok || !me.Ready() {
		return fmt.Errorf("node %s (%s) has no subnet: %s", n.name, n.self, n.noSubnet(me))
	}
	if err := me.Validate(n.records.Config); err != nil {
		return err
	}
	if n.started.IsValid() && n.started != me.Subnet {
		if pods := len(n.attached.List()); pods > 0 {
			return fmt.Errorf("the record gives node %s subnet %s, but %d pods have addresses of %s: drain the node, or put the record back", n.name, me.Subnet, pods, n.started)
		}
		n.started = netip.Prefix{}
	}
	p.me = me
	return nil
}

// noSubnet says why the node has no subnet; me is its record, if there is one.
func (n *ownRecord) noSubnet(me topology.Node) string {
	if why, broken := n.records.Invalid["subnets/"+n.self.String()]; broken {
		return why
	}
	if me.Status != nil {
		return me.Status.Message
	}
	for ip, other := range n.records.Nodes {
		if n.inCluster && other.Host == n.name && ip != n.self {
			return fmt.Sprintf("its record is for %s, the Node's InternalIP: give the agent that address with --node-ip", ip)
		}
	}
	if n.identity.Exists() && !n.inCluster && !me.HostIP.IsValid() {
		return fmt.Sprintf("it has no record: it was removed. Make a new bundle with `k8s-ovs-controller bundle node %s --node-ip %s`", n.name, n.self)
	}
	return "the controller has not given it one"
}
