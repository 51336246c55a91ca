package nodeflows

import (
	"context"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// TestNamesake: a pod that outlives its Namespace has no flow as soon as another one has the
// name, also in an agent that starts then. One that is found to be of the namesake after all
// has its flows again.
func TestNamesake(t *testing.T) {
	ctx := context.Background()
	o, table, obs := start(t)
	conn := connect(t, o, table)
	of := func(p desired.Attached, uid string) desired.Attached { p.NamespaceUID = uid; return p }
	old, blue, unnoted := of(pod("red", 1), "A"), of(pod("blue", 3), "C"), pod("red", 4)
	with := func(revision int64, id netid.ID, uid string) topology.Snapshot {
		s := records(revision, map[string]netid.ID{"blue": 8})
		s.Namespaces["red"] = topology.Namespace{NetName: "red", Effective: &id, UID: uid}
		return s
	}
	bring := func(table *Table, s topology.Snapshot, want ...desired.Attached) {
		t.Helper()
		if _, _, err := table.SetRecords(ctx, s); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(expect(t, s, want), flows(t, conn)); diff != "" {
			t.Fatal(diff)
		}
	}
	table.Load([]desired.Attached{old, blue, unnoted})
	if err := table.SetPorts(ctx, desired.Ports{Tunnels: map[string]uint32{desired.NodeTunnel: 1}, Gateway: 2}); err != nil {
		t.Fatal(err)
	}
	bring(table, with(1, 7, "A"), old, blue, unnoted)
	bring(table, with(2, 9, "B"), blue, unnoted)
	fresh := of(pod("red", 2), "B")
	if err := table.Attach(ctx, fresh); err != nil {
		t.Fatal(err)
	}
	bring(table, with(3, 9, "B"), blue, unnoted, fresh)
	if diff, err := table.Check(ctx, old.Port); err != nil || len(diff) != 1 || !strings.Contains(diff[0], "delete the pod") {
		t.Errorf("CHECK says %q, %v", diff, err)
	}
	// The netID of both may be the same.
	bring(table, with(4, 7, "B"), blue, unnoted, fresh)

	table = newTable(obs)
	table.Load([]desired.Attached{old, blue, unnoted, fresh})
	if err := reconnect(ctx, table, conn); err != nil {
		t.Fatal(err)
	}
	if err := table.SetPorts(ctx, desired.Ports{Tunnels: map[string]uint32{desired.NodeTunnel: 1}, Gateway: 2}); err != nil {
		t.Fatal(err)
	}
	bring(table, with(4, 7, "B"), blue, unnoted, fresh)
	found := of(old, "B")
	if err := table.Attach(ctx, found); err != nil {
		t.Fatal(err)
	}
	bring(table, with(5, 7, "B"), found, blue, unnoted, fresh)
	single := with(6, 7, "C")
	single.Config.PluginName = topology.SingleTenant
	bring(table, single, found, blue, unnoted, fresh)
}
