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
	// mostDenied is how many requests are denied before new ones are looked at: a second, with two or three calls each
	// and 50 calls a second.
	mostDenied = 20

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
	// answered are those of the requests, as last told, that were answered since, by name.
	answered map[string]bool
}

// New makes a Signer; it does nothing before Run.
func New(cfg Config) *Signer {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Signer{cfg: cfg, said: map[string]string{}, answered: map[string]bool{}}
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
			clear(s.answered)
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
		select {
		case r, open := <-requests: // the newest, where a pass took its time
			if open {
				asked = r
				clear(s.answered)
			}
		default:
		}
		done, more := s.answer(ctx, asked, nodes)
		switch {
		case !done:
			retry = time.After(pauses.Next())
			continue
		case more:
			retry = time.After(0)
		}
		pauses.Reset()
	}
}

// answer answers what can be answered now, and leaves the rest to the next pass: newer requests need not wait for it. done is false
// when something failed, more is true when something is left.
func (s *Signer) answer(ctx context.Context, asked map[string]kube.SigningRequest, nodes map[netip.Addr]topology.Node) (done, more bool) {
	maps.DeleteFunc(s.said, func(name string, _ string) bool { return asked[name].Finished || asked[name].Name == "" })
	turn, more := s.turn(asked)
	var signed, denied []decided
	for _, r := range turn {
		switch d := Decide(r, s.cfg.Account, nodes); {
		case d.Wait != "":
			s.say(slog.LevelInfo, r, d, d.Wait)
		case d.Deny != "":
			denied = append(denied, decided{r, d})
		default:
			signed = append(signed, decided{r, d})
		}
	}
	if len(denied) > mostDenied {
		denied, more = denied[:mostDenied], true
	}
	done = true
	for _, a := range append(signed, denied...) {
		switch err := s.carryOut(ctx, a.request, a.decision); {
		case ctx.Err() != nil:
			return false, false
		case err == nil, errors.Is(err, kube.ErrNotFound), errors.Is(err, kube.ErrChanged):
			s.answered[a.request.Name] = true // the watch is about to say how
		default:
			done = false
			s.cfg.Metrics.answered.WithLabelValues("failed").Inc()
			s.say(slog.LevelWarn, a.request, a.decision, err.Error())
		}
	}
	return done, more
}

// decided is a request and what becomes of it.
type decided struct {
	request  kube.SigningRequest
	decision Decision
}

// turn is what is looked at in one pass: one request of each node's agent, and of those that no agent made a few. Who
// makes thousands of them makes nobody else wait. more is true where others are left.
func (s *Signer) turn(asked map[string]kube.SigningRequest) (now []kube.SigningRequest, more bool) {
	type agent struct{ node, uid string }
	of := map[agent]int{}
	for _, name := range slices.Sorted(maps.Keys(asked)) {
		r := asked[name]
		if r.Finished || s.answered[name] {
			continue
		}
		var by agent
		most := mostDenied
		if r.Username == s.cfg.Account {
			by = agent{single(r.Extra[extraNodeName]), single(r.Extra[extraNodeUID])}
		}
		if by.node != "" {
			most = 1
		}
		if of[by] == most {
			more = true
			continue
		}
		of[by]++
		now = append(now, r)
	}
	return now, more
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
