package agent

import (
	"cmp"
	"context"
	"errors"
	"log/slog"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/attach"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/etcdaccess"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/nodeflows"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/pkg/version"
)

// reporter shows what a node is and what it has applied: to the CNI, in the metrics, and in the records.
type reporter struct {
	*picture
	readiness *readiness
	services  *serviceFeed
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
	table    flowTable
	store    flowStore
	// open opens the record of the node's status in a network of that name.
	open    func(network string) statusRecord
	to      statusRecord // nil before the first
	conf    confKeeper
	metrics *metrics
	// shrink gives back memory that only the start needed; nil when that is done.
	shrink func() error
	log    *slog.Logger
}

// ownIdentity is whom the node writes as: see [etcdaccess.Own.Who].
type ownIdentity struct{ user, issuer string }

// statusRecord is the record of the node's status; [store.StatusPublisher] writes it.
type statusRecord interface {
	Set(s topology.NodeStatus)
	Close()
}

// confKeeper keeps the CNI configuration in place; [cniconf.Kept] does.
type confKeeper interface{ Ensure() }

func (n *reporter) observe(context.Context, *pass) error {
	n.metrics.pods.Set(float64(len(n.attached.List())))
	n.metrics.flows.Set(float64(n.store.Size(nodeflows.AreaName)))
	n.metrics.peers.Set(float64(len(n.table.Peers())))
	return nil
}

// giveBack shrinks the agent once, when all that a start needs was done.
func (n *reporter) giveBack(context.Context, *pass) error {
	if n.shrink == nil {
		return nil
	}
	if err := n.shrink(); err != nil {
		n.log.Debug("memory that only the start needed is not given back", "error", err)
	}
	n.shrink = nil
	return nil
}

func (n *reporter) ready(_ context.Context, p *pass) error {
	n.readiness.set(p.unwell)
	return nil
}

func (n *reporter) status(context.Context, *pass) error {
	n.tell()
	return nil
}

// tell is publish with what the identity says now.
func (n *reporter) tell() {
	n.own = nil
	n.publish()
}

// publish writes what this node has applied where operators see it.
func (n *reporter) publish() {
	if !n.fromEtcd || n.records == nil {
		return
	}
	if n.to == nil {
		n.to = n.open(n.records.Config.Name)
	}
	st := topology.NodeStatus{
		Host: n.name, HostIP: n.self, Revision: n.applied, Version: version.String(), Datapath: n.datapath,
		Subnet: n.started, VXLANPort: n.tunnels.port,
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
	if st.Held = n.held(); st.Held != nil {
		// Nothing that is written now is in the flows.
		st.Revision, st.Message = 0, cmp.Or(st.Message, errOlder.Error())
	}
	n.to.Set(st)
}

// errOlder is why a node takes no new records.
var errOlder = errors.New("etcd went back to older records: the node goes on with those from before until the controller has put back what is missing")

// held is what the node knows of records that etcd has lost; nil where it has lost none.
func (n *reporter) held() *topology.Held {
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

// configuration puts the CNI configuration in place once pods have all that they should.
func (n *reporter) configuration(_ context.Context, p *pass) error {
	if p.unwell == nil && n.services.ready() == nil {
		n.conf.Ensure()
	}
	return nil
}

// close takes the status out of the records.
func (n *reporter) close() {
	if n.to != nil {
		n.to.Close()
	}
}
