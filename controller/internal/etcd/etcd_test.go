package etcd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/k8s-ovs/k8s-ovs/pkg/pki"
	"github.com/k8s-ovs/k8s-ovs/test/freeport"
)

const patience = 30 * time.Second

// shortDir is a folder whose sockets have short enough paths.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "etcd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// serve runs an embedded etcd at url until the test ends.
func serve(t *testing.T, dir, url string) (*Server, *Authority) {
	t.Helper()
	a, _ := authority(t, dir, time.Now())
	s, err := Start(t.Context(), Config{DataDir: dir, ListenClientURLs: []string{url}, Authority: a, Logger: slog.New(slog.DiscardHandler), Metrics: NewMetrics(prometheus.NewRegistry())})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s, a
}

// dial is a client; config is nil without TLS.
func dial(t *testing.T, endpoint string, config *tls.Config) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, TLS: config, DialTimeout: patience, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// user is a TLS configuration of user, signed by ca.
func user(t *testing.T, a *Authority, ca *pki.Pair, name string, lifetime time.Duration) *tls.Config {
	t.Helper()
	p, err := ca.Client(name, lifetime, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(a.Trust)
	return &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{{Certificate: [][]byte{p.Cert.Raw}, PrivateKey: p.Key}}}
}

func short(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func must(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// addUser makes a user who may read and write what begins with its name.
func addUser(t *testing.T, root *clientv3.Client, name string) {
	t.Helper()
	ctx := t.Context()
	_, err := root.RoleAdd(ctx, name)
	must(t, "add role", err)
	_, err = root.RoleGrantPermission(ctx, name, name, clientv3.GetPrefixRangeEnd(name), clientv3.PermissionType(clientv3.PermReadWrite))
	must(t, "grant", err)
	_, err = root.UserAddWithOptions(ctx, name, "", &clientv3.UserAddOptions{NoPassword: true})
	must(t, "add user", err)
	_, err = root.UserGrantRole(ctx, name, name)
	must(t, "grant role", err)
}

// TestIdentities: who may do what at an embedded etcd.
func TestIdentities(t *testing.T) {
	dir, address := shortDir(t), freeport.Loopback(t).String()
	s, a := serve(t, dir, "https://"+address)
	if s.Insecure() != nil {
		t.Fatal(s.Insecure())
	}
	root := dial(t, s.Endpoint(), nil)
	_, err := root.Put(t.Context(), "a/1", "x")
	must(t, "root, by the socket", err)
	addUser(t, root, "a")
	client := dial(t, "https://"+address, user(t, a, a.CA, "a", time.Hour))
	_, err = client.Put(t.Context(), "a/2", "x")
	must(t, "its own key", err)

	other, err := pki.NewCA(caName, time.Now())
	must(t, "another CA", err)
	refused := func(what string, err error) {
		t.Helper()
		if err == nil {
			t.Errorf("%s is not refused", what)
		}
	}
	put := func(config *tls.Config) error {
		c := dial(t, "https://"+address, config)
		defer c.Close()
		_, err := c.Put(short(t), "a/1", "y")
		return err
	}
	nobody := user(t, a, a.CA, "a", time.Hour)
	nobody.Certificates = nil
	refused("another CA", put(user(t, a, other, "a", time.Hour)))
	refused("no certificate", put(nobody))
	refused("an expired certificate", put(user(t, a, a.CA, "a", -time.Minute)))
	refused("a user that is none", put(user(t, a, a.CA, "b", time.Hour)))
	refused("no name", put(user(t, a, a.CA, "", time.Hour)))
	_, err = client.Put(short(t), "b", "y")
	refused("another's key", err)
	_, err = client.Compact(short(t), 2)
	refused("compaction", err)
	_, err = client.AuthDisable(short(t))
	refused("disabling users", err)
	_, err = client.UserAdd(short(t), "c", "")
	refused("adding a user", err)
	_, err = client.MemberList(short(t))
	refused("the members", err)
	_, err = client.Leases(short(t))
	refused("the leases of all", err)
	if r, err := client.Snapshot(short(t)); err == nil {
		_, err = r.Read(make([]byte, 1))
		refused("a snapshot", err)
	}
	_, err = dial(t, "https://"+address, user(t, a, a.CA, "b", time.Hour)).Grant(short(t), 10)
	refused("a lease for nobody", err)
	// The gateway has no identities.
	for _, path := range []string{"/v3/kv/range", "/v3/auth/status"} {
		h := http.Client{Transport: &http.Transport{TLSClientConfig: user(t, a, a.CA, "a", time.Hour)}}
		r, err := h.Post("https://"+address+path, "application/json", strings.NewReader(`{"key":"YQ=="}`))
		if err == nil && r.StatusCode == http.StatusOK {
			t.Errorf("the gateway answers %s: %s", path, r.Status)
		}
	}
}

// TestUserGoes: what a user has open ends when it goes.
func TestUserGoes(t *testing.T) {
	dir, address := shortDir(t), freeport.Loopback(t).String()
	s, a := serve(t, dir, "https://"+address)
	root := dial(t, s.Endpoint(), nil)
	watching := map[string]clientv3.WatchChan{}
	for _, name := range []string{"a", "b"} {
		addUser(t, root, name)
		c := dial(t, "https://"+address, user(t, a, a.CA, name, time.Hour))
		watching[name] = c.Watch(t.Context(), name, clientv3.WithPrefix(), clientv3.WithCreatedNotify())
		if r := <-watching[name]; r.Err() != nil || !r.Created {
			t.Fatalf("%s watches: %+v", name, r)
		}
	}
	began := time.Now()
	_, err := root.UserDelete(t.Context(), "a")
	must(t, "delete the user", err)
	select {
	case r, open := <-watching["a"]:
		if open && r.Err() == nil {
			t.Errorf("it sees %+v", r)
		}
	case <-time.After(patience):
		t.Fatal("a user that went still watches")
	}
	t.Logf("cut after %s", time.Since(began))
	_, err = root.Put(t.Context(), "b", "x")
	must(t, "put", err)
	if r := <-watching["b"]; r.Err() != nil || len(r.Events) != 1 {
		t.Errorf("the other user's watch: %+v", r)
	}
}

// TestUsersSurvive: users are in force after a restart, and out of it with http.
func TestUsersSurvive(t *testing.T) {
	dir, address := shortDir(t), freeport.Loopback(t).String()
	a, _ := authority(t, dir, time.Now())
	start := func(url string) (*Server, error) {
		return Start(t.Context(), Config{DataDir: dir, ListenClientURLs: []string{url}, Authority: a, Logger: slog.New(slog.DiscardHandler), Metrics: NewMetrics(prometheus.NewRegistry())})
	}
	for _, step := range []struct {
		url     string
		enabled bool
	}{{"http://" + address, false}, {"https://" + address, true}, {"https://" + address, true}, {"http://" + address, false}, {"https://" + address, true}} {
		s, err := start(step.url)
		must(t, step.url, err)
		root := dial(t, s.Endpoint(), nil)
		state, err := root.AuthStatus(t.Context())
		must(t, "status", err)
		if state.Enabled != step.enabled || (s.Insecure() == nil) != step.enabled {
			t.Errorf("%s: users heeded %v, insecure: %v", step.url, state.Enabled, s.Insecure())
		}
		if step.enabled {
			// A server that restarts lets nobody in before users are heeded.
			_, err := dial(t, step.url, user(t, a, a.CA, "a", time.Hour)).Put(short(t), "x", "x")
			if err == nil {
				t.Error("a user that is none writes")
			}
		} else if _, err := dial(t, step.url, nil).Put(short(t), "x", "x"); err != nil {
			t.Errorf("without users: %v", err)
		}
		root.Close()
		s.Close()
	}
	if _, err := start("http://203.0.113.9:1"); err == nil || !strings.Contains(err.Error(), "--insecure-listen-http") {
		t.Errorf("http beyond the machine: %v", err)
	}
}

// TestExplains: where etcd cannot listen, the error says what to mend.
func TestExplains(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, "listen", err)
	defer taken.Close()
	for url, want := range map[string]string{
		"http://" + taken.Addr().String(): "another etcd is there: give its address as --etcd-endpoints",
		"http://203.0.113.9:1":            "--listen-client-urls must be addresses of this machine",
	} {
		s, err := Start(t.Context(), Config{DataDir: shortDir(t), ListenClientURLs: []string{url}, InsecureHTTP: true, Logger: slog.New(slog.DiscardHandler), Metrics: NewMetrics(prometheus.NewRegistry())})
		if err == nil {
			s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want an error that says %q", url, err, want)
		}
	}
}

// TestServerRenewed: the server's certificate is renewed under way.
func TestServerRenewed(t *testing.T) {
	dir, address := shortDir(t), freeport.Loopback(t).String()
	s, a := serve(t, dir, "https://"+address)
	root := dial(t, s.Endpoint(), nil)
	addUser(t, root, "a")
	serial := func() string {
		conn, err := tls.Dial("tcp", address, user(t, a, a.CA, "a", time.Hour))
		must(t, "dial", err)
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	before := serial()
	if made, err := a.EnsureServer([]netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("192.0.2.1")}, time.Now()); err != nil || !made {
		t.Fatal(made, err)
	}
	if serial() == before {
		t.Error("the old certificate is served")
	}
}
