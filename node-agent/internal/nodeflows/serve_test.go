package nodeflows

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/flowstore"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
)

// TestServe: namespaces that have services have the flows that say who may use
// them, beside those of their pods; each change is one bundle.
func TestServe(t *testing.T) {
	ctx := context.Background()
	o, table, obs := start(t)
	table.SetServiceProxy(pipeline.OVS)
	conn := connect(t, o, table)
	serve := func(namespaces ...string) error {
		set := map[string]bool{}
		for _, n := range namespaces {
			set[n] = true
		}
		return table.Serve(ctx, set)
	}
	if err := serve("a"); !errors.Is(err, flowstore.ErrNotReady) {
		t.Errorf("Serve without records: %v, want ErrNotReady", err)
	}
	ids := map[string]netid.ID{"a": 10, "b": netid.Global}
	_, _, _ = table.SetRecords(ctx, records(1, ids))
	if err := table.SetPorts(ctx, desired.Ports{Tunnels: map[string]uint32{desired.NodeTunnel: 1}, Gateway: 2}); err != nil {
		t.Fatal(err)
	}
	empty := flows(t, conn)
	// step is one change, after which so many flows of table 23 are there, and one of
	// them has the text.
	step := func(err error, want int, text string) {
		t.Helper()
		if err != nil || obs.bundles != 1 {
			t.Fatalf("%d bundles (%v), want one", obs.bundles, err)
		}
		obs.bundles = 0
		got := o.OFCtl("dump-flows", "br0", "table=23,ip")
		if n := strings.Count(got, "table=23"); n != want || !strings.Contains(got, text) {
			t.Fatalf("%d flows accept, want %d with %q:\n%s", n, want, text, got)
		}
	}
	obs.bundles = 0
	step(serve("a", "b"), 3, "reg0=0xa")
	step(table.Attach(ctx, pod("a", 2)), 3, "reg0=0xa")
	ids["a"] = 11
	_, _, err := table.SetRecords(ctx, records(2, ids))
	step(err, 3, "reg0=0xb")
	step(serve("b"), 1, "")
	slot, ok := table.tenants.slots["a"]
	if !ok {
		t.Error("a namespace with pods lost its slot")
	}
	step(serve("a", "b"), 3, "reg0=0xb")
	step(detach(t, table, 2), 3, "reg0=0xb")
	if again, ok := table.tenants.slots["a"]; !ok || again != slot {
		t.Errorf("slot %d, then %d (%t)", slot, again, ok)
	}
	if err := serve("a", "b"); err != nil || obs.bundles != 0 {
		t.Errorf("%d bundles for nothing (%v)", obs.bundles, err)
	}
	storeOf(table).Disconnect()
	if err := serve("a"); !errors.Is(err, flowstore.ErrDisconnected) {
		t.Errorf("Serve without a switch: %v, want ErrDisconnected", err)
	}
	if err := reconnect(ctx, table, conn); err != nil {
		t.Fatal(err)
	}
	obs.bundles = 0
	step(serve(), 0, "")
	if _, ok := table.tenants.slots["a"]; ok {
		t.Error("a namespace with nothing keeps a slot")
	}
	if diff := cmp.Diff(empty, flows(t, conn)); diff != "" {
		t.Errorf("left behind:\n%s", diff)
	}
}

// TestLeavesServicesAlone: flows of services are another table's.
func TestLeavesServicesAlone(t *testing.T) {
	ctx := context.Background()
	o, table, obs := start(t)
	connect(t, o, table)
	_, _, _ = table.SetRecords(ctx, records(1, nil))
	if err := table.SetPorts(ctx, desired.Ports{Tunnels: map[string]uint32{desired.NodeTunnel: 1}, Gateway: 2}); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []pipeline.Kind{pipeline.KindService, pipeline.KindEndpoint, pipeline.KindLearned} {
		f := pipeline.Nudge()
		f.Table, f.Cookie = 24, pipeline.Cookie{Kind: kind}.Encode()
		f.Priority = uint16(kind)
		o.OFCtl("add-flow", "br0", f.String())
	}
	if err := table.Resync(ctx); err != nil || obs.repaired != 0 {
		t.Errorf("%d repairs (%v), want none", obs.repaired, err)
	}
}
