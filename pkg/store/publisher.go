package store

import (
	"bytes"
	"context"
	"encoding/json"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
)

// Publisher keeps one record of a node in etcd under a lease, for as long as it is
// open: what a node says of itself goes with its agent.
type Publisher[T any] struct {
	store  *Store
	what   string // for messages
	key    func(T) string
	ttl    time.Duration
	cancel context.CancelFunc
	done   chan struct{}
	wake   chan struct{}
	// wrote, if not nil, hears of each value that was written, and its revision.
	wrote func(T, int64)

	mu    sync.Mutex // guards value
	value T
}

func newPublisher[T any](s *Store, what string, ttl time.Duration, key func(T) string, wrote func(T, int64)) *Publisher[T] {
	if ttl == 0 {
		ttl = DefaultStatusTTL
	}
	ctx, cancel := context.WithCancel(s.ctx)
	p := &Publisher[T]{store: s, what: what, key: key, ttl: ttl, cancel: cancel, done: make(chan struct{}), wake: make(chan struct{}, 1), wrote: wrote}
	go p.run(ctx)
	return p
}

// Set replaces the record. It does not wait: the newest is written as soon as etcd
// takes it, ones set in between are passed over.
func (p *Publisher[T]) Set(value T) {
	p.mu.Lock()
	p.value = value
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Close takes the record out of etcd and waits until that is done, or DialTimeout
// has passed.
func (p *Publisher[T]) Close() {
	p.cancel()
	<-p.done
}

func (p *Publisher[T]) run(ctx context.Context) {
	defer close(p.done)
	pauses, trouble := newPauses(), backoff.Trouble{}
	select {
	case <-p.wake:
	case <-ctx.Done():
		return
	}
	for ctx.Err() == nil {
		err := p.hold(ctx, &pauses)
		if ctx.Err() == nil && err != nil && trouble.News(err) {
			p.store.log.Warn("cannot publish "+p.what+"; trying again", "error", err)
		}
		pauses.Wait(ctx)
	}
}

// hold publishes under one lease until that is lost.
func (p *Publisher[T]) hold(ctx context.Context, pauses *backoff.Pauses) error {
	c, err := p.store.connect()
	if err != nil {
		return p.store.classify(ctx, "publish "+p.what, err)
	}
	grant, err := call(ctx, p.store, "get a lease for "+p.what, func(ctx context.Context, c *clientv3.Client) (*clientv3.LeaseGrantResponse, error) {
		return c.Grant(ctx, int64((p.ttl+time.Second-1)/time.Second))
	})
	if err != nil {
		return err
	}
	kctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// A lease that is lost to a failure is left to expire: etcd may be away.
	defer func() {
		if ctx.Err() != nil {
			p.revoke(grant.ID)
		}
	}()
	alive, err := c.KeepAlive(kctx, grant.ID)
	if err != nil {
		return p.store.classify(ctx, "keep the lease of "+p.what, err)
	}
	// An etcd that is back may be one that was restored, with an older record and the lease of
	// that time.
	down := disconnected(kctx, c)
	var written []byte
	for {
		// What is there already is not written again: each write is news to all who watch.
		if written, err = p.write(ctx, grant.ID, written); err != nil {
			return err
		}
		pauses.Reset()
		if !p.waitChange(ctx, alive, down) {
			return nil
		}
	}
}

// waitChange waits for a new value; false when the lease or the connection is lost, or ctx ended.
func (p *Publisher[T]) waitChange(ctx context.Context, alive <-chan *clientv3.LeaseKeepAliveResponse, down <-chan struct{}) bool {
	for {
		select {
		case <-ctx.Done():
			return false
		case <-p.wake:
			return true
		case <-down:
			return false
		case _, ok := <-alive:
			if !ok {
				return false
			}
		}
	}
}

// write writes the newest value where it is another than the one that was written, and
// returns it as it stands in etcd.
func (p *Publisher[T]) write(ctx context.Context, lease clientv3.LeaseID, written []byte) ([]byte, error) {
	p.mu.Lock()
	value := p.value
	p.mu.Unlock()
	data, err := json.Marshal(value)
	if err != nil || bytes.Equal(data, written) {
		return written, err
	}
	resp, err := call(ctx, p.store, "write "+p.what, func(ctx context.Context, c *clientv3.Client) (*clientv3.PutResponse, error) {
		return c.Put(ctx, p.key(value), string(data), clientv3.WithLease(lease))
	})
	if err == nil && p.wrote != nil {
		p.wrote(value, resp.Header.Revision)
	}
	return data, err
}

// revoke ends the lease, and the record with it, also when ctx has ended.
func (p *Publisher[T]) revoke(lease clientv3.LeaseID) {
	if p.store.ctx.Err() != nil {
		return
	}
	_, _ = call(p.store.ctx, p.store, "end the lease of "+p.what, func(ctx context.Context, c *clientv3.Client) (*clientv3.LeaseRevokeResponse, error) {
		return c.Revoke(ctx, lease)
	})
}
