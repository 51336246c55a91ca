package atomicfile

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// writers are both ways to replace a file.
var writers = map[string]func(string, []byte, fs.FileMode) error{"Write": Write, "Replace": Replace}

func TestWrite(t *testing.T) {
	for name, write := range writers {
		t.Run(name, func(t *testing.T) { testWrite(t, write) })
	}
}

func testWrite(t *testing.T, write func(string, []byte, fs.FileMode) error) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state.json")
	// What a crash left, with another mode.
	if err := os.WriteFile(filepath.Join(dir, ".state.json.new"), []byte("half a fi"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, content := range []string{"one", "", "three"} {
		if err := write(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != content {
			t.Fatalf("%q, %v, want %q", got, err, content)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode() != 0o600 {
			t.Errorf("mode %v, %v", info.Mode(), err)
		}
	}
	left(t, dir, 1)
}

func TestFailureLeavesTheOld(t *testing.T) {
	for name, write := range writers {
		t.Run(name, func(t *testing.T) { testFailure(t, write) })
	}
}

func testFailure(t *testing.T, write func(string, []byte, fs.FileMode) error) {
	dir := t.TempDir()
	path := filepath.Join(dir, "taken")
	// A directory that is not empty cannot be replaced by a file.
	if err := os.MkdirAll(filepath.Join(path, "old"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := write(path, []byte("new"), 0o600); err == nil {
		t.Error("replaced a directory")
	}
	if _, err := os.Stat(filepath.Join(path, "old")); err != nil {
		t.Error(err)
	}
	left(t, dir, 1)
	if err := write(filepath.Join(dir, "no", "such"), nil, 0o600); err == nil {
		t.Error("wrote into a directory that is not there")
	}
}

func left(t *testing.T, dir string, n int) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != n {
		t.Errorf("left %v, %v", entries, err)
	}
}
