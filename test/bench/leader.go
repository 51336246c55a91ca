package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

const (
	// What the leader has before it: 10,000 pods on 100 nodes that are not there, in 100
	// namespaces with 10 policies each, whose rules name 5 sets.
	ledNodes, ledPodsOnEach        = 100, 100
	ledNamespaces, ledPoliciesEach = 100, 10
	// ledEach is after how long a pod comes and another one goes.
	ledEach = 10 * time.Millisecond
	ledSize = "10,000 pods, 1,000 policies, 100 pods replaced a second"
)

// policyLeader measures what network policies cost the leader and etcd in a large cluster whose
// pods come and go: the nodes are this program, which writes what their agents would write.
func policyLeader(ctx context.Context, b *bench) error {
	return b.inPoliced(ctx, policiesNamespace, func(c *cluster) error {
		for _, node := range []string{"n1", "n2"} { // not what is measured
			if err := c.lab.Agent(node).Stop(); err != nil {
				return err
			}
		}
		r, err := c.records()
		if err != nil {
			return err
		}
		defer func() { _ = r.Close() }()
		l := &led{cluster: c, records: r}
		if err := l.begin(ctx); err != nil {
			return err
		}
		return l.measure(ctx)
	})
}

// led is a cluster whose policies the leader makes records of.
type led struct {
	*cluster
	records
	nodes  []*ledNode
	serial int
	lease  clientv3.LeaseID
}

// ledNode is a node that is not there: its record, and the revisions at which that was written.
type ledNode struct {
	subnet netip.Prefix
	record topology.NodePods
	came   int // pods, of which the last ones are there
	wrote  []ledWrite
}

// ledWrite is one of the node's records: when the pod's object came, and which revision the
// record got.
type ledWrite struct {
	began    time.Time
	revision int64
}

// begin makes it all, and returns when the leader has written what follows from it.
func (l *led) begin(ctx context.Context) error {
	grant, err := l.Grant(ctx, 600) // agents' records go with their agents
	if err != nil {
		return fmt.Errorf("lease of the nodes' records: %w", err)
	}
	l.lease = grant.ID
	for i := range ledNamespaces {
		name := ledNamespace(i)
		labels := map[string]string{"team": fmt.Sprintf("t%d", i%10), corev1.LabelMetadataName: name}
		if err := l.api.Put(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("uid-" + name), Labels: labels}}); err != nil {
			return err
		}
		for j := range ledPoliciesEach {
			if err := l.api.Put(ledPolicy(name, i, j)); err != nil {
				return err
			}
		}
	}
	for n := range ledNodes {
		ip := netip.AddrFrom4([4]byte{198, 18, 1, byte(n + 1)})
		node := &ledNode{subnet: absentSubnet(n), record: topology.NodePods{Host: fmt.Sprintf("absent%d", n), HostIP: ip}}
		l.nodes = append(l.nodes, node)
		if _, err := l.put(ctx, "subnets", ip.String(), topology.Node{Host: node.record.Host, HostIP: ip, Subnet: node.subnet}); err != nil {
			return err
		}
		for range ledPodsOnEach {
			if err := l.comes(node); err != nil {
				return err
			}
		}
		if err := l.write(ctx, node, time.Now()); err != nil {
			return err
		}
	}
	if err := l.settle(ctx); err != nil {
		return err
	}
	resp, err := l.Get(ctx, key("sets", ""), clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err == nil && resp.Count < ledNodes*ledPodsOnEach {
		err = fmt.Errorf("the leader has made %d records of sets for %s: too few for what it is measured by", resp.Count, ledSize)
	}
	return err
}

func ledNamespace(i int) string { return fmt.Sprintf("led%d", i%ledNamespaces) }

// ledPolicy lets pods with a label of a namespace be reached by its own pods with that label and
// with another one, a team's namespaces and a part of their pods, and another namespace.
func ledPolicy(namespace string, i, j int) *networkingv1.NetworkPolicy {
	of := func(key, value string) *metav1.LabelSelector {
		return &metav1.LabelSelector{MatchLabels: map[string]string{key: value}}
	}
	app, team := fmt.Sprintf("a%d", j), fmt.Sprintf("t%d", j)
	peers := []networkingv1.NetworkPolicyPeer{
		{PodSelector: of("app", app)}, {PodSelector: of("tier", "front")},
		{NamespaceSelector: of("team", team)}, {NamespaceSelector: of(corev1.LabelMetadataName, ledNamespace(i+j))},
		{NamespaceSelector: of("team", team), PodSelector: of("app", app)},
	}
	rule := onPort(80, "")
	rule.From = peers
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprintf("p%d", j), UID: types.UID(fmt.Sprintf("policy-%s-%d", namespace, j))},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: *of("app", app), PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}, Ingress: []networkingv1.NetworkPolicyIngressRule{rule},
		},
	}
}

// comes has a pod come to the node, and the one go that has been there for longest.
func (l *led) comes(n *ledNode) error {
	i := l.serial
	l.serial++
	pod := topology.NodePod{
		Namespace: ledNamespace(i), Name: fmt.Sprintf("web-5d9c7b6f5-%05d", i), UID: fmt.Sprintf("00000000-0000-4000-8000-%012d", i),
		Ingress: []string{fmt.Sprintf("p%d", i/ledNamespaces%ledPoliciesEach)},
	}
	var err error
	// Its address was free for as long as others came, as the agents' are.
	if pod.Address, err = netip.ParseAddr(nth(n.subnet.Addr(), 2+n.came%250)); err != nil {
		return err
	}
	n.came++
	labels := map[string]string{"app": fmt.Sprintf("a%d", i/ledNamespaces%ledPoliciesEach), "tier": "front", "pod-template-hash": "5d9c7b6f5"}
	if err := l.api.Put(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name, UID: types.UID(pod.UID), Labels: labels},
		Spec:       corev1.PodSpec{NodeName: n.record.Host},
	}); err != nil {
		return err
	}
	if len(n.record.Pods) == ledPodsOnEach {
		old := n.record.Pods[0]
		if err := l.api.Delete(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: old.Namespace, Name: old.Name}}); err != nil {
			return err
		}
		n.record.Pods = n.record.Pods[1:]
	}
	n.record.Pods = append(n.record.Pods, pod)
	return nil
}

// write writes the node's record, with its agent's lease.
func (l *led) write(ctx context.Context, n *ledNode, began time.Time) error {
	data, err := json.Marshal(n.record)
	if err != nil {
		return err
	}
	k := key("pods", n.record.HostIP.String())
	resp, err := l.Put(ctx, k, string(data), clientv3.WithLease(l.lease))
	if err != nil {
		return fmt.Errorf("write %s: %w", k, err)
	}
	n.wrote = append(n.wrote, ledWrite{began, resp.Header.Revision})
	return nil
}

// settle waits until the leader has acknowledged what all nodes wrote: then it is in the sets.
func (l *led) settle(ctx context.Context) error {
	return waitEvery(ctx, 200*time.Millisecond, "the leader has all pods in the records", func() (bool, error) {
		resp, err := l.Get(ctx, key("acknowledged", ""), clientv3.WithPrefix())
		if err != nil {
			return false, err
		}
		known := map[string]int64{}
		for _, kv := range resp.Kvs {
			ip := strings.TrimPrefix(string(kv.Key), key("acknowledged", ""))
			a, err := topology.ParseAcknowledged(ip, kv.Value)
			if err != nil {
				return false, err
			}
			known[ip] = a.Revision
		}
		for _, n := range l.nodes {
			if known[n.record.HostIP.String()] < n.wrote[len(n.wrote)-1].revision {
				return false, nil
			}
		}
		return true, nil
	})
}

// replace has pods come and go for that many seconds, ledEach apart, on one node after the other,
// and calls each at the end of every second.
func (l *led) replace(ctx context.Context, seconds int, each func() error) error {
	for _, n := range l.nodes {
		n.wrote = nil
	}
	g, gctx := errgroup.WithContext(ctx)
	start := time.Now()
	last := make([]chan struct{}, len(l.nodes)) // closed when the node's write before is done
	for i := range seconds * int(time.Second/ledEach) {
		select {
		case <-time.After(time.Until(start.Add(time.Duration(i) * ledEach))): // at once where it is late
		case <-gctx.Done():
			return errors.Join(g.Wait(), context.Cause(ctx))
		}
		at := i % len(l.nodes)
		if last[at] != nil {
			<-last[at]
		}
		n, done, began := l.nodes[at], make(chan struct{}), time.Now()
		if err := l.comes(n); err != nil {
			return errors.Join(err, g.Wait())
		}
		last[at] = done
		g.Go(func() error {
			defer close(done)
			return l.write(gctx, n, began)
		})
		if (i+1)%int(time.Second/ledEach) == 0 {
			if err := each(); err != nil {
				return errors.Join(err, g.Wait())
			}
		}
	}
	return g.Wait()
}
