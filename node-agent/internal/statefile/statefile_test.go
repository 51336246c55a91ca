package statefile

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/detached"
	"github.com/k8s-ovs/k8s-ovs/test/mounts"
)

// A directory that somebody deleted is made anew; only one that was deleted under its mount is
// not to be had again.
func TestDirectoryDeleted(t *testing.T) {
	source, mounted := mounts.Bound(t)
	ways := map[string]func(dir string) error{
		"look":    Look,
		"write":   func(dir string) error { return Write(filepath.Join(dir, "file"), []byte("data")) },
		"replace": func(dir string) error { return Replace(filepath.Join(dir, "file"), []byte("data")) },
	}
	for name, way := range ways {
		missing := filepath.Join(t.TempDir(), "missing")
		for _, dir := range []string{missing, mounted} {
			if err := way(dir); err != nil {
				t.Errorf("%s in %s: %v", name, dir, err)
			}
		}
		if err := os.RemoveAll(missing); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := os.Stat(filepath.Join(mounted, "file")); err != nil || info.Mode() != 0o600 || Missing(filepath.Join(mounted, "file")) {
		t.Errorf("the file: %v, %v", info, err)
	}
	if err := os.RemoveAll(source); err != nil {
		t.Fatal(err)
	}
	for _, then := range []string{"deleted", "made anew"} {
		for name, way := range ways {
			if err := way(mounted); !errors.Is(err, detached.Err) {
				t.Errorf("%s, %s: %v", then, name, err)
			}
		}
		if !Missing(filepath.Join(mounted, "file")) {
			t.Error("the file is there")
		}
		_ = os.Mkdir(source, 0o700)
	}
}
