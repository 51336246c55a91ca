package etcd

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/k8s-ovs/k8s-ovs/pkg/pki"
	"github.com/k8s-ovs/k8s-ovs/test/freeport"
)

// nodeClient is a client of an etcd of its own, as a node.
func nodeClient(t *testing.T) (c *clientv3.Client, left *budget, name string) {
	t.Helper()
	dir, address := shortDir(t), freeport.Loopback(t).String()
	s, a := serve(t, dir, "https://"+address)
	node := pki.NodeUser("n1", "1")
	addUser(t, dial(t, s.Endpoint(), nil), node)
	c = dial(t, "https://"+address, user(t, a, a.CA, node, time.Hour))
	return c, s.guard.budgets.of(node), node
}

// TestNodesTransactions: a small transaction cannot ask for many times all that there is.
func TestNodesTransactions(t *testing.T) {
	c, _, node := nodeClient(t)
	get := clientv3.OpGet(node)
	if _, err := c.Txn(t.Context()).Then(clientv3.OpTxn(nil, []clientv3.Op{get}, nil)).Commit(); !refused(err) {
		t.Errorf("a transaction in a transaction: %v", err)
	}
	many := make([]clientv3.Op, maxRanges)
	for i := range many {
		many[i] = get
	}
	if _, err := c.Txn(t.Context()).Then(many...).Commit(); err != nil {
		t.Errorf("%d ranges: %v", len(many), err)
	}
	if _, err := c.Txn(t.Context()).Then(many...).Else(get).Commit(); !refused(err) {
		t.Errorf("%d ranges: %v", len(many)+1, err)
	}
}

// TestNodesWatchesCount: to end watches that are none makes no room for others. As many from an older revision as
// an agent has for policies, one for each set of addresses, cost nothing.
func TestNodesWatchesCount(t *testing.T) {
	c, left, node := nodeClient(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w, err := pb.NewWatchClient(c.ActiveConnection()).Watch(ctx)
	must(t, "watch", err)
	const watches = 500
	for range watches {
		must(t, "create", w.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte(node), StartRevision: 1}}}))
		must(t, "cancel", w.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: 1 << 40}}}))
	}
	counted := func() int {
		left.mu.Lock()
		defer left.mu.Unlock()
		return left.watches
	}
	var last int64
	for range watches {
		r, err := w.Recv()
		must(t, "created", err)
		last = r.WatchId
	}
	if n := counted(); n != watches || left.read.Tokens() < readBurst/2 {
		t.Errorf("%d watches are counted, of %d; %v bytes are left to read", n, watches, left.read.Tokens())
	}
	must(t, "cancel", w.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: last}}}))
	if r, err := w.Recv(); err != nil || !r.Canceled {
		t.Fatalf("%v, %v: want that a watch has ended", r, err)
	}
	for deadline := time.Now().Add(patience); counted() != watches-1; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d watches are counted after one has ended, of %d", counted(), watches)
		}
	}
}

// TestNodesReads: few requests of a node are answered at a time, and as many as may wait for that.
func TestNodesReads(t *testing.T) {
	g := &guard{}
	left := g.budgets.of(pki.NodeUser("n1", "1"))
	var now, most, served, refusals atomic.Int64
	var all sync.WaitGroup
	release := make(chan struct{})
	for range 2 * (maxReading + maxWaiting) {
		all.Go(func() {
			done, err := left.begin(t.Context())
			if err != nil {
				if !refused(err) {
					t.Error(err)
				}
				refusals.Add(1)
				return
			}
			defer done()
			served.Add(1)
			if n := now.Add(1); n > most.Load() {
				most.Store(n)
			}
			<-release
			now.Add(-1)
		})
	}
	for deadline := time.Now().Add(patience); refusals.Load() < maxReading+maxWaiting && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	close(release)
	all.Wait()
	if most.Load() > maxReading || served.Load() != maxReading+maxWaiting {
		t.Errorf("%d at a time of at most %d, %d served of %d", most.Load(), maxReading, served.Load(), maxReading+maxWaiting)
	}
	ctx, cancel := context.WithCancel(t.Context())
	for range maxReading {
		done, err := left.begin(ctx)
		must(t, "begin", err)
		defer done()
	}
	cancel()
	if _, err := left.begin(ctx); err == nil {
		t.Error("one that was given up is served")
	}
}
