// Package mounts is for tests of what becomes of a directory that is mounted: it needs root.
package mounts

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Bound is a directory as a container has it: source on the machine, and mounted where that is mounted until the test
// ends. Who deletes source leaves the other without a place on any disk.
func Bound(t testing.TB) (source, mounted string) {
	t.Helper()
	base := t.TempDir()
	source, mounted = filepath.Join(base, "source"), filepath.Join(base, "mounted")
	for _, dir := range []string{source, mounted} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount(source, mounted, "", unix.MS_BIND, ""); err != nil {
		t.Fatalf("mount %s at %s: %v", source, mounted, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mounted, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", mounted, err)
		}
	})
	return source, mounted
}

// ReadOnly has nothing written into dir, root's neither, until writable is called or the test ends, as a disk that the
// kernel has set read-only after errors. Files that are open stay as they are.
func ReadOnly(t testing.TB, dir string) (writable func()) {
	t.Helper()
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		t.Fatalf("mount %s: %v", dir, err)
	}
	mounted := true
	writable = func() {
		t.Helper()
		if !mounted {
			return
		}
		mounted = false
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	}
	t.Cleanup(writable)
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		t.Fatalf("have %s read-only: %v", dir, err)
	}
	return writable
}
