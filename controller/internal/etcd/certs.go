package etcd

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/atomicfile"
)

const (
	// certsDir is where the certificates are, below the data directory.
	certsDir = "pki"
	// lifetime of certificates: longer than a node's, as nobody renews them by hand.
	lifetime = 10 * 365 * 24 * time.Hour
	// renewBefore is how long before their end they are made anew, which the next
	// start does.
	renewBefore = 180 * 24 * time.Hour
	// backdate lets clocks differ.
	backdate = time.Hour
)

// Certificates are those of an embedded etcd that serves the network: a CA of its
// own, the server's and one for all clients.
type Certificates struct {
	// CA, ClientCert and ClientKey are PEM: what a client needs.
	CA, ClientCert, ClientKey []byte
	// CAFile, ServerCertFile and ServerKeyFile are what the server needs.
	CAFile, ServerCertFile, ServerKeyFile string
}

// EnsureCertificates reads the certificates below dataDir, and makes those that
// are missing, near their end, not of the CA, or, the server's, not for ip. Only
// their owner may read the files.
func EnsureCertificates(dataDir string, ip netip.Addr, now time.Time) (Certificates, error) {
	dir := filepath.Join(dataDir, certsDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return Certificates{}, fmt.Errorf("certificates of the embedded etcd: %w", err)
	}
	ca, err := ensurePair(dir, "ca", now, nil, &x509.Certificate{
		Subject: pkix.Name{CommonName: "k8s-ovs-etcd-ca"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	})
	if err != nil {
		return Certificates{}, err
	}
	if _, err := ensurePair(dir, "server", now, ca, &x509.Certificate{
		Subject: pkix.Name{CommonName: "k8s-ovs-etcd"}, IPAddresses: []net.IP{ip.AsSlice(), net.IPv4(127, 0, 0, 1).To4()},
		KeyUsage: x509.KeyUsageDigitalSignature,
		// etcd's gateway is a client of its own server, with this certificate.
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}); err != nil {
		return Certificates{}, err
	}
	client, err := ensurePair(dir, "client", now, ca, &x509.Certificate{
		Subject: pkix.Name{CommonName: "k8s-ovs"}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return Certificates{}, err
	}
	return Certificates{
		CA: ca.certPEM, ClientCert: client.certPEM, ClientKey: client.keyPEM, CAFile: filepath.Join(dir, "ca.crt"),
		ServerCertFile: filepath.Join(dir, "server.crt"), ServerKeyFile: filepath.Join(dir, "server.key"),
	}, nil
}

// Signed reports whether cert with key is a client certificate of ca that is good
// for a while; all are PEM.
func Signed(ca, cert, key []byte, now time.Time) bool {
	p, err := parsePair(cert, key)
	block, _ := pem.Decode(ca)
	if err != nil || block == nil {
		return false
	}
	issuer, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return false
	}
	return p.good(now, &pair{cert: issuer}, &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
}

// pair is a certificate and its key.
type pair struct {
	cert            *x509.Certificate
	key             *ecdsa.PrivateKey
	certPEM, keyPEM []byte
}

// ensurePair reads NAME.crt and NAME.key, or makes them like template, signed by
// issuer; nil: by itself.
func ensurePair(dir, name string, now time.Time, issuer *pair, template *x509.Certificate) (*pair, error) {
	certFile, keyFile := filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	certPEM, err := readIfThere(certFile)
	if err != nil {
		return nil, err
	}
	keyPEM, err := readIfThere(keyFile)
	if err != nil {
		return nil, err
	}
	if p, err := parsePair(certPEM, keyPEM); err == nil && p.good(now, issuer, template) {
		return p, nil
	}
	p, err := makePair(now, issuer, template)
	if err != nil {
		return nil, fmt.Errorf("make certificate %s: %w", certFile, err)
	}
	// The key first: a certificate without its key is made anew.
	if err := replaceFile(keyFile, p.keyPEM); err != nil {
		return nil, err
	}
	if err := replaceFile(certFile, p.certPEM); err != nil {
		return nil, err
	}
	return p, nil
}

func readIfThere(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("certificates of the embedded etcd: %w", err)
	}
	return data, nil
}

func replaceFile(path string, data []byte) error {
	if err := atomicfile.Write(path, data, 0o600); err != nil {
		return fmt.Errorf("certificates of the embedded etcd: %w", err)
	}
	return nil
}

func parsePair(certPEM, keyPEM []byte) (*pair, error) {
	loaded, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, err
	}
	key, ok := loaded.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("its key is not an ECDSA key")
	}
	return &pair{cert: loaded.Leaf, key: key, certPEM: certPEM, keyPEM: keyPEM}, nil
}

// good reports whether p may stand for a certificate like template.
func (p *pair) good(now time.Time, issuer *pair, template *x509.Certificate) bool {
	if now.Before(p.cert.NotBefore) || now.Add(renewBefore).After(p.cert.NotAfter) || p.cert.IsCA != template.IsCA {
		return false
	}
	for _, ip := range template.IPAddresses {
		if p.cert.VerifyHostname(ip.String()) != nil {
			return false
		}
	}
	if issuer == nil {
		return true
	}
	roots := x509.NewCertPool()
	roots.AddCert(issuer.cert)
	_, err := p.cert.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: template.ExtKeyUsage[:1]})
	return err == nil && bytes.Equal(p.cert.AuthorityKeyId, issuer.cert.SubjectKeyId)
}

func makePair(now time.Time, issuer *pair, template *x509.Certificate) (*pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)) // RFC 5280, 4.1.2.2: at most 20 octets
	if err != nil {
		return nil, err
	}
	c := *template
	c.SerialNumber, c.NotBefore, c.NotAfter = serial, now.Add(-backdate), now.Add(lifetime)
	parent, signer := &c, key
	if issuer != nil {
		parent, signer = issuer.cert, issuer.key
	}
	der, err := x509.CreateCertificate(rand.Reader, &c, parent, &key.PublicKey, signer)
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return parsePair(
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}),
	)
}
