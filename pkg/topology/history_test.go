package topology

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
)

// TestHistoryHolds: what came later holds all that was before, what was restored from a backup
// lacks what was written since, until that is put back.
func TestHistoryHolds(t *testing.T) {
	write := func(h History, rev int64) History {
		h.Now.Revision = rev
		return h
	}
	first := write(History{}.Begin("a"), 10)
	backup := write(first.Begin("b"), 20)
	lost := write(backup, 25)
	restored := write(backup.Begin("c"), 30) // its revisions may be higher by now
	back := restored.Take([]Point{lost.Now})
	other := write(History{}.Begin("x"), 99)
	for name, tc := range map[string]struct {
		h    History
		at   Point
		want bool
	}{
		"nothing was read before":          {History{}, Point{}, true},
		"the same":                         {backup, backup.Now, true},
		"a write later":                    {lost, backup.Now, true},
		"terms later":                      {restored, first.Now, true},
		"the backup":                       {restored, backup.Now, true},
		"a write after the backup":         {restored, lost.Now, false},
		"a term after the backup":          {restored, write(lost.Begin("d"), 28).Now, false},
		"the same leader, one write less":  {backup, lost.Now, false},
		"put back":                         {back, lost.Now, true},
		"put back, but not all":            {back, write(lost, 26).Now, false},
		"put back, of the present leader":  {restored.Take([]Point{{"c", 1 << 40}}), Point{"c", 31}, false},
		"put back, and a leader later":     {write(back.Begin("e"), 40), lost.Now, true},
		"another etcd":                     {other, lost.Now, false},
		"an empty one":                     {History{}, lost.Now, false},
		"another etcd, all put back":       {other.Take([]Point{lost.Now}), lost.Now, true},
		"another etcd, what it has itself": {other.Take([]Point{lost.Now}), other.Now, true},
	} {
		if got := tc.h.Holds(tc.at); got != tc.want {
			t.Errorf("%s: %+v holds %+v: %t", name, tc.h, tc.at, got)
		}
	}
	if got := restored.Fork(lost); got != 20 {
		t.Errorf("fork at %d", got)
	}
	if got := restored.Fork(write(lost.Begin("d"), 28)); got != 20 {
		t.Errorf("fork at %d, where another leader followed", got)
	}
	if got := write(backup, 20).Begin("c").Fork(write(backup.Begin("d"), 28)); got != 20 {
		t.Errorf("fork at %d, where the backup was between two leaders", got)
	}
	if got := other.Fork(lost); got != 0 {
		t.Errorf("fork at %d from another etcd", got)
	}
	// A node that was away for many terms.
	long := lost
	for i := range 3 * maxTerms {
		long = write(long.Begin(fmt.Sprint(i)), int64(30+i))
	}
	if len(long.Terms) != maxTerms || !long.Holds(lost.Now) || !long.Holds(first.Now) || long.Holds(Point{"lost", 1000}) {
		t.Errorf("after many terms: %+v", long)
	}
}

// TestHistoryTake: terms that nodes make up do not crowd out those that there were.
func TestHistoryTake(t *testing.T) {
	h := History{}
	var held History
	for i := range 2 * maxTerms {
		h = h.Begin(fmt.Sprint(i))
		h.Now.Revision = int64(10 * (i + 1))
		if i == 2*maxTerms-maxTold {
			held = h
		}
	}
	was := h.Fork(held)
	for i := range 4 * maxTerms {
		h = h.Take([]Point{{fmt.Sprint("made up", i), 1 << 40}})
	}
	if h.Fork(held) != was || len(h.Terms) > maxTerms || h.Holds(Point{"made up0", 1 << 40}) || !h.Holds(Point{fmt.Sprint("made up", 4*maxTerms-1), 1 << 40}) {
		t.Errorf("%+v, fork at %d, was %d", h, h.Fork(held), was)
	}
}

// TestHeldBeside: a node says what etcd does not have as the node has it, and no more.
func TestHeldBeside(t *testing.T) {
	space := func(name string, id netid.ID) Namespace { return Namespace{NetName: name, Effective: &id} }
	node := func(host, ip, subnet string) Node {
		n := Node{Host: host, HostIP: netip.MustParseAddr(ip)}
		if subnet != "" {
			n.Subnet = netip.MustParsePrefix(subnet)
		}
		return n
	}
	of := func(nodes []Node, spaces ...Namespace) Snapshot {
		s := Snapshot{Nodes: map[netip.Addr]Node{}, Namespaces: map[string]Namespace{}, History: History{Now: Point{"a", 7}}}
		for _, n := range nodes {
			s.Nodes[n.HostIP] = n
		}
		for _, n := range spaces {
			s.Namespaces[n.NetName] = n
		}
		return s
	}
	n1, n2, n3 := node("n1", "198.18.0.1", "172.11.0.0/22"), node("n2", "198.18.0.2", "172.11.4.0/22"), node("n3", "198.18.0.3", "")
	held := of([]Node{n1, n2, n3}, space("same", 10), space("gone", 11), space("joined", 10), Namespace{NetName: "new"})
	now := of([]Node{n1, node("n2", "198.18.0.2", "172.11.8.0/22")}, space("same", 10), space("joined", 12), space("later", 13))
	want := Held{At: Point{"a", 7}, History: held.History, Nodes: []Node{n2}, Namespaces: []Namespace{space("joined", 10), space("gone", 11)}}
	got := HeldBeside(held, now, func(ns string) bool { return ns == "joined" })
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	for i := range 2 * MaxHeld {
		name := fmt.Sprint("ns", i)
		held.Namespaces[name] = space(name, netid.ID(100+i))
	}
	if got := HeldBeside(held, now, func(ns string) bool { return ns == "joined" }); !got.More || len(got.Namespaces) != MaxHeld || got.Namespaces[0].NetName != "joined" {
		t.Errorf("%d namespaces, more: %t", len(got.Namespaces), got.More)
	}
}
