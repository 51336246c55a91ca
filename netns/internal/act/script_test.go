package act

import (
	"context"
	"net/netip"

	"github.com/k8s-ovs/k8s-ovs/netns/internal/plan"
	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// The request in these tests is written at this revision; the records before
// it are older.
const requested = 50

// script is a Store of which the test decides what it shows and when. The real
// one is in the tests of package cli.
type script struct {
	records  chan store.Records
	statuses chan map[netip.Addr]topology.NodeStatus
	snapshot store.Records // at the start, and again after a withdrawal
	after    func(*script) // runs when the request is withdrawn

	leader      string
	requests    []plan.Request
	withdrawn   []int64
	requestErr  error
	away        int           // requests of which etcd's answer is lost, before requestErr
	lost        func(*script) // runs then
	unread      int           // readings that etcd does not answer, before snapshotErr
	snapshotErr error
	withdrawErr error
	forced      int // requests that were forced
}

func newScript() *script {
	return &script{
		records:  make(chan store.Records, 10),
		statuses: make(chan map[netip.Addr]topology.NodeStatus, 10),
		snapshot: records(10, space("a", 100), space("b", 200), space("c", 200)),
	}
}

func (s *script) Snapshot(context.Context) (topology.Snapshot, store.Revs, error) {
	return s.snapshot.Snapshot, s.snapshot.Revs, s.snapshotErr
}

func (s *script) RequestAction(_ context.Context, ns string, a topology.Action, target string) (int64, error) {
	s.requests = append(s.requests, plan.Request{Action: a, Namespace: ns, Target: target})
	if s.away > 0 {
		s.away--
		if s.lost != nil {
			s.lost(s)
		}
		return 0, &store.Error{Op: "request", Kind: store.ErrUnavailable, Cause: context.DeadlineExceeded}
	}
	return requested, s.requestErr
}

func (s *script) ForceAction(ctx context.Context, ns string, a topology.Action, target string) (int64, error) {
	s.forced++
	return s.RequestAction(ctx, ns, a, target)
}

func (s *script) WithdrawAction(ctx context.Context, _ string, rev int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.withdrawn = append(s.withdrawn, rev)
	if s.after != nil {
		s.after(s)
	}
	return s.withdrawErr
}

func (s *script) Leader(context.Context, string) (string, error) {
	if s.leader == "" {
		return "", store.ErrNotFound
	}
	return s.leader, nil
}

func (s *script) FollowRecords(ctx context.Context) (<-chan store.Records, error) {
	if s.unread > 0 {
		s.unread--
		return nil, &store.Error{Op: "read", Kind: store.ErrUnavailable, Cause: context.DeadlineExceeded}
	}
	if s.snapshotErr != nil {
		return nil, s.snapshotErr
	}
	out := make(chan store.Records, 1)
	out <- s.snapshot
	go func() {
		defer close(out)
		for {
			select {
			case r, open := <-s.records:
				if !open {
					return
				}
				out <- r
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, nil
}

func (s *script) WatchStatuses(context.Context) <-chan map[netip.Addr]topology.NodeStatus {
	return s.statuses
}

func space(name string, id netid.ID) topology.Namespace {
	n := int64(id)
	return topology.Namespace{NetName: name, NetID: &n, Effective: &id}
}

func pending(n topology.Namespace, a topology.Action, target string) topology.Namespace {
	n.Action, n.Namespace = a, target
	return n
}

func refused(n topology.Namespace, why string) topology.Namespace {
	n.Status = &topology.Status{Message: why}
	return n
}

func said(n topology.Namespace, o topology.Outcome, by string) topology.Namespace {
	n.Status = &topology.Status{Outcome: o, Message: string(o) + ": x", By: by}
	return n
}

func addr(last byte) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, last}) }

// records is all records, namespaces at revision rev and two nodes.
func records(rev int64, spaces ...topology.Namespace) store.Records {
	r := store.Records{
		Snapshot: topology.Snapshot{Revision: rev, Config: topology.DefaultConfig(), Namespaces: map[string]topology.Namespace{}, Nodes: map[netip.Addr]topology.Node{}},
		Revs:     store.Revs{Namespaces: map[string]store.Rev{}},
	}
	for _, n := range spaces {
		r.Namespaces[n.NetName] = n
		r.Revs.Namespaces[n.NetName] = store.Rev{Mod: rev, Create: 5}
	}
	for i, name := range []string{"n1", "n2"} {
		r.Nodes[addr(byte(i+1))] = topology.Node{Host: name, HostIP: addr(byte(i + 1)), Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 11, byte(4 * i), 0}), 22)}
	}
	return r
}

// reports is the status of n1 and n2 at these revisions; 0 for not live.
func reports(revs ...int64) map[netip.Addr]topology.NodeStatus {
	all := map[netip.Addr]topology.NodeStatus{}
	for i, rev := range revs {
		if rev > 0 {
			a := addr(byte(i + 1))
			all[a] = topology.NodeStatus{Host: "n" + string(rune('1'+i)), HostIP: a, Revision: rev}
		}
	}
	return all
}

func joinAB() plan.Request { return plan.Request{Action: topology.Join, Namespace: "a", Target: "b"} }
