package signer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/k8s-ovs/k8s-ovs/controller/internal/cluster"
	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/pki"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

const (
	minPause = time.Second
	maxPause = 30 * time.Second

	// Reasons in the conditions of requests and of Events.
	reasonSigned = "NodeOfAgent"
	reasonDenied = "CertificateDenied"
)

// API is what the signer needs of [kube.Client].
type API interface {
	WatchSigningRequests(ctx context.Context, signer string) <-chan map[string]kube.SigningRequest
	Sign(ctx context.Context, r kube.SigningRequest, certPEM []byte, reason kube.EventReason, message string) error
	Deny(ctx context.Context, r kube.SigningRequest, reason kube.EventReason, message string) error
	Event(object kube.ObjectRef, warning bool, reason kube.EventReason, message string)
}

// Records tells of the records; [store.Store] does.
type Records interface {
	WatchRecords(ctx context.Context) <-chan store.Records
}

// Config of a Signer.
type Config struct {
	API     API
	Records Records
	// CA signs; its error says why nothing can be signed now.
	CA func() (*pki.Pair, error)
	// Account is the user name that agents have: see [Account].
	Account string
	Metrics *Metrics
	Logger  *slog.Logger
	// Now is the clock; time.Now when nil.
	Now func() time.Time
}

// Metrics are the signer's.
type Metrics struct{ answered *prometheus.CounterVec }

// NewMetrics registers them.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	register := promauto.With(reg)
	m := &Metrics{register.NewCounterVec(prometheus.CounterOpts{
		Namespace: "k8s_ovs", Name: "certificates_signed_total",
		Help: "Requests of agents for a certificate, by outcome: signed, denied, or failed (tried again).",
	}, []string{"outcome"})}
	for _, outcome := range []string{"signed", "denied", "failed"} {
		m.answered.WithLabelValues(outcome)
	}
	return m
}

// Signer answers requests, for as long as its controller leads.
type Signer struct {
	cfg Config
	// said is what was logged of requests that are not answered, by name.
	said map[string]string
}

// New makes a Signer; it does nothing before Run.
func New(cfg Config) *Signer {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Signer{cfg: cfg, said: map[string]string{}}
}

// Run answers requests until ctx ends.
func (s *Signer) Run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	requests, records := s.cfg.API.WatchSigningRequests(ctx, Name), s.cfg.Records.WatchRecords(ctx)
	defer func() {
		cancel()
		for range requests {
		}
		for range records {
		}
	}()
	var asked map[string]kube.SigningRequest
	var nodes map[netip.Addr]topology.Node
	know := false // the records, whole
	var retry <-chan time.Time
	pauses := backoff.Pauses{First: minPause, Last: maxPause}
	for {
		select {
		case <-ctx.Done():
			return
		case r, open := <-requests:
			if !open {
				return
			}
			asked = r
		case r, open := <-records:
			if !open {
				return
			}
			nodes, know = r.Nodes, true
		case <-retry:
		}
		retry = nil
		if !know {
			continue
		}
		if s.answer(ctx, asked, nodes) {
			pauses.Reset()
			continue
		}
		retry = time.After(pauses.Next())
	}
}

// answer answers what can be answered; false when some of that failed.
func (s *Signer) answer(ctx context.Context, asked map[string]kube.SigningRequest, nodes map[netip.Addr]topology.Node) bool {
	maps.DeleteFunc(s.said, func(name string, _ string) bool { return asked[name].Finished || asked[name].Name == "" })
	done := true
	for _, name := range slices.Sorted(maps.Keys(asked)) {
		r := asked[name]
		if r.Finished {
			continue
		}
		d := Decide(r, s.cfg.Account, nodes)
		if d.Wait != "" {
			s.say(slog.LevelInfo, r, d, d.Wait)
			continue
		}
		switch err := s.carryOut(ctx, r, d); {
		case ctx.Err() != nil:
			return false
		case errors.Is(err, kube.ErrNotFound), errors.Is(err, kube.ErrChanged):
			// The watch is about to say how.
		case err != nil:
			done = false
			s.cfg.Metrics.answered.WithLabelValues("failed").Inc()
			s.say(slog.LevelWarn, r, d, err.Error())
		}
	}
	return done
}

// carryOut signs or denies one request.
func (s *Signer) carryOut(ctx context.Context, r kube.SigningRequest, d Decision) error {
	if d.Deny != "" {
		if err := s.cfg.API.Deny(ctx, r, reasonDenied, d.Deny); err != nil {
			return err
		}
		s.cfg.Metrics.answered.WithLabelValues("denied").Inc()
		s.cfg.Logger.Warn("denied a certificate", "certificateSigningRequest", r.Name, "requester", r.Username, "node", d.Node, "reason", d.Deny)
		if d.Node != "" {
			s.cfg.API.Event(cluster.NodeRef(d.Node), true, reasonDenied, fmt.Sprintf("CertificateSigningRequest %s of its agent was denied: %s", r.Name, d.Deny))
		}
		return nil
	}
	ca, err := s.cfg.CA()
	if err != nil {
		return err
	}
	certPEM, err := ca.Sign(r.Request, d.User, d.Lifetime, s.cfg.Now())
	if err != nil {
		return err
	}
	if err := s.cfg.API.Sign(ctx, r, certPEM, reasonSigned, "asked for by the agent of node "+d.Node); err != nil {
		return err
	}
	s.cfg.Metrics.answered.WithLabelValues("signed").Inc()
	s.cfg.Logger.Info("signed a certificate", "certificateSigningRequest", r.Name, "node", d.Node, "user", d.User, "lifetime", d.Lifetime)
	return nil
}

// say logs why a request is not answered, once for each reason.
func (s *Signer) say(level slog.Level, r kube.SigningRequest, d Decision, why string) {
	if s.said[r.Name] == why {
		return
	}
	s.said[r.Name] = why
	s.cfg.Logger.Log(context.Background(), level, "a certificate is not signed yet", "certificateSigningRequest", r.Name, "node", d.Node, "reason", why)
}
