package lead

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/test/etcdtest"
)

// reaper kills a leader at one of its writes, on etcd's side: whatever it wanted to write there.
type reaper struct {
	mu sync.Mutex
	// prefix is where the leader's records are; kill ends it; nil for nobody.
	prefix string
	kill   func()
	// left is how many writes it has, late that the last of them is still made.
	left, writes int
	late         bool
}

// watch has the leader of the records below prefix killed at its n-th write.
func (r *reaper) watch(prefix string, n int, late bool, kill func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.prefix, r.left, r.writes, r.late, r.kill = prefix, n, 0, late, kill
}

// due counts a write of the leader, and reports whether it is its last.
func (r *reaper) due(req any) (kill func(), late bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	txn, ok := req.(*pb.TxnRequest)
	if !ok || r.kill == nil || !slices.ContainsFunc(txn.Success, func(op *pb.RequestOp) bool {
		put := op.GetRequestPut()
		return put != nil && strings.HasPrefix(string(put.Key), r.prefix) && strings.HasSuffix(string(put.Key), "/history/now")
	}) {
		return nil, false
	}
	if r.writes++; r.writes <= r.left {
		return nil, false
	}
	kill = r.kill
	r.kill = nil
	return kill, r.late
}

func (r *reaper) intercept(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	kill, late := r.due(req)
	if kill == nil {
		return handler(ctx, req)
	}
	if late {
		_, _ = handler(ctx, req)
	}
	kill()
	return nil, status.Error(codes.Unavailable, "the leader is dead")
}

// TestKilledAtAnyWrite: a leader dies at each of its writes, whichever it is: in turn before it was made, and
// after it was made but before the answer came. Another finishes what it had begun: the records
// come to say what they do where nobody died.
func TestKilledAtAnyWrite(t *testing.T) {
	t.Parallel()
	reap := &reaper{}
	e := etcdtest.Start(t, func(c *embed.Config) {
		c.GRPCAdditionalServerOptions = append(c.GRPCAdditionalServerOptions, grpc.ChainUnaryInterceptor(reap.intercept))
	})
	undisturbed, writes := lives(t, e, reap, "undisturbed", 1<<20, false)
	if writes < 12 {
		t.Fatalf("a story of %d writes tells nothing", writes)
	}
	for n := range writes {
		late := n%2 == 1
		got, _ := lives(t, e, reap, fmt.Sprintf("write%d-%t", n, late), n, late)
		if diff := cmp.Diff(undisturbed, got); diff != "" {
			t.Errorf("killed at write %d (made: %t) (-undisturbed +got):\n%s", n, late, diff)
		}
	}
	t.Logf("%d writes", writes)
}

// lives has a controller live through a story, in records of their own, and be killed at its n-th
// write; then another goes on. It returns what the records come to, and how many writes the first made.
func lives(t *testing.T, e *etcdtest.Server, reap *reaper, name string, n int, late bool) (outcome []string, writes int) {
	t.Helper()
	prefix := "/" + name
	at := func() *store.Store {
		s, err := store.Open(store.Config{Endpoints: e.Endpoints, Prefix: prefix, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	s := at()
	if _, err := s.PutConfig(ctxOf(t), topology.DefaultConfig()); err != nil {
		t.Fatal(err)
	}
	var leaders sync.WaitGroup
	ctx, cancel := context.WithCancel(ctxOf(t))
	lead := func(id string) (kill func()) {
		theirs := at()
		c := New(Config{
			Store: theirs, ID: id, Network: topology.DefaultConfig(), LeaderTTL: 10 * time.Second, Random: rand.Reader,
			Metrics: NewMetrics(prometheus.NewRegistry()), Logger: slog.New(slog.DiscardHandler),
		})
		leaders.Go(func() { c.Run(ctx) })
		// Whoever dies takes nothing back. Its lease would run out; this is quicker.
		return func() {
			theirs.Close()
			go bury(e.Client(), prefix)
		}
	}
	defer leaders.Wait()
	defer cancel()
	reap.watch(prefix, n, late, lead("one"))
	// The next one stands in line before the first dies, as in a cluster.
	eventually(t, "the first leads", func() bool { id, err := s.Leader(ctx, "k8ssdn"); return n < 2 || err == nil && id == "one" })
	lead("two")

	addr := func(i byte) netip.Addr { return netip.AddrFrom4([4]byte{198, 18, 0, i}) }
	for i := byte(1); i <= 2; i++ {
		if err := s.EnsureNode(ctx, fmt.Sprint("n", i), addr(i)); err != nil {
			t.Fatal(err)
		}
		subnetOf(t, s, addr(i))
		defer hold(t, at(), fmt.Sprint("n", i), addr(i), topology.Snapshot{}).end()
	}
	eventually(t, "nodes report", func() bool { all, err := s.Statuses(ctx); return err == nil && len(all) == 2 })
	ensure(t, s, "a", "b", "c", "d")
	for _, ns := range []string{"a", "b", "c", "d"} {
		id(t, s, ns)
	}
	request(t, s, "a", topology.Join, "b")
	request(t, s, "c", topology.MakeGlobal, "")
	request(t, s, "d", topology.Isolate, "") // alone: nothing to do
	still := func(ns string) {
		waitNamespace(t, s, ns, "at rest", func(n topology.Namespace, ok bool) bool {
			return ok && n.Action == topology.None && !n.Change.UnderWay() && n.Effective != nil
		})
	}
	for _, ns := range []string{"a", "c", "d"} {
		still(ns)
	}
	if err := s.DeleteNamespace(ctx, "d"); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteNode(ctx, addr(2)); err != nil {
		t.Fatal(err)
	}
	request(t, s, "b", topology.Isolate, "")
	still("b")
	ensure(t, s, "e")
	still("e")
	reap.mu.Lock()
	writes = reap.writes
	reap.kill = nil
	reap.mu.Unlock()
	return told(t, s), writes
}

// bury ends the lease of the leader of the records below prefix.
func bury(c *clientv3.Client, prefix string) {
	r, err := c.Get(context.Background(), prefix+"/k8ssdn/leader/", clientv3.WithFirstCreate()...)
	if err == nil && len(r.Kvs) > 0 {
		_, _ = c.Revoke(context.Background(), clientv3.LeaseID(r.Kvs[0].Lease))
	}
}

// told is what records say, with letters for netIDs.
func told(t *testing.T, s *store.Store) (lines []string) {
	t.Helper()
	snapshot, _, err := s.Snapshot(ctxOf(t))
	if err != nil {
		t.Fatal(err)
	}
	letters := map[netid.ID]string{netid.Global: "global"}
	for _, name := range slices.Sorted(maps.Keys(snapshot.Namespaces)) {
		n := snapshot.Namespaces[name]
		if letters[*n.Effective] == "" {
			letters[*n.Effective] = string(rune('A' + len(letters)))
		}
		lines = append(lines, fmt.Sprintf("%s: %s, asks for %q, %v, %t", name, letters[*n.Effective], n.Action, n.Change, *n.NetID == int64(*n.Effective)))
	}
	for ip, n := range snapshot.Nodes {
		lines = append(lines, fmt.Sprintf("%s: %s, asks: %t", ip, n.Subnet, n.Assign))
	}
	slices.Sort(lines)
	return lines
}
