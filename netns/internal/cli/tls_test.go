package cli

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/k8s-ovs/k8s-ovs/pkg/options"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/test/etcdtest"
	"github.com/k8s-ovs/k8s-ovs/test/freeport"
)

// authority signs certificates for a test.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	next int64
	file string
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir()}
	a.file, _ = a.sign(name, &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

// sign writes a certificate and its key; the first is the authority's own.
func (a *authority) sign(name string, template *x509.Certificate) (certFile, keyFile string) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	a.next++
	template.SerialNumber = big.NewInt(a.next)
	template.Subject = pkix.Name{CommonName: name}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	if a.cert == nil {
		if a.cert, err = x509.ParseCertificate(der); err != nil {
			a.t.Fatal(err)
		}
		a.key = key
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	return a.write(name+".pem", "CERTIFICATE", der), a.write(name+".key", "PRIVATE KEY", keyDER)
}

func (a *authority) write(name, kind string, der []byte) string {
	a.t.Helper()
	path := filepath.Join(a.dir, name)
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		a.t.Fatal(err)
	}
	return path
}

// secureEtcd is an etcd that takes only clients with a certificate of its authority, and
// has the namespace helloworld1.
type secureEtcd struct {
	endpoint          string // host:port
	ca                *authority
	client, clientKey string
}

// newSecureEtcd starts one whose certificate is for this name or address.
func newSecureEtcd(t *testing.T, name string) secureEtcd {
	t.Helper()
	ca := newAuthority(t, "ca")
	template := &x509.Certificate{DNSNames: []string{name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	if ip := net.ParseIP(name); ip != nil {
		template.DNSNames, template.IPAddresses = nil, []net.IP{ip}
	}
	server, serverKey := ca.sign("server", template)
	client, clientKey := ca.sign("client", &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	endpoint := freeport.Loopback(t).String()
	etcdtest.Start(t, func(cfg *embed.Config) {
		cfg.ListenClientUrls = []url.URL{{Scheme: "https", Host: endpoint}}
		cfg.ClientTLSInfo = transport.TLSInfo{CertFile: server, KeyFile: serverKey, TrustedCAFile: ca.file, ClientCertAuth: true}
	})
	s, err := store.Open(store.Config{Endpoints: []string{endpoint}, CAFile: ca.file, CertFile: client, KeyFile: clientKey, ServerName: name})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.PutConfig(t.Context(), topology.DefaultConfig()); err != nil {
		t.Fatal(err)
	}
	if err := s.EnsureNamespace(t.Context(), "helloworld1"); err != nil {
		t.Fatal(err)
	}
	return secureEtcd{endpoint, ca, client, clientKey}
}

// secret is the data of the Secret that leads to it.
func (e secureEtcd) secret(t *testing.T) map[string][]byte {
	t.Helper()
	data := map[string][]byte{"endpoints": []byte("https://" + e.endpoint)}
	for key, file := range map[string]string{"ca.crt": e.ca.file, "tls.crt": e.client, "tls.key": e.clientKey} {
		var err error
		if data[key], err = os.ReadFile(file); err != nil {
			t.Fatal(err)
		}
	}
	return data
}

// TestTLS: an etcd that takes only clients with a certificate of its authority. Its name
// is not the address that clients dial.
func TestTLS(t *testing.T) {
	etcd := newSecureEtcd(t, "etcd.example")
	ca, endpoint, client, clientKey := etcd.ca, etcd.endpoint, etcd.client, etcd.clientKey
	stranger := newAuthority(t, "stranger")
	strange, strangeKey := stranger.sign("client", &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})

	all := []string{"--etcd-endpoints", endpoint, "--etcd-cacert", ca.file, "--etcd-cert", client, "--etcd-key", clientKey, "--etcd-server-name", "etcd.example"}
	list := func(flags ...string) outcome {
		return netns(t.Context(), append([]string{"list"}, flags...)...)
	}
	list(all...).expect(t, ExitDone, []string{"helloworld1"}, nil)
	list("--etcd-endpoints", "https://"+endpoint, "--etcd-cert", client, "--etcd-key", clientKey, "--etcd-insecure-skip-verify").expect(t, ExitDone, []string{"helloworld1"}, nil)

	own := []string{"--etcd-cert", client, "--etcd-key", clientKey}
	for _, tt := range []struct {
		name  string
		flags []string
		why   string
	}{
		{"no certificate", []string{"--etcd-cacert", ca.file, "--etcd-server-name", "etcd.example"}, "etcd is unavailable"},
		{"certificate of others", []string{"--etcd-cacert", ca.file, "--etcd-server-name", "etcd.example", "--etcd-cert", strange, "--etcd-key", strangeKey}, "etcd is unavailable"},
		{"authority of others", append([]string{"--etcd-cacert", stranger.file, "--etcd-server-name", "etcd.example"}, own...), "signed by unknown authority"},
		{"name of the endpoint", append([]string{"--etcd-cacert", ca.file}, own...), "cannot validate certificate for 127.0.0.1"},
		{"name of another server", append([]string{"--etcd-cacert", ca.file, "--etcd-server-name", "other.example"}, own...), "valid for etcd.example, not other.example"},
		{"no TLS at all", nil, "etcd is unavailable"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			list(append(tt.flags, "--etcd-endpoints", endpoint, "--etcd-dial-timeout", "1500ms")...).expect(t, ExitFailed, nil, []string{"endpoints tried: ", endpoint, tt.why})
		})
	}

	// The same from the environment and from a file.
	t.Setenv("K8S_OVS_ETCD_CERT", client)
	t.Setenv("K8S_OVS_ETCD_KEY", clientKey)
	config := filepath.Join(t.TempDir(), "netns.yaml")
	content := fmt.Sprintf("etcd-endpoints: %s\netcd-cacert: %s\netcd-server-name: etcd.example\netcd-cert: /nonexistent\n", endpoint, ca.file)
	if err := os.WriteFile(config, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	list("--config", config).expect(t, ExitDone, []string{"helloworld1"}, nil)
}

// TestPassword: an etcd with its own users.
func TestPassword(t *testing.T) {
	const password = "s3cret of etcd"
	l := newLab(t, topology.DefaultConfig(), 0, space("a", 100))
	enableAuth(t, l.etcd.Client(), password)

	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte(password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	l.netns("list", "--etcd-username", "root", "--etcd-password-file", file).expect(t, ExitDone, []string{"a", "100"}, nil)
	l.netns("list", "--etcd-username", "root", "--etcd-password", password).expect(t, ExitDone, []string{"a", "100"}, nil)
	wrong := l.netns("list", "--etcd-username", "root", "--etcd-password", "wr0ng", "--verbose")
	wrong.expect(t, ExitFailed, nil, []string{"etcd refuses access"})
	l.netns("list").expect(t, ExitFailed, nil, []string{"etcd refuses access"})

	t.Setenv("K8S_OVS_ETCD_USERNAME", "root")
	t.Setenv("K8S_OVS_ETCD_PASSWORD", password)
	good := l.netns("list", "--verbose")
	good.expect(t, ExitDone, []string{"a", "100"}, nil)
	help := l.netns("list", "--help")
	for _, o := range []outcome{wrong, good, help} {
		if strings.Contains(o.out+o.err, password) || strings.Contains(o.out+o.err, "wr0ng") {
			t.Errorf("the password is shown: %+v", o)
		}
	}
}

// enableAuth makes root, with password, the only user of etcd.
func enableAuth(t *testing.T, c *clientv3.Client, password string) {
	t.Helper()
	ctx := t.Context()
	if _, err := c.RoleAdd(ctx, "root"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.UserAdd(ctx, "root", password); err != nil {
		t.Fatal(err)
	}
	if _, err := c.UserGrantRole(ctx, "root", "root"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.AuthEnable(ctx); err != nil {
		t.Fatal(err)
	}
}

// TestLocal: without flags netns finds the etcd of a controller on this machine, and where
// there is none an etcd of the machine's own.
func TestLocal(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "client.sock")
	if err := os.WriteFile(socket, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name    string
		dataDir string
		etcd    options.Etcd
		want    string
	}{
		{"the socket", dir, options.Etcd{}, "unix://" + socket},
		{"no socket", filepath.Join(dir, "none"), options.Etcd{}, defaultEndpoint},
		{"a user", dir, options.Etcd{Username: "root", Password: "x"}, defaultEndpoint},
	} {
		tt.etcd.Prefix, tt.etcd.DialTimeout = store.DefaultPrefix, time.Second
		p := &program{dataDir: tt.dataDir, etcd: tt.etcd}
		if err := p.local(); err != nil || p.etcd.Endpoints[0] != tt.want {
			t.Errorf("%s: %v, %v; want %s", tt.name, p.etcd.Endpoints, err, tt.want)
		}
	}
	p := &program{dataDir: dir, endpoints: true}
	if err := p.local(); err == nil {
		t.Error("endpoints that were given, but empty, are passed over")
	}
}
