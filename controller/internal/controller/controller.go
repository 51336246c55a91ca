// Package controller wires the controller: etcd, the connection to it, the
// Kubernetes cluster if there is one, the candidate for the lead, and the
// diagnostics. It owns their lifetimes and decides nothing.
package controller

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"golang.org/x/sync/errgroup"

	"github.com/k8s-ovs/k8s-ovs/controller/internal/etcd"
	"github.com/k8s-ovs/k8s-ovs/controller/internal/lead"
	"github.com/k8s-ovs/k8s-ovs/pkg/diag"
	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
)

// Run runs the controller until ctx ends, which is no error, or until something
// fails that only a restart can mend.
func Run(ctx context.Context, cfg Config, log *slog.Logger) error {
	var client *kube.Client
	if cfg.Kube.Enabled {
		var err error
		if client, err = kube.Open(kube.Config{Kubeconfig: cfg.Kube.Kubeconfig, Logger: log}); err != nil {
			return err
		}
		defer client.Close()
	}
	return runWith(ctx, cfg, client, log)
}

// runWith is Run with a client of the API server, nil for none.
func runWith(ctx context.Context, cfg Config, client *kube.Client, log *slog.Logger) error {
	i := newInstance(cfg, client, log)
	server := diag.NewServer(diag.Config{
		Address: cfg.Diag.MetricsAddress, Registry: i.registry, Profiling: cfg.Diag.Profiling, Logger: log,
		Ready: []diag.Check{{Name: "records", Probe: func(context.Context) error { return i.ready() }}},
		State: i.state,
	})
	if err := server.Listen(); err != nil {
		return err
	}
	group, gctx := errgroup.WithContext(ctx)
	group.Go(func() error { return server.Run(gctx) })
	group.Go(func() error { return i.work(gctx) })
	if err := group.Wait(); err != nil && ctx.Err() == nil {
		return err
	}
	log.Info("the controller ends")
	return nil
}

// instance is one run. Its diagnostics answer from the beginning, so that one that
// waits for access to etcd is seen to be alive.
type instance struct {
	cfg       Config
	client    *kube.Client
	log       *slog.Logger
	registry  *prometheus.Registry
	candidate atomic.Pointer[lead.Controller]
	// server is etcd in this process, nil before it serves and where it is elsewhere.
	server atomic.Pointer[etcd.Server]
	// waits is what keeps it from etcd, where that is known.
	waits atomic.Pointer[error]
	// insecure says why clients of etcd have no identities; identities is the metric of it.
	insecure   atomic.Pointer[string]
	identities prometheus.Gauge
	// signer signs for nodes; nil where the controller has no CA.
	signer *signer
}

// newInstance makes one, with its metrics.
func newInstance(cfg Config, client *kube.Client, log *slog.Logger) *instance {
	i := &instance{cfg: cfg, client: client, log: log, registry: diag.NewRegistry("k8s-ovs-controller")}
	i.identities = enforced(i.registry)
	return i
}

// enforced is the metric of whether clients of etcd have identities.
func enforced(reg prometheus.Registerer) prometheus.Gauge {
	return promauto.With(reg).NewGauge(prometheus.GaugeOpts{
		Namespace: "k8s_ovs", Subsystem: "controller", Name: "identities_enforced",
		Help: "1 where each client of the embedded etcd has a user of its own with no more rights than it needs, 0 where all have all rights; of an external etcd 0.",
	})
}

func (i *instance) ready() error {
	if server := i.server.Load(); server != nil {
		if err := server.Full(); err != nil {
			return err
		}
	}
	if c := i.candidate.Load(); c != nil {
		return c.Ready()
	}
	if why := i.waits.Load(); why != nil {
		return *why
	}
	return errors.New("there is no connection to etcd yet")
}

// state is what /debug/state shows.
type state struct {
	lead.State
	// Insecure says why clients of etcd have no identities; absent where they do.
	Insecure string `json:"insecure,omitempty"`
}

func (i *instance) state() any {
	c := i.candidate.Load()
	if c == nil {
		return nil
	}
	s := state{State: c.State()}
	if why := i.insecure.Load(); why != nil {
		s.Insecure = *why
	}
	return s
}

// work connects to etcd, which may run in this process, and stands for the lead.
func (i *instance) work(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	group, gctx := errgroup.WithContext(ctx)
	defer func() { cancel(); group.Wait() }()
	var access kube.EtcdAccess // of an external etcd, by a Secret
	switch {
	case len(i.cfg.Etcd.Endpoints) > 0:
	case i.cfg.RunEtcd:
		server, err := i.embedded(ctx, gctx, group)
		if err != nil {
			return err
		}
		defer server.Close()
	default:
		var err error
		if access, err = i.awaitAccess(ctx); err != nil {
			return err
		}
		if err := i.cfg.Etcd.Use(access.Endpoints, access.CA, access.Cert, access.Key, access.Prefix); err != nil {
			return fmt.Errorf("secret %s: %w", i.cfg.Kube.EtcdSecret, err)
		}
		group.Go(func() error { return i.followAccess(gctx, access) })
	}
	s, err := store.Open(i.cfg.Etcd.Config(i.log))
	if err != nil {
		return err
	}
	defer s.Close()
	c := lead.Config{
		Store: s, ID: i.cfg.ID, Network: i.cfg.Network, Explicit: i.cfg.explicit, GlobalNamespaces: i.cfg.GlobalNamespaces,
		LeaderTTL: i.cfg.LeaderTTL, Random: rand.Reader, Metrics: lead.NewMetrics(i.registry), Logger: i.log,
	}
	if i.signer != nil {
		c.Signer = i.signer
	}
	if i.client != nil {
		c.Cluster = &lead.Cluster{API: i.client, SubnetSource: i.cfg.Kube.SubnetSource, Pod: i.cfg.Kube.Pod}
		i.identify(&c, access)
	}
	candidate := lead.New(c)
	i.candidate.Store(candidate)
	group.Go(func() error { return candidate.Run(gctx) })
	return group.Wait()
}

// embedded starts etcd in this process, and in Kubernetes tells the nodes how to
// reach it.
func (i *instance) embedded(ctx, gctx context.Context, group *errgroup.Group) (*etcd.Server, error) {
	if err := i.awaitRoom(ctx); err != nil {
		return nil, err
	}
	var authority *etcd.Authority
	if i.cfg.signs() {
		var err error
		if authority, err = i.awaitAuthority(ctx); err != nil {
			return nil, err
		}
		i.cfg.Embedded.Authority = authority
		i.signer = &signer{lifetime: i.cfg.CertificateLifetime, now: i.cfg.now}
		i.signer.current.Store(authority)
	}
	var place *publisher
	if i.client != nil {
		place = i.cfg.publisher(i.client, i.log)
		if err := place.claim(ctx, func(why error) { i.waits.Store(&why) }); err != nil {
			return nil, err
		}
	}
	i.cfg.Embedded.Logger, i.cfg.Embedded.Metrics = i.log, etcd.NewMetrics(i.registry)
	server, err := etcd.Start(ctx, i.cfg.Embedded)
	if err != nil {
		return nil, err
	}
	i.server.Store(server)
	i.log.Info("the embedded etcd serves", "urls", i.cfg.Embedded.ListenClientURLs, "dataDir", i.cfg.Embedded.DataDir)
	i.tellInsecure(server.Insecure())
	if authority != nil {
		group.Go(func() error {
			return i.keepAuthority(gctx, authority, func(a *etcd.Authority) {
				server.Trust(a.Trust)
				i.signer.current.Store(a)
			})
		})
	}
	group.Go(func() error {
		select {
		case err := <-server.Failed():
			return fmt.Errorf("the embedded etcd ended: %w", err)
		case <-gctx.Done():
			return nil
		}
	})
	if place != nil {
		group.Go(func() error { place.run(gctx); return nil })
	}
	// A private socket: no flags for TLS apply to it.
	e := &i.cfg.Etcd
	e.Endpoints = []string{server.Endpoint()}
	e.CAFile, e.CertFile, e.KeyFile, e.ServerName, e.InsecureSkipVerify = "", "", "", "", false
	return server, nil
}

// followAccess ends the controller when the Secret says something else than it
// began with: a new start takes it over.
func (i *instance) followAccess(ctx context.Context, began kube.EtcdAccess) error {
	for now := range i.client.WatchEtcdAccess(ctx, i.cfg.Kube.EtcdSecret) {
		if !now.Equal(began) {
			return fmt.Errorf("the access to etcd in Secret %s changed: a new start takes it over", i.cfg.Kube.EtcdSecret)
		}
	}
	return nil
}
