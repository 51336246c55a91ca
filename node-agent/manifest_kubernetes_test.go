package main

import (
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/cniconf"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
)

// The configuration of the DaemonSet, in each of its variants, is one that the
// program takes.
func TestManifestKubernetes(t *testing.T) {
	// In the container the template is in the ConfigMap, beside the configuration.
	args := []string{"--config=../manifests/base/agent.yaml", "--cni-conf-template=../manifests/base/cni.conflist", "--node-ip=192.0.2.10"}
	for variant, tc := range map[string]struct {
		args  []string
		proxy pipeline.ServiceProxy
	}{
		"base":                {nil, pipeline.OVS},
		"kube-proxy-services": {[]string{"--service-proxy=kube-proxy"}, pipeline.KubeProxy},
	} {
		cfg, err := configure(append(args, tc.args...)...)
		if err != nil {
			t.Errorf("%s: %v", variant, err)
			continue
		}
		if cfg.Cluster.ServiceProxy != tc.proxy || !cfg.Cluster.Enabled || cfg.Cluster.CNIConfDir != "/etc/cni/net.d" {
			t.Errorf("%s: %+v", variant, cfg.Cluster)
		}
	}
}

// The DaemonSet's own arguments are taken, and name a folder that it mounts.
func TestManifestArguments(t *testing.T) {
	data, err := os.ReadFile("../manifests/base/agent.daemonset.yaml")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`args: \[--config=/etc/k8s-ovs/agent.yaml, (.+)\]`).FindSubmatch(data)
	if found == nil {
		t.Fatal("the DaemonSet's arguments are not as they were")
	}
	args := append(strings.Split(string(found[1]), ", "), "--config=../manifests/base/agent.yaml", "--cni-conf-template=../manifests/base/cni.conflist", "--node-ip=192.0.2.10")
	cfg, err := configure(args...)
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{cfg.Cluster.CNIBinDir, cfg.Cluster.CNIConfDir} {
		if dir == "" || !strings.Contains(string(data), "mountPath: "+dir+"\n") {
			t.Errorf("the DaemonSet does not mount %q", dir)
		}
	}
}

// The CNI configuration that people see in the ConfigMap is what the agent would
// write without one.
func TestManifestCNIConfiguration(t *testing.T) {
	shown, err := cniconf.Read("../manifests/base/cni.conflist")
	if err != nil {
		t.Fatal(err)
	}
	var got, want any
	if err := json.Unmarshal(shown, &got); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(cniconf.Default(cniapi.DefaultSocket), &want); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("manifests/base/cni.conflist (-program +file):\n%s", diff)
	}
}
