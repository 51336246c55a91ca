package nodeflows

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/flowstore"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
	"github.com/k8s-ovs/k8s-ovs/test/ovstest"
)

// Who may use services stays as it is when an agent starts whom nobody has told
// of services yet; the records are followed all the same.
func TestRecall(t *testing.T) {
	o, before, _ := start(t)
	begin := func(table *Table, blue netid.ID) {
		table.SetServiceProxy(pipeline.OVS)
		table.Load([]desired.Attached{pod("red", 2)})
		follow(t, table, blue)
	}
	begin(before, 11)
	conn := connect(t, o, before)
	serve(t, before, "red", "blue")
	want := flows(t, conn)

	restarted := newTable(&observer{})
	begin(restarted, 11)
	connect(t, o, restarted)
	if diff := cmp.Diff(want, flows(t, conn)); diff != "" {
		t.Errorf("the start of an agent changed flows (-before +after):\n%s", diff)
	}

	// blue changed its tenant while no agent ran.
	restarted = newTable(&observer{})
	begin(restarted, 13)
	connect(t, o, restarted)
	got := flows(t, conn)
	follow(t, before, 13)
	if diff := cmp.Diff(flows(t, conn), got); diff != "" {
		t.Errorf("started after a change of tenants (-an agent that ran +one that did not):\n%s", diff)
	}

	// What it is told counts.
	serve(t, restarted, "green")
	if diff := cmp.Diff(slots("green"), serving(t, o)); diff != "" {
		t.Errorf("told that green serves (-want +got):\n%s", diff)
	}
	serve(t, restarted)
	if diff := cmp.Diff(slots(), serving(t, o)); diff != "" {
		t.Errorf("told that nobody serves (-want +got):\n%s", diff)
	}
}

// An agent that is told at once that nobody serves does not keep what it found.
func TestRecallNobody(t *testing.T) {
	o, before, _ := start(t)
	for _, table := range []*Table{before, newTable(&observer{})} {
		table.SetServiceProxy(pipeline.OVS)
		follow(t, table, 11)
		connect(t, o, table)
		if table == before {
			serve(t, table, "red")
		} else {
			serve(t, table)
		}
	}
	if diff := cmp.Diff(slots(), serving(t, o)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// An agent that is told who serves while there is no switch still finds out who did.
func TestRecallAfterFailure(t *testing.T) {
	o, before, _ := start(t)
	restarted := newTable(&observer{})
	for _, table := range []*Table{before, restarted} {
		table.SetServiceProxy(pipeline.OVS)
		follow(t, table, 11)
	}
	connect(t, o, before)
	serve(t, before, "red", "blue")
	if err := restarted.Serve(t.Context(), map[string]bool{"green": true}); !errors.Is(err, flowstore.ErrDisconnected) {
		t.Errorf("without a switch: %v", err)
	}
	connect(t, o, restarted)
	if diff := cmp.Diff(slots("red", "blue"), serving(t, o)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// follow gives the table records in which blue has a netID.
func follow(t *testing.T, table *Table, blue netid.ID) {
	t.Helper()
	if err := table.SetPorts(t.Context(), desired.Ports{Tunnels: map[string]uint32{desired.NodeTunnel: 1}, Gateway: 2}); err != nil {
		t.Fatal(err)
	}
	_, _, err := table.SetRecords(t.Context(), records(1, map[string]netid.ID{"red": 10, "blue": blue, "green": 12}))
	if err != nil && table.store.Connected() {
		t.Fatal(err)
	}
}

func serve(t *testing.T, table *Table, namespaces ...string) {
	t.Helper()
	all := map[string]bool{}
	for _, n := range namespaces {
		all[n] = true
	}
	if err := table.Serve(t.Context(), all); err != nil {
		t.Fatal(err)
	}
}

// serving are the slots that the switch has the services of.
func serving(t *testing.T, o *ovstest.OVS) map[uint32]bool {
	t.Helper()
	conn, err := of.Dial(t.Context(), o.Mgmt("br0"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stats, err := conn.Flows(t.Context(), of.FlowFilter{})
	if err != nil {
		t.Fatal(err)
	}
	all := map[uint32]bool{}
	for _, s := range stats {
		if c := pipeline.DecodeCookie(s.Cookie); c.Kind == pipeline.KindTenant && s.Table == pipeline.TableServiceTenant {
			all[c.Object] = true
		}
	}
	return all
}

func slots(namespaces ...string) map[uint32]bool {
	all := map[uint32]bool{}
	for _, n := range namespaces {
		all[desired.Slots{}.Assign(n)] = true
	}
	return all
}
