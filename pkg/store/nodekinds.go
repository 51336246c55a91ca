package store

import (
	"cmp"
	"context"
	"net/netip"
	"slices"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// nodeKind is a kind of records of which a node has one, under its address: <prefix>/<Name>/<kind>/<nodeIP>. What a node may write, and
// what is deleted when it is gone, follow from this table; docs/design.md and docs/identities.md say the same, which a test sees to.
type nodeKind struct {
	kind string
	// byNode: the node may write it. All others are the leader's.
	byNode bool
	ends   nodeEnd
}

// nodeEnd is who takes the record of a node that is gone away. Somebody must: the next node with that address would be taken for it.
type nodeEnd int

const (
	// endsWithLease: etcd, some seconds after the node's agent was heard of last.
	endsWithLease nodeEnd = iota + 1
	// endsWithNode: the leader, when the node's record is gone: see [Leadership.DropLeft].
	endsWithNode
	// endsWithAnswer: the leader, which drops requests of nobody; a request may come before its node's record.
	endsWithAnswer
	// endsWithPods: the leader, with the node's members of sets.
	endsWithPods
)

var nodeKinds = []nodeKind{
	{kindStatus, true, endsWithLease},
	{kindLimits, true, endsWithLease},
	{kindPods, true, endsWithLease},
	{kindMTU, true, endsWithNode},
	{kindRequests, true, endsWithAnswer},
	{kindCerts, false, endsWithNode},
	{kindAcknowledged, false, endsWithPods},
}

// NodePermissions are those of the node with address ip, beside reading.
func NodePermissions(prefix, name string, ip netip.Addr) []Permission {
	k := keyspace{prefix}
	var all []Permission
	for _, n := range nodeKinds {
		if n.byNode {
			all = append(all, Permission{From: k.ofNode(name, n.kind, ip), Write: true})
		}
	}
	slices.SortFunc(all, func(a, b Permission) int { return cmp.Compare(a.From, b.From) })
	return all
}

// DropLeft deletes what nodes left that have no record any more, and returns which, each as its kind with the node's address (mtu/192.0.2.7).
// ErrConflict where one changed meanwhile, ErrDeposed.
func (l *Leadership) DropLeft(ctx context.Context) (dropped []string, err error) {
	kinds := []string{kindNodes}
	for _, n := range nodeKinds {
		if n.ends == endsWithNode {
			kinds = append(kinds, n.kind)
		}
	}
	all, err := l.store.list(ctx, kinds...)
	if err != nil {
		return nil, err
	}
	present := map[string]bool{}
	for _, k := range all.kinds[0] {
		present[l.store.keys.last(k.key, l.name, kindNodes)] = true
	}
	for i, kind := range kinds[1:] {
		for _, k := range all.kinds[i+1] {
			node := l.store.keys.last(k.key, l.name, kind)
			if present[node] {
				continue
			}
			if _, err := l.transact(ctx, "delete what node "+node+" left", k.key, k.rev.Mod, clientv3.OpDelete(k.key)); err != nil {
				return dropped, err
			}
			dropped = append(dropped, kind+node)
		}
	}
	return dropped, nil
}
