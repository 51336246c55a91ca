package agent

import (
	"context"
	"sync"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/attach"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/cniserver"
	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
)

// front answers the CNI from the agent's first moment on. As long as the node has no
// address, no way to etcd or no database of Open vSwitch there is nobody who could attach
// pods; they can go nevertheless.
type front struct {
	bare attach.Bare
	// why says what keeps pods from being attached.
	why func() error

	mu       sync.Mutex
	attacher cniserver.Attacher
}

// open gives all requests from now on to a.
func (f *front) open(a cniserver.Attacher) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.attacher = a
}

func (f *front) behind() cniserver.Attacher {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.attacher
}

// Add implements cniserver.Attacher.
func (f *front) Add(ctx context.Context, req cniapi.Request) (*cniapi.Result, error) {
	if a := f.behind(); a != nil {
		return a.Add(ctx, req)
	}
	return nil, cniapi.Errorf(cniapi.CodeTryAgain, "the agent cannot attach pods yet: %w", f.why())
}

// Check implements cniserver.Attacher.
func (f *front) Check(ctx context.Context, req cniapi.Request) error {
	if a := f.behind(); a != nil {
		return a.Check(ctx, req)
	}
	return cniapi.Errorf(cniapi.CodeTryAgain, "the agent cannot look at pods yet: %w", f.why())
}

// Del implements cniserver.Attacher.
func (f *front) Del(ctx context.Context, req cniapi.Request) error {
	release := f.bare.Hold()
	if a := f.behind(); a != nil {
		release()
		return a.Del(ctx, req)
	}
	defer release()
	return f.bare.Del(ctx, req.Attachment())
}

// GC implements cniserver.Attacher.
func (f *front) GC(ctx context.Context, req cniapi.Request) error {
	release := f.bare.Hold()
	if a := f.behind(); a != nil {
		release()
		return a.GC(ctx, req)
	}
	defer release()
	return f.bare.GC(ctx, req)
}

// Status implements cniserver.Attacher.
func (f *front) Status(ctx context.Context) error {
	if a := f.behind(); a != nil {
		return a.Status(ctx)
	}
	return cniapi.Errorf(cniapi.CodeNotAvailable, "pods cannot be attached: %w", f.why())
}

// latePorts are the ports of a switch whose database may not have answered yet.
type latePorts struct {
	mu    sync.Mutex
	ports attach.Ports
}

// found gives all calls from now on to ports.
func (l *latePorts) found(ports attach.Ports) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ports = ports
}

func (l *latePorts) behind() (attach.Ports, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ports == nil {
		return nil, ovs.ErrDisconnected
	}
	return l.ports, nil
}

// AddPort implements attach.Ports.
func (l *latePorts) AddPort(ctx context.Context, bridge string, spec ovs.PortSpec) error {
	p, err := l.behind()
	if err != nil {
		return err
	}
	return p.AddPort(ctx, bridge, spec)
}

// WaitOfport implements attach.Ports.
func (l *latePorts) WaitOfport(ctx context.Context, name string) (uint32, error) {
	p, err := l.behind()
	if err != nil {
		return 0, err
	}
	return p.WaitOfport(ctx, name)
}

// DeletePort implements attach.Ports.
func (l *latePorts) DeletePort(ctx context.Context, bridge, name string) error {
	p, err := l.behind()
	if err != nil {
		return err
	}
	return p.DeletePort(ctx, bridge, name)
}

// DeletePorts implements attach.Ports.
func (l *latePorts) DeletePorts(ctx context.Context, bridge string, names []string) (ovs.ConfigNumber, error) {
	p, err := l.behind()
	if err != nil {
		return 0, err
	}
	return p.DeletePorts(ctx, bridge, names)
}

// WaitApplied implements attach.Ports.
func (l *latePorts) WaitApplied(ctx context.Context, config ovs.ConfigNumber) error {
	p, err := l.behind()
	if err != nil {
		return err
	}
	return p.WaitApplied(ctx, config)
}

// Sync implements attach.Ports.
func (l *latePorts) Sync(ctx context.Context) error {
	p, err := l.behind()
	if err != nil {
		return err
	}
	return p.Sync(ctx)
}

// Ports implements attach.Ports.
func (l *latePorts) Ports(bridge string) ([]ovs.Port, error) {
	p, err := l.behind()
	if err != nil {
		return nil, err
	}
	return p.Ports(bridge)
}

// SetPortExternalIDs implements attach.Ports.
func (l *latePorts) SetPortExternalIDs(ctx context.Context, name string, ids map[string]string) error {
	p, err := l.behind()
	if err != nil {
		return err
	}
	return p.SetPortExternalIDs(ctx, name, ids)
}

// ShareQoS implements attach.Ports.
func (l *latePorts) ShareQoS(ctx context.Context, bridge, kind string, ports []string) (changed bool, err error) {
	p, err := l.behind()
	if err != nil {
		return false, err
	}
	return p.ShareQoS(ctx, bridge, kind, ports)
}
