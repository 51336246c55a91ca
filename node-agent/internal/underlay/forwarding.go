package underlay

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
)

const (
	// forwardingTime bounds a look at whether the bridge forwards: that it cannot be seen keeps
	// nothing else from being looked at.
	forwardingTime = 2 * time.Second
	// portKept is what can keep a port from its packets past all flows and leave its device up. One
	// that is configured down is a device that is down, which is the owner's to set and said elsewhere.
	portKept = of.PortNoReceive | of.PortNoForward
)

// Switch is the OpenFlow connection of a bridge; [of.Conn] is one.
type Switch interface {
	Flows(ctx context.Context, filter of.FlowFilter) ([]of.FlowStats, error)
	Ports(ctx context.Context) ([]of.PortDesc, error)
	SetPortConfig(ctx context.Context, p of.PortDesc, config, mask of.PortConfig) error
	Close() error
}

// EnsureForwarding sees that the bridge with the node's address hands on what comes to it, which its
// flows and the settings of its ports decide: with all flows deleted the node is off the network
// until ovs-vswitchd starts anew. It reports whether a bridge that this package made had to be put
// right. Of a bridge that somebody else made it says so and leaves it, and where somebody has given
// a bridge flows of his own, VLANs or mirrors, these are what he wants: closed is why packets of the node do not
// get out all the same, or others' in. peer is the tunnels' end of another node; not valid where none is known.
func (s *Setup) EnsureForwarding(ctx context.Context, u Underlay, peer netip.AddrPort) (mended bool, closed, err error) {
	if s.cfg.Datapath != ovs.DatapathNetdev || s.cfg.Dial == nil {
		return false, nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, forwardingTime)
	defer cancel()
	wrong, end, err := s.keptBack(ctx, u)
	defer end()
	if err != nil {
		s.cannotSee(u, err)
		return false, nil, nil
	}
	if u.Uplink == "" {
		if why := reasons(wrong); s.unseen.News(why) {
			s.log.Warn("the bridge with the node's address, which somebody else made, keeps packets back; with no flows it forwards nothing (ovs-ofctl add-flow BRIDGE priority=0,actions=NORMAL)", "bridge", u.Link, "why", why)
		}
		return false, nil, nil
	}
	for _, w := range wrong {
		s.log.Warn("somebody had the bridge with the node's address keep packets back: putting it right", "bridge", u.Link, "why", w.what)
		err = errors.Join(err, w.mend())
	}
	if err != nil {
		return true, nil, fmt.Errorf("underlay: what bridge %s forwards: %w", u.Link, err)
	}
	if len(wrong) > 0 {
		return true, nil, nil // it shows a moment later
	}
	closed, err = s.closed(ctx, u, peer)
	if err != nil {
		s.cannotSee(u, err)
		return false, nil, nil
	}
	s.unseen.Over()
	if s.closedBefore && closed == nil {
		// Flows that the datapath has still drop packets as long as any come: a mirror that is gone changes none of them.
		if err := s.ovs.PurgeFlows(ctx); err != nil {
			return false, nil, fmt.Errorf("underlay: what bridge %s forwards: %w", u.Link, err)
		}
	}
	s.closedBefore = closed != nil
	return false, closed, nil
}

// cannotSee says so, once.
func (s *Setup) cannotSee(u Underlay, err error) {
	if s.unseen.News(err) {
		s.log.Warn("it cannot be seen whether the bridge with the node's address forwards what comes to it", "bridge", u.Link, "error", err)
	}
}

// hindrance is what keeps packets back in a bridge, and what puts it right.
type hindrance struct {
	what string
	mend func() error
}

// keptBack is all that keeps the node's packets back in u's bridge. end is to be called when it has
// been put right.
func (s *Setup) keptBack(ctx context.Context, u Underlay) (wrong []hindrance, end func(), err error) {
	conn, err := s.cfg.Dial(ctx, u.Link)
	if err != nil {
		return nil, func() {}, err
	}
	end = func() { _ = conn.Close() }
	flows, err := conn.Flows(ctx, of.FlowFilter{Table: of.GotoTable(0)})
	if err != nil {
		return nil, end, err
	}
	// With a controller they are for that one to give.
	if b, _ := s.ovs.Bridge(u.Link); len(flows) == 0 && !b.Controlled {
		wrong = append(wrong, hindrance{"it has no flows (ovs-ofctl del-flows)", func() error { return s.switchAgain(ctx, u.Link) }})
	}
	ports, err := conn.Ports(ctx)
	for _, p := range ports {
		if own := p.Name == u.Link || p.Name == u.Uplink || u.Uplink == ""; own && p.Config&portKept != 0 {
			wrong = append(wrong, hindrance{"port " + p.Name + " is kept from its packets (ovs-ofctl mod-port)", func() error { return conn.SetPortConfig(ctx, p, 0, portKept) }})
		}
	}
	return wrong, end, err
}

// reasons is an error with all of them; nil where there are none.
func reasons(wrong []hindrance) error {
	var errs []error
	for _, w := range wrong {
		errs = append(errs, errors.New(w.what))
	}
	return errors.Join(errs...)
}

// switchAgain has Open vSwitch give the bridge the one flow that makes it a learning switch, as it
// does for a bridge without a controller when its fail mode changes (connmgr_set_fail_mode and
// connmgr_flushed of ofproto/connmgr.c). Interrupted, it is ended by who ensures the fail mode.
func (s *Setup) switchAgain(ctx context.Context, bridge string) error {
	for _, mode := range []string{ovs.FailSecure, ovs.FailStandalone} {
		if _, err := s.ovs.EnsureBridge(ctx, ovs.BridgeSpec{Name: bridge, FailMode: mode}); err != nil {
			return err
		}
		if err := s.ovs.Sync(ctx); err != nil {
			return err
		}
	}
	return nil
}
