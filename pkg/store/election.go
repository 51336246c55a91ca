package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// DefaultLeaderTTL is how long a leader that died without a word stays the leader.
const DefaultLeaderTTL = 10 * time.Second

// resignTime bounds the taking back of a candidacy.
const resignTime = 2 * time.Second

// Leadership is the right to write as the controller of one network. Every
// write through it compares the election key: once another controller may
// lead, writes fail with ErrDeposed, however late this one notices.
type Leadership struct {
	store   *Store
	name    string
	session *concurrency.Session
	key     string // the election key
	create  int64  // its create revision: the fencing token
	term    string // in the history
	// wrote is the revision of the newest write that is known.
	wrote atomic.Int64
	done  chan struct{}
}

// Campaign waits until this controller leads the network called name. id names
// it to people who look. A ttl of zero is [DefaultLeaderTTL]. It returns an
// error when ctx ends or etcd fails; campaign again.
func (s *Store) Campaign(ctx context.Context, name, id string, ttl time.Duration) (*Leadership, error) {
	op := "campaign to lead network " + name
	if ttl == 0 {
		ttl = DefaultLeaderTTL
	}
	c, err := s.connect()
	if err != nil {
		return nil, s.classify(ctx, op, err)
	}
	grant, err := call(ctx, s, op, func(ctx context.Context, c *clientv3.Client) (*clientv3.LeaseGrantResponse, error) {
		return c.Grant(ctx, int64((ttl+time.Second-1)/time.Second))
	})
	if err != nil {
		return nil, err
	}
	session, err := concurrency.NewSession(c, concurrency.WithLease(grant.ID), concurrency.WithTTL(int(ttl/time.Second)))
	if err != nil {
		return nil, s.classify(ctx, op, err)
	}
	// The wait must end with the session: without a lease there is no key.
	cctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-session.Done():
			cancel()
		case <-cctx.Done():
		}
	}()
	election := concurrency.NewElection(session, strings.TrimSuffix(s.keys.kind(name, kindLeader), "/"))
	if err := stand(cctx, election, id); err != nil {
		if ctx.Err() == nil && cctx.Err() != nil {
			err = errors.New("the lease was lost while waiting")
		}
		l := &Leadership{store: s, session: session}
		l.revoke()
		return nil, s.classify(ctx, op, err)
	}
	l := &Leadership{store: s, name: name, session: session, key: election.Key(), create: election.Rev(), done: make(chan struct{})}
	go func() {
		select {
		case <-session.Done():
		case <-s.ctx.Done():
		}
		close(l.done)
	}()
	if err := l.begin(ctx); err != nil {
		l.revoke()
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	return l, nil
}

// stand is election.Campaign with an end: when ctx ends that one takes its
// candidacy back, however long etcd is away. The lease takes it back in any case.
func stand(ctx context.Context, election *concurrency.Election, id string) error {
	ended := make(chan error, 1)
	go func() { ended <- election.Campaign(ctx, id) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-ended:
		return err
	case <-time.After(resignTime):
		return ctx.Err()
	}
}

// Leader is the id of the controller that leads the network called name;
// ErrNotFound when none does.
func (s *Store) Leader(ctx context.Context, name string) (string, error) {
	op := "read the leader of network " + name
	resp, err := call(ctx, s, op, func(ctx context.Context, c *clientv3.Client) (*clientv3.GetResponse, error) {
		return c.Get(ctx, s.keys.kind(name, kindLeader), clientv3.WithFirstCreate()...)
	})
	if err != nil {
		return "", err
	}
	if len(resp.Kvs) == 0 {
		return "", &Error{Op: op, Kind: ErrNotFound}
	}
	return string(resp.Kvs[0].Value), nil
}

// Name is the network that is led.
func (l *Leadership) Name() string { return l.name }

// Done is closed when leadership is known to be lost. It may be lost before:
// what counts is that writes fail then.
func (l *Leadership) Done() <-chan struct{} { return l.done }

// Resign gives leadership up at once, so that the next controller need not wait
// for the lease to run out.
func (l *Leadership) Resign() error {
	err := l.revoke()
	<-l.done
	return err
}

func (l *Leadership) revoke() error {
	l.session.Orphan() // stops the keeping alive
	if l.store.ctx.Err() != nil {
		return nil
	}
	_, err := call(l.store.ctx, l.store, "resign", func(ctx context.Context, c *clientv3.Client) (*clientv3.LeaseRevokeResponse, error) {
		return c.Revoke(ctx, l.session.Lease())
	})
	return err
}

// PutNamespace writes the record below netnamespaces/ whose key ends in key, if
// it still is at rev (0: does not exist), and returns the new revision.
// ErrConflict, ErrDeposed.
func (l *Leadership) PutNamespace(ctx context.Context, key string, n topology.Namespace, rev int64) (int64, error) {
	return l.put(ctx, "write namespace "+key, l.store.keys.kind(l.name, kindNamespaces)+key, rev, n)
}

// MaxBatch is how many records [Leadership.PutNamespaces] writes at most. etcd takes 128
// comparisons in a transaction, unless told otherwise (--max-txn-ops): two are the fence's.
const MaxBatch = 100

// MaxBatchBytes is what those records have at most: etcd takes 1.5 MiB in a request.
const MaxBatchBytes = 1 << 20

// NamespacePut is one record in a batch.
type NamespacePut struct {
	Key       string // the last part of the record's key
	Namespace topology.Namespace
	Revision  int64 // that was read; 0: there is no record
}

// PutNamespaces writes all of batch in one transaction if each record still is at its
// revision, and else none of it. It returns the new revision, which all of them have.
// ErrConflict, ErrDeposed; ErrInvalid where that is more than etcd takes in a transaction,
// and nothing was written.
func (l *Leadership) PutNamespaces(ctx context.Context, batch []NamespacePut) (int64, error) {
	op := fmt.Sprintf("write %d namespaces", len(batch))
	var compares []clientv3.Cmp
	var puts []clientv3.Op
	size := 0
	for _, p := range batch {
		key := l.store.keys.kind(l.name, kindNamespaces) + p.Key
		data, err := json.Marshal(p.Namespace)
		if err != nil {
			return 0, fmt.Errorf("%s: encode %s: %w", op, p.Key, err)
		}
		if size += len(data); size > MaxBatchBytes {
			return 0, &Error{Op: op, Kind: ErrInvalid, Cause: fmt.Errorf("they have more than %d bytes", MaxBatchBytes)}
		}
		compares = append(compares, clientv3.Compare(clientv3.ModRevision(key), "=", p.Revision))
		puts = append(puts, clientv3.OpPut(key, string(data)))
	}
	rev, err := l.fenced(ctx, op, compares, puts)
	if cause := tooLarge(err); cause != nil {
		return 0, &Error{Op: op, Kind: ErrInvalid, Cause: cause}
	}
	return rev, err
}

// DeleteNamespace deletes a namespace's record if it still is at rev, and returns
// the revision of that. ErrConflict, ErrDeposed.
func (l *Leadership) DeleteNamespace(ctx context.Context, key string, rev int64) (int64, error) {
	k := l.store.keys.kind(l.name, kindNamespaces) + key
	return l.transact(ctx, "delete namespace "+key, k, rev, clientv3.OpDelete(k))
}

// PutNode writes the record below subnets/ whose key ends in key, if it still is
// at rev (0: does not exist), and returns the new revision. ErrConflict, ErrDeposed.
func (l *Leadership) PutNode(ctx context.Context, key string, n topology.Node, rev int64) (int64, error) {
	return l.put(ctx, "write node "+key, l.store.keys.kind(l.name, kindNodes)+key, rev, n)
}

// DeleteNode deletes a node's record if it still is at rev, and returns the
// revision of that. ErrConflict, ErrDeposed.
func (l *Leadership) DeleteNode(ctx context.Context, key string, rev int64) (int64, error) {
	k := l.store.keys.kind(l.name, kindNodes) + key
	return l.transact(ctx, "delete node "+key, k, rev, clientv3.OpDelete(k))
}

// PutConfig writes the network configuration if it still is at rev, and returns the new
// revision. ErrConflict, ErrDeposed; ErrInvalid where cfg is not valid.
func (l *Leadership) PutConfig(ctx context.Context, cfg topology.Config, rev int64) (int64, error) {
	op := "write network configuration " + l.store.keys.config()
	if err := cfg.Validate(); err != nil {
		return 0, &Error{Op: op, Kind: ErrInvalid, Cause: err}
	}
	return l.put(ctx, op, l.store.keys.config(), rev, cfg)
}

// PutReleased writes the list of what was freed if it still is at rev (0: does
// not exist), and returns the new revision.
func (l *Leadership) PutReleased(ctx context.Context, r Released, rev int64) (int64, error) {
	return l.put(ctx, "write the list of freed netIDs", l.store.keys.released(l.name), rev, r)
}

func (l *Leadership) put(ctx context.Context, op, key string, rev int64, value any) (int64, error) {
	data, err := json.Marshal(value)
	if err != nil {
		return 0, fmt.Errorf("%s: encode: %w", op, err)
	}
	return l.transact(ctx, op, key, rev, clientv3.OpPut(key, string(data)))
}

// transact changes one record, if it still is at rev.
func (l *Leadership) transact(ctx context.Context, op, key string, rev int64, then clientv3.Op) (int64, error) {
	return l.fenced(ctx, op, []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(key), "=", rev)}, []clientv3.Op{then})
}

// fenced is the fence: both the election key and the records must be what they were, and all
// that this leader wrote must be there: else etcd went back to older records, those of its
// election among them. Each write leaves its mark in the history.
func (l *Leadership) fenced(ctx context.Context, op string, records []clientv3.Cmp, then []clientv3.Op) (int64, error) {
	select {
	case <-l.done:
		return 0, &Error{Op: op, Kind: ErrDeposed}
	default:
	}
	now, wrote := l.store.keys.historyNow(l.name), l.wrote.Load()
	compares := append([]clientv3.Cmp{
		clientv3.Compare(clientv3.CreateRevision(l.key), "=", l.create),
		clientv3.Compare(clientv3.ModRevision(now), ">", wrote-1),
	}, records...)
	then = append(then[:len(then):len(then)], clientv3.OpPut(now, l.term))
	resp, err := call(ctx, l.store, op, func(ctx context.Context, c *clientv3.Client) (*clientv3.TxnResponse, error) {
		return c.Txn(ctx).If(compares...).Then(then...).Else(clientv3.OpGet(l.key), clientv3.OpGet(now)).Commit()
	})
	if err != nil {
		return 0, err
	}
	if resp.Succeeded {
		l.note(resp.Header.Revision)
		return resp.Header.Revision, nil
	}
	if kvs := resp.Responses[0].GetResponseRange().Kvs; len(kvs) == 0 || kvs[0].CreateRevision != l.create {
		return 0, &Error{Op: op, Kind: ErrDeposed}
	}
	if kvs := resp.Responses[1].GetResponseRange().Kvs; len(kvs) == 0 || kvs[0].ModRevision < wrote {
		return 0, &Error{Op: op, Kind: ErrDeposed, Cause: errWentBack}
	}
	return 0, &Error{Op: op, Kind: ErrConflict}
}

// note takes in the revision of a write. Several may be under way at once.
func (l *Leadership) note(revision int64) {
	for was := l.wrote.Load(); was < revision && !l.wrote.CompareAndSwap(was, revision); was = l.wrote.Load() {
	}
}
