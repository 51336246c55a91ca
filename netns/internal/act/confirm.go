package act

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/k8s-ovs/k8s-ovs/netns/internal/plan"
	"github.com/k8s-ovs/k8s-ovs/netns/internal/view"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// Confirmer is what [Confirm] needs of [store.Store].
type Confirmer interface {
	Snapshot(ctx context.Context) (topology.Snapshot, store.Revs, error)
	ConfirmNode(ctx context.Context, host string, ip netip.Addr, force bool) (store.Confirmation, error)
	WithdrawConfirmation(ctx context.Context, host string, ip netip.Addr) (bool, error)
}

// ConfirmOptions say how an address is confirmed.
type ConfirmOptions struct {
	// Force confirms it also where a host outside Kubernetes has it.
	Force bool
	// Withdraw takes the confirmation back.
	Withdraw bool
}

// Confirm leaves an operator's word that ip is an address of node, or takes it back.
// The controller does the rest.
func Confirm(ctx context.Context, st Confirmer, node string, ip netip.Addr, o ConfirmOptions) (view.Confirmation, error) {
	c := view.Confirmation{Node: node, Address: ip.String()}
	if o.Withdraw {
		withdrawn, err := st.WithdrawConfirmation(ctx, node, ip)
		if err != nil {
			return view.Confirmation{}, err
		}
		c.Result, c.Message = view.NothingToDo, fmt.Sprintf("no confirmation of %s as an address of node %s stands; nothing to do", ip, node)
		if withdrawn {
			c.Result, c.Message = view.Withdrawn, fmt.Sprintf("%s is no longer confirmed as an address of node %s", ip, node)
		}
		return c, nil
	}
	snap, _, err := st.Snapshot(ctx)
	if err != nil {
		return view.Confirmation{}, err
	}
	if err := plan.Confirm(snap, node, ip); err != nil {
		return view.Confirmation{}, err
	}
	done, err := st.ConfirmNode(ctx, node, ip, o.Force)
	if err != nil {
		return view.Confirmation{}, err
	}
	c.Result = view.NothingToDo
	switch done {
	case store.HasAddress:
		c.Message = fmt.Sprintf("node %s has its place in the network at %s already; nothing to do", node, ip)
	case store.ConfirmedBefore:
		c.Message = fmt.Sprintf("%s is confirmed as an address of node %s already; nothing to do", ip, node)
	default:
		c.Result = view.Confirmed
		c.Message = fmt.Sprintf("%s is confirmed as an address of node %s: its place in the network is there as soon as its Node has this InternalIP", ip, node)
	}
	return c, nil
}
