package agent

import (
	"cmp"
	"context"
	"errors"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/attach"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/etcdaccess"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/pkg/version"
)

// ownStatus writes into the records what a node is and what it has applied.
type ownStatus struct {
	*picture
	readiness *readiness
	identity  etcdaccess.Own
	// own is what the identity said when it was last read; nil before. It is a file that is
	// parsed, which takes as long as a change of flows: revisions that are applied do not wait for it.
	own      *ownIdentity
	datapath string
	// enforces are the kinds of policies that count on this node.
	enforces []string
	// lost is the newest write of policies that etcd has lost; nil where there are no policies.
	lost func() topology.Point
	// lacks is what of policies the newest switch does not know; nil where there are none.
	lacks    func() []string
	attached interface{ List() []attach.Attachment }
	// warns is what people should know of a node that is ready; nil where nobody says.
	warns func() string
	// open opens the record of the node's status in a network of that name.
	open func(network string) statusRecord
	to   statusRecord // nil before the first
}

// ownIdentity is whom the node writes as: see [etcdaccess.Own.Who].
type ownIdentity struct{ user, issuer string }

// statusRecord is the record of the node's status; [store.StatusPublisher] writes it.
type statusRecord interface {
	Set(s topology.NodeStatus)
	Close()
}

func (n *ownStatus) keep(context.Context, *pass) error {
	n.tell()
	return nil
}

// tell is publish with what the identity says now.
func (n *ownStatus) tell() {
	n.own = nil
	n.publish()
}

// publish writes what this node has applied where operators see it.
func (n *ownStatus) publish() {
	if !n.fromEtcd || n.records == nil {
		return
	}
	if n.to == nil {
		n.to = n.open(n.records.Config.Name)
	}
	st := topology.NodeStatus{
		Host: n.name, HostIP: n.self, Revision: n.applied, Version: version.String(), Datapath: n.datapath,
		Subnet: n.started, VXLANPort: n.tunnels.as.Port,
	}
	if n.own == nil {
		n.own = &ownIdentity{}
		n.own.user, n.own.issuer = n.identity.Who()
	}
	st.Identity, st.Issuer = n.own.user, n.own.issuer
	st.Enforces = n.enforces
	if n.lacks != nil {
		st.Lacks = n.lacks()
	}
	st.Pods = len(n.attached.List())
	st.MTU = n.podMTU
	if why := n.readiness.is(); why != nil {
		st.Message = why.Error()
	}
	if n.warns != nil {
		st.Warning = n.warns()
	}
	if st.Held = n.held(); st.Held != nil {
		// Nothing that is written now is in the flows.
		st.Revision, st.Message = 0, cmp.Or(st.Message, errOlder.Error())
	}
	n.to.Set(st)
}

// errOlder is why a node takes no new records.
var errOlder = errors.New("etcd went back to older records: the node goes on with those from before until the controller has put back what is missing")

// held is what the node knows of records that etcd has lost; nil where it has lost none.
func (n *ownStatus) held() *topology.Held {
	var lost topology.Point
	if n.lost != nil {
		lost = n.lost()
	}
	if n.older == nil && lost == (topology.Point{}) {
		return nil
	}
	h := topology.Held{}
	if n.older != nil {
		here := map[string]bool{}
		for _, at := range n.attached.List() {
			here[at.Namespace] = true
		}
		h = topology.HeldBeside(*n.records, *n.older, func(ns string) bool { return here[ns] })
	}
	if lost.Revision > h.At.Revision {
		h.At = lost
	}
	return &h
}

// close takes the status out of the records.
func (n *ownStatus) close() {
	if n.to != nil {
		n.to.Close()
	}
}
