package bridge

import (
	"context"
	"errors"
	"slices"
	"strings"

	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
)

// Blockable is the part of the switch in which somebody can keep packets from where flows send
// them (ovs-ofctl mod-port, set-frags).
type Blockable interface {
	Ports(ctx context.Context) ([]of.PortDesc, error)
	SetPortConfig(ctx context.Context, p of.PortDesc, config, mask of.PortConfig) error
	AcceptFragments(ctx context.Context) (changed bool, err error)
}

// Unblock lets the ports that are ours, the gateway, the tunnels with those names and those
// whose names begin with pods, have all packets again, fragments as well, and returns what had not.
func Unblock(ctx context.Context, sw Blockable, tunnels []string, pods string) (unblocked []string, err error) {
	ports, err := sw.Ports(ctx)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, p := range ports {
		own := p.Name == GatewayPort || slices.Contains(tunnels, p.Name) || strings.HasPrefix(p.Name, pods)
		if !own || p.Config == 0 {
			continue
		}
		if err := sw.SetPortConfig(ctx, p, 0, of.PortBlocked); err != nil {
			errs = append(errs, err)
			continue
		}
		unblocked = append(unblocked, p.Name)
	}
	fragments, err := sw.AcceptFragments(ctx)
	if fragments {
		unblocked = append(unblocked, "IP fragments")
	}
	return unblocked, errors.Join(append(errs, err)...)
}
