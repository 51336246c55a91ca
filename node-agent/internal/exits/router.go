package exits

import (
	"context"
	"fmt"
	"net/netip"
	"time"
)

// routerPatience is how long a router may take to answer at first.
const routerPatience = 3 * time.Second

// answers is nil unless the router of the default route is a wrong one: it has never
// answered, and another one did before it. One that did and is away is none of this node's
// doing, and where none ever did nobody can tell.
func (c *Check) answers(ctx context.Context, via netip.Addr, device string) error {
	if !via.IsValid() || c.seen.knows(via) {
		return nil
	}
	known, failed, err := c.look(ctx, via)
	if err != nil {
		return err
	}
	if known {
		c.seen = c.seen.with(via)
		c.remember()
		return nil
	}
	if !failed && time.Since(c.since) <= routerPatience {
		return nil
	}
	if len(c.seen.Routers) == 0 {
		c.once("the router of the default route does not answer, and this node has seen none that did: pods reach nothing outside until it does, or the default route has the right one", fmt.Errorf("no answer from %s on %s", via, device))
		return nil
	}
	return fmt.Errorf("the router %s of the default route does not answer on %s, and never has, while %s did: pods reach nothing outside; give the default route the right one (ip route replace default via ROUTER)", via, device, c.seen.Routers[len(c.seen.Routers)-1])
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
	if err := c.host.ProbeNeighbour(via); err != nil || via == c.asked {
		return false, failed, err
	}
	c.asked, c.since = via, time.Now()
	for !known && err == nil && time.Since(c.since) < c.patience {
		select {
		case <-time.After(c.pause):
			known, _, err = c.host.NeighbourAnswers(via)
		case <-ctx.Done():
			return false, false, ctx.Err()
		}
	}
	return known, false, err
}
