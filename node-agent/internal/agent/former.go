package agent

import (
	"context"
	"log/slog"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/flowstore"
	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
)

// former is what a node that is in no Kubernetes cluster may have left of one that it was in: services and policies
// in the flows, and what policies deny past the switch. Nobody wants any of it.
type former struct {
	store formerFlows
	areas []flowstore.Area
	judge interface{ Remove(context.Context) error }
	log   *slog.Logger
	// told is that the store knows that nobody wants these areas' flows; done, that the last look took away all that there was.
	told, done bool
	trouble    backoff.Trouble
}

// formerFlows is what the bridge has; [flowstore.Store] is one.
type formerFlows interface {
	Set(ctx context.Context, c flowstore.Change) (flowstore.Result, error)
	Resync(ctx context.Context, area string) (flowstore.Result, error)
}

// clear takes it away, also flows that come back. It is never why pods cannot be attached.
func (f *former) clear(ctx context.Context, p *pass) error {
	if f == nil || f.done && !p.full {
		return nil
	}
	err := f.look(ctx)
	f.done = err == nil
	if f.trouble.News(err) {
		f.log.Warn("something is left of the cluster that the node was in: trying again", "error", err)
	}
	return nil
}

func (f *former) look(ctx context.Context) error {
	if f.told {
		for _, a := range f.areas {
			if _, err := f.store.Resync(ctx, a.Name); err != nil {
				return err
			}
		}
		return nil
	}
	for _, a := range f.areas {
		var none flowstore.Change
		none.All(a.Kinds...)
		if _, err := f.store.Set(ctx, none); err != nil {
			return err
		}
	}
	if err := f.judge.Remove(ctx); err != nil {
		return err
	}
	f.told = true
	return nil
}
