package detached

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Only a folder that was deleted under its mount is one that a new start brings back.
func TestExplain(t *testing.T) {
	base := t.TempDir()
	source, mounted := filepath.Join(base, "source"), filepath.Join(base, "mounted")
	for _, dir := range []string{source, mounted} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount(source, mounted, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mounted, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
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
	explain("no folder", filepath.Join(base, "missing"), write(filepath.Join(base, "missing")), false)
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
