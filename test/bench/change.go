package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

// change measures how long a tenant change takes to reach the flows of a node
// where the namespace has movingPods pods: from the record's event, from the
// request, and as whoever types `netns join` sees it.
func change(ctx context.Context, b *bench) error {
	if err := b.populate(ctx, movingPods); err != nil {
		return err
	}
	node, err := b.lab.Node("n1")
	if err != nil {
		return err
	}
	r, err := b.records()
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	if _, err := r.put(ctx, "netnamespaces", still, topology.Namespace{NetName: still}); err != nil {
		return err
	}
	if err := r.waitApplied(ctx, node, []string{still, moving}, func(ids map[netid.ID]int) bool { return len(ids) == 2 }); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	flows, err := b.flowEvents(ctx, node, pipelineTenant, "event=")
	if err != nil {
		return err
	}
	events, err := recordEvents(ctx, b.lab, node, moving)
	if err != nil {
		return err
	}
	var fromEvent, fromRequest []time.Duration
	var before map[string]meter
	const warm = 4
	for i := range b.times(200, 20) + warm {
		if i == warm {
			if before, err = b.agentTimes(ctx); err != nil {
				return err
			}
		}
		event, request, err := b.oneChange(ctx, r, node, i%2 == 0, events, flows)
		if err != nil {
			return err
		}
		if i >= warm {
			fromEvent, fromRequest = append(fromEvent, event), append(fromRequest, request)
		}
	}
	after, err := b.agentTimes(ctx)
	if err != nil {
		return err
	}
	b.section("Where a tenant change's time goes", "%s", changeBreakdown(before, after, fromEvent, fromRequest))
	e, q := milliseconds(fromEvent), milliseconds(fromRequest)
	title := fmt.Sprintf("tenant change of %d local pods", movingPods)
	b.add(
		measured("tenant_change_event_median", title+", from the record's event to the flows, median", "ms", median, e, nil),
		measured("tenant_change_event_p99", title+", from the record's event to the flows, p99", "ms", rank(0.99), e, oursAtMost(20)),
		measured("tenant_change_request_median", title+", from the request (etcdctl put) to the flows, median", "ms", median, q, nil),
		measured("tenant_change_request_p99", title+", from the request (etcdctl put) to the flows, p99", "ms", rank(0.99), q, nil),
	)
	return b.timeCommand(ctx)
}

// timeCommand measures the CLI, which returns when all nodes have the change.
func (b *bench) timeCommand(ctx context.Context) error {
	var took []time.Duration
	for i := range b.times(100, 4) {
		args := []string{"join", moving, still, "--timeout", "10s"}
		if i%2 == 1 {
			args = []string{"isolate", moving, "--timeout", "10s"}
		}
		began := time.Now()
		if out, err := b.lab.Netns(ctx, args...); err != nil {
			return fmt.Errorf("%w\n%s", err, out)
		}
		took = append(took, time.Since(began))
	}
	t := milliseconds(took)
	b.add(
		measured("netns_join_median", "`netns join` and `netns isolate`, until all nodes have it, median", "ms", median, t, nil),
		measured("netns_join_p99", "`netns join` and `netns isolate`, until all nodes have it, p99", "ms", rank(0.99), t, oursAtMost(150)),
	)
	return nil
}

// oneChange asks for join or isolate of namespace moving and returns how long
// after the record's event, and after the request, the flows changed.
func (b *bench) oneChange(ctx context.Context, r records, node netlab.Node, join bool, events, flows <-chan time.Time) (fromEvent, fromRequest time.Duration, err error) {
	list, _, err := r.namespaces(ctx)
	if err != nil {
		return 0, 0, err
	}
	n := list[moving]
	if n.Action = topology.Isolate; join {
		n.Action, n.Namespace = topology.Join, still
	}
	drain(events)
	drain(flows)
	began := time.Now()
	if _, err := r.put(ctx, "netnamespaces", moving, n); err != nil {
		return 0, 0, err
	}
	event, err := next(ctx, events, "record of namespace "+moving)
	if err != nil {
		return 0, 0, err
	}
	flow, err := next(ctx, flows, "flows of namespace "+moving)
	if err != nil {
		return 0, 0, err
	}
	// The next change begins when this one is all over.
	err = r.waitApplied(ctx, node, []string{moving}, func(map[netid.ID]int) bool { return true })
	return flow.Sub(event), flow.Sub(began), err
}

// drain forgets what has come so far.
func drain(c <-chan time.Time) {
	for {
		select {
		case _, open := <-c:
			if !open {
				return
			}
		default:
			return
		}
	}
}

func next(ctx context.Context, c <-chan time.Time, what string) (time.Time, error) {
	select {
	case t, open := <-c:
		if !open {
			return time.Time{}, fmt.Errorf("nothing more is heard of the %s", what)
		}
		return t, nil
	case <-ctx.Done():
		return time.Time{}, context.Cause(ctx)
	case <-time.After(waitLimit):
		return time.Time{}, fmt.Errorf("no change of the %s in %s", what, waitLimit)
	}
}

// recordEvents says when the namespace's record says that a new netID is in
// force, as seen from the node: the agent's own watch is beside this one.
func recordEvents(ctx context.Context, lab *netlab.Lab, node netlab.Node, namespace string) (<-chan time.Time, error) {
	address := strings.TrimPrefix(netlab.EtcdURL, "https://")
	identity, err := lab.NodeIdentity(node.Name)
	if err != nil {
		return nil, err
	}
	c, err := clientv3.New(clientv3.Config{
		Endpoints: []string{netlab.EtcdURL}, TLS: netlab.TLS(identity), DialTimeout: 5 * time.Second, Logger: zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			return ns.DialTCP(ns.Path(node.Netns), address, 5*time.Second)
		})},
	})
	if err != nil {
		return nil, err
	}
	k := key("netnamespaces", namespace)
	resp, err := c.Get(ctx, k)
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	var last netid.ID
	if len(resp.Kvs) > 0 {
		if n, err := topology.ParseNamespace(namespace, resp.Kvs[0].Value); err == nil && n.Effective != nil {
			last = *n.Effective
		}
	}
	out := make(chan time.Time, 64)
	go func() {
		defer func() { _ = c.Close() }()
		defer close(out)
		for resp := range c.Watch(ctx, k, clientv3.WithRev(resp.Header.Revision+1)) {
			now := time.Now()
			for _, e := range resp.Events {
				n, err := topology.ParseNamespace(namespace, e.Kv.Value)
				if err == nil && n.Effective != nil && *n.Effective != last {
					last = *n.Effective
					out <- now
				}
			}
		}
	}()
	return out, nil
}

// Tables of br0 that are watched (PIPELINE.md).
const (
	pipelineTenant = 5
	pipelineReply  = 30
)

// flowEvents says when flows in a table of the node's br0 change, in a way that
// the text names: the switch itself tells (flow monitoring, ovs-ofctl(8)). A
// change is one bundle, so its first event stands for all.
func (b *bench) flowEvents(ctx context.Context, node netlab.Node, table int, text string) (<-chan time.Time, error) {
	cmd := exec.CommandContext(ctx, "ovs-ofctl", "--unixctl="+filepath.Join(b.lab.Dir(), "bench-monitor.ctl"), "monitor", "unix:"+filepath.Join(node.OVSRunDir, "br0.mgmt"), fmt.Sprintf("watch:!initial,table=%d", table))
	cmd.Env = append(os.Environ(), b.lab.Mark())
	r, w := io.Pipe()
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("monitor flows: %w", err)
	}
	go func() { w.CloseWithError(cmd.Wait()) }()
	out := make(chan time.Time, 64)
	began := make(chan struct{})
	go func() {
		defer close(out)
		lines := bufio.NewScanner(r)
		first := true
		for lines.Scan() {
			now := time.Now()
			if first && strings.Contains(lines.Text(), "FLOW_MONITOR") { // other messages come before
				first = false
				close(began)
			}
			if strings.Contains(lines.Text(), text) {
				select {
				case out <- now:
				default: // more than anybody waits for: one bundle makes several
				}
			}
		}
	}()
	select {
	case <-began: // the reply to the request for monitoring
		return out, nil
	case <-time.After(5 * time.Second):
		return nil, fmt.Errorf("ovs-ofctl monitor of br0 on %s says nothing", node.Name)
	}
}
