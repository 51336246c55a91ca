package exits

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/link"
)

// routerPatience is how long a router may take to answer at first.
const routerPatience = 3 * time.Second

// routers are those of pods' way to the outside. Where the kernel shares connections among several it
// takes those too that do not answer, unless it is told to look (ip-sysctl.rst, fib_multipath_use_neigh).
func (c *Check) routers(gw Gateway, way link.Path) []link.Path {
	if value, err := c.host.Sysctl("net/ipv4/fib_multipath_use_neigh"); err == nil && value == "0" {
		if hops, err := c.host.HopsOf(nobody(gw.Subnet), gw.Device, Beyond); err == nil && len(hops) > 1 {
			return hops
		}
	}
	return []link.Path{way}
}

// answers is nil unless a router of the default route is a wrong one: it has never
// answered, and another one did. One that did and is away is none of this node's
// doing, and where none ever did nobody can tell.
func (c *Check) answers(ctx context.Context, routers []link.Path) error {
	maps.DeleteFunc(c.asked, func(via netip.Addr, _ time.Time) bool {
		return !slices.ContainsFunc(routers, func(r link.Path) bool { return r.Via == via })
	})
	var away []link.Path
	for _, r := range routers {
		is, err := c.away(ctx, r.Via)
		if err != nil {
			return err
		}
		if is {
			away = append(away, r)
		}
	}
	if len(away) == 0 {
		return nil
	}
	via, device := away[0].Via, away[0].Link.Name
	if len(c.seen.Routers) == 0 {
		c.once("the router of the default route does not answer, and this node has seen none that did: pods reach nothing outside until it does, or the default route has the right one", fmt.Errorf("no answer from %s on %s", via, device))
		return nil
	}
	lost, instead := "pods reach nothing outside", "give the default route the right one (ip route replace default via ROUTER)"
	if len(away) < len(routers) {
		lost, instead = "a part of pods' connections to the outside fails", "take it out of the default route (ip route show default)"
	}
	return fmt.Errorf("the router %s of the default route does not answer on %s, and never has, while %s did: %s; %s", via, device, c.seen.Routers[len(c.seen.Routers)-1], lost, instead)
}

// away reports whether a router has been asked for long enough, and has never answered. One that answers is remembered.
func (c *Check) away(ctx context.Context, via netip.Addr) (bool, error) {
	if !via.IsValid() || c.seen.knows(via) {
		return false, nil
	}
	known, failed, err := c.look(ctx, via)
	if err != nil {
		return false, err
	}
	if known {
		c.seen = c.seen.with(via)
		c.remember()
		return false, nil
	}
	return failed || time.Since(c.asked[via]) > routerPatience, nil
}

// look is what the kernel knows of a router. Where that is nothing it has the router looked
// up, and waits a moment the first time: the next look is in seconds, and until a router is
// known a wrong one in its place is not.
func (c *Check) look(ctx context.Context, via netip.Addr) (known, failed bool, err error) {
	known, failed, err = c.host.NeighbourAnswers(via)
	if known || err != nil {
		return known, failed, err
	}
	// The kernel asks three times, a second apart, says that it failed, and begins anew.
	err = c.host.ProbeNeighbour(via)
	if _, again := c.asked[via]; again || err != nil {
		return false, failed, err
	}
	since := time.Now()
	c.asked[via] = since
	for !known && err == nil && time.Since(since) < c.patience {
		select {
		case <-time.After(c.pause):
			known, _, err = c.host.NeighbourAnswers(via)
		case <-ctx.Done():
			return false, false, ctx.Err()
		}
	}
	return known, false, err
}
