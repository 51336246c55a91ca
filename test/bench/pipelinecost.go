package main

import (
	"context"
	"fmt"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
)

// trafficNamespace has the pods that only talk.
const trafficNamespace = "traffic"

// podPair is two pods that reach each other.
type podPair struct{ from, to netlab.Pod }

func (p podPair) path() path {
	return path{from: host{p.from.Netns, p.from.IP}, to: host{p.to.Netns, p.to.IP}}
}

// trafficPairs is how many pairs of pods take turns. The userspace datapath polls its ports in an
// order that follows from their numbers, and a pair's place in it is worth up to 30 % of its round
// trips. Both sides of most comparisons are the same pairs; where they are not, as with services, the rows have no bar.
const trafficPairs = 4

// podPair attaches a pod on n1 and one on node to, in one namespace.
func (b *bench) podPair(ctx context.Context, to string) (podPair, error) {
	var pods [2]netlab.Pod
	for i, node := range []string{"n1", to} {
		b.pods++
		var err error
		if pods[i], err = b.lab.AddPod(ctx, node, trafficNamespace, fmt.Sprintf("p%d", b.pods), netlab.PodOptions{}); err != nil {
			return podPair{}, err
		}
	}
	return podPair{pods[0], pods[1]}, nil
}

// podPairs attaches as many pairs as take turns.
func (b *bench) podPairs(ctx context.Context, to string) ([]podPair, error) {
	pairs := make([]podPair, trafficPairs)
	for i := range pairs {
		var err error
		if pairs[i], err = b.podPair(ctx, to); err != nil {
			return nil, err
		}
	}
	return pairs, nil
}

// pipelineCost compares the pipeline with two flows of the same ports.
func pipelineCost(ctx context.Context, b *bench) error {
	for _, place := range []struct{ name, title, to string }{
		{"same_node", "pod to pod, same node", "n1"},
		{"across_nodes", "pod to pod, two nodes over VXLAN", "n2"},
	} {
		pairs, err := b.podPairs(ctx, place.to)
		if err != nil {
			return err
		}
		if err := b.compareBare(ctx, pairs, comparison{name: place.name, title: place.title}); err != nil {
			return err
		}
	}
	return nil
}

// compareBare compares pairs, as c says, with the same pairs on two flows.
func (b *bench) compareBare(ctx context.Context, pairs []podPair, c comparison) error {
	c.title += " (reference: two flows in place of the pipeline)"
	return b.withoutAgents(ctx, func() error {
		for _, pair := range pairs {
			bare, err := b.barePath(ctx, pair)
			if err != nil {
				return err
			}
			c.paths[ours], c.paths[reference] = append(c.paths[ours], pair.path()), append(c.paths[reference], bare)
		}
		return b.compare(ctx, c)
	})
}
