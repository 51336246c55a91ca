package attach

import (
	"context"

	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
)

// MTU is that of pods, bytes.
type MTU struct {
	// Device is what a pod takes: the MTU of both ends of its pair.
	Device int
	// Route is what it sends, at most Device.
	Route int
}

// SetMTU makes m the MTU of pods that are attached, and of those to come. What one
// pod lacks of it after an error is made up by the next call.
func (a *Attacher) SetMTU(ctx context.Context, m MTU) error {
	a.mu.Lock()
	var keys []cniapi.Attachment
	if a.node != nil {
		a.node.MTU = m
		for key, at := range a.list {
			if at.mtu != m {
				keys = append(keys, key)
			}
		}
	}
	a.mu.Unlock()
	return a.each(ctx, keys, a.followMTU)
}

// followMTU gives the pod the node's MTU.
func (a *Attacher) followMTU(ctx context.Context, node Node, at Attachment) error {
	if err := a.change(ctx, node, &at, a.kernel.SetMTU); err != nil {
		return err
	}
	at.mtu = node.MTU
	a.put(at)
	return nil
}
