package etcd

import (
	"crypto/x509"
	"encoding/pem"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/pki"
)

// sharedLifetime is that of the certificate that all clients share.
const sharedLifetime = 10 * 365 * 24 * time.Hour

// Certificates are those of an embedded etcd that serves the network: its CA's, the
// server's and one for all clients.
type Certificates struct {
	// CA, ClientCert and ClientKey are PEM: what a client needs.
	CA, ClientCert, ClientKey []byte
	// CAFile and ServerFile are what the server needs.
	CAFile, ServerFile string
}

// EnsureCertificates reads the certificates below dataDir, and makes those that are
// missing: see [EnsureAuthority].
func EnsureCertificates(dataDir string, ip netip.Addr, now time.Time) (Certificates, error) {
	a, err := EnsureAuthority(dataDir, now)
	if err != nil {
		return Certificates{}, err
	}
	if _, err := a.EnsureServer([]netip.Addr{ip, netip.AddrFrom4([4]byte{127, 0, 0, 1})}, now); err != nil {
		return Certificates{}, err
	}
	client, err := a.shared(now)
	if err != nil {
		return Certificates{}, err
	}
	return Certificates{CA: a.Trust, ClientCert: client.CertPEM, ClientKey: client.KeyPEM, CAFile: a.CAFile(), ServerFile: a.ServerFile()}, nil
}

// shared is the certificate that all clients share.
func (a *Authority) shared(now time.Time) (*pki.Pair, error) {
	certFile, keyFile := filepath.Join(a.dir, "client.crt"), filepath.Join(a.dir, "client.key")
	certPEM, _ := os.ReadFile(certFile)
	keyPEM, _ := os.ReadFile(keyFile)
	if Signed(a.Trust, certPEM, keyPEM, now) {
		return pki.ParsePair(certPEM, keyPEM)
	}
	p, err := a.CA.Client(pki.SharedUser, sharedLifetime, now)
	if err != nil {
		return nil, err
	}
	if err := replaceFile(keyFile, p.KeyPEM); err != nil {
		return nil, err
	}
	return p, replaceFile(certFile, p.CertPEM)
}

// Signed reports whether cert with key is a client certificate of ca that is good
// for a while; all are PEM.
func Signed(ca, cert, key []byte, now time.Time) bool {
	p, err := pki.ParsePair(cert, key)
	block, _ := pem.Decode(ca)
	if err != nil || block == nil {
		return false
	}
	issuer, err := x509.ParseCertificate(block.Bytes)
	return err == nil && pki.Signs(ca, p.Cert) && !now.Before(p.Cert.NotBefore) && !now.After(p.Cert.NotAfter) && !due(p.Cert, issuer, now)
}
