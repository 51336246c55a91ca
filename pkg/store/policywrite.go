package store

import (
	"context"
	"fmt"
	"net/netip"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// PolicyKey is the key of a record that the leader writes of policies, without what stands
// before it in every key of the network: "isolation/shop".
type PolicyKey string

// IsolationKey is that of [topology.Isolation].
func IsolationKey(namespace string) PolicyKey { return PolicyKey(kindIsolation + namespace) }

// PolicyRecordKey is that of [topology.PolicyRecord].
func PolicyRecordKey(namespace, name string) PolicyKey {
	return PolicyKey(kindPolicies + namespace + "/" + name)
}

// ClusterPolicyKey is that of [topology.ClusterPolicyRecord].
func ClusterPolicyKey(name string) PolicyKey { return PolicyKey(kindClusterPolicies + name) }

// SetKey is that of [topology.AddressSet].
func SetKey(hash string) PolicyKey { return PolicyKey(kindSets + hash + "/" + lastOf) }

// ChunkKey is that of [topology.SetChunk]; base is the network address of its /24.
func ChunkKey(hash string, base netip.Addr) PolicyKey {
	return PolicyKey(kindSets + hash + "/" + base.String())
}

// AcknowledgedKey is that of [topology.Acknowledged].
func AcknowledgedKey(ip netip.Addr) PolicyKey { return PolicyKey(kindAcknowledged + ip.String()) }

// PolicyRecords reads all records that the leader writes of policies, as they stand.
func (l *Leadership) PolicyRecords(ctx context.Context) (map[PolicyKey]Versioned[string], error) {
	all, err := l.store.list(ctx, kindIsolation, kindPolicies, kindClusterPolicies, kindSets, kindAcknowledged)
	if err != nil {
		return nil, err
	}
	out := map[PolicyKey]Versioned[string]{}
	for i, kind := range all.names {
		for _, k := range all.kinds[i] {
			key := PolicyKey(kind + l.store.keys.last(k.key, l.name, kind))
			out[key] = Versioned[string]{Value: string(k.value), Revision: k.rev.Mod}
		}
	}
	return out, nil
}

// PolicyChange is a record of policies to be written.
type PolicyChange struct {
	Key PolicyKey
	// Value is the record as it is to stand; empty: it is deleted.
	Value string
	// Revision that was read; 0: there is no record.
	Revision int64
}

// PutPolicies makes all changes in one transaction if each record still is at its revision,
// and else none of them. It returns the new revision, which all of them have. At most
// [MaxBatch] changes. ErrConflict, ErrDeposed; ErrInvalid where that is more than etcd takes
// in a transaction, and nothing was written.
func (l *Leadership) PutPolicies(ctx context.Context, changes []PolicyChange) (int64, error) {
	op := fmt.Sprintf("write %d records of policies", len(changes))
	var compares []clientv3.Cmp
	var ops []clientv3.Op
	size := 0
	for _, c := range changes {
		key := l.store.keys.kind(l.name, string(c.Key))
		if size += len(key) + len(c.Value); size > MaxBatchBytes {
			return 0, &Error{Op: op, Kind: ErrInvalid, Cause: fmt.Errorf("they have more than %d bytes", MaxBatchBytes)}
		}
		compares = append(compares, clientv3.Compare(clientv3.ModRevision(key), "=", c.Revision))
		if c.Value == "" {
			ops = append(ops, clientv3.OpDelete(key))
		} else {
			ops = append(ops, clientv3.OpPut(key, c.Value))
		}
	}
	rev, err := l.fenced(ctx, op, compares, ops)
	if cause := tooLarge(err); cause != nil {
		return 0, &Error{Op: op, Kind: ErrInvalid, Cause: cause}
	}
	return rev, err
}
