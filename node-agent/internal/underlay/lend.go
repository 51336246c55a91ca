package underlay

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/link"
)

const (
	// lendAfter is how long nobody serves the bridge before its uplink gets the addresses. A
	// daemon that crashed is back sooner.
	lendAfter = 2 * time.Second
	// lendLook is how often a Lender looks.
	lendLook = 500 * time.Millisecond
)

// Lender gives the uplink the node's addresses and routes while nobody serves the bridge that
// has them: the node can be reached, and reaches others, although Open vSwitch is away. In
// Kubernetes nothing else would bring it back where it is a pod: kubelet makes the next one
// when it has told the API server that the one before has ended. [Setup] takes them back when
// ovs-vswitchd serves again.
//
// It needs neither Open vSwitch nor its database: it goes by the copy in the state directory.
// What the machine's owner does comes first: an address that another device has, or that was
// taken from a bridge that stands, is not lent, nor is one of before a boot.
type Lender struct {
	cfg Config
	ns  *link.NS
	log *slog.Logger
	// turn is whose turn it is to move addresses: the lender's, or that of the Setup.
	turn sync.Mutex
	// away is since when nobody serves the bridge; zero while somebody does.
	away time.Time
}

// NewLender makes a Lender for the node's namespace; cfg is that of the [Setup], of which it
// needs the bridge, the state directory and the boot id.
func NewLender(cfg Config, ns *link.NS) *Lender {
	cfg = cfg.withDefaults()
	return &Lender{cfg: cfg, ns: ns, log: cfg.Logger}
}

// Run looks after the bridge until ctx ends. Where it fails to lend it says so once, and goes on.
func (l *Lender) Run(ctx context.Context) error {
	tick := time.NewTicker(lendLook)
	defer tick.Stop()
	said := ""
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case now := <-tick.C:
			err := l.look(now)
			if err != nil && err.Error() != said {
				l.log.Error("ovs-vswitchd is away, and the uplink cannot have the node's address meanwhile", "error", err)
			}
			said = ""
			if err != nil {
				said = err.Error()
			}
		}
	}
}

// look lends where nobody has served the bridge for a while.
func (l *Lender) look(now time.Time) error {
	served, err := served(l.ns, l.cfg.Bridge)
	if served || err != nil {
		l.away = time.Time{}
		return err
	}
	if l.away.IsZero() {
		l.away = now
	}
	if now.Sub(l.away) < lendAfter {
		return nil
	}
	_, err = l.Lend()
	return err
}

// Lend gives the uplink the addresses now, unless somebody serves the bridge, and reports whether
// the uplink has them instead of the bridge.
func (l *Lender) Lend() (lent bool, err error) {
	l.turn.Lock()
	defer l.turn.Unlock()
	if served, err := served(l.ns, l.cfg.Bridge); served || err != nil {
		return false, err
	}
	s := &Setup{cfg: l.cfg, ns: l.ns, log: l.log} // which reads the copy as it is now
	m := s.loadCopy()
	if m == nil || m.Uplink == "" || m.Bridge != l.cfg.Bridge || !strings.HasPrefix(m.Device, l.cfg.BootID+"/") {
		return false, nil
	}
	local, left, err := l.ns.Link(m.Bridge)
	if err != nil {
		return false, err
	}
	owner, owned, err := l.ns.AddressOwner(m.VTEP)
	if err != nil || left && !owned {
		return false, err // taken away by somebody, while the device stood
	}
	uplink, err := s.findUplink(*m)
	if err == nil && uplink == nil {
		err = link.ErrNoLink
	}
	if err != nil {
		return false, fmt.Errorf("uplink %s of bridge %s: %w", m.Uplink, m.Bridge, err)
	}
	if owned && (!left || owner.Index != local.Index) {
		return owner.Index == uplink.Index, nil
	}
	l.log.Warn("ovs-vswitchd is away: the uplink has the node's address until it is back", "bridge", m.Bridge, "uplink", uplink.Name, "addresses", m.Config.Addresses)
	if err := l.ns.Loud(uplink.Name); err != nil {
		return false, err
	}
	if !left {
		_, err := l.ns.RestoreConfig(uplink.Name, m.Config)
		return err == nil, err
	}
	// A daemon that crashed leaves its device behind, with all that it had.
	whole, err := l.ns.ReadWhole(m.Bridge)
	if err == nil {
		err = s.transfer(m.Bridge, uplink.Name, kept(m.Config, whole, m.VTEP))
	}
	return err == nil, err
}

// served reports whether ovs-vswitchd serves the local port of a bridge.
func served(ns *link.NS, bridge string) (bool, error) {
	l, ok, err := ns.Link(bridge)
	return ok && isServed(l), err
}

// isServed is [served] of a device that is there. An ovs-vswitchd that has ended takes the local
// port along, or leaves it behind without a carrier.
func isServed(l link.Link) bool { return !l.Up || l.Carrier }
