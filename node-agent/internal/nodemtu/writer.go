package nodemtu

import (
	"context"
	"log/slog"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// writer writes the node's MTU record while the loop goes on: etcd may be away,
// and the node's links change all the same. But for run it belongs to one goroutine.
type writer struct {
	put func(context.Context, topology.NodeMTU) (revision int64, err error)
	log *slog.Logger
	// asked has the newest request, done what became of it.
	asked chan request
	done  chan Written

	number   int // of the last request; 0 for none
	last     topology.NodeMTU
	revision int64 // of the last request, once written; else 0
}

// firstPause and lastPause bound the pause after a write that failed.
const firstPause, lastPause = 20 * time.Millisecond, 2 * time.Second

type request struct {
	number int
	record topology.NodeMTU
}

// Written is what became of a request to write.
type Written struct {
	number   int
	revision int64
}

func newWriter(put func(context.Context, topology.NodeMTU) (int64, error), log *slog.Logger) *writer {
	return &writer{put: put, log: log, asked: make(chan request, 1), done: make(chan Written)}
}

// write has the record written, in place of what is not written yet.
func (w *writer) write(record topology.NodeMTU) {
	w.number++
	w.last, w.revision = record, 0
	select {
	case <-w.asked:
	default:
	}
	w.asked <- request{w.number, record}
}

// take takes in what came from done.
func (w *writer) take(d Written) {
	if d.number == w.number {
		w.revision = d.revision
	}
}

// confirmed reports whether a view as of revision has all that was ever written:
// nothing is under way. An earlier agent's writes count as under way until the first
// of this one.
func (w *writer) confirmed(revision int64) bool {
	return w.revision > 0 && w.revision <= revision
}

// forget makes what was written count for nothing.
func (w *writer) forget() {
	if w.revision > 0 {
		w.last, w.revision = topology.NodeMTU{}, 0
	}
}

// run writes what is asked for until ctx ends. A record that was replaced
// meanwhile is not tried again.
func (w *writer) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case r := <-w.asked:
			if !w.persist(ctx, r) {
				return
			}
		}
	}
}

// persist tries until the record, or a newer one, is written; false when ctx ended.
func (w *writer) persist(ctx context.Context, r request) bool {
	pause := backoff.Pauses{First: firstPause, Last: lastPause}
	var failed backoff.Trouble
	for {
		revision, err := w.put(ctx, r.record)
		if err == nil {
			select {
			case w.done <- Written{r.number, revision}:
				return true
			case <-ctx.Done():
				return false
			}
		}
		if ctx.Err() != nil {
			return false
		}
		if failed.News(err) {
			w.log.Warn("other nodes do not know of this one's MTU; trying again", "error", err)
		}
		select {
		case r = <-w.asked:
		case <-time.After(pause.Next()):
		case <-ctx.Done():
			return false
		}
	}
}
