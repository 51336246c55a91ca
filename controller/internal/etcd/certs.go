package etcd

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/pki"
)

// sharedLifetime is that of the certificate that all clients share.
const sharedLifetime = 10 * 365 * 24 * time.Hour

// Shared is the certificate that all clients share.
func (a *Authority) Shared(now time.Time) (*pki.Pair, error) {
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
