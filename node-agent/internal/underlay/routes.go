package underlay

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
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

// Ensure makes the ways to peers what paths say, for those whose path is by the
// bridge. It deletes none: with any way by a bridge that it forgets, ovs-vswitchd
// also stops to take tunnel packets at the bridge's addresses, and the way to a peer
// that is gone does no harm. Ensure reports whether all packets leave with the
// address vtep. An error names each way that could not be set, while the others were.
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
		want := ovs.TunnelRoute{Dst: netip.PrefixFrom(peer, peer.BitLen()), Device: bridge, Via: p.Via, Src: vtep}
		if r.has[peer] != want {
			errs = append(errs, r.ovs.SetTunnelRoute(ctx, want))
			set = true
		}
	}
	if set {
		errs = append(errs, r.read(ctx, bridge))
	}
	fromVTEP = true
	for peer := range paths {
		if has, ok := r.has[peer]; ok && has.Src != vtep {
			fromVTEP = false
		}
	}
	return fromVTEP, errors.Join(errs...)
}

// Listen makes sure that ovs-vswitchd takes tunnel packets at vtep, at each of the UDP ports, where it
// has been told ways by the bridge. It forgets the address when the device loses it, be
// it for a moment, and looks at the device's addresses again only when it is told a way:
// so it is told one again. It reports whether that had to be done; the tunnel ports must
// be there. An error says where no tunnel packet is taken.
func (r *Routes) Listen(ctx context.Context, bridge string, vtep netip.Addr, ports []tunnel.Port) (mended bool, err error) {
	deaf, err := r.deaf(ctx, vtep, ports)
	if err != nil || deaf == 0 {
		return false, err
	}
	for _, way := range r.has {
		if way.Device != bridge {
			continue
		}
		way.Src = netip.Addr{}
		if err := r.ovs.SetTunnelRoute(ctx, way); err != nil {
			return false, err
		}
		r.Forget()
		if deaf, err = r.deaf(ctx, vtep, ports); err == nil && deaf != 0 {
			err = fmt.Errorf("ovs-vswitchd takes no tunnel packets at %s, UDP port %d: no peer reaches this node there; does %s have the address, and is it up?", vtep, deaf, bridge)
		}
		return true, err
	}
	return false, nil // nobody sends any
}

// deaf is one of the UDP ports at which no tunnel packets are taken; 0 where there is none.
func (r *Routes) deaf(ctx context.Context, vtep netip.Addr, ports []tunnel.Port) (tunnel.Port, error) {
	for _, port := range ports {
		at, err := r.ovs.TunnelListeners(ctx, uint16(port))
		if err != nil || !slices.Contains(at, vtep) {
			return port, err
		}
	}
	return 0, nil
}

// Remove has ovs-vswitchd forget all of them.
func (r *Routes) Remove(ctx context.Context, bridge string) error {
	if err := r.read(ctx, bridge); err != nil {
		return err
	}
	var errs []error
	for _, has := range r.has {
		errs = append(errs, r.ovs.DeleteTunnelRoute(ctx, has.Dst))
	}
	r.Forget()
	return errors.Join(errs...)
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
