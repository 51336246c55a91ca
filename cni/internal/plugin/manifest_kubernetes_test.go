package plugin

import (
	"testing"

	"github.com/containernetworking/cni/libcni"

	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
)

// The CNI configuration of the DaemonSet is one that runtimes and the plugin
// take, and has host ports.
func TestManifestKubernetes(t *testing.T) {
	list, err := libcni.ConfListFromFile("../../../manifests/base/cni.conflist")
	if err != nil {
		t.Fatal(err)
	}
	if len(list.Plugins) != 2 || list.Plugins[1].Network.Type != "portmap" || !list.Plugins[1].Network.Capabilities["portMappings"] {
		t.Fatalf("%s", list.Bytes)
	}
	whole, err := libcni.InjectConf(list.Plugins[0], map[string]any{"name": list.Name, "cniVersion": list.CNIVersion})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parseConf(whole.Bytes, cniapi.Add); err != nil {
		t.Fatal(err)
	}
}
