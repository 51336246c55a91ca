// Command render writes the manifests that people apply without kustomize:
// what the overlays render to, one file each. With -version the images have that tag, as
// those of `make image` do: applied over an earlier version's, they change the pods.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"

	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// rendered is the checked-in file of a kustomization; both paths are below manifests/.
var rendered = []struct{ kustomization, file string }{
	{"base", "k8s-ovs.yaml"},
	{"overlays/openvswitch", "k8s-ovs-openvswitch.yaml"},
}

const header = `# Rendered from manifests/%s by "make manifests". Before you apply it,
# make the ConfigMap k8s-ovs-config say what your cluster's networks are.
`

func main() {
	dir := flag.String("dir", "manifests", "`folder` with the bases and overlays")
	out := flag.String("out", "", "`folder` for the files; -dir when it is not given")
	version := flag.String("version", "", "`tag` of the images; the one of components/images when it is not given")
	flag.Parse()
	if *out == "" {
		*out = *dir
	}
	if err := os.MkdirAll(*out, 0o755); err != nil {
		fmt.Fprintf(os.Stderr, "render: %v\n", err)
		os.Exit(1)
	}
	for _, r := range rendered {
		text, err := render(*dir, r.kustomization)
		if err == nil {
			text = retag(text, *version)
			err = os.WriteFile(filepath.Join(*out, r.file), text, 0o644)
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "render: %v\n", err)
			os.Exit(1)
		}
	}
}

// ours matches an image of ours in a rendered manifest: its name, and its tag.
var ours = regexp.MustCompile(`(?m)^(\s*(?:- )?image: \S*k8s-ovs/(?:node|controller)):\S+$`)

// retag gives the images of a rendered manifest another tag; empty leaves theirs.
func retag(text []byte, tag string) []byte {
	if tag == "" {
		return text
	}
	return ours.ReplaceAll(text, []byte("${1}:"+tag))
}

// render is the file of a kustomization, in the order in which kubectl applies
// one: what others need comes first.
func render(dir, kustomization string) ([]byte, error) {
	options := krusty.MakeDefaultOptions()
	options.Reorder = krusty.ReorderOptionLegacy
	path := filepath.Join(dir, kustomization)
	resources, err := krusty.MakeKustomizer(options).Run(filesys.MakeFsOnDisk(), path)
	if err != nil {
		return nil, fmt.Errorf("render %s: %w", path, err)
	}
	yaml, err := resources.AsYaml()
	if err != nil {
		return nil, fmt.Errorf("render %s: %w", path, err)
	}
	return append(fmt.Appendf(nil, header, kustomization), yaml...), nil
}
