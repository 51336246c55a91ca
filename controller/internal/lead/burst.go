package lead

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/k8s-ovs/k8s-ovs/controller/internal/cluster"
	"github.com/k8s-ovs/k8s-ovs/controller/internal/tenant"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
)

// sliceTime is how long one part of an act may go on writing before the newest records
// are looked at: by so much a burst of namespaces or nodes may delay a request. Much
// less, and more time is spent on plans than on writes.
const sliceTime = 200 * time.Millisecond

// slice begins one, and returns whether it is over.
func (t *term) slice() (over func() bool) {
	end := t.c.cfg.Now().Add(sliceTime)
	return func() bool { return !t.c.cfg.Now().Before(end) }
}

// batch are records of namespaces that do not build on each other.
type batch[T any] struct {
	writes []T
	put    func(T) store.NamespacePut
	// trying is told of each write before it is made, account what became of it.
	trying  func(T)
	account func(w T, rev int64, err error)
}

// giveFirst gives first netIDs.
func (t *term) giveFirst(ctx context.Context, writes []tenant.Write) (all bool, err error) {
	return writeBatches(ctx, t, batch[tenant.Write]{
		writes: writes,
		put: func(w tenant.Write) store.NamespacePut {
			return store.NamespacePut{Key: w.Key, Namespace: w.Namespace, Revision: w.Mod}
		},
		trying: t.tenants.Trying, account: t.account,
	})
}

// create makes the records of namespaces, each of which asks for a first netID.
func (t *term) create(ctx context.Context, writes []cluster.Write) (all bool, err error) {
	return writeBatches(ctx, t, batch[cluster.Write]{
		writes: writes,
		put: func(w cluster.Write) store.NamespacePut {
			return store.NamespacePut{Key: w.Key, Namespace: *w.Namespace, Revision: w.Revision}
		},
		trying: func(cluster.Write) {},
		account: func(w cluster.Write, rev int64, err error) {
			if err == nil {
				t.lastWrite = max(t.lastWrite, rev)
				t.logCluster(w, rev)
			}
		},
	})
}

// writeBatches writes until the slice is over. all is false where some were not written,
// because it was, or because their records had changed: the watch is about to say how.
func writeBatches[T any](ctx context.Context, t *term, b batch[T]) (all bool, err error) {
	over, all, first := t.slice(), true, true
	for writes := range slices.Chunk(b.writes, store.MaxBatch) {
		if !first && over() {
			return false, nil
		}
		first = false
		err := writeTogether(ctx, t, b, writes)
		if errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrInvalid) {
			// One record that changed meanwhile holds up no others; nor does an etcd that
			// takes less in one transaction.
			var whole bool
			whole, err = writeSingly(ctx, t, b, writes, over)
			all = all && whole
		}
		if err != nil {
			return false, err
		}
	}
	return all, nil
}

// writeTogether makes all of the writes in one transaction, or none.
func writeTogether[T any](ctx context.Context, t *term, b batch[T], writes []T) error {
	puts := make([]store.NamespacePut, len(writes))
	for i, w := range writes {
		puts[i] = b.put(w)
		b.trying(w)
	}
	rev, err := t.writer.PutNamespaces(ctx, puts)
	for _, w := range writes {
		b.account(w, rev, err)
	}
	return err
}

// writeSingly makes the writes one by one, and passes over those whose records changed.
func writeSingly[T any](ctx context.Context, t *term, b batch[T], writes []T, over func() bool) (all bool, err error) {
	all = true
	for i, w := range writes {
		if i > 0 && over() {
			return false, nil
		}
		p := b.put(w)
		b.trying(w)
		rev, err := t.writer.PutNamespace(ctx, p.Key, p.Namespace, p.Revision)
		b.account(w, rev, err)
		switch {
		case errors.Is(err, store.ErrConflict):
			t.c.cfg.Metrics.conflicts.Inc()
			all = false
		case err != nil:
			return false, err
		}
	}
	return all, nil
}
