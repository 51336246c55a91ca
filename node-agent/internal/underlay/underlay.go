// Package underlay finds, and for the userspace datapath sets up, the node's end
// of its VXLAN tunnels: the VTEP address and the device it is on.
//
// The kernel datapath sends tunnel packets through the node's IP stack: nothing
// is to be done. The userspace datapath sends them itself, so the VTEP address must
// be on the local port of an Open vSwitch bridge that has the uplink. The package
// moves the address and its routes there, remembers them in the state directory with a
// copy in the bridge's external_ids, and puts them back when the local port was made
// anew: ovs-vswitchd was away, the machine rebooted, the database was lost. What
// somebody changes while the device stands is followed, never undone: see
// [scene.decide]. The node keeps its address whatever fails, and while ovs-vswitchd is
// away the uplink has it: see [Lender].
package underlay

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"

	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
)

// DefaultBridge is the bridge that is made for the uplink.
const DefaultBridge = "br-phy"

// Config says what is wanted.
type Config struct {
	// NodeIP is the VTEP address. Not valid: the node's address on its default
	// route, also where a bridge of this package has it.
	NodeIP netip.Addr
	// Datapath is "system" or "netdev": see [ChooseDatapath].
	Datapath string
	// Bridge to make for the uplink. Default: [DefaultBridge].
	Bridge string
	// StateDir keeps what is remembered for the next agent; empty for nothing.
	StateDir string
	// BootID tells devices apart that had the same index in two runs of the machine.
	BootID string
	// Lender is who gives the uplink the addresses while Open vSwitch is away; nil for nobody. All
	// Setups of an agent are given the same, as what it remembers is shared with them.
	Lender *Lender
	// Dial connects to the switch that is the bridge of that name; nil: nobody sees whether it forwards.
	Dial func(ctx context.Context, bridge string) (Switch, error)
	// Logger gets each move of addresses. Default: discard.
	Logger *slog.Logger
}

func (c Config) withDefaults() Config {
	if c.Bridge == "" {
		c.Bridge = DefaultBridge
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Underlay is what tunnels use.
type Underlay struct {
	// VTEP is the node's tunnel address.
	VTEP netip.Addr
	// Link is the device that has it.
	Link string
	// MTU, bytes, of the narrowest of the devices that tunnel packets surely leave by,
	// and its name; 0 where that is for routes to say, as the address is on loopback.
	MTU       int
	Narrowest string
	// Uplink is the port of the bridge that leads outside, where this package
	// made the bridge; else empty. What arrives there belongs to the switch, and
	// the node's firewall must drop it before the node's own stack sees it twice.
	Uplink string
}

// Setup keeps the underlay of one node.
type Setup struct {
	cfg Config
	ns  *link.NS
	ovs *ovs.Client
	log *slog.Logger
	*shared
	// said is what restoring left out, as it was logged last.
	said string
	// unseen is what was said last of how the bridge forwards, where that is not put right.
	unseen backoff.Trouble
	// closedBefore is that the bridge kept the node's packets back at the last look at what it forwards.
	closedBefore bool
}

// New makes a Setup. ns is the namespace of the node.
func New(cfg Config, ns *link.NS, client *ovs.Client) *Setup {
	cfg = cfg.withDefaults()
	s := &Setup{cfg: cfg, ns: ns, ovs: client, log: cfg.Logger}
	if cfg.Lender != nil {
		s.shared = cfg.Lender.shared
	} else {
		s.shared = newShared(cfg, ns)
	}
	return s
}

// Ensure finds or sets up the underlay and reports whether it had to change
// anything. Call it at start, after ovs-vswitchd was away, and when addresses of the
// node change; it may be repeated and costs a few reads where all is well. With the
// userspace datapath it needs a running ovs-vswitchd, and waits for it until ctx ends.
func (s *Setup) Ensure(ctx context.Context) (u Underlay, changed bool, err error) {
	ip, err := s.nodeIP()
	if err != nil {
		return Underlay{}, false, err
	}
	switch s.cfg.Datapath {
	case ovs.DatapathSystem:
		u, err = s.system(ip)
	case ovs.DatapathNetdev:
		u, changed, err = s.netdev(ctx, ip)
	default:
		err = fmt.Errorf("datapath %q is neither system nor netdev", s.cfg.Datapath)
	}
	if err != nil {
		return Underlay{}, changed, fmt.Errorf("underlay: %w", err)
	}
	return u, changed, nil
}

// nodeIP is the configured address, or that of the default route. A bridge that
// remembers the node's address decides where the default route says nothing about
// it: it went with the bridge's local port, or leads out of another device.
func (s *Setup) nodeIP() (netip.Addr, error) {
	if s.cfg.NodeIP.IsValid() {
		if err := tunnel.CheckVTEP(s.cfg.NodeIP); err != nil {
			return netip.Addr{}, fmt.Errorf("node address: %w", err)
		}
		return s.cfg.NodeIP, nil
	}
	l, src, ok, err := s.ns.DefaultRoute()
	if err != nil {
		return netip.Addr{}, fmt.Errorf("node address: %w", err)
	}
	ok = ok && src.IsValid() && !l.Loopback
	if s.cfg.Datapath == ovs.DatapathNetdev {
		m, err := s.instead(l, ok)
		if err != nil {
			return netip.Addr{}, fmt.Errorf("node address: %w", err)
		}
		if m != nil {
			return m.VTEP, nil
		}
	}
	if !ok {
		return netip.Addr{}, fmt.Errorf("node address: there is no default route to take it from; set it with --node-ip")
	}
	return src, nil
}

// Moved is the address that the node has in place of ip: that of the default route, where no device has ip any
// more. moved is false where ip is there, or nothing has taken its place.
func (s *Setup) Moved(ip netip.Addr) (now netip.Addr, moved bool) {
	if _, owned, err := s.ns.AddressOwner(ip); owned || err != nil {
		return netip.Addr{}, false
	}
	l, src, ok, err := s.ns.DefaultRoute()
	if err != nil || !ok || l.Loopback || tunnel.CheckVTEP(src) != nil {
		return netip.Addr{}, false
	}
	return src, true
}

// instead is the memory of the node's address where that counts and not the device of the default
// route, l; leads is that there is such a route.
func (s *Setup) instead(l link.Link, leads bool) (*memory, error) {
	s.turn.Lock()
	m, row, err := s.remembered()
	s.turn.Unlock()
	if err != nil || m == nil || !leads {
		return m, err
	}
	if away, err := s.leadsNowhere(*m); err != nil || away || !row {
		return nil, err
	}
	if isOther := l.Name != m.Bridge && l.Name != m.Uplink; isOther || has(l, m.VTEP) {
		return m, nil
	}
	return nil, nil
}

// leadsNowhere reports whether nobody has the address that is remembered of a bridge of this
// package, and its uplink is gone: the machine has another network now.
func (s *Setup) leadsNowhere(m memory) (bool, error) {
	if m.Uplink == "" {
		return false, nil
	}
	if _, owned, err := s.ns.AddressOwner(m.VTEP); owned || err != nil {
		return false, err
	}
	uplink, err := findUplink(s.ns, m)
	return uplink == nil, err
}

// system finds the device that has the address.
func (s *Setup) system(ip netip.Addr) (Underlay, error) {
	l, ok, err := s.ns.AddressOwner(ip)
	if err != nil {
		return Underlay{}, err
	}
	if !ok {
		return Underlay{}, fmt.Errorf("no network device has the node address %s; give the address of this node with --node-ip", ip)
	}
	return s.describe(ip, l, "")
}

// describe is the underlay as it is.
func (s *Setup) describe(ip netip.Addr, l link.Link, uplink string) (u Underlay, err error) {
	u = Underlay{VTEP: ip, Link: l.Name, Uplink: uplink}
	if u.Narrowest, u.MTU, err = s.Narrowest(u); err != nil {
		return Underlay{}, err
	}
	if uplink != "" && l.MTU < u.MTU { // ovs-vswitchd did not follow
		u.Narrowest, u.MTU = l.Name, l.MTU
	}
	return u, nil
}
