package controller

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
)

const (
	// placeInterval is how often the ConfigMap is looked after: somebody may delete it,
	// and the CA be another one. placeRetry is the pause after a failure.
	placeInterval = 30 * time.Second
	placeRetry    = 2 * time.Second
)

// publisher keeps the ConfigMap that tells agents where etcd is.
type publisher struct {
	client *kube.Client
	ref    string
	// place is what it is to say now.
	place func() (kube.EtcdAccess, error)
	log   *slog.Logger
}

// claim waits until neither the ConfigMap nor the Secret is another etcd's: one with the
// network's records may be on another machine, and nodes that came to this one, which is
// empty, would give running pods' subnets and netIDs away. tell hears why it waits.
func (p *publisher) claim(ctx context.Context, tell func(error)) error {
	var trouble backoff.Trouble
	for {
		err := p.mine(ctx)
		if err == nil || ctx.Err() != nil {
			return ctx.Err()
		}
		tell(err)
		if trouble.News(err) {
			p.log.Error("the embedded etcd does not start yet; looking again", "error", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(placeRetry):
		}
	}
}

// mine is nil when ConfigMap and Secret are not there, are of no use to anybody, or name a CA of
// this data directory.
func (p *publisher) mine(ctx context.Context) error {
	own, err := p.place()
	if err != nil {
		return err
	}
	place, err := p.client.ConfigMap(ctx, p.ref)
	if err != nil && !errors.Is(err, kube.ErrNotFound) {
		return err
	}
	if a, err := kube.ParseEtcdPlace(place); err == nil && !sharesCA(a.CA, own.CA) {
		return p.foreign("ConfigMap", a)
	}
	// That of a release whose nodes shared one certificate.
	secret, err := p.client.Secret(ctx, p.ref)
	if err != nil && !errors.Is(err, kube.ErrNotFound) {
		return err
	}
	a, err := kube.ParseEtcdAccess(secret)
	switch {
	case errors.Is(err, kube.ErrNotEncrypted): // somebody's etcd, which may have the records
		return fmt.Errorf("secret %s is for another etcd and cannot be used: %w; with --embedded-etcd=false the controller uses that one; only if it has no records delete the Secret", p.ref, err)
	case err == nil && !sharesCA(a.CA, own.CA):
		return p.foreign("Secret", a)
	}
	return nil
}

func (p *publisher) foreign(kind string, a kube.EtcdAccess) error {
	return fmt.Errorf("%s %s is for another etcd, at %s, and --data-dir here has none of its certificates: run the controller on the machine that has the records, or put its data directory here; only if they are lost delete the %s, which begins anew with other subnets and netIDs", kind, p.ref, strings.Join(a.Endpoints, ", "), kind)
}

// sharesCA reports whether a certificate is in both a and b, PEM.
func sharesCA(a, b []byte) bool {
	certificates := func(data []byte) map[string]bool {
		all := map[string]bool{}
		for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
			all[string(block.Bytes)] = true
		}
		return all
	}
	theirs := certificates(b)
	for c := range certificates(a) {
		if theirs[c] {
			return true
		}
	}
	return false
}

// run puts the ConfigMap in place, and again when what it is to say changes or somebody takes it away,
// until ctx ends.
func (p *publisher) run(ctx context.Context) {
	var trouble backoff.Trouble
	for {
		pause := placeInterval
		wrote, err := p.ensure(ctx)
		if ctx.Err() != nil {
			return
		}
		if trouble.News(err) {
			p.log.Error("nodes cannot learn where etcd is; trying again", "error", err)
		}
		switch {
		case err != nil:
			pause = placeRetry
		case wrote:
			p.log.Info("wrote where etcd is", "configMap", p.ref)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// ensure writes the ConfigMap unless it says the right thing.
func (p *publisher) ensure(ctx context.Context) (wrote bool, err error) {
	own, err := p.place()
	if err != nil {
		return false, err
	}
	place := kube.EtcdAccess{Endpoints: own.Endpoints, CA: own.CA, Prefix: own.Prefix}
	return p.client.PutConfigMap(ctx, p.ref, place.Place())
}
