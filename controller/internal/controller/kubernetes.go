package controller

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/k8s-ovs/k8s-ovs/controller/internal/cluster"
	"github.com/k8s-ovs/k8s-ovs/controller/internal/etcd"
	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/options"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
)

const (
	// kubernetesNetwork and kubernetesHostSubnetLength make 512 subnets of 510
	// addresses: more than the 110 pods that a kubelet takes by default.
	kubernetesNetwork          = "10.128.0.0/14"
	kubernetesHostSubnetLength = 9
	// secretInterval is how often the Secret is looked after: someone may delete
	// it. secretRetry is the pause after a failure.
	secretInterval = 30 * time.Second
	secretRetry    = 2 * time.Second
)

// Kubernetes is what the controller runs with as a part of a Kubernetes cluster.
type Kubernetes struct {
	options.Kube
	// NodeIP is the address at which nodes reach the embedded etcd.
	NodeIP netip.Addr
	// SubnetSource says where the subnets of nodes come from.
	SubnetSource cluster.SubnetSource
	// Pod is the controller's own; its name is empty where it is in none.
	Pod kube.ObjectRef

	nodeIP, source, pod string
}

func (k *Kubernetes) register(fs *pflag.FlagSet) {
	k.Kube.Register(fs)
	fs.StringVar(&k.nodeIP, "node-ip", "", "`address` of this machine at which nodes reach the embedded etcd, with --kubernetes")
	fs.StringVar(&k.source, "subnet-source", string(k.SubnetSource), "where the pod subnets of nodes come from, with --kubernetes: records (given out by the controller) or node (spec.podCIDR)")
	fs.StringVar(&k.pod, "pod", "", "`NAMESPACE/NAME[/UID]` of the controller's own pod, for Events about the network configuration")
}

func (k *Kubernetes) complete() (err error) {
	if err := k.Kube.Complete(); err != nil {
		return err
	}
	k.SubnetSource = cluster.SubnetSource(k.source)
	if k.SubnetSource != cluster.FromRecords && k.SubnetSource != cluster.FromNode {
		return fmt.Errorf("--subnet-source %q is neither %s nor %s", k.source, cluster.FromRecords, cluster.FromNode)
	}
	if k.nodeIP != "" {
		if k.NodeIP, err = netip.ParseAddr(k.nodeIP); err != nil || !k.NodeIP.Is4() {
			return fmt.Errorf("--node-ip %q is not an IPv4 address", k.nodeIP)
		}
	}
	if k.pod == "" {
		return nil
	}
	parts := strings.Split(k.pod, "/")
	if len(parts) < 2 || len(parts) > 3 || slices.Contains(parts, "") {
		return fmt.Errorf("--pod %q is not NAMESPACE/NAME or NAMESPACE/NAME/UID", k.pod)
	}
	k.Pod = kube.ObjectRef{Kind: "Pod", Namespace: parts[0], Name: parts[1]}
	if len(parts) == 3 {
		k.Pod.UID = parts[2]
	}
	return nil
}

// completeServed completes an embedded etcd that serves the nodes: always
// encrypted, with certificates that the controller makes.
func (c *Config) completeServed() error {
	if !c.Kube.NodeIP.IsValid() {
		return errors.New("--node-ip is missing: nodes reach the embedded etcd at that address of this machine")
	}
	for _, flag := range []string{"listen-client-cert", "listen-client-key", "listen-client-cacert"} {
		if c.fs.Changed(flag) {
			return fmt.Errorf("--%s: with --kubernetes the embedded etcd has certificates of the controller's own making: drop the flag, or run etcd apart and give --etcd-endpoints", flag)
		}
	}
	if !c.fs.Changed("listen-client-urls") {
		host := netip.AddrPortFrom(c.Kube.NodeIP, etcd.DefaultServePort)
		c.Embedded.ListenClientURLs = []string{"https://" + host.String()}
	}
	for _, u := range c.Embedded.ListenClientURLs {
		if strings.HasPrefix(u, "http://") {
			return fmt.Errorf("--listen-client-urls: %q is not encrypted: with --kubernetes write https://", u)
		}
	}
	if c.servedEndpoint() == "" {
		return errors.New("--listen-client-urls: no https://address:port is among them, by which nodes could reach the embedded etcd")
	}
	return nil
}

// servedEndpoint is how nodes reach the embedded etcd; empty when they cannot.
func (c *Config) servedEndpoint() string {
	for _, text := range c.Embedded.ListenClientURLs {
		u, err := url.Parse(text)
		if err != nil || u.Scheme != "https" || u.Port() == "" {
			continue
		}
		port, err := strconv.ParseUint(u.Port(), 10, 16)
		if err != nil {
			continue
		}
		return "https://" + netip.AddrPortFrom(c.Kube.NodeIP, uint16(port)).String()
	}
	return ""
}

// publisher keeps the Secret with access to the embedded etcd.
type publisher struct {
	client *kube.Client
	ref    string
	access kube.EtcdAccess
	log    *slog.Logger
}

// serve makes what the Secret is to say.
func (c *Config) serve(client *kube.Client, authority *etcd.Authority, log *slog.Logger) (*publisher, error) {
	shared, err := authority.Shared(time.Now())
	if err != nil {
		return nil, err
	}
	access := kube.EtcdAccess{Endpoints: []string{c.servedEndpoint()}, CA: authority.Trust, Cert: shared.CertPEM, Key: shared.KeyPEM}
	if c.Etcd.Prefix != store.DefaultPrefix {
		access.Prefix = c.Etcd.Prefix
	}
	return &publisher{client: client, ref: c.Kube.EtcdSecret, access: access, log: log}, nil
}

// claim waits until the Secret is not another etcd's: one with the network's
// records may be on another machine, and nodes that came to this one, which is
// empty, would give running pods' subnets and netIDs away. tell hears why it waits.
func (p *publisher) claim(ctx context.Context, tell func(error)) error {
	said := ""
	for {
		err := p.mine(ctx)
		if err == nil || ctx.Err() != nil {
			return ctx.Err()
		}
		tell(err)
		if err.Error() != said {
			said = err.Error()
			p.log.Error("the embedded etcd does not start yet; looking again", "error", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(secretRetry):
		}
	}
}

// mine is nil when the Secret is not there, is of no use to anybody, or was made
// with the certificates of this data directory.
func (p *publisher) mine(ctx context.Context) error {
	data, err := p.client.Secret(ctx, p.ref)
	if errors.Is(err, kube.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	a, err := kube.ParseEtcdAccess(data)
	switch {
	case errors.Is(err, kube.ErrNotEncrypted): // somebody's etcd, which may have the records
		return fmt.Errorf("secret %s is for another etcd and cannot be used: %w; with --embedded-etcd=false the controller uses that one; only if it has no records delete the Secret", p.ref, err)
	case err != nil, bytes.Equal(a.CA, p.access.CA):
		return nil
	}
	return fmt.Errorf("secret %s is for another etcd, at %s, and --data-dir here has none of its certificates: run the controller on the machine that has the records, or put its data directory here; only if they are lost delete the Secret, which begins anew with other subnets and netIDs", p.ref, strings.Join(a.Endpoints, ", "))
}

// run puts the Secret in place, and again when someone takes it away, until ctx ends.
func (p *publisher) run(ctx context.Context) {
	said := ""
	for {
		pause := secretInterval
		switch wrote, err := p.ensure(ctx); {
		case ctx.Err() != nil:
			return
		case err != nil:
			pause = secretRetry
			if err.Error() != said {
				said = err.Error()
				p.log.Error("nodes cannot learn how to reach etcd; trying again", "error", err)
			}
		case wrote:
			said = ""
			p.log.Info("wrote the Secret with access to etcd", "secret", p.ref, "endpoints", p.access.Endpoints)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// ensure writes the Secret unless the one that is there gives the same access; it
// may have another client certificate of the same CA.
func (p *publisher) ensure(ctx context.Context) (wrote bool, err error) {
	data, err := p.client.Secret(ctx, p.ref)
	if err != nil && !errors.Is(err, kube.ErrNotFound) {
		return false, err
	}
	if a, perr := kube.ParseEtcdAccess(data); perr == nil && slices.Equal(a.Endpoints, p.access.Endpoints) &&
		a.Prefix == p.access.Prefix && bytes.Equal(a.CA, p.access.CA) && etcd.Signed(a.CA, a.Cert, a.Key, time.Now()) {
		return false, nil
	}
	return p.client.PutSecret(ctx, p.ref, p.access.Data(), false)
}
