package store

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// PolicyView is what a node holds of the records of policies. Maps in it are not changed
// once handed out; what did not change is the same map in the next view.
type PolicyView struct {
	// Listing counts how often all was read anew: revisions compare within one only.
	Listing int
	// Isolation by namespace, at the revision of the record.
	Isolation map[string]Versioned[topology.Isolation]
	// Policies by namespace, of those that are wanted and were read.
	Policies map[string]NamespacePolicies
	// Cluster are all ClusterNetworkPolicies.
	Cluster ClusterPolicies
	// Sets by hash, of those that are wanted and were read, at the revision of their newest
	// change, deletions among them.
	Sets map[string]Versioned[topology.SetMembers]
	// Acknowledged is the revision of the node's [topology.NodePods] that the leader has
	// taken into account; 0 for none.
	Acknowledged int64
	// Invalid says by key, such as isolation/shop, what does not parse, and why. Policies
	// and Cluster have their own.
	Invalid map[string]string
	// History says which leaders wrote all this.
	History topology.History
}

// PoliciesOf are policies of one kind by name.
type PoliciesOf[R any] struct {
	// Revision is that up to which every change is in it.
	Revision int64
	Policies map[string]R
	// Invalid says by name which do not parse, and why.
	Invalid map[string]string
}

// NamespacePolicies are the policies of one namespace.
type NamespacePolicies = PoliciesOf[topology.PolicyRecord]

// ClusterPolicies are the ClusterNetworkPolicies.
type ClusterPolicies = PoliciesOf[topology.ClusterPolicyRecord]

// Policies reads the policies of a namespace.
func (s *Store) Policies(ctx context.Context, namespace string) (NamespacePolicies, error) {
	l, err := s.list(ctx, kindPolicies+namespace+"/")
	if err != nil {
		return NamespacePolicies{}, err
	}
	g := policiesOf(namespace, l.revision)
	for _, k := range l.kinds[0] {
		g.put(s.keys.last(k.key, l.config.Value.Name, l.names[0]), k)
	}
	return g.value(), nil
}

// ClusterPolicies reads all ClusterNetworkPolicies.
func (s *Store) ClusterPolicies(ctx context.Context) (ClusterPolicies, error) {
	l, err := s.list(ctx, kindClusterPolicies)
	if err != nil {
		return ClusterPolicies{}, err
	}
	g := clusterPolicies(l.revision)
	for _, k := range l.kinds[0] {
		g.put(s.keys.last(k.key, l.config.Value.Name, l.names[0]), k)
	}
	return g.value(), nil
}

// PodsPublisher keeps the addresses of a node's pods in etcd, for as long as the agent runs.
type PodsPublisher = Publisher[topology.NodePods]

// PodsPublisher starts to publish in the network called name, as [Store.StatusPublisher]
// does. wrote hears what was written at which revision, before the next is written.
func (s *Store) PodsPublisher(name string, ttl time.Duration, wrote func(topology.NodePods, int64)) *PodsPublisher {
	return newPublisher(s, "the addresses of the node's pods", ttl, func(p topology.NodePods) string { return s.keys.ofNode(name, kindPods, p.HostIP) }, wrote)
}

// PolicyFollower follows what one node needs of the records of policies.
type PolicyFollower struct {
	wants   *wants
	updates <-chan PolicyView
}

// FollowPolicies starts to follow for the node with address ip, until ctx ends: all
// isolation, all ClusterNetworkPolicies, what is acknowledged to the node, and what
// [PolicyFollower.Want] says. It survives what [Store.WatchRecords] survives.
func (s *Store) FollowPolicies(ctx context.Context, ip netip.Addr) *PolicyFollower {
	ctx, cancel := s.bound(ctx)
	out := make(latest[PolicyView], 1)
	sink := &policySink{keys: s.keys, out: out, node: kindAcknowledged + ip.String()}
	f := &PolicyFollower{wants: &wants{sink: sink, changed: make(chan struct{}, 1)}, updates: out}
	go func() {
		defer close(out)
		defer cancel()
		s.run(ctx, &follower{store: s, kinds: []string{kindIsolation, kindClusterPolicies, sink.node, kindHistory}, sink: sink, wants: f.wants})
	}()
	return f
}

// Want replaces which namespaces' policies and which sets, by hash, are followed. It does
// not wait: they are in a view once they were read whole.
func (f *PolicyFollower) Want(namespaces, sets []string) {
	var kinds []string
	for _, ns := range namespaces {
		kinds = append(kinds, kindPolicies+ns+"/")
	}
	for _, hash := range sets {
		kinds = append(kinds, kindSets+hash+"/")
	}
	slices.Sort(kinds)
	f.wants.want(slices.Compact(kinds))
}

// Updates yields a view once all isolation and all ClusterNetworkPolicies are known, and one after each change. The newest
// wins. The channel is closed when the ctx of [Store.FollowPolicies] ends.
func (f *PolicyFollower) Updates() <-chan PolicyView { return f.updates }

// shared is a map that is handed out: it is copied before the next change.
type shared[V any] struct {
	m      map[string]V
	handed bool
}

func (s *shared[V]) own() map[string]V {
	switch {
	case s.m == nil:
		s.m, s.handed = map[string]V{}, false
	case s.handed:
		s.m, s.handed = maps.Clone(s.m), false
	}
	return s.m
}

func (s *shared[V]) put(key string, v V) { s.own()[key] = v }

func (s *shared[V]) remove(key string) {
	if _, there := s.m[key]; there {
		delete(s.own(), key)
	}
}

func (s *shared[V]) hand() map[string]V {
	s.handed = true
	return s.m
}

// policyGroup is what is followed of policies that are read together: those of a namespace,
// or the ClusterNetworkPolicies.
type policyGroup[R any] struct {
	parse    func(name string, value []byte) (R, error)
	revision int64
	records  shared[R]
	invalid  shared[string]
}

func policiesOf(namespace string, revision int64) *policyGroup[topology.PolicyRecord] {
	return &policyGroup[topology.PolicyRecord]{revision: revision, parse: func(name string, value []byte) (topology.PolicyRecord, error) {
		return topology.ParsePolicy(namespace+"/"+name, value)
	}}
}

func clusterPolicies(revision int64) *policyGroup[topology.ClusterPolicyRecord] {
	return &policyGroup[topology.ClusterPolicyRecord]{revision: revision, parse: topology.ParseClusterPolicy}
}

func (g *policyGroup[R]) put(name string, k kv) {
	g.remove(name, k.rev.Mod)
	p, err := g.parse(name, k.value)
	if err != nil {
		g.invalid.put(name, err.Error())
		return
	}
	g.records.put(name, p)
}

func (g *policyGroup[R]) remove(name string, revision int64) {
	g.revision = max(g.revision, revision)
	g.records.remove(name)
	g.invalid.remove(name)
}

func (g *policyGroup[R]) value() PoliciesOf[R] {
	return PoliciesOf[R]{Revision: g.revision, Policies: g.records.hand(), Invalid: g.invalid.hand()}
}

// setGroup is what is followed of a set.
type setGroup struct {
	revision int64
	of       topology.AddressSet
	chunks   map[netip.Addr]topology.SetChunk
	handed   bool
}

// own are the chunks, to be changed.
func (g *setGroup) own() map[netip.Addr]topology.SetChunk {
	if g.handed {
		g.chunks, g.handed = maps.Clone(g.chunks), false
	}
	return g.chunks
}

func (g *setGroup) value() Versioned[topology.SetMembers] {
	g.handed = true
	return Versioned[topology.SetMembers]{Value: topology.SetMembers{Of: g.of, Chunks: g.chunks}, Revision: g.revision}
}

// policySink keeps a [PolicyView].
type policySink struct {
	keys    keyspace
	node    string // the kind of what is acknowledged to it
	name    string // of the network
	listing int
	out     latest[PolicyView]

	isolation    shared[Versioned[topology.Isolation]]
	policies     shared[NamespacePolicies]
	sets         shared[Versioned[topology.SetMembers]]
	invalid      shared[string]
	acknowledged int64
	history      topology.History
	cluster      *policyGroup[topology.ClusterPolicyRecord]
	// What policies and sets are made of, by kind, and those that changed since.
	policyGroups map[string]*policyGroup[topology.PolicyRecord]
	setGroups    map[string]*setGroup
	changed      map[string]bool
}

func (t *policySink) reset(l listing) {
	*t = policySink{
		keys: t.keys, node: t.node, name: l.config.Value.Name, listing: t.listing + 1, out: t.out, cluster: clusterPolicies(l.revision),
		policyGroups: map[string]*policyGroup[topology.PolicyRecord]{}, setGroups: map[string]*setGroup{}, changed: map[string]bool{},
	}
	for i, kind := range l.names {
		t.enter(kind, l.kinds[i], l.revision)
	}
}

func (t *policySink) enter(kind string, records []kv, revision int64) {
	t.changed[kind] = true
	if ns, ok := groupOf(kind, kindPolicies); ok {
		t.policyGroups[kind] = policiesOf(ns, revision)
	} else if _, ok := groupOf(kind, kindSets); ok {
		t.setGroups[kind] = &setGroup{revision: revision, chunks: map[netip.Addr]topology.SetChunk{}}
	}
	for _, k := range records {
		t.put(kind, k)
	}
}

func (t *policySink) leave(kind string) {
	delete(t.changed, kind)
	if ns, ok := groupOf(kind, kindPolicies); ok {
		delete(t.policyGroups, kind)
		t.policies.remove(ns)
	} else if hash, ok := groupOf(kind, kindSets); ok {
		delete(t.setGroups, kind)
		t.sets.remove(hash)
		for key := range t.invalid.m {
			if strings.HasPrefix(key, kind) {
				t.invalid.remove(key)
			}
		}
	}
}

// lastOf is the last part of the key of a set's own record.
const lastOf = "of"

// groupOf is the namespace or hash of a kind that is one of those below another.
func groupOf(kind, of string) (last string, ok bool) {
	last, ok = strings.CutPrefix(kind, of)
	return strings.TrimSuffix(last, "/"), ok
}

func (t *policySink) put(kind string, k kv) {
	last := t.keys.last(k.key, t.name, kind)
	t.changed[kind] = true
	var err error
	switch {
	case kind == kindHistory:
		t.history = putHistory(t.history, last, k)
	case kind == kindIsolation:
		var i topology.Isolation
		if i, err = topology.ParseIsolation(last, k.value); err == nil {
			t.isolation.put(last, Versioned[topology.Isolation]{Value: i, Revision: k.rev.Mod})
		} else {
			t.isolation.remove(last)
		}
	case kind == kindClusterPolicies:
		t.cluster.put(last, k)
	case t.policyGroups[kind] != nil:
		t.policyGroups[kind].put(last, k)
	case t.setGroups[kind] != nil:
		err = t.putSet(t.setGroups[kind], strings.TrimPrefix(kind, kindSets), last, k)
	case last == "": // the node's own; kind is also the beginning of other addresses
		var a topology.Acknowledged
		if a, err = topology.ParseAcknowledged(strings.TrimPrefix(kind, kindAcknowledged), k.value); err == nil {
			t.acknowledged = a.Revision
		}
	}
	if err != nil {
		t.invalid.put(kind+last, err.Error())
	} else {
		t.invalid.remove(kind + last)
	}
}

// putSet takes in a record below sets/<hash>/.
func (t *policySink) putSet(g *setGroup, hash, last string, k kv) error {
	g.revision = max(g.revision, k.rev.Mod)
	if last == lastOf {
		of, err := topology.ParseAddressSet(strings.TrimSuffix(hash, "/"), k.value)
		g.of = of // with an error it is not whole
		return err
	}
	base, chunk, err := topology.ParseSetChunk(hash+last, k.value)
	if err == nil {
		g.own()[base] = chunk
		return nil
	}
	g.removeChunk(last)
	return err
}

// removeChunk takes out the chunk below that key.
func (g *setGroup) removeChunk(last string) {
	if base, err := netip.ParseAddr(last); err == nil {
		delete(g.own(), base)
	}
}

func (t *policySink) remove(kind, key string, rev int64) {
	last := t.keys.last(key, t.name, kind)
	t.changed[kind] = true
	t.invalid.remove(kind + last)
	switch {
	case kind == kindHistory:
		t.history = putHistory(t.history, last, kv{})
	case kind == kindIsolation:
		t.isolation.remove(last)
	case kind == kindClusterPolicies:
		t.cluster.remove(last, rev)
	case t.policyGroups[kind] != nil:
		t.policyGroups[kind].remove(last, rev)
	case t.setGroups[kind] != nil:
		g := t.setGroups[kind]
		if g.revision = max(g.revision, rev); last == lastOf {
			g.of = topology.AddressSet{}
		} else {
			g.removeChunk(last)
		}
	case last == "":
		t.acknowledged = 0
	}
}

// emit hands on a view, in which what changed is made anew.
func (t *policySink) emit(int64) {
	for kind := range t.changed {
		if g := t.policyGroups[kind]; g != nil {
			namespace, _ := groupOf(kind, kindPolicies)
			t.policies.put(namespace, g.value())
		} else if g := t.setGroups[kind]; g != nil {
			hash, _ := groupOf(kind, kindSets)
			t.sets.put(hash, g.value())
		}
	}
	clear(t.changed)
	t.out.send(PolicyView{
		Listing: t.listing, Isolation: t.isolation.hand(), Policies: t.policies.hand(), Cluster: t.cluster.value(), Sets: t.sets.hand(),
		Acknowledged: t.acknowledged, Invalid: t.invalid.hand(), History: t.history,
	})
}

// WatchNodePods yields what addresses the pods of all live nodes have, by node, and all of
// it anew after each batch of changes, on the same terms as [Store.WatchRecords]. Records
// that do not parse are not among them.
func (s *Store) WatchNodePods(ctx context.Context) <-chan NodePods {
	return watch(ctx, s, func(out latest[NodePods]) sink { return &podsSink{keys: s.keys, out: out} }, kindPods)
}

// NodePods are the addresses of pods, by node.
type NodePods struct {
	// Listing counts how often all was read anew.
	Listing int
	Nodes   map[netip.Addr]Versioned[topology.NodePods]
}

// NodePods reads what addresses the pods of all live nodes have.
func (s *Store) NodePods(ctx context.Context) (map[netip.Addr]topology.NodePods, error) {
	l, err := s.list(ctx, kindPods)
	if err != nil {
		return nil, err
	}
	t := &podsSink{keys: s.keys}
	t.reset(l)
	out := map[netip.Addr]topology.NodePods{}
	for ip, n := range t.now.Nodes {
		out[ip] = n.Value
	}
	return out, nil
}

type podsSink struct {
	keys keyspace
	name string
	now  NodePods
	out  latest[NodePods]
}

func (t *podsSink) reset(l listing) {
	t.name, t.now = l.config.Value.Name, NodePods{Listing: t.now.Listing + 1, Nodes: map[netip.Addr]Versioned[topology.NodePods]{}}
	for _, k := range l.kinds[0] {
		t.put(kindPods, k)
	}
}

func (t *podsSink) put(kind string, k kv) {
	t.remove(kind, k.key, 0)
	if p, err := topology.ParseNodePods(t.keys.last(k.key, t.name, kind), k.value); err == nil {
		t.now.Nodes[p.HostIP] = Versioned[topology.NodePods]{Value: p, Revision: k.rev.Mod}
	}
}

func (t *podsSink) remove(kind, key string, _ int64) {
	if addr, err := netip.ParseAddr(t.keys.last(key, t.name, kind)); err == nil {
		delete(t.now.Nodes, addr)
	}
}

func (t *podsSink) emit(int64) {
	t.out.send(NodePods{Listing: t.now.Listing, Nodes: maps.Clone(t.now.Nodes)})
}

// Isolation reads the isolation of a namespace: ErrNotFound where it has no policies,
// ErrInvalid where the record does not parse.
func (s *Store) Isolation(ctx context.Context, namespace string) (Versioned[topology.Isolation], error) {
	cfg, err := s.Config(ctx)
	if err != nil {
		return Versioned[topology.Isolation]{}, err
	}
	return read(ctx, s, "read the isolation of namespace "+namespace, s.keys.kind(cfg.Value.Name, kindIsolation)+namespace, func(data []byte) (topology.Isolation, error) {
		return topology.ParseIsolation(namespace, data)
	})
}

// Sets reads the sets with those hashes. One that has no records has no members.
func (s *Store) Sets(ctx context.Context, hashes []string) (map[string]topology.SetMembers, error) {
	var kinds []string
	for _, hash := range hashes {
		kinds = append(kinds, kindSets+hash+"/")
	}
	l, err := s.list(ctx, kinds...)
	if err != nil {
		return nil, err
	}
	t := &policySink{keys: s.keys}
	t.reset(l)
	out := map[string]topology.SetMembers{}
	for i, hash := range hashes {
		out[hash] = t.setGroups[l.names[i]].value().Value
	}
	return out, nil
}
