package policy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/labels"
)

// world is what an index was told, to be looked through from end to end.
type world struct {
	namespaces map[string]map[string]string
	pods       map[netip.Addr]Pod
	nodes      map[string]node
	sets       map[Set]bool
}

// members are those of a set, in order.
func (w world) members(s Set) []Member {
	chosen := func(by Selector, have map[string]string) bool {
		parsed, err := by.parsed()
		return err == nil && parsed.Matches(labels.Set(have))
	}
	found := map[netip.Addr]Member{}
	if s.OfNodes {
		for _, n := range w.nodes {
			for _, a := range n.addresses {
				if chosen(s.Nodes, n.labels) {
					found[a] = Member{Address: a}
				}
			}
		}
	} else {
		for _, p := range w.pods {
			have, known := w.namespaces[p.Namespace]
			in := p.Namespace == s.Namespace
			if s.Namespace == "" {
				in = known && chosen(s.Namespaces, have)
			}
			if in && chosen(s.Pods, p.Labels) && (s.PortName == "" || p.has(s.PortName)) {
				found[p.Address] = p.Member
			}
		}
	}
	var out []Member
	for _, m := range found {
		out = append(out, m)
	}
	slices.SortFunc(out, compareMembers)
	return out
}

// TestIndex: after any changes, in any order, sets have the members that they should have,
// and chunks that have others than before were told.
func TestIndex(t *testing.T) {
	sameAddress := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	for seed := range uint64(300) {
		d := rand.New(rand.NewPCG(seed, 0))
		w := world{map[string]map[string]string{}, map[netip.Addr]Pod{}, map[string]node{}, map[Set]bool{}}
		x := NewIndex()
		told := map[Chunk][]Member{}
		for step := range 80 {
			what := change(d, w, x)
			for c := range told {
				if !w.sets[c.Set] {
					delete(told, c)
				}
			}
			if step%5 != 0 {
				continue
			}
			for _, c := range x.Changed() {
				if told[c] = x.Members(c); told[c] == nil {
					delete(told, c)
				}
			}
			for s := range w.sets {
				var all []Member
				for c, members := range told {
					if c.Set == s {
						all = append(all, members...)
					}
				}
				slices.SortFunc(all, compareMembers)
				want := w.members(s)
				if diff := cmp.Diff(want, all, sameAddress); diff != "" {
					t.Fatalf("seed %d, step %d (%s): set %v by what was told (-want +got):\n%s", seed, step, what, s, diff)
				}
				if diff := cmp.Diff(want, x.All(s), sameAddress); diff != "" {
					t.Fatalf("seed %d, step %d (%s): set %v (-want +got):\n%s", seed, step, what, s, diff)
				}
			}
		}
	}
}

// change draws one of few things, tells both, and says what it was.
func change(d *rand.Rand, w world, x *Index) string {
	pick := func(of ...string) string { return of[d.IntN(len(of))] }
	drawn := func() map[string]string {
		if d.IntN(4) == 0 {
			return nil
		}
		return map[string]string{"a": pick("x", "y")}
	}
	selector := func() Selector { return Selector(pick("", "a=x", "a!=x", "!a", "a in (x,y)")) }
	ns := pick("ns0", "ns1", "ns2")
	address := netip.AddrFrom4([4]byte{10, 0, byte(d.IntN(2)), byte(1 + d.IntN(4))})
	switch d.IntN(12) {
	case 0, 1:
		w.namespaces[ns] = drawn()
		x.SetNamespace(ns, w.namespaces[ns])
		return "namespace " + ns
	case 2:
		delete(w.namespaces, ns)
		x.DeleteNamespace(ns)
		return "no namespace " + ns
	case 3, 4, 5, 6:
		p := Pod{Key: Key{ns, pick("p", "q")}, Labels: drawn(), Member: Member{Address: address}}
		for range d.IntN(2) {
			p.Ports = append(p.Ports, NamedPort{pick("http", "dns"), 6, uint16(80 + d.IntN(2))})
		}
		w.pods[address] = p
		x.SetPod(p)
		return fmt.Sprint("pod ", p)
	case 7:
		delete(w.pods, address)
		x.DeletePod(address)
		return fmt.Sprint("no pod ", address)
	case 8:
		name := pick("n1", "n2")
		n := node{drawn(), []netip.Addr{address, netip.MustParseAddr("192.0.2.1")}}
		w.nodes[name] = n
		x.SetNode(name, n.labels, append(n.addresses, netip.MustParseAddr("fd00::1")))
		return fmt.Sprint("node ", name, n)
	case 9:
		name := pick("n1", "n2")
		delete(w.nodes, name)
		x.DeleteNode(name)
		return "no node " + name
	case 10:
		for s := range w.sets {
			delete(w.sets, s)
			x.Drop(s)
			return fmt.Sprint("no set ", s)
		}
	}
	s := Set{Namespaces: selector(), Pods: selector(), PortName: pick("", "", "http")}
	switch d.IntN(3) {
	case 0:
		s.Namespaces, s.Namespace = "", ns
	case 1:
		s = Set{OfNodes: true, Nodes: s.Pods}
	}
	w.sets[s] = true
	if err := x.Want(s); err != nil {
		panic(err)
	}
	return fmt.Sprint("set ", s)
}

// TestIndexForgets: of what is gone nothing is kept.
func TestIndexForgets(t *testing.T) {
	x := NewIndex()
	sets := []Set{{Namespace: "shop"}, {Namespaces: "team=a"}, {Namespaces: "team=a", Pods: "app=web"}, {OfNodes: true}}
	for _, s := range sets {
		if err := x.Want(s); err != nil {
			t.Fatal(err)
		}
	}
	x.SetNamespace("shop", namespaces["shop"])
	x.SetPod(pods[0])
	x.SetNode("n1", nil, []netip.Addr{addr(who["n1"])})
	if got := len(x.Changed()); got != len(sets) {
		t.Errorf("%d chunks changed, want %d", got, len(sets))
	}
	x.DeleteNamespace("shop")
	x.DeletePod(pods[0].Address)
	x.DeleteNode("n1")
	for _, s := range sets {
		x.Drop(s)
	}
	if got := x.Changed(); got != nil {
		t.Errorf("chunks of sets that nobody wants: %v", got)
	}
	if diff := cmp.Diff(NewIndex(), x, cmp.AllowUnexported(Index{})); diff != "" {
		t.Errorf("(-empty +got):\n%s", diff)
	}
}

// BenchmarkIndex is a pod that comes, and goes, among 10,000 in 100 namespaces, with 1,000
// sets: of 9 in 10 the namespace is named, the others choose it by labels.
func BenchmarkIndex(b *testing.B) {
	x := NewIndex()
	for i := range 100 {
		x.SetNamespace(fmt.Sprint("ns", i), map[string]string{"team": fmt.Sprint("t", i%10)})
	}
	for i := range 1000 {
		s := Set{Namespace: fmt.Sprint("ns", i%100), Pods: Selector(fmt.Sprint("app=a", i/100))}
		if i%10 == 9 {
			s.Namespace, s.Namespaces = "", Selector(fmt.Sprint("team=t", i/10%10))
		}
		if err := x.Want(s); err != nil {
			b.Fatal(err)
		}
	}
	one := func(i int) Pod {
		return Pod{
			Key:    Key{fmt.Sprint("ns", i%100), fmt.Sprint("p", i)},
			Labels: map[string]string{"app": fmt.Sprint("a", i/100%10), "pod-template-hash": "6d4cf56db6"},
			Member: Member{Address: netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})},
		}
	}
	for i := range 10000 {
		x.SetPod(one(i))
	}
	x.Changed()
	i := 0
	for b.Loop() {
		p := one(10000 + i%1000)
		x.SetPod(p)
		for _, c := range x.Changed() {
			x.Members(c)
		}
		x.DeletePod(p.Address)
		x.Changed()
		i++
	}
}
