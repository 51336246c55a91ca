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
		r.Namespaces[n.NetName] = strings.TrimSpace(fmt.Sprintf("%d %s", *n.Effective, n.Action))
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
	all := held([]topology.Node{n3}, space("new", 40), space("red", 11))
	asked := space("red", 10)
	asked.Action, asked.Namespace = topology.Join, "new"
	for name, tc := range map[string]struct {
		in   Input
		want result
	}{
		"all agree": {
			Input{Now: now([]topology.Node{n1, n2}, space("red", 10), space("blue", 11)), Lost: map[netip.Addr]topology.Held{ip(1): all, ip(2): all}, Most: true},
			result{Nodes: map[string]string{"n3": "172.11.8.0/22"}, Namespaces: map[string]string{"new": "40", "red": "11"}},
		},
		"one has seen more than the others: only what cannot do harm": {
			Input{Now: now([]topology.Node{n1, n2}, space("red", 10), space("blue", 11)), Lost: map[netip.Addr]topology.Held{ip(1): all, ip(2): held(nil), ip(3): held(nil)}, Most: true},
			result{Namespaces: map[string]string{"new": "40"}, Left: 2},
		},
		"a single node of many says so: it may lie": {
			Input{Now: now([]topology.Node{n1, n2}, space("red", 10), space("blue", 11)), Lost: map[netip.Addr]topology.Held{ip(1): all}},
			result{Namespaces: map[string]string{"new": "40"}, Left: 2},
		},
		"a single node puts a new namespace on another's network": {
			Input{Now: now(nil, space("blue", 11)), Lost: map[netip.Addr]topology.Held{ip(1): held(nil, space("new", 11), space("x", 50), space("y", 50), space("z", 0))}},
			result{Namespaces: map[string]string{"x": "50"}, Left: 3},
		},
		"the subnet is another's by now": {
			Input{Now: now([]topology.Node{n1, node(4, 2)}), Lost: map[netip.Addr]topology.Held{ip(1): held([]topology.Node{n3})}, Most: true},
			result{Left: 1},
		},
		"two nodes have changed places": {
			Input{Now: now([]topology.Node{node(1, 1), node(2, 0)}), Lost: map[netip.Addr]topology.Held{ip(1): held([]topology.Node{n1, n2})}, Most: true},
			result{Nodes: map[string]string{"n1": "172.11.0.0/22", "n2": "172.11.4.0/22"}},
		},
		"no subnet of the network": {
			Input{Now: now(nil), Lost: map[netip.Addr]topology.Held{ip(1): held([]topology.Node{{Host: "n1", HostIP: ip(1), Subnet: netip.MustParsePrefix("172.12.0.0/22")}})}, Most: true},
			result{Left: 1},
		},
		"the netID is another's by now": {
			Input{Now: now(nil, space("later", 40)), Created: map[string]int64{"later": 25}, Lost: map[netip.Addr]topology.Held{ip(1): held(nil, space("new", 40))}, Most: true},
			result{Left: 1},
		},
		"one who was there before has the netID too: it was joined": {
			Input{Now: now(nil, space("blue", 40)), Created: map[string]int64{"blue": 5}, Lost: map[netip.Addr]topology.Held{ip(1): held(nil, space("new", 40))}, Most: true},
			result{Namespaces: map[string]string{"new": "40"}},
		},
		"what was asked for since stands": {
			Input{Now: now(nil, asked), Changed: map[string]int64{"red": 25}, Lost: map[netip.Addr]topology.Held{ip(1): held(nil, space("red", 12))}, Most: true},
			result{Namespaces: map[string]string{"red": "12 join"}},
		},
		"what the backup asks for was done": {
			Input{Now: now(nil, asked), Changed: map[string]int64{"red": 15}, Lost: map[netip.Addr]topology.Held{ip(1): held(nil, space("red", 12))}, Most: true},
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
