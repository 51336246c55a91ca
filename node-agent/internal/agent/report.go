package agent

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"runtime/debug"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/attach"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/detached"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/nodeflows"
	"github.com/k8s-ovs/k8s-ovs/pkg/footprint"
)

// reporter shows what a pass has done: to the CNI and in the metrics.
type reporter struct {
	readiness *readiness
	services  *serviceFeed
	attached  interface{ List() []attach.Attachment }
	table     flowTable
	store     flowStore
	conf      confKeeper
	metrics   *metrics
	// shrink gives back memory that only the start needed; nil when that is done. begun is that it did
	// so for the first time.
	shrink func(over bool) error
	begun  bool
	log    *slog.Logger
}

// confKeeper keeps the CNI configuration in place; [cniconf.Kept] does.
type confKeeper interface {
	Ensure()
	InPlace() error
}

func (n *reporter) observe(context.Context, *pass) error {
	n.metrics.pods.Set(float64(len(n.attached.List())))
	n.metrics.flows.Set(float64(n.store.Size(nodeflows.AreaName)))
	n.metrics.peers.Set(float64(len(n.table.Peers())))
	return nil
}

// giveBack shrinks the agent when the first pass is done, and when all that a start needs is, also what is
// done beside passes, such as policies: with the next pass that reads back all there is.
func (n *reporter) giveBack(_ context.Context, p *pass) error {
	over := n.begun && p.full
	if n.shrink == nil || n.begun && !over {
		return nil
	}
	if err := n.shrink(over); err != nil {
		n.log.Debug("memory that only the start needed is not given back", "error", err)
	}
	if n.begun = true; over {
		n.shrink = nil
	}
	return nil
}

func (n *reporter) ready(_ context.Context, p *pass) error {
	n.readiness.set(p.unwell)
	return nil
}

// configuration puts the CNI configuration in place once pods have all that they should.
func (n *reporter) configuration(_ context.Context, p *pass) error {
	if p.unwell == nil && n.services.ready() == nil {
		n.conf.Ensure()
		if err := n.conf.InPlace(); errors.Is(err, detached.Err) {
			return err // only a new start of the agent's container helps
		}
	}
	return nil
}

// shrink gives back what only a start needs. When that is over it has the agent keep less than Go would
// from then on: it is small and idle most of the time. While it starts most of what it makes stays, and
// looking for the rest would cost who waits for it.
func shrink(over bool) error {
	if over && os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
	return footprint.Shrink()
}
