package store

import (
	"context"
	"errors"

	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// WaitConfig waits until the network has a valid configuration and returns it.
// trouble, if not nil, hears why there is none yet, once for each reason. The
// only error is that of ctx.
func (s *Store) WaitConfig(ctx context.Context, trouble func(error)) (Versioned[topology.Config], error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	pauses, saw := newPauses(), backoff.Trouble{}
	for {
		cfg, header, err := s.readConfig(ctx)
		if err == nil {
			return cfg, nil
		}
		if ctx.Err() != nil {
			return cfg, ctx.Err()
		}
		if trouble != nil && saw.News(err) {
			trouble(err)
		}
		if errors.Is(err, ErrNoConfig) || errors.Is(err, ErrInvalid) {
			if s.waitConfig(ctx, header.Revision) == nil {
				pauses.Reset()
				continue
			}
		}
		pauses.Wait(ctx)
	}
}

// waitConfig returns nil when the configuration record changed after revision.
func (s *Store) waitConfig(ctx context.Context, revision int64) error {
	c, err := s.connect()
	if err != nil {
		return err
	}
	wctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w, closeWatcher := newWatcher(c)
	defer closeWatcher()
	select {
	case r, open := <-watchKey(wctx, w, s.keys.config(), revision):
		if !open {
			return errWatchEnded
		}
		return r.Err()
	case <-disconnected(wctx, c):
		return errDisconnected
	case <-ctx.Done():
		return ctx.Err()
	}
}
