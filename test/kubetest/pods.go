package kubetest

import (
	"context"
	"maps"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
)

// PutPod makes a pod that runs on a node what is given.
func (s *Server) PutPod(namespace, name, uid, node string, annotations map[string]string) error {
	p := pod(namespace, name, node)
	p.UID, p.Annotations = types.UID(uid), maps.Clone(annotations)
	return s.Put(p)
}

// DeletePod takes the pod away.
func (s *Server) DeletePod(namespace, name, node string) error {
	return s.Delete(pod(namespace, name, node))
}

func pod(namespace, name, node string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: corev1.PodSpec{NodeName: node}}
}

// podMetadata shows the pods of a fake clientset as the API server shows those of whom it
// is asked for metadata only.
type podMetadata struct{ pods typedcorev1.PodInterface }

func (p podMetadata) List(ctx context.Context, o metav1.ListOptions) (*metav1.PartialObjectMetadataList, error) {
	whole, err := p.pods.List(ctx, o)
	if err != nil {
		return nil, err
	}
	list, err := (&writer{partial: true}).shown(whole)
	if err != nil {
		return nil, err
	}
	return list.(*metav1.PartialObjectMetadataList), nil
}

func (p podMetadata) Watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	whole, err := p.pods.Watch(ctx, o)
	if err != nil {
		return nil, err
	}
	return watch.Filter(whole, func(e watch.Event) (watch.Event, bool) {
		if m, err := metadataOf(e.Object); err == nil {
			e.Object = runtime.Object(m)
		}
		return e, true
	}), nil
}
