package detached

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/test/mounts"
)

// Only a folder that was deleted under its mount is one that a new start brings back.
func TestExplain(t *testing.T) {
	source, mounted := mounts.Bound(t)
	write := func(dir string) error { return os.WriteFile(filepath.Join(dir, "file"), nil, 0o600) }
	explain := func(what, dir string, err error, want bool) {
		t.Helper()
		if got := Explain(dir, err); errors.Is(got, Err) != want || (got == nil) != (err == nil) {
			t.Errorf("%s: %v of %v, want it to be detached: %v", what, got, err, want)
		}
	}
	explain("no error", mounted, write(mounted), false)
	explain("it is there again", mounted, fs.ErrNotExist, false)
	if entries, err := os.ReadDir(mounted); err != nil || len(entries) != 1 {
		t.Errorf("something was left behind: %v, %v", entries, err)
	}
	explain("no folder", filepath.Join(t.TempDir(), "missing"), write(filepath.Join(t.TempDir(), "missing")), false)
	explain("another error", mounted, fs.ErrPermission, false)
	if err := os.RemoveAll(source); err != nil {
		t.Fatal(err)
	}
	explain("deleted", mounted, write(mounted), true)
	// The node has it again; the mount does not.
	if err := os.Mkdir(source, 0o700); err != nil {
		t.Fatal(err)
	}
	explain("made anew", mounted, write(mounted), true)
}
