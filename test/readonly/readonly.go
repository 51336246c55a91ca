// Package readonly lets a test keep programs, root's too, from writing into a directory, as a disk does that the kernel has
// set read-only after errors.
package readonly

import (
	"testing"

	"golang.org/x/sys/unix"
)

// Make has nothing written into dir, until writable is called or the test ends. Files that are open stay as they are.
func Make(t testing.TB, dir string) (writable func()) {
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
