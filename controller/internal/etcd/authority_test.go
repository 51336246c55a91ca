package etcd

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/pki"
)

const day = 24 * time.Hour

// authority is EnsureAuthority and EnsureServer at now.
func authority(t *testing.T, dir string, now time.Time, ips ...string) (a *Authority, madeServer bool) {
	t.Helper()
	a, err := EnsureAuthority(dir, now)
	if err != nil {
		t.Fatal(err)
	}
	addresses := []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	for _, ip := range ips {
		addresses = append(addresses, netip.MustParseAddr(ip))
	}
	madeServer, err = a.EnsureServer(addresses, now)
	if err != nil {
		t.Fatal(err)
	}
	return a, madeServer
}

func TestAuthority(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	first, made := authority(t, dir, now)
	if !made {
		t.Error("no server certificate was made")
	}
	for _, name := range []string{caFile, keyFile, serverFile} {
		if info, err := os.Stat(filepath.Join(dir, pkiDir, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	for _, step := range []struct {
		name string
		at   time.Time
		ips  []string
		made bool
	}{
		{"a restart", now.Add(time.Hour), nil, false},
		{"another address", now.Add(time.Hour), []string{"192.0.2.2"}, true},
		{"the same", now.Add(time.Hour), []string{"192.0.2.2"}, false},
		{"before half a year", now.Add(180 * day), []string{"192.0.2.2"}, false},
		{"after half a year", now.Add(190 * day), []string{"192.0.2.2"}, true},
		{"near the CA's end", now.Add(pki.CALifetime - day), nil, true},
		{"as long as the CA", now.Add(pki.CALifetime - time.Hour), nil, false},
	} {
		a, made := authority(t, dir, step.at, step.ips...)
		if !bytes.Equal(a.Trust, first.Trust) || made != step.made {
			t.Errorf("%s: the same CA %v, a new server certificate %v; want true, %v", step.name, bytes.Equal(a.Trust, first.Trust), made, step.made)
		}
	}
}

// TestAuthorityClock: a clock that is wrong destroys nothing.
func TestAuthorityClock(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	first, _ := authority(t, dir, now)
	for name, at := range map[string]time.Time{"two hours back": now.Add(-2 * time.Hour), "1970": time.Unix(0, 0), "behind its end": now.Add(pki.CALifetime + day)} {
		a, err := EnsureAuthority(dir, at)
		if !errors.Is(err, ErrClock) || a == nil || !bytes.Equal(a.Trust, first.Trust) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if a, made := authority(t, dir, now); made || !bytes.Equal(a.Trust, first.Trust) {
		t.Error("a wrong clock left something behind")
	}
}

// TestAuthorityLost: what cannot be read is never replaced.
func TestAuthorityLost(t *testing.T) {
	for name, spoil := range map[string]func(dir string) error{
		"garbage as certificate": func(dir string) error { return os.WriteFile(filepath.Join(dir, caFile), []byte("garbage"), 0o600) },
		"garbage as key":         func(dir string) error { return os.WriteFile(filepath.Join(dir, keyFile), []byte("garbage"), 0o600) },
		"no certificate":         func(dir string) error { return os.Remove(filepath.Join(dir, caFile)) },
		"no key":                 func(dir string) error { return os.Remove(filepath.Join(dir, keyFile)) },
		"another's key": func(dir string) error {
			ca, err := pki.NewCA("other", time.Now())
			return errors.Join(err, os.WriteFile(filepath.Join(dir, keyFile), ca.KeyPEM, 0o600))
		},
	} {
		dir := t.TempDir()
		authority(t, dir, time.Now())
		if err := spoil(filepath.Join(dir, pkiDir)); err != nil {
			t.Fatal(err)
		}
		_, err := EnsureAuthority(dir, time.Now())
		if err == nil || errors.Is(err, ErrClock) || !strings.Contains(err.Error(), "from a backup") {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A first start that was interrupted.
	dir := t.TempDir()
	authority(t, dir, time.Now())
	for _, name := range []string{caFile, serverFile} {
		if err := os.Remove(filepath.Join(dir, pkiDir, name)); err != nil {
			t.Fatal(err)
		}
	}
	authority(t, dir, time.Now())
}

// TestAuthorityTakenOver: the files of the release before, whose keys are written
// another way and whose CA lives ten years, are taken over.
func TestAuthorityTakenOver(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	const lifetime = 10 * 365 * day
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: caName}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(lifetime),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	for name, data := range map[string][]byte{
		caFile: ca, keyFile: pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}),
		"server.crt": []byte("old"), "server.key": []byte("old"), "client.crt": []byte("old"), "client.key": []byte("old"),
	} {
		if err := os.MkdirAll(filepath.Join(dir, pkiDir), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, pkiDir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if a, made := authority(t, dir, now); !made || !bytes.Equal(a.Trust, ca) {
		t.Error("another CA")
	}
	// 9.6 years on.
	a, made := authority(t, dir, now.Add(lifetime/100*96))
	if !made || !bytes.Equal(a.Trust, ca) {
		t.Errorf("near its end: the same CA %v, a new server certificate %v", bytes.Equal(a.Trust, ca), made)
	}
	client, err := a.CA.Client(pki.NodeUser("n1", "1"), time.Hour, now)
	if err != nil || !pki.Signs(a.Trust, client.Cert) {
		t.Errorf("it signs no more: %v", err)
	}
}
