package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/agent"
	"github.com/k8s-ovs/k8s-ovs/pkg/options"
	"github.com/k8s-ovs/k8s-ovs/pkg/pki"
	"github.com/k8s-ovs/k8s-ovs/pkg/service"
)

func configure(args ...string) (agent.Config, error) {
	fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
	cfg := agent.Defaults()
	cfg.NodeName = "n1" // whatever this machine is called
	cfg.Register(fs)
	options.AddConfig(fs)
	if err := options.Parse(fs, args); err != nil {
		return cfg, err
	}
	return cfg, cfg.Complete()
}

// nodeBundle is that of some node.
func nodeBundle(t *testing.T) []byte {
	t.Helper()
	ca, err := pki.NewCA("ca", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ca.Client(pki.NodeUser("n1", "id"), time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	data, err := pki.Bundle{Endpoints: []string{"https://192.0.2.10:2379"}, CA: ca.CertPEM, Pair: pair}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestIdentityFile: a bundle that was taken over serves when the one that was given is
// gone, and without the flag.
func TestIdentityFile(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "identity.pem"), nodeBundle(t), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"--etcd-bundle", dir + "/gone.pem"}, nil} {
		cfg, err := configure(append(args, "--state-dir", dir)...)
		if err != nil || len(cfg.Etcd.Endpoints) != 1 {
			t.Errorf("%v: %+v, %v", args, cfg.Etcd.Endpoints, err)
		}
	}
	if _, err := configure("--etcd-bundle", dir+"/gone.pem", "--state-dir", t.TempDir()); err == nil {
		t.Error("a bundle that is nowhere is taken")
	}
}

// The example that we ship is one that the program takes.
func TestManifest(t *testing.T) {
	manifest, err := os.ReadFile("../manifests/standalone/agent.yaml")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	bundle := filepath.Join(dir, "etcd.pem")
	if err := os.WriteFile(bundle, nodeBundle(t), 0o600); err != nil {
		t.Fatal(err)
	}
	// The one difference: where the bundle is.
	if !bytes.Contains(manifest, []byte("/etc/k8s-ovs/etcd.pem")) {
		t.Error("the manifest names no bundle")
	}
	path := filepath.Join(dir, "agent.yaml")
	if err := os.WriteFile(path, bytes.ReplaceAll(manifest, []byte("/etc/k8s-ovs/etcd.pem"), []byte(bundle)), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := configure("--config", path, "--state-dir", dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(cfg.Etcd.Endpoints) != 1 || cfg.Diag.LogFormat != "json" {
		t.Errorf("%+v", cfg)
	}
}

// In Kubernetes the defaults are enough: the Secret says where etcd is.
func TestKubernetes(t *testing.T) {
	cfg, err := configure("--kubernetes", "--cni-conf-dir", "/etc/cni/net.d", "--cni-conf-template", "../manifests/standalone/10-k8s-ovs.conflist")
	if err != nil {
		t.Fatal(err)
	}
	public := []service.Key{{Namespace: "default", Name: "kubernetes"}}
	if !cfg.Cluster.Enabled || cfg.Cluster.EtcdSecret != options.DefaultEtcdSecret || !slices.Equal(cfg.Cluster.PublicServices, public) {
		t.Errorf("%+v", cfg.Cluster)
	}
}

func TestWrongFlags(t *testing.T) {
	const etcd = "--etcd-endpoints=192.0.2.1:2379"
	for _, tc := range []struct {
		args []string
		want string // in the error
	}{
		{nil, "--etcd-bundle"},
		{[]string{etcd, "extra"}, `"extra"`},
		{[]string{etcd, "--node-ip", "x"}, "--node-ip"},
		{[]string{etcd, "--node-ip", "fe80::1"}, "--node-ip"},
		{[]string{etcd, "--node-name", "a/b"}, "--node-name"},
		{[]string{etcd, "--datapath", "dpdk"}, "--datapath"},
		{[]string{etcd, "--bridge", "a-name-that-is-too-long"}, "--bridge"},
		{[]string{etcd, "--bridge", "br-phy"}, "--vtep-bridge"},
		{[]string{etcd, "--ovs-db", "tcp:192.0.2.1:6640"}, "--ovs-db"},
		{[]string{etcd, "--state-dir", "here"}, "--state-dir"},
		{[]string{etcd, "--mtu", "60"}, "--mtu"},
		{[]string{etcd, "--vxlan-port", "0"}, "--vxlan-port"},
		{[]string{etcd, "--vxlan-port", "70000"}, "vxlan-port"},
		{[]string{"--kubernetes", "--etcd-secret", "k8s-ovs-etcd"}, "--etcd-secret"},
		{[]string{"--kubeconfig", "/nonexistent"}, "--kubeconfig"},
		{[]string{"--kubernetes", "--service-proxy", "ipvs"}, "--service-proxy"},
		{[]string{"--kubernetes", "--public-services", "default/kubernetes,dns"}, `--public-services: "dns"`},
		{[]string{"--kubernetes", "--daemonset", "k8s-ovs-agent"}, "--daemonset"},
		{[]string{etcd, "--daemonset", "kube-system/k8s-ovs-agent"}, "--kubernetes"},
		{[]string{etcd, "--log-policy-drops"}, "--kubernetes"},
		{[]string{etcd, "--cni-conf-dir", "net.d"}, "--cni-conf-dir"},
		{[]string{etcd, "--cni-conf-dir", "/etc/cni/net.d", "--cni-conf-file", "../x.conflist"}, "--cni-conf-file"},
		{[]string{etcd, "--cni-conf-dir", "/etc/cni/net.d", "--cni-conf-file", "k8s-ovs.conf"}, ".conflist"},
		{[]string{etcd, "--cni-conf-dir", "/etc/cni/net.d", "--cni-conf-template", "main.go"}, "--cni-conf-template"},
		{[]string{etcd, "--cni-conf-template", "main.go"}, "--cni-conf-dir"},
		{[]string{etcd, "--cni-bin-dir", "bin"}, "--cni-bin-dir"},
		{[]string{etcd, "--cni-bin-dir", "/opt/cni/bin", "--cni-plugins-from", "cni"}, "--cni-plugins-from"},
	} {
		if _, err := configure(tc.args...); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q: error %v, want one that names %s", tc.args, err, tc.want)
		}
	}
}

// Programs share an environment: the others know this one's flags.
func TestFlagsKnown(t *testing.T) {
	fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
	cfg := agent.Defaults()
	cfg.Register(fs)
	options.AddConfig(fs)
	got := []string{"version"}
	fs.VisitAll(func(f *pflag.Flag) { got = append(got, f.Name) })
	slices.Sort(got)
	if diff := cmp.Diff(options.FlagsOf("k8s-ovs-agent"), got); diff != "" {
		t.Errorf("flags (-package options knows +program has):\n%s", diff)
	}
}
