package kubetest

import (
	"context"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
)

// podMetadata shows the pods of a fake clientset as the API server shows those of whom it
// is asked for metadata only.
type podMetadata struct{ pods typedcorev1.PodInterface }

func (p podMetadata) List(ctx context.Context, o metav1.ListOptions) (*metav1.PartialObjectMetadataList, error) {
	whole, err := p.pods.List(ctx, o)
	if err != nil {
		return nil, err
	}
	list, err := (&writer{as: partial}).shown(whole)
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
