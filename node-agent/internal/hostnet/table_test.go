package hostnet

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/fairness"
	"github.com/k8s-ovs/k8s-ovs/pkg/policy"
)

// Each table that somebody put to sleep is made anew, awake: nft lists its rules as if they were in force.
func TestTablesAsleep(t *testing.T) {
	l := newLab(t)
	ctx := t.Context()
	gate, err := NewGate(l.ns)
	l.ok(err)
	classes, err := NewClasses(l.ns)
	l.ok(err)
	exit, err := NewExit(l.ns)
	l.ok(err)
	end, err := NewTunnelEnd(l.ns)
	l.ok(err)
	judge, err := NewJudge(l.ns)
	l.ok(err)
	pod := netip.MustParseAddr("172.11.0.5")
	some := fairness.Allowance{Rate: 1, Burst: 3}
	ensure := func() error { _, err := l.net.Ensure(ctx, l.spec); return err }
	for name, set := range map[string]func() error{
		"ip " + table: ensure, "ip6 " + table: ensure, "bridge " + table: ensure,
		"ip " + gateTable: func() error {
			return gate.Set(ctx, "tun0", some, map[string]Passage{"red": {Allowance: some, Addresses: []netip.Addr{pod}}})
		},
		"ip " + classTable: func() error { return classes.Set(ctx, "tun0", map[netip.Addr]uint32{pod: 1<<16 | 5}) },
		"ip " + exitTable: func() error {
			_, err := exit.Passed(ctx, Way{Gateway: "tun0", Probe: netip.MustParseAddr("172.11.3.254")})
			return err
		},
		"ip " + tunnelEndTable: func() error {
			end.Forget()
			_, err := end.Ended(ctx)
			return err
		},
		"ip " + judgeTable: func() error {
			judge.Forget()
			return judge.Set(ctx, Senders{Reach: map[netip.Addr]policy.Reach{pod: {{First: pod, Last: pod, Ports: policy.Ports{Others: true}}}}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			l.t = t
			list := func() string { return withoutCounters(l.run(l.node, "nft", "list table "+name)) }
			l.ok(set())
			awake := list()
			l.run(l.node, "nft", "add table "+name+" { flags dormant; }")
			if !strings.Contains(list(), "dormant") {
				t.Fatalf("it does not sleep: %s", list())
			}
			l.ok(set())
			if got := list(); got != awake {
				t.Errorf("the table is\n%s\nwas\n%s", got, awake)
			}
		})
	}
}
