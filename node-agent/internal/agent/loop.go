package agent

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/detached"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/records"
	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
	"github.com/k8s-ovs/k8s-ovs/pkg/faultpoint"
	"github.com/k8s-ovs/k8s-ovs/pkg/service"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// loop brings the node to what the records and the API server say, again and
// again. What a pass does are its steps; when there is one is decided here.
type loop struct {
	*picture
	*rooms
	steps []step
	// file is the copy of the records on disk.
	file records.File[topology.Snapshot]
	// listen subscribes to what wakes the loop until ctx ends.
	listen func(ctx context.Context) (sources, error)
	// database tells of changes in it.
	database changing
	// sessions is how many connections to it there were at the last look.
	sessions int
	ready    *readiness
	log      *slog.Logger
}

// changing is a database that tells of changes; [ovs.Client] has it.
type changing interface {
	Changes() <-chan struct{}
	// Sessions counts connections.
	Sessions() int
}

// sources are where news come from.
type sources struct {
	records <-chan topology.Snapshot
	// services is nil outside of Kubernetes.
	services <-chan service.Update
	links    <-chan struct{}
	mtus     <-chan topology.MTUs
}

func newLoop(p *picture, r *rooms) *loop { return &loop{picture: p, rooms: r, steps: r.steps()} }

// run runs passes until ctx ends.
func (l *loop) run(ctx context.Context) error {
	defer l.flows.conn.close()
	defer l.status.close()
	defer l.policies.close()
	l.loadCopy(l.file, l.log)
	l.policies.load()
	copies := records.NewWriter(l.file, l.log)
	defer copies.Close()
	l.flows.copies = copies
	ctx, cancel := context.WithCancel(ctx)
	var beside sync.WaitGroup
	beside.Go(func() { l.host.mtu.Run(ctx) })
	defer beside.Wait()
	defer cancel()
	from, err := l.listen(ctx)
	if err != nil {
		return err
	}
	e := newEvents(from)
	defer e.stop()
	return l.wake(ctx, e)
}

// wake waits for events, and runs the passes that they ask for.
func (l *loop) wake(ctx context.Context, e *events) error {
	pause := &backoff.Pauses{First: firstPause, Last: lastPause}
	calming := false
	owed := false // a pass that reads back all there is, until one comes to its end
	for {
		due, err := l.next(ctx, e)
		if err != nil {
			return err
		}
		switch {
		case due == noPass:
			continue
		case due == passDeferred:
			calming = false
		case due == passLater && l.ready.is() == nil:
			if !calming {
				calming = true
				e.deferred.Reset(calm)
			}
			continue
		}
		owed = owed || due == passFull
		more, err := l.pass(ctx, owed, e.records)
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			l.ready.set(err)
			if errors.Is(err, errReaddressed) || errors.Is(err, detached.Err) {
				return err
			}
			l.status.tell()
			calming = false
			e.deferred.Reset(pause.Next())
			continue
		}
		owed = false
		if l.plan(e, pause); more {
			e.deferred.Reset(0)
		}
	}
}

// plan says when the next pass is, after one that did all its steps.
func (l *loop) plan(e *events, pause *backoff.Pauses) {
	well := l.ready.is() == nil
	if well {
		pause.Reset()
	}
	switch wait, refused := l.host.peers.Retry(); {
	case l.host.mtu.Next(true): // one step may make the next one possible
		e.deferred.Reset(0)
	case !well: // something outside of the agent keeps pods back
		e.deferred.Reset(pause.Next())
	case refused:
		e.deferred.Reset(wait)
	}
}

// pass takes the steps in order, up to the first that fails. A pass that reads back all
// there is takes 100 ms and more: records that come meanwhile wait neither for its end nor
// for what a step does [pass.beside]. more is that they want another pass.
func (l *loop) pass(ctx context.Context, full bool, records <-chan topology.Snapshot) (more bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	take := func(news topology.Snapshot, open bool) {
		if !open {
			records = nil // the loop ends, when it waits for more
		} else if !l.follow(ctx, news) {
			more = true
		}
	}
	p := &pass{full: full}
	p.waiting = func(f func()) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			f()
		}()
		for {
			select {
			case <-done:
				return
			case news, open := <-records:
				take(news, open)
			}
		}
	}
	for _, s := range l.steps {
		if err := s.run(ctx, p); err != nil {
			l.log.Debug("the node is not what it should be yet", "step", s.name, "error", err)
			return more, err
		}
		faultpoint.Here("pass", s.name)
		select {
		case news, open := <-records:
			take(news, open)
		default:
		}
	}
	return more, nil
}

// mtuNews says what to do after nodes have written.
func (l *loop) mtuNews() due {
	if l.host.mtu.Next(l.ready.is() == nil) || l.host.mtu.Unwell() != nil {
		return passNow
	}
	return noPass
}

// due is what an event asks of the loop.
type due int

const (
	// noPass: what there was to do is done.
	noPass due = iota
	// passNow is a pass at once.
	passNow
	// passDeferred is the one that was put off.
	passDeferred
	// passLater can wait a while as long as all is well.
	passLater
	// passFull reads back all there is.
	passFull
)

// events wake the loop.
type events struct {
	sources
	// looked is when links were looked at last.
	looked time.Time
	// deferred fires at once at first, then after a pass that failed, and a while
	// after somebody changed something.
	deferred *time.Timer
	patience *time.Timer
	resync   *time.Ticker
}

func newEvents(from sources) *events {
	return &events{sources: from, deferred: time.NewTimer(0), patience: time.NewTimer(etcdPatience), resync: time.NewTicker(resyncEvery)}
}

func (e *events) stop() {
	e.deferred.Stop()
	e.patience.Stop()
	e.resync.Stop()
}

// look says what to do after devices or routes changed. A pod can bring that about
// as often as it likes, and to look costs a listing of devices: what comes
// right after the last look waits for the next event or pass.
func (e *events) look(changed func() bool) due {
	if time.Since(e.looked) < lookEvery {
		return passLater
	}
	defer func() { e.looked = time.Now() }()
	if changed() {
		return passNow
	}
	return passLater
}

// next waits for an event. What can be done about it without a pass it does.
func (l *loop) next(ctx context.Context, e *events) (due, error) {
	select {
	case <-ctx.Done():
		return noPass, ctx.Err()
	case s, open := <-e.records:
		if !open {
			return noPass, ctx.Err()
		}
		if l.follow(ctx, s) {
			return noPass, nil
		}
	case u, open := <-e.services:
		if !open {
			return noPass, ctx.Err()
		}
		if l.services.update(ctx, u) {
			return noPass, nil
		}
	case <-l.flows.conn.ended():
		l.flows.disconnect()
		l.ready.set(errors.New("ovs-vswitchd is away"))
	case <-l.database.Changes():
		if now := l.database.Sessions(); now != l.sessions {
			l.sessions = now
			return passFull, nil // it may be an older one, or empty
		}
		return passLater, nil
	case _, open := <-e.links:
		if !open {
			return noPass, errors.New("the kernel's network events cannot be read any more")
		}
		l.host.mtu.RoutesChanged()
		return e.look(l.host.mtu.LinksChanged), nil
	case m, open := <-e.mtus:
		if !open {
			return noPass, ctx.Err()
		}
		l.host.mtu.See(m)
		return l.mtuNews(), nil
	case w := <-l.host.mtu.Written():
		l.host.mtu.TakeWritten(w)
		return l.mtuNews(), nil
	case <-l.host.mtu.Measured():
	case <-l.health.mesh.through.Changed():
		return passFull, nil
	case <-e.patience.C:
		l.useCopy(l.log)
		l.policies.useCopy()
	case <-e.resync.C:
		l.host.mtu.Resync()
		return passFull, nil
	case <-e.deferred.C:
		return passDeferred, nil
	}
	return passNow, nil
}

// follow takes in new records, and reports whether that was all there was to do.
func (l *loop) follow(ctx context.Context, s topology.Snapshot) bool {
	return l.flows.follow(ctx, s, l.host.mtu.Ways()) && l.ready.is() == nil
}
