package service

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
)

// spread is a service with so many ports, and slices of at most a thousand endpoints that answer at all of them, each at a
// number of its own.
func spread(ports, endpoints int, address func(int) netip.Addr) (Spec, []Slice) {
	spec := Spec{Key: key, VIPs: []netip.Addr{netip.MustParseAddr("10.96.0.10")}}
	var at []SlicePort
	for i := range ports {
		name := fmt.Sprint(i)
		spec.Ports = append(spec.Ports, PortSpec{name, TCP, uint16(1 + i)})
		at = append(at, SlicePort{name, TCP, uint16(1 + i)})
	}
	var all []Slice
	for i := range endpoints {
		if i%1000 == 0 {
			all = append(all, Slice{Service: key, Name: fmt.Sprint("s", i), Ports: at})
		}
		last := &all[len(all)-1]
		last.Endpoints = append(last.Endpoints, SliceEndpoint{Address: address(i), Ready: true, Serving: true})
	}
	return spec, all
}

// TestMostKept: what is kept of a service does not grow with its ports times its endpoints, neither what is served nor what is told
// to be left out, and does not depend on the order of slices.
func TestMostKept(t *testing.T) {
	outside := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{203, byte(i >> 16), byte(i >> 8), byte(i)}) }
	nobodys := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{240, byte(i >> 16), byte(i >> 8), byte(i)}) }
	for name, tc := range map[string]struct {
		ports, endpoints, most int
		address                func(int) netip.Addr
		whole                  int // ports with endpoints
		short                  bool
	}{
		"20,000 ports":                        {20_000, 1000, MostKept, outside, MostKept / 2002, true},
		"20,000 ports with one endpoint":      {20_000, 1, MostKept, outside, 20_000, false},
		"no room":                             {20_000, 1000, 0, outside, 0, true},
		"20,000 ports, and nobody's address":  {20_000, 1000, MostKept, nobodys, 0, true},
		"six ports of 10,000 pods":            {6, 10_000, MostKept, outside, 6, false},
		"one port with more than it may have": {1, MostKept / 2, MostKept, outside, 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			spec, all := spread(tc.ports, tc.endpoints, tc.address)
			got := For(spec, all, here, tc.most)
			whole := 0
			for _, p := range got.Ports {
				if len(p.Endpoints) > 0 {
					whole++
				}
			}
			if whole != tc.whole || got.Flows() > tc.most {
				t.Errorf("%d ports have endpoints, %d flows; want %d ports, at most %d flows", whole, got.Flows(), tc.whole, tc.most)
			}
			if len(got.Ports) != tc.ports || got.Short() != tc.short || len(got.LeftOut) > tc.ports+mostLeftOut {
				t.Errorf("%d ports, short %v, and %d left out; want %d, %v, at most %d", len(got.Ports), got.Short(), len(got.LeftOut), tc.ports, tc.short, tc.ports+mostLeftOut)
			}
			slices.Reverse(all)
			if !got.Equal(For(spec, all, here, tc.most)) {
				t.Error("slices in another order make another service")
			}
		})
	}
}
