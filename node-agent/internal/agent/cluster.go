package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/cniconf"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/etcdaccess"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/podlimits"
	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/options"
	"github.com/k8s-ovs/k8s-ovs/pkg/service"
)

// Cluster is what the agent runs with as a part of a Kubernetes cluster.
type Cluster struct {
	options.Kube
	// ServiceProxy is who translates the addresses of services for pods.
	ServiceProxy pipeline.ServiceProxy
	serviceProxy string
	// PublicServices are open to every tenant.
	PublicServices []service.Key
	publicServices []string
	// LogPolicyDrops says that packets that policies deny are logged.
	LogPolicyDrops bool
	// CNIConfDir is where the container runtime looks for its CNI configuration,
	// empty to write none; CNIConfFile the file's name; CNIConfTemplate what to write,
	// where it is not the default.
	CNIConfDir, CNIConfFile, CNIConfTemplate string
	cniConf                                  []byte
	// CNIBinDir is where the container runtime looks for plugins, empty where they are not the agent's to keep;
	// CNIPluginsFrom has those that belong there.
	CNIBinDir, CNIPluginsFrom string
	// daemonSet is the agent's own, the zero value where it runs in none.
	daemonSet    service.Key
	daemonSetRef string
}

// register adds the flags.
func (c *Cluster) register(fs *pflag.FlagSet) {
	c.Kube.Register(fs)
	fs.StringVar(&c.serviceProxy, "service-proxy", c.serviceProxy, "who translates the addresses of services for pods: ovs (the bridge) or kube-proxy (the node's)")
	fs.StringSliceVar(&c.publicServices, "public-services", c.publicServices, "comma-separated `services`, each NAMESPACE/NAME, that every tenant may use")
	fs.BoolVar(&c.LogPolicyDrops, "log-policy-drops", c.LogPolicyDrops, "log the packets that network policies deny, a bounded number a second: whose, which way, from or to whom, by which policies")
	fs.StringVar(&c.CNIConfDir, "cni-conf-dir", c.CNIConfDir, "the container runtime's `directory` of CNI configurations; one is put there as soon as pods can be attached (default: none is written)")
	fs.StringVar(&c.CNIConfFile, "cni-conf-file", c.CNIConfFile, "`name` of the CNI configuration")
	fs.StringVar(&c.CNIConfTemplate, "cni-conf-template", c.CNIConfTemplate, "`file` with the contents of the CNI configuration (default: k8s-ovs, then portmap)")
	fs.StringVar(&c.CNIBinDir, "cni-bin-dir", c.CNIBinDir, "the container runtime's `directory` of CNI plugins: those that go missing there are put back (default: nobody looks)")
	fs.StringVar(&c.CNIPluginsFrom, "cni-plugins-from", c.CNIPluginsFrom, "`directory` with the plugins that are put back")
	fs.StringVar(&c.daemonSetRef, "daemonset", c.daemonSetRef, "`NAMESPACE/NAME` of the DaemonSet that runs the agent: where it no longer wants the node, the CNI configuration goes")
}

// complete checks what was given; socket is the agent's.
func (c *Cluster) complete(socket string) error {
	if err := c.Kube.Complete(); err != nil {
		return err
	}
	c.ServiceProxy = pipeline.ServiceProxy(c.serviceProxy)
	if c.ServiceProxy != pipeline.OVS && c.ServiceProxy != pipeline.KubeProxy {
		return fmt.Errorf("--service-proxy %q is none of %s, %s", c.serviceProxy, pipeline.OVS, pipeline.KubeProxy)
	}
	if !c.Enabled {
		c.ServiceProxy = pipeline.NoServices // there is nobody to tell of any
	}
	if c.LogPolicyDrops && !c.Enabled {
		return errors.New("--log-policy-drops needs --kubernetes: without an API server there are no policies")
	}
	c.PublicServices = nil
	for _, name := range c.publicServices {
		key, err := parseObject(name)
		if err != nil {
			return fmt.Errorf("--public-services: %w", err)
		}
		c.PublicServices = append(c.PublicServices, key)
	}
	if c.daemonSetRef != "" {
		key, err := parseObject(c.daemonSetRef)
		if err != nil {
			return fmt.Errorf("--daemonset: %w", err)
		}
		if !c.Enabled {
			return errors.New("--daemonset needs --kubernetes: the API server says whether the DaemonSet wants this node")
		}
		c.daemonSet = key
	}
	for flag, dir := range map[string]string{"--cni-bin-dir": c.CNIBinDir, "--cni-plugins-from": c.CNIPluginsFrom} {
		if dir != "" && !filepath.IsAbs(dir) {
			return fmt.Errorf("%s %q is not an absolute path", flag, dir)
		}
	}
	return c.completeCNIConf(socket)
}

func (c *Cluster) completeCNIConf(socket string) error {
	if c.CNIConfDir == "" {
		if c.CNIConfTemplate != "" {
			return errors.New("--cni-conf-template needs --cni-conf-dir, where the configuration goes")
		}
		return nil
	}
	if !filepath.IsAbs(c.CNIConfDir) {
		return fmt.Errorf("--cni-conf-dir %q is not an absolute path", c.CNIConfDir)
	}
	// The ending tells the runtime that it is a list of plugins (libcni).
	if filepath.Base(c.CNIConfFile) != c.CNIConfFile || strings.HasPrefix(c.CNIConfFile, ".") || filepath.Ext(c.CNIConfFile) != ".conflist" {
		return fmt.Errorf("--cni-conf-file %q is not a file name that ends in .conflist", c.CNIConfFile)
	}
	if c.CNIConfTemplate == "" {
		c.cniConf = cniconf.Default(socket)
		return nil
	}
	var err error
	if c.cniConf, err = cniconf.Read(c.CNIConfTemplate); err != nil {
		return fmt.Errorf("--cni-conf-template: %w", err)
	}
	return nil
}

// cniConf is the CNI configuration of the node in the boot called bootID.
func (c Config) cniConf(bootID string) cniconf.Config {
	return cniconf.Config{Dir: c.Cluster.CNIConfDir, Name: c.Cluster.CNIConfFile, Contents: c.Cluster.cniConf, StateDir: c.StateDir, BootID: bootID}
}

// parseObject reads NAMESPACE/NAME.
func parseObject(s string) (service.Key, error) {
	namespace, name, err := kube.ParseRef(s)
	return service.Key{Namespace: namespace, Name: name}, err
}

// apiServer is the part of the Kubernetes API that the agent uses; [kube.Client]
// is one.
type apiServer interface {
	etcdaccess.Source
	wanted
	podlimits.Source
	WatchServices(ctx context.Context, nodeName string) <-chan service.Update
	// Close ends the sending of Events.
	Close()
}

// openAPI is nil outside of Kubernetes. It does not wait for the API server.
func openAPI(cfg Config, log *slog.Logger) (apiServer, error) {
	if !cfg.Cluster.Enabled {
		return nil, nil
	}
	client, err := kube.Open(kube.Config{Kubeconfig: cfg.Cluster.Kubeconfig, Logger: log})
	if err != nil {
		return nil, err
	}
	return client, nil
}
