package kube_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/fake"

	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/policy"
)

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
