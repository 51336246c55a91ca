package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/test/kubetest"
	"github.com/k8s-ovs/k8s-ovs/test/netlab"
)

const (
	// policyPods are on the node, each with a policy of its own that has policyRules rules.
	policyPods  = 250
	policyRules = 40
	// policyPeers are elsewhere, in groups that rules name by a label, and policyPorts the
	// ports that rules name. No two rules are equal.
	policyPeers  = 4000
	policyGroups = 400
	policyPorts  = 100
	policySize   = "10,000 rules, 250 pods, 4,000 peers, 100 ports"
	// eventPods are selected by the one policy that changes.
	eventPods = 100
	// pipelineIngress is the table in which an ingress rule appears (PIPELINE.md).
	pipelineIngress = 17
)

// inPoliced calls f with a lab of its own, a Kubernetes cluster with a namespace of that
// name: its controller makes records of the policies that f makes.
func (b *bench) inPoliced(ctx context.Context, namespace string, f func(*cluster) error) (err error) {
	lab, err := netlab.Up(ctx, netlab.Options{
		Name: fmt.Sprintf("bench-%d-policies", os.Getpid()), Nodes: 2, Network: network, HostSubnetLength: 10, Bare: true, BinDir: b.bin, Datapath: "netdev",
		AgentArgs: []string{"--log-level", "info"}, ControllerArgs: []string{"--log-level", "info"},
	})
	if err != nil {
		return err
	}
	was := b.lab
	b.lab, b.inDaemonSet = lab, true
	defer func() {
		b.lab, b.inDaemonSet = was, false
		err = errors.Join(err, lab.Down())
	}()
	nodes, err := lab.Nodes()
	if err != nil {
		return err
	}
	addresses := map[string]netip.Addr{}
	for _, n := range nodes {
		addresses[n.Name] = n.VTEP
	}
	c := &cluster{bench: b}
	if c.api, err = kubetest.NewCluster(addresses, namespace); err != nil {
		return err
	}
	listener, err := lab.ListenAPIServer()
	if err != nil {
		return err
	}
	c.api.Serve(listener)
	defer func() { err = errors.Join(err, c.api.Away()) }()
	if err := errors.Join(lab.UseKubernetes(true), lab.ShowPods(c.api)); err != nil {
		return err
	}
	if err := lab.StartInCluster(ctx, b.bin); err != nil {
		return err
	}
	for _, n := range nodes {
		if err := b.startAgent(ctx, n.Name); err != nil {
			return err
		}
	}
	return f(c)
}

// policiesNamespace has the pods that policies are about, and their peers.
const policiesNamespace = "policed"

// policies measures what many rules take: flows, time to program them from nothing, the
// agent's memory; and how long one policy's change takes to be in the flows.
func policies(ctx context.Context, b *bench) error {
	return b.inPoliced(ctx, policiesNamespace, func(c *cluster) error {
		if err := c.policyPods(ctx); err != nil {
			return err
		}
		if err := c.alone(); err != nil {
			return err
		}
		without, err := c.resident(ctx)
		if err != nil {
			return err
		}
		title := fmt.Sprintf("one policy's change with %d pods that it selects, from the API server's event to the flows", eventPods)
		if err := c.policyEvents(ctx, "policy_event", title, oursAtMost(50)); err != nil {
			return err
		}
		flows, err := c.flowCount(ctx)
		if err != nil {
			return err
		}
		if err := c.manyPolicies(ctx); err != nil {
			return err
		}
		with, err := c.flowCount(ctx)
		if err != nil {
			return err
		}
		live, err := c.resident(ctx)
		if err != nil {
			return err
		}
		c.add(alone("policies_flows", "flows of network policies: "+policySize, "flows", float64(with-flows), 1, oursAtMost(20000)))
		if err := c.policyEvents(ctx, "policy_event_many", title+", beside "+policySize, nil); err != nil {
			return err
		}
		if err := c.policyStarts(ctx, with); err != nil {
			return err
		}
		memory, err := c.resident(ctx)
		if err != nil {
			return err
		}
		c.add(
			alone("agent_rss_no_policies", fmt.Sprintf("agent's resident memory at rest, %d pods, no network policy", policyPods), "MB", without, 1, oursAtMost(55)),
			alone("agent_rss_policies", "agent's resident memory at rest, "+policySize, "MB", live, 1, oursAtMost(120)),
			alone("agent_rss_policies_after_restart", "agent's resident memory after a restart, "+policySize, "MB", memory, 1, oursAtMost(120)),
		)
		return nil
	})
}

// policyPods makes the node's pods.
func (c *cluster) policyPods(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(4)
	for i := range policyPods {
		g.Go(func() error {
			labels := map[string]string{"pod": fmt.Sprint(i), "some": fmt.Sprint(i < eventPods)}
			_, err := c.lab.AddPod(ctx, "n1", policiesNamespace, fmt.Sprintf("p%d", i), netlab.PodOptions{Labels: labels})
			return err
		})
	}
	return g.Wait()
}

// putPolicy makes a policy, or changes it: pods with a label may be reached as the rules say.
func (c *cluster) putPolicy(name, label, value string, rules ...networkingv1.NetworkPolicyIngressRule) error {
	return c.api.Put(&networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: policiesNamespace, Name: name, UID: types.UID("policy-" + name)},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{label: value}},
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
			Ingress:     rules,
		},
	})
}

// onPort is a rule of one port; of all pods, or of a group.
func onPort(number int, group string) networkingv1.NetworkPolicyIngressRule {
	port, tcp := intstr.FromInt(number), corev1.ProtocolTCP
	rule := networkingv1.NetworkPolicyIngressRule{Ports: []networkingv1.NetworkPolicyPort{{Protocol: &tcp, Port: &port}}}
	if group != "" {
		rule.From = []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"group": group}}}}
	}
	return rule
}

// policyEvents measures one policy whose port changes, again and again. Its rule is new then, so
// a flow of it appears, in the bundle with those of all its pods. The policy is gone in the end.
func (c *cluster) policyEvents(ctx context.Context, name, title string, bar *bar) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	node, err := c.lab.Node("n1")
	if err != nil {
		return err
	}
	flows, err := c.flowEvents(ctx, node, pipelineIngress, "event=ADDED")
	if err != nil {
		return err
	}
	const warm = 4
	var took []float64
	for i := range c.times(200, 20) + warm {
		drain(flows)
		began := time.Now()
		if err := c.putPolicy("event", "some", "true", onPort(20000+i, "")); err != nil {
			return err
		}
		flow, err := next(ctx, flows, "flows of a policy")
		if err != nil {
			return err
		}
		if i >= warm {
			took = append(took, flow.Sub(began).Seconds()*1000)
		}
		// The next one is not to be part of what this one leaves to do.
		if _, err := c.settledFlows(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
	c.add(
		measured(name+"_median", title+", median", "ms", median, took, nil),
		measured(name+"_p99", title+", p99", "ms", rank(0.99), took, bar),
	)
	before, err := c.flowCount(ctx)
	if err != nil {
		return err
	}
	if err := c.api.Delete(&networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: policiesNamespace, Name: "event"}}); err != nil {
		return err
	}
	err = wait(ctx, "a policy's flows are gone", func() (bool, error) {
		n, err := c.flowCount(ctx)
		return n < before, err
	})
	if err == nil {
		_, err = c.settledFlows(ctx, 100*time.Millisecond)
	}
	return err
}

// settledFlows is how many flows n1 has once their number stays for that long. A look takes
// some 20 ms.
func (c *cluster) settledFlows(ctx context.Context, stays time.Duration) (int, error) {
	last, since := -1, time.Time{}
	err := wait(ctx, "the number of flows stays", func() (bool, error) {
		n, err := c.flowCount(ctx)
		if n != last {
			last, since = n, time.Now()
		}
		return time.Since(since) > stays, err
	})
	return last, err
}

// manyPolicies makes the peers and the policies, and returns when n1 has all their flows.
func (c *cluster) manyPolicies(ctx context.Context) error {
	if err := c.policyPeers(ctx); err != nil {
		return err
	}
	for i := range policyPods {
		var rules []networkingv1.NetworkPolicyIngressRule
		for r := range policyRules {
			n := i*policyRules + r
			port := n % policyPorts
			group := n/policyPorts*4 + port%4 // no port has a group twice, and all groups are used
			rules = append(rules, onPort(10000+port, fmt.Sprint(group)))
		}
		if err := c.putPolicy(fmt.Sprintf("p%d", i), "pod", fmt.Sprint(i), rules...); err != nil {
			return err
		}
	}
	return wait(ctx, "n1 has all rules and sets", func() (bool, error) {
		for name, want := range map[string]float64{"k8s_ovs_policy_sets": policyGroups, "k8s_ovs_policy_late_sets": 0} {
			if have, err := c.gauge(ctx, "n1", name); have != want || err != nil {
				return false, err
			}
		}
		// The sets are read before the flows are made of them.
		flows, err := c.settledFlows(ctx, 2*time.Second)
		return flows >= policyPods*policyRules+policyPeers, err
	})
}

// absentSubnet is that of a node that is not there: no node of the lab has its own so far up.
func absentSubnet(n int) netip.Prefix {
	return netip.PrefixFrom(netip.MustParseAddr(nth(endpointAddresses, 1024*n)), 22).Masked()
}

// policyPeers makes the peers: pods of nodes that are not there, with what their agents would say.
func (c *cluster) policyPeers(ctx context.Context) error {
	r, err := c.records()
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	const perNode = 250
	for n := range policyPeers / perNode {
		subnet := absentSubnet(n)
		host, ip := fmt.Sprintf("absent%d", n), netip.AddrFrom4([4]byte{198, 18, 1, byte(n + 1)})
		if _, err := r.put(ctx, "subnets", ip.String(), topology.Node{Host: host, HostIP: ip, Subnet: subnet}); err != nil {
			return err
		}
		record := topology.NodePods{Host: host, HostIP: ip}
		for i := n * perNode; i < (n+1)*perNode; i++ {
			pod := topology.NodePod{Namespace: policiesNamespace, Name: fmt.Sprintf("peer%d", i), UID: fmt.Sprintf("peer%d", i)}
			if pod.Address, err = netip.ParseAddr(nth(subnet.Addr(), 2+i%perNode)); err != nil {
				return err
			}
			record.Pods = append(record.Pods, pod)
			err := c.api.Put(&corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name, UID: types.UID(pod.UID), Labels: map[string]string{"group": fmt.Sprint(i % policyGroups)}},
				Spec:       corev1.PodSpec{NodeName: host},
			})
			if err != nil {
				return err
			}
		}
		if _, err := r.put(ctx, "pods", ip.String(), record); err != nil {
			return err
		}
	}
	return nil
}

// policyStarts measures an agent that finds no flow: from its start until it has made as many
// as there were, but for two of each pod that are there for two minutes after it was selected.
func (c *cluster) policyStarts(ctx context.Context, flows int) error {
	flows -= 2 * policyPods
	var took []float64
	for range c.times(7, 2) {
		a := c.lab.Agent("n1")
		if err := a.Stop(); err != nil {
			return err
		}
		if _, err := c.lab.OVS("n1").OFCtl(ctx, "del-flows", "br0"); err != nil {
			return err
		}
		began := time.Now()
		if err := a.StartInCluster(ctx, c.bin); err != nil {
			return err
		}
		// Each look is a process that starts, and has ovs-vswitchd go through all flows: on two
		// processors, looking all the time takes as long as what is looked at.
		err := waitEvery(ctx, 100*time.Millisecond, "n1 has all its flows", func() (bool, error) {
			n, err := c.flowCount(ctx)
			return n >= flows, err
		})
		if err != nil {
			return err
		}
		took = append(took, time.Since(began).Seconds()*1000)
	}
	c.add(
		measured("policies_programmed_median", "agent started with no flow in the bridge, "+policySize+": until all flows are there, median", "ms", median, took, oursAtMost(2000)),
		measured("policies_programmed_max", "agent started with no flow in the bridge, "+policySize+": until all flows are there, longest", "ms", longest, took, nil),
	)
	return nil
}
