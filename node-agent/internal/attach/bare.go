package attach

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/ipam"
	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
)

// Bare detaches pods of a node about which nothing is known: its record is gone or
// another, its address changed, its state directory is full, etcd is away. A pod must
// be able to go whatever is missing, or the node cannot be drained to mend it. What
// the database and the kernel say is enough; the lease says that it is leaving, and goes
// with the next start.
type Bare struct {
	kernel Kernel
	ports  Ports
	bridge string
	log    *slog.Logger
	// starting is held by an Attacher that reads back what there is.
	starting *sync.RWMutex
	// stateDir has the leases; writing is held by who changes them there.
	stateDir string
	writing  *sync.Mutex
}

// NewBare makes a Bare for the pods of a bridge, whose leases are in stateDir.
func NewBare(kernel Kernel, ports Ports, bridge, stateDir string, log *slog.Logger) Bare {
	return Bare{kernel: kernel, ports: ports, bridge: bridge, stateDir: stateDir, log: log, starting: &sync.RWMutex{}, writing: &sync.Mutex{}}
}

// Hold keeps an Attacher from starting until release is called, or waits until it has: it
// must not read back what is about to go, or the pod would come back. Whether there is a
// node by now is to be looked at after Hold.
func (b Bare) Hold() (release func()) {
	b.starting.RLock()
	return b.starting.RUnlock
}

// leave writes down that attachments are leaving: a start does not bring them back then, though their sandboxes stand and
// the database still has their ports. Where it cannot be written, that these are gone is what the start goes by.
func (b Bare) leave(keys ...cniapi.Attachment) {
	b.writing.Lock()
	defer b.writing.Unlock()
	if err := ipam.Depart(b.stateDir, keys...); err != nil {
		b.log.Warn("that pods are leaving cannot be written down", "error", err)
	}
}

// Del detaches; the caller has a [Bare.Hold]. What is gone already is no error.
func (b Bare) Del(ctx context.Context, key cniapi.Attachment) error {
	at := Attachment{Attachment: key}
	ports, err := b.ports.Ports(b.bridge)
	if err != nil && !errors.Is(err, ovs.ErrDisconnected) {
		return fmt.Errorf("detach %s: %w", key, err)
	}
	for _, p := range ports {
		if known, ours, err := fromExternalIDs(p.ExternalIDs, p.Ofport); ours && err == nil && known.Attachment == key {
			at = known
		}
	}
	b.leave(key)
	if err := b.disconnect(ctx, at); err != nil {
		return fmt.Errorf("detach %s: %w", key, err)
	}
	b.log.Info("detached a pod while the node is not set up", "tenant", at.Namespace, "pod", at.Pod, "addresses", at.Addresses, "sandbox", at.Netns)
	return nil
}

// GC detaches everything of the network that the runtime no longer lists; the caller has a
// [Bare.Hold].
func (b Bare) GC(ctx context.Context, req cniapi.Request) error {
	spared, err := req.Spared()
	if err != nil {
		return err
	}
	ports, err := b.ports.Ports(b.bridge)
	if err != nil {
		return classify(err)
	}
	var errs []error
	for _, p := range ports {
		at, ours, err := fromExternalIDs(p.ExternalIDs, p.Ofport)
		if !ours || err != nil || spared[at.Attachment] || at.Network != req.NetworkName {
			continue
		}
		b.leave(at.Attachment)
		if err := b.disconnect(ctx, at); err != nil {
			errs = append(errs, fmt.Errorf("collect %s: %w", at.Attachment, err))
		}
	}
	return errors.Join(errs...)
}

// disconnect removes port and devices. Without its port and its device no flow of the
// pod does anything; flows go when the node is set up.
func (b Bare) disconnect(ctx context.Context, at Attachment) error {
	// The row is of no use without its device: whoever finds it then removes it.
	if err := b.ports.DeletePort(ctx, b.bridge, at.HostIf()); err != nil && !errors.Is(err, ovs.ErrDisconnected) {
		return err
	}
	if err := b.kernel.Delete(at.HostIf()); err != nil {
		return err
	}
	if err := b.kernel.Unshape(at.HostIf()); err != nil || len(at.Addresses) == 0 {
		return err
	}
	if at.Netns != "" {
		if err := b.kernel.Leave(Wire{Netns: at.Netns, IfName: at.IfName, Addresses: at.Addresses}); err != nil {
			return err
		}
	}
	// A device that is there may begin connections.
	return b.kernel.Forget(at.Addresses...)
}
