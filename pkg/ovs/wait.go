package ovs

import (
	"context"
	"fmt"
	"sync"
)

// waiters are goroutines that wait for a change of an interface, by name.
type waiters struct {
	mu     sync.Mutex
	byName map[string]map[chan struct{}]struct{}
}

// add registers for wake-ups about name. The channel holds one.
func (w *waiters) add(name string) (ch chan struct{}, remove func()) {
	ch = make(chan struct{}, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.byName == nil {
		w.byName = map[string]map[chan struct{}]struct{}{}
	}
	if w.byName[name] == nil {
		w.byName[name] = map[chan struct{}]struct{}{}
	}
	w.byName[name][ch] = struct{}{}
	return ch, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.byName[name], ch)
		if len(w.byName[name]) == 0 {
			delete(w.byName, name)
		}
	}
}

func (w *waiters) wake(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for ch := range w.byName[name] {
		notify(ch)
	}
}

func (w *waiters) wakeAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, chans := range w.byName {
		for ch := range chans {
			notify(ch)
		}
	}
}

func notify(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// WaitOfport returns the OpenFlow port number of interface name as soon as
// ovs-vswitchd has given it one. It returns a [*PortError] where ovs-vswitchd
// refuses the port, and ctx's error, with what is known, when ctx ends first: then
// ovs-vswitchd is down or busy. A lost connection is waited out. An interface
// that is not in the database (yet) is waited for.
func (c *Client) WaitOfport(ctx context.Context, name string) (uint32, error) {
	ch, remove := c.waiters.add(name)
	defer remove()
	for {
		state := "not connected to ovsdb-server"
		if s, err := c.session(); err == nil {
			row, err := s.interfaceByName(name)
			if err != nil {
				return 0, err
			}
			if row != nil {
				if n := deref(row.Ofport); n > 0 {
					return uint32(n), nil
				}
				if row.Error != nil || row.Ofport != nil {
					return 0, &PortError{Port: name, Text: deref(row.Error)}
				}
			}
			state = "ovs-vswitchd has not taken it up; is it running?"
			if row == nil {
				state = "it is not in the database"
			}
		}
		select {
		case <-ch:
		case <-c.done:
			return 0, fmt.Errorf("OpenFlow port of %s: client is closed: %w", name, ErrDisconnected)
		case <-ctx.Done():
			return 0, fmt.Errorf("OpenFlow port of %s: %s: %w", name, state, ctx.Err())
		}
	}
}

// syncWaiter is the name under which [Client.Sync] waits: no interface can have
// it, its name being too long.
const syncWaiter = "the Open_vSwitch row"
