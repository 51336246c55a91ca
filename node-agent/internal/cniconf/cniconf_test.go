package cniconf

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
)

const foreign = `{"cniVersion":"1.0.0","name":"other","plugins":[{"type":"bridge"}]}`

// node is one with a state directory and a runtime's, in its first boot.
func node(t *testing.T) Config {
	dir := t.TempDir()
	state := filepath.Join(dir, "state")
	if err := os.Mkdir(state, 0o700); err != nil {
		t.Fatal(err)
	}
	return Config{Dir: filepath.Join(dir, "net.d"), Name: "10-k8s-ovs.conflist", Contents: Default(cniapi.DefaultSocket), StateDir: state, BootID: "boot-1"}
}

func ensure(t *testing.T, f *File, want bool) {
	t.Helper()
	if changed, err := f.Ensure(); err != nil || changed != want {
		t.Fatalf("Ensure: changed %v, %v; want %v", changed, err, want)
	}
}

// files are the names and contents of all in dir.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		all[e.Name()] = string(data)
	}
	return all
}

func TestEnsure(t *testing.T) {
	cfg := node(t)
	f := New(cfg)
	ensure(t, f, true)
	ensure(t, f, false)
	want := map[string]string{cfg.Name: string(cfg.Contents)}
	if diff := cmp.Diff(want, files(t, cfg.Dir)); diff != "" {
		t.Errorf("the runtime's directory (-want +got):\n%s", diff)
	}
	if info, err := os.Stat(f.Path()); err != nil || info.Mode() != 0o644 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	// Another version's is replaced, also where a crash left a temporary file.
	if err := os.WriteFile(filepath.Join(cfg.Dir, "."+cfg.Name+".new"), []byte("half of a longer file"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg.Contents = Default("/run/other/cni.sock")
	ensure(t, New(cfg), true)
	want[cfg.Name] = string(cfg.Contents)
	if diff := cmp.Diff(want, files(t, cfg.Dir)); diff != "" {
		t.Errorf("the runtime's directory (-want +got):\n%s", diff)
	}
}

// A restart of the agent leaves the file, one of the node takes it away.
func TestForget(t *testing.T) {
	cfg := node(t)
	ensure(t, New(cfg), true)
	forget := func(what string, cfg Config, want bool) {
		t.Helper()
		removed, err := New(cfg).Forget()
		if err != nil || removed != want {
			t.Errorf("%s: removed %v, %v; want %v", what, removed, err, want)
		}
	}
	forget("the agent restarts", cfg, false)
	rebooted := cfg
	rebooted.BootID = "boot-2"
	forget("the node rebooted", rebooted, true)
	forget("once more", rebooted, false)
	ensure(t, New(rebooted), true)
	forget("the agent restarts after the reboot", rebooted, false)
	if err := os.RemoveAll(cfg.StateDir); err != nil {
		t.Fatal(err)
	}
	forget("the state is lost", rebooted, true)
	// While the agent runs, it notes the boot again.
	running := New(rebooted)
	ensure(t, running, true)
	if err := os.RemoveAll(cfg.StateDir); err != nil {
		t.Fatal(err)
	}
	ensure(t, running, false)
	forget("the state was lost and the agent restarts", rebooted, false)
}

func TestForeignStays(t *testing.T) {
	for _, contents := range []string{foreign, "{}", `{"plugins":[]}`} {
		cfg := node(t)
		f := New(cfg)
		if err := os.Mkdir(cfg.Dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(f.Path(), []byte(contents), 0o644); err != nil {
			t.Fatal(err)
		}
		var refused *ForeignError
		if _, err := f.Ensure(); !errors.As(err, &refused) || !strings.Contains(err.Error(), "--cni-conf-file") {
			t.Errorf("%q: Ensure: %v", contents, err)
		}
		if _, err := f.First(); !errors.As(err, &refused) {
			t.Errorf("%q: First: %v", contents, err)
		}
		if removed, err := f.Forget(); removed || err != nil {
			t.Errorf("%q: Forget: %v, %v", contents, removed, err)
		}
		if removed, err := f.Remove(); removed || err != nil {
			t.Errorf("%q: Remove: %v, %v", contents, removed, err)
		}
		if diff := cmp.Diff(map[string]string{cfg.Name: contents}, files(t, cfg.Dir)); diff != "" {
			t.Errorf("%q (-want +got):\n%s", contents, diff)
		}
	}
}

// A file of our name that is no configuration is written anew, and goes where ours would.
func TestDamagedReplaced(t *testing.T) {
	for _, contents := range []string{"", "not JSON", "[]", `{"name":"k8s-ovs"`} {
		cfg := node(t)
		f := New(cfg)
		damage := func() {
			t.Helper()
			if err := os.WriteFile(f.Path(), []byte(contents), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Mkdir(cfg.Dir, 0o755); err != nil {
			t.Fatal(err)
		}
		damage()
		if _, err := f.First(); err != nil {
			t.Errorf("%q: First: %v", contents, err)
		}
		ensure(t, f, true)
		if diff := cmp.Diff(map[string]string{cfg.Name: string(cfg.Contents)}, files(t, cfg.Dir)); diff != "" {
			t.Errorf("%q (-want +got):\n%s", contents, diff)
		}
		damage()
		if removed, err := f.Remove(); !removed || err != nil {
			t.Errorf("%q: Remove: %v, %v", contents, removed, err)
		}
	}
}

func TestRemove(t *testing.T) {
	cfg := node(t)
	f := New(cfg)
	for _, want := range []bool{false, true, false} {
		if removed, err := f.Remove(); err != nil || removed != want {
			t.Errorf("removed %v, %v; want %v", removed, err, want)
		}
		if !want {
			ensure(t, f, true)
		}
	}
}

func TestRead(t *testing.T) {
	for _, tc := range []struct {
		contents, want string // in the error
	}{
		{string(Default(cniapi.DefaultSocket)), ""},
		{string(Default("/run/other/cni.sock")), ""},
		{`{"cniVersion":"1.0.0","name":"k8s-ovs","plugins":[{"type":"k8s-ovs"},{"type":"tuning","sysctl":{"a":"b"}}]}`, ""},
		{`{`, "not valid JSON"},
		{`{"name":"k8s-ovs","plugins":[{"type":"k8s-ovs"}]}`, "cniVersion"},
		{foreign, `"other"`},
		{`{"cniVersion":"1.0.0","name":"k8s-ovs","type":"k8s-ovs"}`, "plugins"},
		{`{"cniVersion":"1.0.0","name":"k8s-ovs","plugins":[{"type":"portmap"},{"type":"k8s-ovs"}]}`, "first"},
	} {
		path := filepath.Join(t.TempDir(), "template")
		if err := os.WriteFile(path, []byte(tc.contents), 0o600); err != nil {
			t.Fatal(err)
		}
		data, err := Read(path)
		switch {
		case tc.want == "" && (err != nil || string(data) != tc.contents):
			t.Errorf("%s: %v, %s", tc.contents, err, data)
		case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), path)):
			t.Errorf("%s: error %v, want one that says %s and %s", tc.contents, err, tc.want, path)
		}
	}
}

func TestUnfit(t *testing.T) {
	if got := Unfit(Default("/run/k8s-ovs/cni.sock")); got != nil {
		t.Errorf("the default: %q", got)
	}
	conf := func(plugins string) []byte {
		return []byte(`{"cniVersion":"1.0.0","name":"k8s-ovs","plugins":[{"type":"k8s-ovs"},` + plugins + `]}`)
	}
	for plugin, want := range map[string]string{
		`{"type":"tuning","sysctl":{"net.ipv4.tcp_syncookies":"0"},"promisc":true}`: "",
		`{"type":"portmap"},{"type":"firewall"}`:                                    "",
		`{"type":"bandwidth","capabilities":{"bandwidth":true}}`:                    "bandwidth: ",
		`{"type":"sbr"}`:                                "sbr: ",
		`{"type":"tuning","mtu":1300}`:                  "--mtu",
		`{"type":"tuning","mac":"02:00:00:00:00:01"}`:   "leave mac out",
		`{"type":"tuning","capabilities":{"mac":true}}`: "leave mac out",
		`{"type":"k8s-ovs"}`:                            "once",
	} {
		got := strings.Join(Unfit(conf(plugin)), "; ")
		if want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", plugin, got, want)
		}
	}
}
