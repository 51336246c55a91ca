package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
)

// scratch is a bridge of n1's Open vSwitch that only this program uses.
const scratch = "br-bench"

// bundle measures the commit of one pod's flows, on a bridge that has the flows
// of n1's br0, and the same by ovs-ofctl.
func bundle(ctx context.Context, b *bench) error {
	pod, base, err := b.podFlows(ctx, "bench")
	if err != nil {
		return err
	}
	switchd := b.lab.OVS("n1")
	if _, err := switchd.VSCtl(ctx, "add-br", scratch, "--", "set", "bridge", scratch, "datapath_type=netdev", "fail_mode=secure"); err != nil {
		return err
	}
	conn, err := b.dialSwitch(ctx, scratch)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.Commit(ctx, mods(of.AddFlow, base)); err != nil {
		return err
	}
	file := filepath.Join(b.lab.Dir(), "bench-flows.txt")
	if err := os.WriteFile(file, []byte(strings.Join(texts(pod), "\n")+"\n"), 0o600); err != nil {
		return err
	}
	apply := func() error {
		_, err := switchd.OFCtl(ctx, "--bundle", "add-flows", scratch, file)
		return err
	}
	if err := b.timeBundles(ctx, conn, pod, apply); err != nil {
		return err
	}
	_, err = switchd.VSCtl(ctx, "del-br", scratch)
	return err
}

// timeBundles commits flows over conn and by reference, in turn, and takes them
// out again. A barrier (an empty round trip, OpenFlow 1.4 section 7.3.8) each time
// shows what the machine and ovs-vswitchd's main loop cost in any case.
func (b *bench) timeBundles(ctx context.Context, conn *of.Conn, flows []of.Flow, byTool func() error) error {
	const perTurn = 10 // ours is so much quicker that one a turn would be few
	var took [sides][]time.Duration
	var barrier []time.Duration
	timed := func(to *[]time.Duration, keep bool, f func() error) error {
		began := time.Now()
		err := f()
		if keep {
			*to = append(*to, time.Since(began))
		}
		return err
	}
	err := inTurn(ctx, 2, b.times(100, 10), func(side, i int) error {
		repeat, apply := perTurn, func() error { return conn.Commit(ctx, mods(of.AddFlow, flows)) }
		if side == reference {
			repeat, apply = 1, byTool
		}
		for range repeat {
			if err := timed(&took[side], i >= 0, apply); err != nil {
				return err
			}
			if err := conn.Commit(ctx, mods(of.DeleteFlow, flows)); err != nil {
				return err
			}
			if err := timed(&barrier, i >= 0, func() error { return conn.Barrier(ctx) }); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	both, idle := bothMilliseconds(took), milliseconds(barrier)
	title := fmt.Sprintf("one pod's %d flows as one bundle (reference: ovs-ofctl)", len(flows))
	b.add(
		paired("pod_bundle_median", title+", median", "ms", median, both, nil),
		paired("pod_bundle_p99", title+", p99", "ms", rank(0.99), both, oursAtMost(1)),
		measured("switch_barrier_p99", "an empty round trip to the same switch (barrier), p99", "ms", rank(0.99), idle, nil),
	)
	return nil
}

// podFlows attaches a pod in a namespace and returns what that adds to n1's
// flows, and the others. The pod is detached again.
func (b *bench) podFlows(ctx context.Context, namespace string) (pod, base []of.Flow, err error) {
	conn, err := b.dialSwitch(ctx, "br0")
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = conn.Close() }()
	before, err := conn.Flows(ctx, of.FlowFilter{})
	if err != nil {
		return nil, nil, err
	}
	had := map[string]bool{}
	for _, f := range before {
		had[f.Key()] = true
		base = append(base, f.Flow)
	}
	box, err := b.sandboxes(1, func(int) string { return namespace })
	if err != nil {
		return nil, nil, err
	}
	if _, err := b.ours.add(ctx, &box[0]); err != nil {
		return nil, nil, err
	}
	after, err := conn.Flows(ctx, of.FlowFilter{})
	if err != nil {
		return nil, nil, err
	}
	for _, f := range after {
		if !had[f.Key()] {
			pod = append(pod, f.Flow)
		}
	}
	if len(pod) == 0 {
		return nil, nil, fmt.Errorf("an ADD on n1 added no flow to br0")
	}
	_, err = b.ours.del(ctx, box[0])
	return pod, base, err
}

func (b *bench) dialSwitch(ctx context.Context, bridge string) (*of.Conn, error) {
	node, err := b.lab.Node("n1")
	if err != nil {
		return nil, err
	}
	return of.Dial(ctx, filepath.Join(node.OVSRunDir, bridge+".mgmt"))
}

func mods(kind func(of.Flow) of.Mod, flows []of.Flow) []of.Mod {
	out := make([]of.Mod, len(flows))
	for i, f := range flows {
		out[i] = kind(f)
	}
	return out
}

func texts(flows []of.Flow) []string {
	out := make([]string, len(flows))
	for i, f := range flows {
		out[i] = f.String()
	}
	return out
}
