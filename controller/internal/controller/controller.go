// Package controller wires the controller: etcd, the connection to it, the
// candidate for the lead, and the diagnostics. It owns their lifetimes and
// decides nothing.
package controller

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"

	"golang.org/x/sync/errgroup"

	"github.com/k8s-ovs/k8s-ovs/controller/internal/etcd"
	"github.com/k8s-ovs/k8s-ovs/controller/internal/lead"
	"github.com/k8s-ovs/k8s-ovs/pkg/diag"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
)

// Run runs the controller until ctx ends, which is no error, or until something
// fails that only a restart can mend.
func Run(ctx context.Context, cfg Config, log *slog.Logger) error {
	sc := cfg.store()
	sc.Logger = log
	failed := make(<-chan error)
	if len(sc.Endpoints) == 0 {
		cfg.Embedded.Logger = log
		server, err := etcd.Start(ctx, cfg.Embedded)
		if err != nil {
			return err
		}
		defer server.Close()
		log.Info("the embedded etcd serves", "urls", cfg.Embedded.ListenClientURLs, "dataDir", cfg.Embedded.DataDir)
		failed = server.Failed()
		// A private socket: no flags for TLS apply to it.
		sc.Endpoints = []string{server.Endpoint()}
		sc.CAFile, sc.CertFile, sc.KeyFile, sc.ServerName, sc.InsecureSkipVerify = "", "", "", "", false
	}
	s, err := store.Open(sc)
	if err != nil {
		return err
	}
	defer s.Close()

	registry := diag.NewRegistry("k8s-ovs-controller")
	candidate := lead.New(lead.Config{
		Store: s, ID: cfg.ID, Network: cfg.Network, Explicit: cfg.explicit, GlobalNamespaces: cfg.GlobalNamespaces,
		LeaderTTL: cfg.LeaderTTL, Random: rand.Reader, Metrics: lead.NewMetrics(registry), Logger: log,
	})
	server := diag.NewServer(diag.Config{
		Address: cfg.Diag.MetricsAddress, Registry: registry, Profiling: cfg.Diag.Profiling, Logger: log,
		Ready: []diag.Check{{Name: "records", Probe: func(context.Context) error { return candidate.Ready() }}},
		State: func() any { return candidate.State() },
	})
	if err := server.Listen(); err != nil {
		return err
	}
	group, gctx := errgroup.WithContext(ctx)
	group.Go(func() error { return server.Run(gctx) })
	group.Go(func() error { return candidate.Run(gctx) })
	group.Go(func() error {
		select {
		case err := <-failed:
			return fmt.Errorf("the embedded etcd ended: %w", err)
		case <-gctx.Done():
			return nil
		}
	})
	if err := group.Wait(); err != nil && ctx.Err() == nil {
		return err
	}
	log.Info("the controller ends")
	return nil
}
