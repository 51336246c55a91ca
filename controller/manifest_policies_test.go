package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/k8s-ovs/k8s-ovs/controller/internal/admission"
)

// The controller looks after the policies that the manifest has, and may read them.
func TestManifestPolicies(t *testing.T) {
	text, err := os.ReadFile("../manifests/k8s-ovs.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var shipped, readable []string
	for docs := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096); ; {
		var o struct {
			Kind     string
			Metadata struct{ Name string }
			Rules    []struct{ APIGroups, ResourceNames []string }
		}
		if err := docs.Decode(&o); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		switch {
		case o.Kind == "ValidatingAdmissionPolicy":
			shipped = append(shipped, o.Metadata.Name)
		case o.Kind == "ClusterRole" && o.Metadata.Name == "k8s-ovs-controller":
			for _, r := range o.Rules {
				if slices.Contains(r.APIGroups, "admissionregistration.k8s.io") {
					readable = r.ResourceNames
				}
			}
		}
	}
	slices.Sort(shipped)
	if diff := cmp.Diff(admission.Policies, shipped); diff != "" {
		t.Errorf("(-looked after +in the manifest)\n%s", diff)
	}
	if diff := cmp.Diff(admission.Policies, readable); diff != "" {
		t.Errorf("(-looked after +may be read)\n%s", diff)
	}
}
