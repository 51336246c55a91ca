package records

import (
	"log/slog"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// Writer keeps the copy on disk while whoever holds the records goes on:
// a write takes some 14 ms for 5,000, and a disk that is slow or hangs any time. It writes the newest
// snapshot, and passes over those that came meanwhile.
type Writer struct {
	save   func(topology.Snapshot) error
	log    *slog.Logger
	newest chan topology.Snapshot
	ended  chan struct{}
}

// NewWriter starts writing to f. [Writer.Close] ends it.
func NewWriter(f File, log *slog.Logger) *Writer { return newWriter(f.Save, log) }

func newWriter(save func(topology.Snapshot) error, log *slog.Logger) *Writer {
	w := &Writer{save: save, log: log, newest: make(chan topology.Snapshot, 1), ended: make(chan struct{})}
	go w.run()
	return w
}

// Keep has s written, in place of what is not written yet, and does not wait for it. One goroutine
// calls it, and not after Close.
func (w *Writer) Keep(s topology.Snapshot) {
	select {
	case <-w.newest:
	default:
	}
	w.newest <- s
}

// Close returns when what was kept last is on disk, or could not be written.
func (w *Writer) Close() {
	close(w.newest)
	<-w.ended
}

func (w *Writer) run() {
	defer close(w.ended)
	for s := range w.newest {
		if err := w.save(s); err != nil {
			w.log.Error("the copy of the records is out of date: a start without etcd would use the old one", "error", err)
		}
	}
}
