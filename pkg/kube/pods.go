package kube

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/k8s-ovs/k8s-ovs/pkg/limits"
)

// PodMetadata is the pods of a namespace, of which the API server sends their metadata
// only. That is all that the network asks of pods: what their containers are given, such as
// passwords in the environment, never comes to this program.
type PodMetadata interface {
	List(ctx context.Context, o metav1.ListOptions) (*metav1.PartialObjectMetadataList, error)
	Watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error)
}

var podsResource = corev1.SchemeGroupVersion.WithResource("pods")

// PodKey names a pod.
type PodKey struct{ Namespace, Name string }

// Compare orders by namespace, then by name.
func (k PodKey) Compare(other PodKey) int {
	return cmp.Or(strings.Compare(k.Namespace, other.Namespace), strings.Compare(k.Name, other.Name))
}

// Pod is a pod, as far as its limits and policies are concerned.
type Pod struct {
	PodKey
	UID string
	// Mirrors is, for what the API server shows of a static pod, the UID that the
	// node knows that by; else empty.
	Mirrors string
	// Annotations are the pod's of [limits.Annotations]; nil for none.
	Annotations map[string]string
	// Labels are all that it has.
	Labels map[string]string
}

// Is reports whether the pod is the one that the node calls uid; empty where the
// node does not say.
func (p Pod) Is(uid string) bool { return uid == "" || uid == p.UID || uid == p.Mirrors }

// Ref is what an Event about the pod is about.
func (p Pod) Ref() ObjectRef {
	return ObjectRef{Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: p.UID}
}

// WatchPods tells of the pods of the node called nodeName: all of them when they
// are first known, and all anew after each batch of changes. The newest wins: a
// slow reader passes over what is out of date. What is told is not changed. The
// channel is closed when ctx ends.
func (c *Client) WatchPods(ctx context.Context, nodeName string) <-chan map[PodKey]Pod {
	p := newPicture()
	pods := newTable(p, toPod)
	return tellAll(ctx, p, pods, func() {
		follow(ctx, c, "pods", c.api.Pods(metav1.NamespaceAll), &metav1.PartialObjectMetadata{}, ofNode(nodeName), pods)
	})
}

// Pod reads one pod of the node called nodeName; ErrNotFound where it has none of that
// name. It asks by selectors, as the watch does: an authorizer that judges those can keep
// a node to its own pods.
func (c *Client) Pod(ctx context.Context, nodeName string, key PodKey) (Pod, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	match := ofNode(nodeName)
	match.FieldSelector += "," + named(key.Name).FieldSelector
	list, err := c.api.Pods(key.Namespace).List(ctx, match)
	if err != nil {
		return Pod{}, fmt.Errorf("read pod %s/%s: %w", key.Namespace, key.Name, err)
	}
	for i := range list.Items {
		if found, pod := toPod(&list.Items[i]); found == key {
			return pod, nil
		}
	}
	return Pod{}, fmt.Errorf("read pod %s/%s: %w on node %s", key.Namespace, key.Name, ErrNotFound, nodeName)
}

// ofNode selects the pods of the node called name.
func ofNode(name string) metav1.ListOptions {
	return metav1.ListOptions{FieldSelector: "spec.nodeName=" + name}
}

func toPod(p *metav1.PartialObjectMetadata) (PodKey, Pod) {
	key := PodKey{Namespace: p.Namespace, Name: p.Name}
	out := Pod{PodKey: key, UID: string(p.UID), Mirrors: p.Annotations[corev1.MirrorPodAnnotationKey], Labels: p.Labels}
	for _, name := range limits.Annotations() {
		if value, ok := p.Annotations[name]; ok {
			if out.Annotations == nil {
				out.Annotations = map[string]string{}
			}
			out.Annotations[name] = value
		}
	}
	return key, out
}
