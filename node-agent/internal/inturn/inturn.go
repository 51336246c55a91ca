// Package inturn lets what is about one thing follow each other, in the order in which
// it came, while what is about others goes on.
package inturn

import (
	"context"
	"slices"
	"sync"
)

// Queues has a queue for each key, of turns that each have a value. The zero value is ready
// for use.
type Queues[K comparable, V any] struct {
	mu sync.Mutex
	// queues has, for each key, the turn that is taken and those that wait for it.
	queues map[K][]*turn[V]
}

type turn[V any] struct {
	value V
	// first is closed when the turn is the first of its queue.
	first chan struct{}
}

// Take waits until all earlier turns of the key have ended; leave ends this one. The error
// is ctx's.
func (q *Queues[K, V]) Take(ctx context.Context, key K, value V) (leave func(), err error) {
	mine := &turn[V]{value: value, first: make(chan struct{})}
	q.mu.Lock()
	if q.queues == nil {
		q.queues = map[K][]*turn[V]{}
	}
	q.queues[key] = append(q.queues[key], mine)
	if len(q.queues[key]) == 1 {
		close(mine.first)
	}
	q.mu.Unlock()
	select {
	case <-mine.first:
		return func() { q.leave(key, mine) }, nil
	case <-ctx.Done():
		q.leave(key, mine)
		return nil, ctx.Err()
	}
}

// leave takes a turn out of its queue. If it was the first, the next one is.
func (q *Queues[K, V]) leave(key K, mine *turn[V]) {
	q.mu.Lock()
	defer q.mu.Unlock()
	queue := q.queues[key]
	at := slices.Index(queue, mine)
	queue = slices.Delete(queue, at, at+1)
	if len(queue) == 0 {
		delete(q.queues, key)
		return
	}
	q.queues[key] = queue
	if at == 0 {
		close(queue[0].first)
	}
}

// Newest has the value of the last turn of each queue, whether it waits or is taken.
func (q *Queues[K, V]) Newest() map[K]V {
	q.mu.Lock()
	defer q.mu.Unlock()
	newest := make(map[K]V, len(q.queues))
	for key, queue := range q.queues {
		newest[key] = queue[len(queue)-1].value
	}
	return newest
}
