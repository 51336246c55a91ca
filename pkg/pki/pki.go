// Package pki makes and reads the certificates by which programs prove to etcd
// who they are: a CA, certificates that it signs, requests for them, and bundles,
// which hold in one file all that a client needs. docs/identities.md has the rules.
//
// It computes only: no file, no clock, no network. Keys are ECDSA P-256.
package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"time"
)

const (
	// CALifetime is that of a CA: longer than what it signs for will stand.
	CALifetime = 20 * 365 * 24 * time.Hour
	// ServerLifetime is that of the embedded etcd's own certificate.
	ServerLifetime = 365 * 24 * time.Hour
	// backdate lets clocks differ.
	backdate = time.Hour

	typeCertificate = "CERTIFICATE"         // RFC 7468, section 5
	typeRequest     = "CERTIFICATE REQUEST" // RFC 7468, section 7
	typeKey         = "PRIVATE KEY"         // RFC 7468, section 10: PKCS #8
)

// Pair is a certificate and its key.
type Pair struct {
	Cert *x509.Certificate
	Key  crypto.Signer
	// CertPEM has the certificate first, and then those between it and its root, if any.
	CertPEM, KeyPEM []byte
}

// ParsePair reads a certificate and its key, both PEM. The error says which of
// them is wrong.
func ParsePair(certPEM, keyPEM []byte) (*Pair, error) {
	loaded, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, err
	}
	key, ok := loaded.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, errors.New("its key cannot sign")
	}
	return &Pair{Cert: loaded.Leaf, Key: key, CertPEM: certPEM, KeyPEM: keyPEM}, nil
}

// NewCA makes a CA that begins at now.
func NewCA(commonName string, now time.Time) (*Pair, error) {
	key, keyPEM, err := NewKey()
	if err != nil {
		return nil, err
	}
	return issue(&x509.Certificate{
		Subject: pkix.Name{CommonName: commonName}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		NotAfter: now.Add(CALifetime),
	}, key.Public(), nil, key, keyPEM, now)
}

// Vouch is ca's word for another CA: a certificate of that one's name and key, PEM. Who
// trusts ca trusts with it what the other one signs.
func (ca *Pair) Vouch(other *Pair, now time.Time) ([]byte, error) {
	p, err := issue(&x509.Certificate{
		Subject: other.Cert.Subject, IsCA: true, BasicConstraintsValid: true, KeyUsage: other.Cert.KeyUsage, NotAfter: other.Cert.NotAfter,
	}, other.Key.Public(), ca, ca.Key, nil, now)
	if err != nil {
		return nil, err
	}
	return p.CertPEM, nil
}

// Server makes the certificate of an etcd at addresses, signed by ca. It is a
// client's too: etcd's gateway calls its own server with it.
func (ca *Pair) Server(commonName string, addresses []netip.Addr, now time.Time) (*Pair, error) {
	key, keyPEM, err := NewKey()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: commonName}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		NotAfter:    now.Add(ServerLifetime),
	}
	for _, a := range addresses {
		template.IPAddresses = append(template.IPAddresses, net.IP(a.AsSlice()))
	}
	return issue(template, key.Public(), ca, ca.Key, keyPEM, now)
}

// Client makes a key and a client's certificate for user, signed by ca.
func (ca *Pair) Client(user string, lifetime time.Duration, now time.Time) (*Pair, error) {
	key, keyPEM, err := NewKey()
	if err != nil {
		return nil, err
	}
	return issue(clientTemplate(user, lifetime, now), key.Public(), ca, ca.Key, keyPEM, now)
}

// Sign answers a request for a client's certificate (PEM): it returns the certificate,
// PEM, for user, which must be the request's common name. Nothing else of the request
// but its key is taken over.
func (ca *Pair) Sign(requestPEM []byte, user string, lifetime time.Duration, now time.Time) ([]byte, error) {
	r, err := ParseRequest(requestPEM)
	if err != nil {
		return nil, err
	}
	if r.Subject.CommonName != user {
		return nil, fmt.Errorf("the request is for %q, not for %q", r.Subject.CommonName, user)
	}
	p, err := issue(clientTemplate(user, lifetime, now), r.PublicKey, ca, ca.Key, nil, now)
	if err != nil {
		return nil, err
	}
	return p.CertPEM, nil
}

func clientTemplate(user string, lifetime time.Duration, now time.Time) *x509.Certificate {
	return &x509.Certificate{
		Subject: pkix.Name{CommonName: user}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, NotAfter: now.Add(lifetime),
	}
}

// issue signs template for key; by is nil for a certificate that signs itself.
func issue(template *x509.Certificate, key crypto.PublicKey, by *Pair, signer crypto.Signer, keyPEM []byte, now time.Time) (*Pair, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)) // RFC 5280, 4.1.2.2: at most 20 octets
	if err != nil {
		return nil, err
	}
	template.SerialNumber, template.NotBefore = serial, now.Add(-backdate)
	parent := template
	if by != nil {
		parent = by.Cert
		// Nothing outlives what it hangs on.
		if template.NotAfter.After(parent.NotAfter) {
			template.NotAfter = parent.NotAfter
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key, signer)
	if err != nil {
		return nil, fmt.Errorf("make a certificate for %s: %w", template.Subject.CommonName, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	p := &Pair{Cert: cert, CertPEM: pem.EncodeToMemory(&pem.Block{Type: typeCertificate, Bytes: der}), KeyPEM: keyPEM}
	if by == nil {
		p.Key = signer
	} else if keyPEM != nil {
		return ParsePair(p.CertPEM, keyPEM)
	}
	return p, nil
}

// NewKey makes a key, and its PEM.
func NewKey() (crypto.Signer, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: typeKey, Bytes: der}), nil
}

// Request asks for a client's certificate for user; PEM.
func Request(key crypto.Signer, user string) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: user}}, key)
	if err != nil {
		return nil, fmt.Errorf("make a certificate request for %s: %w", user, err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: typeRequest, Bytes: der}), nil
}

// A request is anybody's to make, and what its signature takes to check grows with its key: minutes, for one of
// megabits, which is small enough for a record.
const (
	maxRequest = 16 << 10 // bytes of PEM
	maxRSA     = 4096     // bits
)

// ParseRequest reads a certificate request, PEM, and checks that whoever made it has
// its key. That is ECDSA, Ed25519, or RSA of at most 4096 bits.
func ParseRequest(requestPEM []byte) (*x509.CertificateRequest, error) {
	if n := len(requestPEM); n > maxRequest {
		return nil, fmt.Errorf("the request has %d bytes; the most is %d", n, maxRequest)
	}
	block, rest := pem.Decode(requestPEM)
	if block == nil || block.Type != typeRequest || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("the request is not one PEM block CERTIFICATE REQUEST")
	}
	r, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("the request: %w", err)
	}
	if err := checkKey(r.PublicKey); err != nil {
		return nil, fmt.Errorf("the request: %w", err)
	}
	if err := r.CheckSignature(); err != nil {
		return nil, fmt.Errorf("the request: %w", err)
	}
	return r, nil
}

// checkKey refuses keys whose signatures are too dear to check.
func checkKey(key any) error {
	switch key := key.(type) {
	case *ecdsa.PublicKey, ed25519.PublicKey:
		return nil
	case *rsa.PublicKey:
		if n := key.N.BitLen(); n > maxRSA {
			return fmt.Errorf("its RSA key has %d bits; the most is %d", n, maxRSA)
		}
		return nil
	}
	return errors.New("its key is none of ECDSA, Ed25519 and RSA")
}

// Signs reports whether one of the certificates in caPEM signed cert; whether either is
// good now is not asked.
func Signs(caPEM []byte, cert *x509.Certificate) bool {
	for block, rest := pem.Decode(caPEM); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != typeCertificate {
			continue
		}
		if ca, err := x509.ParseCertificate(block.Bytes); err == nil && cert.CheckSignatureFrom(ca) == nil {
			return true
		}
	}
	return false
}
