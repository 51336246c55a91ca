package cniserver

import (
	"context"

	"golang.org/x/sync/semaphore"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/inturn"
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
	// commands are those on each attachment.
	commands inturn.Queues[cniapi.Attachment, cniapi.Command]
}

func newTurns(limit int) *turns {
	t := &turns{slots: semaphore.NewWeighted(int64(limit)), limit: int64(limit)}
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
	leave, err := t.commands.Take(wait, req.Attachment(), req.Command)
	if err != nil {
		return nil, nil, t.refusal(ctx, req)
	}
	if err := t.slots.Acquire(wait, 1); err != nil {
		leave()
		return nil, nil, t.refusal(ctx, req)
	}
	return nil, func() { t.slots.Release(1); leave() }, nil
}

// adding lists the attachments with an ADD that runs or waits as the newest
// command.
func (t *turns) adding() []cniapi.Attachment {
	var keys []cniapi.Attachment
	for key, newest := range t.commands.Newest() {
		if newest == cniapi.Add {
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
