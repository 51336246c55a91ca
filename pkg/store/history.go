package store

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// putHistory takes in one of the records of a history, whose key ends in last; none where k
// is zero. What cannot be read is none: a leader writes it anew.
func putHistory(h topology.History, last string, k kv) topology.History {
	switch last {
	case historyNow:
		h.Now = topology.Point{}
		if k.rev.Mod != 0 {
			h.Now = topology.Point{Term: string(k.value), Revision: k.rev.Mod}
		}
	case historyTerms:
		var read topology.History
		_ = json.Unmarshal(k.value, &read)
		h.Terms, h.Older = read.Terms, read.Older
	}
	return h
}

// readHistory reads the history and the revision of its terms; 0 where there are none.
func (l *Leadership) readHistory(ctx context.Context) (h topology.History, terms int64, err error) {
	prefix := l.store.keys.kind(l.name, kindHistory)
	resp, err := call(ctx, l.store, "read the history of network "+l.name, func(ctx context.Context, c *clientv3.Client) (*clientv3.GetResponse, error) {
		return c.Get(ctx, prefix, clientv3.WithPrefix())
	})
	if err != nil {
		return h, 0, err
	}
	for _, each := range resp.Kvs {
		k := toKV(each)
		last := l.store.keys.last(k.key, l.name, kindHistory)
		h = putHistory(h, last, k)
		if last == historyTerms {
			terms = k.rev.Mod
		}
	}
	return h, terms, nil
}

// begin writes that another term begins, before anything else is written in it.
func (l *Leadership) begin(ctx context.Context) error {
	var id [8]byte
	_, _ = rand.Read(id[:]) // it never fails (crypto/rand)
	l.term = hex.EncodeToString(id[:])
	_, err := retryConflict(ctx, "begin a term", func() (int64, error) {
		h, terms, err := l.readHistory(ctx)
		if err != nil {
			return 0, err
		}
		return l.putHistory(ctx, h.Begin(l.term), terms)
	})
	return err
}

// TakeLost says that what etcd lost up to those points was put back, as far as it can be:
// nodes that hold it take from now on what etcd has. ErrDeposed.
func (l *Leadership) TakeLost(ctx context.Context, points []topology.Point) error {
	_, err := retryConflict(ctx, "end a restoration", func() (int64, error) {
		h, terms, err := l.readHistory(ctx)
		if err != nil {
			return 0, err
		}
		return l.putHistory(ctx, h.Take(points), terms)
	})
	return err
}

func (l *Leadership) putHistory(ctx context.Context, h topology.History, terms int64) (int64, error) {
	op, key := "write the history of network "+l.name, l.store.keys.historyTerms(l.name)
	h.Now = topology.Point{} // a record of its own
	data, err := json.Marshal(h)
	if err != nil {
		return 0, fmt.Errorf("%s: encode: %w", op, err)
	}
	return l.transact(ctx, op, key, terms, clientv3.OpPut(key, string(data)))
}
