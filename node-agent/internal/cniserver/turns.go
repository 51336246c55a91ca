package cniserver

import (
	"context"
	"slices"
	"sync"

	"golang.org/x/sync/semaphore"

	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
)

// turns decides what may run at once: commands on different attachments do, up
// to a limit; commands on one attachment do not, and run in the order in which
// they came; GC runs alone.
type turns struct {
	// slots are what runs: one for a command, all of them for GC. The semaphore is
	// fair, so a waiting GC is not passed by.
	slots *semaphore.Weighted
	limit int64
	// closing ends with the wish to begin nothing more.
	closing context.Context
	close   context.CancelFunc

	mu sync.Mutex
	// queues has, for each attachment, the command that runs and those that wait
	// for it, in the order in which they came.
	queues map[cniapi.Attachment][]*turn
}

type turn struct {
	command cniapi.Command
	// first is closed when the turn is the first of its queue.
	first chan struct{}
}

func newTurns(limit int) *turns {
	t := &turns{slots: semaphore.NewWeighted(int64(limit)), limit: int64(limit), queues: make(map[cniapi.Attachment][]*turn)}
	t.closing, t.close = context.WithCancel(context.Background())
	return t
}

// take waits until req may run; done ends its turn. For GC, adding has the
// attachments whose ADD was under way when it came: the runtime made its list
// before their ADD was done, so they are not in it, but they are not garbage.
func (t *turns) take(ctx context.Context, req cniapi.Request) (adding []cniapi.Attachment, done func(), err error) {
	if t.closing.Err() != nil {
		return nil, nil, t.refusal(ctx, req)
	}
	wait, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(t.closing, stop)()

	if req.Command == cniapi.GC {
		adding = t.adding()
		if err := t.slots.Acquire(wait, t.limit); err != nil {
			return nil, nil, t.refusal(ctx, req)
		}
		return adding, func() { t.slots.Release(t.limit) }, nil
	}
	// The attachment's turn comes before the slot: what waits for its like holds
	// up nobody else.
	leave, err := t.queue(wait, req)
	if err != nil {
		return nil, nil, t.refusal(ctx, req)
	}
	if err := t.slots.Acquire(wait, 1); err != nil {
		leave()
		return nil, nil, t.refusal(ctx, req)
	}
	return nil, func() { t.slots.Release(1); leave() }, nil
}

// queue waits until all earlier commands on the attachment have left; the
// returned function leaves.
func (t *turns) queue(ctx context.Context, req cniapi.Request) (func(), error) {
	key := req.Attachment()
	mine := &turn{command: req.Command, first: make(chan struct{})}
	t.mu.Lock()
	t.queues[key] = append(t.queues[key], mine)
	if len(t.queues[key]) == 1 {
		close(mine.first)
	}
	t.mu.Unlock()
	select {
	case <-mine.first:
		return func() { t.leave(key, mine) }, nil
	case <-ctx.Done():
		t.leave(key, mine)
		return nil, ctx.Err()
	}
}

// leave takes a turn out of its queue. If it was the first, the next one is.
func (t *turns) leave(key cniapi.Attachment, mine *turn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	queue := t.queues[key]
	at := slices.Index(queue, mine)
	queue = slices.Delete(queue, at, at+1)
	if len(queue) == 0 {
		delete(t.queues, key)
		return
	}
	t.queues[key] = queue
	if at == 0 {
		close(queue[0].first)
	}
}

// adding lists the attachments with an ADD that runs or waits as the newest
// command.
func (t *turns) adding() []cniapi.Attachment {
	t.mu.Lock()
	defer t.mu.Unlock()
	var keys []cniapi.Attachment
	for key, queue := range t.queues {
		if queue[len(queue)-1].command == cniapi.Add {
			keys = append(keys, key)
		}
	}
	return keys
}

func (t *turns) refusal(ctx context.Context, req cniapi.Request) error {
	if t.closing.Err() != nil {
		return cniapi.Errorf(cniapi.CodeTryAgain, "the k8s-ovs agent is shutting down; %s of %s was not begun", req.Command, req.Attachment())
	}
	return cniapi.Errorf(cniapi.CodeTryAgain, "%s of %s waited in vain for earlier commands: %w", req.Command, req.Attachment(), ctx.Err()).
		WithDetails("the agent's log says what they are waiting for")
}
