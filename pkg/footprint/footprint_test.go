package footprint

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What is somebody else's, may be written or was changed stays as it is: it could not be
// read again.
func TestOwn(t *testing.T) {
	f, err := os.Open(filepath.Join("testdata", "smaps"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got, err := own(f, "/opt/a program (deleted)")
	if err != nil {
		t.Fatal(err)
	}
	want := []area{{0x400000, 0x1c87000}, {0x36d9000, 0x36da000}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(area{})); diff != "" {
		t.Error(diff)
	}
}

// mapped are the bytes of files that this process has mapped: RssFile of proc(5).
func mapped(t *testing.T) int {
	t.Helper()
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, "RssFile:"); ok {
			kb, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(value), " kB"))
			if err != nil {
				t.Fatal(err)
			}
			return kb << 10
		}
	}
	t.Fatal("/proc/self/status has no RssFile")
	return 0
}

// A program that has given back its pages has fewer of them, and goes on with this test.
func TestShrink(t *testing.T) {
	before := mapped(t)
	if err := Shrink(); err != nil {
		t.Fatal(err)
	}
	if after := mapped(t); after >= before {
		t.Errorf("%d bytes of files are mapped, %d before", after, before)
	}
}
