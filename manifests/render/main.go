// Command render writes the manifests that people apply without kustomize:
// what the overlays render to, one file each.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"

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
	flag.Parse()
	for _, r := range rendered {
		text, err := render(*dir, r.kustomization)
		if err == nil {
			err = os.WriteFile(filepath.Join(*dir, r.file), text, 0o644)
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "render: %v\n", err)
			os.Exit(1)
		}
	}
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
