package policies

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
)

// conditions has the status of each ClusterNetworkPolicy say what became of it. It writes
// beside the Keeper, which does not wait for the API server.
type conditions struct {
	api  API
	log  *slog.Logger
	wake chan struct{}

	mu  sync.Mutex // guards due
	due map[string]condition
}

// condition is what the status of a policy is to say, and does not.
type condition struct {
	policy kube.ClusterNetworkPolicy
	say    kube.Honoured
}

func newConditions(api API, log *slog.Logger) *conditions {
	return &conditions{api: api, log: log, wake: make(chan struct{}, 1)}
}

// honouredOf is what the status of a policy is to say.
func honouredOf(p kube.ClusterNetworkPolicy) kube.Honoured {
	if p.Problem != "" {
		return kube.Honoured{Generation: p.Generation, Reason: NotHonoured, Message: p.Problem + closes}.Short()
	}
	return kube.Honoured{Generation: p.Generation, Reason: Understood, Message: "k8s-ovs understands all of it", OK: true}
}

// set takes in the policies as they are.
func (c *conditions) set(policies map[string]clusterPolicy) {
	due := map[string]condition{}
	for name, p := range policies {
		if say := honouredOf(p.ClusterNetworkPolicy); say != p.Told {
			due[name] = condition{p.ClusterNetworkPolicy, say}
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.due = due; len(due) > 0 {
		select {
		case c.wake <- struct{}{}:
		default:
		}
	}
}

// take are those that are to be written, and none any more.
func (c *conditions) take() map[string]condition {
	c.mu.Lock()
	defer c.mu.Unlock()
	due := c.due
	c.due = map[string]condition{}
	return due
}

// again has those written later that could not be, unless there is a newer word.
func (c *conditions) again(failed []condition) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, one := range failed {
		if _, newer := c.due[one.policy.Name]; !newer {
			c.due[one.policy.Name] = one
		}
	}
}

// run writes until ctx ends. A right that is missing comes with a new manifest.
func (c *conditions) run(ctx context.Context) {
	pauses := backoff.Pauses{First: time.Second, Last: time.Minute}
	var trouble backoff.Trouble
	for {
		failed := c.write(ctx, &trouble)
		if len(failed) > 0 {
			c.again(failed)
			if !pauses.Wait(ctx) {
				return
			}
			continue
		}
		pauses.Reset()
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		}
	}
}

// write writes what is due, and returns what failed.
func (c *conditions) write(ctx context.Context, trouble *backoff.Trouble) (failed []condition) {
	due := c.take()
	for _, name := range slices.Sorted(maps.Keys(due)) {
		one := due[name]
		err := c.api.TellHonoured(ctx, one.policy, one.say)
		switch {
		case err == nil, errors.Is(err, kube.ErrNotFound):
			continue
		case ctx.Err() == nil && trouble.News(err):
			c.log.Warn("cannot write what became of a ClusterNetworkPolicy into its status; trying again", "error", err)
		}
		failed = append(failed, one)
	}
	if len(failed) == 0 {
		trouble.Over()
	}
	return failed
}
