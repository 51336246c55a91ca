package store

import (
	"context"
	"encoding/json"
	"net/netip"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// DefaultStatusTTL is how long a node's status outlives its agent.
const DefaultStatusTTL = 15 * time.Second

// Statuses are what the live nodes have applied.
func (s *Store) Statuses(ctx context.Context) (map[netip.Addr]topology.NodeStatus, error) {
	l, err := s.list(ctx, kindStatus)
	if err != nil {
		return nil, err
	}
	out := map[netip.Addr]topology.NodeStatus{}
	for _, k := range l.kinds[0] {
		if st, ok := parseStatus(s.keys.last(k.key, l.config.Value.Name, kindStatus), k.value); ok {
			out[st.HostIP] = st
		}
	}
	return out, nil
}

// parseStatus passes over what is no status: agents write them anew all the time.
func parseStatus(key string, value []byte) (topology.NodeStatus, bool) {
	var st topology.NodeStatus
	if json.Unmarshal(value, &st) != nil || st.HostIP.String() != key {
		return topology.NodeStatus{}, false
	}
	return st, true
}

// StatusPublisher keeps one node's status in etcd under a lease, for as long as
// the agent runs.
type StatusPublisher struct {
	store  *Store
	name   string
	ttl    time.Duration
	cancel context.CancelFunc
	done   chan struct{}
	wake   chan struct{}

	mu     sync.Mutex // guards status
	status topology.NodeStatus
}

// StatusPublisher starts to publish in the network called name. A ttl of zero
// is DefaultStatusTTL; etcd grants whole seconds and not less than two. Nothing is
// written before the first Set.
func (s *Store) StatusPublisher(name string, ttl time.Duration) *StatusPublisher {
	if ttl == 0 {
		ttl = DefaultStatusTTL
	}
	ctx, cancel := context.WithCancel(s.ctx)
	p := &StatusPublisher{store: s, name: name, ttl: ttl, cancel: cancel, done: make(chan struct{}), wake: make(chan struct{}, 1)}
	go p.run(ctx)
	return p
}

// Set replaces the status. It does not wait: the newest status is written as
// soon as etcd takes it, ones set in between are passed over.
func (p *StatusPublisher) Set(st topology.NodeStatus) {
	p.mu.Lock()
	p.status = st
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Close takes the status out of etcd and waits until that is done, or DialTimeout
// has passed.
func (p *StatusPublisher) Close() {
	p.cancel()
	<-p.done
}

func (p *StatusPublisher) run(ctx context.Context) {
	defer close(p.done)
	var pause pauser
	said := ""
	select {
	case <-p.wake:
	case <-ctx.Done():
		return
	}
	for ctx.Err() == nil {
		err := p.hold(ctx, &pause)
		if ctx.Err() == nil && err != nil && err.Error() != said {
			said = err.Error()
			p.store.log.Warn("cannot publish the node's status; trying again", "error", err)
		}
		pause.wait(ctx)
	}
}

// hold publishes under one lease until that is lost.
func (p *StatusPublisher) hold(ctx context.Context, pause *pauser) error {
	c, err := p.store.connect()
	if err != nil {
		return p.store.classify(ctx, "publish the node's status", err)
	}
	grant, err := call(ctx, p.store, "get a lease for the node's status", func(ctx context.Context, c *clientv3.Client) (*clientv3.LeaseGrantResponse, error) {
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
		return p.store.classify(ctx, "keep the lease of the node's status", err)
	}
	for {
		if err := p.write(ctx, grant.ID); err != nil {
			return err
		}
		pause.reset()
		if !p.waitChange(ctx, alive) {
			return nil
		}
	}
}

// waitChange waits for a new status; false when the lease is lost or ctx ended.
func (p *StatusPublisher) waitChange(ctx context.Context, alive <-chan *clientv3.LeaseKeepAliveResponse) bool {
	for {
		select {
		case <-ctx.Done():
			return false
		case <-p.wake:
			return true
		case _, ok := <-alive:
			if !ok {
				return false
			}
		}
	}
}

func (p *StatusPublisher) write(ctx context.Context, lease clientv3.LeaseID) error {
	p.mu.Lock()
	st := p.status
	p.mu.Unlock()
	data, err := json.Marshal(st)
	if err != nil {
		return err
	}
	_, err = call(ctx, p.store, "write the status of node "+st.Host, func(ctx context.Context, c *clientv3.Client) (*clientv3.PutResponse, error) {
		return c.Put(ctx, p.store.keys.status(p.name, st.HostIP), string(data), clientv3.WithLease(lease))
	})
	return err
}

// revoke ends the lease, and the status with it, also when ctx has ended.
func (p *StatusPublisher) revoke(lease clientv3.LeaseID) {
	if p.store.ctx.Err() != nil {
		return
	}
	_, _ = call(p.store.ctx, p.store, "end the lease of the node's status", func(ctx context.Context, c *clientv3.Client) (*clientv3.LeaseRevokeResponse, error) {
		return c.Revoke(ctx, lease)
	})
}
