// Package peers keeps the way to the other nodes known to the userspace datapath: the routes, the hardware
// addresses, and that it takes their tunnel packets. The kernel datapath needs none of it.
//
// It writes no route of the node itself, and never decides who is a peer.
package peers

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
)

// warmEvery is how often peers are looked up anew: well within the 15 minutes
// after which Open vSwitch forgets one (tnl/neigh/aging, ovs-vswitchd(8)).
const warmEvery = 5 * time.Minute

const (
	// firstRetry and lastRetry bound the pause before ovs-vswitchd is told again what it refused.
	firstRetry, lastRetry = 20 * time.Millisecond, 2 * time.Second
	// patientTries are made before somebody is told, within some 2.5 s.
	patientTries = 7
)

// Routes are those that the userspace datapath is told; [underlay.Routes] are they.
type Routes interface {
	// Forget has the next Ensure read back what the datapath has.
	Forget()
	Ensure(ctx context.Context, device string, vtep netip.Addr, ways map[netip.Addr]link.Path) (fromVTEP bool, err error)
	Listen(ctx context.Context, device string, vtep netip.Addr, ports []tunnel.Port) (mended bool, err error)
}

// Host looks up neighbours; [link.NS] is one.
type Host interface{ ProbeNeighbour(ip netip.Addr) error }

// Config is whose peers they are.
type Config struct {
	Datapath string
	// Self is the node's tunnel address.
	Self   netip.Addr
	Routes Routes
	Host   Host
	Logger *slog.Logger
}

// Peers is what the userspace datapath is told of the other nodes. It belongs to one goroutine.
type Peers struct {
	cfg Config
	// source is what was last decided; said what was last complained about.
	source netip.Addr
	said   string
	// retry is not nil while ovs-vswitchd refuses: it may have just started, and not
	// have seen the addresses of its bridge yet. tries are those made since.
	retry *backoff.Pauses
	tries int
	// warmed are the peers whose hardware addresses the datapath has seen since.
	warmed map[netip.Addr]time.Time
}

// New returns peers of which the datapath was told nothing.
func New(cfg Config) *Peers { return &Peers{cfg: cfg} }

// Forget has what the datapath was told read back.
func (p *Peers) Forget() { p.cfg.Routes.Forget() }

// Cool has all peers looked up anew: ovs-vswitchd is another one, or the device that leads to them.
func (p *Peers) Cool() { p.warmed = nil }

// Retry is when to try again what ovs-vswitchd refused; false where it did not.
func (p *Peers) Retry() (time.Duration, bool) {
	if p.retry == nil {
		return 0, false
	}
	p.tries++
	return p.retry.Next(), true
}

// Route tells the userspace datapath the ways to all peers, which leave by device, and returns the
// address that tunnels are to be bound to; not valid for none. While it is bound to
// one, the datapath also looks that up among what it reads from the kernel, and
// drops packets whenever it reads that anew.
func (p *Peers) Route(ctx context.Context, device string, ways map[netip.Addr]link.Path) (source netip.Addr) {
	if p.cfg.Datapath != ovs.DatapathNetdev {
		return p.cfg.Self
	}
	fromVTEP, err := p.cfg.Routes.Ensure(ctx, device, p.cfg.Self, ways)
	said := ""
	switch {
	case err != nil && p.retry == nil:
		p.retry, p.tries = &backoff.Pauses{First: firstRetry, Last: lastRetry}, 0
	case err != nil:
		if said = p.said; p.tries >= patientTries {
			said = err.Error()
		}
	case !fromVTEP:
		said = "it chooses another address of " + device + " as the source"
		p.source, p.retry = p.cfg.Self, nil
	default:
		p.source, p.retry = netip.Addr{}, nil
	}
	if said != "" && said != p.said {
		p.cfg.Logger.Warn("Open vSwitch does not take the ways to other nodes that it is told: between nodes it loses packets when a pod comes or goes", "error", said)
	}
	p.said = said
	return p.source
}

// Listen makes sure that the userspace datapath takes the peers' tunnel packets, which come in by device
// at those UDP ports, and reports whether it had to mend that. The tunnel ports are there.
func (p *Peers) Listen(ctx context.Context, device string, ports []tunnel.Port) (mended bool, err error) {
	if p.cfg.Datapath != ovs.DatapathNetdev {
		return false, nil
	}
	mended, err = p.cfg.Routes.Listen(ctx, device, p.cfg.Self, ports)
	if err != nil {
		return false, err
	}
	if mended {
		p.cfg.Logger.Info("Open vSwitch takes tunnel packets again: it had lost the node's address", "address", p.cfg.Self)
	}
	return mended, nil
}

// New reports whether the records have peers whose ways the userspace datapath
// was not told.
func (p *Peers) New(records *topology.Snapshot, ways map[netip.Addr]link.Path) bool {
	if p.cfg.Datapath != ovs.DatapathNetdev {
		return false
	}
	return slices.ContainsFunc(desired.Ends(*records, p.cfg.Self), func(e desired.End) bool {
		_, known := ways[e.VTEP]
		return !known
	})
}

// Warm lets the userspace datapath see the hardware address of the way to each
// peer, so that a tunnel's first packet is not lost on looking it up.
func (p *Peers) Warm(peers []pipeline.Peer) {
	if p.cfg.Datapath != ovs.DatapathNetdev {
		return
	}
	next := make(map[netip.Addr]time.Time, len(peers))
	for _, peer := range peers {
		at, ok := p.warmed[peer.VTEP]
		if !ok || time.Since(at) > warmEvery {
			if err := p.cfg.Host.ProbeNeighbour(peer.VTEP); err != nil {
				p.cfg.Logger.Debug("a peer cannot be looked up", "node", peer.VTEP, "error", err)
				continue
			}
			at = time.Now()
		}
		next[peer.VTEP] = at
	}
	p.warmed = next
}
