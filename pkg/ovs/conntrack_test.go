package ovs

import (
	"os"
	"testing"
)

func TestUserspaceConnections(t *testing.T) {
	if os.Getenv("NETLAB_DATAPATH") == "system" {
		t.Skip("the userspace datapath's; the tests of a machine without the kernel's run it")
	}
	c, o, _ := start(t)
	ctx := within(t)
	if _, _, err := c.UserspaceConnections(ctx); err == nil {
		t.Error("without a bridge, and no error")
	}
	o.AddBridge("br-user", "netdev")
	o.AppCtl("dpctl/ct-set-maxconns", "netdev@ovs-netdev", "20000")
	used, size, err := c.UserspaceConnections(ctx)
	if err != nil || used != 0 || size != 20000 {
		t.Errorf("%d of %d, %v; want 0 of 20000", used, size, err)
	}
}
