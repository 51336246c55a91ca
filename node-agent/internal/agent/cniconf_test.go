package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/cniconf"
	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
	"github.com/k8s-ovs/k8s-ovs/pkg/service"
)

// daemonSet stands in for the API server.
type daemonSet struct {
	apiServer
	wants bool
	err   error
}

func (d daemonSet) DaemonSetWants(_ context.Context, namespace, name, node string) (bool, error) {
	if namespace != "kube-system" || name != "k8s-ovs-agent" || node != "n1" {
		return true, errors.New("asked for " + namespace + "/" + name + " on " + node)
	}
	return d.wants, d.err
}

func ending(cfg Config, c *configuration, api apiServer) *node {
	return &node{cfg: cfg, conf: c, api: api, log: quiet()}
}

func configured(t *testing.T) Config {
	dir := t.TempDir()
	cfg := Defaults()
	cfg.NodeName, cfg.StateDir = "n1", dir
	cfg.Cluster.CNIConfDir, cfg.Cluster.cniConf = filepath.Join(dir, "net.d"), cniconf.Default(cniapi.DefaultSocket)
	cfg.Cluster.daemonSet = service.Key{Namespace: "kube-system", Name: "k8s-ovs-agent"}
	return cfg
}

func start(t *testing.T, cfg Config, bootID string) *configuration {
	t.Helper()
	c, err := newConfiguration(cfg, bootID, quiet())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// The file's life: from the first time that pods can be attached until the node leaves.
func TestConfigurationLife(t *testing.T) {
	cfg := configured(t)
	path := filepath.Join(cfg.Cluster.CNIConfDir, "10-k8s-ovs.conflist")
	there := func(when string, want bool) {
		t.Helper()
		if _, err := os.Stat(path); (err == nil) != want {
			t.Errorf("%s: %v; want it there: %v", when, err, want)
		}
	}
	c := start(t, cfg, "boot-1")
	there("at the start", false)
	if c.inPlace() == nil {
		t.Error("in place before it was written")
	}
	c.ensure()
	there("ready", true)
	if err := c.inPlace(); err != nil {
		t.Error(err)
	}
	ending(cfg, c, daemonSet{wants: true}).leave(t.Context())
	there("after a restart was asked for", true)
	ending(cfg, c, daemonSet{err: errors.New("the API server is away")}).leave(t.Context())
	there("after an end without the API server", true)
	_ = start(t, cfg, "boot-1")
	there("at the next start", true)
	c = start(t, cfg, "boot-2")
	there("at the start after a boot", false)
	c.ensure()
	ending(cfg, c, daemonSet{wants: false}).leave(t.Context())
	there("after the node left", false)
}

func TestConfigurationNone(t *testing.T) {
	cfg := configured(t)
	cfg.Cluster.CNIConfDir = ""
	c := start(t, cfg, "boot-1")
	c.ensure()
	ending(cfg, c, daemonSet{}).leave(t.Context())
	if err := c.inPlace(); err != nil {
		t.Error(err)
	}
}

// A file of somebody else stays, and the agent says that it is not ready.
func TestConfigurationForeign(t *testing.T) {
	cfg := configured(t)
	if err := os.Mkdir(cfg.Cluster.CNIConfDir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(cfg.Cluster.CNIConfDir, cfg.Cluster.CNIConfFile), []byte(`{"name":"other"}`), 0o644); err != nil {
		t.Fatal(err)
	}
	c := start(t, cfg, "boot-1")
	c.ensure()
	var foreign *cniconf.ForeignError
	if err := c.inPlace(); !errors.As(err, &foreign) {
		t.Errorf("in place: %v", err)
	}
}
