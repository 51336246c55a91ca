package service

import (
	"os"
	"strings"
	"testing"
)

// TestReasonsAreTold: operators find each reason on the page about Kubernetes.
func TestReasonsAreTold(t *testing.T) {
	page, err := os.ReadFile("../../docs/kubernetes.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range Reasons {
		if !strings.Contains(string(page), "`"+string(r)+"`") {
			t.Errorf("docs/kubernetes.md does not say what %q is", r)
		}
	}
}
