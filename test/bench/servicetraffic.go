package main

import (
	"context"
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// trafficServices are the addresses of services with one pod each.
var trafficServices = netip.MustParseAddr("10.98.0.1")

// servicePairs is how many pairs of pods each side has.
const servicePairs = 4

// serviceTraffic compares services with pods' own addresses, and the pipeline, which
// tracks no plain traffic, with one that does.
func serviceTraffic(ctx context.Context, b *bench) error {
	return b.inCluster(ctx, func(c *cluster) error {
		var plain [2]path
		for i, place := range []struct{ name, title, to string }{
			{"same_node", "same node", "n1"}, {"across_nodes", "two nodes over VXLAN", "n2"},
		} {
			paths, err := c.servicePaths(ctx, place.to)
			if err != nil {
				return err
			}
			plain[i] = paths[reference][0]
			if err := b.compare(ctx, comparison{
				name: "service_" + place.name, title: "pod to a service of one pod, " + place.title + " (reference: to a pod's own address)", paths: paths, free: true,
			}); err != nil {
				return err
			}
		}
		if err := c.untracked(ctx, plain); err != nil {
			return err
		}
		return c.removeTraffic(ctx)
	})
}

// servicePaths are pairs of pods on n1 and on node to: on our side the second is behind
// a service, on the reference's it is not, so that its answers are not tracked.
func (c *cluster) servicePaths(ctx context.Context, to string) (paths [sides][]path, err error) {
	// Agents in Kubernetes wait for the record.
	if err := c.namespaces(ctx, 1, func(int) string { return trafficNamespace }); err != nil {
		return paths, err
	}
	for range servicePairs {
		for side := range paths {
			pair, err := c.podPair(ctx, to)
			if err != nil {
				return paths, err
			}
			p := pair.path()
			if side == ours {
				if p.via, err = c.trafficService(p.to.ip); err != nil {
					return paths, err
				}
			}
			paths[side] = append(paths[side], p)
		}
	}
	return paths, c.waitServed(ctx, "n1", c.made)
}

// trafficService makes a service of one pod.
func (c *cluster) trafficService(pod netip.Addr) (netip.Addr, error) {
	vip := nth(trafficServices, c.made)
	name := fmt.Sprintf("traffic%d", c.made)
	c.made++
	err := c.api.Put(&corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: trafficNamespace, Name: name},
		Spec: corev1.ServiceSpec{ClusterIP: vip, Ports: []corev1.ServicePort{
			{Name: "echo", Protocol: corev1.ProtocolUDP, Port: echoPort}, {Name: "stream", Protocol: corev1.ProtocolTCP, Port: streamPort},
		}},
	})
	if err == nil {
		err = c.api.Put(slice(trafficNamespace, name, []string{pod.String()},
			endpointPort("echo", corev1.ProtocolUDP, echoPort), endpointPort("stream", corev1.ProtocolTCP, streamPort)))
	}
	if err != nil {
		return netip.Addr{}, err
	}
	return netip.ParseAddr(vip)
}

// untracked compares plain traffic with the same when everything that comes to a
// pod passes connection tracking, as it would if answers of services were not known by
// their endpoints.
func (c *cluster) untracked(ctx context.Context, plain [2]path) error {
	track := func(ctx context.Context, side int) error {
		for _, n := range []string{"n1", "n2"} {
			if side == ours {
				if err := c.removeAdded(ctx, n); err != nil {
					return err
				}
				continue
			}
			const flow = "cookie=%#x,table=%d,priority=150,ip,actions=ct(table=40,zone=65520,nat)"
			if err := c.addFlow(ctx, n, flow, addedCookie, pipelineReply); err != nil {
				return err
			}
		}
		return nil
	}
	return c.withoutAgents(ctx, func() error {
		for i, place := range []struct{ name, title string }{{"same_node", "same node"}, {"across_nodes", "two nodes over VXLAN"}} {
			paths := []path{plain[i]}
			if err := c.compare(ctx, comparison{
				name: "untracked_" + place.name, title: "pod to pod, " + place.title + " (reference: all of it through connection tracking)",
				paths: [sides][]path{paths, paths}, prepare: track, free: true,
			}); err != nil {
				return err
			}
		}
		return nil
	})
}

// removeTraffic removes all pods of traffic: the userspace datapath polls their ports.
func (b *bench) removeTraffic(ctx context.Context) error {
	pods, err := b.lab.Pods()
	if err != nil {
		return err
	}
	for _, p := range pods {
		if p.Namespace != trafficNamespace {
			continue
		}
		if err := b.lab.DelPod(ctx, p); err != nil {
			return err
		}
	}
	return nil
}
