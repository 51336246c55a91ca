package agent

import (
	"testing"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/switchports"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
	"github.com/k8s-ovs/k8s-ovs/test/ovstest"
)

// The end of a connection does not tell of the one that follows it.
func TestEndedOnce(t *testing.T) {
	o := ovstest.Start(t)
	o.AddBridge("br0", "dummy")
	c := newConnection(switchports.NewEvents(), func() string { return o.Mgmt("br0") }, func(*of.Conn, of.PacketIn) {}, quiet())
	defer c.close()
	for range 2 {
		if err := c.dial(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-c.ended():
		t.Error("the connection is told to have ended, but it was the one before")
	default:
	}
	if c.software == "" {
		t.Error("the switch did not say its version")
	}
	if !c.alive() {
		t.Error("the second connection ended")
	}
}
