package cniconf

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/detached"
	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
)

func put(t *testing.T, cfg Config, name, contents string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(cfg.Dir, name), []byte(contents), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Which file the runtime takes, where one stands before ours.
func TestFirst(t *testing.T) {
	ours := string(Default(cniapi.DefaultSocket))
	flannel := `{"cniVersion":"1.0.0","name":"cbr0","plugins":[{"type":"flannel","delegate":{"isDefaultGateway":true}},{"type":"portmap"}]}`
	// As Multus' daemon writes it, and as its thin plugin's entry point does.
	thick := func(network string) string {
		return `{"cniVersion":"0.3.1","name":"multus-cni-network","clusterNetwork":"` + network + `","type":"multus-shim"}`
	}
	thin := func(delegates string) string {
		return `{"cniVersion":"0.3.1","name":"multus-cni-network","type":"multus","kubeconfig":"/etc/cni/net.d/multus.d/multus.kubeconfig","delegates":[` + delegates + `]}`
	}
	for _, tc := range []struct {
		name, contents string
		preferred      string // the plugin that the runtime takes instead
		unusable       bool
	}{
		{name: "99-other.conf", contents: foreign},
		{name: "05-notes.txt", contents: foreign},
		{name: "10-flannel.conflist", contents: flannel, preferred: "flannel"},
		{name: "10-calico.conflist", contents: foreign, preferred: "bridge"},
		{name: "10-containerd-net.conflist", contents: foreign, preferred: "bridge"},
		{name: "07-other.conf", contents: `{"cniVersion":"0.3.1","name":"x","type":"bridge"}`, preferred: "bridge"},
		{name: "07-other.json", contents: `{"cniVersion":"0.3.1","name":"x","type":"bridge"}`, preferred: "bridge"},
		{name: "07-its-own-words.conf", contents: `{"cniVersion":"0.3.1","name":"x","type":"mesh","plugins":{},"delegates":{"a":1},"clusterNetwork":{}}`, preferred: "mesh"},
		{name: "07-list-of-its-own-words.conflist", contents: `{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"mesh","delegates":7}]}`, preferred: "mesh"},
		{name: "07-in-a-folder.conflist", contents: `{"cniVersion":"1.1.0","name":"x"}`, preferred: ""},
		{name: "00-broken.conflist", contents: `{"name":`, unusable: true},
		{name: "00-empty.conf", contents: "", unusable: true},
		{name: "00-a-list.conf", contents: flannel, unusable: true},
		{name: "00-no-name.conflist", contents: `{"plugins":[{"type":"bridge"}]}`, unusable: true},
		// What leads to k8s-ovs, and what only looks as if.
		{name: "05-k8s-ovs.conflist", contents: ours},
		{name: "02-istio-cni.conflist", contents: strings.Replace(ours, `"portmap"`, `"istio-cni"`, 1)},
		{name: "00-multus.conf", contents: thick("/host/etc/cni/net.d/10-k8s-ovs.conflist")},
		{name: "00-multus.conf", contents: thick("k8s-ovs")},
		{name: "00-multus.conf", contents: thin(ours)},
		{name: "00-multus.conflist", contents: `{"cniVersion":"1.0.0","name":"m","plugins":[` + thin(ours) + `]}`},
		{name: "00-multus.conf", contents: thick("/host/etc/cni/net.d/10-flannel.conflist"), preferred: "multus-shim"},
		{name: "00-multus.conf", contents: thin(flannel + "," + ours), preferred: "multus"},
		{name: "00-multus.conf", contents: thin(""), preferred: "multus"},
		{name: "00-multus.conf", contents: `{"cniVersion":"0.3.1","name":"multus-cni-network","type":"bridge"}`, preferred: "bridge"},
		{name: "00-chain.conflist", contents: `{"cniVersion":"1.0.0","name":"k8s-ovs","plugins":[{"type":"bridge"},{"type":"k8s-ovs"}]}`, preferred: "bridge"},
	} {
		cfg := node(t)
		f := New(cfg)
		if _, err := f.First(); err != nil {
			t.Errorf("without a directory: %v", err)
		}
		ensure(t, f, true)
		put(t, cfg, tc.name, tc.contents)
		unusable, err := f.First()
		var preferred *PreferredError
		isPreferred := errors.As(err, &preferred)
		want := tc.preferred != "" || tc.name == "07-in-a-folder.conflist"
		if isPreferred != want || want && (preferred.Plugin != tc.preferred || !strings.Contains(err.Error(), filepath.Join(cfg.Dir, tc.name)) || !strings.Contains(err.Error(), "--cni-conf-file")) {
			t.Errorf("%s %s: %v; want %q to be preferred", tc.name, tc.contents, err, tc.preferred)
		}
		if (unusable[filepath.Join(cfg.Dir, tc.name)] != nil) != tc.unusable || len(unusable) > 1 {
			t.Errorf("%s %s: unusable %v, want %v", tc.name, tc.contents, unusable, tc.unusable)
		}
	}
}

// What is no configuration is skipped; the next one in line counts.
func TestFirstBehindUnusable(t *testing.T) {
	cfg := node(t)
	f := New(cfg)
	ensure(t, f, true)
	put(t, cfg, "00-broken.conflist", "{")
	put(t, cfg, "05-other.conflist", foreign)
	if err := os.Mkdir(filepath.Join(cfg.Dir, "01-folder.conf"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("nothing", filepath.Join(cfg.Dir, "02-link.conf")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(cfg.Dir, "03-pipe.conf"), 0o600); err != nil {
		t.Fatal(err)
	}
	unusable, err := f.First()
	var preferred *PreferredError
	if !errors.As(err, &preferred) || filepath.Base(preferred.Path) != "05-other.conflist" || len(unusable) != 2 {
		t.Errorf("%v, unusable %v", err, unusable)
	}
}

// A file that comes later counts as well, as does its going, and one that is broken is told of once.
func TestKeptFirst(t *testing.T) {
	cfg := node(t)
	var log bytes.Buffer
	c, err := Keep(cfg, "", slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	c.Ensure()
	look := func(when string, want bool, told int) {
		t.Helper()
		if err := c.First(); (err != nil) != want {
			t.Errorf("%s: %v, want an error: %v", when, err, want)
		}
		if n := strings.Count(log.String(), "00-broken"); n != told {
			t.Errorf("%s: told %d times of the broken file, want %d", when, n, told)
		}
	}
	look("alone", false, 0)
	put(t, cfg, "00-broken.conf", "{")
	put(t, cfg, "10-aaa.conflist", foreign)
	look("another before it", true, 1)
	look("still", true, 1)
	if err := os.Remove(filepath.Join(cfg.Dir, "10-aaa.conflist")); err != nil {
		t.Fatal(err)
	}
	look("gone", false, 1)
	if _, err := os.Stat(filepath.Join(cfg.Dir, cfg.Name)); err != nil {
		t.Error(err)
	}
	if err := (*Kept)(nil).First(); err != nil {
		t.Errorf("none is kept: %v", err)
	}
}

// The directory was deleted on the node under the agent's mount.
func TestEnsureDetached(t *testing.T) {
	cfg := node(t)
	source := filepath.Join(t.TempDir(), "net.d")
	for _, dir := range []string{source, cfg.Dir} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount(source, cfg.Dir, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(cfg.Dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	f := New(cfg)
	ensure(t, f, true)
	if err := os.RemoveAll(source); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Ensure(); !errors.Is(err, detached.Err) {
		t.Errorf("Ensure: %v", err)
	}
}
