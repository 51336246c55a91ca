package store

import (
	"context"
	"maps"
	"net/netip"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// latest is a channel that holds only the newest value: the sender never waits,
// a slow reader passes over what is out of date. One goroutine sends.
type latest[T any] chan T

func (l latest[T]) send(v T) {
	select {
	case <-l:
	default:
	}
	l <- v
}

// WatchRecords yields all records and then, after each batch of changes, all
// records anew. The newest wins: a slow reader is never behind by more than the
// value it holds. It survives lost connections, changes of leader, compaction,
// and an etcd restored from a backup; while etcd is away, or the network has no
// valid configuration, nothing comes. The channel is closed when ctx ends.
func (s *Store) WatchRecords(ctx context.Context) <-chan Records {
	return watch(ctx, s, func(out latest[Records]) sink { return &recordSink{keys: s.keys, out: out} }, recordKinds...)
}

// FollowRecords is [Store.WatchRecords] whose first value is there when it returns, with the errors of
// [Store.Snapshot] where it cannot be: one listing for who reads all records, and then waits for a change.
func (s *Store) FollowRecords(ctx context.Context) (<-chan Records, error) {
	ctx, cancel := s.bound(ctx)
	out := make(latest[Records], 1)
	f := &follower{store: s, kinds: recordKinds, sink: &recordSink{keys: s.keys, out: out}}
	var err error
	if f.begun, _, err = f.begin(ctx); err != nil {
		cancel()
		return nil, err
	}
	go func() {
		defer close(out)
		defer cancel()
		s.run(ctx, f)
	}()
	return out, nil
}

// snapshotSpacing is for each record that there is: where changes come faster, those who only read get
// several at once. A copy takes some 0.2 µs for a record, and what they do with it, as all nodes do, more.
const snapshotSpacing = 5 * time.Microsecond

// Watch is [Store.WatchRecords] for those who only read: in a burst of changes they get several at once.
//
// Every change up to a snapshot's Revision is in it. A change may also be in a
// snapshot before Revision says so.
func (s *Store) Watch(ctx context.Context) <-chan topology.Snapshot {
	return watchSpaced(ctx, s, snapshotSpacing, func(out latest[topology.Snapshot]) sink { return &recordSink{keys: s.keys, snapshots: out} }, recordKinds...)
}

// watch follows records of those kinds into a sink, which sends what it makes of
// them to out.
func watch[T any](ctx context.Context, s *Store, into func(out latest[T]) sink, kinds ...string) <-chan T {
	return watchSpaced(ctx, s, 0, into, kinds...)
}

// watchSpaced is watch with as much between two as spacing says for each record.
func watchSpaced[T any](ctx context.Context, s *Store, spacing time.Duration, into func(out latest[T]) sink, kinds ...string) <-chan T {
	ctx, cancel := s.bound(ctx)
	out := make(latest[T], 1)
	go func() {
		defer close(out)
		defer cancel()
		s.run(ctx, &follower{store: s, kinds: kinds, sink: into(out), spacing: spacing})
	}()
	return out
}

// bound ends with ctx or the Store.
func (s *Store) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.ctx, cancel)
	return ctx, func() { stop(); cancel() }
}

type recordSink struct {
	keys      keyspace
	set       *recordSet
	listing   int
	out       latest[Records]
	snapshots latest[topology.Snapshot]
}

func (r *recordSink) reset(l listing) {
	r.set = newRecordSet(r.keys, l.config)
	r.listing++
	for i, kind := range recordKinds {
		for _, k := range l.kinds[i] {
			r.set.put(kind, k)
		}
	}
}

func (r *recordSink) put(kind string, k kv)            { r.set.put(kind, k) }
func (r *recordSink) remove(kind, key string, _ int64) { r.set.remove(kind, key) }

func (r *recordSink) emit(revision int64) {
	if r.out != nil {
		r.out.send(r.set.records(revision, r.listing))
	}
	if r.snapshots != nil {
		r.snapshots.send(r.set.snapshot(revision))
	}
}

// WatchStatuses yields what all live nodes have applied, and all of it anew
// after each batch of changes, on the same terms as [Store.WatchRecords].
func (s *Store) WatchStatuses(ctx context.Context) <-chan map[netip.Addr]topology.NodeStatus {
	return watch(ctx, s, func(out latest[map[netip.Addr]topology.NodeStatus]) sink { return &statusSink{keys: s.keys, out: out} }, kindStatus)
}

type statusSink struct {
	keys     keyspace
	name     string
	statuses map[netip.Addr]topology.NodeStatus
	out      latest[map[netip.Addr]topology.NodeStatus]
}

func (t *statusSink) reset(l listing) {
	t.name, t.statuses = l.config.Value.Name, map[netip.Addr]topology.NodeStatus{}
	for _, k := range l.kinds[0] {
		t.put(kindStatus, k)
	}
}

func (t *statusSink) put(kind string, k kv) {
	t.remove(kind, k.key, 0)
	if st, ok := parseStatus(t.keys.last(k.key, t.name, kind), k.value); ok {
		t.statuses[st.HostIP] = st
	}
}

func (t *statusSink) remove(kind, key string, _ int64) {
	if addr, err := netip.ParseAddr(t.keys.last(key, t.name, kind)); err == nil {
		delete(t.statuses, addr)
	}
}

func (t *statusSink) emit(int64) { t.out.send(maps.Clone(t.statuses)) }

// waitOnce reads and then watches until the watch ends.
func (s *Store) waitOnce(ctx context.Context, name func(network string) string, cond func(kv, bool) bool) (k kv, done bool, err error) {
	cfg, err := s.Config(ctx)
	if err != nil {
		return k, false, err
	}
	key := name(cfg.Value.Name)
	k, ok, resp, err := s.get(ctx, "read "+key, key)
	if err != nil {
		return k, false, err
	}
	if cond(k, ok) {
		return k, true, nil
	}
	c, err := s.connect()
	if err != nil {
		return k, false, err
	}
	wctx, cancel := s.bound(ctx)
	defer cancel()
	w, closeWatcher := newWatcher(c)
	defer closeWatcher()
	down := disconnected(wctx, c)
	events := watchKey(wctx, w, key, resp.Header.Revision)
	for {
		select {
		case <-wctx.Done():
			return k, false, wctx.Err()
		case <-down:
			return k, false, nil
		case r, open := <-events:
			if !open || r.Err() != nil {
				return k, false, nil
			}
			for _, e := range r.Events {
				if k = toKV(e.Kv); cond(k, e.Type != clientv3.EventTypeDelete) {
					return k, true, nil
				}
			}
		}
	}
}
