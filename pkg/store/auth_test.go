package store

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/k8s-ovs/k8s-ovs/pkg/pki"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

var unexported = cmp.AllowUnexported(Permission{}, step{})

// nodes is the access of nodes 192.0.2.1 to n, and of the common roles.
func nodes(n int) Access {
	a := Access{Roles: CommonRoles(DefaultPrefix, "k8ssdn"), Users: map[string][]string{}}
	for i := range n {
		user := pki.NodeUser(fmt.Sprintf("n%d", i+1), "id")
		a.Roles[user] = NodePermissions(DefaultPrefix, "k8ssdn", netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}))
		a.Users[user] = []string{user, ReaderRole}
	}
	return a
}

func TestDifference(t *testing.T) {
	read, write := Permission{From: "a", End: "b"}, Permission{From: "a", End: "b", Write: true}
	blind := write
	blind.blind = true
	other := Permission{From: "c"}
	ours := func(name string) bool { return strings.HasPrefix(name, "node") }
	for name, test := range map[string]struct {
		have, want Access
		steps      []step
	}{
		"nothing": {nodes(3), nodes(3), nil},
		"from nothing": {Access{}, Access{Roles: map[string][]Permission{"r": {read}}, Users: map[string][]string{"node": {"r"}}}, []step{
			{verb: addRole, name: "r"}, {verb: grant, name: "r", perm: read}, {verb: addUser, name: "node"}, {verb: grantRole, name: "node", role: "r"}}},
		"only ours go": {Access{Roles: map[string][]Permission{"root": nil, "node1": nil}, Users: map[string][]string{"root": {"root"}, "node1": {"node1"}}}, Access{}, []step{
			{verb: deleteUser, name: "node1"}, {verb: deleteRole, name: "node1"}}},
		"another key: first the new one": {Access{Roles: map[string][]Permission{"r": {read, other}}}, Access{Roles: map[string][]Permission{"r": {write}}}, []step{
			{verb: grant, name: "r", perm: write}, {verb: revoke, name: "r", perm: other}}},
		"a right without reading": {Access{Roles: map[string][]Permission{"r": {blind}}}, Access{Roles: map[string][]Permission{"r": {write}}}, []step{{verb: grant, name: "r", perm: write}}},
		"a role too many": {Access{Users: map[string][]string{"node1": {"node1", "root"}}}, Access{Users: map[string][]string{"node1": {"node1"}}}, []step{
			{verb: revokeRole, name: "node1", role: "root"}}},
	} {
		if diff := cmp.Diff(test.steps, difference(test.have, test.want, ours), unexported); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// TestAccess: what is set is read back, and is what each may do.
func TestAccess(t *testing.T) {
	e, root := secured(t)
	ctx := ctxOf(t)
	if _, err := root.PutConfig(ctx, topology.DefaultConfig()); err != nil {
		t.Fatal(err)
	}
	set := func(want Access) {
		t.Helper()
		have, err := root.Auth().Access(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := root.Auth().SetAccess(ctx, have, want, pki.IsNodeUser); err != nil {
			t.Fatal(err)
		}
		have, err = root.Auth().Access(ctx)
		if err != nil {
			t.Fatal(err)
		}
		want.Roles["root"] = have.Roles["root"]
		want.Users["root"] = []string{"root"}
		if diff := cmp.Diff(want, have, unexported); diff != "" {
			t.Fatalf("read back (-want +got):\n%s", diff)
		}
	}
	set(nodes(2))
	n1 := as(t, e, pki.NodeUser("n1", "id"))
	ip := netip.MustParseAddr("192.0.2.1")
	if _, err := n1.PutNodeMTU(ctx, topology.NodeMTU{Host: "n1", HostIP: ip}); err != nil {
		t.Errorf("its own MTU: %v", err)
	}
	// A lease belongs to whoever may write what it has.
	wrote := make(chan int64, 1)
	pods := n1.PodsPublisher("k8ssdn", 0, func(_ topology.NodePods, rev int64) { wrote <- rev })
	defer pods.Close()
	pods.Set(topology.NodePods{Host: "n1", HostIP: ip})
	<-wrote
	puts := func(key string) func() error {
		return func() error {
			_, err := call(ctx, n1, "write "+key, func(ctx context.Context, c *clientv3.Client) (*clientv3.PutResponse, error) {
				return c.Put(ctx, ofPolicy(key), "{}")
			})
			return err
		}
	}
	for name, attempt := range map[string]func() error{
		"another's pods": puts("pods/192.0.2.2"), "isolation": puts("isolation/a"), "a policy": puts("policies/a/b"),
		"a set": puts("sets/" + setA + "/172.11.0.0"), "its own acknowledgement": puts("acknowledged/192.0.2.1"),
		"another's MTU": func() error {
			_, err := n1.PutNodeMTU(ctx, topology.NodeMTU{Host: "n2", HostIP: netip.MustParseAddr("192.0.2.2")})
			return err
		},
		"a namespace": func() error { return n1.EnsureNamespace(ctx, "red") },
		"a node":      func() error { return n1.EnsureNode(ctx, "n9", netip.MustParseAddr("192.0.2.9")) },
		"users":       func() error { _, err := n1.Auth().Access(ctx); return err },
		"the lead":    func() error { _, err := n1.Campaign(ctx, "k8ssdn", "n1", 0); return err },
	} {
		if err := attempt(); !errors.Is(err, ErrDenied) {
			t.Errorf("%s: %v, want it refused", name, err)
		}
	}
	if err := root.Auth().EnsureUser(ctx, "k8ssdn", pki.OperatorUser("me"), OperatorRole, ReaderRole); err != nil {
		t.Fatal(err)
	}
	me := as(t, e, pki.OperatorUser("me"))
	if err := me.EnsureNamespace(ctx, "red"); err != nil {
		t.Errorf("an operator: %v", err)
	}
	if _, err := me.PutNodeMTU(ctx, topology.NodeMTU{Host: "n1", HostIP: ip}); !errors.Is(err, ErrDenied) {
		t.Errorf("an operator writes a node's MTU: %v", err)
	}
	if err := ensureShared(ctx, root, pki.SharedUser); err != nil {
		t.Fatal(err)
	}
	shared := as(t, e, pki.SharedUser)
	if err := shared.EnsureNamespace(ctx, "blue"); err != nil {
		t.Errorf("the shared user: %v", err)
	}
	if err := root.Auth().DropShared(ctx, pki.SharedUser); err != nil {
		t.Fatal(err)
	}
	if err := shared.EnsureNamespace(ctx, "green"); !errors.Is(err, ErrDenied) {
		t.Errorf("the shared user that went: %v", err)
	}
	if _, err := n1.Config(ctx); err != nil {
		t.Fatal(err)
	}
	// The node goes; people stay.
	want := nodes(0)
	want.Users[pki.OperatorUser("me")] = []string{OperatorRole, ReaderRole}
	set(want)
	if _, err := n1.Config(ctx); !errors.Is(err, ErrDenied) {
		t.Errorf("a node that went: %v", err)
	}
}

// TestWritesWhileUsersChange: etcd refuses what is under way while users change
// (ErrAuthOldRevision), and the library tries it again: nobody notices.
func TestWritesWhileUsersChange(t *testing.T) {
	e, root := secured(t)
	ctx := ctxOf(t)
	if _, err := root.PutConfig(ctx, topology.DefaultConfig()); err != nil {
		t.Fatal(err)
	}
	if _, err := root.Auth().SetAccess(ctx, Access{}, nodes(1), pki.IsNodeUser); err != nil {
		t.Fatal(err)
	}
	writing, stop := context.WithCancel(ctx)
	var writers sync.WaitGroup
	var mu sync.Mutex
	writes := 0
	for range 3 {
		writers.Go(func() {
			s := as(t, e, pki.NodeUser("n1", "id"))
			for writing.Err() == nil {
				_, err := call(ctx, s, "write", func(ctx context.Context, c *clientv3.Client) (*clientv3.PutResponse, error) {
					return c.Put(ctx, s.keys.ofNode("k8ssdn", kindMTU, netip.MustParseAddr("192.0.2.1")), "x")
				})
				if err != nil {
					t.Errorf("a write: %v", err)
					return
				}
				mu.Lock()
				writes++
				mu.Unlock()
			}
		})
	}
	for _, n := range []int{10, 1, 10, 1} {
		have, err := root.Auth().Access(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := root.Auth().SetAccess(ctx, have, nodes(n), pki.IsNodeUser); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	writers.Wait()
	if writes == 0 {
		t.Error("nothing was written meanwhile")
	}
	t.Logf("%d writes", writes)
}

func TestNoUsers(t *testing.T) {
	_, s := network(t)
	if state, err := s.Auth().State(ctxOf(t)); err != nil || state.Enabled {
		t.Errorf("%+v, %v", state, err)
	}
}

// ensureShared makes user, whose role of the same name has all rights to the records: what
// all programs were before each had an identity of its own.
func ensureShared(ctx context.Context, s *Store, user string) error {
	have, err := s.Auth().Access(ctx)
	if err != nil {
		return err
	}
	want := Access{Roles: map[string][]Permission{user: {below(s.keys.prefix+"/", true)}}, Users: map[string][]string{user: {user}}}
	_, err = s.Auth().SetAccess(ctx, have, want, nobody)
	return err
}
