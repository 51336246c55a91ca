package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/k8s-ovs/k8s-ovs/controller/internal/cluster"
	"github.com/k8s-ovs/k8s-ovs/controller/internal/etcd"
	"github.com/k8s-ovs/k8s-ovs/controller/internal/lead"
	csr "github.com/k8s-ovs/k8s-ovs/controller/internal/signer"
	"github.com/k8s-ovs/k8s-ovs/controller/internal/upgrade"
	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/options"
	"github.com/k8s-ovs/k8s-ovs/pkg/pki"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
)

const (
	// kubernetesNetwork and kubernetesHostSubnetLength make 512 subnets of 510
	// addresses: more than the 110 pods that a kubelet takes by default.
	kubernetesNetwork          = "10.128.0.0/14"
	kubernetesHostSubnetLength = 9
	// defaultAccount is the agents' service account in the manifests.
	defaultAccount = "kube-system/k8s-ovs-agent"
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
	// Account is the user name that agents have.
	Account string

	nodeIP, source, pod, account string
}

func (k *Kubernetes) register(fs *pflag.FlagSet) {
	k.Kube.Register(fs)
	fs.StringVar(&k.nodeIP, "node-ip", "", "`address` of this machine at which nodes reach the embedded etcd, with --kubernetes")
	fs.StringVar(&k.source, "subnet-source", string(k.SubnetSource), "where the pod subnets of nodes come from, with --kubernetes: records (given out by the controller) or node (spec.podCIDR)")
	fs.StringVar(&k.account, "agent-service-account", defaultAccount, "`NAMESPACE/NAME` of the service account that agents have: nobody else is given the certificate of a node")
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
	namespace, name, err := kube.ParseRef(k.account)
	if err != nil {
		return fmt.Errorf("--agent-service-account: %w", err)
	}
	k.Account = csr.Account(namespace, name)
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

// publisher is that of the embedded etcd. The CA is looked at anew each time: it may be
// rotated.
func (c *Config) publisher(client *kube.Client, log *slog.Logger) *publisher {
	return &publisher{client: client, ref: c.Kube.EtcdSecret, log: log, place: func() (kube.EtcdAccess, error) {
		a, err := etcd.OpenAuthority(c.Embedded.DataDir)
		if err != nil {
			return kube.EtcdAccess{}, err
		}
		return kube.EtcdAccess{Endpoints: []string{c.servedEndpoint()}, CA: a.Trust, Prefix: c.publishedPrefix()}, nil
	}}
}

// publishedPrefix is empty for the default.
func (c *Config) publishedPrefix() string {
	if c.Etcd.Prefix == store.DefaultPrefix {
		return ""
	}
	return c.Etcd.Prefix
}

// signed adds to what a leader does the signing of nodes' certificates by ca.
func (i *instance) signed(c *lead.Config, ca func() (*pki.Pair, error)) {
	s := csr.Config{
		API: i.client, Records: c.Store, CA: ca, Account: i.cfg.Kube.Account, Metrics: csr.NewMetrics(i.registry), Logger: i.log,
	}
	c.Duties = append(c.Duties, func(ctx context.Context) { csr.New(s).Run(ctx) })
}

// ended adds the end of the identity that all nodes of a release before shared.
func (i *instance) ended(c *lead.Config) {
	u := upgrade.Config{Users: sharedUser{c.Store}, Tidy: i.forgetShared, Event: i.client.Event, Pod: i.cfg.Kube.Pod, Logger: i.log}
	c.Duties = append(c.Duties, func(ctx context.Context) { upgrade.New(u).Run(ctx) })
}

// forgetShared takes away the Secret of a release before, if it is this etcd's, and then the
// certificate that is in it.
func (i *instance) forgetShared(ctx context.Context) error {
	a, err := etcd.OpenAuthority(i.cfg.Embedded.DataDir)
	if err != nil {
		return err
	}
	data, err := i.client.Secret(ctx, i.cfg.Kube.EtcdSecret)
	if err != nil && !errors.Is(err, kube.ErrNotFound) {
		return err
	}
	if access, perr := kube.ParseEtcdAccess(data); perr == nil && sharesCA(access.CA, a.Trust) {
		if err := i.client.DeleteSecret(ctx, i.cfg.Kube.EtcdSecret); err != nil {
			return err
		}
		i.log.Info("deleted the Secret with the certificate that all nodes shared", "secret", i.cfg.Kube.EtcdSecret)
	}
	return a.ForgetShared()
}

// sharedUser is the user that all nodes of a release before were.
type sharedUser struct{ store *store.Store }

// Shared reports whether there is one.
func (u sharedUser) Shared(ctx context.Context) (bool, error) {
	return u.store.Auth().HasUser(ctx, pki.SharedUser)
}

// Drop takes it away.
func (u sharedUser) Drop(ctx context.Context) error {
	return u.store.Auth().DropShared(ctx, pki.SharedUser)
}

// Nodes are those there are now.
func (u sharedUser) Nodes(ctx context.Context) ([]upgrade.Node, error) {
	records, _, err := u.store.Snapshot(ctx)
	if err != nil {
		return nil, err
	}
	live, err := u.store.Statuses(ctx)
	if err != nil {
		return nil, err
	}
	return upgrade.Nodes(records.Nodes, live), nil
}
