package pki

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var now = time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestChain(t *testing.T) {
	ca := must(NewCA("test-ca", now))
	other := must(NewCA("test-ca", now))
	server := must(ca.Server("etcd", []netip.Addr{netip.MustParseAddr("192.0.2.1")}, now))
	client := must(ca.Client(NodeUser("n1", "1"), time.Hour, now))
	for name, test := range map[string]struct {
		ca   *Pair
		cert *x509.Certificate
		use  x509.ExtKeyUsage
		name string
		at   time.Time
		good bool
	}{
		"server":              {ca, server.Cert, x509.ExtKeyUsageServerAuth, "192.0.2.1", now, true},
		"server, elsewhere":   {ca, server.Cert, x509.ExtKeyUsageServerAuth, "192.0.2.2", now, false},
		"client":              {ca, client.Cert, x509.ExtKeyUsageClientAuth, "", now, true},
		"client as server":    {ca, client.Cert, x509.ExtKeyUsageServerAuth, "", now, false},
		"client of other CA":  {other, client.Cert, x509.ExtKeyUsageClientAuth, "", now, false},
		"client, clocks vary": {ca, client.Cert, x509.ExtKeyUsageClientAuth, "", now.Add(-50 * time.Minute), true},
		"client, late":        {ca, client.Cert, x509.ExtKeyUsageClientAuth, "", now.Add(2 * time.Hour), false},
	} {
		pool := x509.NewCertPool()
		pool.AddCert(test.ca.Cert)
		_, err := test.cert.Verify(x509.VerifyOptions{Roots: pool, DNSName: test.name, CurrentTime: test.at, KeyUsages: []x509.ExtKeyUsage{test.use}})
		if (err == nil) != test.good {
			t.Errorf("%s: %v", name, err)
		}
	}
	if !Signs(ca.CertPEM, client.Cert) || Signs(other.CertPEM, client.Cert) {
		t.Error("Signs does not tell CAs apart")
	}
}

func TestSign(t *testing.T) {
	ca := must(NewCA("test-ca", now))
	key, keyPEM, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	request := must(Request(key, NodeUser("n1", "1")))
	certPEM := must(ca.Sign(request, NodeUser("n1", "1"), time.Hour, now))
	p := must(ParsePair(certPEM, keyPEM))
	if p.Cert.Subject.CommonName != "k8s-ovs-node:n1:1" || p.Cert.IsCA || !p.Cert.NotAfter.Equal(now.Add(time.Hour)) {
		t.Errorf("signed %+v", p.Cert.Subject)
	}
	if _, err := ca.Sign(request, NodeUser("n2", "1"), time.Hour, now); err == nil || !strings.Contains(err.Error(), "not for") {
		t.Errorf("another's name: %v", err)
	}
	for name, bad := range map[string][]byte{"nothing": nil, "a certificate": ca.CertPEM, "two": append(append([]byte{}, request...), request...), "broken": request[:len(request)-40]} {
		if _, err := ParseRequest(bad); err == nil {
			t.Errorf("%s passes as a request", name)
		}
	}
	// Nothing outlives its CA.
	late := must(ca.Client("x", CALifetime, now.Add(CALifetime/2)))
	if late.Cert.NotAfter.After(ca.Cert.NotAfter) {
		t.Errorf("a certificate ends at %s, its CA at %s", late.Cert.NotAfter, ca.Cert.NotAfter)
	}
}

// unsigned is a certificate request (RFC 2986, section 4) of an RSA key, with noise for a signature.
func unsigned(user string, key *rsa.PublicKey) []byte {
	algorithm := pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}, Parameters: asn1.NullRawValue} // sha256WithRSAEncryption
	info := must(asn1.Marshal(struct {
		Version    int
		Subject    pkix.RDNSequence
		Key        asn1.RawValue
		Attributes []asn1.RawValue `asn1:"tag:0"`
	}{0, pkix.Name{CommonName: user}.ToRDNSequence(), asn1.RawValue{FullBytes: must(x509.MarshalPKIXPublicKey(key))}, nil}))
	noise := bytes.Repeat([]byte{0x5a}, (key.N.BitLen()+7)/8)
	der := must(asn1.Marshal(struct {
		Info      asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}{asn1.RawValue{FullBytes: info}, algorithm, asn1.BitString{Bytes: noise, BitLength: 8 * len(noise)}}))
	return pem.EncodeToMemory(&pem.Block{Type: typeRequest, Bytes: der})
}

// TestParseRequestRefusesLargeKeys: before it looks at a signature that would take minutes.
func TestParseRequestRefusesLargeKeys(t *testing.T) {
	for bits, say := range map[int]string{
		4096: "verification error", 4097: "its RSA key has 4097 bits; the most is 4096", 32_768: "its RSA key has 32768 bits", 100_000: "bytes; the most is 16384",
	} {
		n := new(big.Int).Lsh(big.NewInt(1), uint(bits-1))
		request := unsigned(NodeUser("n1", "1"), &rsa.PublicKey{N: n.SetBit(n, 0, 1), E: 1<<31 - 1})
		_, err := ParseRequest(request)
		if err == nil || !strings.Contains(err.Error(), say) {
			t.Errorf("RSA of %d bits: %v, want %q", bits, err, say)
		}
	}
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	own := must(rsa.GenerateKey(rand.Reader, 2048))
	for _, key := range []crypto.Signer{key, own} {
		if _, err := ParseRequest(must(Request(key, "n1"))); err != nil {
			t.Errorf("%T: %v", key, err)
		}
	}
}

func TestBundle(t *testing.T) {
	ca := must(NewCA("test-ca", now))
	b := Bundle{Endpoints: []string{"https://192.0.2.1:2379"}, Prefix: "/x", CA: ca.CertPEM, Pair: must(ca.Client("who", time.Hour, now))}
	data := must(b.Encode())
	got := must(ParseBundle(data))
	if got.User() != "who" || !cmp.Equal(got.Endpoints, b.Endpoints) || got.Prefix != "/x" || !cmp.Equal(got.CA, b.CA) || !cmp.Equal(got.Pair.KeyPEM, b.Pair.KeyPEM) {
		t.Errorf("read back %+v", got)
	}
	// One file serves as certificate, key and CA.
	if p, err := ParsePair(data, data); err != nil || p.Cert.Subject.CommonName != "who" {
		t.Errorf("as certificate and key file: %v", err)
	}
	if !x509.NewCertPool().AppendCertsFromPEM(data) {
		t.Error("no CA file")
	}
	if want := now.Add(time.Hour / 2).Truncate(time.Second); !got.RenewAt().Equal(want) {
		t.Errorf("renewed at %s, want %s", got.RenewAt(), want)
	}
	for part, say := range map[string]string{typeAccess: "where etcd is", typeKey: "no client certificate"} {
		cut := strings.ReplaceAll(string(data), part, "SOMETHING")
		if _, err := ParseBundle([]byte(cut)); err == nil || !strings.Contains(err.Error(), say) {
			t.Errorf("without %s: %v, want %q", part, err, say)
		}
	}
}

// TestVouch: who trusts a CA trusts what one signs that it vouches for.
func TestVouch(t *testing.T) {
	former, next := must(NewCA("ca", now)), must(NewCA("ca", now))
	word := must(x509.ParseCertificate(mustDecode(must(former.Vouch(next, now)))))
	client := must(next.Client("who", time.Hour, now))
	for name, test := range map[string]struct {
		root, between *x509.Certificate
		good          bool
	}{"the former with its word": {former.Cert, word, true}, "the former without": {former.Cert, next.Cert, false}, "the new one": {next.Cert, word, true}} {
		roots, between := x509.NewCertPool(), x509.NewCertPool()
		roots.AddCert(test.root)
		between.AddCert(test.between)
		_, err := client.Cert.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
		if (err == nil) != test.good {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func mustDecode(data []byte) []byte {
	block, _ := pem.Decode(data)
	return block.Bytes
}

func TestParseNodeUser(t *testing.T) {
	for user, want := range map[string][3]string{
		NodeUser("n1", "id"): {"n1", "id", "true"}, NodeUser("n1.example", "a:b"): {"n1.example", "a:b", "true"},
		OperatorUser("n1"): {"", "", "false"}, "k8s-ovs-node:n1": {"n1", "", "false"},
	} {
		host, id, ok := ParseNodeUser(user)
		if got := [3]string{host, id, fmt.Sprint(ok)}; got != want {
			t.Errorf("%s: %v, want %v", user, got, want)
		}
	}
}
