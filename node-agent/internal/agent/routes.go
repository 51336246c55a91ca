package agent

import (
	"context"
	"net/netip"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/backoff"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/underlay"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
)

// tunnelRoutes are the ways to peers that the userspace datapath is told.
type tunnelRoutes struct {
	*underlay.Routes // nil before the node's address is known
	// source is what was last decided; said what was last complained about.
	source netip.Addr
	said   string
	// retry is not nil while ovs-vswitchd refuses: it may have just started, and not
	// have seen the addresses of its bridge yet.
	retry *backoff.Pause
}

func (r *tunnelRoutes) forget() {
	if r.Routes != nil {
		r.Forget()
	}
}

// routePeers tells the userspace datapath the ways to all peers, and returns the
// address that tunnels are to be bound to; not valid for none. While it is bound to
// one, the datapath also looks that up among what it reads from the kernel, and
// drops packets whenever it reads that anew.
func (n *node) routePeers(ctx context.Context, under underlay.Underlay) (source netip.Addr) {
	if n.datapath != ovs.DatapathNetdev {
		return n.self
	}
	r := &n.routes
	fromVTEP, err := r.Ensure(ctx, under.Link, n.self, n.agreement.ways)
	said := ""
	switch {
	case err != nil && r.retry == nil:
		r.retry = backoff.New()
	case err != nil:
		if said = r.said; r.retry.Longest() {
			said = err.Error()
		}
	case !fromVTEP:
		said = "it chooses another address of " + under.Link + " as the source"
		r.source, r.retry = n.self, nil
	default:
		r.source, r.retry = netip.Addr{}, nil
	}
	if said != "" && said != r.said {
		n.log.Warn("Open vSwitch does not take the ways to other nodes that it is told: between nodes it loses packets when a pod comes or goes", "error", said)
	}
	r.said = said
	return r.source
}

// listenForPeers makes sure that the userspace datapath takes the peers' tunnel packets.
// The tunnel port is there.
func (n *node) listenForPeers(ctx context.Context, under underlay.Underlay) error {
	if n.datapath != ovs.DatapathNetdev {
		return nil
	}
	mended, err := n.routes.Listen(ctx, under.Link, n.self, n.cfg.VXLANPort)
	if mended && err == nil {
		n.metrics.hostRepairs.Inc()
		n.log.Info("Open vSwitch takes tunnel packets again: it had lost the node's address", "address", n.self)
	}
	return err
}

// newPeers reports whether the records have peers whose ways the userspace datapath
// was not told.
func (n *node) newPeers() bool {
	if n.datapath != ovs.DatapathNetdev {
		return false
	}
	for ip, r := range n.records.Nodes {
		if _, known := n.agreement.ways[ip]; !known && ip != n.self && r.Validate(n.records.Config) == nil {
			return true
		}
	}
	return false
}
