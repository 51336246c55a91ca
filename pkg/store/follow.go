package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/connectivity"

	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// pingEvery is how often etcd is asked whether it is still the one we follow.
const pingEvery = 5 * time.Second

// Why records are read anew.
var (
	errConfigChanged = errors.New("the network configuration changed")
	errDisconnected  = errors.New("the connection to etcd was lost")
	errWentBack      = errors.New("etcd went back to older records: it was restored, or is another one")
	errNoProgress    = errors.New("etcd does not say how far its watches are")
	errWatchEnded    = errors.New("etcd ended the watch")
)

// sink is what a follower keeps up to date. Its methods are called by one
// goroutine.
type sink interface {
	// reset replaces everything.
	reset(l listing)
	// put and remove change one record of a kind; rev is the revision of the deletion.
	put(kind string, k kv)
	remove(kind, key string, rev int64)
	// emit hands on the present state, which is whole at revision.
	emit(revision int64)
}

// follower keeps a sink in step with the records of some kinds: it lists them,
// watches from there, and lists again whenever the watch may have missed
// anything: a lost connection, a compacted history, an etcd that went back in time.
type follower struct {
	store *Store
	kinds []string
	sink  sink
	id    int    // in health
	wants *wants // kinds that come and go; nil for none
	// spacing is how long after the last time, for each record that there is, the sink hands on the state again.
	spacing time.Duration

	// begun is where the first round goes on from; nil for a listing of its own.
	begun *beginning

	// Of the present listing:
	config  Versioned[topology.Config]
	watches map[string]*watched // by kind
	reading bool                // what is wanted is being read
	revs    map[string]int64    // newest revision applied, by key; deletions too
	seen    int64               // newest revision applied, of any key
	emitted int64
	told    time.Time        // when that was
	due     <-chan time.Time // comes when what is new may be emitted; nil where nothing waits for that
	cluster uint64
	term    uint64
}

// watched is a kind that is watched.
type watched struct {
	kind     string
	progress int64              // every change up to it has been applied
	stop     context.CancelFunc // ends the watch
}

// run follows until ctx ends.
func (s *Store) run(ctx context.Context, f *follower) {
	f.id = s.health.join(&Error{Op: "watch records", Kind: ErrUnavailable, Endpoints: s.cfg.Endpoints, Cause: errors.New("no answer yet")})
	defer s.health.leave(f.id)
	pauses, trouble := newPauses(), backoff.Trouble{}
	for ctx.Err() == nil {
		err := f.once(ctx, func() {
			pauses.Reset()
			if trouble.Over() {
				s.log.Info("following the records in etcd again", "revision", f.seen)
			}
		})
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, errConfigChanged) {
			s.log.Info("the network configuration changed; reading all records")
			continue
		}
		s.health.set(f.id, s.asError(err))
		// The same trouble is told once, not at each attempt.
		if trouble.News(err) {
			s.log.Warn("records in etcd are out of sight; trying again", "error", err)
		}
		pauses.Wait(ctx)
	}
}

// asError gives plain reasons the form of all errors of this package.
func (s *Store) asError(err error) error {
	var e *Error
	if errors.As(err, &e) {
		return err
	}
	return &Error{Op: "watch records", Kind: ErrUnavailable, Endpoints: s.cfg.Endpoints, Cause: err}
}

// beginning is a connection from before all records were listed over it: whatever is lost after that shows.
type beginning struct {
	client *clientv3.Client
	// down is closed when the connection is lost.
	down <-chan struct{}
}

// begin lists, and hands that on. ErrNoConfig and ErrInvalid come with the revision at which the
// configuration was missing or not valid.
func (f *follower) begin(ctx context.Context) (b *beginning, revision int64, err error) {
	cfg, header, err := f.store.readConfig(ctx)
	if err != nil {
		return nil, header.Revision, err
	}
	c, err := f.store.connect()
	if err != nil {
		return nil, 0, err
	}
	b = &beginning{c, disconnected(ctx, c)}
	l, err := f.store.listAt(ctx, cfg, header, slices.Concat(f.kinds, f.wants.now())...)
	if err != nil {
		return nil, 0, err
	}
	f.start(l)
	f.sink.reset(l)
	f.emit(l.revision)
	return b, l.revision, nil
}

// once lists, then watches until it has a reason to list again.
func (f *follower) once(ctx context.Context, inStep func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	b := f.begun
	if f.begun = nil; b == nil {
		var revision int64
		var err error
		b, revision, err = f.begin(ctx)
		if errors.Is(err, ErrNoConfig) || errors.Is(err, ErrInvalid) {
			f.store.health.set(f.id, err)
			f.store.log.Warn("waiting for a valid network configuration", "error", err)
			if err := f.store.waitConfig(ctx, revision); err != nil {
				return err
			}
			return errConfigChanged
		}
		if err != nil {
			return err
		}
	}
	f.store.health.set(f.id, nil)
	inStep()
	return f.watch(ctx, b.client, b.down)
}

func (f *follower) start(l listing) {
	f.config, f.seen, f.cluster, f.term = l.config, l.revision, l.clusterID, l.raftTerm
	f.emitted, f.due, f.reading = 0, nil, false
	f.revs = map[string]int64{}
	f.watches = map[string]*watched{}
	for i, kvs := range l.kinds {
		f.watches[l.names[i]] = &watched{kind: l.names[i], progress: l.revision}
		for _, k := range kvs {
			f.revs[k.key] = k.rev.Mod
		}
	}
}

func (f *follower) emit(revision int64) {
	f.emitted = revision
	f.emitAs(revision)
}

// emitAs emits what may be newer than revision.
func (f *follower) emitAs(revision int64) {
	f.told = time.Now()
	f.sink.emit(revision)
}

// rest is how long to wait before emitting again: what a burst of changes costs is not to grow
// with the number of records there are, which each emit copies. One change alone waits for nothing.
func (f *follower) rest() time.Duration {
	return time.Until(f.told.Add(time.Duration(len(f.revs)) * f.spacing))
}

// disconnected is closed when the connection is lost: what comes after may be
// another etcd, with other records under the same revisions. A connection that
// is back by the time we look counts as lost, too.
func disconnected(ctx context.Context, c *clientv3.Client) <-chan struct{} {
	down := make(chan struct{})
	conn := c.ActiveConnection()
	go func() {
		if state := conn.GetState(); state != connectivity.Ready || conn.WaitForStateChange(ctx, state) {
			close(down)
		}
	}()
	return down
}

// arrival is one response of one watch; from is nil for the configuration's.
type arrival struct {
	from *watched
	resp clientv3.WatchResponse
	ok   bool
}

// watch applies changes until there is a reason to list again, and returns it.
// Nothing in its loop may wait for etcd, or it would not see that it is gone.
func (f *follower) watch(ctx context.Context, c *clientv3.Client, down <-chan struct{}) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// One watcher of its own: its watches share one stream, so that etcd can say
	// how far all of them are.
	w, closeWatcher := newWatcher(c)
	defer closeWatcher()
	arrivals := make(chan arrival)
	f.startWatch(ctx, w, arrivals, nil)
	for _, k := range f.watches {
		f.startWatch(ctx, w, arrivals, k)
	}
	entries := make(chan entry)
	pings := f.ping(ctx)
	progress := newProgress(clientv3.WithRequireLeader(ctx), w)
	defer progress.stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-down:
			return errDisconnected
		case err := <-pings:
			if err != nil {
				return err
			}
		case <-f.wants.news():
			f.leave()
			f.read(ctx, entries)
		case e := <-entries:
			fresh, err := f.enter(e)
			if err != nil {
				return err
			}
			for _, k := range fresh {
				f.startWatch(ctx, w, arrivals, k)
			}
			f.read(ctx, entries)
		case a := <-arrivals:
			changed, err := f.arrive(a)
			if err != nil {
				return err
			}
			if f.wants != nil {
				// Each kind says for itself how far it is.
				if changed {
					f.emit(f.seen)
				}
				continue
			}
			f.handOn(progress)
		case <-f.due:
			if f.due = nil; !progress.asking() {
				f.emitNew(f.seen)
			}
		case <-progress.tick():
			if err := progress.again(); err != nil {
				return err
			}
			// The change goes out now, under a revision that is surely whole.
			if f.rest() <= 0 {
				f.emitAs(f.whole())
			}
		}
	}
}

// handOn emits what is new once every kind is as far, and not too soon after the last time.
func (f *follower) handOn(p *progress) {
	if behind := f.whole() < f.seen; behind != p.asking() {
		p.ask(behind)
	}
	switch {
	case p.asking(), f.due != nil:
	case f.seen > f.emitted && f.rest() > 0:
		f.due = time.After(f.rest())
	default:
		f.emitNew(f.seen)
	}
}

// emitNew emits unless nothing has changed since.
func (f *follower) emitNew(revision int64) {
	if revision > f.emitted {
		f.emit(revision)
	}
}

// newWatcher is a watcher with a stream of its own, and what ends it. Nobody waits for the
// end: the library's Close never returns where etcd has just refused a watch, as it does
// while it stops, and a follower that hung there would follow nothing any more.
func newWatcher(c *clientv3.Client) (w clientv3.Watcher, closeWatcher func()) {
	w = clientv3.NewWatcher(c)
	return w, func() { go w.Close() }
}

// startWatch watches a kind from where it is, or the configuration where k is nil.
func (f *follower) startWatch(ctx context.Context, w clientv3.Watcher, arrivals chan<- arrival, k *watched) {
	key, after, opts := f.store.keys.config(), f.seen, []clientv3.OpOption(nil)
	if k != nil {
		key, after, opts = f.store.keys.kind(f.config.Value.Name, k.kind), k.progress, []clientv3.OpOption{clientv3.WithPrefix()}
		ctx, k.stop = context.WithCancel(ctx)
	}
	ch := watchKey(ctx, w, key, after, opts...)
	go func() {
		for {
			resp, ok := <-ch
			select {
			case arrivals <- arrival{k, resp, ok}:
			case <-ctx.Done():
				return
			}
			if !ok {
				return
			}
		}
	}()
}

// watchKey watches from after a revision. Unlike the library's Watch it returns
// at once, not when etcd has taken the watch. The channel is closed when the
// watch ends.
func watchKey(ctx context.Context, w clientv3.Watcher, key string, after int64, opts ...clientv3.OpOption) <-chan clientv3.WatchResponse {
	opts = append(opts, clientv3.WithRev(after+1))
	out := make(chan clientv3.WatchResponse)
	go func() {
		defer close(out)
		// A member of etcd that has lost its leader must end the watch rather than
		// stay silent.
		for resp := range w.Watch(clientv3.WithRequireLeader(ctx), key, opts...) {
			select {
			case out <- resp:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

// whole is the revision up to which surely every change has been applied.
func (f *follower) whole() int64 {
	least := f.seen
	for _, k := range f.watches {
		least = min(least, k.progress)
	}
	return least
}

// arrive applies one response, and reports whether that changed anything.
func (f *follower) arrive(a arrival) (changed bool, err error) {
	if a.from != nil && f.watches[a.from.kind] != a.from {
		return false, nil // of a kind that is not wanted any more
	}
	if !a.ok {
		return false, errWatchEnded
	}
	if err := a.resp.Err(); err != nil {
		return false, fmt.Errorf("watch records: %w", err)
	}
	f.store.health.contact()
	if a.from == nil {
		return false, f.configChange(a.resp)
	}
	if a.resp.IsProgressNotify() {
		a.from.progress = max(a.from.progress, a.resp.Header.Revision)
		return false, nil
	}
	for _, e := range a.resp.Events {
		key := string(e.Kv.Key)
		if e.Kv.ModRevision <= f.revs[key] {
			continue
		}
		f.revs[key] = e.Kv.ModRevision
		if key == f.store.keys.historyNow(f.config.Value.Name) && e.Type != clientv3.EventTypeDelete {
			// It says that something else changed, and is no news by itself.
			f.sink.put(a.from.kind, toKV(e.Kv))
			a.from.progress = max(a.from.progress, e.Kv.ModRevision)
			continue
		}
		changed = true
		if e.Type == clientv3.EventTypeDelete {
			delete(f.revs, key)
			f.sink.remove(a.from.kind, key, e.Kv.ModRevision)
		} else {
			f.sink.put(a.from.kind, toKV(e.Kv))
		}
		// Only the last event's revision is safe: a response may be one of several
		// that catch up.
		a.from.progress = max(a.from.progress, e.Kv.ModRevision)
		f.seen = max(f.seen, e.Kv.ModRevision)
	}
	return changed, nil
}

func (f *follower) configChange(resp clientv3.WatchResponse) error {
	for _, e := range resp.Events {
		if e.Kv.ModRevision > f.config.Revision {
			return errConfigChanged
		}
	}
	return nil
}

// ping asks etcd now and then, with a read that needs its majority, and says
// when it does not answer or is not the etcd it was.
func (f *follower) ping(ctx context.Context) <-chan error {
	out := make(chan error, 1)
	newest, cluster, term := f.seen, f.cluster, f.term
	go func() {
		for ticker := time.NewTicker(pingEvery); ; {
			select {
			case <-ctx.Done():
				ticker.Stop()
				return
			case <-ticker.C:
			}
			_, _, resp, err := f.store.get(ctx, "ask etcd whether it is there", f.store.keys.config())
			if err == nil {
				h := resp.Header
				if h.ClusterId != cluster || h.RaftTerm < term || h.Revision < newest {
					err = errWentBack
				}
				newest, term = max(newest, h.Revision), max(term, h.RaftTerm)
			}
			select {
			case out <- err:
			case <-ctx.Done():
			}
			if err != nil {
				ticker.Stop()
				return
			}
		}
	}()
	return out
}
