package kube_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/policy"
)

// TestClusterPoliciesUnknown: where the API server does not know ClusterNetworkPolicies there are
// none, but not before it has said so for a while: one of several servers may be wrong.
func TestClusterPoliciesUnknown(t *testing.T) {
	// client-go pauses after errors by when the last one was, which is not on this test's clock.
	handlers := utilruntime.ErrorHandlers
	utilruntime.ErrorHandlers = nil
	t.Cleanup(func() { utilruntime.ErrorHandlers = handlers })
	synctest.Test(t, func(t *testing.T) {
		resource := schema.GroupVersionResource{Group: "policy.networking.k8s.io", Version: "v1beta1", Resource: "clusternetworkpolicies"}
		object := &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "policy.networking.k8s.io/v1beta1", "kind": "ClusterNetworkPolicy", "metadata": map[string]any{"name": "deny"},
			"spec": map[string]any{"tier": "Admin", "priority": int64(1), "subject": map[string]any{"namespaces": map[string]any{}}},
		}}
		policies := fake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{resource: "ClusterNetworkPolicyList"}, object)
		var mu sync.Mutex // guards what follows
		known := false
		var watching *watch.FakeWatcher
		policies.PrependReactor("list", "*", func(clienttesting.Action) (bool, runtime.Object, error) {
			mu.Lock()
			defer mu.Unlock()
			return !known, nil, apierrors.NewNotFound(resource.GroupResource(), "")
		})
		policies.PrependWatchReactor("*", func(clienttesting.Action) (bool, watch.Interface, error) {
			mu.Lock()
			defer mu.Unlock()
			if !known {
				return true, nil, apierrors.NewNotFound(resource.GroupResource(), "")
			}
			watching = watch.NewFake()
			return true, watching, nil
		})
		// becomes says what the API server knows from now on, and ends the watch there is.
		becomes := func(now bool) {
			mu.Lock()
			defer mu.Unlock()
			if known = now; watching != nil && !now {
				watching.Stop()
			}
		}
		c := kube.New(kube.Interfaces{Clientset: policies, ClusterPolicies: func(string) dynamic.ResourceInterface { return policies.Resource(resource) }}, nil)
		ctx, cancel := context.WithCancel(t.Context())
		w := c.WatchClusterNetworkPolicies(ctx)
		have, told := 0, false
		expect := func(after time.Duration, what string, wantTold bool, want int) {
			t.Helper()
			time.Sleep(after)
			synctest.Wait()
			changed, ok := w.Take()
			for _, p := range changed {
				if have--; p != nil {
					have += 2
				}
			}
			if told = told || ok; told != wantTold || have != want {
				t.Errorf("%s: %d policies, told %v; want %d, %v", what, have, told, want, wantTold)
			}
		}
		expect(20*time.Second, "not known for a while", false, 0)
		expect(20*time.Second, "not known for long", true, 0)
		becomes(true)
		expect(10*time.Second, "known", true, 1)
		// Of what a watch passed over all is known when it ends.
		must(t, policies.Resource(resource).Delete(ctx, "deny", metav1.DeleteOptions{}))
		expect(10*time.Second, "deleted unseen", true, 1)
		mu.Lock()
		watching.Stop()
		mu.Unlock()
		expect(10*time.Second, "read anew", true, 0)
		_, err := policies.Resource(resource).Create(ctx, object.DeepCopy(), metav1.CreateOptions{})
		must(t, err)
		mu.Lock()
		watching.Stop()
		mu.Unlock()
		expect(10*time.Second, "made anew", true, 1)
		becomes(false)
		expect(20*time.Second, "not known for a moment", true, 1)
		becomes(true)
		expect(20*time.Second, "known again", true, 1)
		becomes(false)
		expect(time.Minute, "gone", true, 0)
		cancel()
		for range w.News() {
		}
	})
}

// TestClusterPolicyOfAnotherForm: a ClusterNetworkPolicy that cannot be read closes.
func TestClusterPolicyOfAnotherForm(t *testing.T) {
	resource := schema.GroupVersionResource{Group: "policy.networking.k8s.io", Version: "v1beta1", Resource: "clusternetworkpolicies"}
	policies := fake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{resource: "ClusterNetworkPolicyList"}, &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "policy.networking.k8s.io/v1beta1", "kind": "ClusterNetworkPolicy",
		"metadata": map[string]any{"name": "odd", "uid": "u"}, "spec": map[string]any{"tier": "Admin", "priority": "high"},
	}})
	c := kube.New(kube.Interfaces{Clientset: policies, ClusterPolicies: func(version string) dynamic.ResourceInterface {
		resource.Version = version
		return policies.Resource(resource)
	}}, nil)
	w := c.WatchClusterNetworkPolicies(t.Context())
	select {
	case <-w.News():
	case <-time.After(20 * time.Second):
		t.Fatal("nothing is told")
	}
	told, _ := w.Take()
	odd := told["odd"]
	if odd == nil || odd.UID != "u" || !strings.Contains(odd.Problem, "ClusterNetworkPolicy odd is not of a form that k8s-ovs knows") {
		t.Fatalf("told %+v", odd)
	}
	if diff := cmp.Diff(policy.ClosedCluster("odd"), odd.ClusterPolicy); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
