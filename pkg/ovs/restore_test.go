package ovs

import "testing"

func TestRestoreWait(t *testing.T) {
	c, o, _ := start(t)
	ctx := within(t)
	is := func(when string, waits, ours bool) {
		t.Helper()
		until(t, c, when, func() bool { w, u := c.RestoreWait(); return w == waits && u == ours })
	}
	is("at first", false, false)
	vsctl(o, "set", "Open_vSwitch", ".", "other_config:flow-restore-wait=true", "other_config:max-idle=5000")
	is("somebody's", true, false)
	vsctl(o, "set", "Open_vSwitch", ".", "other_config:k8s-ovs-restoring=true")
	is("ours", true, true)
	for range 2 {
		if err := c.EndRestoreWait(ctx); err != nil {
			t.Fatal(err)
		}
		is("ended", false, false)
	}
	if got := vsctl(o, "get", "Open_vSwitch", ".", "other_config"); got != `{max-idle="5000"}` {
		t.Errorf("other_config is %s", got)
	}
}

// TestPortEndsRestoreWait: what is cached leads to ports by numbers, and a new port may get that of one
// that is gone.
func TestPortEndsRestoreWait(t *testing.T) {
	c, o, _ := start(t)
	ctx := within(t)
	for _, add := range []struct {
		what string
		do   func() error
	}{
		{"a bridge", func() error {
			_, err := c.EnsureBridge(ctx, BridgeSpec{Name: "br-r", DatapathType: DatapathNetdev, FailMode: FailSecure})
			return err
		}},
		{"a port that is to be there", func() error {
			_, err := c.EnsurePort(ctx, "br-r", PortSpec{Name: "p1", Type: "internal"})
			return err
		}},
		{"a port", func() error { return c.AddPort(ctx, "br-r", PortSpec{Name: "p2", Type: "internal"}) }},
	} {
		vsctl(o, "set", "Open_vSwitch", ".", "other_config:flow-restore-wait=true", "other_config:k8s-ovs-restoring=true")
		if err := add.do(); err != nil {
			t.Fatal(err)
		}
		if got := vsctl(o, "get", "Open_vSwitch", ".", "other_config"); got != "{}" {
			t.Errorf("with %s other_config is %s", add.what, got)
		}
	}
}
