package cniplugins

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What people and their tools do to the runtime's plugins, and what is put back.
func TestKept(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(dir string) error
		// portmap is its contents afterwards, told how many plugins were put back.
		portmap string
		told    int
	}{
		{"nothing", func(string) error { return nil }, "portmap 1", 0},
		{"ours is gone", func(dir string) error { return os.Remove(filepath.Join(dir, "k8s-ovs")) }, "portmap 1", 1},
		{"all are gone", os.RemoveAll, "portmap 1", 3},
		{"ours is an older one", func(dir string) error { return os.WriteFile(filepath.Join(dir, "k8s-ovs"), []byte("ours 0"), 0o755) }, "portmap 1", 1},
		{"ours cannot be run", func(dir string) error { return os.Chmod(filepath.Join(dir, "k8s-ovs"), 0o600) }, "portmap 1", 1},
		{"another cannot be run", func(dir string) error { return os.Chmod(filepath.Join(dir, "loopback"), 0o600) }, "portmap 1", 1},
		{"a package brought another portmap", func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "portmap"), []byte("portmap 2"), 0o755)
		}, "portmap 2", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			from, to := source(t, first), filepath.Join(t.TempDir(), "bin")
			if _, err := Install(from, to); err != nil {
				t.Fatal(err)
			}
			var log bytes.Buffer
			k := Keep(from, to, slog.New(slog.NewTextHandler(&log, nil)))
			for _, change := range []func(string) error{func(string) error { return nil }, tc.change, func(string) error { return nil }} {
				if err := errors.Join(change(to), k.Ensure()); err != nil {
					t.Fatal(err)
				}
			}
			want := map[string]string{"k8s-ovs": "ours 1", "loopback": "loopback 1", "portmap": tc.portmap}
			if diff := cmp.Diff(want, installed(t, to)); diff != "" {
				t.Errorf("installed (-want +got):\n%s", diff)
			}
			if told := strings.Count(log.String(), "put back"); told != tc.told {
				t.Errorf("told of %d plugins, want %d:\n%s", told, tc.told, log.String())
			}
		})
	}
}

// A plugin that cannot be put back is named.
func TestKeptFails(t *testing.T) {
	to := t.TempDir()
	k := Keep(filepath.Join(t.TempDir(), "none"), to, slog.New(slog.DiscardHandler))
	if err := k.Ensure(); err == nil || !strings.Contains(err.Error(), to) || !strings.Contains(err.Error(), "none/loopback") {
		t.Errorf("Ensure: %v", err)
	}
	if k := Keep("x", "", nil); k != nil {
		t.Errorf("without a directory: %+v", k)
	}
}
