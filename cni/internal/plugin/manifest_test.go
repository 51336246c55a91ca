package plugin

import (
	"testing"

	"github.com/containernetworking/cni/libcni"

	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
)

// The configuration that we ship is one that runtimes and the plugin take.
func TestManifest(t *testing.T) {
	list, err := libcni.ConfListFromFile("../../../manifests/standalone/10-k8s-ovs.conflist")
	if err != nil {
		t.Fatal(err)
	}
	if len(list.Plugins) != 1 || list.Plugins[0].Network.Type != "k8s-ovs" || !list.Plugins[0].Network.Capabilities["bandwidth"] {
		t.Fatalf("%s", list.Bytes)
	}
	// As libcni does when it runs the plugin.
	whole, err := libcni.InjectConf(list.Plugins[0], map[string]any{"name": list.Name, "cniVersion": list.CNIVersion})
	if err != nil {
		t.Fatal(err)
	}
	conf, err := parseConf(whole.Bytes, cniapi.Add)
	if err != nil {
		t.Fatal(err)
	}
	if conf.Socket != cniapi.DefaultSocket {
		t.Errorf("the plugin would call %q", conf.Socket)
	}
}
