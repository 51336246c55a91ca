package underlay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
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
// It needs neither Open vSwitch nor its database: it goes by what is remembered.
// What the machine's owner does comes first: an address that another device has, or that was
// taken from a bridge that stands, is not lent, nor is one of before a boot, nor one beside
// others that the uplink was given; and what is taken from the uplink is not lent again.
type Lender struct {
	cfg Config
	ns  *link.NS
	log *slog.Logger
	*shared
	// away is since when nobody serves the bridge; zero while somebody does.
	away time.Time
	// idle is that there is no bridge that has the addresses.
	idle atomic.Bool
}

// NewLender makes a Lender for the node's namespace; cfg is that of the [Setup], of which it
// needs the bridge, the state directory and the boot id.
func NewLender(cfg Config, ns *link.NS) *Lender {
	cfg = cfg.withDefaults()
	return &Lender{cfg: cfg, ns: ns, log: cfg.Logger, shared: newShared(cfg, ns)}
}

// Idle ends what Run does: the node's datapath is the kernel's, which leaves the addresses where they are.
func (l *Lender) Idle() { l.idle.Store(true) }

// Run looks after the bridge until ctx ends. Where it fails to lend it says so once, and goes on.
func (l *Lender) Run(ctx context.Context) error {
	tick := time.NewTicker(lendLook)
	defer tick.Stop()
	var failed backoff.Trouble
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case now := <-tick.C:
			if l.idle.Load() {
				continue
			}
			if err := l.look(now); failed.News(err) {
				l.log.Error("ovs-vswitchd is away, and the uplink cannot have the node's address meanwhile", "error", err)
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
// the uplink has them instead of the bridge. Once it has, what becomes of them is the machine's
// owner's affair: nothing is lent again before the bridge was served.
func (l *Lender) Lend() (lent bool, err error) {
	l.turn.Lock()
	defer l.turn.Unlock()
	if served, err := served(l.ns, l.cfg.Bridge); served || err != nil {
		return false, err
	}
	l.record.flush()
	m := l.record.get()
	if m == nil || m.Uplink == "" || m.Bridge != l.cfg.Bridge || !strings.HasPrefix(m.Device, l.cfg.BootID+"/") {
		return false, nil
	}
	found, err := findUplink(l.ns, *m)
	if err == nil && found == nil {
		err = link.ErrNoLink
	}
	if err != nil {
		return false, fmt.Errorf("uplink %s of bridge %s: %w", m.Uplink, m.Bridge, err)
	}
	c, err := absent(l.ns, *m, found)
	if err != nil || m.Lent || !c.wanted(*m) {
		return m.Lent && has(c.uplink, m.VTEP), err
	}
	l.log.Warn("ovs-vswitchd is away: the uplink has the node's address until it is back", "bridge", m.Bridge, "uplink", c.uplink.Name, "addresses", m.Config.Addresses)
	if err := l.give(*m, c); err != nil {
		return false, err
	}
	m.Lent = true
	l.record.set(m)
	return true, nil
}

// ResumeMerging gives devices the features back that a [Setup] has switched off, where Open
// vSwitch ended before [Setup.Remove] could be called.
func (l *Lender) ResumeMerging() {
	l.turn.Lock()
	defer l.turn.Unlock()
	l.merging.resume(nil)
}

// absence is what the machine looks like while nobody serves the bridge, or will.
type absence struct {
	uplink link.Link
	// local is the bridge's local port that a crash left behind; nil where there is none.
	local *link.Link
	// elsewhere is that another device has the node's address.
	elsewhere bool
}

// absent reads it. uplink is nil where that is gone.
func absent(ns *link.NS, m memory, uplink *link.Link) (c absence, err error) {
	if uplink != nil {
		var there bool
		if c.uplink, there, err = ns.Describe(uplink.Name); err != nil || !there {
			return c, errors.Join(err, link.ErrNoLink)
		}
	}
	local, left, err := ns.Describe(m.Bridge)
	if err != nil {
		return c, err
	}
	if left {
		c.local = &local
	}
	owner, owned, err := ns.AddressOwner(m.VTEP)
	c.elsewhere = owned && owner.Index != c.uplink.Index && !(left && owner.Index == local.Index)
	return c, err
}

// wanted reports whether the uplink is to have what m says: not what somebody has put elsewhere, or
// has taken from a bridge that stands, nor where the machine has given the uplink other addresses.
func (c absence) wanted(m memory) bool {
	switch {
	case has(c.uplink, m.VTEP):
		return true // half of it was done
	case c.elsewhere || c.local != nil && !has(*c.local, m.VTEP):
		return false
	}
	return !c.reconfigured(m)
}

// reconfigured reports whether the machine has given the uplink other addresses.
func (c absence) reconfigured(m memory) bool {
	return slices.ContainsFunc(c.uplink.Addresses, func(p netip.Prefix) bool { return !p.IsSingleIP() && !slices.Contains(m.Config.Addresses, p) })
}

// give gives the uplink what m says. Its addresses come first: whenever that ends half-way, it is seen
// by them that it is to be gone on with.
func (l *Lender) give(m memory, c absence) error {
	if err := l.ns.Loud(c.uplink.Name); err != nil {
		return err
	}
	for _, a := range m.Config.Addresses {
		if _, err := l.ns.EnsureAddress(c.uplink.Name, a); err != nil {
			return err
		}
	}
	config := m.Config
	if c.local != nil {
		whole, err := l.ns.ReadWhole(m.Bridge)
		if err != nil {
			return err
		}
		config = withoutStaying(config, whole)
		if err := l.ns.RemoveConfig(m.Bridge, config); err != nil {
			return err
		}
	}
	leftOut, err := l.ns.RestoreConfig(c.uplink.Name, config)
	if len(leftOut) > 0 {
		l.log.Warn("the uplink has not all that the bridge had", "uplink", c.uplink.Name, "leftOut", strings.Join(leftOut, "; "))
	}
	return err
}

// withoutStaying is c without the routes that need an address which stays on the device, as it is
// somebody's who put it there later.
func withoutStaying(c, device link.Config) link.Config {
	ours := slices.Concat(c.Addresses, c.Beyond.Addresses)
	stays := slices.DeleteFunc(slices.Concat(device.Addresses, device.Beyond.Addresses), func(p netip.Prefix) bool { return slices.Contains(ours, p) })
	by := func(of []netip.Prefix, r link.Route) bool {
		return slices.ContainsFunc(of, func(p netip.Prefix) bool { return p.Contains(r.Via) })
	}
	needs := func(r link.Route) bool { return r.Via.IsValid() && by(stays, r) && !by(ours, r) }
	c.Routes, c.Beyond.Routes = slices.DeleteFunc(slices.Clone(c.Routes), needs), slices.DeleteFunc(slices.Clone(c.Beyond.Routes), needs)
	return c
}

// served reports whether ovs-vswitchd serves the local port of a bridge.
func served(ns *link.NS, bridge string) (bool, error) {
	l, ok, err := ns.Link(bridge)
	return ok && isServed(l), err
}

// isServed is [served] of a device that is there. An ovs-vswitchd that has ended takes the local
// port along, or leaves it behind without a carrier.
func isServed(l link.Link) bool { return !l.Up || l.Carrier }
