package switchports

import (
	"context"
	"errors"
	"testing"

	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
)

func event(name string, port uint32, gone bool) of.PortEvent {
	return of.PortEvent{PortDesc: of.PortDesc{Name: name, Port: port}, Gone: gone}
}

func TestPortEvents(t *testing.T) {
	p := NewEvents()
	done := make(chan uint32, 1)
	settled := make(chan struct{})
	go func() {
		port, err := p.wait(t.Context(), "b")
		if err != nil {
			t.Error(err)
		}
		done <- port
	}()
	p.Event(event("a", 7, false))
	p.Event(event("b", 8, false))
	p.Connected(func(context.Context) error { <-settled; return nil })
	select {
	case <-done:
		t.Error("a port is said to be there before the switch is done with it")
	case settled <- struct{}{}:
	}
	if got := <-done; got != 8 {
		t.Errorf("port %d, want 8", got)
	}
	// What is gone, forgotten, or of an earlier connection is not there any more.
	p.Event(event("a", 7, true))
	p.forget("b")
	p.Event(event("c", 9, false))
	p.Reset()
	p.Connected(func(context.Context) error { return nil })
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, name := range []string{"a", "b", "c"} {
		if port, err := p.wait(ended, name); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: port %d, %v", name, port, err)
		}
	}
}

// A connection that ends leaves the answer to the database.
func TestPortEventsEnd(t *testing.T) {
	p := NewEvents()
	p.Connected(func(context.Context) error { return of.ErrClosed })
	p.Event(event("a", 7, false))
	if port, err := p.wait(t.Context(), "a"); !errors.Is(err, of.ErrClosed) {
		t.Errorf("port %d, %v", port, err)
	}
}
