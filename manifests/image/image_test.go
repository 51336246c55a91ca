package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"golang.org/x/sys/unix"
)

const (
	tags    = "../components/images/kustomization.yaml"
	version = "v1.2.3"
)

// ours stands for the programs that `make build` makes.
var ours = []string{"k8s-ovs", "k8s-ovs-agent", "k8s-ovs-controller", "k8s-ovs-supervise", "loopback", "netns", "portmap"}

// checkBill: of the node image, whose own programs are stand-ins here.
func checkBill(t *testing.T, path string) {
	t.Helper()
	var d document
	unmarshal(t, read(t, path), &d)
	if d.SPDXVersion != "SPDX-2.3" || d.Name != "k8s-ovs/node:"+version || !strings.Contains(d.DocumentNamespace, "sha256-") {
		t.Errorf("document %s %q %s", d.SPDXVersion, d.Name, d.DocumentNamespace)
	}
	found := map[string]material{}
	for _, m := range d.Packages {
		found[m.Name] = m
	}
	for _, name := range []string{"/usr/bin/k8s-ovs-agent", "/usr/libexec/cni/portmap"} {
		if m := found[name]; len(m.Checksums) != 1 || m.Checksums[0].Algorithm != "SHA256" {
			t.Errorf("%s: %+v", name, m)
		}
	}
	if _, err := os.Stat("/var/lib/dpkg/status"); err != nil {
		return // not Debian
	}
	for _, name := range []string{"nftables", "kmod", "dash", "libc6"} {
		if m := found[name]; m.VersionInfo == "" || m.ExternalRefs[0].Locator != "pkg:deb/debian/"+name+"@"+m.VersionInfo {
			t.Errorf("%s: %+v", name, m)
		}
	}
	if len(d.Relationships) != len(d.Packages) {
		t.Errorf("%d of %d packages are described", len(d.Relationships), len(d.Packages))
	}
}

// TestModules: a Go program is its modules.
func TestModules(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	materials, err := madeOf("/usr/bin/x", self, packages{})
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]string{}
	for _, m := range materials {
		names[m.Name] = m.VersionInfo
	}
	if names["stdlib"] == "" || !strings.HasPrefix(names["github.com/google/go-containerregistry"], "v") {
		t.Errorf("materials %v", names)
	}
}

var archives = []string{"k8s-ovs-node.tar", "k8s-ovs-controller.tar"}

// write makes the images of stand-ins for our programs, into a new folder.
func write(t *testing.T) string {
	t.Helper()
	bin, out := t.TempDir(), t.TempDir()
	for _, name := range ours {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("this is "+name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := run(bin, out, tags, version); err != nil {
		t.Fatal(err)
	}
	return out
}

func open(t *testing.T, path string) v1.Image {
	t.Helper()
	img, err := tarball.ImageFromPath(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func TestImages(t *testing.T) {
	out := write(t)
	t.Run("archives", func(t *testing.T) {
		for _, archive := range archives {
			checkArchive(t, filepath.Join(out, archive))
		}
	})
	t.Run("same inputs, same bytes", func(t *testing.T) {
		again := write(t)
		for _, archive := range archives {
			if !bytes.Equal(read(t, filepath.Join(out, archive)), read(t, filepath.Join(again, archive))) {
				t.Errorf("%s differs", archive)
			}
		}
	})
	t.Run("controller has our programs and nothing else", func(t *testing.T) {
		var files []string
		eachFile(t, open(t, filepath.Join(out, "k8s-ovs-controller.tar")), func(h *tar.Header, _ io.Reader) {
			if h.Typeflag != tar.TypeDir {
				files = append(files, h.Name)
			}
		})
		if diff := cmp.Diff([]string{"usr/bin/k8s-ovs-controller", "usr/bin/netns"}, files); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("controller is not root", func(t *testing.T) {
		config, err := open(t, filepath.Join(out, "k8s-ovs-controller.tar")).ConfigFile()
		if err != nil || config.Config.User != nobody {
			t.Errorf("it runs as %q (%v)", config.Config.User, err)
		}
	})
	t.Run("bill of materials", func(t *testing.T) { checkBill(t, filepath.Join(out, "k8s-ovs-node.spdx.json")) })
	t.Run("node runs what it carries", func(t *testing.T) {
		if os.Getuid() != 0 {
			t.Skip("needs root to chroot")
		}
		root := t.TempDir()
		extract(t, open(t, filepath.Join(out, "k8s-ovs-node.tar")), root)
		runNode(t, root)
	})
}

// checkArchive: sound, and both kinds of engines find the image under the name
// that the manifests use.
func checkArchive(t *testing.T, path string) {
	t.Helper()
	img := open(t, path)
	if err := validate.Image(img); err != nil {
		t.Errorf("%s: %v", path, err)
	}
	digest, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	names, err := imageNames(tags)
	if err != nil {
		t.Fatal(err)
	}
	name := names[strings.Replace(strings.TrimSuffix(filepath.Base(path), ".tar"), "k8s-ovs-", "k8s-ovs/", 1)]
	files := map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(read(t, path))); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
	first := checkNames(t, path, name, files)
	raw := files["blobs/sha256/"+first.Digest.Hex]
	sum, size, err := v1.SHA256(bytes.NewReader(raw))
	if err != nil || sum != first.Digest || size != first.Size {
		t.Errorf("%s: index.json says %v of %d bytes, it is %v of %d (%v)", path, first.Digest, first.Size, sum, size, err)
	}
	var manifest v1.Manifest
	unmarshal(t, raw, &manifest)
	if manifest.Config.Digest != digest {
		t.Errorf("%s: index.json and manifest.json lead to different images", path)
	}
	for _, l := range manifest.Layers {
		if int64(len(files["blobs/sha256/"+l.Digest.Hex])) != l.Size {
			t.Errorf("%s: layer %v is not there whole", path, l.Digest)
		}
	}
}

// checkNames: both kinds of engines call the image what the manifests in the tree do, and by the
// version. It returns what index.json leads to.
func checkNames(t *testing.T, path, name string, files map[string][]byte) v1.Descriptor {
	t.Helper()
	var docker tarball.Manifest
	unmarshal(t, files["manifest.json"], &docker)
	repository, _, _ := strings.Cut(name, ":")
	called := []string{name, repository + ":" + version}
	if !slices.Equal(docker[0].RepoTags, called) {
		t.Errorf("%s: docker would call it %q, not %s", path, docker[0].RepoTags, called)
	}
	var index v1.IndexManifest
	unmarshal(t, files["index.json"], &index)
	if len(index.Manifests) != len(called) {
		t.Fatalf("%s: index.json has %d images, want one a name", path, len(index.Manifests))
	}
	first := index.Manifests[0]
	for i, m := range index.Manifests {
		if got := m.Annotations["io.containerd.image.name"]; got != "docker.io/"+called[i] || m.Digest != first.Digest {
			t.Errorf("%s: containerd would call %s %q, not %s", path, m.Digest, got, called[i])
		}
	}
	return first
}

// runNode runs the programs of an extracted node image in it, in a network
// namespace of their own, as the containers do.
func runNode(t *testing.T, root string) {
	for path, dev := range map[string]uint64{
		"/dev/null": unix.Mkdev(1, 3), "/dev/urandom": unix.Mkdev(1, 9), "/dev/net/tun": unix.Mkdev(10, 200),
	} {
		if err := os.MkdirAll(filepath.Join(root, "dev", "net"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mknod(filepath.Join(root, path), unix.S_IFCHR|0o666, int(dev)); err != nil {
			t.Fatal(err)
		}
	}
	// As in the manifests nothing is writable but what is mounted there.
	const readOnly = `set -e; root=$1; shift
mount --bind "$root" "$root"
for d in /run/openvswitch /etc/openvswitch /tmp /dev; do mount --bind "$root$d" "$root$d"; done
mount -o remount,ro,bind "$root"
exec chroot "$root" "$@"`
	command := func(args ...string) *exec.Cmd {
		cmd := exec.Command("sh", append([]string{"-c", readOnly, "sh", root}, args...)...)
		cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
		// The mounts go with the process.
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
		return cmd
	}
	for _, program := range runtimePrograms {
		if out, err := command(program, "--version").CombinedOutput(); err != nil {
			t.Errorf("%s --version: %v\n%s", program, err, out)
		}
	}
	nft := command("nft", "-f", "-")
	nft.Stdin = strings.NewReader("table ip t {\n chain c {\n type filter hook input priority 0\n meta l4proto tcp accept\n ip protocol sctp drop\n }\n}\n")
	if out, err := nft.CombinedOutput(); err != nil {
		t.Errorf("nft: %v\n%s", err, out)
	}
	// Twice: the second start finds the first one's database.
	for range 2 {
		stopDB := start(t, command("/usr/libexec/k8s-ovs/start-ovsdb-server"))
		wait(t, command, "ovsdb-client", "--timeout=5", "list-dbs", "unix:/run/openvswitch/db.sock")
		if out, err := command("/usr/libexec/k8s-ovs/start-ovsdb-server").CombinedOutput(); err == nil || !strings.Contains(string(out), "already runs Open vSwitch") {
			t.Errorf("a second ovsdb-server was not refused: %v\n%s", err, out)
		}
		stopSwitch := start(t, command("/usr/libexec/k8s-ovs/start-ovs-vswitchd"))
		wait(t, command, "ovs-appctl", "--timeout=5", "version")
		if out, err := command("ovs-vsctl", "--timeout=10", "--may-exist", "add-br", "t", "--", "set", "Bridge", "t", "datapath_type=netdev", "fail_mode=secure").CombinedOutput(); err != nil {
			t.Errorf("ovs-vsctl: %v\n%s", err, out)
		}
		// The second ovs-vswitchd finds the bridge in the database, and ovs-vsctl does not wait for it.
		wait(t, command, "ovs-ofctl", "-OOpenFlow14", "dump-flows", "t")
		stopSwitch()
		stopDB()
	}
	// A disk that was full as the database was to be made has an empty file by then.
	db := filepath.Join(root, "etc", "openvswitch", "conf.db")
	if err := os.Truncate(db, 0); err != nil {
		t.Fatal(err)
	}
	stopDB := start(t, command("/usr/libexec/k8s-ovs/start-ovsdb-server"))
	wait(t, command, "ovsdb-client", "--timeout=5", "list-dbs", "unix:/run/openvswitch/db.sock")
	stopDB()
}

// start starts a daemon and returns what ends it.
func start(t *testing.T, cmd *exec.Cmd) (stop func()) {
	t.Helper()
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	once := sync.OnceFunc(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%v said:\n%s", cmd.Args, log.String())
		}
	})
	t.Cleanup(once)
	return once
}

// wait runs a command until it succeeds.
func wait(t *testing.T, command func(...string) *exec.Cmd, args ...string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		out, err := command(args...).CombinedOutput()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
}

// The Dockerfile puts our files where this program does.
func TestDockerfile(t *testing.T) {
	copied := regexp.MustCompile(`(?m)^COPY --from=build (.*) (/\S+)/$`)
	got := map[string]bool{}
	for _, m := range copied.FindAllStringSubmatch(string(read(t, "../../Dockerfile")), -1) {
		for _, from := range strings.Fields(m[1]) {
			got[m[2]+"/"+filepath.Base(from)] = true
		}
	}
	want := map[string]bool{}
	for _, tree := range []tree{nodeFiles("bin"), controllerFiles("bin")} {
		for path, e := range tree {
			if e.header.Typeflag == tar.TypeReg {
				want[path] = true
			}
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-this program +Dockerfile):\n%s", diff)
	}
}

// A release's image is made of bases that cannot change under their names.
func TestDockerfilePinned(t *testing.T) {
	m := regexp.MustCompile(`(?m)^RUN (for base in .*\\\n(?:.*\\\n)*.*)$`).FindSubmatch(read(t, "../../Dockerfile"))
	if m == nil {
		t.Fatal("the Dockerfile checks no bases")
	}
	const pinned = "debian@sha256:0000000000000000000000000000000000000000000000000000000000000000"
	for _, tt := range []struct {
		version, golang, debian string
		ok                      bool
	}{
		{"dev", "golang:1", "debian:12", true},
		{"v1.2.3", "golang:1", "debian:12", false},
		{"v1.2.3", pinned, "debian:12", false},
		{"v1.2.3", "golang:1", pinned, false},
		{"v1.2.3", pinned, pinned, true},
	} {
		cmd := exec.Command("sh", "-c", string(m[1]))
		cmd.Env = []string{"VERSION=" + tt.version, "GOLANG=" + tt.golang, "DEBIAN=" + tt.debian}
		if out, err := cmd.CombinedOutput(); (err == nil) != tt.ok || !tt.ok && !strings.Contains(string(out), "--build-arg") {
			t.Errorf("%+v: %v\n%s", tt, err, out)
		}
	}
	for _, from := range regexp.MustCompile(`(?m)^FROM (\S+)`).FindAllStringSubmatch(string(read(t, "../../Dockerfile")), -1) {
		if !slices.Contains([]string{"$GOLANG", "$DEBIAN", "scratch"}, from[1]) {
			t.Errorf("FROM %s is checked by nothing", from[1])
		}
	}
}

func TestMissingProgram(t *testing.T) {
	err := run(t.TempDir(), t.TempDir(), tags, version)
	if err == nil || !strings.Contains(err.Error(), "k8s-ovs") {
		t.Errorf("error %v does not name the program that is missing", err)
	}
}

func eachFile(t *testing.T, img v1.Image, f func(*tar.Header, io.Reader)) {
	t.Helper()
	files := mutate.Extract(img)
	defer files.Close()
	for r := tar.NewReader(files); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		f(h, r)
	}
}

// extract unpacks an image below root; links come after what they lead to, so
// that nothing is written through them.
func extract(t *testing.T, img v1.Image, root string) {
	t.Helper()
	links := map[string]string{}
	eachFile(t, img, func(h *tar.Header, r io.Reader) {
		path := filepath.Join(root, h.Name)
		var err error
		switch h.Typeflag {
		case tar.TypeSymlink:
			links[path] = h.Linkname
		case tar.TypeDir:
			err = os.MkdirAll(path, 0o755)
		default:
			if err = os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				break
			}
			var data []byte
			if data, err = io.ReadAll(r); err == nil {
				err = os.WriteFile(path, data, h.FileInfo().Mode())
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	for path, to := range links {
		if err := os.Symlink(to, path); err != nil {
			t.Fatal(err)
		}
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func unmarshal(t *testing.T, data []byte, into any) {
	t.Helper()
	if err := json.Unmarshal(data, into); err != nil {
		t.Fatal(err)
	}
}
