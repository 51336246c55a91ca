package ovs

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// Ports that come at once share a transaction; what one is refused for is its own.
func TestPortsAtOnce(t *testing.T) {
	c, o, _ := start(t)
	ctx := within(t)
	bridge(t, c, "br0")
	bridge(t, c, "br1")
	port := func(bridge, name string, number int) newPort {
		return newPort{bridge, PortSpec{Name: name, Type: "internal", OfportRequest: uint32(number), SharedQoS: "linux-noop"}}
	}
	got := c.addPorts(ctx, []newPort{
		port("br0", "a", 10), port("br0", "bad", 70000), port("br1", "b", 10), port("none", "c", 10), port("br0", "d", 11), port("br1", "a", 12),
	})
	for i, err := range got {
		switch {
		case i == 1 && (err == nil || !strings.Contains(err.Error(), "port bad to bridge br0")),
			i == 3 && !errors.Is(err, ErrNoBridge), i != 1 && i != 3 && err != nil:
			t.Errorf("port %d: %v", i, err)
		}
	}
	for name, want := range map[string]Port{"a": {Bridge: "br1", Ofport: 12}, "b": {Bridge: "br1", Ofport: 10}, "d": {Bridge: "br0", Ofport: 11}} {
		if n, err := c.WaitOfport(ctx, name); n != want.Ofport || err != nil {
			t.Errorf("%s has number %d, %v", name, n, err)
		}
		if p, _ := c.Port(name); p.Bridge != want.Bridge || p.QoS == nil {
			t.Errorf("%s: %+v", name, p)
		}
	}
	names := []string{"a", "b", "never", "d"}
	config, err := c.DeletePorts(ctx, "br1", names)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.WaitApplied(ctx, config); err != nil {
		t.Fatal(err)
	}
	if left := vsctl(o, "list-ports", "br0") + vsctl(o, "list-ports", "br1"); left != "d" {
		t.Errorf("ports %q, want d alone, which is on the other bridge", left)
	}
	// The switch itself has closed them.
	if shown := o.AppCtl("dpif/show"); strings.Contains(shown, " a ") || strings.Contains(shown, " b ") || !strings.Contains(shown, " d ") {
		t.Errorf("the datapath has\n%s", shown)
	}
	if _, err := c.DeletePorts(ctx, "br0", names); err != nil {
		t.Fatal(err)
	}
	if again, err := c.DeletePorts(ctx, "br0", names); again != 0 || err != nil {
		t.Errorf("nothing to delete: %d, %v", again, err)
	}
	if rows := vsctl(o, "--columns=_uuid", "--bare", "list", "QoS"); rows != "" {
		t.Errorf("QoS rows %s are left", rows)
	}
	if err := c.WaitApplied(ctx, 0); err != nil {
		t.Error(err)
	}
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	if err := c.WaitApplied(short, config+1000); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a configuration that never comes: %v", err)
	}
}

func TestByBridge(t *testing.T) {
	var ports []newPort
	for _, p := range []string{"x/a", "y/b", "x/c", "y/a", "x/e", "x/a", "x/c", "y/f"} {
		bridge, name, _ := strings.Cut(p, "/")
		ports = append(ports, newPort{bridge, PortSpec{Name: name}})
	}
	var got []string
	for _, group := range byBridge(ports) {
		got = append(got, fmt.Sprint(group))
	}
	if diff := cmp.Diff([]string{"[0 2 4]", "[1 3 7]", "[5 6]"}, got); diff != "" {
		t.Errorf("%s", diff)
	}
}
