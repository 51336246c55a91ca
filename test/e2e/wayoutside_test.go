package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

// TestWayOutsideIsRemembered: what went while no agent ran is missed by the next one, and a
// router that is away is not taken for a wrong one.
func TestWayOutsideIsRemembered(t *testing.T) {
	long(t)
	m := upMachine(t)
	ctx := t.Context()
	m.must(m.Agent("n1").Stop())
	m.shell("ip route del default")
	m.must(m.Agent("n1").StartUnready(ctx))
	m.await("a default route lost before the agent started", func() error {
		const want = "the node has lost its default route"
		if why := m.ready(); why == nil || !strings.Contains(why.Error(), want) {
			return fmt.Errorf("it says %v, want %q", why, want)
		}
		return nil
	})
	m.shell("ip route replace default via $VIA")
	m.await("the route again", m.ready)

	m.must(m.Agent("n1").Stop())
	m.must(ns.IP(ctx, m.UnderlayNetns(), fmt.Sprintf("addr flush to %s", netlab.Gateway)))
	m.shell("ip neigh flush dev $DEV to $VIA")
	m.must(m.Agent("n1").Start(ctx))
	// Whoever has never answered counts as wrong after 3 s, and is looked at every 5 s.
	for until := time.Now().Add(10 * time.Second); time.Now().Before(until); time.Sleep(100 * time.Millisecond) {
		if err := m.ready(); err != nil {
			t.Fatalf("the router is away: %v", err)
		}
	}
}

// TestExitCheck: who knows that a firewall misleads the check has the node ready, though the
// check goes on to say what it finds, or has it not look.
func TestExitCheck(t *testing.T) {
	long(t)
	m := upMachine(t)
	ctx := t.Context()
	const closed = "k8s_ovs_outside_closed"
	// Such a firewall lets in answers of connections that it has seen begin.
	m.shell(`nft 'add table ip fw; add chain ip fw f { type filter hook forward priority 5; }; add rule ip fw f iifname tun0 ct mark set 7; add rule ip fw f oifname tun0 ct mark != 7 drop'`)
	m.await("a firewall with a memory of its own", func() error {
		if err := m.well(); err != nil {
			t.Fatalf("pods reach the outside, and here not: %v", err)
		}
		if why := m.ready(); why == nil || !strings.Contains(why.Error(), "do not get back to them: somebody's firewall") || !strings.Contains(why.Error(), "--exit-check=warn") {
			return fmt.Errorf("it says %v", why)
		}
		return nil
	})
	for flag, want := range map[string]float64{"--exit-check=warn": 1, "--exit-check=off": 0} {
		m.must(m.Agent("n1").Stop())
		m.must(m.SetAgentArgs("n1", flag))
		m.must(m.Agent("n1").Start(ctx)) // until it is ready
		for until := time.Now().Add(machineSettles); time.Now().Before(until); time.Sleep(100 * time.Millisecond) {
			if err := m.ready(); err != nil {
				t.Fatalf("%s: %v", flag, err)
			}
		}
		if got := m.metric("n1", closed); got != want {
			t.Errorf("%s: %s is %v, want %v", flag, closed, got, want)
		}
	}
}
