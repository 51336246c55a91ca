package agent

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/mtu"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/nodemtu"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pathprobe"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/records"
	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
	"github.com/k8s-ovs/k8s-ovs/pkg/service"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// loop brings the node to what the records and the API server say, again and
// again.
func (n *node) loop(ctx context.Context) error {
	defer n.conn.close()
	defer func() {
		if n.status != nil {
			n.status.Close()
		}
	}()
	n.loadCopy()
	n.copies = records.NewWriter(n.file, n.log)
	defer n.copies.Close()
	ctx, cancel := context.WithCancel(ctx)
	n.mtu = n.newMTU()
	var beside sync.WaitGroup
	beside.Go(func() { n.mtu.Run(ctx) })
	defer beside.Wait()
	defer cancel()
	e, err := n.listen(ctx)
	if err != nil {
		return err
	}
	defer e.stop()
	pause := &backoff.Pauses{First: firstPause, Last: lastPause}
	calming := false
	for {
		due, err := n.next(ctx, e)
		if err != nil {
			return err
		}
		switch {
		case due == nothing:
			continue
		case due == again:
			calming = false
		case due == someTime && n.Ready() == nil:
			if !calming {
				calming = true
				e.again.Reset(calm)
			}
			continue
		}
		if err := n.pass(ctx, due == everything); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			n.log.Debug("the node is not what it should be yet", "error", err)
			n.setReady(err)
			n.publish()
			calming = false
			e.again.Reset(pause.Next())
			continue
		}
		pause.Reset()
		switch {
		case n.mtuNews() == aPass: // one step may make the next one possible
			e.again.Reset(0)
		default:
			if wait, ok := n.peers.Retry(); ok {
				e.again.Reset(wait)
			}
		}
	}
}

func (n *node) newMTU() *nodemtu.MTU {
	cfg := nodemtu.Config{
		Name: n.cfg.NodeName, Self: n.self, Configured: n.cfg.MTU, Policy: n.cfg.MTUOnBlackHole, Put: n.store.PutNodeMTU,
		Host: n.host, Switch: n.ovs, Underlay: n.underlay, Metrics: n.metrics.mtu, Logger: n.log,
	}
	if n.cfg.MTUProbePort != 0 {
		cfg.Prober = pathprobe.New(pathprobe.Config{
			NS: n.host, Address: netip.AddrPortFrom(n.self, n.cfg.MTUProbePort), Interval: n.cfg.MTUProbeInterval,
			Floor: topology.MinMTU + mtu.Overhead(n.self), Logger: n.log,
		})
	}
	return nodemtu.New(cfg)
}

// mtuNews says what to do after nodes have written.
func (n *node) mtuNews() due {
	if n.mtu.Next(n.Ready() == nil) {
		return aPass
	}
	return nothing
}

// due is what an event asks of the loop.
type due int

const (
	// nothing more: what there was to do is done.
	nothing due = iota
	// aPass at once.
	aPass
	// again is the pass that was put off.
	again
	// someTime: a pass, which can wait a while as long as all is well.
	someTime
	// everything: a pass that reads back all there is.
	everything
)

// events wake the loop.
type events struct {
	records <-chan topology.Snapshot
	// services is nil outside of Kubernetes.
	services <-chan service.Update
	links    <-chan struct{}
	// looked is when links were looked at last.
	looked time.Time
	mtus   <-chan topology.MTUs
	// again fires at once at first, then after a pass that failed, and a while
	// after somebody changed something.
	again    *time.Timer
	patience *time.Timer
	resync   *time.Ticker
}

func (n *node) listen(ctx context.Context) (*events, error) {
	links, err := n.host.Subscribe(ctx)
	if err != nil {
		return nil, err
	}
	e := &events{
		records: n.store.Watch(ctx), links: links, mtus: n.store.WatchMTUs(ctx),
		again: time.NewTimer(0), patience: time.NewTimer(etcdPatience), resync: time.NewTicker(resyncEvery),
	}
	if n.services.table != nil {
		e.services = n.api.WatchServices(ctx, n.cfg.NodeName)
	}
	return e, nil
}

func (e *events) stop() {
	e.again.Stop()
	e.patience.Stop()
	e.resync.Stop()
}

// look says what to do after devices or routes changed. A pod can bring that about
// as often as it likes, and to look costs a listing of devices: what comes
// right after the last look waits for the next event or pass.
func (e *events) look(changed func() bool) due {
	if time.Since(e.looked) < lookEvery {
		return someTime
	}
	defer func() { e.looked = time.Now() }()
	if changed() {
		return aPass
	}
	return someTime
}

// next waits for an event. What can be done about it without a pass it does.
func (n *node) next(ctx context.Context, e *events) (due, error) {
	select {
	case <-ctx.Done():
		return nothing, ctx.Err()
	case s, open := <-e.records:
		if !open {
			return nothing, ctx.Err()
		}
		if n.follow(ctx, s) {
			return nothing, nil
		}
	case u, open := <-e.services:
		if !open {
			return nothing, ctx.Err()
		}
		if n.serve(ctx, u) {
			return nothing, nil
		}
	case <-n.conn.lost:
		n.disconnect()
		n.setReady(errors.New("ovs-vswitchd is away"))
	case <-n.ovs.Changes():
		return someTime, nil
	case _, open := <-e.links:
		if !open {
			return nothing, errors.New("the kernel's network events cannot be read any more")
		}
		n.mtu.RoutesChanged()
		return e.look(n.mtu.LinksChanged), nil
	case m, open := <-e.mtus:
		if !open {
			return nothing, ctx.Err()
		}
		n.mtu.See(m)
		return n.mtuNews(), nil
	case w := <-n.mtu.Written():
		n.mtu.TakeWritten(w)
		return n.mtuNews(), nil
	case <-n.mtu.Measured():
	case <-e.patience.C:
		n.useCopy()
	case <-e.resync.C:
		n.mtu.Resync()
		return everything, nil
	case <-e.again.C:
		return again, nil
	}
	return aPass, nil
}
