package etcdtest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/k8s-ovs/k8s-ovs/pkg/pki"
	"github.com/k8s-ovs/k8s-ovs/test/freeport"
)

// StartSecured runs an etcd that takes only clients with a certificate of its CA, and
// whose users are their common names. [Server.Client] is root.
func StartSecured(tb testing.TB, options ...Option) *Server {
	tb.Helper()
	ca, err := pki.NewCA("etcdtest", time.Now())
	if err != nil {
		tb.Fatal(err)
	}
	at := freeport.Loopback(tb)
	server, err := ca.Server("etcd", []netip.Addr{at.Addr()}, time.Now())
	if err != nil {
		tb.Fatal(err)
	}
	dir := tb.TempDir()
	file := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			tb.Fatal(err)
		}
		return path
	}
	secure := func(cfg *embed.Config) {
		cfg.ClientTLSInfo = transport.TLSInfo{
			CertFile: file("server.crt", server.CertPEM), KeyFile: file("server.key", server.KeyPEM), TrustedCAFile: file("ca.crt", ca.CertPEM), ClientCertAuth: true,
		}
	}
	listen := func(cfg *embed.Config) {
		cfg.ListenClientUrls = []url.URL{{Scheme: "https", Host: at.String()}}
	}
	return start(tb, ca, append([]Option{secure, listen}, options...)...)
}

// enableAuth makes root the first user, where there is none yet.
func (s *Server) enableAuth() {
	s.tb.Helper()
	c := s.Client()
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if state, err := c.AuthStatus(ctx); err == nil && state.Enabled {
		return
	}
	for _, step := range []func() error{
		func() error { _, err := c.RoleAdd(ctx, pki.RootUser); return err },
		func() error {
			_, err := c.UserAddWithOptions(ctx, pki.RootUser, "", &clientv3.UserAddOptions{NoPassword: true})
			return err
		},
		func() error { _, err := c.UserGrantRole(ctx, pki.RootUser, pki.RootUser); return err },
		func() error { _, err := c.AuthEnable(ctx); return err },
	} {
		if err := step(); err != nil {
			s.tb.Fatalf("enable auth: %v", err)
		}
	}
}

// Bundle is what user needs to reach a secured etcd; whether etcd has such a user is
// another matter.
func (s *Server) Bundle(user string, lifetime time.Duration) pki.Bundle {
	s.tb.Helper()
	p, err := s.CA.Client(user, lifetime, time.Now())
	if err != nil {
		s.tb.Fatal(err)
	}
	return pki.Bundle{Endpoints: s.Endpoints, CA: s.CA.CertPEM, Pair: p}
}

// BundleFile is Bundle in a file.
func (s *Server) BundleFile(user string, lifetime time.Duration) string {
	s.tb.Helper()
	data, err := s.Bundle(user, lifetime).Encode()
	if err != nil {
		s.tb.Fatal(err)
	}
	path := filepath.Join(s.tb.TempDir(), "bundle.pem")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		s.tb.Fatal(err)
	}
	return path
}

// rootTLS is root's; nil for an etcd that is not secured.
func (s *Server) rootTLS() *tls.Config {
	if s.CA == nil {
		return nil
	}
	b := s.Bundle(pki.RootUser, time.Hour)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(b.CA)
	return &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{{Certificate: [][]byte{b.Pair.Cert.Raw}, PrivateKey: b.Pair.Key}}}
}
