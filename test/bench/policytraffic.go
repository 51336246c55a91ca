package main

import (
	"context"
	"fmt"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
)

// policyTraffic compares pods that policies select, at both ends, with the same pods on two
// flows; and pods that none selects while others are selected, with the same without policies.
func policyTraffic(ctx context.Context, b *bench) error {
	return b.inPoliced(ctx, trafficNamespace, func(c *cluster) error {
		var unselected [2]path
		for i, place := range []struct{ name, title, to string }{
			{"same_node", "same node", "n1"}, {"across_nodes", "two nodes over VXLAN", "n2"},
		} {
			pairs, err := c.podPairs(ctx, place.to)
			if err != nil {
				return err
			}
			unselected[i] = pairs[0].path()
			if err := c.selectPods(ctx, metav1.LabelSelector{}); err != nil {
				return err
			}
			for _, p := range pairs {
				if err := waitReached(ctx, p.path()); err != nil {
					return err
				}
			}
			if err := c.compareBare(ctx, pairs, comparison{
				name: "policy_" + place.name, title: "pods that policies select, " + place.title, bar: ratioAtLeast(0.9),
			}); err != nil {
				return err
			}
			if err := c.selectPods(ctx, nobody); err != nil {
				return err
			}
		}
		return c.unselected(ctx, unselected)
	})
}

// waitReached waits until a round trip is made: what pods may reach comes after what selects them.
func waitReached(ctx context.Context, p path) error {
	stop, err := serveEcho(p.to)
	if err != nil {
		return err
	}
	defer stop()
	k, err := newClient(p)
	if err != nil {
		return err
	}
	defer k.close()
	return wait(ctx, fmt.Sprintf("%s reaches %s", p.from.ip, p.to.ip), func() (bool, error) { return k.ask() == nil, nil })
}

// unselected compares paths while other pods are selected with the same while none is.
func (c *cluster) unselected(ctx context.Context, paths [2]path) error {
	for _, node := range []string{"n1", "n2"} {
		if _, err := c.lab.AddPod(ctx, node, trafficNamespace, "selected-on-"+node, netlab.PodOptions{Labels: map[string]string{"selected": "yes"}}); err != nil {
			return err
		}
	}
	for i, place := range []struct{ name, title string }{{"same_node", "same node"}, {"across_nodes", "two nodes over VXLAN"}} {
		list := []path{paths[i]}
		if err := c.compare(ctx, comparison{
			name: "policy_others_" + place.name, title: "pods that no policy selects while others are selected, " + place.title + " (reference: no policies)",
			paths: [sides][]path{list, list},
			prepare: func(ctx context.Context, side int) error {
				if side == reference {
					return c.selectPods(ctx, nobody)
				}
				return c.selectPods(ctx, metav1.LabelSelector{MatchLabels: map[string]string{"selected": "yes"}})
			},
		}); err != nil {
			return err
		}
	}
	return nil
}

// nobody has no such label.
var nobody = metav1.LabelSelector{MatchLabels: map[string]string{"selected": "nobody"}}

// selectPods has one policy isolate these pods both ways, but for traffic in their namespace,
// and returns when the nodes have it.
func (c *cluster) selectPods(ctx context.Context, pods metav1.LabelSelector) error {
	peers := []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{}}}
	err := c.api.Put(&networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: trafficNamespace, Name: "traffic", UID: types.UID("policy-traffic")},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: pods,
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress},
			Ingress:     []networkingv1.NetworkPolicyIngressRule{{From: peers}},
			Egress:      []networkingv1.NetworkPolicyEgressRule{{To: peers}},
		},
	})
	if err != nil {
		return err
	}
	selector, err := metav1.LabelSelectorAsSelector(&pods)
	if err != nil {
		return err
	}
	all, err := c.lab.Pods()
	if err != nil {
		return err
	}
	want := map[string]float64{"n1": 0, "n2": 0}
	for _, p := range all {
		if p.Namespace == trafficNamespace && selector.Matches(labels.Set(p.Options.Labels)) {
			want[p.Node]++
		}
	}
	for node, n := range want {
		err := wait(ctx, fmt.Sprintf("%s has %v pods that policies select", node, n), func() (bool, error) {
			have, err := c.gauge(ctx, node, "k8s_ovs_policy_selected_pods")
			return have == n, err
		})
		if err != nil {
			return err
		}
	}
	return nil
}
