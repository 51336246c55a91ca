package hostnet

import (
	"os"
	"strings"
	"testing"
)

// TestReasonsAreTold: PIPELINE.md has each reason, beside those of the bridge.
func TestReasonsAreTold(t *testing.T) {
	page, err := os.ReadFile("../pipeline/PIPELINE.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range Reasons() {
		if !strings.Contains(string(page), "| `"+string(r)+"` | the node's firewall |") {
			t.Errorf("PIPELINE.md has no line for %q", r)
		}
	}
}
