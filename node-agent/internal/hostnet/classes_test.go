package hostnet

import (
	"net/netip"
	"regexp"
	"strings"
	"testing"
)

// What a pod sends through the node leaves in its class, also though it leaves
// with the node's address; htb stands for the uplink's tree.
func TestClasses(t *testing.T) {
	l := newLab(t)
	l.ensure(true)
	classes, err := NewClasses(l.ns)
	l.ok(err)
	ctx := t.Context()
	for _, args := range []string{
		"qdisc replace dev eth0 root handle 1: htb default ffff",
		"class add dev eth0 parent 1: classid 1:6 htb rate 1gbit",
		"class add dev eth0 parent 1: classid 1:7 htb rate 1gbit",
		"class add dev eth0 parent 1: classid 1:ffff htb rate 1gbit",
	} {
		l.run(l.node, append([]string{"tc"}, strings.Fields(args)...)...)
	}
	sent := func(class string) string {
		out := l.run(l.node, "tc", "-s", "class", "show", "dev", "eth0")
		return regexp.MustCompile(`class htb ` + class + ` [^\n]*\n Sent \d+ bytes (\d+) pkt`).FindStringSubmatch(out)[1]
	}
	ping := func(from string) { l.run(l.pods, "ping", "-q", "-c1", "-W3", "-I", from, "198.18.0.1") }

	five, six := netip.MustParseAddr("172.11.0.5"), netip.MustParseAddr("172.11.0.6")
	l.ok(classes.Set(ctx, "tun0", map[netip.Addr]uint32{five: 0x10006}))
	ping("172.11.0.5")
	ping("172.11.0.6")
	if a, b := sent("1:6"), sent("1:7"); a != "1" || b != "0" {
		t.Errorf("with one pod: %s packets in class 1:6, %s in 1:7", a, b)
	}

	list := func() string { return l.run(l.node, "nft", "-a", "list", "table", "ip", classTable) }
	before := list()
	l.ok(classes.Set(ctx, "tun0", map[netip.Addr]uint32{five: 0x10006}))
	if after := list(); after != before {
		t.Errorf("the table was written though nothing differed:\n%s\n%s", before, after)
	}
	l.ok(classes.Set(ctx, "tun0", map[netip.Addr]uint32{five: 0x10007, six: 0x10006}))
	ping("172.11.0.5")
	if a, b := sent("1:6"), sent("1:7"); a != "1" || b != "1" {
		t.Errorf("after the pod's class changed: %s packets in class 1:6, %s in 1:7", a, b)
	}

	// A release before had another rule, for the same purpose.
	l.run(l.node, "nft", "flush chain ip "+classTable+" postrouting; add rule ip "+classTable+` postrouting iifname "tun0" accept comment "class of pods by tun0"`)
	l.ok(classes.Set(ctx, "tun0", map[netip.Addr]uint32{five: 0x10007, six: 0x10006}))
	if now := list(); !strings.Contains(now, "meta priority set") {
		t.Errorf("the rule of another release stays:\n%s", now)
	}

	// Somebody flushes the firewall, also that of an agent that starts.
	l.run(l.node, "nft", "flush", "ruleset")
	again, err := NewClasses(l.ns)
	l.ok(err)
	l.ok(again.Set(ctx, "tun0", map[netip.Addr]uint32{six: 0x10007}))
	ping("172.11.0.6")
	if b := sent("1:7"); b != "2" {
		t.Errorf("after a flush: %s packets in class 1:7", b)
	}
	l.ok(again.Remove(ctx))
	l.ok(again.Remove(ctx))
	if out := l.run(l.node, "nft", "list", "tables"); strings.Contains(out, classTable) {
		t.Errorf("tables after Remove:\n%s", out)
	}
	l.ok(again.Set(ctx, "tun0", map[netip.Addr]uint32{six: 0x10007}))
	if out := list(); !strings.Contains(out, "172.11.0.6 : 1:7") {
		t.Errorf("set again:\n%s", out)
	}
}
