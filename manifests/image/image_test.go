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

const tags = "../components/images/kustomization.yaml"

// ours stands for the programs that `make build` makes.
var ours = []string{"k8s-ovs", "k8s-ovs-agent", "k8s-ovs-controller", "loopback", "netns", "portmap"}

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
	if err := run(bin, out, tags); err != nil {
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
	var docker tarball.Manifest
	unmarshal(t, files["manifest.json"], &docker)
	if !slices.Equal(docker[0].RepoTags, []string{name}) {
		t.Errorf("%s: docker would call it %q, not %s", path, docker[0].RepoTags, name)
	}
	var index v1.IndexManifest
	unmarshal(t, files["index.json"], &index)
	first := index.Manifests[0]
	if got := first.Annotations["io.containerd.image.name"]; got != "docker.io/"+name {
		t.Errorf("%s: containerd would call it %q, not %s", path, got, name)
	}
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
		if out, err := command("ovs-ofctl", "-OOpenFlow14", "dump-flows", "t").CombinedOutput(); err != nil {
			t.Errorf("ovs-ofctl: %v\n%s", err, out)
		}
		stopSwitch()
		stopDB()
	}
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

func TestMissingProgram(t *testing.T) {
	err := run(t.TempDir(), t.TempDir(), tags)
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
