package podroutes

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/pkg/link"
)

// routes are those of a node.
type routes struct {
	parts []link.Part
	ruled bool
	// own and forwarded are where packets to an address go that do not go to tun0; "" is nowhere.
	own, forwarded map[string]string
	err            error
	// unseen is why the kernel does not say the way to an address, lasting that it does not when asked again either.
	unseen  map[string]error
	lasting bool
	// asked counts addresses that the kernel was asked of.
	asked int
}

func (r *routes) Parts(netip.Prefix) ([]link.Part, error) { return r.parts, r.err }
func (r *routes) Ruled() (bool, error)                    { return r.ruled, nil }

func (r *routes) PathsTo(_ netip.Addr, ips []netip.Addr) map[netip.Addr]link.Path {
	out := map[netip.Addr]link.Path{}
	for _, ip := range ips {
		r.asked++
		device, led := r.own[ip.String()]
		if !led {
			device = "tun0"
		}
		if device != "" && r.unseen[ip.String()] == nil {
			out[ip] = link.Path{Link: link.Link{Name: device}}
		}
	}
	return out
}

func (r *routes) PathTo(ip netip.Addr) (link.Path, error) {
	r.asked++
	if err := r.unseen[ip.String()]; err != nil && r.lasting {
		return link.Path{}, err
	}
	device, led := r.own[ip.String()]
	switch {
	case !led:
		return link.Path{Link: link.Link{Name: "tun0"}}, nil
	case device == "":
		return link.Path{}, fmt.Errorf("%w to %s", link.ErrNoRoute, ip)
	}
	return link.Path{Link: link.Link{Name: device}}, nil
}

func (r *routes) PathOf(_ netip.Addr, _ string, ip netip.Addr) (link.Path, error) {
	r.asked++
	device, led := r.forwarded[ip.String()]
	switch {
	case !led:
		return link.Path{Link: link.Link{Name: "tun0"}}, nil
	case device == "":
		return link.Path{}, fmt.Errorf("%w to %s", link.ErrNoRoute, ip)
	}
	return link.Path{Link: link.Link{Name: device}}, nil
}

// TestCheck: what leads packets of pods elsewhere is named with the way out, and what takes none from a pod is none.
func TestCheck(t *testing.T) {
	p := netip.MustParsePrefix
	pods := Pods{
		Device: "tun0", Network: p("172.11.0.0/16"), Own: p("172.11.0.0/22"), Subnets: []netip.Prefix{p("172.11.4.0/22"), p("172.11.8.0/22")},
		Outside: "eth0", Beyond: netip.MustParseAddr("192.175.48.1"),
	}
	broken := errors.New("netlink is broken")
	for name, tc := range map[string]struct {
		routes routes
		say    []string // parts of what it says; none where all is well
		asked  int
	}{
		"nothing else":                    {routes{}, nil, 4},
		"the gateway port's own address":  {routes{parts: []link.Part{{Dst: p("172.11.0.1/32"), Device: "tun0", Local: true}}}, nil, 4},
		"where no node has pods":          {routes{parts: []link.Part{{Dst: p("172.11.64.0/24"), Device: "wg0"}}}, nil, 4},
		"to the upper part of its own":    {routes{parts: []link.Part{{Dst: p("172.11.3.0/24"), Device: "wg0"}}}, []string{"172.11.3.0/24 by wg0", "(172.11.0.0/22)", "ip route del 172.11.3.0/24 dev wg0"}, 0},
		"to another node's pods":          {routes{parts: []link.Part{{Dst: p("172.11.8.0/23"), Device: "docker0"}}}, []string{"172.11.8.0/23 by docker0", "(172.11.8.0/22)"}, 0},
		"to several nodes' pods":          {routes{parts: []link.Part{{Dst: p("172.11.0.0/17"), Device: "wg0"}}}, []string{"ip route del 172.11.0.0/17 dev wg0"}, 0},
		"to nowhere":                      {routes{parts: []link.Part{{Dst: p("172.11.5.7/32")}}}, []string{"172.11.5.7/32 that drops packets", "(ip route del 172.11.5.7/32)"}, 0},
		"an address of the node":          {routes{parts: []link.Part{{Dst: p("172.11.1.1/32"), Device: "virbr0", Local: true}}}, []string{"has the address 172.11.1.1, on virbr0", "ip address del"}, 0},
		"a rule, for all":                 {routes{own: map[string]string{"172.11.0.0": "wg0"}}, []string{"to wg0 and not to tun0", "ip route get 172.11.0.0,"}, 2},
		"a rule, for the last ones":       {routes{own: map[string]string{"172.11.3.255": "wg0"}}, []string{"172.11.3.255", "ip rule"}, 2},
		"a rule that drops them":          {routes{own: map[string]string{"172.11.3.255": ""}}, []string{"to nowhere"}, 3},
		"a way that is not seen at once":  {routes{unseen: map[string]error{"172.11.0.0": broken}}, nil, 5},
		"a way that is not seen":          {routes{unseen: map[string]error{"172.11.0.0": broken}, lasting: true}, []string{"cannot be seen", broken.Error()}, 3},
		"a rule for what is forwarded":    {routes{ruled: true, forwarded: map[string]string{"172.11.3.255": "wg0"}}, []string{"ip route get 172.11.3.255 from 192.175.48.1 iif eth0,"}, 8},
		"answers that may not come in":    {routes{forwarded: map[string]string{"172.11.0.0": "", "172.11.3.255": ""}}, nil, 4},
		"a rule for another node's":       {routes{ruled: true, own: map[string]string{"172.11.11.255": "wg0"}}, []string{"172.11.11.255, an address of the pods of 172.11.8.0/22"}, 6},
		"rules that do nothing with pods": {routes{ruled: true}, nil, 8},
		"routes that cannot be listed":    {routes{err: broken}, []string{broken.Error()}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			err := Check(&tc.routes, pods)
			if (err == nil) != (tc.say == nil) || tc.routes.asked != tc.asked {
				t.Fatalf("%v; the kernel was asked of %d addresses, want %d", err, tc.routes.asked, tc.asked)
			}
			for _, part := range tc.say {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("it says %q, and not %q", err, part)
				}
			}
		})
	}
}
