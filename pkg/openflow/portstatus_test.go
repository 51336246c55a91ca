package openflow

import (
	"sync"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/test/ovstest"
)

// A real switch tells of ports that come, change and go, in order, and only
// who asked for it.
func TestPortEvents(t *testing.T) {
	o := ovstest.Start(t)
	mgmt := o.AddBridge("br0", "dummy")
	var mu sync.Mutex
	var events []PortEvent
	c := dial(t, mgmt, WithPortEvents(func(e PortEvent) {
		mu.Lock()
		defer mu.Unlock()
		events = append(events, e)
	}))
	quiet := dial(t, mgmt)
	saw := func(name string, port uint32, gone bool) func() bool {
		return func() bool {
			mu.Lock()
			defer mu.Unlock()
			for _, e := range events {
				if e.Name == name && e.Port == port && e.Gone == gone {
					return true
				}
			}
			return false
		}
	}
	if err := c.Barrier(t.Context()); err != nil { // the switch has the subscription
		t.Fatal(err)
	}
	o.AddDummyPort("br0", "p7", 7)
	waitFor(t, saw("p7", 7, false))
	o.VSCtl("del-port", "p7")
	waitFor(t, saw("p7", 7, true))
	for _, conn := range []*Conn{c, quiet} {
		if err := conn.Barrier(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

func TestDecodePortStatus(t *testing.T) {
	for _, b := range [][]byte{nil, make([]byte, 7), make([]byte, 8), append(make([]byte, 8), 0, 0, 0, 1, 0, 40), make([]byte, 60)} {
		if e, err := decodePortStatus(b); err == nil {
			t.Errorf("%x is taken as %+v", b, e)
		}
	}
}
