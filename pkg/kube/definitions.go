package kube

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"
)

// definitionsResource is CustomResourceDefinitions.
var definitionsResource = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

// MakeDefinition makes the CustomResourceDefinition that text is, in YAML, and reports
// whether it did. One of that name that is there already stays as it is, of whatever version.
func (c *Client) MakeDefinition(ctx context.Context, text []byte) (made bool, err error) {
	var o unstructured.Unstructured
	if err := yaml.Unmarshal(text, &o.Object); err != nil {
		return false, fmt.Errorf("a CustomResourceDefinition is not YAML: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	switch _, err := c.api.Definitions.Create(ctx, &o, metav1.CreateOptions{}); {
	case apierrors.IsAlreadyExists(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("create CustomResourceDefinition %s: %w", o.GetName(), err)
	}
	return true, nil
}
