package lead

import (
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/pki"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/test/etcdtest"
)

// as opens the records of a secured etcd as user.
func as(t *testing.T, e *etcdtest.Server, user string) *store.Store {
	t.Helper()
	file := e.BundleFile(user, time.Hour)
	s, err := store.Open(store.Config{Endpoints: e.Endpoints, CAFile: file, CertFile: file, KeyFile: file, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// testSigner signs with the CA of a test's etcd.
type testSigner struct{ ca *pki.Pair }

func (s testSigner) Sign(request []byte, user string) ([]byte, error) {
	return s.ca.Sign(request, user, time.Hour, time.Now())
}

func (s testSigner) Trust() []byte { return s.ca.CertPEM }

var ip1 = netip.MustParseAddr("192.0.2.1")

// TestUsersFollowRecords: each node has a user for as long as it has a record.
func TestUsersFollowRecords(t *testing.T) {
	e := etcdtest.StartSecured(t)
	ctx := ctxOf(t)
	root := as(t, e, pki.RootUser)
	// Left over from before, and somebody else's.
	ghost := pki.NodeUser("ghost", "x")
	for _, user := range []string{ghost, "people"} {
		if err := root.Auth().EnsureUser(ctx, "k8ssdn", user, store.ReaderRole); err != nil {
			t.Fatal(err)
		}
	}
	c := start(t, e, "a", func(cfg *Config) { cfg.Store, cfg.Signer = as(t, e, pki.RootUser), testSigner{e.CA} })
	has := func(user string, roles ...string) bool {
		there, err := root.Auth().HasUser(ctx, user, roles...)
		return err == nil && there
	}
	eventually(t, "a user that nobody stands for goes", func() bool { return !has(ghost) })
	if !has("people", store.ReaderRole) {
		t.Error("another's user went")
	}
	eventually(t, "the configuration", func() bool { _, err := root.Config(ctx); return err == nil })
	if err := root.Identify(ctx, "n1", ip1, "i1"); err != nil {
		t.Fatal(err)
	}
	user := pki.NodeUser("n1", "i1")
	eventually(t, "the node's user", func() bool { return has(user, user, store.ReaderRole) })
	n1 := as(t, e, user)

	// What it asks for.
	key, _, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	request, err := pki.Request(key, user)
	if err != nil {
		t.Fatal(err)
	}
	if err := n1.PutRequest(ctx, topology.Request{Host: "n1", HostIP: ip1, Namespaces: []string{"blue", "red"}, CSR: string(request)}); err != nil {
		t.Fatal(err)
	}
	for _, ns := range []string{"blue", "red"} {
		waitNamespace(t, n1, ns, "a netID", func(n topology.Namespace, ok bool) bool { return ok && n.Effective != nil })
	}
	cert, err := n1.WaitCertificate(ctx, ip1, func(c topology.Certificate) bool { return c.Certificate != "" })
	if err != nil || cert.CA != string(e.CA.CertPEM) {
		t.Errorf("its certificate: %v", err)
	}
	eventually(t, "its subnet", func() bool { n, err := root.Node(ctx, ip1); return err == nil && n.Value.Ready() })

	// Another identity, and then none.
	if err := root.Identify(ctx, "n1", ip1, "i2"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the identity before is no user", func() bool { return !has(user) && has(pki.NodeUser("n1", "i2")) })
	if _, err := n1.Config(ctx); !errors.Is(err, store.ErrDenied) {
		t.Errorf("it reads: %v", err)
	}
	if err := root.DeleteNode(ctx, ip1); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a node that went is no user", func() bool { return !has(pki.NodeUser("n1", "i2")) })
	for answers := range root.WatchRequests(ctx) {
		if _, left := answers.Answers[ip1]; !left {
			break // a node that went leaves no certificate
		}
	}
	if err := ctx.Err(); err != nil {
		t.Fatalf("the certificate of a node that went is still there: %v", err)
	}
	// What it had asked for does not bring it back.
	if err := root.PutRequest(ctx, topology.Request{Host: "n1", HostIP: ip1, Subnet: true}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is refused", func() bool { return strings.Contains(c.log.String(), "it needs a bundle") })
	if _, err := root.Node(ctx, ip1); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a node that was removed is back: %v", err)
	}
}

// TestUsersMended: what somebody changes by hand is put right by the next leader.
func TestUsersMended(t *testing.T) {
	e := etcdtest.StartSecured(t)
	ctx := ctxOf(t)
	root := as(t, e, pki.RootUser)
	secured := func(cfg *Config) { cfg.Store = as(t, e, pki.RootUser) }
	c := start(t, e, "a", secured)
	eventually(t, "the configuration", func() bool { _, err := root.Config(ctx); return err == nil })
	if err := root.Identify(ctx, "n1", ip1, "i1"); err != nil {
		t.Fatal(err)
	}
	user := pki.NodeUser("n1", "i1")
	whole := func() bool {
		there, err := root.Auth().HasUser(ctx, user, user, store.ReaderRole)
		return err == nil && there
	}
	eventually(t, "the node's user", whole)
	c.stop()
	if err := root.Auth().EnsureUser(ctx, "k8ssdn", user, store.OperatorRole); err != nil {
		t.Fatal(err)
	}
	start(t, e, "b", secured)
	eventually(t, "its own rights are back", whole)
	eventually(t, "others are not its own", func() bool {
		more, err := root.Auth().HasUser(ctx, user, store.OperatorRole)
		return err == nil && !more
	})
}

// TestRequestsWithoutUsers: in an etcd without users a node registers itself by asking.
func TestRequestsWithoutUsers(t *testing.T) {
	e := etcdtest.Start(t)
	ctx := ctxOf(t)
	c := start(t, e, "a", nil)
	s := open(t, e)
	eventually(t, "the configuration", func() bool { _, err := s.Config(ctx); return err == nil })
	if err := s.PutRequest(ctx, topology.Request{Host: "n1", HostIP: ip1, Subnet: true, Namespaces: []string{"red"}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a subnet", func() bool { n, err := s.Node(ctx, ip1); return err == nil && n.Value.Ready() && n.Value.Host == "n1" })
	eventually(t, "a netID", func() bool { n, err := s.Namespace(ctx, "red"); return err == nil && n.Value.Effective != nil })
	if log := c.log.String(); strings.Count(log, "no rights of their own") != 1 {
		t.Errorf("it does not say, once, that nodes have no identities:\n%s", log)
	}
}

// TestNamespacesGranted: what one node may ask for is bounded, and is not taken from others.
func TestNamespacesGranted(t *testing.T) {
	var i identities
	a, b := netip.MustParseAddr("198.18.0.1"), netip.MustParseAddr("198.18.0.2")
	got := 0
	for range 100 {
		got += i.grant(a, topology.MaxRequestedNamespaces)
	}
	if got < namespacesAtOnce || got > namespacesAtOnce+10 {
		t.Errorf("one got %d", got)
	}
	if got := i.grant(b, 7); got != 7 {
		t.Errorf("another got %d of 7", got)
	}
}
