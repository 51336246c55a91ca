package kube_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
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
	web := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "web", UID: "u1", Labels: map[string]string{"app": "web"},
		Annotations: map[string]string{"other": "x", limits.EgressRateAnnotation: "10M", limits.EgressBurstAnnotation: ""}}}
	client, cs := kubetest.New(t, web, static)
	ctx, cancel := context.WithCancel(t.Context())
	pods := client.WatchPods(ctx, "n1")
	key := kube.PodKey{Namespace: "a", Name: "web"}
	want := map[kube.PodKey]kube.Pod{
		key: {PodKey: key, UID: "u1", Annotations: map[string]string{limits.EgressRateAnnotation: "10M", limits.EgressBurstAnnotation: ""}, Labels: map[string]string{"app": "web"}},
		{Namespace: "kube-system", Name: "etcd-n1"}: {PodKey: kube.PodKey{Namespace: "kube-system", Name: "etcd-n1"}, UID: "u2", Mirrors: "hash"},
	}
	if diff := cmp.Diff(want, next(t, pods)); diff != "" {
		t.Fatalf("pods (-want +got):\n%s", diff)
	}
	if p, err := client.Pod(ctx, "n1", key); err != nil || !cmp.Equal(want[key], p) {
		t.Errorf("read: %+v, %v", p, err)
	}
	if _, err := client.Pod(ctx, "n1", kube.PodKey{Namespace: "a", Name: "none"}); !errors.Is(err, kube.ErrNotFound) {
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

// TestPodMetadataOnly: what containers are given stays at the API server, and no request for
// pods of a node is for more than those.
func TestPodMetadataOnly(t *testing.T) {
	const secret = "hunter2"
	s := kubetest.NewServer()
	must(t, s.Put(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "web", UID: "u"},
		Spec:       corev1.PodSpec{NodeName: "n1", Containers: []corev1.Container{{Name: "c", Env: []corev1.EnvVar{{Name: "PASSWORD", Value: secret}}}}},
	}))
	wire := &recorder{to: s}
	front := httptest.NewServer(wire)
	defer front.Close()
	client, err := kube.Open(kube.Config{Kubeconfig: kubeconfig(t, front.URL)})
	must(t, err)
	defer client.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()

	web := kube.PodKey{Namespace: "a", Name: "web"}
	if told := next(t, client.WatchPods(ctx, "n1")); told[web].UID != "u" {
		t.Errorf("the watch shows %+v", told)
	}
	if pod, err := client.Pod(ctx, "n1", web); err != nil || pod.UID != "u" {
		t.Errorf("read %+v, %v", pod, err)
	}
	if has, err := client.HasPods(ctx, "a"); err != nil || !has {
		t.Errorf("has pods: %v, %v", has, err)
	}
	ofNode, forNode := 0, len(wire.seen())-1
	if labels := taken(t, client.WatchPodLabels(ctx)); labels[web] == nil || labels[web].Node != "n1" {
		t.Errorf("pods and nodes: %+v", labels[web])
	}
	answers := wire.seen()
	for _, a := range answers {
		if strings.Contains(a.body, secret) {
			t.Errorf("%s with Accept %q was answered with what a container is given", a.url, a.accept)
		}
		if strings.Contains(a.url.Query().Get("fieldSelector"), "spec.nodeName=n1") {
			ofNode++
		}
	}
	if forNode < 2 || ofNode != forNode {
		t.Errorf("%d requests name the node, want %d: %+v", ofNode, forNode, answers)
	}
}

// recorder keeps what is asked and answered.
type recorder struct {
	to      http.Handler
	mu      sync.Mutex
	answers []*answer
}

type answer struct {
	url    *url.URL
	accept string
	body   string
}

func (r *recorder) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	a := &answer{url: req.URL, accept: req.Header.Get("Accept")}
	r.mu.Lock()
	r.answers = append(r.answers, a)
	r.mu.Unlock()
	r.to.ServeHTTP(&recorded{w, r, a}, req)
}

func (r *recorder) seen() []answer {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []answer
	for _, a := range r.answers {
		out = append(out, *a)
	}
	return out
}

// recorded is an answer that is being written.
type recorded struct {
	http.ResponseWriter
	by *recorder
	a  *answer
}

func (w *recorded) Write(p []byte) (int, error) {
	w.by.mu.Lock()
	w.a.body += string(p)
	w.by.mu.Unlock()
	return w.ResponseWriter.Write(p)
}

// Unwrap is for http.ResponseController.
func (w *recorded) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// kubeconfig is a file that leads to an API server.
func kubeconfig(t *testing.T, server string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "kubeconfig")
	conf := "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: '" + server + "'}}]\ncontexts: [{name: c, context: {cluster: c}}]\ncurrent-context: c\n"
	must(t, os.WriteFile(file, []byte(conf), 0o600))
	return file
}
