package kube_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic/fake"

	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
)

// TestMakeDefinition: it is made once, and what is there is not touched.
func TestMakeDefinition(t *testing.T) {
	resource := schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	definitions := fake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{resource: "CustomResourceDefinitionList"}).Resource(resource)
	c := kube.New(kube.Interfaces{Definitions: definitions}, nil)
	const text = "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: things.example.com, annotations: {version: "
	for version, want := range []bool{true, false} {
		made, err := c.MakeDefinition(t.Context(), []byte(text+string(rune('a'+version))+"}}"))
		if err != nil || made != want {
			t.Errorf("version %d: made %v (error %v), want %v", version, made, err, want)
		}
	}
	o, err := definitions.Get(t.Context(), "things.example.com", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"version": "a"}, o.GetAnnotations()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if _, err := c.MakeDefinition(t.Context(), []byte("{")); err == nil {
		t.Error("no error for what is no YAML")
	}
}
