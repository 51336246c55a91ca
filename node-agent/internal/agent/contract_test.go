package agent

import (
	"errors"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/flowstore"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/nodeflows"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
	"github.com/k8s-ovs/k8s-ovs/test/ovstest"
)

// unobserved is nobody who watches a flow table.
type unobserved struct{}

func (unobserved) Committed(string, int, float64)  {}
func (unobserved) Repaired(flowstore.Kind, int)    {}
func (unobserved) Dropped(pipeline.Reason, uint64) {}

// TestTableContract: what the loop relies on of a flow table holds for the real one and for the fake that
// the loop's stories run with.
func TestTableContract(t *testing.T) {
	t.Run("fake", func(t *testing.T) {
		m := newMachine()
		conn := &fakeConn{machine: m}
		table := &fakeTable{self: labSelf.HostIP, machine: newMachine()}
		tableContract(t, table, table, func() flowstore.Switch {
			if err := conn.dial(t.Context()); err != nil {
				t.Fatal(err)
			}
			return conn.flows()
		})
	})
	t.Run("real", func(t *testing.T) {
		o := ovstest.Start(t)
		o.AddBridge("br0", "dummy")
		store := flowstore.New(flowstore.Config{Areas: []flowstore.Area{nodeflows.Area()}, Observer: unobserved{}})
		tableContract(t, store, nodeflows.New(labSelf.HostIP, []tunnel.Port{4789}, store, unobserved{}), func() flowstore.Switch {
			conn, err := of.Dial(t.Context(), o.Mgmt("br0"))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = conn.Close() })
			return conn
		})
	})
}

func tableContract(t *testing.T, store flowStore, table flowTable, dial func() flowstore.Switch) {
	ctx := t.Context()
	connect := func() error {
		store.Connect(dial())
		return table.Connected(ctx)
	}
	size := func() int { return store.Size(nodeflows.AreaName) }
	is := func(what string, err, want error) {
		t.Helper()
		if !errors.Is(err, want) || (err != nil) != (want != nil) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
	}
	// sets is SetRecords, and whether it tells that flows changed.
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
	is("resync before there is a picture", table.Resync(ctx), flowstore.ErrNotReady)
	is("connection before there is a picture", connect(), nil)
	is("ports before records", table.SetPorts(ctx, desired.Ports{Tunnels: map[string]uint32{desired.NodeTunnel: 1}, Gateway: 2}), nil)
	is("the tunnels' port before records", table.SetUDPPorts(ctx, []tunnel.Port{4790}), nil)
	if size() != 0 || len(table.Peers()) != 0 {
		t.Errorf("before there are records: %d flows, peers %v", size(), table.Peers())
	}
	sets("first records", 1, 0, nil, true)
	sets("the same again", 1, 0, nil, false)
	if size() == 0 || len(table.Peers()) != 0 {
		t.Errorf("a node alone: %d flows, peers %v", size(), table.Peers())
	}
	is("resync", table.Resync(ctx), nil)
	is("nudge", table.Nudge(ctx), nil)
	store.Disconnect()
	is("nudge without a switch", table.Nudge(ctx), flowstore.ErrDisconnected)
	sets("records without a switch", 2, 1, flowstore.ErrDisconnected, false)
	is("another port of the tunnels without a switch", table.SetUDPPorts(ctx, []tunnel.Port{8472}), flowstore.ErrDisconnected)
	is("the same again", table.SetUDPPorts(ctx, []tunnel.Port{8472}), nil)
	if len(table.Peers()) != 1 {
		t.Errorf("the picture does not follow while the switch is away: peers %v", table.Peers())
	}
	is("connection anew", connect(), nil)
	sets("what the connection brought", 2, 1, nil, true)
	sets("the same in the end", 2, 1, nil, false)
}
