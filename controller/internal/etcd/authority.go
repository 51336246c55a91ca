package etcd

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/atomicfile"
	"github.com/k8s-ovs/k8s-ovs/pkg/pki"
)

const (
	// pkiDir is where the certificates are, below the data directory.
	pkiDir = "pki"
	// caFile has the certificates of all CAs that are trusted, the one that signs
	// first; keyFile has its key.
	caFile, keyFile = "ca.crt", "ca.key"
	// serverFile has the server's certificate, those up to its root, and its key:
	// one file, since both must change at once.
	serverFile = "server.pem"
	// caName is the common name of the CA.
	caName = "k8s-ovs-etcd-ca"
	// serverName is that of the server.
	serverName = "k8s-ovs-etcd"
)

// NodeLifetime is that of the certificates of nodes outside of Kubernetes.
const NodeLifetime = 30 * 24 * time.Hour

// ErrClock: the clock is before the CA's beginning, or behind its end. Nothing is wrong
// with the CA where the clock is.
var ErrClock = errors.New("the clock of this machine is not within the life of the CA")

// Authority is who signs for the embedded etcd and its clients. Its files are in
// DATA_DIR/pki.
type Authority struct {
	// CA signs.
	CA *pki.Pair
	// Trust has the certificates of all CAs that are trusted now, PEM: that of CA, and
	// while it is being rotated those of the former one.
	Trust []byte

	dir string
}

// EnsureAuthority reads the CA below dataDir. It makes one only where there never was
// one, and never replaces one: its clients trust no other. The error is ErrClock, with
// the Authority, when the CA's certificate is not good now; all others say the way out.
func EnsureAuthority(dataDir string, now time.Time) (*Authority, error) {
	dir := filepath.Join(dataDir, pkiDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("certificates of the embedded etcd: %w", err)
	}
	found, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("certificates of the embedded etcd: %w", err)
	}
	// A key alone is what a first start left that was interrupted: nothing is signed
	// with it.
	if !slices.ContainsFunc(found, func(e fs.DirEntry) bool { return e.Name() != keyFile && filepath.Ext(e.Name()) != ".new" }) {
		if err := makeCA(dir, now); err != nil {
			return nil, err
		}
	}
	a, err := readAuthority(dir)
	if err != nil {
		return nil, fmt.Errorf("the CA of the embedded etcd: %w. Put %s and %s back from a backup. Only if they are lost move %s away and start again, which makes a new CA: every node and operator then needs a new bundle", err, caFile, keyFile, dir)
	}
	return a, a.checkClock(now)
}

// OpenAuthority reads the CA below dataDir, which must be there.
func OpenAuthority(dataDir string) (*Authority, error) {
	a, err := readAuthority(filepath.Join(dataDir, pkiDir))
	if err != nil {
		return nil, fmt.Errorf("the CA of the embedded etcd: %w (does the controller run on this machine, with --data-dir %s?)", err, dataDir)
	}
	return a, nil
}

func (a *Authority) checkClock(now time.Time) error {
	c := a.CA.Cert
	if now.Before(c.NotBefore) || now.After(c.NotAfter) {
		return fmt.Errorf("%w: it is %s, and the CA in %s is good from %s to %s. Nothing is signed until the clock is right, or the CA rotated if it has ended",
			ErrClock, now.UTC().Format(time.RFC3339), filepath.Join(a.dir, caFile), c.NotBefore.Format(time.RFC3339), c.NotAfter.Format(time.RFC3339))
	}
	return nil
}

func makeCA(dir string, now time.Time) error {
	ca, err := pki.NewCA(caName, now)
	if err != nil {
		return err
	}
	// The key first: see EnsureAuthority.
	if err := replaceFile(filepath.Join(dir, keyFile), ca.KeyPEM); err != nil {
		return err
	}
	return replaceFile(filepath.Join(dir, caFile), ca.CertPEM)
}

func readAuthority(dir string) (*Authority, error) {
	trust, err := os.ReadFile(filepath.Join(dir, caFile))
	if err != nil {
		return nil, err
	}
	keys, err := os.ReadFile(filepath.Join(dir, keyFile))
	if err != nil {
		return nil, err
	}
	first, _ := pem.Decode(trust)
	if first == nil || first.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("%s has no PEM certificate in it", filepath.Join(dir, caFile))
	}
	certPEM := pem.EncodeToMemory(first)
	ca, err := matching(certPEM, keys)
	if err != nil {
		return nil, fmt.Errorf("%s with %s: %w", filepath.Join(dir, caFile), keyFile, err)
	}
	if !ca.Cert.IsCA {
		return nil, fmt.Errorf("%s is not the certificate of a CA", filepath.Join(dir, caFile))
	}
	return &Authority{CA: ca, Trust: trust, dir: dir}, nil
}

// matching is the certificate with that one of the keys which is its own: a rotation that
// was interrupted leaves two.
func matching(certPEM, keys []byte) (*pki.Pair, error) {
	err := errors.New("there is no key in it")
	for block, rest := pem.Decode(keys); block != nil; block, rest = pem.Decode(rest) {
		p, perr := pki.ParsePair(certPEM, pem.EncodeToMemory(block))
		if perr == nil {
			return p, nil
		}
		err = perr
	}
	return nil, err
}

// Rotating reports whether a former CA is still trusted.
func (a *Authority) Rotating() bool { return !bytes.Equal(a.Trust, a.CA.CertPEM) }

// Rotate makes a new CA, for which the former one vouches: clients of either are let in,
// and trust the server, until Finish. A controller that runs takes it over by itself.
func (a *Authority) Rotate(now time.Time) error {
	if a.Rotating() {
		return fmt.Errorf("the CA in %s is being rotated already: finish that first", a.CAFile())
	}
	next, err := pki.NewCA(caName, now)
	if err != nil {
		return err
	}
	word, err := a.CA.Vouch(next, now)
	if err != nil {
		return err
	}
	// Until the certificate is in place the old key counts: see matching.
	keys := filepath.Join(a.dir, keyFile)
	if err := replaceFile(keys, slices.Concat(next.KeyPEM, a.CA.KeyPEM)); err != nil {
		return err
	}
	if err := replaceFile(a.CAFile(), slices.Concat(next.CertPEM, word, a.Trust)); err != nil {
		return err
	}
	return replaceFile(keys, next.KeyPEM)
}

// Finish drops the former CA: what it signed is good for nothing any more.
func (a *Authority) Finish() error {
	if !a.Rotating() {
		return fmt.Errorf("the CA in %s is not being rotated", a.CAFile())
	}
	return replaceFile(a.CAFile(), a.CA.CertPEM)
}

// Keeps reports whether all CAs that before trusts are trusted by a too.
func (a *Authority) Keeps(before []byte) bool {
	now := trustedKeys(a.Trust)
	for key := range trustedKeys(before) {
		if !now[key] {
			return false
		}
	}
	return true
}

// CAFile has Trust.
func (a *Authority) CAFile() string { return filepath.Join(a.dir, caFile) }

// ServerFile has the certificate of the server, and its key.
func (a *Authority) ServerFile() string { return filepath.Join(a.dir, serverFile) }

// EnsureServer sees to it that ServerFile has a certificate of CA for addresses whose
// life is not half over, and reports whether it made one. etcd reads the file at
// each handshake.
func (a *Authority) EnsureServer(addresses []netip.Addr, now time.Time) (made bool, err error) {
	data, err := os.ReadFile(a.ServerFile())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("certificate of the embedded etcd: %w", err)
	}
	if a.serverGood(data, addresses, now) {
		return false, nil
	}
	server, err := a.CA.Server(serverName, addresses, now)
	if err != nil {
		return false, err
	}
	// With the former CA's word for the new one, for clients that know only the former.
	return true, replaceFile(a.ServerFile(), slices.Concat(server.CertPEM, a.Trust, server.KeyPEM))
}

func (a *Authority) serverGood(data []byte, addresses []netip.Addr, now time.Time) bool {
	p, err := pki.ParsePair(data, data)
	if err != nil || !bytes.Contains(data, a.Trust) {
		return false
	}
	c := p.Cert
	if now.Before(c.NotBefore) || now.After(c.NotAfter) || due(c, a.CA.Cert, now) || c.CheckSignatureFrom(a.CA.Cert) != nil {
		return false
	}
	return !slices.ContainsFunc(addresses, func(ip netip.Addr) bool { return c.VerifyHostname(ip.String()) != nil })
}

// due reports whether half of the life of c, which ca signed, is over. One that ends with
// its CA cannot be had any longer.
func due(c, ca *x509.Certificate, now time.Time) bool {
	return c.NotAfter.Before(ca.NotAfter) && now.After(c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore)/2))
}

// trustedKeys are the public keys of the CAs that are trusted.
func trustedKeys(trust []byte) map[string]bool {
	keys := map[string]bool{}
	for block, rest := pem.Decode(trust); block != nil; block, rest = pem.Decode(rest) {
		if c, err := x509.ParseCertificate(block.Bytes); err == nil {
			keys[string(c.RawSubjectPublicKeyInfo)] = true
		}
	}
	return keys
}

func replaceFile(path string, data []byte) error {
	if err := atomicfile.Write(path, data, 0o600); err != nil {
		return fmt.Errorf("certificates of the embedded etcd: %w", err)
	}
	return nil
}
