package identity

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
	"github.com/k8s-ovs/k8s-ovs/pkg/pki"
)

// Issuer has certificates signed.
type Issuer interface {
	// Issue asks for a certificate of user for the key of request; all are PEM, ca the
	// certificates that etcd's is checked against. It waits for the answer.
	Issue(ctx context.Context, request []byte, user string) (cert, ca []byte, err error)
}

const (
	// firstRetry and lastRetry bound the pause after a failed attempt.
	firstRetry = time.Second
	lastRetry  = 5 * time.Minute
	// attemptTimeout bounds one attempt: a leader may have to be elected first.
	attemptTimeout = time.Minute
	// lookEvery is how often the clock is looked at, which may be set, while the machine may
	// sleep, and the file, which somebody may delete.
	lookEvery = 15 * time.Second
)

// ErrRefused: there will be no answer but this to the request; the next one is made with
// another key.
var ErrRefused = errors.New("the certificate is refused")

// Obtain has a certificate of user signed, and makes the bundle with it, which reaches etcd
// at endpoints, the one in f.
func (f File) Obtain(ctx context.Context, issuer Issuer, user string, endpoints []string, prefix string) (pki.Bundle, error) {
	key, keyPEM, err := f.nextKey()
	if err != nil {
		return pki.Bundle{}, err
	}
	request, err := pki.Request(key, user)
	if err != nil {
		return pki.Bundle{}, err
	}
	cert, ca, err := issuer.Issue(ctx, request, user)
	if err != nil {
		if errors.Is(err, ErrRefused) {
			err = errors.Join(err, f.dropNext())
		}
		return pki.Bundle{}, err
	}
	pair, err := pki.ParsePair(cert, keyPEM)
	if err != nil {
		return pki.Bundle{}, errors.Join(fmt.Errorf("the certificate that came for %s: %w", user, err), f.dropNext())
	}
	if got := pair.Cert.Subject.CommonName; got != user {
		return pki.Bundle{}, errors.Join(fmt.Errorf("the certificate that came for %s is %q's", user, got), f.dropNext())
	}
	b := pki.Bundle{Endpoints: endpoints, Prefix: prefix, CA: ca, Pair: pair}
	if err := f.Save(b); err != nil {
		return pki.Bundle{}, err
	}
	return b, f.dropNext()
}

// Metrics are those of the identity.
type Metrics struct {
	expiry   prometheus.Gauge
	renewals *prometheus.CounterVec
}

// NewMetrics registers them.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	register := promauto.With(reg)
	m := &Metrics{
		expiry: register.NewGauge(prometheus.GaugeOpts{
			Namespace: "k8s_ovs", Name: "certificate_expiry_seconds", Help: "When the agent's certificate for etcd ends, in seconds since 1970; 0 where it has none.",
		}),
		renewals: register.NewCounterVec(prometheus.CounterOpts{
			Namespace: "k8s_ovs", Name: "certificate_renewals_total", Help: "Attempts to renew the agent's certificate for etcd, by outcome: renewed or failed.",
		}, []string{"outcome"}),
	}
	return m
}

// Renewer renews the bundle on disk. The store reads it at each new connection.
type Renewer struct {
	// File is the bundle, which must be there, or have been there when it was loaded.
	File    File
	Issuer  Issuer
	Metrics *Metrics
	Logger  *slog.Logger
	// Now is the clock; time.Now when nil.
	Now func() time.Time

	wake chan struct{}
}

// NewRenewer makes a Renewer, which does nothing before Run.
func NewRenewer(file File, issuer Issuer, m *Metrics, log *slog.Logger) *Renewer {
	return &Renewer{File: file, Issuer: issuer, Metrics: m, Logger: log, Now: time.Now, wake: make(chan struct{}, 1)}
}

// Renew asks for a renewal now: the CA is another one.
func (r *Renewer) Renew() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Run renews until ctx ends, whose error it returns. What fails is tried again, and again
// with the next certificate that is put in place by hand.
func (r *Renewer) Run(ctx context.Context) error {
	// Not all nodes of a cluster at once that were all set up at once.
	early := rand.Float64() / 10
	pauses, trouble := backoff.Pauses{First: firstRetry, Last: lastRetry}, backoff.Trouble{}
	asked := false
	for {
		b, held, err := r.load()
		pause := lookEvery
		if held {
			r.Metrics.expiry.Set(float64(b.Pair.Cert.NotAfter.Unix()))
			at := b.RenewAt()
			at = at.Add(-time.Duration(early * float64(b.Pair.Cert.NotAfter.Sub(at))))
			if due := at.Sub(r.Now()); due > 0 && !asked {
				pause, err = min(pause, due), nil
			} else if err = r.renew(ctx, b); err == nil {
				asked = false
				pauses.Reset()
				trouble.Over()
				continue
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			if trouble.News(err) {
				r.complain(b, held, err)
			}
			// A file is looked for as often as ever, however often it was in vain.
			if pause = pauses.Next(); !held {
				pause = min(pause, lookEvery)
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-r.wake:
			asked = true
		case <-time.After(pause):
		}
	}
}

// load reads the bundle, and puts back one that somebody deleted.
func (r *Renewer) load() (b pki.Bundle, held bool, err error) {
	restored, err := r.File.Restore()
	if err != nil {
		return pki.Bundle{}, false, err
	}
	if restored {
		r.Logger.Warn("the node's identity was gone from the state directory: it is back", "path", r.File.Path())
	}
	return r.File.Load()
}

func (r *Renewer) renew(ctx context.Context, b pki.Bundle) error {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	next, err := r.File.Obtain(ctx, r.Issuer, b.User(), b.Endpoints, b.Prefix)
	if err != nil {
		r.Metrics.renewals.WithLabelValues("failed").Inc()
		return err
	}
	r.Metrics.renewals.WithLabelValues("renewed").Inc()
	r.Logger.Info("renewed the certificate for etcd", "user", next.User(), "until", next.Pair.Cert.NotAfter)
	return nil
}

func (r *Renewer) complain(b pki.Bundle, held bool, err error) {
	if !held {
		r.Logger.Error("the node's identity cannot be read, or was gone and cannot be written: put a new bundle in place; trying again", "path", r.File.Path(), "error", err)
		return
	}
	r.Logger.Error("the certificate for etcd was not renewed; trying again", "user", b.User(), "until", b.Pair.Cert.NotAfter, "error", err)
}
