package ovs

import (
	"fmt"
	"strings"
	"sync"
	"testing"
)

// Whoever makes the first port, and however many at once: there is one row for
// all, also for a client that has just started, and none after the last port.
func TestSharedQoSIsOneRow(t *testing.T) {
	c, o, _ := start(t)
	bridge(t, c, "br0")
	rows := func() []string {
		return strings.Fields(o.VSCtl("--columns=_uuid", "--bare", "list", "QoS"))
	}
	other := connect(t, o)
	each := func(do func(c *Client, name string) error) {
		t.Helper()
		var wg sync.WaitGroup
		for i, client := range []*Client{c, other} {
			for j := range 15 {
				wg.Go(func() {
					if err := do(client, fmt.Sprintf("p%d-%d", i, j)); err != nil {
						t.Error(err)
					}
				})
			}
		}
		wg.Wait()
	}
	until(t, other, "br0", func() bool { _, ok := other.Bridge("br0"); return ok })
	for round := range 3 {
		each(func(c *Client, name string) error {
			return c.AddPort(within(t), "br0", PortSpec{Name: name, Type: "internal", SharedQoS: "linux-noop"})
		})
		one := rows()
		if len(one) != 1 {
			t.Fatalf("round %d: QoS rows %v, want one", round, one)
		}
		if n := strings.Count(o.VSCtl("--columns=qos", "--bare", "list", "Port"), one[0]); n != 30 {
			t.Errorf("round %d: %d ports have the row, want 30", round, n)
		}
		late := connect(t, o)
		if err := late.AddPort(within(t), "br0", PortSpec{Name: "late", Type: "internal", SharedQoS: "linux-noop"}); err != nil {
			t.Fatal(err)
		}
		if p, _ := late.Port("late"); p.QoS == nil || p.QoS.Type != "linux-noop" {
			t.Errorf("round %d: QoS of a later port %+v", round, p.QoS)
		}
		if got := rows(); len(got) != 1 || got[0] != one[0] {
			t.Errorf("round %d: another client's QoS rows %v, want %v", round, got, one)
		}
		if err := late.DeletePort(within(t), "br0", "late"); err != nil {
			t.Fatal(err)
		}
		each(func(c *Client, name string) error { return c.DeletePort(within(t), "br0", name) })
		if got := rows(); len(got) != 0 {
			t.Fatalf("round %d: QoS rows %v after the last port", round, got)
		}
	}
}

// A port that comes while the last one goes loses neither the row nor itself.
func TestSharedQoSComesAsItGoes(t *testing.T) {
	c, o, _ := start(t)
	bridge(t, c, "br0")
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			name := fmt.Sprint("p", i)
			for range 25 {
				if err := c.AddPort(within(t), "br0", PortSpec{Name: name, Type: "internal", SharedQoS: "linux-noop"}); err != nil {
					t.Error(err)
				}
				if p, _ := c.Port(name); p.QoS == nil {
					t.Errorf("%s has no QoS", name)
				}
				if err := c.DeletePort(within(t), "br0", name); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got := vsctl(o, "--columns=_uuid", "--bare", "list", "QoS"); got != "" {
		t.Errorf("QoS rows left: %s", got)
	}
}

// Ports of an earlier version lack the QoS, and one may have another's.
func TestShareQoS(t *testing.T) {
	c, o, _ := start(t)
	ctx := within(t)
	bridge(t, c, "br0")
	names := []string{"a", "b", "c"}
	for _, name := range names {
		if err := c.AddPort(ctx, "br0", PortSpec{Name: name, Type: "internal"}); err != nil {
			t.Fatal(err)
		}
	}
	shape(t, c, o, "b", "type=linux-htb", "queues:0=@queue", "--", "--id=@queue", "create", "Queue", "other_config:max-rate=1000000")
	for _, want := range []bool{true, false} {
		if changed, err := c.ShareQoS(ctx, "br0", "linux-noop", append(names, "absent")); err != nil || changed != want {
			t.Errorf("changed %t, %v; want %t", changed, err, want)
		}
	}
	for _, name := range names {
		if p, _ := c.Port(name); p.QoS == nil || p.QoS.Type != "linux-noop" {
			t.Errorf("%s has QoS %+v", name, p.QoS)
		}
	}
	if got := vsctl(o, "--columns=type,external_ids", "--bare", "list", "QoS"); got != "linux-noop\nk8s-ovs=br0" {
		t.Errorf("QoS rows:\n%s", got)
	}
	if got := vsctl(o, "--columns=_uuid", "--bare", "list", "Queue"); got != "" {
		t.Errorf("Queue rows left: %s", got)
	}
	// One port may still have a QoS of its own, which goes with the bridge.
	shape(t, c, o, "a", "type=linux-noop", "other_config:x=y")
	if err := c.DeleteBridge(ctx, "br0"); err != nil {
		t.Fatal(err)
	}
	if got := vsctl(o, "--columns=_uuid", "--bare", "list", "QoS"); got != "" {
		t.Errorf("QoS rows left after the bridge: %s", got)
	}
}
