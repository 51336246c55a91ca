package link

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

// A next hop is looked up although nothing is sent to it, also when the kernel
// has an answer of which it is not sure.
func TestProbeNeighbour(t *testing.T) {
	n, peer := space(t), space(t)
	ip(t, n, "link add v0 type veth peer name v1 netns "+nameOf(peer))
	for _, c := range []string{"link set v0 up", "addr add 192.0.2.1/24 dev v0", "route add default via 192.0.2.2"} {
		ip(t, n, c)
	}
	for _, c := range []string{"link set v1 up", "addr add 192.0.2.2/24 dev v1"} {
		ip(t, peer, c)
	}
	reachable := func(what string) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			state := ip(t, n, "neigh show 192.0.2.2")
			if strings.Contains(state, "REACHABLE") {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: the neighbour is %q", what, state)
			}
		}
	}
	noErr(t, n.ProbeNeighbour(netip.MustParseAddr("203.0.113.9")))
	reachable("unknown, behind a router")
	ip(t, n, "neigh change 192.0.2.2 dev v0 nud stale")
	noErr(t, n.ProbeNeighbour(netip.MustParseAddr("192.0.2.2")))
	reachable("stale, on the link")
	if err := space(t).ProbeNeighbour(netip.MustParseAddr("192.0.2.2")); err == nil {
		t.Error("no route, and no error")
	}
}
