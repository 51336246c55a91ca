package records

import "log/slog"

// Writer keeps a copy on disk while whoever holds the records goes on:
// a write takes some 14 ms for 5,000, and a disk that is slow or hangs any time. It writes the newest,
// and passes over those that came meanwhile.
type Writer[T any] struct {
	save   func(T) error
	what   string
	log    *slog.Logger
	newest chan T
	ended  chan struct{}
}

// NewWriter starts writing to f. [Writer.Close] ends it.
func NewWriter[T any](f File[T], log *slog.Logger) *Writer[T] { return newWriter(f.Save, f.what, log) }

func newWriter[T any](save func(T) error, what string, log *slog.Logger) *Writer[T] {
	w := &Writer[T]{save: save, what: what, log: log, newest: make(chan T, 1), ended: make(chan struct{})}
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
	close(w.newest)
	<-w.ended
}

func (w *Writer[T]) run() {
	defer close(w.ended)
	for v := range w.newest {
		if err := w.save(v); err != nil {
			w.log.Error("the copy of "+w.what+" is out of date: a start without etcd would use the old one", "error", err)
		}
	}
}
