package owner

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestGive(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to give files away")
	}
	dir, outside := filepath.Join(t.TempDir(), "data"), filepath.Join(t.TempDir(), "outside")
	for _, path := range []string{outside, filepath.Join(dir, "member", "wal", "0.wal"), filepath.Join(dir, "pki", "ca.key")} {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{"file": outside, "folder": filepath.Dir(outside)} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	// The folder, three in it, two files, two links; and nothing when all is done, nor more than
	// what is missing when it was interrupted.
	for _, want := range []int{8, 0, 1} {
		if want == 1 {
			if err := os.Lchown(filepath.Join(dir, "member", "wal"), 0, 0); err != nil {
				t.Fatal(err)
			}
		}
		if given, err := Give(dir, 65532, 65533); err != nil || given != want {
			t.Errorf("gave %d, %v; want %d", given, err, want)
		}
	}
	for path, want := range map[string]uint32{dir: 65532, filepath.Join(dir, "pki", "ca.key"): 65532, filepath.Join(dir, "file"): 65532, outside: 0, filepath.Dir(outside): 0} {
		info, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Sys().(*syscall.Stat_t).Uid; got != want {
			t.Errorf("%s belongs to %d, want %d", path, got, want)
		}
	}
}

func TestMainUsage(t *testing.T) {
	dir := t.TempDir()
	for _, args := range [][]string{nil, {"--data-dir", dir}, {"--to", "1:1"}, {"--data-dir", dir, "--to", "nobody"}, {"--data-dir", dir, "--to", "1"}, {"--data-dir", dir, "--to", "1:1", "x"}} {
		var stderr bytes.Buffer
		if code := Main(args, &stderr, &stderr); code != 2 || !strings.Contains(stderr.String(), "--to UID:GID") {
			t.Errorf("%q: exit code %d: %s", args, code, &stderr)
		}
	}
}
