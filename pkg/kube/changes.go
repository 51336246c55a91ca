package kube

import (
	"context"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
)

// Changes tells what changed among the objects of a kind, for those who would not look at
// all of them each time.
type Changes[K comparable, T any] struct {
	wake  <-chan struct{}
	taken func() (map[K]*T, bool)
}

// News is sent to when there is something to take: first of all when all objects were seen
// once. It is closed when the watch has ended.
func (c *Changes[K, T]) News() <-chan struct{} { return c.wake }

// Take returns what changed since it was last called; nil stands for what is gone. What is
// returned is not changed. Until all objects were seen once, ok is false and there is nothing.
func (c *Changes[K, T]) Take() (changed map[K]*T, ok bool) { return c.taken() }

// watchChanges watches while fill fills the table.
func watchChanges[O runtime.Object, K comparable, T any](convert func(O) (K, T), fill func(*table[O, K, T])) *Changes[K, T] {
	p := newPicture()
	t := newTable(p, convert)
	changed := map[K]*T{}
	t.noted = func(key K, _, fresh *T) { changed[key] = fresh }
	go func() {
		defer close(p.wake)
		fill(t)
	}()
	return &Changes[K, T]{wake: p.wake, taken: func() (map[K]*T, bool) {
		p.mu.Lock()
		defer p.mu.Unlock()
		if !t.synced {
			return nil, false
		}
		all := changed
		changed = map[K]*T{}
		return all, true
	}}
}

// mayList returns when list is allowed, which asks for one object of a kind; false when ctx
// ended first. A reflector would complain of a right that is missing every few seconds.
// without says what is left undone.
func (c *Client) mayList(ctx context.Context, without string, list func(context.Context) error) bool {
	said := false
	for ctx.Err() == nil {
		pause, err := serviceRetry, bounded(ctx, list)
		switch {
		case err == nil:
			return true
		case apierrors.IsForbidden(err):
			pause = forbiddenRetry
			if !said {
				said = true
				c.log.Warn("may not list objects, so "+without+"; going on without: the ClusterRole of the newest manifest has the right", "error", err)
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
	return false
}

func bounded(ctx context.Context, list func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return list(ctx)
}
