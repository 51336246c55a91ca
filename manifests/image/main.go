// Command image writes the container images of k8s-ovs as archives, without a
// container engine: k8s-ovs-node.tar and k8s-ovs-controller.tar. Both `ctr -n
// k8s.io images import` and `docker load` take them. An image has two names: the tag that
// the manifests in the source tree have, and the version. Beside each is what it
// is made of: k8s-ovs-node.spdx.json.
//
// Our programs come from a folder of static binaries. The node image also has
// Open vSwitch, nft, modprobe and a shell, as this machine has them installed,
// with the shared libraries that they load. The same inputs give the same bytes.
//
// The Dockerfile builds images with the same contents where an engine is at hand.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"sigs.k8s.io/kustomize/api/types"
)

func main() {
	bin := flag.String("bin", "bin", "`folder` with our programs")
	out := flag.String("out", "bin/images", "`folder` for the archives")
	tags := flag.String("tags", "manifests/components/images/kustomization.yaml", "the `file` that says how the manifests call the images")
	version := flag.String("version", "", "`tag` that the images have too")
	flag.Parse()
	if err := run(*bin, *out, *tags, *version); err != nil {
		fmt.Fprintf(os.Stderr, "image: %v\n", err)
		os.Exit(1)
	}
}

func run(bin, out, tags, version string) error {
	names, err := imageNames(tags)
	if err != nil {
		return err
	}
	if version != "" && !tagged.MatchString(version) {
		return fmt.Errorf("-version %q cannot be the tag of an image", version)
	}
	debian, err := runtimeFiles()
	if err != nil {
		return err
	}
	owners, err := debianPackages("/var/lib/dpkg")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	for _, i := range []struct {
		repository string
		archive    string
		user       string // that its programs run as; empty for root
		layers     []tree // what changes least comes first
	}{
		{"k8s-ovs/node", "k8s-ovs-node", "", []tree{debian, nodeFiles(bin)}},
		{"k8s-ovs/controller", "k8s-ovs-controller", nobody, []tree{controllerFiles(bin)}},
	} {
		name, ok := names[i.repository]
		if !ok {
			return fmt.Errorf("%s does not give image %s a tag", tags, i.repository)
		}
		img, err := build(i.user, i.layers...)
		if err != nil {
			return fmt.Errorf("build image %s: %w", name, err)
		}
		called := []string{name}
		if repository := name[:strings.LastIndexByte(name, ':')]; version != "" && name != repository+":"+version {
			called = append(called, repository+":"+version)
		}
		path := filepath.Join(out, i.archive+".tar")
		if err := writeArchive(path, called, img); err != nil {
			return fmt.Errorf("write image %s to %s: %w", name, path, err)
		}
		digest, err := img.Digest()
		if err != nil {
			return fmt.Errorf("image %s: %w", name, err)
		}
		bill, err := sbom(called[len(called)-1], digest.String(), owners, i.layers...)
		if err == nil {
			err = os.WriteFile(filepath.Join(out, i.archive+".spdx.json"), bill, 0o644)
		}
		if err != nil {
			return fmt.Errorf("bill of materials of image %s: %w", name, err)
		}
		fmt.Println(path, strings.Join(called, " "))
	}
	return nil
}

// nobody is the user and group of programs that need no rights; the manifests name it too.
const nobody = "65532:65532"

// tagged is what the tag of an image may be (OCI distribution specification 1.1).
var tagged = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$`)

// imageNames is repository -> name with tag, as kustomize puts it into the manifests.
func imageNames(path string) (map[string]string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var k types.Kustomization
	if err := k.Unmarshal(data); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	names := map[string]string{}
	for _, i := range k.Images {
		if i.NewTag == "" {
			return nil, fmt.Errorf("%s: image %s has no newTag", path, i.Name)
		}
		repository := i.Name
		if i.NewName != "" {
			repository = i.NewName
		}
		names[i.Name] = repository + ":" + i.NewTag
	}
	return names, nil
}

// nodeFiles is what we add to the node image; the Dockerfile copies the same.
func nodeFiles(bin string) tree {
	t := tree{}
	for _, program := range []string{"k8s-ovs-agent", "k8s-ovs-supervise"} {
		t.file("/usr/bin/"+program, filepath.Join(bin, program))
	}
	for _, plugin := range []string{"k8s-ovs", "loopback", "portmap"} {
		t.file("/usr/libexec/cni/"+plugin, filepath.Join(bin, plugin))
	}
	for name, script := range scripts {
		t.text("/usr/libexec/k8s-ovs/"+name, 0o755, script)
	}
	return t
}

// controllerFiles is the whole controller image: static programs and nothing else.
func controllerFiles(bin string) tree {
	t := tree{}
	for _, program := range []string{"k8s-ovs-controller", "netns"} {
		t.file("/usr/bin/"+program, filepath.Join(bin, program))
	}
	t.folder("/tmp", 0o1777)
	return t
}

// runtimePrograms is what the node image takes from this machine.
var runtimePrograms = []string{
	"/usr/bin/ovs-appctl", "/usr/bin/ovs-dpctl", "/usr/bin/ovs-ofctl", "/usr/bin/ovs-vsctl",
	"/usr/bin/ovsdb-client", "/usr/bin/ovsdb-tool",
	"/usr/bin/rm", "/usr/bin/sleep", "/usr/sbin/modprobe", "/usr/sbin/nft", "/usr/sbin/ovs-vswitchd", "/usr/sbin/ovsdb-server",
}

// schemas is where packages put the schema of the vswitch database.
var schemas = []string{"/usr/share/openvswitch/vswitch.ovsschema", "/usr/local/share/openvswitch/vswitch.ovsschema"}

// runtimeFiles is the base of the node image: what other people wrote.
func runtimeFiles() (tree, error) {
	t := tree{}
	// Folders are where Debian has them, so that paths compiled into the programs hold.
	for from, to := range map[string]string{"/bin": "usr/bin", "/sbin": "usr/sbin", "/lib": "usr/lib", "/lib64": "usr/lib64", "/var/run": "../run"} {
		t.link(from, to)
	}
	for _, dir := range []string{"/etc/openvswitch", "/run/openvswitch", "/var/log/openvswitch", "/usr/lib64"} {
		t.folder(dir, 0o755)
	}
	t.folder("/tmp", 0o1777)
	t.text("/etc/passwd", 0o644, "root:x:0:0:root:/:/bin/sh\n")
	t.text("/etc/group", 0o644, "root:x:0:\n")
	// nft looks protocols up by name.
	t.text("/etc/protocols", 0o644, "icmp 1\ntcp 6\nudp 17\nipv6-icmp 58\nsctp 132\n")

	programs := map[string]string{}
	for _, to := range runtimePrograms {
		from, err := find(filepath.Base(to))
		if err != nil {
			return nil, err
		}
		programs[to] = from
	}
	shell, err := find("dash")
	if err != nil {
		return nil, err
	}
	programs["/usr/bin/sh"] = shell
	for to, from := range programs {
		t.file(to, from)
		libraries, err := sharedLibraries(from)
		if err != nil {
			return nil, err
		}
		for to, from := range libraries {
			t.file(to, from)
		}
	}
	i := slices.IndexFunc(schemas, func(path string) bool { _, err := os.Stat(path); return err == nil })
	if i < 0 {
		return nil, errors.New("no vswitch.ovsschema on this machine: install the package openvswitch-switch")
	}
	t.file(schemas[0], schemas[i])
	return t, nil
}

// find is where this machine has a program.
func find(program string) (string, error) {
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/sbin", "/usr/bin", "/bin") {
		path := filepath.Join(dir, program)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("this machine has no %s: run `make deps`, or build the image with the Dockerfile", program)
}
