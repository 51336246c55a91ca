package main

import (
	"context"
	"fmt"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
)

// trafficNamespace has the pods that only talk.
const trafficNamespace = "traffic"

// podPath attaches a pod on n1 and one on node to, in one namespace.
func (b *bench) podPath(ctx context.Context, to string) (p path, mtu int, err error) {
	for i, node := range []string{"n1", to} {
		b.pods++
		pod, err := b.lab.AddPod(ctx, node, trafficNamespace, fmt.Sprintf("p%d", b.pods), netlab.PodOptions{})
		if err != nil {
			return path{}, 0, err
		}
		*[]*host{&p.from, &p.to}[i] = host{pod.Netns, pod.IP}
		mtu = pod.MTU
	}
	return p, mtu, nil
}

// trafficPairs is how many pairs each side has. The userspace datapath polls its
// ports in an order that follows from their numbers, and a pair's place in it is
// worth up to 30 % of its round trips, either way: luck that has to even out.
const trafficPairs = 6

// pipelineCost compares pods with hosts on bare two-flow bridges of the same
// switches.
func pipelineCost(ctx context.Context, b *bench) error {
	for _, place := range []struct{ name, title, to string }{
		{"same_node", "pod to pod, same node", "n1"},
		{"across_nodes", "pod to pod, two nodes over VXLAN", "n2"},
	} {
		var paths [sides][]path
		for range trafficPairs {
			our, mtu, err := b.podPath(ctx, place.to)
			if err != nil {
				return err
			}
			bare, err := b.barePair(ctx, place.to, mtu)
			if err != nil {
				return fmt.Errorf("bare bridge: %w", err)
			}
			paths[ours], paths[reference] = append(paths[ours], our), append(paths[reference], bare)
		}
		if err := b.compare(ctx, comparison{name: place.name, title: place.title + " (reference: two-flow bridge)", paths: paths}); err != nil {
			return err
		}
	}
	return b.removeBare(ctx)
}
