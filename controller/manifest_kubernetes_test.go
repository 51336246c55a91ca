package main

import (
	"testing"

	"github.com/spf13/pflag"

	"github.com/k8s-ovs/k8s-ovs/controller/internal/controller"
	"github.com/k8s-ovs/k8s-ovs/pkg/options"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// The configuration of the Deployment, in each of its variants, is one that the
// program takes.
func TestManifestKubernetes(t *testing.T) {
	for _, tc := range []struct {
		variant  string
		args     []string
		embedded bool
		plugin   string
	}{
		{"base", []string{"--data-dir=/var/lib/k8s-ovs-etcd"}, true, topology.MultiTenant},
		{"external-etcd", []string{"--embedded-etcd=false"}, false, topology.MultiTenant},
		{"single-tenant", []string{"--data-dir=/var/lib/k8s-ovs-etcd", "--plugin-name=k8s-ovs-subnet"}, true, topology.SingleTenant},
	} {
		t.Run(tc.variant, func(t *testing.T) {
			fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
			cfg := controller.Defaults()
			cfg.Register(fs)
			options.AddConfig(fs)
			args := append([]string{"--config=../manifests/base/controller.yaml", "--node-ip=192.0.2.10", "--pod=kube-system/k8s-ovs-controller-0/uid"}, tc.args...)
			if err := options.Parse(fs, args); err != nil {
				t.Fatal(err)
			}
			if err := cfg.Complete(); err != nil {
				t.Fatal(err)
			}
			if cfg.RunEtcd != tc.embedded || cfg.Network.PluginName != tc.plugin || !cfg.Kube.Enabled {
				t.Errorf("embedded etcd %t, %s, kubernetes %t", cfg.RunEtcd, cfg.Network.PluginName, cfg.Kube.Enabled)
			}
		})
	}
}
