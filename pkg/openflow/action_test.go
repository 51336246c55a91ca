package openflow

import (
	"fmt"
	"strings"
	"testing"
)

// A packet whose in_port has been cleared may leave by where it came from.
func TestInPortIsWritable(t *testing.T) {
	o, c := startBridge(t)
	hairpin := []Action{SetField(InPort(0)), Output(1)}
	if err := c.Commit(testContext(t), []Mod{AddFlow(Flow{Match: NewMatch(InPort(1)), Actions: hairpin}),
		AddFlow(Flow{Match: NewMatch(InPort(2)), Actions: []Action{Load(Whole(FieldInPort), 0), Output(2)}})}); err != nil {
		t.Fatal(err)
	}
	for port := 1; port <= 2; port++ {
		trace := o.AppCtl("ofproto/trace", "br0", fmt.Sprintf("in_port=%d,udp", port))
		if !strings.Contains(trace, fmt.Sprintf("Datapath actions: %d\n", port)) {
			t.Errorf("port %d: %s", port, trace)
		}
	}
}
