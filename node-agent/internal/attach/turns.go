package attach

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/inturn"
	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
)

// turns lets one change of an attachment at a time happen. The zero value is
// ready for use.
type turns struct {
	inturn.Queues[cniapi.Attachment, struct{}]
}

// take waits for the attachment's turn and returns what ends it, or ctx's error.
func (t *turns) take(ctx context.Context, key cniapi.Attachment) (end func(), err error) {
	if end, err = t.Take(ctx, key, struct{}{}); err != nil {
		return nil, fmt.Errorf("attachment %s is still being changed: %w", key, err)
	}
	return end, nil
}

// atOnce is how many running pods are changed at the same time: most of it is waiting
// for the kernel's one lock of devices, and for the switch.
const atOnce = 8

// each changes those of keys that are still attached, each in its turn. The error
// of one does not keep the others from being changed, and a pod that goes meanwhile
// is no error.
func (a *Attacher) each(ctx context.Context, keys []cniapi.Attachment, change func(context.Context, Node, Attachment) error) error {
	errs := make([]error, len(keys))
	slots := make(chan struct{}, atOnce)
	var wg sync.WaitGroup
	for i, key := range keys {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			errs[i] = a.inTurn(ctx, key, change)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (a *Attacher) inTurn(ctx context.Context, key cniapi.Attachment, change func(context.Context, Node, Attachment) error) error {
	end, err := a.turns.take(ctx, key)
	if err != nil {
		return err
	}
	defer end()
	node, _, err := a.known()
	if err != nil {
		return err
	}
	at, still := a.find(key)
	if !still {
		return nil
	}
	err = change(ctx, node, at)
	if err == nil || gone(err) {
		return nil
	}
	return fmt.Errorf("pod %s/%s: %w", at.Namespace, at.Pod, err)
}

// gone reports whether the pod, or its device, is not there any more.
func gone(err error) bool {
	return errors.Is(err, link.ErrNoLink) || errors.Is(err, link.ErrNoSandbox)
}

// devicesAtOnce is how many pods that come have their devices made at the same time.
const devicesAtOnce = 4

// slots bounds what is done at the same time.
type slots chan struct{}

// take waits for a slot; release gives it back and may be called again.
func (s slots) take(ctx context.Context) (release func(), err error) {
	select {
	case s <- struct{}{}:
		return sync.OnceFunc(func() { <-s }), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
