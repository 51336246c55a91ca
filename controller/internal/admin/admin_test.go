package admin

import (
	"bytes"
	"context"
	"encoding/hex"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"

	"github.com/k8s-ovs/k8s-ovs/controller/internal/etcd"
	"github.com/k8s-ovs/k8s-ovs/controller/internal/identity"
	"github.com/k8s-ovs/k8s-ovs/pkg/pki"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/test/freeport"
)

// site is an embedded etcd, and a leader that does nothing but keep the nodes' users.
type site struct {
	t    *testing.T
	dir  string
	url  string
	root *store.Store
	etcd *etcd.Server
}

func newSite(t *testing.T) *site {
	t.Helper()
	dir, err := os.MkdirTemp("", "admin")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	a, err := etcd.EnsureAuthority(dir, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.EnsureServer([]netip.Addr{netip.MustParseAddr("127.0.0.1")}, time.Now()); err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, dir: dir, url: "https://" + freeport.Loopback(t).String()}
	server, err := etcd.Start(t.Context(), etcd.Config{DataDir: dir, ListenClientURLs: []string{s.url}, Authority: a, Logger: slog.New(slog.DiscardHandler), Metrics: etcd.NewMetrics(prometheus.NewRegistry())})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	s.etcd = server
	s.root = s.open(store.Config{Endpoints: []string{server.Endpoint()}})
	if _, err := s.root.PutConfig(t.Context(), topology.DefaultConfig()); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for r := range s.root.WatchRecords(ctx) {
			have, err := s.root.Auth().Access(ctx)
			if err == nil {
				_, _ = s.root.Auth().SetAccess(ctx, have, identity.Users(store.DefaultPrefix, r.Config.Name, r.Nodes), pki.IsNodeUser)
			}
		}
	}()
	t.Cleanup(func() { stop(); <-ended })
	return s
}

func (s *site) open(cfg store.Config) *store.Store {
	s.t.Helper()
	cfg.Logger, cfg.DialTimeout = slog.New(slog.DiscardHandler), 2*time.Second
	c, err := store.Open(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	return c
}

// run runs a command and returns what it prints.
func (s *site) run(args ...string) (string, error) {
	s.t.Helper()
	var out, errs bytes.Buffer
	err := Run(s.t.Context(), append(args, "--data-dir", s.dir), IO{&out, &errs}, pflag.NewFlagSet("", pflag.ContinueOnError))
	return out.String(), err
}

func (s *site) must(args ...string) string {
	s.t.Helper()
	out, err := s.run(args...)
	if err != nil {
		s.t.Fatalf("%v: %v", args, err)
	}
	return out
}

// as opens the records with a bundle.
func (s *site) as(bundle string) *store.Store {
	s.t.Helper()
	b, err := pki.ParseBundle([]byte(bundle))
	if err != nil {
		s.t.Fatal(err)
	}
	return s.open(store.Config{Endpoints: b.Endpoints, CA: b.CA, Cert: b.Pair.CertPEM, Key: b.Pair.KeyPEM})
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if cond() {
			return
		}
	}
	t.Fatal(what)
}

func TestBundles(t *testing.T) {
	s := newSite(t)
	ctx := t.Context()
	first := s.must("bundle", "node", "n1", "--node-ip", "192.0.2.1")
	ip := netip.MustParseAddr("192.0.2.1")
	n1 := s.as(first)
	if err := n1.PutRequest(ctx, topology.Request{Host: "n1", HostIP: ip, Namespaces: []string{"red"}}); err != nil {
		t.Errorf("a node asks: %v", err)
	}
	if err := n1.PutRequest(ctx, topology.Request{Host: "n2", HostIP: netip.MustParseAddr("192.0.2.2"), Subnet: true}); err == nil {
		t.Error("a node asks as another")
	}
	record, err := s.root.Node(ctx, ip)
	if err != nil || record.Value.Host != "n1" || !record.Value.Assign || record.Value.Identity == "" {
		t.Errorf("its record %+v, %v", record, err)
	}
	// The second one revokes the first.
	second := s.as(s.must("bundle", "node", "n1", "--node-ip", "192.0.2.1"))
	if _, err := second.Config(ctx); err != nil {
		t.Errorf("the second bundle: %v", err)
	}
	eventually(t, "the first bundle opens etcd still", func() bool { _, err := n1.Config(ctx); return err != nil })

	me := s.as(s.must("bundle", "operator", "me"))
	if err := me.EnsureNamespace(ctx, "red"); err != nil {
		t.Errorf("an operator: %v", err)
	}
	s.must("bundle", "operator", "me", "--revoke")
	if _, err := me.Config(ctx); err == nil {
		t.Error("an operator who was revoked reads")
	}
	if _, err := s.as(s.must("bundle", "controller")).Auth().Access(ctx); err != nil {
		t.Errorf("a controller: %v", err)
	}
	file := filepath.Join(t.TempDir(), "x.pem")
	if out := s.must("bundle", "operator", "you", "--out", file, "--endpoints", "https://192.0.2.9:1"); out != "" {
		t.Errorf("it prints %q", out)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := pki.ParseBundle(data); err != nil || b.Endpoints[0] != "https://192.0.2.9:1" || b.User() != "k8s-ovs-operator:you" {
		t.Errorf("%+v, %v", b, err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	for args, say := range map[string]string{
		"bundle":                                   "bundle takes",
		"bundle node n1":                           "--node-ip",
		"bundle node n2 --node-ip 192.0.2.1":       "is node n1's",
		"bundle node n2 --node-ip 172.11.0.1":      "inside the pod network",
		"bundle operator a:b":                      "bundle takes",
		"bundle operator a --endpoints http://x:1": "not https://",
		"etcd-users":                               "--print and --apply",
		"rotate-ca --finish":                       "not being rotated",
	} {
		if _, err := s.run(strings.Fields(args)...); err == nil || !strings.Contains(err.Error(), say) {
			t.Errorf("%s: %v, want %q", args, err, say)
		}
	}
}

// TestRotation: certificates of both CAs are good until the end of the rotation, which
// waits for live nodes.
func TestRotation(t *testing.T) {
	s := newSite(t)
	ctx := t.Context()
	old := s.must("bundle", "operator", "me")
	status := topology.NodeStatus{Host: "n1", HostIP: netip.MustParseAddr("192.0.2.1"), Issuer: "of the old one"}
	p := s.root.StatusPublisher("k8ssdn", 0)
	defer p.Close()
	p.Set(status)
	eventually(t, "no status", func() bool { all, err := s.root.Statuses(ctx); return err == nil && len(all) == 1 })
	s.must("rotate-ca")
	if _, err := s.run("rotate-ca"); err == nil {
		t.Error("a second rotation begins within the first")
	}
	// What the controller does that runs.
	a, err := etcd.EnsureAuthority(s.dir, time.Now())
	if err != nil || !a.Rotating() {
		t.Fatalf("%v", err)
	}
	if made, err := a.EnsureServer([]netip.Addr{netip.MustParseAddr("127.0.0.1")}, time.Now()); err != nil || !made {
		t.Fatalf("the server's certificate: made %v, %v", made, err)
	}
	s.etcd.Trust(a.Trust)
	if _, err := s.as(old).Config(ctx); err != nil {
		t.Errorf("a bundle of the old CA: %v", err)
	}
	// etcd knows only the old CA, which vouches.
	renewed := filepath.Join(t.TempDir(), "new.pem")
	s.must("bundle", "operator", "me", "--out", renewed)
	c := s.open(store.Config{Endpoints: []string{s.url}, CAFile: renewed, CertFile: renewed, KeyFile: renewed})
	if _, err := c.Config(ctx); err != nil {
		t.Errorf("a bundle of the new CA: %v", err)
	}
	if _, err := s.run("rotate-ca", "--finish"); err == nil || !strings.Contains(err.Error(), "n1 (192.0.2.1)") {
		t.Errorf("the end, too early: %v", err)
	}
	b, err := os.ReadFile(renewed)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := pki.ParseBundle(b)
	if err != nil {
		t.Fatal(err)
	}
	status.Issuer = hex.EncodeToString(parsed.Pair.Cert.AuthorityKeyId)
	p.Set(status)
	eventually(t, "the rotation does not end", func() bool { _, err := s.run("rotate-ca", "--finish"); return err == nil })
	if a, err := etcd.EnsureAuthority(s.dir, time.Now()); err != nil || a.Rotating() || !pki.Signs(a.Trust, parsed.Pair.Cert) {
		t.Errorf("after the end: %v", err)
	}
}

// TestUsers: in an etcd that is not embedded the commands make what is needed.
func TestUsers(t *testing.T) {
	s := newSite(t)
	s.must("bundle", "node", "n1", "--node-ip", "192.0.2.1")
	out := s.must("etcd-users", "--print", "--etcd-endpoints", "unix://"+s.dir+"/client.sock")
	if !strings.Contains(out, "etcdctl user add --no-password k8s-ovs-controller\netcdctl user grant-role k8s-ovs-controller k8s-ovs-controller\n") || strings.Contains(out, "n1") {
		t.Errorf("it prints:\n%s", out)
	}
	s.must("etcd-users", "--apply", "--etcd-endpoints", "unix://"+s.dir+"/client.sock")
	if out := s.must("etcd-users", "--print", "--etcd-endpoints", "unix://"+s.dir+"/client.sock"); out != "" {
		t.Errorf("there is something left to do:\n%s", out)
	}
}
