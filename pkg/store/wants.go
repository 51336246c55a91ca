package store

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
)

// wants are kinds that a follower follows beside its own, and that change meanwhile. Kinds
// of such a follower say each for itself how far they are, so that many of them cost no
// more than their changes: it hands on every change at once.
type wants struct {
	sink    groupSink
	changed chan struct{}

	mu    sync.Mutex // guards kinds
	kinds []string
}

// groupSink is the sink of a follower with wants.
type groupSink interface {
	sink
	// enter takes in a kind that is wanted from now on, whole at revision.
	enter(kind string, records []kv, revision int64)
	// leave forgets a kind.
	leave(kind string)
}

// want replaces the kinds.
func (w *wants) want(kinds []string) {
	w.mu.Lock()
	w.kinds = kinds
	w.mu.Unlock()
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// now are the kinds; none where w is nil.
func (w *wants) now() []string {
	if w == nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.kinds
}

// news is sent to when the kinds changed.
func (w *wants) news() <-chan struct{} {
	if w == nil {
		return nil
	}
	return w.changed
}

// entry is what was read of kinds that are wanted, or why it could not be.
type entry struct {
	listing
	err error
}

// leave forgets the kinds that are not wanted any more.
func (f *follower) leave() {
	keep := map[string]bool{}
	for _, kind := range slices.Concat(f.kinds, f.wants.now()) {
		keep[kind] = true
	}
	left := false
	for kind, k := range f.watches {
		if keep[kind] {
			continue
		}
		k.stop()
		delete(f.watches, kind)
		prefix := f.store.keys.kind(f.config.Value.Name, kind)
		maps.DeleteFunc(f.revs, func(key string, _ int64) bool { return strings.HasPrefix(key, prefix) })
		f.wants.sink.leave(kind)
		left = true
	}
	if left {
		f.emit(f.seen)
	}
}

// read reads the kinds that are wanted and not there, and sends them to entries. It does so
// once at a time.
func (f *follower) read(ctx context.Context, entries chan<- entry) {
	var missing []string
	for _, kind := range f.wants.now() {
		if f.watches[kind] == nil {
			missing = append(missing, kind)
		}
	}
	if len(missing) == 0 || f.reading {
		return
	}
	f.reading = true
	go func() {
		l, err := f.store.list(ctx, missing...)
		select {
		case entries <- entry{l, err}:
		case <-ctx.Done():
		}
	}()
}

// enter takes in what was read, and returns what is to be watched from now on.
func (f *follower) enter(e entry) (fresh []*watched, err error) {
	f.reading = false
	switch {
	case e.err != nil:
		return nil, e.err
	case e.config.Revision != f.config.Revision:
		return nil, errConfigChanged
	}
	wanted := f.wants.now()
	for i, kind := range e.names {
		if f.watches[kind] != nil || !slices.Contains(wanted, kind) {
			continue
		}
		k := &watched{kind: kind, progress: e.revision}
		f.watches[kind] = k
		for _, r := range e.kinds[i] {
			f.revs[r.key] = r.rev.Mod
		}
		f.wants.sink.enter(kind, e.kinds[i], e.revision)
		fresh = append(fresh, k)
	}
	if len(fresh) > 0 {
		f.emit(f.seen)
	}
	return fresh, nil
}
