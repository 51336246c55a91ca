package policy

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// Index keeps the members of sets while pods, namespaces and nodes come, change and go. A
// change costs what it touches: a pod is compared with the sets that can have pods of its
// namespace. It is not for several goroutines at once.
type Index struct {
	sets map[Set]*wanted
	// inOne are the sets that name one namespace, by it, and groups those that choose
	// namespaces, by how they do.
	inOne      map[string][]*wanted
	groups     map[Selector]*group
	namespaces map[string]*namespace
	pods       map[netip.Addr]*placed
	nodes      map[string]node
	changed    map[Chunk]bool
}

// Chunk is the part of a set whose addresses are in the /24 that begins with Base.
type Chunk struct {
	Set  Set
	Base netip.Addr
}

// wanted is a set whose members are kept, by the chunks that they are in.
type wanted struct {
	Set
	match  labels.Selector
	chunks map[netip.Addr]map[netip.Addr]Member
}

// group is the sets that choose namespaces in the same way.
type group struct {
	match labels.Selector
	sets  []*wanted
}

// namespace is what is known of one that has pods, or was told.
type namespace struct {
	// known says whether labels are.
	known  bool
	labels map[string]string
	groups []*group // that choose it
	pods   map[netip.Addr]*placed
}

// placed is a pod and the sets that it is in.
type placed struct {
	Pod
	in map[*wanted]bool
}

// node is a node with its labels and addresses.
type node struct {
	labels    map[string]string
	addresses []netip.Addr
}

// NewIndex is one of an empty cluster, with no sets.
func NewIndex() *Index {
	return &Index{
		sets: map[Set]*wanted{}, inOne: map[string][]*wanted{}, groups: map[Selector]*group{},
		namespaces: map[string]*namespace{}, pods: map[netip.Addr]*placed{}, nodes: map[string]node{}, changed: map[Chunk]bool{},
	}
}

// Want has the members of a set kept from now on. A selector that cannot be read is an
// error; such a set has no members.
func (x *Index) Want(s Set) error {
	if x.sets[s] != nil {
		return nil
	}
	w := &wanted{Set: s, chunks: map[netip.Addr]map[netip.Addr]Member{}}
	selector := s.Pods
	if s.OfNodes {
		selector = s.Nodes
	}
	var err error
	if w.match, err = selector.parsed(); err != nil {
		return fmt.Errorf("set %s: %w", s.Hash(), err)
	}
	switch {
	case s.OfNodes:
		x.placeNodes(w)
	case s.Namespace != "":
		x.inOne[s.Namespace] = append(x.inOne[s.Namespace], w)
		x.fill(w, x.namespaces[s.Namespace])
	default:
		g, err := x.group(s.Namespaces)
		if err != nil {
			return fmt.Errorf("set %s: namespaces: %w", s.Hash(), err)
		}
		g.sets = append(g.sets, w)
		for _, ns := range x.namespaces {
			if slices.Contains(ns.groups, g) {
				x.fill(w, ns)
			}
		}
	}
	x.sets[s] = w
	return nil
}

// group is the one that chooses namespaces by a selector, made where there was none.
func (x *Index) group(s Selector) (*group, error) {
	if g := x.groups[s]; g != nil {
		return g, nil
	}
	match, err := s.parsed()
	if err != nil {
		return nil, err
	}
	g := &group{match: match}
	x.groups[s] = g
	for _, ns := range x.namespaces {
		if ns.known && match.Matches(labels.Set(ns.labels)) {
			ns.groups = append(ns.groups, g)
		}
	}
	return g, nil
}

// fill puts the pods of a namespace that may be in w there.
func (x *Index) fill(w *wanted, ns *namespace) {
	if ns == nil {
		return
	}
	for _, p := range ns.pods {
		if w.chooses(p.Pod) {
			p.in[w] = true
			x.add(w, p.Member)
		}
	}
}

// Drop ends what [Index.Want] began. The set's chunks count as gone without being told of.
func (x *Index) Drop(s Set) {
	w := x.sets[s]
	if w == nil {
		return
	}
	delete(x.sets, s)
	if s.OfNodes {
		return
	}
	is := func(v *wanted) bool { return v == w }
	for _, chunk := range w.chunks {
		for a := range chunk {
			delete(x.pods[a].in, w)
		}
	}
	if s.Namespace != "" {
		if x.inOne[s.Namespace] = slices.DeleteFunc(x.inOne[s.Namespace], is); len(x.inOne[s.Namespace]) == 0 {
			delete(x.inOne, s.Namespace)
		}
		return
	}
	if g := x.groups[s.Namespaces]; len(g.sets) > 1 {
		g.sets = slices.DeleteFunc(g.sets, is)
	} else {
		x.ungroup(s.Namespaces, g)
	}
}

// ungroup takes away a group that has no other set.
func (x *Index) ungroup(s Selector, g *group) {
	delete(x.groups, s)
	for _, ns := range x.namespaces {
		ns.groups = slices.DeleteFunc(ns.groups, func(h *group) bool { return h == g })
	}
}

// SetNamespace says what labels a namespace has. Its pods are in sets that choose
// namespaces from then on.
func (x *Index) SetNamespace(name string, have map[string]string) {
	ns := x.namespace(name)
	if ns.known && maps.Equal(ns.labels, have) {
		return
	}
	ns.known, ns.labels = true, have
	x.regroup(ns)
}

// DeleteNamespace says that a namespace is gone. Its pods that are still there are in no
// set that chooses namespaces.
func (x *Index) DeleteNamespace(name string) {
	ns := x.namespaces[name]
	if ns == nil {
		return
	}
	ns.known, ns.labels = false, nil
	x.regroup(ns)
	x.tidy(name, ns)
}

// regroup finds the groups of a namespace anew, and the sets of its pods.
func (x *Index) regroup(ns *namespace) {
	ns.groups = nil
	for _, g := range x.groups {
		if ns.known && g.match.Matches(labels.Set(ns.labels)) {
			ns.groups = append(ns.groups, g)
		}
	}
	for _, p := range ns.pods {
		x.place(p)
	}
}

func (x *Index) namespace(name string) *namespace {
	ns := x.namespaces[name]
	if ns == nil {
		ns = &namespace{pods: map[netip.Addr]*placed{}}
		x.namespaces[name] = ns
	}
	return ns
}

// tidy forgets a namespace of which nothing is known any more.
func (x *Index) tidy(name string, ns *namespace) {
	if !ns.known && len(ns.pods) == 0 {
		delete(x.namespaces, name)
	}
}

// SetPod says who has the pod's address. Whoever had it before has it no longer.
func (x *Index) SetPod(p Pod) {
	old := x.pods[p.Address]
	if old != nil && old.Key != p.Key {
		x.DeletePod(p.Address)
		old = nil
	}
	if old == nil {
		old = &placed{in: map[*wanted]bool{}}
		x.pods[p.Address] = old
		x.namespace(p.Namespace).pods[p.Address] = old
	} else if maps.Equal(old.Labels, p.Labels) && slices.Equal(old.Ports, p.Ports) {
		return
	}
	old.Pod = p
	x.place(old)
}

// DeletePod says that nobody has an address.
func (x *Index) DeletePod(a netip.Addr) {
	p := x.pods[a]
	if p == nil {
		return
	}
	for w := range p.in {
		x.remove(w, a)
	}
	delete(x.pods, a)
	ns := x.namespaces[p.Namespace]
	delete(ns.pods, a)
	x.tidy(p.Namespace, ns)
}

// place puts a pod into the sets that choose it, and takes it out of others.
func (x *Index) place(p *placed) {
	in := make(map[*wanted]bool, len(p.in))
	choose := func(sets []*wanted) {
		for _, w := range sets {
			if w.chooses(p.Pod) {
				in[w] = true
			}
		}
	}
	choose(x.inOne[p.Namespace])
	for _, g := range x.namespaces[p.Namespace].groups {
		choose(g.sets)
	}
	for w := range p.in {
		if !in[w] {
			x.remove(w, p.Address)
		}
	}
	for w := range in {
		x.add(w, p.Member)
	}
	p.in = in
}

// chooses says whether the set has a pod of a namespace that it can have pods of.
func (w *wanted) chooses(p Pod) bool {
	return (w.PortName == "" || p.has(w.PortName)) && w.match.Matches(labels.Set(p.Labels))
}

// SetNode says which labels and addresses a node has. Those of IPv6 are nobody's.
func (x *Index) SetNode(name string, have map[string]string, addresses []netip.Addr) {
	addresses = slices.DeleteFunc(slices.Clone(addresses), func(a netip.Addr) bool { return !a.Is4() })
	if old, ok := x.nodes[name]; ok && maps.Equal(old.labels, have) && slices.Equal(old.addresses, addresses) {
		return
	}
	x.nodes[name] = node{have, addresses}
	x.placeAllNodes()
}

// DeleteNode says that a node is gone.
func (x *Index) DeleteNode(name string) {
	delete(x.nodes, name)
	x.placeAllNodes()
}

func (x *Index) placeAllNodes() {
	for _, w := range x.sets {
		if w.OfNodes {
			x.placeNodes(w)
		}
	}
}

// placeNodes makes the addresses of the nodes that a set chooses its members. All at once:
// two nodes may claim one address, nodes are few, and they change seldom.
func (x *Index) placeNodes(w *wanted) {
	chosen := map[netip.Addr]bool{}
	for _, n := range x.nodes {
		for _, a := range n.addresses {
			chosen[a] = chosen[a] || w.match.Matches(labels.Set(n.labels))
		}
	}
	for _, chunk := range w.chunks {
		for a := range chunk {
			if !chosen[a] {
				x.remove(w, a)
			}
		}
	}
	for a, is := range chosen {
		if is {
			x.add(w, Member{Address: a})
		}
	}
}

// add makes m a member as it is now.
func (x *Index) add(w *wanted, m Member) {
	base := topology.ChunkOf(m.Address)
	chunk := w.chunks[base]
	if chunk == nil {
		chunk = map[netip.Addr]Member{}
		w.chunks[base] = chunk
	}
	if old, ok := chunk[m.Address]; ok && slices.Equal(old.Ports, m.Ports) {
		return
	}
	chunk[m.Address] = m
	x.changed[Chunk{w.Set, base}] = true
}

// remove takes a member out.
func (x *Index) remove(w *wanted, a netip.Addr) {
	base := topology.ChunkOf(a)
	delete(w.chunks[base], a)
	if len(w.chunks[base]) == 0 {
		delete(w.chunks, base)
	}
	x.changed[Chunk{w.Set, base}] = true
}

// Touch has all chunks of a wanted set count as changed.
func (x *Index) Touch(s Set) {
	if w := x.sets[s]; w != nil {
		for base := range w.chunks {
			x.changed[Chunk{s, base}] = true
		}
	}
}

// Changed are the chunks of wanted sets that may have changed since it was last called, in
// order.
func (x *Index) Changed() []Chunk {
	var out []Chunk
	for c := range x.changed {
		if x.sets[c.Set] != nil {
			out = append(out, c)
		}
	}
	clear(x.changed)
	slices.SortFunc(out, func(a, b Chunk) int { return cmp.Or(a.Set.Compare(b.Set), a.Base.Compare(b.Base)) })
	return out
}

// Members are those of a wanted set in a chunk, in the order of their addresses.
func (x *Index) Members(c Chunk) []Member {
	w := x.sets[c.Set]
	if w == nil {
		return nil
	}
	return slices.SortedFunc(maps.Values(w.chunks[c.Base]), compareMembers)
}

// All are all members of a wanted set, in the order of their addresses.
func (x *Index) All(s Set) []Member {
	w := x.sets[s]
	if w == nil {
		return nil
	}
	var out []Member
	for _, chunk := range w.chunks {
		out = slices.AppendSeq(out, maps.Values(chunk))
	}
	slices.SortFunc(out, compareMembers)
	return out
}

func compareMembers(a, b Member) int { return a.Address.Compare(b.Address) }
