package store

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"

	mvccpb "go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// Versioned is a record and the etcd revision of its last change, which a write
// compares; 0 where there is no record.
type Versioned[T any] struct {
	Value    T
	Revision int64
}

// Rev tells one state of a record from all others.
type Rev struct {
	// Mod is the etcd revision of the record's last change.
	Mod int64
	// Create is that of its creation: it differs when a record was deleted and
	// made anew.
	Create int64
}

// Revs are the revisions of the records in a snapshot.
type Revs struct {
	Config     int64
	Nodes      map[netip.Addr]Rev
	Namespaces map[string]Rev
	// Invalid has the records that do not parse, by the same names as
	// [topology.Snapshot.Invalid].
	Invalid map[string]Raw
}

// Raw is a record that does not parse.
type Raw struct {
	// Node is true below subnets/, false below netnamespaces/.
	Node bool
	// Key is the last part of the record's key.
	Key   string
	Value []byte
	Rev   Rev
}

// Records is a snapshot with what it takes to write on top of it.
type Records struct {
	topology.Snapshot
	Revs Revs
	// Listing counts how often all records were read anew. Between two
	// snapshots with the same number every change was seen in order; after
	// another number Revision may even be lower, if etcd was restored from a backup.
	Listing int
}

// Released is the record <Name>/released: what was given out once and is free
// again, oldest first, so that a new leader gives it out last. Its presence
// also says that a controller has confirmed this network's records once.
type Released struct {
	NetIDs  []netid.ID     `json:"NetIDs"`
	Subnets []netip.Prefix `json:"Subnets,omitempty"`
}

// kv is one key of etcd.
type kv struct {
	key   string
	value []byte
	rev   Rev
}

func toKV(k *mvccpb.KeyValue) kv {
	return kv{key: string(k.Key), value: k.Value, rev: Rev{Mod: k.ModRevision, Create: k.CreateRevision}}
}

// listing is all keys of some kinds at one revision.
type listing struct {
	config    Versioned[topology.Config]
	names     []string // of the kinds, in the order asked for
	kinds     [][]kv
	revision  int64
	clusterID uint64
	raftTerm  uint64
}

// list reads the configuration and then, at the same revision, all records of
// the kinds.
func (s *Store) list(ctx context.Context, kinds ...string) (listing, error) {
	cfg, header, err := s.readConfig(ctx)
	if err != nil {
		return listing{}, err
	}
	return s.listAt(ctx, cfg, header, kinds...)
}

// readsAtOnce is how many kinds are read at the same time: a node may need hundreds of sets, and
// each is a question and an answer.
const readsAtOnce = 16

// listAt reads all records of the kinds at the revision at which cfg was read.
// Plain reads at a revision: stores that speak etcd's API over something else
// have no transactions of several reads.
func (s *Store) listAt(ctx context.Context, cfg Versioned[topology.Config], header header, kinds ...string) (listing, error) {
	l := listing{
		config: cfg, names: kinds, kinds: make([][]kv, len(kinds)), revision: header.Revision, clusterID: header.ClusterId, raftTerm: header.RaftTerm,
	}
	reads, ctx := errgroup.WithContext(ctx)
	reads.SetLimit(readsAtOnce)
	for i, kind := range kinds {
		reads.Go(func() error {
			prefix := s.keys.kind(cfg.Value.Name, kind)
			resp, err := call(ctx, s, "read records below "+prefix, func(ctx context.Context, c *clientv3.Client) (*clientv3.GetResponse, error) {
				return c.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(header.Revision))
			})
			if err != nil {
				return err
			}
			for _, k := range resp.Kvs {
				l.kinds[i] = append(l.kinds[i], toKV(k))
			}
			return nil
		})
	}
	if err := reads.Wait(); err != nil {
		return listing{}, err
	}
	return l, nil
}

// recordKinds are the kinds that a [recordSet] is made of.
var recordKinds = []string{kindNodes, kindNamespaces, kindHistory}

// recordSet holds the parsed nodes and namespaces of one network. It parses a
// record once, when it changes.
type recordSet struct {
	keys    keyspace
	config  Versioned[topology.Config]
	nodes   map[netip.Addr]topology.Node
	spaces  map[string]topology.Namespace
	reasons map[string]string
	revs    Revs
	history topology.History
}

func newRecordSet(keys keyspace, cfg Versioned[topology.Config]) *recordSet {
	return &recordSet{
		keys: keys, config: cfg,
		nodes: map[netip.Addr]topology.Node{}, spaces: map[string]topology.Namespace{}, reasons: map[string]string{},
		revs: Revs{Config: cfg.Revision, Nodes: map[netip.Addr]Rev{}, Namespaces: map[string]Rev{}, Invalid: map[string]Raw{}},
	}
}

func (r *recordSet) put(kind string, k kv) {
	last := r.keys.last(k.key, r.config.Value.Name, kind)
	if kind == kindHistory {
		r.history = putHistory(r.history, last, k)
		return
	}
	r.remove(kind, k.key)
	var err error
	if kind == kindNodes {
		var n topology.Node
		if n, err = topology.ParseNode(last, k.value); err == nil {
			r.nodes[n.HostIP], r.revs.Nodes[n.HostIP] = n, k.rev
		}
	} else {
		var n topology.Namespace
		if n, err = topology.ParseNamespace(last, k.value); err == nil {
			r.spaces[last], r.revs.Namespaces[last] = n, k.rev
		}
	}
	if err != nil {
		r.reasons[kind+last] = err.Error()
		r.revs.Invalid[kind+last] = Raw{Node: kind == kindNodes, Key: last, Value: k.value, Rev: k.rev}
	}
}

func (r *recordSet) remove(kind, key string) {
	last := r.keys.last(key, r.config.Value.Name, kind)
	if kind == kindHistory {
		r.history = putHistory(r.history, last, kv{})
		return
	}
	delete(r.reasons, kind+last)
	delete(r.revs.Invalid, kind+last)
	if kind == kindNamespaces {
		delete(r.spaces, last)
		delete(r.revs.Namespaces, last)
		return
	}
	if addr, err := netip.ParseAddr(last); err == nil && addr.String() == last {
		delete(r.nodes, addr)
		delete(r.revs.Nodes, addr)
	}
}

// snapshot copies: what was handed out is never changed.
func (r *recordSet) snapshot(revision int64) topology.Snapshot {
	return topology.Snapshot{
		Revision: revision, Config: r.config.Value,
		Nodes: maps.Clone(r.nodes), Namespaces: maps.Clone(r.spaces), Invalid: maps.Clone(r.reasons),
		History: r.history,
	}
}

// records is a snapshot with its revisions.
func (r *recordSet) records(revision int64, listing int) Records {
	return Records{
		Snapshot: r.snapshot(revision),
		Revs: Revs{
			Config: r.revs.Config, Nodes: maps.Clone(r.revs.Nodes),
			Namespaces: maps.Clone(r.revs.Namespaces), Invalid: maps.Clone(r.revs.Invalid),
		},
		Listing: listing,
	}
}

// Snapshot reads all records at one revision. ErrNoConfig where the network has
// no configuration, ErrInvalid where that does not parse.
func (s *Store) Snapshot(ctx context.Context) (topology.Snapshot, Revs, error) {
	l, err := s.list(ctx, recordKinds...)
	if err != nil {
		return topology.Snapshot{}, Revs{}, err
	}
	set := newRecordSet(s.keys, l.config)
	for i, kind := range recordKinds {
		for _, k := range l.kinds[i] {
			set.put(kind, k)
		}
	}
	r := set.records(l.revision, 0)
	return r.Snapshot, r.Revs, nil
}

// get reads one key; ok is false where there is none.
func (s *Store) get(ctx context.Context, op, key string) (k kv, ok bool, resp *clientv3.GetResponse, err error) {
	resp, err = call(ctx, s, op, func(ctx context.Context, c *clientv3.Client) (*clientv3.GetResponse, error) {
		return c.Get(ctx, key)
	})
	if err != nil || len(resp.Kvs) == 0 {
		return kv{}, false, resp, err
	}
	return toKV(resp.Kvs[0]), true, resp, nil
}

// Config reads the network configuration: ErrNoConfig where there is none,
// ErrInvalid where it does not parse.
func (s *Store) Config(ctx context.Context) (Versioned[topology.Config], error) {
	cfg, _, err := s.readConfig(ctx)
	return cfg, err
}

type header = struct {
	Revision            int64
	ClusterId, RaftTerm uint64
}

func (s *Store) readConfig(ctx context.Context) (Versioned[topology.Config], header, error) {
	op := "read network configuration " + s.keys.config()
	var none Versioned[topology.Config]
	k, ok, resp, err := s.get(ctx, op, s.keys.config())
	if err != nil {
		return none, header{}, err
	}
	h := header{Revision: resp.Header.Revision, ClusterId: resp.Header.ClusterId, RaftTerm: resp.Header.RaftTerm}
	if !ok {
		return none, h, &Error{Op: op, Kind: ErrNoConfig}
	}
	cfg, err := topology.ParseConfig(k.value)
	if err != nil {
		return none, h, &Error{Op: op, Kind: ErrInvalid, Cause: err}
	}
	return Versioned[topology.Config]{Value: cfg, Revision: k.rev.Mod}, h, nil
}

// Namespace reads one namespace's record: ErrNotFound, or ErrInvalid where it
// does not parse.
func (s *Store) Namespace(ctx context.Context, ns string) (Versioned[topology.Namespace], error) {
	cfg, err := s.Config(ctx)
	if err != nil {
		return Versioned[topology.Namespace]{}, err
	}
	return s.namespace(ctx, cfg.Value.Name, ns)
}

func (s *Store) namespace(ctx context.Context, name, ns string) (Versioned[topology.Namespace], error) {
	return read(ctx, s, "read namespace "+ns, s.keys.namespace(name, ns), func(data []byte) (topology.Namespace, error) {
		return topology.ParseNamespace(ns, data)
	})
}

// Node reads one node's record: ErrNotFound, or ErrInvalid where it does not parse.
func (s *Store) Node(ctx context.Context, ip netip.Addr) (Versioned[topology.Node], error) {
	cfg, err := s.Config(ctx)
	if err != nil {
		return Versioned[topology.Node]{}, err
	}
	return s.node(ctx, cfg.Value.Name, ip)
}

func (s *Store) node(ctx context.Context, name string, ip netip.Addr) (Versioned[topology.Node], error) {
	return read(ctx, s, "read node "+ip.String(), s.keys.node(name, ip), func(data []byte) (topology.Node, error) {
		return topology.ParseNode(ip.String(), data)
	})
}

// Released reads the list of freed netIDs and subnets of network name;
// ErrNotFound where no controller has run on it yet.
func (s *Store) Released(ctx context.Context, name string) (Versioned[Released], error) {
	return read(ctx, s, "read freed netIDs of network "+name, s.keys.released(name), func(data []byte) (Released, error) {
		var r Released
		err := json.Unmarshal(data, &r)
		return r, err
	})
}

// read gets and parses one record. One that does not parse comes with its
// revision, so that it can be replaced.
func read[T any](ctx context.Context, s *Store, op, key string, parse func([]byte) (T, error)) (Versioned[T], error) {
	k, ok, _, err := s.get(ctx, op, key)
	if err != nil {
		return Versioned[T]{}, err
	}
	if !ok {
		return Versioned[T]{}, &Error{Op: op, Kind: ErrNotFound, Cause: fmt.Errorf("there is no record %s", key)}
	}
	v, err := parse(k.value)
	if err != nil {
		return Versioned[T]{Revision: k.rev.Mod}, &Error{Op: op, Kind: ErrInvalid, Cause: err}
	}
	return Versioned[T]{Value: v, Revision: k.rev.Mod}, nil
}
