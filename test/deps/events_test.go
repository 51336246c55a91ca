package deps

import (
	"go/constant"
	"go/types"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestEventsPage: the operators' page has each reason of an Event or a condition that the product gives, and no other.
func TestEventsPage(t *testing.T) {
	const page = "docs/metrics.md"
	text, err := os.ReadFile(filepath.Join(root, page))
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(text), "\n## Events\n")
	if !found {
		t.Fatalf("%s has no section Events", page)
	}
	said, given := map[string]bool{}, map[string]string{}
	for line := range strings.SplitSeq(section, "\n") {
		if cells := strings.Split(line, " | "); len(cells) >= 3 {
			for _, m := range regexp.MustCompile("`(\\w+)`").FindAllStringSubmatch(cells[0], -1) {
				said[m[1]] = true
			}
		}
	}
	// A constant has the type that it is used as, whether or not it was declared with one.
	check(t, func(p checked) {
		for at, v := range p.Types {
			named, ok := v.Type.(*types.Named)
			if ok && v.Value != nil && named.Obj().Name() == "EventReason" && named.Obj().Pkg().Path() == module+"pkg/kube" {
				if reason := constant.StringVal(v.Value); reason != "" {
					given[reason] = p.files.Position(at.Pos()).String()
				}
			}
		}
	})
	for _, reason := range slices.Sorted(maps.Keys(given)) {
		if !said[reason] {
			t.Errorf("%s gives reason %s, which %s does not explain", given[reason], reason, page)
		}
	}
	for _, reason := range slices.Sorted(maps.Keys(said)) {
		if given[reason] == "" {
			t.Errorf("%s explains reason %s, which nobody gives", page, reason)
		}
	}
}
