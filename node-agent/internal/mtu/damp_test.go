package mtu

import (
	"net/netip"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// TestDamper: a record that swings has the others change a few times, and then not until it has rested; what counts of it meanwhile
// is the worst that it said. One that changes as nodes do that agree counts as it is.
func TestDamper(t *testing.T) {
	self, honest, swings := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3")
	at := func(size int) topology.NodeMTU { return topology.NodeMTU{Carries: size, Receives: size, Sends: size} }
	none := topology.NodeMTU{}
	now := time.Unix(0, 0)
	d := NewDamper(self)
	see := func(after time.Duration, swinging, other topology.NodeMTU) (changed bool) {
		before := d.View(now).Nodes[swings]
		now = now.Add(after)
		nodes := map[netip.Addr]topology.NodeMTU{self: at(1450), honest: other}
		if swinging != none {
			nodes[swings] = swinging
		}
		begun := d.See(now, topology.MTUs{Nodes: nodes})
		for _, ip := range begun {
			if ip != swings {
				t.Errorf("%s swings", ip)
			}
		}
		got := d.View(now).Nodes
		if got[honest] != other || got[self] != at(1450) {
			t.Errorf("the others' records count as %v", got)
		}
		if nodes[swings] != swinging {
			t.Error("what was seen is changed")
		}
		return got[swings] != before
	}
	for name, to := range map[string]topology.NodeMTU{"another size": at(1210), "no record": none} {
		changes := 0
		for i := range 1000 {
			record := at(1450)
			if i%2 == 1 {
				record = to
			}
			if see(100*time.Millisecond, record, at(1450)) {
				changes++
			}
		}
		if changes > 2*32 {
			t.Errorf("%s: 1,000 changes of a record count as %d", name, changes)
		}
		want := at(1450)
		if to != none {
			want.Carries, want.Receives = 1210, 1210
		}
		if got := d.View(now).Nodes[swings]; got != want {
			t.Errorf("%s: a record that swings counts as %+v, want %+v", name, got, want)
		}
		see(30*time.Second, at(1300), at(1450))
		now = now.Add(59 * time.Second)
		if got := d.View(now).Nodes[swings]; got.Carries != want.Carries && got.Carries != 1300 || got.Sends != 1450 {
			t.Errorf("%s: before it has rested it counts as %+v", name, got)
		}
		now = now.Add(2 * time.Second)
		if got := d.View(now).Nodes[swings]; got != at(1300) {
			t.Errorf("%s: after it has rested it counts as %+v", name, got)
		}
		now = now.Add(10 * time.Minute)
	}
	for i := range 100 { // all nodes agree on something new, every half minute
		for _, size := range []int{1300 + i, 1301 + i, 1302 + i} {
			see(10*time.Second, at(1450), at(size))
		}
	}
}

// TestDamperForgets: of nodes that are gone nothing stays.
func TestDamperForgets(t *testing.T) {
	d := NewDamper(netip.Addr{})
	now := time.Unix(0, 0)
	for i := range 1000 {
		ip := netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)})
		d.See(now.Add(time.Duration(i)*time.Second), topology.MTUs{Nodes: map[netip.Addr]topology.NodeMTU{ip: {Carries: 1450, Receives: 1450, Sends: 1450}}})
	}
	if len(d.peers) > 100 {
		t.Errorf("%d nodes are remembered", len(d.peers))
	}
}
