package underlay

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
)

// linkLook is how often a device is looked for beside the kernel's events.
const linkLook = 100 * time.Millisecond

// errUnserved is that ovs-vswitchd has brought up what the database says, and the bridge still has no local port
// that it serves: somebody deleted the device, or moved it to another network namespace, and ovs-vswitchd does not look.
var errUnserved = errors.New("ovs-vswitchd runs, and does not serve its local port")

// serve waits until ovs-vswitchd serves the local port of the remembered bridge, and has it made anew where that is lost.
// Only the port: its VLAN, flows and other ports of the bridge stay.
func (s *Setup) serve(ctx context.Context, m memory) (changed bool, err error) {
	if err = s.awaitLink(ctx, m.Bridge); !errors.Is(err, errUnserved) {
		return false, err
	}
	if !m.own(s.cfg.Bridge) {
		return false, fmt.Errorf("%w, which is to have the node address %s: restart ovs-vswitchd, which makes the port anew", err, m.VTEP)
	}
	s.log.Warn("the local port of the bridge that has the node address is lost: making it anew", "bridge", m.Bridge)
	// One of another type has no device, or the kernel's.
	if _, err := s.ovs.EnsureBridge(ctx, ovs.BridgeSpec{Name: m.Bridge, DatapathType: ovs.DatapathNetdev}); err != nil {
		return true, err
	}
	if err := s.ovs.RemakePort(ctx, m.Bridge, ovs.PortSpec{Name: m.Bridge, Type: "internal"}); err != nil {
		return true, err
	}
	if err = s.awaitLink(ctx, m.Bridge); errors.Is(err, errUnserved) {
		return true, fmt.Errorf("%w, made anew: its log says why", err)
	}
	return true, err
}

// lookAgain has ovs-vswitchd look at what neighbours answer. With the local port it has forgotten their hardware addresses, and
// learns one only of an answer that it translates itself: not of those that a flow hands on which the datapath has still.
func (s *Setup) lookAgain(ctx context.Context) error {
	// It has seen the address that the device has by now: with that it forgets, too.
	return errors.Join(s.ovs.Sync(ctx), s.ovs.PurgeFlows(ctx))
}

// awaitLink waits until ovs-vswitchd serves the bridge's local port; errUnserved says that it runs and
// will not. Meanwhile addresses are somebody else's to move.
func (s *Setup) awaitLink(ctx context.Context, bridge string) error {
	watch, cancel := context.WithCancel(ctx)
	events, err := s.ns.Subscribe(watch)
	if err != nil {
		cancel()
		return err
	}
	synced, ended := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(ended)
		synced <- s.ovs.Sync(watch)
	}()
	defer func() {
		cancel()
		<-ended
	}()
	// The events are the signal; the ticker is for those lost with a closed channel.
	tick := time.NewTicker(linkLook)
	defer tick.Stop()
	s.turn.Unlock()
	defer s.turn.Lock()
	last := false
	for {
		if ok, err := served(s.ns, bridge); ok || err != nil {
			return err
		}
		if last {
			return fmt.Errorf("bridge %s: %w", bridge, errUnserved)
		}
		select {
		case _, open := <-events:
			if !open {
				events = nil
			}
		case err := <-synced:
			last = err == nil
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("ovs-vswitchd does not serve the local port of bridge %s: %w; is it running?", bridge, ctx.Err())
		}
	}
}
