package underlay

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/statefile"
	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
)

// record is something that an agent remembers of the uplink, with a file in the state directory for
// the agent after it. What the agent has in its own memory counts, and the file follows: where that
// cannot be written (a full disk) nothing is forgotten while the agent runs, and it is tried again
// whenever the record is set or flushed.
type record[T any] struct {
	// path of the file; empty for none.
	path string
	log  *slog.Logger

	mu sync.Mutex
	// now is what is remembered; nil for nothing.
	now *T
	// known is that the file was read, or now was set.
	known           bool
	unread, unsaved backoff.Trouble
}

func newRecord[T any](cfg Config, file string) *record[T] {
	r := &record[T]{log: cfg.Logger}
	if cfg.StateDir != "" {
		r.path = filepath.Join(cfg.StateDir, file)
	}
	return r
}

// get is a copy of what is remembered; nil for nothing.
func (r *record[T]) get() *T {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.known {
		r.read()
	}
	if r.now == nil {
		return nil
	}
	now := *r.now
	return &now
}

// set remembers that, or with nil forgets.
func (r *record[T]) set(now *T) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now, r.known = now, true
	r.write()
}

// flush writes what could not be written when it was set, or what somebody deleted.
func (r *record[T]) flush() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.known {
		r.write()
	}
}

// read takes in what the agent before has remembered. A file that cannot be read is looked at
// again the next time.
func (r *record[T]) read() {
	if r.path == "" {
		return
	}
	data, err := os.ReadFile(r.path)
	if errors.Is(err, fs.ErrNotExist) {
		r.known = true
		return
	}
	now := new(T)
	if err == nil {
		err = json.Unmarshal(data, now)
	}
	if err == nil {
		r.now, r.known = now, true
	}
	if r.unread.News(err) {
		r.log.Warn("what the agent before remembered of the uplink cannot be read: it is as if there were none", "path", r.path, "error", err)
	}
}

// write makes the file what is remembered, if it is not.
func (r *record[T]) write() {
	if r.path == "" {
		return
	}
	has, err := os.ReadFile(r.path)
	switch missing := errors.Is(err, fs.ErrNotExist); {
	case r.now == nil && missing:
		err = nil
	case r.now == nil:
		err = os.Remove(r.path)
	default:
		data, failed := json.Marshal(r.now)
		if failed != nil {
			panic("underlay: " + failed.Error()) // what is remembered always encodes
		}
		if err != nil || !bytes.Equal(has, data) {
			err = statefile.Write(r.path, data)
		}
	}
	if err == nil {
		if r.unsaved.Over() {
			r.log.Info("what is remembered of the uplink is on disk again", "path", r.path)
		}
		return
	}
	if r.unsaved.News(err) {
		r.log.Error("what is remembered of the uplink cannot be written: this agent goes by its own memory and tries again, but one that starts meanwhile does not know it; see to the disk", "path", r.path, "error", err)
	}
}
