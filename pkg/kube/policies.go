package kube

import (
	"cmp"
	"context"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k8s-ovs/k8s-ovs/pkg/policy"
)

// forbiddenRetry is how long after a watch was forbidden it is tried again: rights
// come with a new manifest, and a manifest without them is no fault to go on about.
const forbiddenRetry = 5 * time.Minute

// NetworkPolicy is a NetworkPolicy of the API server, as it was understood.
type NetworkPolicy struct {
	policy.Policy
	UID string
	// Created is since when there is the object.
	Created time.Time
	// Problem says what of it was not understood, and therefore allows nothing; empty for none.
	Problem string
}

// Ref is what an Event about the policy is about.
func (p NetworkPolicy) Ref() ObjectRef {
	return ObjectRef{APIVersion: networkingv1.SchemeGroupVersion.String(), Kind: "NetworkPolicy", Namespace: p.Namespace, Name: p.Name, UID: p.UID}
}

// WatchNetworkPolicies tells of all NetworkPolicies. Where the watch is forbidden nothing is
// told until it no longer is. It ends with ctx.
func (c *Client) WatchNetworkPolicies(ctx context.Context) *Changes[policy.Key, NetworkPolicy] {
	return watchChanges(toPolicy, func(t *table[*networkingv1.NetworkPolicy, policy.Key, NetworkPolicy]) {
		resource := c.api.Networking.NetworkPolicies("")
		if c.mayList(ctx, "NetworkPolicies are not enforced, and nobody is told", func(ctx context.Context) error {
			_, err := resource.List(ctx, metav1.ListOptions{Limit: 1})
			return err
		}) {
			follow(ctx, c, "networkpolicies", resource, &networkingv1.NetworkPolicy{}, metav1.ListOptions{}, t)
		}
	})
}

func toPolicy(n *networkingv1.NetworkPolicy) (policy.Key, NetworkPolicy) {
	parsed, err := policy.Parse(n)
	out := NetworkPolicy{Policy: parsed, UID: string(n.UID), Created: n.CreationTimestamp.UTC()}
	if err != nil {
		out.Problem = err.Error()
	}
	return parsed.Key, out
}

// WatchNamespaceLabels tells the labels of all Namespaces, by name. It ends with ctx.
func (c *Client) WatchNamespaceLabels(ctx context.Context) *Changes[string, map[string]string] {
	return watchChanges(func(n *corev1.Namespace) (string, map[string]string) { return n.Name, n.Labels },
		func(t *table[*corev1.Namespace, string, map[string]string]) {
			follow(ctx, c, "labels of namespaces", c.api.Core.Namespaces(), &corev1.Namespace{}, metav1.ListOptions{}, t)
		})
}

// NodeLabels are the labels of a node, and what its status says of it.
type NodeLabels struct {
	Labels map[string]string
	Node   Node
}

// WatchNodeLabels tells the labels and addresses of all nodes, by name. It ends with ctx.
func (c *Client) WatchNodeLabels(ctx context.Context) *Changes[string, NodeLabels] {
	return watchChanges(func(n *corev1.Node) (string, NodeLabels) {
		name, node := toNode(n)
		return name, NodeLabels{Labels: n.Labels, Node: node}
	}, func(t *table[*corev1.Node, string, NodeLabels]) {
		follow(ctx, c, "labels of nodes", c.api.Core.Nodes(), &corev1.Node{}, metav1.ListOptions{}, t)
	})
}

// PodLabels are the labels of a pod.
type PodLabels struct {
	UID string
	// Mirrors is as in [Pod]. Mirror is that its node made it, whatever that says of a static pod.
	Mirrors string
	Mirror  bool
	// Node is the name of the node that the pod is bound to; of no node before that.
	Node   string
	Labels map[string]string
}

// Is reports whether they are those of the pod that its node calls uid: see [Pod.Is].
func (p PodLabels) Is(uid string) bool { return Pod{UID: p.UID, Mirrors: p.Mirrors}.Is(uid) }

// WatchPodLabels tells the labels and nodes of all pods of the cluster. Nothing else of pods'
// specifications is asked for. Where pods may not be listed nothing is told until they may. It
// ends with ctx.
func (c *Client) WatchPodLabels(ctx context.Context) *Changes[PodKey, PodLabels] {
	return watchChanges(func(p *corev1.Pod) (PodKey, PodLabels) {
		mirrors, mirror := p.Annotations[corev1.MirrorPodAnnotationKey]
		return PodKey{p.Namespace, p.Name}, PodLabels{UID: string(p.UID), Mirrors: mirrors, Mirror: mirror, Node: p.Spec.NodeName, Labels: p.Labels}
	}, func(t *table[*corev1.Pod, PodKey, PodLabels]) {
		if c.mayList(ctx, "what NetworkPolicies select is not known", func(ctx context.Context) error {
			_, err := c.api.Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{Limit: 1})
			return err
		}) {
			follow(ctx, c, "labels of pods", c.api.Placed, &corev1.Pod{}, metav1.ListOptions{}, t)
		}
	})
}

// PodPorts are the named ports of the pod that has this UID.
type PodPorts struct {
	UID   string
	Ports []policy.NamedPort
}

// WatchPodPorts tells the named ports of all pods of the cluster. The API server has them in
// the pods' specifications, of which it sends the whole; nothing else of these is kept. So it
// is for those who have to know: only while a policy names a port. It ends with ctx.
func (c *Client) WatchPodPorts(ctx context.Context) *Changes[PodKey, PodPorts] {
	return watchChanges(toPorts, func(t *table[*corev1.Pod, PodKey, PodPorts]) {
		follow(ctx, c, "ports of pods", c.api.Core.Pods(metav1.NamespaceAll), &corev1.Pod{}, metav1.ListOptions{}, t)
	})
}

func toPorts(p *corev1.Pod) (PodKey, PodPorts) {
	out := PodPorts{UID: string(p.UID)}
	for _, c := range p.Spec.Containers {
		out.Ports = append(out.Ports, namedPorts(c)...)
	}
	for _, c := range p.Spec.InitContainers {
		// One that is always started again goes on beside the containers.
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			out.Ports = append(out.Ports, namedPorts(c)...)
		}
	}
	slices.SortFunc(out.Ports, func(a, b policy.NamedPort) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
	})
	out.Ports = slices.Compact(out.Ports)
	return PodKey{p.Namespace, p.Name}, out
}

func namedPorts(c corev1.Container) []policy.NamedPort {
	var out []policy.NamedPort
	for _, p := range c.Ports {
		protocol, known := protocols[p.Protocol]
		if p.Name != "" && known && p.ContainerPort > 0 && p.ContainerPort < 1<<16 {
			out = append(out, policy.NamedPort{Name: p.Name, Protocol: protocol, Port: uint16(p.ContainerPort)})
		}
	}
	return out
}
