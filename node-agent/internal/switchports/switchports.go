// Package switchports gives access to the ports of Open vSwitch, and waits for those that it takes in: by
// whichever says so first, OpenFlow or the database.
//
// It makes and deletes ports for others, and never decides which there are to be.
package switchports

import (
	"context"
	"errors"
	"sync"
	"time"

	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
)

// Events remembers which ports ovs-vswitchd said it took in, over OpenFlow. Its methods may be called at once.
type Events struct {
	mu      sync.Mutex
	ports   map[string]uint32
	barrier Barrier
	changed chan struct{}
}

// Barrier returns when the switch has done all that it was at; [of.Conn.Barrier] is one.
type Barrier func(context.Context) error

// NewEvents returns events that have heard of no port.
func NewEvents() *Events {
	return &Events{ports: map[string]uint32{}, changed: make(chan struct{})}
}

// Event takes in what the switch says.
func (p *Events) Event(e of.PortEvent) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e.Gone {
		delete(p.ports, e.Name)
	} else {
		p.ports[e.Name] = e.Port
	}
	close(p.changed)
	p.changed = make(chan struct{})
}

// Reset forgets everything: a new connection tells only of what is new.
func (p *Events) Reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.ports)
	p.barrier = nil
}

// Connected gives the barrier of the connection whose events these are from now on.
func (p *Events) Connected(barrier Barrier) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.barrier = barrier
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *Events) forget(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.ports, name)
}

func (p *Events) get(name string) (port uint32, barrier Barrier, changed <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	port, ok := p.ports[name]
	if !ok {
		return 0, nil, p.changed
	}
	return port, p.barrier, p.changed
}

// wait returns the port's number when the switch has said it and takes the port's packets.
//
// ovs-vswitchd says the number while it still opens other ports. Those that translate packets
// hear of the port when it is done with all of them, and drop what comes by it until then
// (datapath_drop_upcall_error). It answers a barrier after that.
func (p *Events) wait(ctx context.Context, name string) (uint32, error) {
	for {
		port, barrier, changed := p.get(name)
		if barrier != nil {
			return port, barrier(ctx)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}

// Ports are the ports of Open vSwitch's database, with the quicker of
// two answers to when a port is there: ovs-vswitchd says so over OpenFlow when it has
// taken the port in, and in the database after that. Only the database says what went wrong.
type Ports struct {
	*ovs.Client
	events *Events
}

// New returns the ports of the database that client reads; events hears of those of one bridge.
func New(client *ovs.Client, events *Events) Ports { return Ports{client, events} }

// AddPort implements attach.Ports.
func (s Ports) AddPort(ctx context.Context, bridge string, spec ovs.PortSpec) error {
	s.events.forget(spec.Name)
	return s.Client.AddPort(ctx, bridge, spec)
}

// WaitOfport implements attach.Ports.
func (s Ports) WaitOfport(ctx context.Context, name string) (uint32, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type answer struct {
		port uint32
		err  error
	}
	database := make(chan answer, 1)
	go func() {
		port, err := s.waitDatabase(ctx, name)
		database <- answer{port, err}
	}()
	said := make(chan answer, 1)
	go func() {
		port, err := s.events.wait(ctx, name)
		said <- answer{port, err}
	}()
	select {
	case a := <-said:
		if a.err == nil {
			return a.port, nil
		}
		a = <-database
		return a.port, a.err
	case a := <-database:
		return a.port, a.err
	}
}

const (
	// devicePatience is how long a port may be refused for want of its device,
	// which is made right after it.
	devicePatience = 3 * time.Second
	// refusedPause is the wait before the database is asked again.
	refusedPause = 5 * time.Millisecond
)

// waitDatabase is the database's answer. A refusal counts only when it lasts.
func (s Ports) waitDatabase(ctx context.Context, name string) (uint32, error) {
	for began := time.Now(); ; {
		port, err := s.Client.WaitOfport(ctx, name)
		var refused *ovs.PortError
		if !errors.As(err, &refused) || time.Since(began) > devicePatience {
			return port, err
		}
		select {
		case <-ctx.Done():
			return 0, err
		case <-time.After(refusedPause):
		}
	}
}
