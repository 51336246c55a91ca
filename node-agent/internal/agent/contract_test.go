package agent

import (
	"errors"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/flowtable"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
	"github.com/k8s-ovs/k8s-ovs/test/ovstest"
)

// unobserved is nobody who watches a flow table.
type unobserved struct{}

func (unobserved) Committed(int, float64)          {}
func (unobserved) Repaired(int)                    {}
func (unobserved) Dropped(pipeline.Reason, uint64) {}

// TestTableContract: what the loop relies on of a flow table holds for the real one and for the fake that
// the loop's stories run with.
func TestTableContract(t *testing.T) {
	t.Run("fake", func(t *testing.T) {
		m := newMachine()
		conn := &fakeConn{machine: m}
		tableContract(t, &fakeTable{self: labSelf.HostIP}, func() flowtable.Switch {
			if err := conn.dial(t.Context()); err != nil {
				t.Fatal(err)
			}
			return conn.flows()
		})
	})
	t.Run("real", func(t *testing.T) {
		o := ovstest.Start(t)
		o.AddBridge("br0", "dummy")
		tableContract(t, flowtable.New(labSelf.HostIP, 4789, unobserved{}, func() float64 { return 0 }), func() flowtable.Switch {
			conn, err := of.Dial(t.Context(), o.Mgmt("br0"))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = conn.Close() })
			return conn
		})
	})
}

func tableContract(t *testing.T, table flowTable, dial func() flowtable.Switch) {
	ctx := t.Context()
	is := func(what string, err, want error) {
		t.Helper()
		if !errors.Is(err, want) || (err != nil) != (want != nil) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
	}
	// sets is SetRecords, and whether it changed flows.
	sets := func(what string, revision int64, namespaces int, want error, changes bool) {
		t.Helper()
		nodes := snapshot(revision, namespaces, labSelf)
		if namespaces > 0 {
			nodes = snapshot(revision, namespaces, labSelf, labPeer)
		}
		_, changed, err := table.SetRecords(ctx, nodes)
		is(what, err, want)
		if changed != changes {
			t.Errorf("%s: flows changed: %t", what, changed)
		}
	}
	is("resync before there is a picture", table.Resync(ctx), flowtable.ErrNotReady)
	is("connection before there is a picture", table.Connect(ctx, dial()), nil)
	is("ports before records", table.SetPorts(ctx, desired.Ports{Tunnel: 1, Gateway: 2}), nil)
	if table.Size() != 0 || len(table.Peers()) != 0 {
		t.Errorf("before there are records: %d flows, peers %v", table.Size(), table.Peers())
	}
	sets("first records", 1, 0, nil, true)
	sets("the same again", 1, 0, nil, false)
	if table.Size() == 0 || len(table.Peers()) != 0 {
		t.Errorf("a node alone: %d flows, peers %v", table.Size(), table.Peers())
	}
	is("resync", table.Resync(ctx), nil)
	is("nudge", table.Nudge(ctx), nil)
	table.Disconnect()
	is("nudge without a switch", table.Nudge(ctx), flowtable.ErrDisconnected)
	sets("records without a switch", 2, 1, flowtable.ErrDisconnected, false)
	if len(table.Peers()) != 1 {
		t.Errorf("the picture does not follow while the switch is away: peers %v", table.Peers())
	}
	before := table.Size()
	is("connection anew", table.Connect(ctx, dial()), nil)
	if table.Size() <= before {
		t.Errorf("%d flows after the connection, %d before: what came meanwhile is missing", table.Size(), before)
	}
	sets("what the connection brought", 2, 1, nil, false)
}
