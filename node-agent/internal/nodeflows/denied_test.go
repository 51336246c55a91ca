package nodeflows

import (
	"errors"
	"strings"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
)

// telling counts the flows and the meters by which the agent is told of what policies deny.
func telling(t *testing.T, conn *of.Conn) (told, metered int) {
	t.Helper()
	for _, f := range flows(t, conn) {
		if strings.Contains(f, "CONTROLLER") {
			told++
		}
	}
	all, err := conn.Meters(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range all {
		if pipeline.OfDenied(m.ID) {
			metered++
		}
	}
	return told, metered
}

// The agent is told of what policies deny where that is asked for and the switch has meters; an
// agent that starts without that takes both away.
func TestTellDenied(t *testing.T) {
	o, table, _ := start(t)
	o.AddDummyPort("br0", "p12", 12)
	table.TellDenied()
	sw := &metered{Conn: connect(t, o, table), refuseDenied: true}
	if err := reconnect(t.Context(), table, sw); err != nil {
		t.Fatal(err)
	}
	if _, _, err := table.SetRecords(t.Context(), records(1, map[string]netid.ID{"a": 10})); err != nil && table.model != nil {
		t.Fatal(err)
	}
	ports := desired.Ports{Tunnels: map[string]uint32{desired.NodeTunnel: 1}, Gateway: 2}
	_ = table.SetPorts(t.Context(), ports) // finds out
	attach(t, table, pod("a", 2))
	var refused *of.SwitchError
	if _, err := table.Denied(t.Context()); !errors.As(err, &refused) {
		t.Errorf("a switch without such meters: %v", err)
	}
	if told, metered := telling(t, sw.Conn); told+metered > 0 {
		t.Errorf("a switch that refuses has %d flows and %d meters", told, metered)
	}

	sw.refuseDenied = false
	if err := reconnect(t.Context(), table, sw); err != nil {
		t.Fatal(err)
	}
	if told, metered := telling(t, sw.Conn); told != 2*metered || metered == 0 {
		t.Errorf("there are %d flows and %d meters", told, metered)
	}
	if n, err := table.Denied(t.Context()); n != 0 || err != nil {
		t.Errorf("denied: %d, %v", n, err)
	}
	if err := table.Resync(t.Context()); err != nil {
		t.Error(err)
	}

	restarted := newTable(&observer{})
	restarted.Load([]desired.Attached{pod("a", 2)})
	conn := connect(t, o, restarted)
	_, _, _ = restarted.SetRecords(t.Context(), records(1, map[string]netid.ID{"a": 10}))
	if err := restarted.SetPorts(t.Context(), ports); err != nil {
		t.Fatal(err)
	}
	if err := restarted.Resync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if told, metered := telling(t, conn); told+metered > 0 {
		t.Errorf("an agent that is not to be told has %d flows and %d meters", told, metered)
	}
}
