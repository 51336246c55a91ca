package attach

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/k8s-ovs/k8s-ovs/pkg/limits"
)

// plug makes the port and the devices of at, and returns the port's number. The port comes
// before its device: the one look that it causes finds the device, which is there within
// the millisecond that this look takes to get to it. Should it not be, the device itself
// causes a second look. The other way round there are always two, one after the other. The
// opening of the device then runs beside the sandbox's set-up and the pod's limits.
//
// Devices of few pods are made at once, the others' wait with their rows: all changes of
// devices have one lock in the kernel, so more would only keep each other waiting, and
// ovs-vswitchd looking for those that are yet to come.
func (a *Attacher) plug(ctx context.Context, node Node, at *Attachment) (port uint32, err error) {
	release, err := a.devices.take(ctx)
	if err != nil {
		return 0, fmt.Errorf("waiting for other pods' devices: %w", err)
	}
	defer release()
	wire := a.wire(node, *at)
	if err := a.observe(AddRow, func() error { return a.ports.AddPort(ctx, node.Bridge, at.port(node)) }); err != nil {
		return 0, classify(err)
	}
	if err := a.observe(AddPair, func() error { return a.kernel.CreateVeth(wire) }); err != nil {
		return 0, err
	}
	var apart bool
	var hostMAC net.HardwareAddr
	configured := make(chan error, 1)
	go func() {
		configured <- a.observe(AddSandbox, func() (err error) {
			apart, err = a.configure(wire)
			release()
			if err == nil {
				hostMAC, err = a.kernel.HostMAC(wire.HostIf)
			}
			return err
		})
	}()
	err = a.observe(AddNumber, func() (err error) {
		port, err = a.awaitNumber(ctx, node, *at)
		return err
	})
	err = errors.Join(err, <-configured)
	at.apart, at.hostMAC = apart, hostMAC
	return port, err
}

// awaitNumber is the number of the port of at, once it is one that stays. Somebody else's port that asks
// for none may have the one that at asks for: at has another one then, until ovs-vswitchd reads its
// configuration again, and gives each what it asks for.
func (a *Attacher) awaitNumber(ctx context.Context, node Node, at Attachment) (uint32, error) {
	port, err := a.ports.WaitOfport(ctx, at.HostIf())
	if want := at.wants(node); err != nil || port == want || want == 0 {
		return port, err
	}
	if err := a.ports.Sync(ctx); err != nil {
		return 0, err
	}
	return a.ports.WaitOfport(ctx, at.HostIf())
}

func (a *Attacher) configure(w Wire) (apart bool, err error) {
	apart, err = a.kernel.Configure(w)
	if err != nil || w.Limits == (limits.Limits{}) {
		return apart, err
	}
	return apart, a.kernel.Shape(w)
}
