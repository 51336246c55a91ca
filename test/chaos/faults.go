package main

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/test/netlab/probe"
)

// scope is what a fault breaks.
type scope uint8

const (
	ofNode    scope = iota
	ofCluster       // what all nodes share
)

// cost is whose packets a fault may cost.
type cost uint8

const (
	nobodys   cost = iota
	crossing       // those that come to the node and leave it
	allOfNode      // all of the node's pods
)

// pastLeases is longer than agents and leaders count as there when they say nothing.
const pastLeases = 16 * time.Second

// fault is something that breaks, and how it is mended.
type fault struct {
	scope scope
	costs cost
	// deaf is that the node does not hear of changes meanwhile.
	deaf bool
	// longest is how long it lasts at most; zero for longestFault.
	longest time.Duration
	begin   func(ctx context.Context, c *cluster, node string) error
	// end mends it; nil where nobody has to.
	end func(ctx context.Context, c *cluster, node string) error
}

// faults are all there are, by name.
var faults = map[kind]fault{
	"agent killed": {
		begin: func(_ context.Context, c *cluster, node string) error { return c.Agent(node).KillProgram() },
	},
	"agent away": {
		deaf: true, longest: pastLeases,
		begin: func(_ context.Context, c *cluster, node string) error { return c.Agent(node).Stop() },
		end: func(ctx context.Context, c *cluster, node string) error {
			return c.Agent(node).StartInCluster(ctx, c.bin)
		},
	},
	"agent suspended": {
		deaf: true, longest: pastLeases,
		begin: func(_ context.Context, c *cluster, node string) error { return c.signalAgent(node, unix.SIGSTOP) },
		end:   func(_ context.Context, c *cluster, node string) error { return c.signalAgent(node, unix.SIGCONT) },
	},
	"ovs-vswitchd killed": {
		costs: allOfNode,
		begin: func(_ context.Context, c *cluster, node string) error { return c.OVS(node).KillVswitchd() },
		end:   func(ctx context.Context, c *cluster, node string) error { return c.OVS(node).StartVswitchd(ctx) },
	},
	// The userspace datapath waits for the database: docs/datapaths.md.
	"ovsdb-server killed": {
		costs: allOfNode,
		begin: func(_ context.Context, c *cluster, node string) error { return c.OVS(node).KillOVSDB() },
		end:   func(ctx context.Context, c *cluster, node string) error { return c.OVS(node).StartOVSDB(ctx) },
	},
	"both daemons of Open vSwitch killed": {
		costs: allOfNode,
		begin: func(_ context.Context, c *cluster, node string) error {
			return errors.Join(c.OVS(node).KillVswitchd(), c.OVS(node).KillOVSDB())
		},
		end: func(ctx context.Context, c *cluster, node string) error {
			if err := c.OVS(node).StartOVSDB(ctx); err != nil {
				return err
			}
			return c.OVS(node).StartVswitchd(ctx)
		},
	},
	"all flows deleted": {
		costs: allOfNode,
		begin: func(ctx context.Context, c *cluster, node string) error {
			return c.ofctl(ctx, node, "del-flows", "br0")
		},
	},
	"all groups deleted": { // and with them the flows that lead to them: services
		begin: func(ctx context.Context, c *cluster, node string) error {
			return c.ofctl(ctx, node, "del-groups", "br0")
		},
	},
	"all meters deleted": { // and with them the flows that use them
		costs: allOfNode,
		begin: func(ctx context.Context, c *cluster, node string) error {
			return c.ofctl(ctx, node, "del-meters", "br0")
		},
	},
	"bridge deleted": {
		costs: allOfNode,
		begin: func(ctx context.Context, c *cluster, node string) error {
			_, err := c.OVS(node).VSCtl(ctx, "--no-wait", "--if-exists", "del-br", "br0")
			return err
		},
	},
	"firewall flushed": {
		begin: func(ctx context.Context, c *cluster, node string) error {
			_, err := c.NodeExec(ctx, node, "nft", "flush", "ruleset")
			return err
		},
	},
	"link down": {
		costs: crossing, deaf: true,
		begin: func(ctx context.Context, c *cluster, node string) error { return c.SetCarrier(ctx, node, false) },
		end:   func(ctx context.Context, c *cluster, node string) error { return c.SetCarrier(ctx, node, true) },
	},
	"cut off by the underlay": {
		costs: crossing, deaf: true,
		begin: func(ctx context.Context, c *cluster, node string) error { return c.Cut(ctx, node) },
		end:   func(ctx context.Context, c *cluster, node string) error { return c.Heal(ctx, node) },
	},
	"controller and etcd killed": {
		scope: ofCluster,
		begin: func(_ context.Context, c *cluster, _ string) error { return c.Controller().Kill() },
		end:   func(ctx context.Context, c *cluster, _ string) error { return c.StartInCluster(ctx, c.bin) },
	},
	"controller and etcd suspended": {
		scope: ofCluster,
		begin: func(_ context.Context, c *cluster, _ string) error { return c.Controller().Suspend() },
		end:   func(_ context.Context, c *cluster, _ string) error { return c.Controller().Resume() },
	},
	"second controller killed": {
		scope: ofCluster,
		begin: func(_ context.Context, c *cluster, _ string) error { return c.Process(second).Kill() },
		end:   func(ctx context.Context, c *cluster, _ string) error { return c.startSecond(ctx) },
	},
	"second controller suspended": {
		scope: ofCluster, longest: pastLeases,
		begin: func(_ context.Context, c *cluster, _ string) error { return c.Process(second).Suspend() },
		end:   func(_ context.Context, c *cluster, _ string) error { return c.Process(second).Resume() },
	},
	"API server away": {
		scope: ofCluster,
		begin: func(_ context.Context, c *cluster, _ string) error { return c.api.Away() },
		end:   func(_ context.Context, c *cluster, _ string) error { return c.serveAPI() },
	},
}

// kindsOf are the faults of a scope, in order of name.
func kindsOf(s scope) []kind {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(faults)), func(k kind) bool { return faults[k].scope != s })
}

// isFault tells faults from actions.
func (k kind) isFault() bool { _, is := faults[k]; return is }

// concerns says whether a packet is looked at where the fault is.
func (f fault) concerns(node string, from, to probe.Endpoint) bool {
	return f.scope == ofCluster || from.Node == node || to.Node == node
}

// mayCost says whether the fault may cost what goes between two pods, whoever is told what.
func (f fault) mayCost(node string, from, to probe.Endpoint) bool {
	switch f.costs {
	case crossing:
		return f.concerns(node, from, to) && from.Node != to.Node
	case allOfNode:
		return f.concerns(node, from, to)
	}
	return false
}
