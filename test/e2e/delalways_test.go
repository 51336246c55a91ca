package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

// TestDelAlways: a pod can go whatever is missing of its node, so that a node can be
// drained to mend it. ADD and STATUS say what is missing, and afterwards the node goes
// on without any of what is gone.
func TestDelAlways(t *testing.T) {
	for name, c := range map[string]struct {
		// lose takes something from n1, whose agent is stopped; mend puts it back.
		lose, mend func(l *lab)
		// why is what ADD and STATUS say.
		why string
	}{
		"the node's record is gone": {
			lose: func(l *lab) { l.dropSubnet("n1") },
			// With the record its identity went: somebody has to admit it anew.
			mend: func(l *lab) {
				l.must(l.GiveBundle(l.t.Context(), "n1"))
				l.must(l.Agent("n1").Restart(l.t.Context()))
			},
			why: "refuses this node's identity",
		},
		"the node has another subnet": {
			lose: func(l *lab) { l.putSubnet("n1", "172.11.200.0/22") },
			why:  "put the node's record back, or drain the node",
		},
		"no room on the disk": {
			lose: func(l *lab) {
				free, err := l.FillDisk("n1")
				l.must(err)
				l.freeDisk = free
				l.t.Cleanup(func() { _ = l.freeDisk() }) // the lab removes its folder
			},
			mend: func(l *lab) { l.must(l.freeDisk()); l.freeDisk = func() error { return nil } },
			why:  "no space left on device",
		},
		"no etcd and no copy": {
			lose: func(l *lab) { l.must(l.Controller().Stop()); l.must(l.LoseState("n1")) },
			mend: func(l *lab) { l.must(l.StartController(l.t.Context())) },
			why:  "etcd",
		},
		"no address": {
			lose: func(l *lab) {
				n, err := l.Node("n1")
				l.must(err)
				l.must(ns.IP(l.t.Context(), n.Netns, "addr flush dev "+addressDevice()))
			},
			mend: func(l *lab) {
				n, err := l.Node("n1")
				l.must(err)
				l.must(ns.IP(l.t.Context(), n.Netns, "addr add "+n.VTEP.String()+"/24 dev "+addressDevice(), "route replace default via "+netlab.Gateway.String()))
			},
			why: "address",
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := up(t, netlab.Options{Nodes: 1})
			l.delAlways(c.lose, c.mend, c.why)
		})
	}
}

func (l *lab) delAlways(lose, mend func(*lab), why string) {
	l.t.Helper()
	ctx := l.t.Context()
	gone, listed, collected := l.pod("n1", "red/gone"), l.pod("n1", "red/listed"), l.pod("n1", "blue/collected")
	l.must(l.Agent("n1").Stop())
	lose(l)
	l.must(l.Agent("n1").StartUnready(ctx))
	for range 2 {
		l.eventually("DEL", 20*time.Second, func() error { return l.CNIDel(ctx, gone) })
	}
	// GC is told to come again until the database of Open vSwitch has answered.
	l.eventually("GC", 20*time.Second, func() error { return l.CNIGC(ctx, "n1", []netlab.Pod{listed}) })
	var left string
	l.eventually("what DEL and GC remove", 10*time.Second, func() error {
		left = strings.Join(append(l.hostEnds("n1"), l.ports("n1")...), " ")
		for _, p := range []netlab.Pod{gone, collected} {
			if strings.Contains(left, p.HostInterface) {
				return fmt.Errorf("%s is still there: %s", p, left)
			}
		}
		return nil
	})
	if !strings.Contains(left, listed.HostInterface) {
		l.t.Errorf("%s is listed and went: %s", listed, left)
	}
	if why != "" {
		l.eventually("STATUS says why", 20*time.Second, func() error {
			status := l.CNIStatus(ctx, "n1")
			if codeOf(status) != notAvailable || !strings.Contains(status.Error(), why) {
				return fmt.Errorf("%w (code %d); want code %d that says %q", status, codeOf(status), notAvailable, why)
			}
			return nil
		})
		_, err := l.AddPod(ctx, "n1", "red", "new", netlab.PodOptions{})
		if codeOf(err) != tryAgainLater || !strings.Contains(err.Error(), why) {
			l.t.Errorf("ADD: %v (code %d); want code %d that says %q", err, codeOf(err), tryAgainLater, why)
		}
	}
	l.must(l.CNIDel(ctx, listed))
	if mend != nil {
		mend(l)
	}
	// The node is empty, so it takes whatever its record says now.
	l.eventually("the node is ready", 30*time.Second, func() error { return l.CNIStatus(ctx, "n1") })
	for _, p := range []netlab.Pod{gone, listed, collected} {
		l.must(l.ForgetPod(p))
	}
	l.pod("n1", "red/after")
	if ends := l.hostEnds("n1"); len(ends) != 1 {
		l.t.Errorf("devices: %s; want that of one pod", ends)
	}
	l.eventually("flows of pods that are gone", 10*time.Second, func() error {
		flows, err := l.tryFlows("n1")
		for _, f := range flows {
			if strings.Contains(f, gone.MAC) || strings.Contains(f, collected.MAC) {
				if p := l.get("red/after"); !strings.Contains(f, p.MAC) {
					return fmt.Errorf("there is still %s", f)
				}
			}
		}
		return err
	})
}

// dropSubnet deletes the node's record.
func (l *lab) dropSubnet(node string) {
	l.t.Helper()
	n, err := l.Node(node)
	l.must(err)
	_, err = l.etcd().Delete(l.t.Context(), networkKey+"/subnets/"+n.VTEP.String())
	l.must(err)
}

// putSubnet gives the node another subnet, by hand.
func (l *lab) putSubnet(node, subnet string) {
	l.t.Helper()
	n, err := l.Node(node)
	l.must(err)
	key := networkKey + "/subnets/" + n.VTEP.String()
	got, err := l.etcd().Get(l.t.Context(), key)
	l.must(err)
	rec, err := topology.ParseNode(n.VTEP.String(), got.Kvs[0].Value)
	l.must(err)
	rec.Subnet = netip.MustParsePrefix(subnet)
	data, err := json.Marshal(rec)
	l.must(err)
	_, err = l.etcd().Put(l.t.Context(), key, string(data))
	l.must(err)
}

// TestDelWithoutDatabase: also while ovsdb-server is away when the agent starts.
func TestDelWithoutDatabase(t *testing.T) {
	long(t)
	l := up(t, netlab.Options{Nodes: 1})
	ctx := t.Context()
	p := l.pod("n1", "red/a")
	l.must(l.Agent("n1").Stop())
	l.must(l.OVS("n1").KillOVSDB())
	l.must(l.Agent("n1").StartUnready(ctx))
	l.eventually("DEL", 20*time.Second, func() error { return l.CNIDel(ctx, p) })
	if ends := l.hostEnds("n1"); len(ends) != 0 {
		t.Errorf("still there: %s", ends)
	}
	if err := l.CNIStatus(ctx, "n1"); codeOf(err) != notAvailable || !strings.Contains(err.Error(), "database of Open vSwitch") {
		t.Errorf("STATUS: %v", err)
	}
	l.must(l.OVS("n1").StartOVSDB(ctx))
	l.eventually("the node is ready", 30*time.Second, func() error { return l.CNIStatus(ctx, "n1") })
	l.eventually("the port's row goes", 20*time.Second, func() error {
		if out, err := l.OVS("n1").VSCtl(context.WithoutCancel(ctx), "list-ports", "br0"); err != nil || strings.Contains(out, p.HostInterface) {
			return fmt.Errorf("ports %q, %w", out, err)
		}
		return nil
	})
	l.must(l.ForgetPod(p))
}
