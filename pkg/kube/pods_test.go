package kube_test

import (
	"context"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/limits"
	"github.com/k8s-ovs/k8s-ovs/test/kubetest"
)

func TestWatchPods(t *testing.T) {
	static := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "etcd-n1", UID: "u2",
		Annotations: map[string]string{corev1.MirrorPodAnnotationKey: "hash"}}}
	web := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "web", UID: "u1",
		Annotations: map[string]string{"other": "x", limits.EgressRateAnnotation: "10M", limits.EgressBurstAnnotation: ""}}}
	client, cs := kubetest.New(t, web, static)
	ctx, cancel := context.WithCancel(t.Context())
	pods := client.WatchPods(ctx, "n1")
	key := kube.PodKey{Namespace: "a", Name: "web"}
	want := map[kube.PodKey]kube.Pod{
		key: {PodKey: key, UID: "u1", Annotations: map[string]string{limits.EgressRateAnnotation: "10M", limits.EgressBurstAnnotation: ""}},
		{Namespace: "kube-system", Name: "etcd-n1"}: {PodKey: kube.PodKey{Namespace: "kube-system", Name: "etcd-n1"}, UID: "u2", Mirrors: "hash"},
	}
	if diff := cmp.Diff(want, next(t, pods)); diff != "" {
		t.Fatalf("pods (-want +got):\n%s", diff)
	}
	if p, err := client.Pod(ctx, key); err != nil || !cmp.Equal(want[key], p) {
		t.Errorf("read: %+v, %v", p, err)
	}
	if _, err := client.Pod(ctx, kube.PodKey{Namespace: "a", Name: "none"}); !errors.Is(err, kube.ErrNotFound) {
		t.Errorf("error %v, want ErrNotFound", err)
	}

	watching(t, cs, 1)
	changed := web.DeepCopy()
	changed.Annotations = map[string]string{"other": "y"}
	_, err := cs.CoreV1().Pods("a").Update(ctx, changed, metav1.UpdateOptions{})
	must(t, err)
	for next(t, pods)[key].Annotations != nil { // the same may be told twice
	}
	must(t, cs.CoreV1().Pods("a").Delete(ctx, "web", metav1.DeleteOptions{}))
	for len(next(t, pods)) != 1 {
	}
	cancel()
	for range pods {
	}
}

func TestPodIs(t *testing.T) {
	p := kube.Pod{UID: "u", Mirrors: "hash"}
	for uid, want := range map[string]bool{"": true, "u": true, "hash": true, "other": false} {
		if p.Is(uid) != want {
			t.Errorf("%q: %v", uid, !want)
		}
	}
	if (kube.Pod{UID: "u"}).Is("other") {
		t.Error("a pod is another one")
	}
}
