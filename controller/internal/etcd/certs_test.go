package etcd

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func ensure(t *testing.T, dir, ip string, now time.Time) (c Certificates, server []byte) {
	t.Helper()
	c, err := EnsureCertificates(dir, netip.MustParseAddr(ip), now)
	if err != nil {
		t.Fatal(err)
	}
	if server, err = os.ReadFile(c.ServerCertFile); err != nil {
		t.Fatal(err)
	}
	return c, server
}

func TestEnsureCertificates(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	first, server := ensure(t, dir, "192.0.2.1", now)
	if !Signed(first.CA, first.ClientCert, first.ClientKey, now) {
		t.Error("the client certificate is not the CA's")
	}
	if info, err := os.Stat(first.ServerKeyFile); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the server's key: %v, %v", info.Mode(), err)
	}
	same := func(step string, got Certificates, gotServer []byte, ca, client, srv bool) {
		t.Helper()
		if bytes.Equal(got.CA, first.CA) != ca || bytes.Equal(got.ClientCert, first.ClientCert) != client || bytes.Equal(gotServer, server) != srv {
			t.Errorf("%s: same CA %v, client %v, server %v; want %v, %v, %v", step,
				bytes.Equal(got.CA, first.CA), bytes.Equal(got.ClientCert, first.ClientCert), bytes.Equal(gotServer, server), ca, client, srv)
		}
	}
	again, s := ensure(t, dir, "192.0.2.1", now.Add(time.Hour))
	same("a restart", again, s, true, true, true)
	again, s = ensure(t, dir, "192.0.2.2", now)
	same("another address", again, s, true, true, false)
	_, server = ensure(t, dir, "192.0.2.2", now)
	if err := os.Remove(filepath.Join(dir, certsDir, "client.key")); err != nil {
		t.Fatal(err)
	}
	again, s = ensure(t, dir, "192.0.2.2", now)
	same("a lost key", again, s, true, false, true)
	if err := os.WriteFile(filepath.Join(dir, certsDir, "ca.crt"), []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	again, s = ensure(t, dir, "192.0.2.2", now)
	same("a broken CA", again, s, false, false, false)
	if Signed(first.CA, again.ClientCert, again.ClientKey, now) {
		t.Error("a certificate of another CA passes")
	}
	first, server = again, s
	again, s = ensure(t, dir, "192.0.2.2", now.Add(lifetime-time.Hour))
	same("near the end", again, s, false, false, false)
}
