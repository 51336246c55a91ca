package restore

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

var (
	backup = topology.History{}.Begin("a")
	lostAt = topology.Point{Term: "a", Revision: 30}
)

func init() { backup.Now.Revision = 20 }

func space(name string, id netid.ID) topology.Namespace {
	return topology.Namespace{NetName: name, Effective: &id}
}

func node(i, subnet int) topology.Node {
	return topology.Node{
		Host: fmt.Sprint("n", i), HostIP: netip.AddrFrom4([4]byte{198, 18, 0, byte(i)}), Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 11, byte(4 * subnet), 0}), 22),
	}
}

// now is what a restored etcd has, with another leader.
func now(nodes []topology.Node, spaces ...topology.Namespace) topology.Snapshot {
	s := topology.Snapshot{Config: topology.DefaultConfig(), History: backup.Begin("b"), Nodes: map[netip.Addr]topology.Node{}, Namespaces: map[string]topology.Namespace{}}
	for _, n := range nodes {
		s.Nodes[n.HostIP] = n
	}
	for _, n := range spaces {
		s.Namespaces[n.NetName] = n
	}
	return s
}

// result is a plan in short.
type result struct {
	Nodes, Namespaces map[string]string
	Left              int
}

func short(p Plan) result {
	r := result{Nodes: map[string]string{}, Namespaces: map[string]string{}, Left: len(p.Left)}
	for _, n := range p.Nodes {
		r.Nodes[n.Host] = n.Subnet.String()
	}
	for _, n := range p.Namespaces {
		r.Namespaces[n.NetName] = strings.Join(strings.Fields(fmt.Sprintf("%d %s %s", *n.Effective, n.Change.Step, n.Action)), " ")
	}
	return r
}

func TestMake(t *testing.T) {
	n1, n2, n3 := node(1, 0), node(2, 1), node(3, 2)
	ip := func(i int) netip.Addr { return node(i, 0).HostIP }
	held := func(nodes []topology.Node, spaces ...topology.Namespace) topology.Held {
		h := backup
		h.Now = lostAt
		return topology.Held{At: lostAt, History: h, Nodes: nodes, Namespaces: spaces}
	}
	// several are nodes that hold the same.
	several := func(n int, h topology.Held) map[netip.Addr]topology.Held {
		lost := map[netip.Addr]topology.Held{}
		for i := range n {
			lost[ip(i+1)] = h
		}
		return lost
	}
	all := held([]topology.Node{n3}, space("new", 40), space("red", 11))
	asked := space("red", 10)
	asked.Action, asked.Namespace = topology.Join, "new"
	in := func(step topology.Step, id, other netid.ID) topology.Held {
		n := space("red", id)
		n.Action, n.Change = topology.Isolate, topology.Change{Step: step, NetID: other, Request: "isolate"}
		return held(nil, n)
	}
	// twice: a node that says the same again and again.
	twice := held([]topology.Node{n3, n3, n3}, space("red", 11), space("red", 11), space("red", 11))
	off := held(nil, space("new", 40))
	off.History = topology.History{}.Begin("of another etcd")
	lost := map[netip.Addr]topology.Held{ip(1): held(nil, space("new", 40)), ip(2): held(nil, space("new", 40)), ip(3): off}
	for name, tc := range map[string]struct {
		in   Input
		want result
	}{
		"all agree": {
			Input{Now: now([]topology.Node{n1, n2}, space("red", 10), space("blue", 11)), Lost: several(2, all), Known: 2},
			result{Nodes: map[string]string{"n3": "172.11.8.0/22"}, Namespaces: map[string]string{"new": "40", "red": "11"}},
		},
		"most agree, others do not report": {
			Input{Now: now([]topology.Node{n1, n2}, space("red", 10), space("blue", 11)), Lost: several(2, all), Known: 3},
			result{Nodes: map[string]string{"n3": "172.11.8.0/22"}, Namespaces: map[string]string{"new": "40", "red": "11"}},
		},
		"half agree, others do not report": {
			Input{Now: now([]topology.Node{n1, n2}, space("red", 10), space("blue", 11)), Lost: several(2, all), Known: 4},
			result{Left: 3},
		},
		"one has seen more than the others: it may lie": {
			Input{Now: now([]topology.Node{n1, n2}, space("red", 10), space("blue", 11)), Lost: map[netip.Addr]topology.Held{ip(1): all, ip(2): held(nil), ip(3): held(nil)}, Known: 3},
			result{Left: 3},
		},
		"one of two has seen more than the other": {
			Input{Now: now([]topology.Node{n1, n2}, space("red", 10), space("blue", 11)), Lost: map[netip.Addr]topology.Held{ip(1): all, ip(2): held(nil)}, Known: 2},
			result{Left: 3},
		},
		"one says the same again and again": {
			Input{Now: now([]topology.Node{n1, n2}, space("red", 10), space("blue", 11)), Lost: map[netip.Addr]topology.Held{ip(1): twice, ip(2): held(nil)}, Known: 2},
			result{Left: 2},
		},
		"some are further with a change than others": {
			Input{Now: now(nil, space("red", 10), space("blue", 10)), Lost: map[netip.Addr]topology.Held{ip(1): in(topology.StepAccept, 10, 12), ip(2): in(topology.StepSend, 12, 10), ip(3): held(nil, space("red", 12))}, Known: 3},
			result{Namespaces: map[string]string{"red": "12"}},
		},
		"most are at one step of a change": {
			Input{Now: now(nil, space("red", 10), space("blue", 10)), Lost: map[netip.Addr]topology.Held{ip(1): in(topology.StepAccept, 10, 12), ip(2): in(topology.StepAccept, 10, 12), ip(3): held(nil, space("red", 12))}, Known: 3},
			result{Namespaces: map[string]string{"red": "10 accept isolate"}},
		},
		"a record that etcd could not have": {
			Input{Now: now(nil), Lost: several(2, held(nil, space("Capital", 40), space("too-large", 1<<24), topology.Namespace{NetName: "none"})), Known: 2}, result{},
		},
		"the subnet is another's by now": {
			Input{Now: now([]topology.Node{n1, node(4, 2)}), Lost: several(2, held([]topology.Node{n3})), Known: 2},
			result{Left: 1},
		},
		"the subnet is another's by now, of whom one node says something else": {
			Input{Now: now([]topology.Node{n1, node(4, 2)}), Lost: map[netip.Addr]topology.Held{ip(1): held([]topology.Node{n3}), ip(2): held([]topology.Node{n3}), ip(3): held([]topology.Node{n3, node(4, 5)})}, Known: 3},
			result{Left: 2},
		},
		"two nodes have changed places": {
			Input{Now: now([]topology.Node{node(1, 1), node(2, 0)}), Lost: several(2, held([]topology.Node{n1, n2})), Known: 2},
			result{Nodes: map[string]string{"n1": "172.11.0.0/22", "n2": "172.11.4.0/22"}},
		},
		"no subnet of the network": {
			Input{Now: now(nil), Lost: several(2, held([]topology.Node{{Host: "n1", HostIP: ip(1), Subnet: netip.MustParsePrefix("172.12.0.0/22")}})), Known: 2},
			result{Left: 1},
		},
		"the netID is another's by now": {
			Input{Now: now(nil, space("later", 40)), Created: map[string]int64{"later": 25}, Lost: several(2, held(nil, space("new", 40))), Known: 2},
			result{Left: 1},
		},
		"one who was there before has the netID too: it was joined": {
			Input{Now: now(nil, space("blue", 40)), Created: map[string]int64{"blue": 5}, Lost: several(2, held(nil, space("new", 40))), Known: 2},
			result{Namespaces: map[string]string{"new": "40"}},
		},
		"so it is, and one node says that all is new": {
			Input{Now: now(nil, space("blue", 40)), Created: map[string]int64{"blue": 5}, Lost: lost, Known: 3},
			result{Namespaces: map[string]string{"new": "40"}},
		},
		"what was asked for since stands": {
			Input{Now: now(nil, asked), Changed: map[string]int64{"red": 25}, Lost: several(2, held(nil, space("red", 12))), Known: 2},
			result{Namespaces: map[string]string{"red": "12 join"}},
		},
		"what the backup asks for was done": {
			Input{Now: now(nil, asked), Changed: map[string]int64{"red": 15}, Lost: several(2, held(nil, space("red", 12))), Known: 2},
			result{Namespaces: map[string]string{"red": "12"}},
		},
	} {
		for _, m := range []*map[string]string{&tc.want.Nodes, &tc.want.Namespaces} {
			if *m == nil {
				*m = map[string]string{}
			}
		}
		p := Make(tc.in)
		for i, s := range p.Namespaces {
			if *s.NetID != int64(*s.Effective) {
				t.Errorf("%s: namespace %d: NetID %d", name, i, *s.NetID)
			}
		}
		got := short(p)
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s: %s\nleft: %v", name, diff, p.Left)
		}
		if len(p.Points) != 1 || p.Points[0] != lostAt {
			t.Errorf("%s: points %v", name, p.Points)
		}
	}
}

// TestMakeOneNode: what one node says, of many or of one, gives nobody a name, a network, an action or a
// request that the records or the API server do not have.
func TestMakeOneNode(t *testing.T) {
	foreign := func(name string, id netid.ID, uid string, change func(*topology.Namespace)) topology.Namespace {
		n := space(name, id)
		n.UID = uid
		change(&n)
		return n
	}
	nothing := func(*topology.Namespace) {}
	lies := map[string]topology.Namespace{
		"a name":                   foreign("future", 50, "", nothing),
		"a name with a UID":        foreign("future", 50, "made-up", nothing),
		"a namespace global":       foreign("future", 50, "", func(n *topology.Namespace) { n.Action = topology.MakeGlobal }),
		"global at once":           foreign("future", 0, "", nothing),
		"a join":                   foreign("future", 50, "", func(n *topology.Namespace) { n.Action, n.Namespace = topology.Join, "blue" }),
		"a change to another's":    foreign("future", 50, "", func(n *topology.Namespace) { n.Change = topology.Change{Step: topology.StepAccept, NetID: 11} }),
		"a change from another's":  foreign("future", 50, "", func(n *topology.Namespace) { n.Change = topology.Change{Step: topology.StepSend, NetID: 11} }),
		"another's netID":          foreign("future", 11, "", nothing),
		"one that is there":        foreign("red", 11, "uid-red", nothing),
		"one that is there global": foreign("red", 0, "uid-red", nothing),
	}
	red := space("red", 10)
	red.UID = "uid-red"
	h := topology.Held{At: topology.Point{Term: "x", Revision: 1 << 40}}
	for name, lie := range lies {
		h.Namespaces = []topology.Namespace{lie}
		for _, known := range []int{1, 2, 3} {
			for where, live := range map[string]map[string]string{"Kubernetes": {"red": "uid-red", "blue": "uid-blue"}, "alone": nil} {
				p := Make(Input{Now: now(nil, red, space("blue", 11)), Lost: map[netip.Addr]topology.Held{node(1, 0).HostIP: h}, Known: known, Live: live})
				if len(p.Namespaces) > 0 || len(p.Left) != 1 {
					t.Errorf("%s, %s, of %d nodes: %+v, left %v", name, where, known, p.Namespaces, p.Left)
				}
			}
		}
	}
	// In a network of one node that node's word keeps apart what it has kept apart.
	lie := func(name string, id netid.ID) topology.Namespace {
		return foreign(name, id, "made-up", func(n *topology.Namespace) {
			n.Action, n.By, n.Declared, n.Forced = topology.MakeGlobal, "x", "net", true
			n.Change = topology.Change{Step: topology.StepSend, NetID: 11}
		})
	}
	own := func(name, uid string, id netid.ID) topology.Namespace {
		n := foreign(name, id, uid, nothing)
		number := int64(id)
		n.NetID = &number
		return n
	}
	h.Namespaces = []topology.Namespace{lie("new", 40), lie("red", 41), lie("same", 40)}
	for where, tc := range map[string]struct {
		live map[string]string
		want []topology.Namespace
	}{
		"Kubernetes": {map[string]string{"red": "uid-red", "new": "uid-new", "same": "uid-same"}, []topology.Namespace{own("new", "uid-new", 40), own("red", "uid-red", 41)}},
		"alone":      {nil, []topology.Namespace{own("red", "uid-red", 41)}},
	} {
		in := Input{Now: now(nil, red, space("blue", 10)), Lost: map[netip.Addr]topology.Held{node(1, 0).HostIP: h}, Known: 1, Live: tc.live}
		p := Make(in)
		if diff := cmp.Diff(tc.want, p.Namespaces); diff != "" {
			t.Errorf("%s: %s\nleft: %v", where, diff, p.Left)
		}
		in.Known = 2
		if p := Make(in); len(p.Namespaces) > 0 {
			t.Errorf("%s, with another node: %+v", where, p.Namespaces)
		}
	}
}

// forms are n nodes of which the first few are of a release that knows more of the records: they hold with, the
// others without.
func forms(n, few int, with, without topology.Held) map[netip.Addr]topology.Held {
	lost := map[netip.Addr]topology.Held{}
	for i := range n {
		h := without
		if i < few {
			h = with
		}
		h.At = lostAt
		lost[node(i+1, 0).HostIP] = h
	}
	return lost
}

// TestMakeForms: nodes of several releases hold one record in several forms, and still agree on it. What only
// some of them know is put back where half of all nodes say so, and what etcd has of it stays.
func TestMakeForms(t *testing.T) {
	red, n30 := space("red", 11), node(30, 7)
	red.Change = topology.Change{Step: topology.StepAccept, NetID: 12}
	more := func(rest topology.Rest) topology.Held {
		n, r := n30, red
		n.Rest, r.Rest, r.By = rest, rest, "alice@desk"
		return topology.Held{Nodes: []topology.Node{n}, Namespaces: []topology.Namespace{r}}
	}
	without := topology.Held{Nodes: []topology.Node{n30}, Namespaces: []topology.Namespace{red}}
	old := n30
	old.Subnet, old.Rest = node(30, 9).Subnet, `"A":0,"Z":9`
	oldRed := space("red", 10)
	oldRed.Rest = `"A":0,"Z":9`
	another := old
	another.UID = "another"
	for name, tc := range map[string]struct {
		few  int
		rest topology.Rest
		now  topology.Snapshot
		want topology.Rest
		by   string
	}{
		"half know more":                   {10, `"A":1`, now(nil), `"A":1`, "alice@desk"},
		"all do":                           {20, `"A":1,"B":[2]`, now(nil), `"A":1,"B":[2]`, "alice@desk"},
		"fewer do":                         {9, `"A":1`, now(nil), ``, ""},
		"one does: it may lie":             {1, `"A":1`, now(nil), ``, ""},
		"half do, and etcd has an old one": {10, `"A":1`, now([]topology.Node{old}, oldRed), `"A":1,"Z":9`, "alice@desk"},
		"none does, and etcd has one":      {0, ``, now([]topology.Node{old}, oldRed), `"A":0,"Z":9`, ""},
	} {
		p := Make(Input{Now: tc.now, Lost: forms(20, tc.few, more(tc.rest), without), Known: 20})
		if len(p.Nodes) != 1 || len(p.Namespaces) != 1 || len(p.Left) > 0 || p.Short > 0 {
			t.Errorf("%s: %+v", name, p)
			continue
		}
		n, r := n30, red
		n.Rest, r.Rest, r.By = tc.want, tc.want, tc.by
		id := int64(11)
		r.NetID = &id
		if !p.Nodes[0].Equal(n) {
			t.Errorf("%s: node %+v", name, p.Nodes[0])
		}
		if diff := cmp.Diff(r, p.Namespaces[0]); diff != "" {
			t.Errorf("%s: namespace: %s", name, diff)
		}
	}
	// What etcd has of another node at that address is not this one's.
	p := Make(Input{Now: now([]topology.Node{another}), Lost: forms(20, 0, without, without), Known: 20})
	if len(p.Nodes) != 1 || p.Nodes[0].Rest != "" {
		t.Errorf("%+v", p.Nodes)
	}
	// Nodes at different steps of a change agree on what comes of it, in several forms too.
	lost := forms(20, 10, more(`"A":1`), without)
	sent := red
	sent.Effective, sent.Change, sent.Rest = &red.Change.NetID, topology.Change{Step: topology.StepSend, NetID: 11}, `"A":1`
	for i := range 5 {
		lost[node(i+1, 0).HostIP] = topology.Held{At: lostAt, Namespaces: []topology.Namespace{sent}}
		lost[node(i+11, 0).HostIP] = topology.Held{At: lostAt, Namespaces: []topology.Namespace{sent}}
	}
	p = Make(Input{Now: now(nil), Lost: lost, Known: 20})
	if len(p.Namespaces) != 1 || *p.Namespaces[0].Effective != 12 || p.Namespaces[0].Change.UnderWay() || p.Namespaces[0].Rest != `"A":1` {
		t.Errorf("%+v, left %v", p.Namespaces, p.Left)
	}
}

// TestMakeShort: how many nodes hold what is left out only because they are too few.
func TestMakeShort(t *testing.T) {
	addr := func(i int) netip.Addr { return node(i, 0).HostIP }
	held := func(nodes []topology.Node, spaces ...topology.Namespace) topology.Held {
		return topology.Held{At: lostAt, Nodes: nodes, Namespaces: spaces}
	}
	for name, tc := range map[string]struct {
		lost map[netip.Addr]topology.Held
		live map[string]string
		want int
	}{
		"all agree":                       {map[netip.Addr]topology.Held{addr(1): held(nil, space("new", 40)), addr(2): held(nil, space("new", 40))}, nil, 0},
		"one holds a namespace":           {map[netip.Addr]topology.Held{addr(1): held(nil, space("new", 40)), addr(2): held(nil)}, nil, 1},
		"one holds a node":                {map[netip.Addr]topology.Held{addr(1): held([]topology.Node{node(3, 2)}), addr(2): held(nil)}, nil, 1},
		"they do not agree":               {map[netip.Addr]topology.Held{addr(1): held(nil, space("new", 40)), addr(2): held(nil, space("new", 41))}, nil, 1},
		"all agree, it is not put back":   {map[netip.Addr]topology.Held{addr(1): held(nil, space("new", 40)), addr(2): held(nil, space("new", 40))}, map[string]string{}, 0},
		"one has more than most agree on": {map[netip.Addr]topology.Held{addr(1): held([]topology.Node{node(3, 2)}, space("new", 40)), addr(2): held(nil, space("new", 40))}, nil, 1},
	} {
		if p := Make(Input{Now: now(nil), Lost: tc.lost, Known: 3, Live: tc.live}); p.Short != tc.want {
			t.Errorf("%s: %d, want %d, left %v", name, p.Short, tc.want, p.Left)
		}
	}
}

// TestMakeKubernetes: however many nodes hold it, a record is put back only for a Namespace that there is.
func TestMakeKubernetes(t *testing.T) {
	with := func(name, uid string) topology.Namespace {
		n := space(name, netid.ID(40+len(name)))
		n.UID, n.Declared = uid, "net"
		return n
	}
	h := topology.Held{At: lostAt, Namespaces: []topology.Namespace{with("new", "u1"), with("other", "u2"), with("gone", "u3"), with("nobody", "")}}
	lost := map[netip.Addr]topology.Held{node(1, 0).HostIP: h, node(2, 1).HostIP: h}
	p := Make(Input{Now: now(nil), Lost: lost, Known: 2, Live: map[string]string{"new": "u1", "other": "another", "nobody": "u4"}})
	if len(p.Namespaces) != 1 || p.Namespaces[0].UID != "u1" || p.Namespaces[0].Declared != "net" || len(p.Left) != 3 {
		t.Errorf("%+v, left %v", p.Namespaces, p.Left)
	}
}
