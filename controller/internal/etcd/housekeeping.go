package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/storage/mvcc"

	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
)

const (
	// lookEvery is how often the size of the database is looked at, which costs nothing.
	lookEvery = time.Second
	// keepHistory is what is kept of the history all the same when there is no room for more of it: watches
	// that are not cut off for longer than that go on where they were.
	keepHistory = 10 * time.Second
)

// housekeeper keeps an etcd that nobody else looks after from being full. Every change is kept for
// compactAfter, so records that change often fill it, however small they are; a full one takes no
// changes until somebody compacts it, gives the room back and takes back the alarm (etcd's maintenance
// guide, "Space quota"). Where the disk is about to be full it raises that alarm itself: nothing is lost by it,
// and everything can be read.
type housekeeper struct {
	server *etcdserver.EtcdServer
	dir    string
	// free is [freeBytes], but for tests.
	free    func(dir string) (uint64, error)
	quota   int64 // bytes
	metrics *Metrics
	log     *slog.Logger
	failed  backoff.Trouble

	seen []seen    // of the last keepHistory, the oldest first
	cut  time.Time // when room was made last
	// why the disk has no room; nil where it has.
	why atomic.Pointer[NoRoomError]
}

// seen is the newest revision there was at a time.
type seen struct {
	at       time.Time
	revision int64
}

func (h *housekeeper) run(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			if err := h.look(ctx, now); h.failed.News(err) && ctx.Err() == nil {
				h.log.Error("the embedded etcd is full, or about to be", "error", err)
			}
		}
	}
}

// look cuts the history short where the database is half full, and ends the alarm of one that was full.
func (h *housekeeper) look(ctx context.Context, now time.Time) error {
	h.seen = append(h.seen, seen{now, h.server.KV().Rev()})
	for len(h.seen) > 1 && now.Sub(h.seen[1].at) >= keepHistory {
		h.seen = h.seen[1:]
	}
	ctx = asRoot(ctx)
	full, size := h.full(), h.server.Backend().Size()
	h.metrics.size.Set(float64(size))
	free, err := h.room(ctx, full)
	if err != nil {
		return err
	}
	scarce := full || size > h.quota*3/4
	switch {
	case full && size < h.quota/2: // it was the disk
		return h.takeChanges(ctx)
	case !scarce && (size < h.quota/2 || now.Sub(h.cut) < keepHistory):
		return nil
	}
	h.cut = now
	left, err := h.makeRoom(ctx, size, free, scarce)
	switch {
	case err != nil:
		return err
	case left > h.quota*3/4:
		return fmt.Errorf("the records themselves have more than three quarters of its %d bytes", h.quota)
	case !full:
		return nil
	}
	return h.takeChanges(ctx)
}

// room raises the alarm where the disk has too little room. Else it returns what is free there, in bytes.
func (h *housekeeper) room(ctx context.Context, full bool) (free uint64, err error) {
	if free, err = h.free(h.dir); err != nil {
		return 0, err
	}
	h.metrics.free.Set(float64(free))
	need := uint64(reserve)
	if full {
		need += spare
	}
	if free >= need {
		h.why.Store(nil)
		return free, nil
	}
	why := &NoRoomError{Dir: h.dir, Need: reserve + spare}
	h.why.Store(why)
	if full {
		return 0, why
	}
	if err := h.alarm(ctx, pb.AlarmRequest_ACTIVATE); err != nil {
		return 0, fmt.Errorf("%w; raise etcd's alarm for that: %w", why, err)
	}
	return 0, why
}

// makeRoom cuts the history short, by more where room is scarce, and gives what that frees back to the disk. It
// returns the size of the database then.
func (h *housekeeper) makeRoom(ctx context.Context, size int64, free uint64, scarce bool) (left int64, err error) {
	revision := h.seen[0].revision
	if scarce {
		revision = h.seen[len(h.seen)-1].revision
	}
	_, err = h.server.Compact(ctx, &pb.CompactionRequest{Revision: revision, Physical: true})
	if err != nil && !errors.Is(err, mvcc.ErrCompacted) {
		return 0, fmt.Errorf("compact to revision %d: %w", revision, err)
	}
	if inUse := h.server.Backend().SizeInUse(); inUse < size/2 {
		// The database is written anew beside the old one.
		if need := uint64(inUse) + reserve; free < need {
			return 0, fmt.Errorf("give room back: %w", &NoRoomError{Dir: h.dir, Need: need})
		}
		if err := h.server.Backend().Defrag(); err != nil {
			return 0, fmt.Errorf("give room back: %w", err)
		}
	}
	left = h.server.Backend().Size()
	h.metrics.size.Set(float64(left))
	if left < size {
		h.metrics.cut.Inc()
		h.log.Warn("records changed so much that their history filled etcd's database: it was cut short", "bytesBefore", size, "bytes", left, "quota", h.quota)
	}
	return left, nil
}

// takeChanges takes the alarm back.
func (h *housekeeper) takeChanges(ctx context.Context) error {
	if err := h.alarm(ctx, pb.AlarmRequest_DEACTIVATE); err != nil {
		return fmt.Errorf("take back the alarm: %w", err)
	}
	h.log.Info("etcd was full, and takes changes again")
	return nil
}

// alarm raises the alarm by which etcd takes no changes, or takes it back.
func (h *housekeeper) alarm(ctx context.Context, action pb.AlarmRequest_AlarmAction) error {
	_, err := h.server.Alarm(ctx, &pb.AlarmRequest{Action: action, MemberID: uint64(h.server.MemberID()), Alarm: pb.AlarmType_NOSPACE})
	return err
}

func (h *housekeeper) full() bool {
	for _, a := range h.server.Alarms() {
		if a.Alarm == pb.AlarmType_NOSPACE {
			return true
		}
	}
	return false
}
