package switchports

import (
	"context"
	"sync"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/attach"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
)

// Late are the ports of a switch whose database may not have answered yet: until [Late.Found]
// every call fails with [ovs.ErrDisconnected]. Its methods may be called at once.
type Late struct {
	mu    sync.Mutex
	ports attach.Ports
}

// Found gives all calls from now on to ports.
func (l *Late) Found(ports attach.Ports) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ports = ports
}

func (l *Late) behind() (attach.Ports, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ports == nil {
		return nil, ovs.ErrDisconnected
	}
	return l.ports, nil
}

// AddPort implements attach.Ports.
func (l *Late) AddPort(ctx context.Context, bridge string, spec ovs.PortSpec) error {
	p, err := l.behind()
	if err != nil {
		return err
	}
	return p.AddPort(ctx, bridge, spec)
}

// WaitOfport implements attach.Ports.
func (l *Late) WaitOfport(ctx context.Context, name string) (uint32, error) {
	p, err := l.behind()
	if err != nil {
		return 0, err
	}
	return p.WaitOfport(ctx, name)
}

// DeletePort implements attach.Ports.
func (l *Late) DeletePort(ctx context.Context, bridge, name string) error {
	p, err := l.behind()
	if err != nil {
		return err
	}
	return p.DeletePort(ctx, bridge, name)
}

// DeletePorts implements attach.Ports.
func (l *Late) DeletePorts(ctx context.Context, bridge string, names []string) (ovs.ConfigNumber, error) {
	p, err := l.behind()
	if err != nil {
		return 0, err
	}
	return p.DeletePorts(ctx, bridge, names)
}

// WaitApplied implements attach.Ports.
func (l *Late) WaitApplied(ctx context.Context, config ovs.ConfigNumber) error {
	p, err := l.behind()
	if err != nil {
		return err
	}
	return p.WaitApplied(ctx, config)
}

// Sync implements attach.Ports.
func (l *Late) Sync(ctx context.Context) error {
	p, err := l.behind()
	if err != nil {
		return err
	}
	return p.Sync(ctx)
}

// Ports implements attach.Ports.
func (l *Late) Ports(bridge string) ([]ovs.Port, error) {
	p, err := l.behind()
	if err != nil {
		return nil, err
	}
	return p.Ports(bridge)
}

// SetPortExternalIDs implements attach.Ports.
func (l *Late) SetPortExternalIDs(ctx context.Context, name string, ids map[string]string) error {
	p, err := l.behind()
	if err != nil {
		return err
	}
	return p.SetPortExternalIDs(ctx, name, ids)
}

// MendPorts implements attach.Ports.
func (l *Late) MendPorts(ctx context.Context, bridge string, specs []ovs.PortSpec) error {
	p, err := l.behind()
	if err != nil {
		return err
	}
	return p.MendPorts(ctx, bridge, specs)
}

// ShareQoS implements attach.Ports.
func (l *Late) ShareQoS(ctx context.Context, bridge, kind string, ports []string) (changed bool, err error) {
	p, err := l.behind()
	if err != nil {
		return false, err
	}
	return p.ShareQoS(ctx, bridge, kind, ports)
}
