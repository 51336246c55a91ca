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
	// shrink gives back memory that the agent does not need any more. begun is that the first pass is done.
	shrink func(begun bool) error
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

// giveBack shrinks the agent when the first pass is done, and looks whether there is more to give back
// with each pass that reads back all there is: what is done beside passes, such as policies, is part of a
// start too, and what many pods, tenants or rules at once took would stay for minutes.
func (n *reporter) giveBack(_ context.Context, p *pass) error {
	if n.begun && !p.full {
		return nil
	}
	var err error
	p.beside(func() { err = n.shrink(n.begun) })
	if err != nil {
		n.log.Debug("memory that is not needed is not given back", "error", err)
	}
	n.begun = true
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

// newShrink gives back what only a start needs, and then, look by look, what a burst of work took. From
// the second time on the agent keeps less than Go would: it is small and idle most of the time. While it
// starts most of what it makes stays, and looking for the rest would cost who waits for it.
func newShrink() func(begun bool) error {
	var kept footprint.Kept
	frugal := os.Getenv("GOGC") != ""
	return func(begun bool) error {
		if !begun {
			return footprint.Shrink()
		}
		if !frugal {
			debug.SetGCPercent(50)
			frugal = true
		}
		return kept.Look()
	}
}
