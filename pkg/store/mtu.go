package store

import (
	"context"
	"errors"
	"maps"
	"net/netip"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// PutNodeMTU writes a node's MTU record and returns the revision of that. It
// writes also what is there already: whatever an earlier call tried, whose answer
// was lost, does not come to pass after it.
func (s *Store) PutNodeMTU(ctx context.Context, m topology.NodeMTU) (rev int64, err error) {
	cfg, err := s.Config(ctx)
	if err != nil {
		return 0, err
	}
	op, key := "write the MTU of node "+m.Host, s.keys.ofNode(cfg.Value.Name, kindMTU, m.HostIP)
	return retryConflict(ctx, op, func() (int64, error) {
		k, _, _, err := s.get(ctx, op, key)
		if err != nil {
			return 0, err
		}
		return s.swap(ctx, op, key, k.rev.Mod, m)
	})
}

// DeleteNodeMTU deletes the MTU record of the node with address ip, so that it does
// not count any more; none is no error.
func (s *Store) DeleteNodeMTU(ctx context.Context, ip netip.Addr) error {
	cfg, err := s.Config(ctx)
	if err != nil {
		return err
	}
	err = s.remove(ctx, "delete the MTU of node "+ip.String(), s.keys.ofNode(cfg.Value.Name, kindMTU, ip))
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// MTUs reads what each node's paths carry.
func (s *Store) MTUs(ctx context.Context) (topology.MTUs, error) {
	l, err := s.list(ctx, kindNodes, kindMTU)
	if err != nil {
		return topology.MTUs{}, err
	}
	set := newMTUSet(s.keys, l)
	return set.snapshot(l.revision), nil
}

// WatchMTUs yields what each node's paths carry, and all of it anew after each
// batch of changes, on the same terms as [Store.WatchRecords].
func (s *Store) WatchMTUs(ctx context.Context) <-chan topology.MTUs {
	return watch(ctx, s, func(out latest[topology.MTUs]) sink { return &mtuSink{keys: s.keys, out: out} }, kindNodes, kindMTU)
}

// mtuSet is the MTU records, and who has a node record: at the same revision, so
// that none counts as left behind whose node is only news.
type mtuSet struct {
	keys  keyspace
	name  string
	mtus  map[netip.Addr]topology.NodeMTU
	nodes map[string]bool
}

func newMTUSet(keys keyspace, l listing) *mtuSet {
	t := &mtuSet{keys: keys, name: l.config.Value.Name, mtus: map[netip.Addr]topology.NodeMTU{}, nodes: map[string]bool{}}
	for i, kind := range []string{kindNodes, kindMTU} {
		for _, k := range l.kinds[i] {
			t.put(kind, k)
		}
	}
	return t
}

func (t *mtuSet) put(kind string, k kv) {
	last := t.keys.last(k.key, t.name, kind)
	if kind == kindNodes {
		t.nodes[last] = true
		return
	}
	t.remove(kind, k.key)
	// What is no such record is passed over: its agent writes it anew.
	if m, err := topology.ParseNodeMTU(last, k.value); err == nil {
		t.mtus[m.HostIP] = m
	}
}

func (t *mtuSet) remove(kind, key string) {
	last := t.keys.last(key, t.name, kind)
	if kind == kindNodes {
		delete(t.nodes, last)
	} else if addr, err := netip.ParseAddr(last); err == nil {
		delete(t.mtus, addr)
	}
}

func (t *mtuSet) snapshot(revision int64) topology.MTUs {
	known := maps.Clone(t.mtus)
	maps.DeleteFunc(known, func(ip netip.Addr, _ topology.NodeMTU) bool { return !t.nodes[ip.String()] })
	return topology.MTUs{Revision: revision, Nodes: known}
}

type mtuSink struct {
	keys keyspace
	set  *mtuSet
	out  latest[topology.MTUs]
}

func (m *mtuSink) reset(l listing)                  { m.set = newMTUSet(m.keys, l) }
func (m *mtuSink) put(kind string, k kv)            { m.set.put(kind, k) }
func (m *mtuSink) remove(kind, key string, _ int64) { m.set.remove(kind, key) }
func (m *mtuSink) emit(revision int64)              { m.out.send(m.set.snapshot(revision)) }
