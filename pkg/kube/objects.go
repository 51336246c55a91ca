package kube

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2"
)

// HasPods reports whether a pod of the namespace is left.
func (c *Client) HasPods(ctx context.Context, namespace string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	pods, err := c.api.Pods(namespace).List(ctx, metav1.ListOptions{Limit: 1})
	if err != nil {
		return false, fmt.Errorf("list pods of namespace %s: %w", namespace, err)
	}
	return len(pods.Items) > 0, nil
}

// Annotate sets an annotation of the namespace that has this uid; a namesake is
// left alone, which is an error.
func (c *Client) Annotate(ctx context.Context, namespace, uid, key, value string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": uid, "annotations": map[string]string{key: value}}})
	if err != nil {
		return fmt.Errorf("annotate namespace %s: encode: %w", namespace, err)
	}
	if _, err := c.api.Core.Namespaces().Patch(ctx, namespace, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("annotate namespace %s with %s: %w", namespace, key, classify(err))
	}
	return nil
}

// DaemonSetWants reports whether the DaemonSet is to run on the node: false when
// it is gone, being deleted, or its nodeSelector does not match the node. It is taken
// for gone where the caller may not ask: an uninstallation takes the service account and
// its rights while the pods still run.
func (c *Client) DaemonSetWants(ctx context.Context, namespace, name, node string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	ds, err := c.api.Apps.DaemonSets(namespace).Get(ctx, name, metav1.GetOptions{})
	switch err = classify(err); {
	case errors.Is(err, ErrNotFound), apierrors.IsUnauthorized(err), apierrors.IsForbidden(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("read DaemonSet %s/%s: %w", namespace, name, err)
	case ds.DeletionTimestamp != nil:
		return false, nil
	}
	n, err := c.api.Core.Nodes().Get(ctx, node, metav1.GetOptions{})
	switch err = classify(err); {
	case errors.Is(err, ErrNotFound):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("read Node %s: %w", node, err)
	}
	return labels.SelectorFromSet(ds.Spec.Template.Spec.NodeSelector).Matches(labels.Set(n.Labels)), nil
}

// ObjectRef names the object that an Event is about. An empty APIVersion is v1.
type ObjectRef struct{ APIVersion, Kind, Namespace, Name, UID string }

// EventReason is the reason of an Event, or of a condition, as docs/metrics.md explains it: a test finds all by this type.
type EventReason string

// Event sends an Event. It does not wait; equal ones are sent as one with a count,
// and floods of one reason are cut off.
func (c *Client) Event(ref ObjectRef, warning bool, reason EventReason, message string) {
	kind := corev1.EventTypeNormal
	if warning {
		kind = corev1.EventTypeWarning
	}
	object := &corev1.ObjectReference{
		Kind: ref.Kind, APIVersion: cmp.Or(ref.APIVersion, "v1"), Namespace: ref.Namespace, Name: ref.Name, UID: types.UID(ref.UID),
	}
	c.eventRecorder().Event(object, kind, string(reason), message)
}

// floodOf is what makes Events one flood: of the same object, and, unlike what client-go has, for
// the same reason. A node that is ready and not ready all the time does not hide why.
func floodOf(e *corev1.Event) string {
	o := e.InvolvedObject
	return strings.Join([]string{o.APIVersion, o.Kind, o.Namespace, o.Name, string(o.UID), e.Reason}, "/")
}

func (c *Client) eventRecorder() record.EventRecorder {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.recorder == nil {
		ctx := klog.NewContext(context.Background(), logr.FromSlogHandler(c.log.Handler()))
		c.events = record.NewBroadcaster(record.WithContext(ctx), record.WithCorrelatorOptions(record.CorrelatorOptions{SpamKeyFunc: floodOf}))
		c.events.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: c.api.Core.Events("")})
		c.recorder = c.events.NewRecorder(runtime.NewScheme(), corev1.EventSource{Component: "k8s-ovs"})
	}
	return c.recorder
}
