package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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
// guide, "Space quota").
type housekeeper struct {
	server  *etcdserver.EtcdServer
	quota   int64 // bytes
	metrics *Metrics
	log     *slog.Logger
	failed  backoff.Trouble

	seen []seen    // of the last keepHistory, the oldest first
	cut  time.Time // when room was made last
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
				h.log.Error("the embedded etcd is about to be full, and its history could not be cut short", "error", err)
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
	full, size := h.full(), h.server.Backend().Size()
	h.metrics.size.Set(float64(size))
	scarce := full || size > h.quota*3/4
	if !scarce && (size < h.quota/2 || now.Sub(h.cut) < keepHistory) {
		return nil
	}
	h.cut = now
	ctx = asRoot(ctx)
	revision := h.seen[0].revision
	if scarce {
		revision = h.seen[len(h.seen)-1].revision
	}
	_, err := h.server.Compact(ctx, &pb.CompactionRequest{Revision: revision, Physical: true})
	if err != nil && !errors.Is(err, mvcc.ErrCompacted) {
		return fmt.Errorf("compact to revision %d: %w", revision, err)
	}
	if h.server.Backend().SizeInUse() < size/2 {
		if err := h.server.Backend().Defrag(); err != nil {
			return fmt.Errorf("give room back: %w", err)
		}
	}
	left := h.server.Backend().Size()
	h.metrics.size.Set(float64(left))
	if left < size {
		h.metrics.cut.Inc()
		h.log.Warn("records changed so much that their history filled etcd's database: it was cut short", "bytesBefore", size, "bytes", left, "quota", h.quota)
	}
	switch {
	case left > h.quota*3/4:
		return fmt.Errorf("the records themselves have more than three quarters of its %d bytes", h.quota)
	case !full:
		return nil
	}
	_, err = h.server.Alarm(ctx, &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, MemberID: uint64(h.server.MemberID()), Alarm: pb.AlarmType_NOSPACE})
	if err != nil {
		return fmt.Errorf("take back the alarm: %w", err)
	}
	h.log.Info("etcd was full, and takes changes again")
	return nil
}

func (h *housekeeper) full() bool {
	for _, a := range h.server.Alarms() {
		if a.Alarm == pb.AlarmType_NOSPACE {
			return true
		}
	}
	return false
}
