package agent

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/exits"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/underlay"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
)

// uplinks are the devices of a node, and whether packets get out; tried counts the packets.
type uplinks struct {
	devices map[string]link.Link
	closed  error
	tried   int
}

func (u *uplinks) Link(name string) (link.Link, bool, error) {
	l, ok := u.devices[name]
	return l, ok, nil
}

func (u *uplinks) Outside(context.Context, exits.Switch, exits.Gateway) error {
	u.tried++
	return u.closed
}

// What is wrong with the device by which tunnel packets leave is named, with the way out.
func TestUplinkDown(t *testing.T) {
	for name, c := range map[string]struct {
		device *link.Link
		why    string
	}{
		"well":       {&link.Link{Up: true, Carrier: true}, ""},
		"loopback":   {&link.Link{Loopback: true}, ""},
		"gone":       {nil, "the uplink eth0 is gone"},
		"down":       {&link.Link{}, "ip link set eth0 up"},
		"no carrier": {&link.Link{Up: true}, "look at its cable"},
	} {
		for _, under := range []underlay.Underlay{{Link: "eth0"}, {Link: "br-phy", Uplink: "eth0"}} {
			u := &uplinks{devices: map[string]link.Link{"br-phy": {}}}
			if c.device != nil {
				u.devices["eth0"] = *c.device
			}
			h := &health{picture: &picture{under: under}, exits: u, links: u}
			err := h.unwell(t.Context(), labSelf, true)
			if (err == nil) != (c.why == "") || err != nil && !strings.Contains(err.Error(), c.why) {
				t.Errorf("%s, address on %s: %v, want %q", name, under.Link, err, c.why)
			}
		}
	}
}

// A packet is sent out at first, in every full pass, and in every pass while none gets out.
func TestWayOutIsTried(t *testing.T) {
	u := &uplinks{devices: map[string]link.Link{"eth0": {Up: true, Carrier: true}}}
	h := &health{picture: &picture{under: underlay.Underlay{Link: "eth0"}}, exits: u, links: u}
	closed := errors.New("a firewall drops them")
	for i, s := range []struct {
		full   bool
		closed error
		tried  int
		why    error
	}{
		{false, nil, 1, nil}, {false, closed, 1, nil}, {true, closed, 2, closed}, {false, closed, 3, closed}, {false, nil, 4, nil}, {false, nil, 4, nil}, {true, nil, 5, nil},
	} {
		u.closed = s.closed
		p := &pass{me: labSelf, full: s.full}
		if err := h.look(t.Context(), p); err != nil || !errors.Is(p.unwell, s.why) || u.tried != s.tried {
			t.Errorf("pass %d: %v, unwell %v, %d packets sent; want %v, %d", i, err, p.unwell, u.tried, s.why, s.tried)
		}
	}
}
