package cniplugins

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func source(t *testing.T, contents map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, data := range contents {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// installed are the files in dir; those that are not executable plain files are marked.
func installed(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		all[e.Name()] = string(data)
		if info.Mode() != 0o755 {
			all[e.Name()] += " with mode " + info.Mode().String()
		}
	}
	return all
}

var first = map[string]string{"k8s-ovs": "ours 1", "loopback": "loopback 1", "portmap": "portmap 1", "bridge": "not for us"}

func TestInstall(t *testing.T) {
	from, to := source(t, first), filepath.Join(t.TempDir(), "bin")
	install := func(want map[string]bool) {
		t.Helper()
		replaced, err := Install(from, to)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, replaced); diff != "" {
			t.Errorf("replaced (-want +got):\n%s", diff)
		}
	}
	install(map[string]bool{"k8s-ovs": true, "loopback": true, "portmap": true})
	install(map[string]bool{})
	// A new version, beside a plugin of the node's own and what a crash left; one somebody made unusable.
	if err := os.WriteFile(filepath.Join(to, "macvlan"), []byte("the node's"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(temporary(to, "k8s-ovs"), []byte("half of something longer"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(to, "loopback"), 0o600); err != nil {
		t.Fatal(err)
	}
	from = source(t, map[string]string{"k8s-ovs": "ours 2", "loopback": "loopback 1", "portmap": "portmap 1"})
	install(map[string]bool{"k8s-ovs": true, "loopback": true})
	want := map[string]string{"k8s-ovs": "ours 2", "loopback": "loopback 1", "portmap": "portmap 1", "macvlan": "the node's"}
	if diff := cmp.Diff(want, installed(t, to)); diff != "" {
		t.Errorf("installed (-want +got):\n%s", diff)
	}
}

// A file that runs cannot be written to, but it can be replaced.
func TestInstallOverRunning(t *testing.T) {
	from, to := source(t, first), t.TempDir()
	path := filepath.Join(to, "k8s-ovs")
	if err := os.WriteFile(path, []byte("old"), 0o755); err != nil {
		t.Fatal(err)
	}
	running, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer running.Close()
	if _, err := Install(from, to); err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 3)
	if _, err := running.Read(data); err != nil || string(data) != "old" {
		t.Errorf("the open file says %q, %v", data, err)
	}
}

// Where one cannot be had, none is replaced and nothing is left behind.
func TestAllOrNone(t *testing.T) {
	to := t.TempDir()
	if _, err := Install(source(t, first), to); err != nil {
		t.Fatal(err)
	}
	incomplete := source(t, map[string]string{"loopback": "loopback 2", "portmap": "portmap 2"})
	if _, err := Install(incomplete, to); err == nil || !strings.Contains(err.Error(), "plugin k8s-ovs") {
		t.Errorf("error %v", err)
	}
	want := map[string]string{"k8s-ovs": "ours 1", "loopback": "loopback 1", "portmap": "portmap 1"}
	if diff := cmp.Diff(want, installed(t, to)); diff != "" {
		t.Errorf("installed (-want +got):\n%s", diff)
	}
}
