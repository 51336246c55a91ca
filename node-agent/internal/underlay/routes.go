package underlay

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
)

// Routes tell ovs-vswitchd the ways to the node's peers, which the userspace datapath
// takes instead of those that ovs-vswitchd reads from the kernel: see
// [ovs.TunnelRoute]. All that it was told to single addresses by the VTEP's
// bridge belong to this package. A Routes is for one goroutine.
type Routes struct {
	ovs *ovs.Client
	// has is what ovs-vswitchd has; nil when that is not known.
	has map[netip.Addr]ovs.TunnelRoute
}

// NewRoutes makes a Routes that knows nothing yet.
func NewRoutes(client *ovs.Client) *Routes { return &Routes{ovs: client} }

// Forget has the next Ensure read what ovs-vswitchd has: it may have started anew.
func (r *Routes) Forget() { r.has = nil }

// Ensure makes the ways to peers what paths say; a peer whose path is not by the
// bridge gets none. It reports whether all packets leave with the address vtep.
// An error names each way that could not be set, while the others were.
func (r *Routes) Ensure(ctx context.Context, bridge string, vtep netip.Addr, paths map[netip.Addr]link.Path) (fromVTEP bool, err error) {
	if r.has == nil {
		if err := r.read(ctx, bridge); err != nil {
			return true, err
		}
	}
	var errs []error
	set := false
	for peer, p := range paths {
		if p.Link.Name != bridge {
			continue
		}
		want := ovs.TunnelRoute{Dst: netip.PrefixFrom(peer, peer.BitLen()), Device: bridge, Via: p.Via}
		had, ok := r.has[peer]
		want.Src = had.Src
		if ok && had == want {
			continue
		}
		errs = append(errs, r.ovs.SetTunnelRoute(ctx, want))
		set = true
	}
	for peer, had := range r.has {
		if p, ok := paths[peer]; !ok || p.Link.Name != bridge {
			errs = append(errs, r.ovs.DeleteTunnelRoute(ctx, had.Dst))
			set = true
		}
	}
	if set {
		errs = append(errs, r.read(ctx, bridge))
	}
	fromVTEP = true
	for _, has := range r.has {
		fromVTEP = fromVTEP && has.Src == vtep
	}
	return fromVTEP, errors.Join(errs...)
}

// Remove has ovs-vswitchd forget all of them.
func (r *Routes) Remove(ctx context.Context, bridge string) error {
	r.Forget()
	_, err := r.Ensure(ctx, bridge, netip.Addr{}, nil)
	return err
}

func (r *Routes) read(ctx context.Context, bridge string) error {
	r.has = nil
	routes, err := r.ovs.TunnelRoutes(ctx)
	if err != nil {
		return fmt.Errorf("ways to peers: %w", err)
	}
	r.has = map[netip.Addr]ovs.TunnelRoute{}
	for _, route := range routes {
		if route.Device == bridge && route.Dst.IsSingleIP() {
			r.has[route.Dst.Addr()] = route
		}
	}
	return nil
}
