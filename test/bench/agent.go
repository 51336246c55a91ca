package main

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/probe"
)

const (
	// agentPods and agentNodes are, with manyTenants, what the agent's size is bounded for.
	agentPods  = 250
	agentNodes = 500
	agentSize  = "250 pods, 500 nodes, 1,000 tenants"
	// restTime is how long an agent that nobody asks for anything takes to give back what a burst
	// of work took, and to have looked back once more at all there is. It does both every 5 s.
	restTime = 12 * time.Second
)

// agent measures the node agent's memory and its start with everything there.
func agent(ctx context.Context, b *bench) error {
	if err := b.fillAll(ctx); err != nil {
		return err
	}
	live, err := b.resident(ctx)
	if err != nil {
		return err
	}
	b.add(alone("agent_rss", "agent's resident memory at rest, "+agentSize, "MB", live, 1, oursAtMost(55)))
	return b.restarts(ctx, agentSize)
}

// fillAll makes pods, tenants and nodes as many as the agent's size is bounded for.
func (b *bench) fillAll(ctx context.Context) error {
	if b.filled {
		return nil
	}
	b.filled = true
	if err := b.populate(ctx, fullPods); err != nil {
		return err
	}
	r, err := b.records()
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	if err := b.manyRecords(ctx, r); err != nil {
		return err
	}
	more, err := b.sandboxes(agentPods-fullPods, func(int) string { return "bench" })
	if err != nil {
		return err
	}
	for i := range more {
		if _, err := b.ours.add(ctx, &more[i]); err != nil {
			return err
		}
	}
	return b.manyNodes(ctx, r)
}

// manyNodes makes the nodes in etcd as many as agentNodes: hosts that are
// not there, with subnets, as hosts outside of Kubernetes ask for them.
func (b *bench) manyNodes(ctx context.Context, r records) error {
	for i := range agentNodes - 2 {
		ip := netip.AddrFrom4([4]byte{198, 19, byte(i >> 8), byte(i)})
		n := topology.Node{Host: fmt.Sprintf("far%d", i), HostIP: ip, Assign: true}
		if _, err := r.put(ctx, "subnets", ip.String(), n); err != nil {
			return err
		}
	}
	return wait(ctx, "n1 has all nodes as peers", func() (bool, error) {
		text, err := b.lab.Agent("n1").Metrics(ctx)
		if err != nil {
			return false, err
		}
		return strings.Contains(text, fmt.Sprintf("\nk8s_ovs_peers %d\n", agentNodes-1)), nil
	})
}

// resident is VmRSS of n1's agent (proc(5)) at rest, in MB of 10^6 bytes.
func (b *bench) resident(ctx context.Context) (float64, error) {
	select {
	case <-time.After(restTime):
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	pid, err := b.lab.Agent("n1").Program()
	if err != nil {
		return 0, err
	}
	return residentOf(pid)
}

// residentOf is a process's, in MB of 10^6 bytes.
func residentOf(pid int) (float64, error) {
	text := field(filepath.Join("/proc", fmt.Sprint(pid), "status"), "VmRSS")
	kb, err := strconv.ParseFloat(strings.TrimSuffix(text, " kB"), 64)
	if err != nil {
		return 0, fmt.Errorf("memory of process %d: VmRSS %q: %w", pid, text, err)
	}
	return kb * 1024 / 1e6, nil
}

// restarts measures the agent's start: with its flows there, under traffic, and
// with none there.
func (b *bench) restarts(ctx context.Context, size string) error {
	warm, lost, sent, err := b.warmStarts(ctx)
	if err != nil {
		return err
	}
	var cold []float64
	for range b.times(8, 2) {
		a := b.lab.Agent("n1")
		if err := a.Kill(); err != nil {
			return err
		}
		if _, err := b.lab.OVS("n1").OFCtl(ctx, "del-flows", "br0"); err != nil {
			return err
		}
		took, err := startAgent(ctx, a)
		if err != nil {
			return err
		}
		cold = append(cold, took)
	}
	after, err := b.resident(ctx)
	if err != nil {
		return err
	}
	b.add(
		alone("agent_rss_after_restart", "agent's resident memory after a restart, "+size, "MB", after, 1, oursAtMost(55)),
		measured("agent_restart", "agent killed and started: to ready, median", "ms", median, warm, nil),
		alone("agent_restart_lost", fmt.Sprintf("packets lost in these restarts, of %d", sent), "packets", float64(lost), len(warm), oursAtMost(0)),
		measured("agent_cold_start", "agent started with no flow in the bridge: to ready, all programmed, median", "ms", median, cold, oursAtMost(1000)),
	)
	return nil
}

func startAgent(ctx context.Context, a netlab.Agent) (ms float64, err error) {
	began := time.Now()
	err = a.Start(ctx)
	return time.Since(began).Seconds() * 1000, err
}

// warmStarts kills and starts the agent while pods of the node talk.
func (b *bench) warmStarts(ctx context.Context) (took []float64, lost, sent int, err error) {
	var ends []probe.Endpoint
	for _, a := range b.full[:4] {
		h, err := a.host()
		if err != nil {
			return nil, 0, 0, err
		}
		ends = append(ends, probe.Endpoint{Namespace: a.pod.Namespace, Name: a.pod.Name, Node: a.pod.Node, IP: h.ip, Sandbox: a.pod.Sandbox()})
	}
	prober, err := probe.Open(ends)
	if err != nil {
		return nil, 0, 0, err
	}
	run := prober.Start(probe.Exactly(func(_, _ probe.Endpoint) bool { return true }), probe.RunOptions{Interval: 5 * time.Millisecond})
	for range b.times(8, 2) {
		a := b.lab.Agent("n1")
		if err = a.Kill(); err != nil {
			break
		}
		var ms float64
		if ms, err = startAgent(ctx, a); err != nil {
			break
		}
		took = append(took, ms)
	}
	report := run.Stop()
	if closeErr := prober.Close(); err == nil {
		err = closeErr
	}
	return took, report.Lost(), report.Sent(), err
}
