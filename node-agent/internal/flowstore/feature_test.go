package flowstore_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/flowstore"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
)

// A feature: each greeter has some ports whose packets it sends through its group. This is
// all of it, but for what makes its flows: an area that tells them from others,
const greeterCookie = 0x20 << 40

var greeters = flowstore.Area{
	Name: "greeters", Cookie: greeterCookie, Mask: greeterCookie | otherCookie, Kinds: []flowstore.Kind{"greeter"}, Groups: true,
}

// and what a greeter wants.
func greeter(group uint32, ports ...uint32) (w flowstore.Want) {
	w.Groups = []of.GroupEntry{{ID: group, Type: of.GroupSelect, Buckets: []of.Bucket{{Weight: 1, Actions: []of.Action{of.Output(of.PortInPort)}}}}}
	for _, p := range ports {
		w.Flows = append(w.Flows, of.Flow{Table: 60, Priority: 1, Cookie: greeterCookie | uint64(group), Match: of.NewMatch(of.InPort(p)), Actions: []of.Action{of.Group(group)}})
	}
	return w
}

// TestNewFeature: a feature needs a producer and nothing else. It is beside another area
// that is never complete, as services are while the API server is away.
func TestNewFeature(t *testing.T) {
	other := other
	other.Groups = false // a leftover group could be its own
	b := newBridge(t, greeters, other)
	b.OFCtl("add-flow", "br0", fmt.Sprintf("cookie=%#x,table=70,actions=drop", uint64(otherCookie)))
	start := func(names map[string]flowstore.Want) {
		t.Helper()
		b.restart()
		b.set(names, "greeter")
	}
	requireLines := func(when string, want ...string) {
		t.Helper()
		b.require(when, append(want, "cookie=0x100000000000,table=70,priority=32768,actions=drop")...)
	}
	flow := func(group, port int) string {
		return fmt.Sprintf("cookie=%#x,table=60,priority=1,in_port=%d,actions=group:%d", greeterCookie|group, port, group)
	}
	group := func(n int) string {
		return fmt.Sprintf("group_id=%d,type=select,bucket=weight:1,actions=IN_PORT", n)
	}

	start(map[string]flowstore.Want{"ann": greeter(1, 11, 12), "bob": greeter(2, 21)})
	requireLines("set", flow(1, 11), flow(1, 12), flow(2, 21), group(1), group(2))

	b.set(map[string]flowstore.Want{"ann": greeter(1, 12, 13)})
	requireLines("changed", flow(1, 12), flow(1, 13), flow(2, 21), group(1), group(2))

	b.set(map[string]flowstore.Want{"bob": {}})
	requireLines("removed", flow(1, 12), flow(1, 13), group(1))

	bundles := b.bundles
	start(map[string]flowstore.Want{"ann": greeter(1, 12, 13)})
	if b.bundles != bundles {
		t.Errorf("%d bundles at a start that finds all as it should be", b.bundles-bundles)
	}
	start(map[string]flowstore.Want{"cat": greeter(3, 31)})
	requireLines("started over what ann left", flow(3, 31), group(3))

	b.OFCtl("del-groups", "br0") // takes the flow along
	b.OFCtl("add-flow", "br0", strings.Replace(flow(9, 91), "group:9", "drop", 1))
	b.resync("greeters")
	requireLines("somebody changed three things", flow(3, 31), group(3))
	if b.repaired["greeter"] != 3 {
		t.Errorf("counted %v, want 3", b.repaired)
	}
}
