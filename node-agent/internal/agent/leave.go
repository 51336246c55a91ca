package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/exits"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/underlay"
	"github.com/k8s-ovs/k8s-ovs/pkg/link/tc"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
)

const (
	// wantedTimeout bounds the question whether the node is still wanted, of an
	// agent that ends.
	wantedTimeout = 3 * time.Second
	// forgetTimeout bounds deleting the node's MTU record.
	forgetTimeout = 3 * time.Second
	// releaseTimeout bounds giving the uplink back.
	releaseTimeout = 10 * time.Second
)

// wanted is who knows whether the DaemonSet that the agent runs in is to have a
// pod on this node.
type wanted interface {
	DaemonSetWants(ctx context.Context, namespace, name, node string) (bool, error)
}

// leave is what an agent that ends does where the DaemonSet no longer wants the
// node: the CNI configuration goes, and the MTU record. The uplink loses its classes or, on the
// userspace datapath, gets its addresses back before Open vSwitch, which may be a pod
// too, ends. Where the agent only restarts, or that cannot be found out, all stays.
func (n *node) leave(ctx context.Context) {
	set := n.cfg.Cluster.daemonSet
	if n.api == nil || set.Name == "" {
		return
	}
	asking, cancel := context.WithTimeout(ctx, wantedTimeout)
	defer cancel()
	yes, err := n.api.DaemonSetWants(asking, set.Namespace, set.Name, n.cfg.NodeName)
	if err != nil {
		n.log.Warn("cannot tell whether the node stays in the network: all stays as it is", "error", err)
		return
	}
	if yes {
		return
	}
	n.runtime.conf.Remove()
	if err := n.forgetMTU(ctx); err != nil {
		n.log.Warn("the node leaves the network, but its MTU counts until the Node is deleted", "error", err)
	}
	ctx, cancel = context.WithTimeout(ctx, releaseTimeout)
	defer cancel()
	n.dropTables(ctx)
	switch n.ovs.datapath {
	case ovs.DatapathSystem:
		if err := n.sharing.Remove(ctx); err != nil {
			n.log.Error("the node leaves the network, but its pods' classes are still on the uplink: tc qdisc del dev DEVICE root", "error", err)
			return
		}
		n.log.Info("the node leaves the network")
	case ovs.DatapathNetdev:
		if err := n.release(ctx); err != nil {
			n.log.Error("the node leaves the network, but its address is still on the bridge: it ends with Open vSwitch", "bridge", n.cfg.VTEPBridge, "error", err)
			return
		}
		n.log.Info("the node leaves the network: the uplink has its addresses back")
	case "": // Open vSwitch was away since the agent started
		if n.ovs.lender == nil {
			return
		}
		lent, err := n.giveLent(ctx)
		switch {
		case err != nil:
			n.log.Error("the node leaves the network, but something of it stays", "error", err)
		case lent:
			n.log.Info("the node leaves the network: the uplink has its addresses back")
		default: // one that still switches needs the firewall
			n.log.Warn("the node leaves the network, and its agent never reached Open vSwitch: bridges and the firewall's tables stay; remove them when Open vSwitch is gone (nft delete table ip k8s-ovs; nft delete table ip6 k8s-ovs; nft delete table bridge k8s-ovs)")
		}
	}
}

// dropTables takes away the firewall's tables but that of the overlay itself, which one that still switches needs, and the device of
// the checks.
func (n *node) dropTables(ctx context.Context) {
	drop := func(what string, remove func(context.Context) error) {
		if err := remove(ctx); err != nil {
			n.log.Error("the node leaves the network, but "+what+" stays", "error", err)
		}
	}
	if n.firewall.gate != nil {
		drop("its limit of pods' connections", n.firewall.gate.Remove)
	}
	if n.firewall.judge != nil {
		drop("what policies deny its pods", n.firewall.judge.Remove)
	}
	if n.host != nil {
		drop("a device of its checks", func(context.Context) error { return tc.In(n.host).DeleteIFB(exits.Device) })
	}
	if n.firewall.exit != nil {
		drop("a table of its checks", n.firewall.exit.Cleanup)
	}
	if n.firewall.end != nil {
		drop("a table of its checks", n.firewall.end.Cleanup)
	}
}

// forgetMTU deletes the node's MTU record: with nobody to keep it true it could hold
// back the cluster's MTU for ever. While there are pods it stays, as they go on to
// send and take what it says.
func (n *node) forgetMTU(ctx context.Context) error {
	p := n.parts.Load()
	if p == nil || !p.picture.started.IsValid() || len(p.attacher.List()) > 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, forgetTimeout)
	defer cancel()
	return n.etcd.store.DeleteNodeMTU(ctx, p.self)
}

// giveLent gives the uplink back where nobody serves the bridge any more, and reports whether it did.
func (n *node) giveLent(ctx context.Context) (lent bool, err error) {
	if lent, err = n.ovs.lender.Lend(); !lent || err != nil {
		return false, err
	}
	n.ovs.lender.ResumeMerging()
	return true, n.firewall.net.Cleanup(ctx)
}

// release gives the uplink back to the node's own stack.
func (n *node) release(ctx context.Context) error {
	if lent, err := n.giveLent(ctx); lent || err != nil {
		return err // Open vSwitch ended first
	}
	client, err := ovs.Connect(ctx, ovs.Config{Endpoint: n.cfg.OVSDB, RunDir: n.cfg.OVSRunDir, Logger: n.log})
	if err != nil {
		return err
	}
	defer client.Close()
	if err := client.WaitConnected(ctx); err != nil {
		return fmt.Errorf("the database of Open vSwitch at %s does not answer: %w", n.cfg.OVSDB, err)
	}
	if p := n.parts.Load(); p != nil {
		if err := underlay.NewRoutes(client).Remove(ctx, p.picture.under.Link); err != nil {
			n.log.Warn("Open vSwitch keeps the ways to other nodes that it was told until it ends", "error", err)
		}
	}
	under := underlay.New(n.underlayConfig(), n.host, client)
	// The firewall keeps the node's stack from what comes in by the uplink.
	return errors.Join(under.Remove(ctx), n.firewall.net.Cleanup(ctx))
}
