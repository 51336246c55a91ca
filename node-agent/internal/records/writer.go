package records

import (
	"log/slog"
	"time"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/statefile"
	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
)

const (
	// lookEvery is how often a Writer looks whether somebody deleted the copy.
	lookEvery = 5 * time.Second
	// A Writer that has written rests for restTimes as long as that took, but not longer than restMost: in a
	// burst of changes it takes a tenth of a processor, and not all of it.
	restTimes = 9
	restMost  = time.Second
)

// Writer keeps a copy on disk while whoever holds the records goes on:
// a write takes some 14 ms for 5,000, and a disk that is slow or hangs any time. It writes the newest,
// and passes over those that came meanwhile, and while it rests. A copy that somebody
// deletes, or that could not be written, it writes again.
type Writer[T any] struct {
	save    func(T) error
	gone    func() bool
	what    string
	log     *slog.Logger
	newest  chan T
	closing chan struct{}
	ended   chan struct{}
}

// NewWriter starts writing to f. [Writer.Close] ends it.
func NewWriter[T any](f File[T], log *slog.Logger) *Writer[T] {
	return newWriter(f.Save, func() bool { return statefile.Missing(f.path) }, f.what, log)
}

func newWriter[T any](save func(T) error, gone func() bool, what string, log *slog.Logger) *Writer[T] {
	w := &Writer[T]{save: save, gone: gone, what: what, log: log, newest: make(chan T, 1), closing: make(chan struct{}), ended: make(chan struct{})}
	go w.run()
	return w
}

// Keep has v written, in place of what is not written yet, and does not wait for it. One goroutine
// calls it, and not after Close.
func (w *Writer[T]) Keep(v T) {
	select {
	case <-w.newest:
	default:
	}
	w.newest <- v
}

// Close returns when what was kept last is on disk, or could not be written.
func (w *Writer[T]) Close() {
	close(w.closing)
	<-w.ended
}

func (w *Writer[T]) run() {
	defer close(w.ended)
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	var newest *T // that is to be there
	var trouble backoff.Trouble
	failed := false
	write := func() {
		err := w.save(*newest)
		if failed = err != nil; trouble.News(err) {
			w.log.Error("the copy of "+w.what+" is out of date, or gone: a start without etcd would use the old one, or have none; trying again", "error", err)
		}
	}
	next, rested := w.newest, (<-chan time.Time)(nil)
	for {
		select {
		case v := <-next:
			newest = &v
			began := time.Now()
			write()
			next, rested = nil, time.After(min(restTimes*time.Since(began), restMost))
		case <-rested:
			next, rested = w.newest, nil
		case <-w.closing:
			select {
			case v := <-w.newest:
				newest = &v
				write()
			default:
			}
			return
		case <-look.C:
			switch {
			case newest == nil:
			case failed:
				write()
			case w.gone():
				w.log.Warn("the copy of " + w.what + " was gone from the state directory: it is written again")
				write()
			}
		}
	}
}
