package controller

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/spf13/pflag"

	"github.com/k8s-ovs/k8s-ovs/controller/internal/cluster"
	"github.com/k8s-ovs/k8s-ovs/controller/internal/etcd"
	"github.com/k8s-ovs/k8s-ovs/pkg/diag"
	"github.com/k8s-ovs/k8s-ovs/pkg/options"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// Config is all that the controller runs with. Fill it in with [Defaults],
// Register the flags, resolve them, then Complete it.
type Config struct {
	// ID names this controller among the candidates; made up when empty.
	ID string
	// LeaderTTL is how long a controller that died without a word stays the leader.
	LeaderTTL time.Duration
	// Network is written to etcd if there is no network configuration.
	Network topology.Config
	// GlobalNamespaces start global.
	GlobalNamespaces []string
	// CertificateLifetime is that of nodes outside of Kubernetes.
	CertificateLifetime time.Duration
	// Etcd is the cluster to use; without endpoints etcd runs in this process, or,
	// in Kubernetes without RunEtcd, a Secret says where it is.
	Etcd options.Etcd
	// Embedded is that etcd.
	Embedded etcd.Config
	RunEtcd  bool
	// Kube is the Kubernetes cluster that the records follow, if any.
	Kube Kubernetes
	Diag diag.Flags

	network, services string
	explicit          map[string]bool
	// now is the clock.
	now func() time.Time
	fs  *pflag.FlagSet
}

const (
	// minCertificateLifetime leaves time to renew.
	minCertificateLifetime = 10 * time.Second
)

// networkFlags are the fields of the network configuration, by flag.
var networkFlags = map[string]string{
	"name": "Name", "network": "Network", "host-subnet-length": "HostSubnetLength",
	"service-network": "ServiceNetwork", "plugin-name": "PluginName", "vxlan-port": "VXLANPort",
}

// Defaults are the values without flags.
func Defaults() Config {
	return Config{
		now:                 time.Now,
		CertificateLifetime: etcd.NodeLifetime,
		LeaderTTL:           store.DefaultLeaderTTL,
		Network:             topology.DefaultConfig(),
		// Where the cluster's own services run, which all others use.
		GlobalNamespaces: []string{"kube-system"},
		RunEtcd:          true,
		Kube:             Kubernetes{SubnetSource: cluster.FromRecords},
		Embedded:         etcd.Config{DataDir: etcd.DefaultDataDir, ListenClientURLs: []string{etcd.DefaultListenClientURL}},
		Diag:             diag.Flags{MetricsAddress: "127.0.0.1:9466"},
	}
}

// Register adds the flags.
func (c *Config) Register(fs *pflag.FlagSet) {
	c.fs = fs
	fs.StringVar(&c.Network.Name, "name", c.Network.Name, "`name` of the network, written to etcd if it has no configuration, as the next five are")
	fs.StringVar(&c.network, "network", c.Network.Network.String(), "cluster network, from which pods have their addresses")
	fs.IntVar(&c.Network.HostSubnetLength, "host-subnet-length", c.Network.HostSubnetLength, "host `bits` of a node's subnet: 10 is a /22")
	fs.StringVar(&c.services, "service-network", c.Network.ServiceNetwork.String(), "where service addresses come from")
	fs.StringVar(&c.Network.PluginName, "plugin-name", c.Network.PluginName, topology.MultiTenant+": namespaces are isolated; "+topology.SingleTenant+": all pods reach all")
	fs.Var(&c.Network.VXLANPort, "vxlan-port", "UDP `port` of the tunnels (default: the configuration does not say, which is 4789)")
	fs.StringSliceVar(&c.GlobalNamespaces, "global-namespaces", c.GlobalNamespaces, "comma-separated `namespaces` that start global: they reach all and are reached by all")
	fs.StringVar(&c.ID, "id", c.ID, "`name` of this controller among the candidates (default: host name and a random part)")
	fs.DurationVar(&c.LeaderTTL, "leader-ttl", c.LeaderTTL, "how long a controller that died without a word stays the leader")
	fs.DurationVar(&c.CertificateLifetime, "certificate-lifetime", c.CertificateLifetime, "how long the certificates of nodes outside of Kubernetes are good for; agents renew them after half of that")
	c.Etcd.Register(fs)
	fs.StringVar(&c.Embedded.DataDir, "data-dir", c.Embedded.DataDir, "`folder` of the embedded etcd, which runs when no --etcd-endpoints are given")
	fs.StringSliceVar(&c.Embedded.ListenClientURLs, "listen-client-urls", c.Embedded.ListenClientURLs, "comma-separated `URLs` on which the embedded etcd serves: http(s)://address:port, unix:///path")
	fs.StringVar(&c.Embedded.CertFile, "listen-client-cert", "", "PEM `file` with the certificate of the embedded etcd, for https:// URLs (default: the controller makes it, and its CA)")
	fs.StringVar(&c.Embedded.KeyFile, "listen-client-key", "", "PEM `file` with its key")
	fs.StringVar(&c.Embedded.ClientCAFile, "listen-client-cacert", "", "PEM `file` with the certificates that a client's own is checked against; clients must have one then")
	fs.BoolVar(&c.Embedded.InsecureHTTP, "insecure-listen-http", false, "let the embedded etcd serve http:// beyond this machine: whoever reaches it rules the network")
	fs.BoolVar(&c.RunEtcd, "embedded-etcd", c.RunEtcd, "run etcd in this process when no --etcd-endpoints are given; false: with --kubernetes, use the one that --etcd-secret names")
	c.Kube.register(fs)
	c.Diag.Register(fs)
}

// Complete checks all of it. Errors name the flag.
func (c *Config) Complete() error {
	if err := c.Kube.complete(); err != nil {
		return err
	}
	if err := c.completeNetwork(); err != nil {
		return err
	}
	for _, ns := range c.GlobalNamespaces {
		if err := topology.ValidateNamespaceName(ns); err != nil {
			return fmt.Errorf("--global-namespaces: %w", err)
		}
	}
	// etcd grants leases of whole seconds and, as it is configured by default, no
	// shorter than its elections take.
	if c.LeaderTTL < 2*time.Second {
		return fmt.Errorf("--leader-ttl %s: it must be 2s or more", c.LeaderTTL)
	}
	if c.CertificateLifetime < minCertificateLifetime {
		return fmt.Errorf("--certificate-lifetime %s: it must be %s or more", c.CertificateLifetime, minCertificateLifetime)
	}
	if c.ID == "" {
		if err := c.makeID(); err != nil {
			return err
		}
	}
	if err := c.Etcd.Complete(); err != nil {
		return err
	}
	if len(c.Etcd.Endpoints) > 0 {
		for _, flag := range []string{"data-dir", "listen-client-urls", "listen-client-cert", "listen-client-key", "listen-client-cacert", "insecure-listen-http"} {
			if f := c.fs.Lookup(flag); f.Changed {
				return fmt.Errorf("--%s is for the embedded etcd, which does not run with --etcd-endpoints: drop one of them", flag)
			}
		}
		return nil
	}
	if (c.Embedded.CertFile == "") != (c.Embedded.KeyFile == "") || c.Embedded.CertFile == "" && c.Embedded.ClientCAFile != "" {
		return errors.New("--listen-client-cert, --listen-client-key and --listen-client-cacert: a certificate needs its key, and clients are asked for theirs by a server with one: give all three, or none, for certificates of the controller's own making")
	}
	switch {
	case !c.RunEtcd && !c.Kube.Enabled:
		return errors.New("--embedded-etcd=false without --etcd-endpoints: name them, or use --kubernetes with --etcd-secret")
	case c.RunEtcd && c.Kube.Enabled:
		return c.completeServed()
	}
	return nil
}

// completeNetwork reads the network configuration. In Kubernetes its defaults are
// other ones: pods of hundreds of nodes do not fit in a /16.
func (c *Config) completeNetwork() (err error) {
	if c.Kube.Enabled {
		if !c.fs.Changed("network") {
			c.network = kubernetesNetwork
		}
		if !c.fs.Changed("host-subnet-length") && !c.fs.Changed("network") {
			c.Network.HostSubnetLength = kubernetesHostSubnetLength
		}
	}
	if c.Network.Network, err = netip.ParsePrefix(c.network); err != nil {
		return fmt.Errorf("--network %q is not a network such as 172.11.0.0/16", c.network)
	}
	if c.Network.ServiceNetwork, err = netip.ParsePrefix(c.services); err != nil {
		return fmt.Errorf("--service-network %q is not a network such as 10.96.0.0/12", c.services)
	}
	if err := c.Network.Validate(); err != nil {
		return fmt.Errorf("flags --name, --network, --host-subnet-length, --service-network, --plugin-name, --vxlan-port: %w", err)
	}
	c.explicit = map[string]bool{}
	for flag, field := range networkFlags {
		if c.fs.Changed(flag) {
			c.explicit[field] = true
		}
	}
	return nil
}

// makeID names the controller so that two on one machine differ.
func (c *Config) makeID() error {
	host, err := os.Hostname()
	if err != nil || host == "" {
		return errors.New("this machine has no host name: give --id")
	}
	var b [4]byte
	rand.Read(b[:]) // never fails, says its documentation
	c.ID = host + "-" + hex.EncodeToString(b[:])
	return nil
}
