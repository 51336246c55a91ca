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

// A burst is given back once it has come and gone; what the program needs all the time is not
// looked for again and again.
func TestKept(t *testing.T) {
	const mb = 1 << 20
	var k Kept
	for i, tt := range []struct {
		now  int
		want bool
	}{
		{60 * mb, true},  // whatever it is: the start is over
		{40 * mb, false}, // what it needs
		{44 * mb, false},
		{46 * mb, true},  // a burst
		{50 * mb, false}, // most of it stays
		{56 * mb, false},
		{57 * mb, true},
		{42 * mb, false},
		{48 * mb, true},
	} {
		if got := k.due(tt.now); got != tt.want {
			t.Errorf("look %d, %d MB: due %v, want %v", i, tt.now/mb, got, tt.want)
		}
	}
}

func TestResident(t *testing.T) {
	got, err := resident()
	if err != nil || got < mapped(t) || got > 1<<30 {
		t.Errorf("%d bytes (%v), %d of them files", got, err, mapped(t))
	}
}
