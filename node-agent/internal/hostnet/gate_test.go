package hostnet

import (
	"fmt"
	"net/netip"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/fairness"
)

// Pods of one namespace share what it may; another's pods have their own. What is there
// already is not written again, and what somebody flushed comes back.
func TestGate(t *testing.T) {
	l := newLab(t)
	l.ensure(true)
	l.ip(l.pods, "addr add 172.11.0.7/32 dev eth0")
	gate, err := NewGate(l.ns)
	l.ok(err)
	ctx := t.Context()
	// Each ping is a connection of its own.
	ping := func(from string) bool {
		return exec.Command("ip", "netns", "exec", l.pods, "ping", "-q", "-c1", "-W1", "-I", from, "198.18.0.1").Run() == nil
	}
	five, six, seven := netip.MustParseAddr("172.11.0.5"), netip.MustParseAddr("172.11.0.6"), netip.MustParseAddr("172.11.0.7")
	others := fairness.Allowance{Rate: 1, Burst: 3}
	little := fairness.Allowance{Rate: 1, Burst: 2}
	want := map[string]Passage{
		"red":  {Allowance: little, Addresses: []netip.Addr{five, six}},
		"blue": {Allowance: fairness.Allowance{Rate: 1000, Burst: 1000}, Addresses: []netip.Addr{seven}},
	}
	l.ok(gate.Set(ctx, "tun0", others, want))
	passed := 0
	for i := range 10 {
		if ping(fmt.Sprint("172.11.0.", 5+i%2)) {
			passed++
		}
		if !ping("172.11.0.7") {
			t.Error("another namespace is held back")
		}
	}
	asked, err := gate.Asked(ctx)
	l.ok(err)
	if passed == 10 || asked["red"].Refused != uint64(10-passed) {
		t.Errorf("%d of 10 passed, counted are %+v", passed, asked)
	}
	if diff := cmp.Diff(fairness.Asked{All: 10}, asked["blue"]); diff != "" {
		t.Error(diff)
	}

	list := func() string { return l.run(l.node, "nft", "-a", "-s", "list", "table", "ip", gateTable) }
	before := list()
	l.ok(gate.Set(ctx, "tun0", others, want))
	if after := list(); after != before {
		t.Errorf("the table was written though nothing differed:\n%s\n%s", before, after)
	}
	// A release before had another rule, for the same purpose.
	rules := l.run(l.node, "nft", "-a", "list", "chain", "ip", gateTable, gateChain)
	handle := regexp.MustCompile(`others by tun0.* handle (\d+)`).FindStringSubmatch(rules)
	if handle == nil {
		t.Fatalf("no rule for others:\n%s", rules)
	}
	l.run(l.node, "nft", "replace rule ip "+gateTable+" "+gateChain+" handle "+handle[1]+` iifname "tun0" accept comment "others by tun0"`)
	l.ok(gate.Set(ctx, "tun0", others, want))
	if now := list(); strings.Contains(now, `"tun0" accept`) {
		t.Errorf("the rule of another release stays:\n%s", now)
	}
	l.run(l.node, "nft", "flush", "ruleset")
	l.ok(gate.Set(ctx, "tun0", others, want))
	again := list()

	// A namespace may less, another's only pod goes to it.
	want["red"] = Passage{Allowance: fairness.Allowance{Rate: 5, Burst: 7}, Addresses: []netip.Addr{five, seven}}
	delete(want, "blue")
	l.ok(gate.Set(ctx, "tun0", others, want))
	out := list()
	for _, part := range []string{"5/second burst 7 packets", "172.11.0.7 : goto t-red"} {
		if !strings.Contains(out, part) {
			t.Errorf("no %q in\n%s", part, out)
		}
	}
	for _, part := range []string{"blue", "172.11.0.6"} {
		if strings.Contains(out, part) {
			t.Errorf("%q is still in\n%s\nwas\n%s", part, out, again)
		}
	}
	// A pod of which nothing is known yet is bounded as well.
	passed = 0
	for range 10 {
		if ping("172.11.0.6") {
			passed++
		}
	}
	if passed == 0 || passed == 10 {
		t.Errorf("%d of 10 connections of a pod of nobody's passed", passed)
	}
	l.ok(gate.Remove(ctx))
	if out := l.run(l.node, "nft", "list", "tables"); strings.Contains(out, gateTable) {
		t.Errorf("tables after Remove:\n%s", out)
	}
	none, err := gate.Asked(ctx)
	l.ok(err)
	if len(none) > 0 {
		t.Errorf("without a table %v are counted", none)
	}
	l.ok(gate.Set(ctx, "tun0", others, want))
}

// A namespace that has its part of the ports to a destination makes no more connections to there, also by
// a service, and goes on with all others; nobody else is held back. What is there already is not
// written again.
func TestGateCrowded(t *testing.T) {
	l := newLab(t)
	l.ensure(true)
	l.ip(l.pods, "addr add 172.11.0.7/32 dev eth0")
	l.run(l.node, "nft", "add table ip lab; add chain ip lab pre { type nat hook prerouting priority -100; }; add rule ip lab pre ip daddr 10.96.0.9 udp dport 5 dnat to 198.18.0.1:53")
	gate, err := NewGate(l.ns)
	l.ok(err)
	ctx := t.Context()
	many := fairness.Allowance{Rate: 10000, Burst: 10000}
	at := func(to string, protocol uint8) fairness.Destination {
		return fairness.Destination{To: netip.MustParseAddrPort(to), Protocol: protocol}
	}
	want := map[string]Passage{
		"red": {
			Allowance: many, Addresses: []netip.Addr{netip.MustParseAddr("172.11.0.5"), netip.MustParseAddr("172.11.0.6")},
			Crowded: []fairness.Destination{at("198.18.0.1:0", unix.IPPROTO_ICMP), at("198.18.0.1:53", unix.IPPROTO_TCP), at("198.18.0.1:53", unix.IPPROTO_UDP)},
		},
		"blue": {Allowance: many, Addresses: []netip.Addr{netip.MustParseAddr("172.11.0.7")}},
	}
	l.ok(gate.Set(ctx, "tun0", many, want))
	list := func() string { return l.run(l.node, "nft", "-a", "-s", "list", "table", "ip", gateTable) }
	before := list()
	l.ok(gate.Set(ctx, "tun0", many, want))
	if after := list(); after != before {
		t.Errorf("the table was written though nothing differed:\n%s\n%s", before, after)
	}

	l.up()
	outside := l.sniff(l.outside, "eth0")
	port := 2000
	sent := func(from, to string, arrives int) bool {
		port++
		l.udp(l.pods, fmt.Sprint(from, ":", port), to, port-1900)
		l.udp(l.pods, "172.11.0.7:1999", "198.18.0.1:99", 1)
		return outside.until(udpTo(99), func(p []byte) bool { return udpTo(arrives)(p) && len(p) == 28+port-1900 })
	}
	for _, tc := range []struct {
		from, to string
		arrives  int
		want     bool
	}{
		{"172.11.0.5", "198.18.0.1:53", 53, false},
		{"172.11.0.6", "198.18.0.1:53", 53, false},
		{"172.11.0.6", "10.96.0.9:5", 53, false},
		{"172.11.0.6", "198.18.0.1:54", 54, true},
		{"172.11.0.7", "198.18.0.1:53", 53, true},
		{"172.11.0.7", "10.96.0.9:5", 53, true},
	} {
		if got := sent(tc.from, tc.to, tc.arrives); got != tc.want {
			t.Errorf("a datagram from %s to %s arrives: %t, want %t", tc.from, tc.to, got, tc.want)
		}
	}
	ping := func(from string) bool {
		return exec.Command("ip", "netns", "exec", l.pods, "ping", "-q", "-c1", "-W1", "-I", from, "198.18.0.1").Run() == nil
	}
	if ping("172.11.0.5") || !ping("172.11.0.7") {
		t.Error("not just pings of the namespace that has its part are refused")
	}
	asked, err := gate.Asked(ctx)
	l.ok(err)
	if n := asked["red"].Crowded; n < 4 || asked["blue"].Crowded != 0 {
		t.Errorf("counted are %+v", asked)
	}

	want["red"] = Passage{Allowance: many, Addresses: want["red"].Addresses[:1]}
	l.ok(gate.Set(ctx, "tun0", many, want))
	if !sent("172.11.0.5", "198.18.0.1:53", 53) || !ping("172.11.0.5") {
		t.Error("it is refused though it has its part no more")
	}
	delete(want, "red")
	l.ok(gate.Set(ctx, "tun0", many, want))
	if out := list(); strings.Contains(out, "red") {
		t.Errorf("a namespace that is gone is still in\n%s", out)
	}
}
