// Package freeport finds ports for servers of tests that cannot let the kernel choose one.
package freeport

import (
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
)

const (
	// first and count are of ports that Linux gives to no connection: it takes 32768 to 60999
	// (ip_local_port_range in ip-sysctl.rst). One of those may be taken again before the server has it.
	first, count = 20000, 10000
	tries        = 100
)

// Loopback is an address of the loopback with a port on which nobody listens now.
func Loopback(tb testing.TB) netip.AddrPort {
	tb.Helper()
	var err error
	for range tries {
		at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(first+rand.IntN(count)))
		var l net.Listener
		if l, err = net.Listen("tcp4", at.String()); err == nil {
			_ = l.Close()
			return at
		}
	}
	tb.Fatalf("no free port of 127.0.0.1 in %d tries: %v", tries, err)
	return netip.AddrPort{}
}
