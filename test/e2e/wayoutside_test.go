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
